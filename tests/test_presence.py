from __future__ import annotations

import contextlib
import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from streamer import presence as module
from streamer.errors import WireError
from streamer.frame import Frame
from streamer.presence import (
    CAMERAS_MAX,
    ONCE_MAX,
    TRANSITIONS,
    Change,
    Event,
    NameTakenError,
    Notice,
    OvertakenError,
    Presence,
    State,
    Status,
    natural,
)
from tests.conftest import at_each_line

if TYPE_CHECKING:
    from collections.abc import Callable

STALE_AFTER_S, GONE_AFTER_S = 3.0, 30.0
BEGIN = 1000.0


def table(*expected: str) -> Presence:
    return Presence(expected, stale_after_s=STALE_AFTER_S, gone_after_s=GONE_AFTER_S)


def picture(camera: str = "pi1", size: int = 100, **fields: Any) -> Frame:
    return Frame(camera, bytes(size), 640, 480, fields.pop("received_ns", 0), **fields)


def row(presence: Presence, now: float = BEGIN) -> Status:
    (status,) = presence.statuses(now)
    return status


# -- states


def in_state(state: State) -> Presence:
    """Make a table whose only camera is in a state; where it was seen, that was at BEGIN."""
    presence = table("pi1")
    if state is not State.WAITING:
        presence.add(picture(), None, BEGIN)
    if state is State.STALE:
        presence.tick(BEGIN + STALE_AFTER_S)
    if state is State.GONE:
        presence.tick(BEGIN + GONE_AFTER_S)
    assert row(presence).state == state.value
    return presence


STATES = [
    (State.WAITING, Event.FRAME, State.LIVE),
    (State.WAITING, Event.QUIET, State.WAITING),
    (State.WAITING, Event.SILENT, State.WAITING),
    (State.LIVE, Event.FRAME, State.LIVE),
    (State.LIVE, Event.QUIET, State.STALE),
    (State.LIVE, Event.SILENT, State.GONE),
    (State.STALE, Event.FRAME, State.LIVE),
    (State.STALE, Event.QUIET, State.STALE),
    (State.STALE, Event.SILENT, State.GONE),
    (State.GONE, Event.FRAME, State.LIVE),
    (State.GONE, Event.QUIET, State.GONE),
    (State.GONE, Event.SILENT, State.GONE),
]


def test_every_state_and_event_has_its_row() -> None:
    assert {(before, event): after for before, event, after in STATES} == TRANSITIONS
    assert set(TRANSITIONS) == {(state, event) for state in State for event in Event}


@pytest.mark.parametrize(("before", "event", "after"), STATES)
def test_transition(before: State, event: Event, after: State) -> None:
    presence = in_state(before)
    changed = Change("pi1", before, after)
    if event is Event.FRAME:
        change = presence.add(picture(), None, BEGIN)
        changes = [change] if change else []
    else:
        # A camera that was never seen has been silent since the clock's zero.
        at = BEGIN + (STALE_AFTER_S if event is Event.QUIET else GONE_AFTER_S)
        changes = [change for change in presence.tick(at) if isinstance(change, Change)]
    assert changes == ([changed] if after is not before else [])
    assert row(presence).state == after.value


@pytest.mark.parametrize("now", [0.0, STALE_AFTER_S, GONE_AFTER_S])
def test_a_camera_that_never_came_waits_whatever_the_clock_says(now: float) -> None:
    presence = table("pi1")
    assert presence.tick(now) == []
    assert row(presence, now).state == "WAITING"


@pytest.mark.parametrize(
    ("age_s", "state"),
    [(0.0, "LIVE"), (2.999, "LIVE"), (3.0, "STALE"), (29.999, "STALE"), (30.0, "GONE"), (1e6, "GONE")],
)
def test_state_at_an_age(age_s: float, state: str) -> None:
    presence = in_state(State.LIVE)
    presence.tick(BEGIN + age_s)
    assert row(presence).state == state


