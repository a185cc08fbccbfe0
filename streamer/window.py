"""The window: how many requests may be unanswered, so that a long way is kept full and nothing queues on it.

Time is passed in. There are as many as one round trip holds at the rate that is reached, and one more. Neither has to
be known beforehand: as TCP Vegas does it (Brakmo and Peterson, "TCP Vegas: End to End Congestion Avoidance on a Global
Internet", 1995), the round trip of a request that had others before it is compared with the quickest; what it took
longer it has queued. While pictures wait for room and next to nothing queues, the window grows; when more than one
queues, it shrinks. While none waits, it is what was needed and one more: on a quick link two, so that a hub that stalls
holds two old frames, not ten.

Vegas is unfair to who came first: who comes later measures the others' queue as the quickest round trip. On a quick
link, where this would matter most since no wire divides it, the window therefore goes by the round trip alone.

Why not the wanted rate times the quickest round trip: a program that sends as fast as it can has no wanted rate, and
where the bytes do not fit, that window would stand full for good.
"""

from __future__ import annotations

from collections import deque

SMALLEST = 2  # one on its way there, one reply on its way back; 1 only while the way is measured
# Of the requests that were under way together, those that queued: below the first it may grow, above the other it
# shrinks.
_QUEUED_LOW, _QUEUED_HIGH = 0.75, 1.5
# On a quick link programs take longer than the way does. One frame for each thread that it passes, two in a sender and
# two in a hub, keeps them all busy; more would only fall out of the processors' caches.
_QUICK_NS = 2_000_000
_QUICK_SIZE = 4
# A way may become longer for good: its quickest round trip is history, unless others came within an eighth of it.
FORGET_NS = 30_000_000_000
# Sooner by a window that is at its smallest all the same: there a way that has become longer costs the most, and one
# frame that has it to itself, to measure it, the least.
FORGET_SMALLEST_NS = 3_000_000_000
_CONFIRMS = 8


class Window:
    """What one connection has under way.

    Args:
        limit: of unanswered requests; 1 is lock-step.
    """

    __slots__ = ("_adapted_ns", "_limit", "_most", "_quickest_at_ns", "_quickest_ns", "_size", "_under_way", "_wanting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = min(SMALLEST, limit)
        # When each was sent and how many were under way with it, the oldest first, as replies come.
        self._under_way: deque[tuple[int, int]] = deque()
        self._quickest_ns: int | None = None
        self._quickest_at_ns = 0
        self._adapted_ns = 0
        self._most = 0  # under way at once since then
        self._wanting = False  # whether more was wanted since then

    @property
    def under_way(self) -> int:
        """How many requests have no reply yet."""
        return len(self._under_way)

    def has_room(self, now_ns: int) -> bool:
        """Whether one more may be sent."""
        return len(self._under_way) < self.size(now_ns)

    def size(self, now_ns: int) -> int:
        """Return how many may be under way: 1 while a request is awaited that had the way to itself, to measure it."""
        return 1 if self._is_old(now_ns) else self._size

    def _is_old(self, now_ns: int) -> bool:
        """Whether the quickest round trip is history."""
        forget_ns = FORGET_NS if self._size > SMALLEST else FORGET_SMALLEST_NS
        return self._quickest_ns is not None and now_ns - self._quickest_at_ns > forget_ns

    def want(self) -> None:
        """Take note that there was something to send and no room for it."""
        self._wanting = True

    def sent(self, now_ns: int) -> None:
        """Take note of a request."""
        self._under_way.append((now_ns, len(self._under_way) + 1))
        self._most = max(self._most, len(self._under_way))

    def answered(self, now_ns: int) -> int | None:
        """Take note of a reply; returns when its request was sent, None when none was."""
        if not self._under_way:
            return None
        sent_ns, together = self._under_way.popleft()
        took_ns = max(1, now_ns - sent_ns)
        is_old = self._is_old(now_ns)
        if self._quickest_ns is None or took_ns <= self._quickest_ns or (is_old and together == 1):
            self._quickest_ns, self._quickest_at_ns = took_ns, now_ns
        elif took_ns - self._quickest_ns <= self._quickest_ns // _CONFIRMS:
            self._quickest_at_ns = now_ns
        if sent_ns >= self._adapted_ns:  # else it tells of the window as it was before
            if not is_old:
                self._adapt(took_ns, took_ns - self._quickest_ns, together)
            self._adapted_ns, self._most, self._wanting = now_ns, len(self._under_way), False
        return sent_ns

    def _adapt(self, took_ns: int, queue_ns: int, together: int) -> None:
        """Set the window, once a round trip."""
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
