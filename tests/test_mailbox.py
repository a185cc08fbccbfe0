from __future__ import annotations

import contextlib
import itertools
import threading
from typing import TYPE_CHECKING

import pytest

from streamer.mailbox import Mailbox
from tests.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable


class Taker:
    """A thread that calls `take` once, and keeps what it got."""

    def __init__(self, mailbox: Mailbox[int], timeout_s: float | None) -> None:
        self.got: list[int | None] = []
        self._thread = threading.Thread(target=lambda: self.got.append(mailbox.take(timeout_s)), daemon=True)
        self._thread.start()

    def join(self) -> list[int | None]:
        self._thread.join(5)
        assert not self._thread.is_alive(), "still waits"
        return self.got


def waiting(mailbox: Mailbox[int]) -> int:
    """Count the threads that wait in `take`."""
    return len(mailbox._changed._waiters)  # type: ignore[attr-defined]


def taken(mailbox: Mailbox[int]) -> list[int]:
    return list(iter(mailbox.take, None))


@pytest.mark.parametrize(
    ("put", "kept", "dropped"),
    [
        pytest.param([], [], 0, id="empty"),
        pytest.param([("a", 1)], [1], 0, id="one"),
        pytest.param([("a", 1), ("a", 2), ("a", 3)], [3], 2, id="the newest of a key wins"),
        pytest.param([("a", 1), ("b", 2), ("c", 3)], [1, 2, 3], 0, id="keys in the order in which they came"),
        pytest.param([("a", 1), ("b", 2), ("a", 3), ("a", 4)], [4, 2], 2, id="overwriting keeps the place"),
    ],
)
def test_newest_of_each_key(put: list[tuple[str, int]], kept: list[int], dropped: int) -> None:
    mailbox: Mailbox[int] = Mailbox()
    for key, item in put:
        mailbox.put(key, item)
    assert bool(mailbox) == bool(put)
    assert taken(mailbox) == kept
    assert mailbox.dropped == dropped
    assert not mailbox


def test_a_busy_key_does_not_starve_a_slow_one() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put("busy", 0)
    mailbox.put("slow", -1)
    got = []
    for item in range(1, 4):
        got.append(mailbox.take())
        mailbox.put("busy", item)
    assert got == [0, -1, 2]
    assert mailbox.dropped == 1


def test_what_was_taken_is_no_drop() -> None:
    mailbox: Mailbox[int] = Mailbox()
    for item in range(3):
        mailbox.put("a", item)
        assert mailbox.take() == item
    assert mailbox.dropped == 0


@pytest.mark.parametrize("timeout_s", [0.0, 0.01])
def test_take_gives_up(timeout_s: float) -> None:
    assert Mailbox[int]().take(timeout_s) is None


@pytest.mark.parametrize("timeout_s", [None, 30.0])
def test_take_waits_for_an_item(timeout_s: float | None) -> None:
    mailbox: Mailbox[int] = Mailbox()
    taker = Taker(mailbox, timeout_s)
    until(lambda: waiting(mailbox) == 1)
    mailbox.put("a", 1)
    assert taker.join() == [1]


def test_each_of_several_takers_gets_an_item() -> None:
    mailbox: Mailbox[int] = Mailbox()
    takers = [Taker(mailbox, None) for _ in range(3)]
    until(lambda: waiting(mailbox) == 3)
    for item, key in enumerate("abc"):
        mailbox.put(key, item)
    assert sorted(str(each) for taker in takers for each in taker.join()) == ["0", "1", "2"]


def test_close_forgets_and_releases_every_taker_for_good() -> None:
    mailbox: Mailbox[int] = Mailbox()
    takers = [Taker(mailbox, None) for _ in range(3)]
    until(lambda: waiting(mailbox) == 3)
    assert not mailbox.closed
    mailbox.close()
    assert [taker.join() for taker in takers] == [[None]] * 3
    assert mailbox.closed
    mailbox.put("a", 1)
    assert not mailbox
    assert mailbox.take(None) is None


def test_close_forgets_what_waits() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put("a", 1)
    mailbox.close()
    assert mailbox.take() is None
    assert mailbox.dropped == 0