@pytest.mark.parametrize(
    ("every_s", "stale_after_s", "gone_after_s"),
    [(1 / 30, 3, 30), (1.5, 3, 30), (2, 4, 30), (10, 20, 40), (60, 120, 240), (1e9, 120, 240)],
    ids="every {} s".format,
)
def test_a_camera_that_sends_seldom_is_waited_for(every_s: float, stale_after_s: float, gone_after_s: float) -> None:
    presence = table()
    presence.add(picture(every_s=every_s), None, BEGIN)
    states = []
    for age_s in (stale_after_s - 0.01, stale_after_s, gone_after_s - 0.01, gone_after_s):
        presence.tick(BEGIN + age_s)
        states.append(row(presence).state)
    assert states == ["LIVE", "STALE", "STALE", "GONE"]


def test_a_change_is_told_once() -> None:
    presence = in_state(State.LIVE)
    after = [change.after for now in range(60) for change in presence.tick(BEGIN + now) if isinstance(change, Change)]
    assert after == [State.STALE, State.GONE]


def test_every_camera_ages_on_its_own() -> None:
    presence = table()
    presence.add(picture("early"), None, BEGIN)
    presence.add(picture("late"), None, BEGIN + 2)
    assert [change.name for change in presence.tick(BEGIN + 3)] == ["early"]
    assert [status.state for status in presence.statuses(BEGIN + 3)] == ["STALE", "LIVE"]


def test_a_strange_camera_is_live_at_once() -> None:
    presence = table()
    assert presence.add(picture("new"), None, BEGIN) == Change("new", State.WAITING, State.LIVE)


# -- the row


def test_row_has_the_fields_of_the_api() -> None:
    assert " ".join(field.name for field in dataclasses.fields(Status)) == (
        "name state fps wanted_fps age_s latency_ms latency_error_ms frames dropped lost reconnects width height "
        "bytes_per_s address release bytes rival still_s"
    )


def test_row_of_a_camera_that_never_came() -> None:
    assert row(table("pi1")) == Status(
        name="pi1",
        state="WAITING",
        fps=0.0,
        wanted_fps=None,
        age_s=None,
        latency_ms=None,
        latency_error_ms=None,
        frames=0,
        dropped=0,
        lost=0,
        reconnects=0,
        width=None,
        height=None,
        bytes_per_s=0.0,
        address=None,
        release=None,
    )


def test_row() -> None:
    presence = table()
    presence.add(picture(size=9), "192.0.2.1", BEGIN)
    newest = picture(
        size=5000,
        captured_ns=8_201_000_000_000,
        received_ns=1_001_012_340_400,
        offset_ns=-7_200_000_000_000,
        offset_error_ns=400_600,
        dropped=3,
        every_s=1 / 30,
        release="0.1.0+a968bc91298f.py313",
    )
    presence.add(newest, "192.0.2.2", BEGIN + 0.5, b"another")
    assert row(presence, BEGIN + 0.75) == Status(
        name="pi1",
        state="LIVE",
        fps=1.3,
        wanted_fps=30.0,
        age_s=0.25,
        latency_ms=12.34,
        latency_error_ms=0.402,  # the 0.4 µs that rounding has taken from the latency are in it
        frames=2,
        dropped=3,
        lost=0,
        reconnects=1,
        width=640,
        height=480,
        bytes_per_s=6667,
        address="192.0.2.2",
        release="0.1.0+a968bc91298f.py313",
        bytes=5009,
    )


def test_latency_is_unknown_together_with_its_error() -> None:
    presence = table()
    presence.add(picture(captured_ns=5, offset_ns=0, offset_error_ns=1_000_000), None, BEGIN)
    assert (row(presence).latency_ms, row(presence).latency_error_ms) == (0.0, 1.001)
    presence.add(picture(captured_ns=1_000_006, offset_ns=0, offset_error_ns=1_000_000), None, BEGIN)
    assert (row(presence).latency_ms, row(presence).latency_error_ms) == (None, None)


@pytest.mark.parametrize(
    ("every_s", "wanted_fps"), [(None, None), (1 / 30, 30.0), (0.03337, 29.97), (1 / 0.15, 0.15), (10, 0.1)]
)
def test_wanted_rate(every_s: float | None, wanted_fps: float | None) -> None:
    presence = table()
    presence.add(picture(every_s=every_s), None, BEGIN)
    assert row(presence).wanted_fps == wanted_fps


