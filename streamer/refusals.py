"""What goes wrong again and again: logged at once, then once a minute while it goes on."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

REMIND_S = 60.0  # until what goes on is logged again
_REMEMBERED = 1024  # as many as a hub has cameras
_TELL_S = 1.0  # what is refused within it is logged together
# A stranger who sends ever new rubbish must neither fill memory and journal nor hide what others are refused for.
_REASONS_MAX = 10  # of an address
_KINDS_MAX = 100  # of all


class Reminders:
    """Tells when to log what goes on: at once, then once a minute. Thread-safe; remembers the newest 1,024."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}

    def is_due(self, what: str) -> bool:
        """Whether to log this now; if so, not again within a minute."""
        now = time.monotonic()
        with self._lock:
            if now - self._told.get(what, -math.inf) < REMIND_S:
                return False
            self._told.pop(what, None)
            self._told[what] = now
            if len(self._told) > _REMEMBERED:
                del self._told[next(iter(self._told))]
        return True


class Refusals:
    """Counts refused messages and connections by peer and reason. Not thread-safe.

    Args:
        log: where they are logged.
    """

    def __init__(self, log: logging.Logger) -> None:
        self.total = 0  # since the start
        self._log = log
        # By address and reason: how many since that was logged last, and when to log it again. Forgotten after a minute
        # without.
        self._counts: Counter[tuple[str, str]] = Counter()
        self._due: dict[tuple[str, str], float] = {}
        self._labels: dict[tuple[str, str], str] = {}  # the last, if labels are the reason
        self._told = time.monotonic()

    def add(self, address: str | None, why: str, label: str | None = None) -> None:
        """Count one; `label` may differ each time and only the last is logged."""
        self.total += 1
        kind = address or "an unknown address", why
        if kind not in self._counts:
            if sum(other == kind[0] for other, _ in self._counts) >= _REASONS_MAX:
                kind = kind[0], "other reasons"
            elif len(self._counts) >= _KINDS_MAX:
                kind = "other addresses", "various reasons"
        self._counts[kind] += 1
        if label and kind[1] == why:
            self._labels[kind] = label

    def tell(self, now: float) -> None:
        """Log what is due; `now` in monotonic seconds."""
        if now - self._told < _TELL_S:
            return
        self._told = now
        for kind, count in [*self._counts.items()]:
            if now < self._due.get(kind, now):
                continue
            if not count:
                del self._counts[kind], self._due[kind]
                self._labels.pop(kind, None)
                continue
            label = self._labels.get(kind)
            self._log.warning("refused %d from %s: %s%s", count, *kind, f"; last label: {label}" if label else "")
            self._counts[kind], self._due[kind] = 0, now + REMIND_S