@pytest.mark.parametrize(
    ("act", "calls"),
    [
        pytest.param(lambda mailbox: mailbox.put("a", 1), [True], id="from empty to not empty"),
        pytest.param(lambda mailbox: (mailbox.put("a", 1), mailbox.put("a", 2)), [True], id="overwriting"),
        pytest.param(lambda mailbox: (mailbox.put("a", 1), mailbox.put("b", 2)), [True], id="another key"),
        pytest.param(
            lambda mailbox: (mailbox.put("a", 1), mailbox.take(), mailbox.put("a", 2)), [True, True], id="empty again"
        ),
        pytest.param(
            lambda mailbox: (
                mailbox.put("a", 1),
                mailbox.take(hold=True),
                mailbox.put("a", 2),
                mailbox.release("a"),
            ),
            [True, True],
            id="released",
        ),
        pytest.param(lambda mailbox: mailbox.close(), [False], id="closing"),
        pytest.param(lambda mailbox: (mailbox.close(), mailbox.put("a", 1)), [False], id="closed"),
    ],
)
def test_on_ready(act: Callable[[Mailbox[int]], object], calls: list[bool]) -> None:
    seen: list[bool] = []
    mailbox: Mailbox[int] = Mailbox(on_ready=lambda: seen.append(bool(mailbox)))
    act(mailbox)
    assert seen == calls


def test_on_ready_may_use_the_mailbox() -> None:
    got: list[int | None] = []
    mailbox: Mailbox[int] = Mailbox(on_ready=lambda: got.append(mailbox.take()))
    mailbox.put("a", 1)
    mailbox.put("a", 2)
    assert got == [1, 2]


def test_many_threads_lose_nothing_uncounted() -> None:
    mailbox: Mailbox[int] = Mailbox()
    puts, takes = 2000, itertools.count()

    def take_all() -> None:
        while mailbox.take(None) is not None:
            next(takes)

    def put_all(key: str) -> None:
        for item in range(puts):
            mailbox.put(key, item)

    takers = [threading.Thread(target=take_all) for _ in range(2)]
    putters = [threading.Thread(target=put_all, args=[key]) for key in ("a", "b", "c")]
    for thread in (*takers, *putters):
        thread.start()
    for thread in putters:
        thread.join()
    until(lambda: not mailbox)
    mailbox.close()
    for thread in takers:
        thread.join()
    assert next(takes) + mailbox.dropped == 3 * puts


def test_held_key_is_given_to_nobody_until_it_is_released() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put("a", 1)
    assert mailbox.take(hold=True) == 1
    mailbox.put("a", 2)
    mailbox.put("b", 3)
    mailbox.put("a", 4)
    assert mailbox.dropped == 1
    assert mailbox.take() == 3
    assert mailbox.take() is None
    mailbox.release("a")
    assert mailbox.take(hold=True) == 4
    mailbox.release("a")
    assert mailbox.take() is None


def test_release_wakes_who_waits() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put("a", 1)
    mailbox.take(hold=True)
    mailbox.put("a", 2)
    taker = Taker(mailbox, None)
    until(lambda: waiting(mailbox))
    mailbox.release("a")
    assert taker.join() == [2]


def test_release_after_close_gives_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put("a", 1)
    mailbox.take(hold=True)
    mailbox.put("a", 2)
    mailbox.close()
    mailbox.release("a")
    assert mailbox.take() is None


@pytest.mark.parametrize("leave", [lambda mailbox: mailbox.close(), lambda mailbox: mailbox.release("a")])
def test_interrupt_leaves_nothing_locked(leave: Callable[[Mailbox[int]], None]) -> None:
    class Interrupted(threading.Condition):
        def __enter__(self) -> bool:
            super().__enter__()
            raise KeyboardInterrupt

    mailbox: Mailbox[int] = Mailbox()
    mailbox.put("a", 1)
    mailbox.take(hold=True)
    mailbox._changed = Interrupted(mailbox._lock)
    with contextlib.suppress(KeyboardInterrupt):
        leave(mailbox)
    other = threading.Thread(target=mailbox.put, args=("a", 2), daemon=True)
    other.start()
    other.join(5)
    assert not other.is_alive()