def test_age_is_never_negative() -> None:
    assert row(in_state(State.LIVE), BEGIN - 1).age_s == 0.0


def test_latest() -> None:
    presence = table("expected")
    first, second = picture(seq=0), picture(seq=1)
    presence.add(first, None, BEGIN)
    presence.add(second, None, BEGIN)
    assert presence.latest("pi1") is second
    assert presence.latest("expected") is None
    assert presence.latest("unknown") is None


# -- drops and losses: (start, seq, dropped) of each frame


@pytest.mark.parametrize(
    ("frames", "dropped", "lost"),
    [
        pytest.param([(None, None, None)] * 5, 0, 0, id="stock sender"),
        pytest.param([("a", 0, 0), ("a", 1, 0), ("a", 2, 0)], 0, 0, id="nothing amiss"),
        pytest.param([("a", 0, 0), ("a", 1, 4), ("a", 2, 9)], 9, 0, id="drops are counted by the sender"),
        pytest.param([("a", 7, 12)], 12, 0, id="drops before the first frame; the hub came late and lost none"),
        pytest.param([("a", 0, 0), ("a", 3, 0), ("a", 4, 0), ("a", 6, 0)], 0, 3, id="gaps are losses"),
        pytest.param([("a", 5, 0), ("a", 5, 0), ("a", 4, 0), ("a", 5, 0)], 0, 0, id="twice, and back"),
        pytest.param([("a", 9, 5), ("b", 0, 0), ("b", 1, 2)], 7, 0, id="drops add up over a restart"),
        pytest.param([("a", 0, 5), ("b", 0, 1), ("c", 0, 2), ("c", 1, 3)], 9, 0, id="and over two"),
        pytest.param([("a", 0, 0), ("a", 2, 0), ("b", 0, 0), ("b", 3, 0)], 0, 3, id="losses add up over a restart"),
        pytest.param([("a", 100, 0), ("b", 200, 0)], 0, 0, id="a restart is no loss"),
        pytest.param([("a", 0, 5), ("a", 1, None)], 5, 0, id="a frame that does not say"),
        pytest.param([("a", 0, 5), ("a", 1, 4)], 5, 0, id="a frame that was overtaken"),
        pytest.param([("a", 0, 5), (None, None, None), ("b", 0, 1)], 6, 0, id="stock in between"),
        pytest.param([("a", 0, 0), ("a", None, 0), ("a", 2, 0)], 0, 0, id="seq missing in between"),
        pytest.param([("a", 0, 5), ("a.1", 0, 6), ("a", 4, 7), ("a", 6, 7)], 7, 1, id="one sender by two ways"),
    ],
)
def test_drops_and_losses(frames: list[tuple[str | None, int | None, int | None]], dropped: int, lost: int) -> None:
    presence = table()
    for at, (start, seq, dropped_so_far) in enumerate(frames):
        presence.add(picture(start=start, seq=seq, dropped=dropped_so_far), None, BEGIN + at)
    status = row(presence)
    assert (status.dropped, status.lost, status.frames) == (dropped, lost, len(frames))


def test_counts_only_grow_for_a_reader_beside_the_thread_that_adds() -> None:
    presence = table()
    seen: list[tuple[int, ...]] = []

    def look() -> None:
        seen.extend((each.dropped, each.frames, each.bytes, each.lost) for each in presence.statuses(BEGIN))

    with at_each_line(module, look):
        for at, (start, dropped) in enumerate([("a", 5), ("a", 100), ("b", 0), ("b", 7)]):
            presence.add(picture(start=start, dropped=dropped), None, BEGIN + at)
    assert seen[-1][0] == 107
    for before, after in itertools.pairwise(seen):
        assert all(now >= then for then, now in zip(before, after, strict=True))


# -- reconnects: (connection, start) of each frame


