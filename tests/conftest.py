"""What several test files need."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from streamer import hub

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


def until(condition: Callable[[], Result], within_s: float = 10.0) -> Result:
    """Ask again and again until the answer is true, and return it; fail when that takes longer than `within_s`."""
    deadline = time.monotonic() + within_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not true within {within_s:g} s"
        time.sleep(0.01)
    return result


class HubClock:
    """Stands in for the module `time` in every hub: a test moves it on, so that a camera falls silent at once.

    Hubs then need no time-outs so short that a busy machine makes silent cameras of its own.
    """

    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def hub_clock(monkeypatch: pytest.MonkeyPatch) -> HubClock:
    clock = HubClock()
    monkeypatch.setattr(hub, "time", clock)
    return clock
