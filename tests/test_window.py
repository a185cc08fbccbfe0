"""The window, over simulated links: what it lets through, and what it lets queue."""

from __future__ import annotations

import functools
import heapq
import random
from collections import deque
from typing import TYPE_CHECKING

import pytest

from streamer.window import FORGET_NS, FORGET_SMALLEST_NS, SMALLEST, Window
from tests.bench.measure import jain

if TYPE_CHECKING:
    from collections.abc import Callable

MS, S = 1_000_000, 1_000_000_000


class Link:
    """A camera, its newest picture, a window, and a simulated way to a hub that replies at once.

    Args:
        wanted: pictures that the camera makes in a second; 0: another as soon as one is sent.
        limit: of the window.
        trip_ns: how long the way is, there and back.
        frame_ns: how long a frame occupies it.
    """

    def __init__(
        self, wanted: float, trip_ns: Callable[[], int] | int, frame_ns: int = 0, limit: int = 16, began_ns: int = S
    ) -> None:
        self.window = Window(limit)
        self.now_ns = began_ns
        self.frame_ns = frame_ns
        self.trip_ns: Callable[[], int] = trip_ns if callable(trip_ns) else lambda: trip_ns
        self.stalled_until_ns = 0  # until then the hub takes and replies nothing
        self.sent = self.dropped = 0
        self.ages_ns: list[int] = []  # of each frame when the hub has it
        self._every_ns = round(S / wanted) if wanted else 0
        self._made_ns = self.now_ns  # when the next picture is made
        self._waiting: int | None = None  # when the one that waits was made
        self._free_ns = 0  # when the way can take the next
        self._replies: deque[int] = deque()

    def run(self, for_ns: int) -> float:
        """Let time pass; returns the frames sent in each second of it."""
        end_ns, before = self.now_ns + for_ns, self.sent
        while True:
            self._pump()
            coming = [self._made_ns] if self._every_ns else []
            if self._replies:
                coming.append(self._replies[0])
            self.now_ns = min(coming)
            if self.now_ns >= end_ns:
                self.now_ns = end_ns
                return (self.sent - before) * S / for_ns
            while self._replies and self._replies[0] <= self.now_ns:
                self._replies.popleft()
                assert self.window.answered(self.now_ns) is not None
            if self._every_ns and self._made_ns <= self.now_ns:
                self.dropped += self._waiting is not None
                self._waiting, self._made_ns = self.now_ns, self._made_ns + self._every_ns

    def _pump(self) -> None:
        if not self._every_ns:
            self._waiting = self.now_ns
        while self._waiting is not None:
            if not self.window.has_room(self.now_ns):
                self.window.want()
                return
            trip_ns = self.trip_ns()
            self._free_ns = max(self.now_ns, self._free_ns) + self.frame_ns
            there_ns = max(self._free_ns + trip_ns // 2, self.stalled_until_ns)
            reply_ns = there_ns + trip_ns - trip_ns // 2
            self._replies.append(max(reply_ns, self._replies[-1] if self._replies else 0))
            self.ages_ns.append(there_ns - self._waiting)
            self.window.sent(self.now_ns)
            self.sent += 1
            self._waiting = self.now_ns if not self._every_ns else None

    @property
    def size(self) -> int:
        return self.window.size(self.now_ns)


@pytest.mark.parametrize("wanted", [5, 30, 60])
@pytest.mark.parametrize("trip_ms", [0.1, 2, 10, 20, 40, 80, 150])
def test_the_wanted_rate_is_reached_over_any_round_trip_with_no_more_under_way_than_it_holds(
    wanted: float, trip_ms: float
) -> None:
    link = Link(wanted, round(trip_ms * MS))
    link.run(3 * S)
    dropped = link.dropped
    assert link.run(60 * S) == pytest.approx(wanted, rel=0.001)
    assert link.dropped == dropped
    assert link.size <= max(SMALLEST, wanted * trip_ms / 1000 + 2)


@pytest.mark.parametrize(("packet_ms", "size"), [(40, 3), (60, 2)])
def test_on_a_way_that_is_long_for_packets_the_window_grows_only_while_little_queues(packet_ms: int, size: int) -> None:
    window, now_ns = Window(8, lambda: (packet_ms * MS, packet_ms * MS)), S
    for took_ms, frames in ((110, 1), (130, 2)):
        for _ in range(frames):
            window.sent(now_ns)
        window.want()
        now_ns += took_ms * MS
        for _ in range(frames):
            window.answered(now_ns)
    assert window.size(now_ns) == size


def test_lock_step_reaches_one_frame_a_round_trip() -> None:
    link = Link(60, 80 * MS, limit=1)
    assert link.size == 1
    assert link.run(10 * S) == pytest.approx(12.5, rel=0.01)


def test_the_limit_is_kept() -> None:
    link = Link(0, 100 * MS, limit=5)
    assert link.run(10 * S) == pytest.approx(50, rel=0.05)
    assert link.size == 5


@pytest.mark.parametrize("trip_ms", [1, 20, 80])
def test_where_the_bytes_do_not_fit_next_to_nothing_queues(trip_ms: int) -> None:
    frame_ns = 110 * MS  # 110 kB over 1 MB/s
    link = Link(30, trip_ms * MS, frame_ns)
    assert link.run(300 * S) == pytest.approx(S / frame_ns, rel=0.02)
    ages_ns = sorted(link.ages_ns)
    assert ages_ns[int(0.95 * len(ages_ns))] <= trip_ms * MS / 2 + 3 * frame_ns + S / 30
    # Just after the way was measured anew it looks emptier than it is.
    assert ages_ns[-1] <= trip_ms * MS / 2 + 4 * frame_ns + S / 30


def test_a_way_that_becomes_longer_for_good_is_found_out() -> None:
    link = Link(60, 10 * MS)
    link.run(60 * S)
    assert link.size <= 3
    link.trip_ns = lambda: 100 * MS
    link.run(FORGET_SMALLEST_NS + 2 * S)
    assert link.run(20 * S) == pytest.approx(60, rel=0.01)


def test_a_long_way_that_becomes_longer_is_found_out_too() -> None:
    link = Link(60, 80 * MS)
    link.run(60 * S)
    link.trip_ns = lambda: 150 * MS
    link.run(FORGET_NS + 5 * S)
    assert link.run(20 * S) == pytest.approx(60, rel=0.01)


def test_on_a_quick_link_again_the_window_is_small_again() -> None:
    link = Link(60, 150 * MS)
    link.run(10 * S)
    assert link.size > 8
    link.trip_ns = lambda: MS
    link.run(S)
    assert link.size == SMALLEST


def test_a_hub_that_stalls_on_a_quick_link_gets_two_old_frames() -> None:
    link = Link(30, MS)
    link.run(60 * S)
    link.stalled_until_ns = link.now_ns + 5 * S
    link.ages_ns.clear()
    link.run(6 * S)
    assert sum(age_ns > 100 * MS for age_ns in link.ages_ns) == SMALLEST


def test_a_way_that_varies_a_little_is_not_measured_anew() -> None:
    dice = random.Random(1)
    link = Link(60, lambda: round(dice.uniform(80, 85) * MS))
    link.run(10 * S)
    dropped = link.dropped
    link.run(300 * S)
    assert link.dropped == dropped


def test_jitter_costs_few_frames() -> None:
    dice = random.Random(1)
    link = Link(30, lambda: round(dice.lognormvariate(2.0, 0.8) * MS))  # half over 7 ms, one in a hundred over 48
    link.run(5 * S)
    assert link.run(120 * S) >= 0.99 * 30


def test_at_full_speed_the_queue_stays_short() -> None:
    # What a hub on this machine takes: the way is nothing, each frame a tenth of a millisecond.
    link = Link(0, MS // 5, MS // 10)
    assert link.run(5 * S) == pytest.approx(10_000, rel=0.01)
    assert max(link.ages_ns) < 10 * MS


@pytest.mark.parametrize(("trip_ms", "size"), [(1, 4), (10, 16)])
def test_at_full_speed_a_quick_way_holds_four_and_a_longer_one_all(trip_ms: int, size: int) -> None:
    link = Link(0, 150 * MS)
    link.run(10 * S)
    assert link.size == 16
    link.trip_ns = lambda: trip_ms * MS
    link.run(S)
    assert link.size == size


@pytest.mark.parametrize("frame_us", [25, 40, 55])
def test_senders_that_share_a_quick_hub_get_the_same_share(frame_us: int) -> None:
    # Each has measured its way while the others' frames queued, and some had it worse.
    dice = random.Random(1)
    now_ns, free_ns, number = S, 0, 0
    windows = [Window(8) for _ in range(8)]
    taken = [0] * len(windows)
    replies: list[tuple[int, int, int]] = []  # when each comes, in which order it was sent, to whom
    asking = range(len(windows))
    while now_ns < 4 * S:
        for sender in asking:
            while windows[sender].has_room(now_ns):
                windows[sender].sent(now_ns)
                free_ns = max(free_ns, now_ns + MS // 20) + round(1000 * frame_us * dice.uniform(0.7, 1.3))
                number += 1
                heapq.heappush(replies, (free_ns + round(MS / 20 * dice.uniform(0.8, 2)), number, sender))
            windows[sender].want()
        now_ns, _, sender = heapq.heappop(replies)
        windows[sender].answered(now_ns)
        taken[sender] += now_ns > 2 * S
        asking = range(sender, sender + 1)
    assert jain(taken) >= 0.99


@pytest.mark.parametrize(("tells", "frames"), [(False, 2.5), (True, 1.3)], ids=["without TCP's times", "with them"])
def test_eight_cameras_on_a_line_too_narrow_for_them_fill_it_and_queue_little(*, tells: bool, frames: float) -> None:
    # 70 kB over 20 Mbit/s. Lock-step would have one each; Vegas alone has four, and more with time.
    dice = random.Random(1)
    frame_ns, trip_ns, cameras = 28 * MS, 20 * MS, 8
    waits_ns = [0] * cameras

    def packet_times(camera: int) -> tuple[int, int] | None:
        return (trip_ns + waits_ns[camera], trip_ns) if tells else None

    windows = [Window(8, functools.partial(packet_times, camera)) for camera in range(cameras)]
    made_ns: list[int | None] = [None] * cameras
    free_ns, ages_ns, taken = 0, [], [0] * cameras
    # When each comes, whose it is, and how old its picture was at the hub; None: not a reply, but a new picture.
    coming: list[tuple[int, int, int | None]] = [(S + dice.randrange(S // 30), camera, None) for camera in range(8)]
    heapq.heapify(coming)
    while (now_ns := coming[0][0]) < 181 * S:
        _, camera, age_ns = heapq.heappop(coming)
        if age_ns is None:
            made_ns[camera] = now_ns
            heapq.heappush(coming, (now_ns + S // 30, camera, None))
        else:
            windows[camera].answered(now_ns)
            if now_ns > 61 * S:
                ages_ns.append(age_ns)
                taken[camera] += 1
        if (made := made_ns[camera]) is None:
            continue
        if not windows[camera].has_room(now_ns):
            windows[camera].want()
            continue
        windows[camera].sent(now_ns)
        waits_ns[camera] = max(0, free_ns - now_ns) + frame_ns // 2  # its packets queue behind each other, too
        free_ns = max(free_ns, now_ns + trip_ns // 4) + round(frame_ns * dice.uniform(0.8, 1.2))
        there_ns = free_ns + trip_ns // 4
        heapq.heappush(coming, (there_ns + trip_ns // 2, camera, there_ns - made))
        made_ns[camera] = None
    assert sum(taken) / 120 == pytest.approx(S / frame_ns, rel=0.02)
    assert jain(taken) >= 0.95
    ages_ns.sort()
    assert ages_ns[len(ages_ns) // 2] <= frames * cameras * frame_ns
    assert ages_ns[int(0.95 * len(ages_ns))] <= (frames + 0.5) * cameras * frame_ns


def test_acknowledgements_that_tcp_delays_are_no_queue() -> None:
    window = Window(2, lambda: (40 * MS, MS))
    at = S
    for _ in range(20):
        window.sent(at)
        window.sent(at)
        window.want()
        at += 50 * MS  # a busy hub on a quick network
        window.answered(at)
        window.answered(at)
        assert window.size(at) == 2


def test_on_a_slow_line_no_more_than_two_frames_queue_as_a_rule() -> None:
    frame_ns = 570 * MS  # 70 kB over 1 Mbit/s
    link = Link(30, 40 * MS, frame_ns)
    link.run(300 * S)
    assert link.sent >= 0.9 * 300 * S / frame_ns
    ages_ns = sorted(link.ages_ns)
    assert ages_ns[len(ages_ns) // 2] <= 2.2 * frame_ns


def test_a_very_long_way_is_filled_too() -> None:
    link = Link(20, 600 * MS)
    link.run(30 * S)
    assert link.run(60 * S) == pytest.approx(20, rel=0.01)


def test_a_reply_that_nobody_waits_for_is_none_s() -> None:
    window = Window(2)
    assert window.answered(S) is None
    window.sent(S)
    assert window.answered(S) == S
    assert window.answered(S) is None