@pytest.mark.parametrize(
    ("frames", "reconnects"),
    [
        pytest.param([(b"1", "a")] * 3, 0, id="one connection"),
        pytest.param([(b"1", None)] * 3, 0, id="stock sender"),
        pytest.param([(b"1", "a"), (b"2", "a"), (b"2", "a")], 1, id="the sender opened its socket afresh"),
        pytest.param([(b"1", "a"), (b"2", "b")], 1, id="the sender started again: both are new, and it is one"),
        pytest.param([(b"1", None), (b"2", None), (b"3", None)], 2, id="stock sender, twice"),
        pytest.param([(b"", "a"), (b"", "a"), (b"", "b")], 1, id="a publisher has no connection but a start"),
    ],
)
def test_reconnects(frames: list[tuple[bytes, str | None]], reconnects: int) -> None:
    presence = table()
    for connection, start in frames:
        presence.add(picture(start=start), None, BEGIN, connection)
    assert row(presence).reconnects == reconnects


# -- a hub that was stopped, and reads the connections that a sender has opened meanwhile in turn


def test_what_is_older_than_the_newest_is_not_shown_and_was_lost_once() -> None:
    presence = table()
    for seq, connection, is_newest in [
        (4, b"1", True),
        (7, b"2", True),
        (5, b"1", False),
        (9, b"3", True),
        (6, b"1", False),
        (8, b"2", False),
        (10, b"3", True),
        (10, b"4", True),  # asked again, since the hub left before its reply
    ]:
        frame = picture(start="a", seq=seq)
        with contextlib.nullcontext() if is_newest else pytest.raises(OvertakenError):
            presence.add(frame, None, BEGIN, connection)
        assert (presence.latest("pi1") is frame) == is_newest
    status = row(presence)
    assert (status.frames, status.lost, status.reconnects) == (5, 3, 3)


@pytest.mark.parametrize("start", [None, "b", "a.1"], ids=["stock", "started again", "another way"])
def test_only_counts_of_one_start_are_compared(start: str | None) -> None:
    presence = table()
    presence.add(picture(start="a" if start else None, seq=7), None, BEGIN, b"1")
    presence.add(picture(start=start, seq=5), None, BEGIN, b"2")
    frame = presence.latest("pi1")
    assert frame
    assert frame.seq == 5


# -- two senders of one name


def offer(presence: Presence, sender: str, at_s: float, **fields: Any) -> bool:
    """Have a sender send a frame from its own address; whether it is taken."""
    start = None if sender.startswith("stock") else sender
    frame = Frame("pi1", b"%f" % at_s, 640, 480, 0, start=start, **fields)
    try:
        presence.add(frame, f"at-{sender}", BEGIN + at_s, sender.encode())
    except NameTakenError:
        return False
    return True


def told(presence: Presence, at_s: float) -> list[str]:
    return [change.words for change in presence.tick(BEGIN + at_s) if isinstance(change, Notice)]


def side_by_side(presence: Presence, from_s: float, to_s: float, *senders: str) -> list[str]:
    """Have senders take turns, ten times a second each; who was taken, in that order."""
    taken = []
    for at in range(round(from_s * 10), round(to_s * 10)):
        taken += [name for turn, name in enumerate(senders) if offer(presence, name, at / 10 + turn / 100)]
    return taken


@pytest.mark.parametrize("others", [["b"], ["stock"], ["b", "c"], list("bcdefgh")], ids="-".join)
def test_the_first_keeps_the_name_while_its_frames_come(others: list[str]) -> None:
    presence = table()
    assert side_by_side(presence, 0, 1, "a") == ["a"] * 10
    taken = side_by_side(presence, 1, 10, "a", *others)
    # Each new one gets in at first, the last of them for a second: it might be the first, started again.
    assert taken == ["a", *others, *others[-1:] * 10, *["a"] * 79]
    assert (row(presence).address, row(presence).reconnects) == ("at-a", len(others) + 1)


@pytest.mark.parametrize("kind", ["", "stock"])
def test_a_sender_that_started_again_is_taken_at_once(kind: str) -> None:
    presence = table()
    for start in range(20):
        assert side_by_side(presence, start, start + 0.5, f"{kind}{start}") == [f"{kind}{start}"] * 5
        assert told(presence, start + 0.5) == []
    assert row(presence).rival is None


def test_a_sender_that_comes_by_two_ways_is_no_second_one() -> None:
    presence = table()
    for tenth in range(100):
        assert side_by_side(presence, tenth / 10, tenth / 10 + 0.1, "a", "a.1") == ["a", "a.1"]
        assert told(presence, tenth / 10 + 0.05) == []
    assert row(presence).rival is None


