"""The congestion window: how many requests may be in flight, to keep a long path full without queueing on it.

Time is passed in. The window is what one round trip holds at the rate reached, and one more. Neither is known
beforehand, so it is found as in TCP Vegas (Brakmo and Peterson, "TCP Vegas: End to End Congestion Avoidance on a Global
Internet", 1995): the time by which a round trip exceeds the quickest was spent queueing. While pictures wait for room
and almost nothing queues, the window grows; when more than one request queues, it shrinks. While no picture waits, it
is what was needed and one more: on a quick link two, so that a hub that stalls holds two old frames, not ten.

Vegas favours latecomers, who take the others' queue for part of the quickest round trip. This matters most on a quick
link, where no wire limits the rate; there the window depends on the round trip alone.

Why not the wanted rate times the quickest round trip? A program that sends as fast as it can has no wanted rate, and
where the bytes do not fit, that window would always be full.
"""

from __future__ import annotations

from collections import deque

SMALLEST = 2  # a request on its way there and a reply on its way back; 1 only while the round trip is measured
# Requests that queue, on average: below the first the window may grow, above the second it shrinks.
_QUEUED_LOW, _QUEUED_HIGH = 0.75, 1.5
# On a quick link the programs take longer than the network. One frame for each thread on the way, two in the sender and
# two in the hub, keeps them busy; more would only fall out of the processor caches.
_QUICK_NS = 2_000_000
_QUICK_SIZE = 4
# The path may get longer for good: the quickest round trip expires, unless others come within an eighth of it.
FORGET_NS = 30_000_000_000
# Sooner at the smallest window: there an outdated round trip costs the most, and measuring it by a frame that has the
# path to itself the least.
FORGET_SMALLEST_NS = 3_000_000_000
_CONFIRMS = 8


class Window:
    """The requests in flight on one connection, and how many there may be.

    Args:
        limit: the most requests in flight; 1 is lock-step.
    """

    __slots__ = ("_adapted_ns", "_limit", "_most", "_quickest_at_ns", "_quickest_ns", "_size", "_under_way", "_wanting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = min(SMALLEST, limit)
        # When each was sent and how many were in flight then, itself included; the oldest first, as replies come.
        self._under_way: deque[tuple[int, int]] = deque()
        self._quickest_ns: int | None = None
        self._quickest_at_ns = 0
        self._adapted_ns = 0
        self._most = 0  # the most in flight at once since `_adapted_ns`
        self._wanting = False  # whether the window was too small since `_adapted_ns`

    @property
    def under_way(self) -> int:
        """How many requests are in flight."""
        return len(self._under_way)

    def has_room(self, now_ns: int) -> bool:
        """Whether one more may be sent."""
        return len(self._under_way) < self.size(now_ns)

    def size(self, now_ns: int) -> int:
        """Return how many may be in flight: 1 while the round trip has to be measured by a request on its own."""
        return 1 if self._is_old(now_ns) else self._size

    def _is_old(self, now_ns: int) -> bool:
        """Whether the quickest round trip has expired."""
        forget_ns = FORGET_NS if self._size > SMALLEST else FORGET_SMALLEST_NS
        return self._quickest_ns is not None and now_ns - self._quickest_at_ns > forget_ns

    def want(self) -> None:
        """Note that there was something to send and no room for it."""
        self._wanting = True

    def sent(self, now_ns: int) -> None:
        """Note that a request was sent."""
        self._under_way.append((now_ns, len(self._under_way) + 1))
        self._most = max(self._most, len(self._under_way))

    def answered(self, now_ns: int) -> int | None:
        """Note a reply; return when its request was sent, or None if there was none."""
        if not self._under_way:
            return None
        sent_ns, together = self._under_way.popleft()
        took_ns = max(1, now_ns - sent_ns)
        is_old = self._is_old(now_ns)
        if self._quickest_ns is None or took_ns <= self._quickest_ns or (is_old and together == 1):
            self._quickest_ns, self._quickest_at_ns = took_ns, now_ns
        elif took_ns - self._quickest_ns <= self._quickest_ns // _CONFIRMS:
            self._quickest_at_ns = now_ns
        if sent_ns >= self._adapted_ns:  # else it was sent with the window as it was before
            if not is_old:
                self._adapt(took_ns, took_ns - self._quickest_ns, together)
            self._adapted_ns, self._most, self._wanting = now_ns, len(self._under_way), False
        return sent_ns

    def _adapt(self, took_ns: int, queue_ns: int, together: int) -> None:
        """Adapt the size, once a round trip."""
        queued = together * queue_ns / took_ns
        if not self._wanting:
            size = min(self._size, self._most + 1)
        elif took_ns < _QUICK_NS:
            size = self._size + 1 if self._size < _QUICK_SIZE else max(_QUICK_SIZE, self._size - 1)
        elif queued < _QUEUED_LOW:
            size = self._size + 1
        elif queued > _QUEUED_HIGH:
            size = self._size - 1
        else:
            return
        self._size = min(self._limit, max(SMALLEST, size))
