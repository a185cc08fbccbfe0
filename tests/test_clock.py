"""The estimate of another clock, over simulated clocks and links."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from streamer import wire
from streamer.clock import DRIFT_PPM, KEEP_NS, Estimate, Offset, WallClock, measure
from tests.peers import JPEG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

US, MS, S = 1_000, 1_000_000, 1_000_000_000
HOUR = 3600 * S
BOOTED = 20 * S  # our clock's reading when a simulation begins


class Link:
    """Asks a simulated clock over a simulated link, 30 times a second, time after time.

    Args:
        ahead: how far the other clock is ahead, in ns, when ours has run for so many ns.
        up_ns: how long a request takes.
        down_ns: how long a reply takes.
    """

    def __init__(self, ahead: Callable[[int], int], up_ns: Callable[[], int], down_ns: Callable[[], int]) -> None:
        self.estimate = Estimate()
        self.now_ns = BOOTED
        self.sent_ns = self.arrived_ns = 0
        self._ahead, self._up_ns, self._down_ns = ahead, up_ns, down_ns

    def ahead_ns(self, at_ns: int | None = None) -> int:
        return self._ahead((at_ns or self.now_ns) - BOOTED)

    def stamp_ns(self, at_ns: int) -> int:
        return at_ns + self.ahead_ns(at_ns)

    def run(self, for_ns: int, every_ns: int = S // 30) -> Iterator[Offset]:
        """Ask for so long; yields each estimate, as it is when the reply has come, and again just before the next."""
        end_ns = self.now_ns + for_ns
        while self.now_ns < end_ns:
            self.sent_ns = self.now_ns
            self.arrived_ns = self.sent_ns + self._up_ns()
            received_ns = self.arrived_ns + self._down_ns()
            self.estimate.add(self.sent_ns, self.stamp_ns(self.arrived_ns), received_ns)
            for at_ns in (received_ns, max(received_ns, self.sent_ns + every_ns)):
                self.now_ns = at_ns
                yield self.read()

    def read(self) -> Offset:
        offset = self.estimate.read(self.now_ns)
        assert offset is not None
        return offset

    @property
    def wrong_ns(self) -> int:
        """How far the estimate is from the truth now."""
        return abs(self.read().ns - self.ahead_ns())


def constant(value: int) -> Callable[..., int]:
    return lambda *_: value


def jitter(seed: int, least: int, mean: float) -> Callable[[], int]:
    """A delay of at least so much, more often short than long; now and then something holds it up."""
    rolls = random.Random(seed)
    return lambda: least + round(rolls.expovariate(1 / mean)) + (300 * MS if rolls.random() < 0.01 else 0)


# -- one measurement


@pytest.mark.parametrize(
    ("stamps", "offset"),
    [
        pytest.param((100, 100, 100), (0, 0), id="at once"),
        pytest.param((100, 150, 200), (0, 50), id="same clock, equal ways"),
        pytest.param((100, 200, 200), (50, 50), id="all of the way is there"),
        pytest.param((100, 100, 200), (-50, 50), id="all of the way is back"),
        pytest.param((0, HOUR, 100), (HOUR - 50, 50), id="ahead"),
        pytest.param((HOUR, 50, HOUR + 100), (-HOUR, 50), id="behind"),
        pytest.param((0, 0, 101), (-50, 51), id="half a nanosecond is an error too"),
    ],
)
def test_measurement(stamps: tuple[int, int, int], offset: tuple[int, int]) -> None:
    assert measure(*stamps) == offset


@pytest.mark.parametrize("ahead", [0, 7, -7, HOUR, -HOUR])
@pytest.mark.parametrize(("up", "down"), [(0, 0), (1, 0), (0, 1), (1, 2), (1000, 1), (1, 1000), (999, 1000)])
def test_measurement_is_right_within_its_error_however_uneven_the_ways(ahead: int, up: int, down: int) -> None:
    measured_ns, error_ns = measure(50, 50 + up + ahead, 50 + up + down)
    assert abs(measured_ns - ahead) <= error_ns


# -- the estimate


def test_nothing_is_known_before_the_first_reply() -> None:
    assert Estimate().read(BOOTED) is None


def test_error_grows_with_age_by_the_drift_allowed() -> None:
    estimate = Estimate()
    estimate.add(BOOTED, HOUR, BOOTED + 2 * MS)
    for age_s in (1, 10, 100):
        offset = estimate.read(BOOTED + age_s * S)
        assert offset
        assert offset.ns == HOUR - BOOTED - MS
        assert offset.error_ns == pytest.approx(MS + age_s * DRIFT_PPM * 1000, abs=1)


def test_the_quickest_reply_counts() -> None:
    estimate = Estimate()
    for number, trip_ns in enumerate([40 * MS, 2 * MS, 300 * MS, 3 * MS, 90 * MS]):
        sent_ns = BOOTED + number * 400 * MS
        estimate.add(sent_ns, sent_ns + trip_ns, sent_ns + trip_ns)
    offset = estimate.read(BOOTED + 2 * S)
    assert offset
    assert offset.ns == MS
    assert MS < offset.error_ns < 1.2 * MS


def test_a_reply_as_quick_as_the_best_takes_its_place_since_it_is_younger() -> None:
    link = Link(constant(HOUR), constant(MS), constant(MS))
    assert all(offset.error_ns < 1.01 * MS for offset in link.run(100 * S))


def test_what_is_old_is_not_kept_however_good_it_was() -> None:
    delay = iter([0.1 * MS] + [20 * MS] * 10_000)
    link = Link(constant(0), lambda: round(next(delay)), constant(0))
    errors = [(link.now_ns, offset.error_ns) for offset in link.run(KEEP_NS + 2 * S)]
    assert all(error < 2 * MS for at, error in errors if at - BOOTED <= KEEP_NS)
    assert all(error >= 10 * MS for at, error in errors if at - BOOTED > KEEP_NS + S)


DRIFTS = [0.0, DRIFT_PPM / 2, -DRIFT_PPM / 2, DRIFT_PPM, -DRIFT_PPM]
WAYS = [
    pytest.param((1, 0), (1, 0), id="a wire"),
    pytest.param((200 * US, 100.0 * US), (200 * US, 100.0 * US), id="a busy wire"),
    pytest.param((5 * MS, 20.0 * MS), (1 * MS, 0.5 * MS), id="pictures wait, replies do not"),
    pytest.param((1 * MS, 0.5 * MS), (5 * MS, 20.0 * MS), id="replies wait"),
    pytest.param((40 * MS, 1.0 * MS), (1 * MS, 1.0 * MS), id="one way is always longer"),
]


def way(seed: int, least_and_mean: tuple[int, float]) -> Callable[[], int]:
    least, mean = least_and_mean
    return jitter(seed, least, mean) if mean else constant(least)


@pytest.mark.parametrize("drift_ppm", DRIFTS)
@pytest.mark.parametrize("ahead", [0, 5 * HOUR, -5 * HOUR])
@pytest.mark.parametrize(("up", "down"), WAYS)
def test_the_truth_is_always_within_the_error(
    drift_ppm: float, ahead: int, up: tuple[int, float], down: tuple[int, float]
) -> None:
    link = Link(lambda ran: ahead + round(ran * drift_ppm / 1e6), way(1, up), way(2, down))
    seen = 0
    for offset in link.run(90 * S):
        assert link.wrong_ns <= offset.error_ns + 1  # the simulated clock is read in whole nanoseconds
        seen += 1
    assert seen > 300
    # Not by calling everything uncertain: the error is what the shortest trip and its age leave of it.
    assert link.read().error_ns <= (up[0] + down[0]) / 2 + up[1] + down[1] + 3 * MS


@pytest.mark.parametrize(("up", "down"), WAYS)
def test_the_true_latency_is_within_the_error_told_to_the_hub(up: tuple[int, float], down: tuple[int, float]) -> None:
    # The whole way of the numbers: from the sender's clocks through a header to the hub's frame.
    exposing = jitter(3, 4 * MS, 4.0 * MS)
    link = Link(lambda ran: 1_793_500_000 * S + ran // 50_000, way(1, up), way(2, down))
    wall_ahead_ns = 3 * HOUR  # the sender's wall clock, which the hub is told of, against the monotonic one
    told: Offset | None = None
    latencies = 0
    for at, offset in enumerate(link.run(20 * S)):
        if at % 2:  # just before the next picture is sent
            told = offset
            continue
        captured_ns = link.sent_ns - exposing()
        extras = {"captured": captured_ns + wall_ahead_ns, "clock": True}
        if told:
            extras |= {"offset": told.ns - wall_ahead_ns, "offset_error": told.error_ns}
        frame = wire.parse(wire.make_header("pi1", extras=extras), JPEG, link.stamp_ns(link.arrived_ns))
        assert wire.read_stamp(wire.reply_to(frame)) == link.stamp_ns(link.arrived_ns)
        latency_ns = link.arrived_ns - captured_ns
        if told is None:
            assert frame.latency_ns is None
        else:
            # The drift while it was on its way is no part of what was told.
            on_the_way_ns = (link.arrived_ns - link.sent_ns) // 20_000 + 2
            assert frame.latency_ns is not None
            assert abs(frame.latency_ns - latency_ns) <= told.error_ns + on_the_way_ns
            latencies += 1
    assert latencies > 50


# -- clocks that are set


@pytest.mark.parametrize("step", [HOUR, -HOUR, 100 * MS, -100 * MS])
def test_a_step_is_seen_with_the_first_reply_after_it(step: int) -> None:
    link = Link(lambda ran: HOUR + (step if ran >= 10 * S else 0), constant(2 * MS), constant(MS))
    for offset in link.run(20 * S):
        if not 10 * S <= link.sent_ns - BOOTED < 10 * S + 1:
            assert link.wrong_ns <= offset.error_ns
            assert offset.error_ns < 2 * MS


def test_a_step_is_seen_through_a_wide_measurement_too() -> None:
    estimate = Estimate()
    estimate.add(BOOTED, BOOTED + MS, BOOTED + 2 * MS)
    sent_ns = BOOTED + S
    estimate.add(sent_ns, sent_ns + 5 * S, sent_ns + 300 * MS)
    assert estimate.read(sent_ns + 300 * MS) == pytest.approx((5 * S - 150 * MS, 150 * MS), abs=20 * US)


def test_a_step_within_the_error_is_forgotten_with_what_was_measured_before() -> None:
    # 15 ms off between measurements of 10 ms to either side, and the later ones a little worse: no contradiction.
    trips = itertools.chain(itertools.repeat(20 * MS, 30), itertools.repeat(24 * MS))
    link = Link(lambda ran: 15 * MS if ran >= S else 0, lambda: next(trips) // 2, lambda: 10 * MS)
    wrong = [(link.now_ns - BOOTED, link.wrong_ns, offset.error_ns) for offset in link.run(S + KEEP_NS + 2 * S)]
    assert any(off > error for _, off, error in wrong)  # so it is as long as the old one is believed
    assert all(off <= error for at, off, error in wrong if at > S + KEEP_NS + S)


@pytest.mark.parametrize("slew_ppm", [500, -500])
def test_a_clock_that_is_slewed_is_followed(slew_ppm: int) -> None:
    link = Link(lambda ran: round(ran * slew_ppm / 1e6), jitter(1, MS, MS), jitter(2, MS, MS))
    worst = 0
    for _ in link.run(300 * S):
        worst = max(worst, link.wrong_ns)
    # 150 ms in all; what is believed wrongly is a few of the shortest trips, not all that has been slewed.
    assert worst < 20 * MS


def test_wall_clock_at_another_s_times_though_the_process_is_suspended_between_readings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    boot_ns, ahead_ns, suspended_ns = 50 * S, 1_700_000_000 * S, 0

    def read() -> int:
        nonlocal boot_ns
        boot_ns += US
        return boot_ns

    def read_wall() -> int:
        nonlocal boot_ns
        boot_ns += US
        wall_ns = boot_ns + ahead_ns
        boot_ns += suspended_ns
        return wall_ns

    monkeypatch.setattr("time.time_ns", read_wall)
    wall = WallClock(read)
    assert wall.at(49 * S) == pytest.approx(49 * S + ahead_ns, abs=US)
    suspended_ns = 12 * MS
    boot_ns += S // 30
    assert wall.at(50 * S) == pytest.approx(50 * S + ahead_ns, abs=US)
    suspended_ns, ahead_ns = 0, ahead_ns + 3600 * S  # somebody sets the clock
    assert wall.at(50 * S) == pytest.approx(50 * S + ahead_ns, abs=US)