def test_two_of_one_name_are_told_once_and_the_end_of_it_too() -> None:
    presence = table()
    said = []
    for tenth in range(200):
        side_by_side(presence, tenth / 10, tenth / 10 + 0.1, "a", "b")
        said += told(presence, tenth / 10 + 0.05)
    assert said[0].startswith(
        "another sender at at-b has this name too: it is refused for as long as the first, at at-a"
    )
    assert (len(said), row(presence).rival) == (1, "at-b")
    side_by_side(presence, 20, 21, "a", "b", "c")
    assert (told(presence, 21), row(presence).rival) == ([], "at-c")
    side_by_side(presence, 21, 50.8, "a")
    assert told(presence, 50.8) == []
    side_by_side(presence, 50.8, 52, "a")
    assert told(presence, 52) == ["only one sender has this name now"]
    assert row(presence).rival is None


def test_two_of_one_name_without_addresses_are_told_once() -> None:
    presence, said = table(), []
    for tenth in range(100):
        for start in ("a", "b"):
            with contextlib.suppress(NameTakenError):
                presence.add(picture(start=start), None, BEGIN + tenth / 10)
        said += told(presence, tenth / 10)
    assert [words.split(" has ")[0] for words in said] == ["another sender at ?"]
    assert row(presence).rival == "?"


def test_what_was_under_way_of_a_sender_that_started_again_is_no_second_one() -> None:
    presence = table()
    side_by_side(presence, 0, 1, "a")
    for late in range(8):  # the hub was stopped meanwhile, and reads both connections in turn
        offer(presence, "a", 1 + late / 1000)
        offer(presence, "again", 1 + late / 1000)
    offer(presence, "a", 1.9)  # it was lost, and was sent anew
    for tenth in range(10, 60):
        assert side_by_side(presence, tenth / 10, tenth / 10 + 0.1, "again") == ["again"]
        assert told(presence, tenth / 10) == []
    assert row(presence).reconnects == 1


def test_a_last_word_of_either_makes_no_two_of_one_name() -> None:
    for last, other in (("a", "b"), ("b", "a")):
        presence = table()
        side_by_side(presence, 0, 1, "a")
        side_by_side(presence, 1, 2.5, "b")
        offer(presence, "a", 2.5)
        offer(presence, last, 2.6)
        for tenth in range(26, 56):
            side_by_side(presence, tenth / 10, tenth / 10 + 0.1, other)
            assert told(presence, tenth / 10 + 0.1) == []


@pytest.mark.parametrize(
    ("every_s", "free_after_s"), [(None, 3), (0.1, 3), (5, 10), (1000, 120)], ids="every {} s".format
)
def test_when_the_first_falls_silent_the_other_gets_the_name(every_s: float | None, free_after_s: float) -> None:
    presence = table()
    side_by_side(presence, 0, 2, "a", "b")
    offer(presence, "a", 2, every_s=every_s)
    assert not offer(presence, "b", 2 + free_after_s - 0.01)
    assert offer(presence, "b", 2 + free_after_s)
    assert offer(presence, "b", 2.1 + free_after_s)
    assert not told(presence, 2.1 + free_after_s)
    # When it comes back it is the second.
    assert side_by_side(presence, 3 + free_after_s, 5 + free_after_s, "b", "a") == ["b", *["a"] * 11, *["b"] * 9]


def test_two_of_one_name_that_send_seldom_do_not_alternate() -> None:
    presence = table()
    said = []
    for minute in range(6):
        assert offer(presence, "a", 60 * minute, every_s=60)
        said += told(presence, 60 * minute + 1)
        assert offer(presence, "b", 60 * minute + 35, every_s=60) == (minute == 0), "at first it could be a restart"
        said += told(presence, 60 * minute + 36)
    assert [words.split(":")[0] for words in said if "name" in words] == ["another sender at at-b has this name too"]


