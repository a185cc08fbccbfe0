"""Ansible's callback that cuts a host's power in the middle of a deploy, or tells which tasks it has.

POWER_CUT is HOST|during|TASK|SECONDS or HOST|after|TASK|SECONDS: so long after the task's start or its end, where TASK
is its number on that host or its name. Or only HOST: then each task that changes it is written into POWER_TOLD.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.lab import card


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "power_cut"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        words = os.environ["POWER_CUT"].split("|")
        self.host, self.moment, self.wanted, self.seconds = words if len(words) == 4 else (*words, "", "", "")
        self.number = 0
        self.began = 0.0

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        if host.name == self.host:
            self.number += 1
            self.began = time.monotonic()
            if self.moment == "during" and self._is_wanted(task):
                threading.Timer(float(self.seconds), card.cut, [self.host]).start()

    def v2_runner_on_ok(self, result: Any) -> None:
        if result._host.name != self.host:
            return
        task = result._task
        if "POWER_TOLD" in os.environ and result._result.get("changed") and not task.delegate_to:
            told = {"number": self.number, "name": task.name, "took_s": time.monotonic() - self.began}
            with Path(os.environ["POWER_TOLD"]).open("a") as file:
                file.write(json.dumps(told) + "\n")
        if self.moment == "after" and self._is_wanted(task):
            time.sleep(float(self.seconds))
            card.cut(self.host)

    def _is_wanted(self, task: Any) -> bool:
        return self.wanted in (str(self.number), task.name)
