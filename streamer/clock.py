"""The offset of another clock from ours, measured by request and reply. Time is passed in, but to `WallClock`.

As in NTP (RFC 5905, section 8, with the server's two timestamps in one): a request leaves at t1 and its reply arrives
at t4 by our clock; the other side stamps it t2 in between. So the other clock is ahead by t2 - (t1 + t4) / 2, with an
error of at most half the round trip, however asymmetric the path.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

# Assumed maximum drift: about what two plain crystals differ by. The RFC's 15 ppm is for disciplined clocks.
DRIFT_PPM = 50
# Measurements expire: a clock being slewed may drift ten times as fast (the Linux kernel allows 500 ppm), and a
# measurement with a large error notices that late.
KEEP_NS = 30_000_000_000


class Offset(NamedTuple):
    """How far a clock is ahead of ours.

    Attributes:
        ns: in nanoseconds; negative when it is behind.
        error_ns: the largest error of `ns`, either way.
    """

    ns: int
    error_ns: int


def measure(before_ns: int, stamp_ns: int, after_ns: int) -> tuple[int, int]:
    """Compare a reading of another clock with ours before and after it; returns the values of an Offset."""
    return stamp_ns - (before_ns + after_ns) // 2, (after_ns - before_ns + 1) // 2


class Estimate:
    """The best recent measurement: the one with the smallest error, including the drift since it was taken.

    All errors grow at the same rate, so the best one stays the best and only it has to be kept. Our clock must be
    monotonic. The other may step: the next measurement then contradicts the one kept and replaces it, unless the step
    is smaller than their errors.
    """

    __slots__ = ("_best", "_measured_ns")

    def __init__(self) -> None:
        self._best: tuple[int, int] | None = None  # the values of an Offset, which is slow to make
        self._measured_ns = 0

    def add(self, sent_ns: int, stamp_ns: int, received_ns: int) -> None:
        """Add the measurement of one request and its reply.

        Args:
            sent_ns: when the request left, by our clock.
            stamp_ns: when it arrived, by the other clock.
            received_ns: when the reply arrived, by our clock.
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
        """Return the estimate for `now_ns` by our clock; None before the first measurement."""
        if self._best is None:
            return None
        offset_ns, error_ns = self._best
        return Offset(offset_ns, error_ns + self._drift_ns(now_ns))

    def _drift_ns(self, now_ns: int) -> int:
        return (now_ns - self._measured_ns) * DRIFT_PPM // 1_000_000 + 1  # rounded up


class WallClock:
    """The wall clock, at times that are told by another clock of this machine.

    The process may be suspended between two readings of clocks, so the best recent comparison counts.

    Args:
        read_ns: reads that other clock, in ns.
    """

    def __init__(self, read_ns: Callable[[], int]) -> None:
        self._read_ns = read_ns
        self._estimate = Estimate()

    def at(self, stamp_ns: int) -> int:
        """Return what the wall clock said, in ns since 1970, when the other one said `stamp_ns`."""
        before_ns, wall_ns, after_ns = self._read_ns(), time.time_ns(), self._read_ns()
        self._estimate.add(before_ns, wall_ns, after_ns)
        offset_ns, _ = self._estimate.read(after_ns) or measure(before_ns, wall_ns, after_ns)
        return stamp_ns + offset_ns