def test_drops_of_the_first_are_not_counted_twice() -> None:
    presence = table()
    for at_s, (sender, dropped) in enumerate([("a", 100), ("b", 5), ("a", 101), ("b", 6), ("a", 102)]):
        offer(presence, sender, at_s * 1.2, dropped=dropped)
    assert row(presence).dropped == 5 + 102


def test_senders_of_one_name_without_end_fill_no_memory() -> None:
    presence = table()
    for number in range(1000):
        assert offer(presence, str(number), number / 1000)
    assert len(presence._cameras["pi1"]._earlier) == 16
    assert offer(presence, "0", 2.5), "it is no longer known"
    assert offer(presence, "998", 2.5), "it has the name back"
    assert not offer(presence, "997", 2.5)


def test_publishers_of_one_name_are_told_apart_by_their_start_or_address() -> None:
    presence = table()
    for at_s, (start, address) in enumerate([("a", "1"), (None, "2"), ("a", "1")]):
        presence.add(picture(start=start), address, BEGIN + at_s * 1.2)
    with pytest.raises(NameTakenError, match="another sender at 1 has this name"):
        presence.add(picture(), "2", BEGIN + 2.4)


# -- a picture that does not move


def pictures(presence: Presence, from_s: int, to_s: int, hz: float, content: Callable[[float], bytes]) -> list[str]:
    """Send pictures, look at the table four times a second, and return what it tells."""
    said = []
    for quarter in range(from_s * 4, to_s * 4):
        at_s = quarter / 4
        if at_s % (1 / hz) == 0:
            presence.add(Frame("pi1", content(at_s), 640, 480, 0), None, BEGIN + at_s)
        said += told(presence, at_s)
    return said


def test_a_picture_that_does_not_move_is_told_once_and_when_it_moves_again() -> None:
    presence = table()
    assert pictures(presence, 0, 20, 4, lambda at_s: b"%f" % at_s) == []
    assert pictures(presence, 20, 29, 4, lambda _: b"same") == []
    assert row(presence).still_s is None
    assert pictures(presence, 29, 60, 4, lambda _: b"same") == ["its picture has been the same for 10 s: is it stuck?"]
    assert row(presence).still_s == pytest.approx(39, abs=1)
    assert pictures(presence, 60, 62, 4, lambda at_s: b"%f" % at_s) == ["its picture moves again"]
    assert row(presence).still_s is None


def test_no_picture_is_read_while_the_table_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def crc32(payload: bytes) -> int:
        read.append(len(payload))
        return 0

    monkeypatch.setattr("streamer.presence.zlib.crc32", crc32)
    presence = table()
    for at in range(90):  # three seconds: each camera is read three times, whenever its own frame comes
        for size in range(1, 6):
            presence.add(picture(f"pi{size}", size), None, BEGIN + at / 30)
        if at % 7 == 0:
            before = len(read)
            presence.tick(BEGIN + at / 30)
            assert len(read) == before, "of hundreds of cameras, their frames would wait for all"
    assert sorted(read) == sorted([1, 2, 3, 4, 5] * 3)


def test_a_camera_that_is_slow_or_silent_is_not_still() -> None:
    presence = table()
    assert pictures(presence, 0, 100, 1 / 20, lambda at_s: b"%f" % at_s) == []
    assert pictures(presence, 100, 200, 1 / 1000, lambda _: b"") == []


# -- rates


def send(presence: Presence, hz: float, from_s: float, to_s: float) -> None:
    for at in range(round((to_s - from_s) * hz) + 1):
        presence.add(picture(size=1000), None, BEGIN + from_s + at / hz)


@pytest.mark.parametrize("hz", [0.1, 0.2, 0.3, 0.45, 0.5, 1, 7, 30, 240])
def test_a_steady_rate_is_told_at_any_moment(hz: float) -> None:
    presence = table()
    send(presence, hz, 0, 60)
    for quarter in range(4):
        now = BEGIN + 60 + quarter / 4 / hz
        status = row(presence, now)
        assert status.fps == pytest.approx(hz, abs=max(0.051, hz * 0.01))
        assert status.bytes_per_s == pytest.approx(1000 * hz, rel=0.01, abs=0.5)


