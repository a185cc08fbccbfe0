"""A newest-only mailbox: one slot per key, overwriting counts as a drop, taking is fair between keys."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """Holds the newest item of each key until it is taken. Thread-safe.

    An item overwritten before it was taken is lost, and counted in `dropped`. The key that has waited longest is served
    first, and overwriting keeps its place, so a busy camera cannot starve a slow one.

    Args:
        on_ready: called by the putting thread when the mailbox was empty, and on `close`. It must not block.
    """

    def __init__(self, on_ready: Callable[[], None] | None = None) -> None:
        self._on_ready = on_ready
        self._slots: dict[str, Item] = {}
        self._held: dict[str, Item | None] = {}  # by key that a taker holds: the newest item put since
        self._lock = threading.RLock()  # reentrant, as a signal handler may put or close while its thread does
        # Enter the lock, not this: its `__enter__` is Python, and a KeyboardInterrupt there leaves it locked for ever.
        self._changed = threading.Condition(self._lock)
        self._closed = False
        self.dropped = 0

    def put(self, key: str, item: Item) -> None:
        """Make `item` the newest of `key`; ignored after `close`."""
        with self._lock:
            if self._closed:
                return
            if key in self._held:
                self.dropped += self._held[key] is not None
                self._held[key] = item
                return
            was_empty = not self._slots
            if key in self._slots:
                self.dropped += 1
            self._slots[key] = item
            if was_empty:
                self._changed.notify()
        if was_empty and self._on_ready is not None:
            self._on_ready()

    def take(self, timeout_s: float | None = 0.0, *, hold: bool = False) -> Item | None:
        """Remove and return the newest item of the key that has waited longest.

        Args:
            timeout_s: how long to wait for an item, in seconds; None waits until there is one or the mailbox closes.
            hold: give out no other item of this key until `release`.

        Returns:
            The item; None on timeout, or when the mailbox is closed.
        """
        with self._lock:
            if not self._slots and not self._closed and timeout_s != 0.0:
                self._changed.wait_for(lambda: self._slots or self._closed, timeout_s)
            if not self._slots:
                return None
            key = next(iter(self._slots))
            item = self._slots.pop(key)
            if hold:
                self._held[key] = None
            if self._slots:  # more than one taker may be waiting
                self._changed.notify()
            return item

    def release(self, key: str) -> None:
        """Let go of a key taken with `hold`; an item put meanwhile can be taken now."""
        with self._lock:
            item = self._held.pop(key)
            if item is None or self._closed:
                return
            was_empty = not self._slots
            self._slots[key] = item
            self._changed.notify()
        if was_empty and self._on_ready is not None:
            self._on_ready()

    def __bool__(self) -> bool:
        """Whether it holds an item that can be taken."""
        return bool(self._slots)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Discard all items and wake every taker, for good."""
        with self._lock:
            self._closed = True
            self._slots.clear()
            self._changed.notify_all()
        if self._on_ready is not None:
            self._on_ready()
