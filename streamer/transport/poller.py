"""Waits on many sockets at once, and is woken by other threads."""

from __future__ import annotations

import contextlib
import math
import os
import select
import threading
from typing import TYPE_CHECKING

import zmq

from streamer.transport.sending import Requester
from streamer.transport.sockets import (
    EVENTS,
    POLLIN,
    POLLOUT,
    get_option,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.transport.receiving import Replier, Subscriber


class Waker:
    """Wakes a polling thread, by a pipe: a ZMQ socket must not be used by two threads."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        # A late wake must not write to a descriptor that was closed and reused. Reentrant, for signal handlers.
        self._lock = threading.RLock()
        self._closed = False

    def fileno(self) -> int:
        """Return the file descriptor to poll for reading."""
        return self._reader

    def wake(self) -> None:
        """Make the current or next poll return; any thread may call this. No effect after `close`."""
        with self._lock, contextlib.suppress(BlockingIOError):  # the pipe is full: it will wake anyway
            if not self._closed:
                os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Discard the wakes so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def close(self) -> None:
        """Close both ends."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._reader)
                os.close(self._writer)


class Poller:
    """Waits until something happens on a socket, or the thread is woken.

    Polls libzmq's descriptors (ZMQ_FD, zmq_getsockopt(3)) in one system call, where zmq_poll makes a dozen. They are
    edge-triggered: they signal what is new since the socket's events were last read. So the events are read before each
    wait; not those of monitors and doors, which are always drained.
    """

    def __init__(self, waker: Waker) -> None:
        self._waker = waker
        self._poll = select.poll()
        self._poll.register(waker.fileno(), select.POLLIN)
        self._ends: list[Requester | Replier | Subscriber] = []
        self._monitors: set[int] = set()

    def watch(self, end: Requester | Replier | Subscriber) -> None:
        """Wake up if there is something to receive, a hub comes or leaves, or a peer wants to be let in."""
        self._ends.append(end)
        for socket in _sockets(end):
            self._poll.register(get_option(socket, zmq.FD), select.POLLIN)
        if isinstance(end, Requester):
            self._monitors.add(get_option(end.monitor, zmq.FD))

    def forget(self, end: Requester) -> None:
        """Stop watching an end; call this before reopening it."""
        self._ends.remove(end)
        for socket in _sockets(end):
            self._poll.unregister(get_option(socket, zmq.FD))
        self._monitors.discard(get_option(end.monitor, zmq.FD))

    def wait(self, timeout_s: float, for_hubs: Sequence[Requester] = ()) -> bool:
        """Wait, but not if a wake has come since the last wait.

        Args:
            timeout_s: the longest wait, in seconds; negative is 0.
            for_hubs: do not wait either if one of these ends can be sent to.

        Returns:
            Whether a hub may have left.
        """
        for end in self._ends:
            if get_option(end.socket, EVENTS) & (POLLIN | POLLOUT if end in for_hubs else POLLIN):
                timeout_s = 0
        ready = {descriptor for descriptor, _ in self._poll.poll(math.ceil(max(0.0, timeout_s) * 1000))}
        if self._waker.fileno() in ready:
            self._waker.clear()
        return not self._monitors.isdisjoint(ready)


def _sockets(end: Requester | Replier | Subscriber) -> list[zmq.Socket[bytes]]:
    """Return the sockets on which an end can have news."""
    if isinstance(end, Requester):
        return [end.socket, end.monitor]
    if end.door:
        return [end.socket, end.door.monitor, *([end.door.requests] if end.door.requests else [])]
    return [end.socket]