def test_rate_from_the_second_frame_on() -> None:
    presence = table()
    presence.add(picture(), None, BEGIN)
    assert (row(presence).fps, row(presence).bytes_per_s) == (0.0, 0.0)
    presence.add(picture(), None, BEGIN + 0.1)
    assert row(presence, BEGIN + 0.1).fps == 10.0


def test_rate_falls_when_nothing_comes() -> None:
    presence = table()
    send(presence, 30, 0, 11)
    rates = [row(presence, BEGIN + 11 + silent_s).fps for silent_s in (0, 2, 6, 60, 600)]
    assert rates[0] == pytest.approx(30, rel=0.01)
    assert rates == sorted(rates, reverse=True)
    assert rates[1] < 20
    assert rates[2:] == [0, 0, 0]


def test_rate_of_a_slow_camera_stands_until_it_is_late() -> None:
    presence = table()
    send(presence, 0.1, 0, 60)
    assert [row(presence, BEGIN + 60 + silent_s).fps for silent_s in (14, 16)] == [0.1, 0]


def test_rate_follows_a_change() -> None:
    presence = table()
    send(presence, 30, 0, 10)
    send(presence, 10, 10.1, 16)
    assert row(presence, BEGIN + 16).fps == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("silent_s", [4.5, 60.0])
def test_a_pause_is_not_averaged_into_the_rate(silent_s: float) -> None:
    presence = table()
    send(presence, 30, 0, 9)
    send(presence, 10, 9 + silent_s, 10 + silent_s)
    assert row(presence, BEGIN + 10 + silent_s).fps == pytest.approx(10)
    send(presence, 30, 10.1 + silent_s, 14 + silent_s)
    assert row(presence, BEGIN + 14 + silent_s).fps == pytest.approx(30, rel=0.02)


# -- labels that are no names


@pytest.mark.parametrize(
    ("address", "connection", "others"),
    [("192.0.2.1", b"1", ("192.0.2.1", b"2")), ("192.0.2.1", b"", ("192.0.2.2", b""))],
    ids=["connection", "publisher"],
)
def test_a_connection_may_not_have_a_new_label_for_each_picture(
    address: str, connection: bytes, others: tuple[str, bytes]
) -> None:
    presence = table("expected")
    for number in range(ONCE_MAX):
        presence.add(picture(f"{number}"), address, BEGIN + number, connection)
    with pytest.raises(WireError, match="64 labels came with one picture each") as refused:
        presence.add(picture("new"), address, BEGIN + 2000, connection)
    assert refused.value.label == "'new'"
    assert len(presence.statuses(BEGIN)) == ONCE_MAX + 1
    presence.add(picture("expected"), address, BEGIN + 2000, connection)
    presence.add(picture("new"), others[0], BEGIN + 2000, others[1])


def test_a_connection_with_many_cameras_has_all_in_the_end() -> None:
    presence = table()
    names = [f"pi{number}" for number in range(3 * ONCE_MAX)]
    for turn in range(4):
        for name in names:
            with contextlib.suppress(WireError):
                presence.add(picture(name), "192.0.2.1", BEGIN + turn, b"1")
    assert [status.name for status in presence.statuses(BEGIN)] == names


# -- the limit


def full(*expected: str) -> Presence:
    """Make a table as long as it may be, of which camera n was seen n seconds after BEGIN."""
    presence = table(*expected)
    for at in range(CAMERAS_MAX - len(expected)):
        presence.add(picture(f"pi{at}"), None, BEGIN + at)
    return presence


def test_limit() -> None:
    assert CAMERAS_MAX == 1024


def test_a_full_table_takes_no_more() -> None:
    presence = full("expected")
    presence.tick(BEGIN + STALE_AFTER_S)
    with pytest.raises(WireError, match="the hub already has 1024 cameras"):
        presence.add(picture("one-more"), None, BEGIN + 2000)
    assert len(presence.statuses(BEGIN)) == CAMERAS_MAX
    assert presence.latest("one-more") is None
    presence.add(picture("pi5", seq=3), None, BEGIN + 2000)
    presence.add(picture("expected"), None, BEGIN + 2000)


