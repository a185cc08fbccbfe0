"""Refused messages and connections: counted at once, logged once a second."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

_TELL_S = 1.0
_KINDS_MAX = 100  # a stranger who sends ever new rubbish must not fill memory or journal


class Refusals:
    """Counts refusals by peer and reason. Not thread-safe.

    Args:
        log: where they are logged.
    """

    def __init__(self, log: logging.Logger) -> None:
        self.total = 0  # since the start
        self._log = log
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._others = 0
        self._told = time.monotonic()

    def add(self, address: str | None, why: str) -> None:
        """Count one."""
        self.total += 1
        kind = address or "?", why
        if kind in self._kinds or len(self._kinds) < _KINDS_MAX:
            self._kinds[kind] += 1
        else:
            self._others += 1

    def tell(self, now: float) -> None:
        """Log the refusals since the last time, at most once a second; `now` in monotonic seconds."""
        if not self._kinds or now - self._told < _TELL_S:
            return
        for (address, why), count in self._kinds.items():
            self._log.warning("refused %d from %s: %s", count, address, why)
        if self._others:
            self._log.warning("refused %d more", self._others)
        self._kinds.clear()
        self._others = 0
        self._told = now
