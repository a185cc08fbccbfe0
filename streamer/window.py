"""The congestion window: how many requests may be in flight, to keep a long path full without queueing on it.

Time is passed in. The window is what one round trip holds at the rate reached, and one more. Neither is known
beforehand, so it is found as in TCP Vegas (Brakmo and Peterson, "TCP Vegas: End to End Congestion Avoidance on a Global
Internet", 1995): the time by which a round trip exceeds the quickest was spent queueing. While pictures wait for room
and almost nothing queues, the window grows; when more than one request queues, it shrinks. While no picture waits, it
is what was needed and one more: on a quick link two, so that a hub that stalls holds two old frames, not ten.

Vegas favours latecomers, who take the others' queue for part of the quickest round trip. This matters most on a quick
link, where no wire limits the rate; there the window depends on the round trip alone.

On a line that is too narrow for all who share it, each measures its quickest round trip behind the others' queue, makes
room for one more, and so lengthens the queue for all. TCP knows better, since its packets are small and have met the
line empty: while they wait longer than they travel, the window shrinks down to 1, which fills such a line as well. If
the line was full already when the connection began, TCP does not know either. So on a way that looks long, the window
grows only while that costs next to nothing.

Why not the wanted rate times the quickest round trip? A program that sends as fast as it can has no wanted rate, and
where the bytes do not fit, that window would always be full.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A request on its way there and a reply on its way back; 1 only while the round trip is measured, or on a full line.
SMALLEST = 2
# Requests that queue, on average: below the first the window may grow, above the second it shrinks.
_QUEUED_LOW, _QUEUED_HIGH = 0.75, 1.5
# On a quick link the programs take longer than the network. One frame for each thread on the way, two in the sender and
# two in the hub, keeps them busy; more would only fall out of the processor caches.
_QUICK_NS = 5_000_000
_QUICK_SIZE = 4
# Of a round trip: on a full line packets wait for at least the first part of it, and travel for at most the second. Not
# asked of shorter ones, where TCP's own delay of an acknowledgement, 40 ms, would look like a queue.
_FULL_WAIT, _FULL_TRAVEL = 1 / 2, 1 / 4
_FULL_NS = 100_000_000
# A long way, by its frames and by its packets; and what share of the quickest round trip may then be spent queueing.
_LONG_NS, _LONG_PACKET_NS = 350_000_000, 50_000_000
_GROWS_WITHIN, _SHRINKS_ABOVE = 1 / 8, 1 / 4
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
        packet_times: asks how long a packet and its acknowledgement take, of late and at best, in ns; None if that is
            not known.
    """

    __slots__ = (
        "_adapted_ns",
        "_limit",
        "_most",
        "_packet_times",
        "_quickest_at_ns",
        "_quickest_ns",
        "_size",
        "_under_way",
        "_wanting",
    )

    def __init__(self, limit: int, packet_times: Callable[[], tuple[int, int] | None] = lambda: None) -> None:
        self._limit = limit
        self._packet_times = packet_times
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
                if self._wanting and together < self._size:
                    return sent_ns  # it does not say what a full window takes
                self._adapt(took_ns, took_ns - self._quickest_ns, together)
            self._adapted_ns, self._most, self._wanting = now_ns, len(self._under_way), False
        return sent_ns

    def _adapt(self, took_ns: int, queue_ns: int, together: int) -> None:
        """Adapt the size, once a round trip."""
        smallest = SMALLEST
        if not self._wanting:
            size = min(self._size, self._most + 1)
        elif took_ns < _QUICK_NS:
            size = self._size + 1 if self._size < _QUICK_SIZE else max(_QUICK_SIZE, self._size - 1)
        else:
            packet_ns, best_packet_ns = (took_ns > _FULL_NS and self._packet_times()) or (0, 0)
            if packet_ns - best_packet_ns >= _FULL_WAIT * took_ns and best_packet_ns <= _FULL_TRAVEL * took_ns:
                size, smallest = self._size - 1, 1
            elif took_ns > _LONG_NS or best_packet_ns > _LONG_PACKET_NS:
                share = queue_ns / (took_ns - queue_ns)
                size, smallest = self._size + (share <= _GROWS_WITHIN) - (share > _SHRINKS_ABOVE), 1
            else:
                queued = together * queue_ns / took_ns
                size = self._size + (queued < _QUEUED_LOW) - (queued > _QUEUED_HIGH)
        self._size = min(self._limit, max(smallest, size))