def test_who_has_been_gone_for_longest_makes_room() -> None:
    presence = full()
    presence.add(picture("pi0"), None, BEGIN + 500)
    presence.tick(BEGIN + 32 + GONE_AFTER_S)
    for new in range(3):
        presence.add(picture(f"new{new}"), None, BEGIN + 2000)
    names = {status.name for status in presence.statuses(BEGIN)}
    assert {f"pi{at}" for at in range(6)} - names == {"pi1", "pi2", "pi3"}
    assert {"new0", "new1", "new2"} < names
    assert len(names) == CAMERAS_MAX


def test_an_expected_camera_never_makes_room() -> None:
    presence = full("never-seen", "expected")
    presence.add(picture("expected"), None, BEGIN - 1)
    presence.tick(BEGIN + GONE_AFTER_S)
    presence.add(picture("new0"), None, BEGIN + 2000)
    assert presence.latest("expected") is not None
    assert presence.latest("pi0") is None
    with pytest.raises(WireError):
        presence.add(picture("new1"), None, BEGIN + 2000)


def test_a_camera_that_made_room_may_come_back_afresh() -> None:
    presence = full()
    presence.tick(BEGIN + 2 * CAMERAS_MAX)
    presence.add(picture("new"), None, BEGIN + 3000)
    assert presence.add(picture("pi0"), None, BEGIN + 3000) == Change("pi0", State.WAITING, State.LIVE)
    (status,) = (status for status in presence.statuses(BEGIN + 3000) if status.name == "pi0")
    assert status.frames == 1


# -- order


@pytest.mark.parametrize(
    "names",
    [
        ["pi1", "pi2", "pi10"],
        ["pi2a", "pi2b", "pi10a"],
        ["2pi", "10pi", "pi"],
        ["cam1-9", "cam1-10", "cam2-1"],
        ["", "1", "a", "a1"],
        ["A", "Z", "a"],
    ],
)
def test_natural_order(names: list[str]) -> None:
    presence = table()
    for name in reversed(names):
        presence.add(picture(name), None, BEGIN)
    assert [status.name for status in presence.statuses(BEGIN)] == names
    assert [natural(name) for name in names] == sorted(natural(name) for name in names)


# -- memory


def test_pictures_have_a_limit_together_and_only_large_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.presence.STORED_MAX_BYTES", CAMERAS_MAX * 100)
    presence = table("pi1")
    presence.add(picture("pi1", 50_000), None, BEGIN)
    presence.add(picture("pi2", 50_000), None, BEGIN)
    for name, size in (("pi3", 3000), ("pi1", 53_000)):
        with pytest.raises(WireError, match="the hub already holds 0 MB of pictures"):
            presence.add(picture(name, size), None, BEGIN)
    assert [status.name for status in presence.statuses(BEGIN)] == ["pi1", "pi2"]
    for number in range(3, 60):
        presence.add(picture(f"pi{number}", 100), None, BEGIN)
    presence.add(picture("pi1", 40_000), None, BEGIN)
    presence.add(picture("pi3", 6000), None, BEGIN)


def test_pictures_of_cameras_that_are_gone_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.presence.STORED_MAX_BYTES", CAMERAS_MAX * 100)
    presence = table("pi1")
    for name in ("pi1", "pi2", "pi3"):
        presence.add(picture(name, 30_000), None, BEGIN)
    presence.tick(BEGIN + GONE_AFTER_S)
    for name in ("pi4", "pi5"):
        presence.add(picture(name, 30_000), None, BEGIN + 40)
    with pytest.raises(WireError, match="MB of pictures"):
        presence.add(picture("pi6", 30_000), None, BEGIN + 40)
    assert [status.name for status in presence.statuses(BEGIN + 40)] == ["pi1", "pi4", "pi5"]


def test_a_camera_makes_no_room_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.presence.STORED_MAX_BYTES", CAMERAS_MAX * 100)
    presence = table()
    for at, name in enumerate(("pi1", "pi2", "pi3")):
        presence.add(picture(name, 30_000), None, BEGIN + at)
    presence.tick(BEGIN + 2 + GONE_AFTER_S)
    presence.add(picture("pi1", 70_000), None, BEGIN + 40)
    assert [status.name for status in presence.statuses(BEGIN + 40)] == ["pi1", "pi3"]
