"""How far another clock is from ours, measured by asking it; time is always passed in.

As NTP does it (RFC 5905, section 8, with the server's two stamps in one): a request leaves at t1 and its reply comes at
t4 by our clock, the other stamps it t2 somewhere in between, so the other clock is ahead by t2 - (t1 + t4) / 2, and off
from that by no more than half the round trip, however uneven the two ways are.
"""

from __future__ import annotations

from typing import NamedTuple

# How much faster or slower one clock may run than the other: about what two plain crystals differ by. The RFC's own
# allowance, 15 ppm, is for clocks already disciplined.
DRIFT_PPM = 50
# A measurement is not kept for longer. A clock that is slewed may drift by ten times as much (the Linux kernel's limit
# is 500 ppm), which a wide measurement cannot see at once.
KEEP_NS = 30_000_000_000


class Offset(NamedTuple):
    """How far a clock is ahead of ours.

    Attributes:
        ns: in nanoseconds; negative when it is behind.
        error_ns: the true value lies within this, to either side.
    """

    ns: int
    error_ns: int


def measure(before_ns: int, stamp_ns: int, after_ns: int) -> tuple[int, int]:
    """Compare a reading of another clock with two of ours, taken before and after it; returns an Offset's values."""
    return stamp_ns - (before_ns + after_ns) // 2, (after_ns - before_ns + 1) // 2


class Estimate:
    """The best of the latest measurements: the one whose error, grown since then by the drift allowed, is smallest.

    All errors grow alike, so what is not the best now never will be, and only one has to be kept. Ours must be a clock
    that never steps, a monotonic one. The other may: then the next measurement contradicts the one kept, unless both
    are wider than the step, and takes its place.
    """

    __slots__ = ("_best", "_measured_ns")

    def __init__(self) -> None:
        self._best: tuple[int, int] | None = None  # an Offset's two values: to make one takes as long as the rest
        self._measured_ns = 0

    def add(self, sent_ns: int, stamp_ns: int, received_ns: int) -> None:
        """Take note of a request and its reply.

        Args:
            sent_ns: when the request left, by our clock.
            stamp_ns: when it came, by the other clock.
            received_ns: when the reply came, by our clock.
        """
        new_ns, new_error_ns = new = measure(sent_ns, stamp_ns, received_ns)
        if self._best is not None and received_ns - self._measured_ns <= KEEP_NS:
            kept_ns, error_ns = self._best
            error_ns += self._drift_ns(received_ns)
            has_stepped = abs(new_ns - kept_ns) > new_error_ns + error_ns
            if new_error_ns > error_ns and not has_stepped:
                return
        self._best, self._measured_ns = new, sent_ns

    def read(self, now_ns: int) -> Offset | None:
        """Return the estimate as it stands at `now_ns` by our clock; None before the first measurement."""
        if self._best is None:
            return None
        offset_ns, error_ns = self._best
        return Offset(offset_ns, error_ns + self._drift_ns(now_ns))

    def _drift_ns(self, now_ns: int) -> int:
        return (now_ns - self._measured_ns) * DRIFT_PPM // 1_000_000 + 1  # rounded up
