"""Lets only one run at a time change a host.

The lock is a lease on one host that all operators' runs reach: it ends by itself a minute after it was last renewed.
A process beside ansible-playbook renews it for as long as that runs, then gives it back. So it outlives neither a run
that fails or is interrupted nor a control machine that dies, and nobody ever has to remove it by hand.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

LEASE_S = 60
RENEWED_EVERY_S = 15
WATCHED_EVERY_S = 0.2
LONGEST_S = 4 * 3600  # should nobody bury an ansible-playbook that has ended

# Takes the lease, renews it, or with 0 seconds gives it back; or says whose it is. By the host's uptime, since a Pi's
# clock jumps. Arguments: who, for how many seconds, the names of the hosts to lock.
SCRIPT = """
set -eu
who=$1 seconds=$2
shift 2
umask 022
mkdir -p /run/streamer-deploy
cd /run/streamer-deploy
exec 9>.one-at-a-time
flock 9
now=$(cut -d. -f1 /proc/uptime)
for name; do
  { read -r until holder <"$name"; } 2>/dev/null || continue
  [ "$until" -le "$now" ] || [ "$holder" = "$who" ] || { echo "$name" "$holder"; exit 9; }
done
for name; do
  echo "$((now + seconds)) $who" >"$name"
done
"""
TAKEN = 9


class ActionModule(ActionBase):
    """Takes the lock of `names`, or fails and says who has it."""

    _VALID_ARGS = frozenset(("names",))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run by Ansible, in a process of the task's own."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.check_mode:
            return result | {"skipped": True}
        playbook = os.getppid()
        since = time.strftime("%H:%M %Z")
        user = os.environ.get("USER") or os.getuid()  # a container's user may have no name
        who = f"{user}@{socket.gethostname()} (process {playbook}, since {since})"
        try:
            answer = self._lease(who, LEASE_S)
        except AnsibleConnectionFailure:
            self._display.warning("the host that keeps the lock does not answer: nothing is locked")
            return result
        if answer["rc"] == TAKEN:
            host, holder = answer["stdout"].strip().split(" ", 1)
            msg = (
                f"{host} is being changed by {holder}: nothing was done here. Wait until that run has ended; if its "
                f"machine has died, wait {LEASE_S} s"
            )
            return result | {"failed": True, "msg": msg}
        if answer["rc"]:
            return result | {"failed": True, "msg": f"no lock: {answer['stderr'].strip() or answer['stdout'].strip()}"}
        if not os.fork():
            self._keep(playbook, who)
        return result

    def _lease(self, who: str, seconds: int) -> dict[str, Any]:
        words = ["/bin/sh", "-c", SCRIPT, "lock", who, str(seconds), *self._task.args["names"]]
        answer: dict[str, Any] = self._low_level_execute_command(shlex.join(words))
        return answer

    def _keep(self, playbook: int, who: str) -> None:
        """Renew the lease while that process lives, then give it back; ends this one."""
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            self._display.verbosity = 0  # there will be nobody to listen
            began = renewed = time.monotonic()
            while _lives(playbook) and time.monotonic() - began < LONGEST_S:
                time.sleep(WATCHED_EVERY_S)
                if time.monotonic() - renewed > RENEWED_EVERY_S:
                    renewed = time.monotonic()
                    self._try_lease(who, LEASE_S)
            for _ in range(LEASE_S):  # after which it has ended by itself
                if self._try_lease(who, 0):
                    break
                time.sleep(1)
        finally:
            os._exit(0)

    def _try_lease(self, who: str, seconds: int) -> bool:
        """Return whether the host has answered; it may be away for a moment."""
        with contextlib.suppress(Exception):
            return self._lease(who, seconds)["rc"] in {0, TAKEN}
        return False


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
