"""The fan-out in simulated time: links of any speed, and not a second of waiting."""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import selectors
import statistics
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from streamer import refusals
from streamer.errors import CodecError
from streamer.frame import Frame
from streamer.wall.viewers import FanOut, Picture, Viewer, ViewerStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping

    from _typeshed import FileDescriptorLike

JPEG = b"\xff\xd8" + bytes(110_000) + b"\xff\xd9"
EIGHT = [f"pi{number}" for number in range(1, 9)]


class Skipping(selectors.SelectSelector):
    """Waits in no time: where a loop would sleep, its clock is moved on, by `late_s` too far."""

    def __init__(self, late_s: float) -> None:
        super().__init__()
        self.now = 1000.0
        self._late_s = late_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        assert ready or timeout is not None, "everybody waits for ever"
        if not ready and timeout:
            self.now += timeout + self._late_s
        return ready

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        return super().register(fileobj, events, data)


def simulate(scene: Coroutine[Any, Any, Any], timers_late_s: float = 0.0) -> Any:
    """Run a scene in simulated time."""
    selector = Skipping(timers_late_s)
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(asyncio.wait_for(scene, 10_000))
    finally:
        loop.close()


def a_viewer(**rates: float) -> tuple[Viewer, list[Picture]]:
    """Make a viewer, and the list of what it is given."""
    given: list[Picture] = []
    viewer = Viewer(given.append, 1, "wall", "127.0.0.1", "test")
    viewer.want(rates)
    return viewer, given


_received = itertools.count(1)


def picture(camera: str = "pi1", received_s: float | None = None) -> Picture:
    received_ns = next(_received) if received_s is None else round(received_s * 1e9)
    return Picture(Frame(camera, JPEG, 640, 480, received_ns))


# -- one viewer


def test_message_is_framing_head_name_and_the_jpeg_as_it_came() -> None:
    message = picture("pi3", 12.5).message
    assert struct.unpack_from(">BBQ", message) == (0x82, 127, len(message) - 10)
    assert struct.unpack_from("<BBd", message, 10) == (1, 3, 12500.0)
    assert message[20:23] == b"pi3"
    assert message[23:] == JPEG


def test_forms_are_made_once_for_all_viewers() -> None:
    shared = picture()
    assert shared.message is shared.message
    assert shared.part is shared.part
    assert JPEG in shared.part


def test_one_frame_of_a_camera_is_under_way_and_the_next_is_the_newest() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=1000)
        pictures = [picture() for _ in range(4)]
        for each in pictures:
            viewer.offer(each)
        await asyncio.sleep(1)
        assert given == pictures[:1]
        viewer.shown(["pi1"])
        assert given == [pictures[0], pictures[3]]
        viewer.shown(["pi1"])
        await asyncio.sleep(1)
        assert len(given) == 2

    simulate(scene())


def test_picture_that_was_offered_is_not_given_again() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=1000)
        viewer.offer(only := picture())
        viewer.shown(["pi1"])
        viewer.offer(Picture(only.frame))
        await asyncio.sleep(1)
        assert given == [only]

    simulate(scene())


def test_cameras_that_are_not_wanted_are_not_given() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=1000)
        viewer.offer(picture("pi2"))
        viewer.want({"pi2": 1000})
        viewer.offer(picture("pi1"))
        viewer.offer(mine := picture("pi2"))
        await asyncio.sleep(1)
        assert given == [mine]

    simulate(scene())


def test_camera_that_is_let_go_and_wanted_again_has_one_frame_under_way() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=1000)
        viewer.offer(first := picture())
        viewer.want({})
        viewer.want({"pi1": 1000})
        viewer.offer(later := picture())
        await asyncio.sleep(1)
        assert given == [first]
        viewer.shown(["pi1"])
        assert given == [first, later]

    simulate(scene())


@pytest.mark.parametrize("names", [["pi1"], ["pi7"], ["pi1", "pi1"]])
def test_what_is_said_to_be_shown_and_was_not_sent_changes_nothing(names: list[str]) -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=1000)
        viewer.shown(names)
        viewer.offer(first := picture())
        viewer.offer(picture())
        await asyncio.sleep(1)
        assert given == [first]

    simulate(scene())


def test_the_camera_that_has_waited_longest_is_first() -> None:
    async def scene() -> None:
        names = [f"pi{number}" for number in range(1, 8)]
        viewer, given = a_viewer(**dict.fromkeys(names, 1000))
        for camera in names[:4]:
            viewer.offer(picture(camera))  # as many as there is room for at first
        for camera in ("pi6", "pi5", "pi7", "pi6"):  # overwriting keeps the place
            viewer.offer(picture(camera))
        assert [each.frame.camera for each in given] == names[:4]
        viewer.shown(names[:4])
        assert [each.frame.camera for each in given[4:]] == ["pi6", "pi5", "pi7"]

    simulate(scene())


def test_who_is_let_go_is_given_nothing_more() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=10)
        viewer.offer(picture())
        viewer.shown(["pi1"])
        viewer.offer(picture())
        viewer.close()
        viewer.close()
        await viewer.closed
        viewer.offer(picture())
        await asyncio.sleep(1)
        assert len(given) == 1

    simulate(scene())


@pytest.mark.parametrize("again", [{"pi1": 1000.0}, {"pi1": 10.0, "pi2": 1000.0}])
def test_picture_that_waits_is_kept_when_wishes_change(again: dict[str, float]) -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=1000)
        pictures = [picture(), picture()]
        for each in pictures:
            viewer.offer(each)
        viewer.want(again)
        viewer.offer(pictures[1])
        viewer.shown(["pi1"])
        await asyncio.sleep(1)
        assert given == pictures

    simulate(scene())


def test_picture_that_waits_for_room_is_not_given_once_its_camera_is_let_go() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(**dict.fromkeys(EIGHT, 1000))
        for camera in EIGHT:
            viewer.offer(picture(camera))
        sent = [each.frame.camera for each in given]
        viewer.want(dict.fromkeys([*sent, "pi8"], 1000))
        viewer.shown(sent)
        await asyncio.sleep(1)
        assert [each.frame.camera for each in given] == [*sent, "pi8"]

    simulate(scene())


def test_higher_rate_holds_at_once() -> None:
    """Of a tile that was small: its next picture is not waited for as long as it was then."""

    async def scene() -> None:
        viewer, given = a_viewer(pi1=0.01)
        for _ in range(2):
            viewer.offer(picture())
            viewer.shown(["pi1"])
        assert len(given) == 1
        viewer.want({"pi1": 10})
        await asyncio.sleep(0.09)
        assert len(given) == 1
        await asyncio.sleep(0.02)
        assert len(given) == 2

    simulate(scene())


def test_each_camera_has_its_own_time() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=10, pi2=0.5)
        for _ in range(2):
            for camera in ("pi1", "pi2"):
                viewer.offer(picture(camera))
                viewer.shown([camera])
        for passed_s, cameras in ((0.11, ["pi1"]), (1.8, []), (0.1, ["pi2"])):
            sent = len(given)
            await asyncio.sleep(passed_s)
            assert [each.frame.camera for each in given[sent:]] == cameras

    simulate(scene())


def test_however_many_pictures_come_meanwhile_one_timer_waits() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=1)
        viewer.offer(picture())
        viewer.shown(["pi1"])
        scheduled: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
        before = len([timer for timer in scheduled if not timer.cancelled()])
        for _ in range(50):
            viewer.offer(picture())
        assert len(given) == 1
        assert len([timer for timer in scheduled if not timer.cancelled()]) == before + 1
        viewer.close()
        assert len([timer for timer in scheduled if not timer.cancelled()]) == before

    simulate(scene())


@pytest.mark.parametrize(("rate", "expected"), [(60, 300), (30, 300), (10, 100), (0.5, 5)])
def test_rate_is_kept(rate: float, expected: int) -> None:
    """A camera of 30 frames a second for ten seconds, whose frames come up to 5 ms late."""

    async def scene() -> int:
        viewer, given = a_viewer(pi1=rate)
        loop = asyncio.get_running_loop()

        def come() -> None:
            viewer.offer(picture())

        def show() -> None:
            viewer.shown(["pi1"])
            loop.call_later(0.001, show)

        show()
        for number in range(300):
            loop.call_at(loop.time() + number / 30 + number * 7 % 11 / 2000, come)
        await asyncio.sleep(9.999)
        return len(given)

    assert abs(simulate(scene()) - expected) <= max(1, expected // 50)


def test_late_timers_do_not_lower_the_rate() -> None:
    async def scene() -> int:
        viewer, given = a_viewer(pi1=10)
        for _ in range(1000):
            viewer.offer(picture())
            viewer.shown(["pi1"])
            await asyncio.sleep(0.005)  # and 5 ms more
        return len(given)

    assert abs(simulate(scene(), 0.005) - 100) <= 1


@pytest.mark.parametrize(("rate", "soonest_s"), [(1, 0.98), (100, 0.005)])
def test_camera_that_was_late_does_not_make_up_for_it(rate: float, soonest_s: float) -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=rate)
        viewer.offer(picture())
        viewer.shown(["pi1"])
        await asyncio.sleep(1.5 / rate)
        for _ in range(2):
            viewer.offer(picture())
            viewer.shown(["pi1"])
        assert len(given) == 2
        await asyncio.sleep(0.9 * soonest_s)
        assert len(given) == 2
        await asyncio.sleep(0.2 * soonest_s)
        assert len(given) == 3

    simulate(scene())


def test_row_of_a_viewer_says_what_it_was_sent_and_how_long_that_took() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(pi1=1000, pi2=1)
        assert viewer.status() == ViewerStatus(1, "wall", "127.0.0.1", "test", 2, 0.0, 0, 0, None)
        for took_s, smoothed_ms in ((0.08, 80.0), (0.16, 90.0)):
            viewer.offer(picture())
            await asyncio.sleep(took_s)
            assert viewer.under_way_bytes == len(JPEG)
            viewer.shown(["pi1"])
            assert viewer.status().delay_ms == smoothed_ms
        assert viewer.under_way_bytes == 0
        row = viewer.status()
        assert (row.since_s, row.frames, row.bytes) == (0.2, len(given), 2 * len(JPEG))

    simulate(scene())


def rounds(viewer: Viewer, given: list[Picture]) -> Callable[[float], Coroutine[Any, Any, int]]:
    """Return what offers a picture of all eight cameras, has those sent shown later, and returns how many were."""

    async def one(took_s: float) -> int:
        for camera in EIGHT:
            viewer.offer(picture(camera))
        sent, given[:] = [each.frame.camera for each in given], []
        await asyncio.sleep(took_s)
        viewer.want({})
        viewer.shown(sent)
        viewer.want(dict.fromkeys(EIGHT, 1000))
        return len(sent)

    return one


def test_window_does_not_grow_while_it_is_no_limit() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(**dict.fromkeys(EIGHT, 1000))
        for _ in range(100):
            viewer.offer(picture("pi1"))
            await asyncio.sleep(0.01)
            viewer.shown(["pi1"])
        assert len(given) == 100
        given.clear()
        assert await rounds(viewer, given)(0.01) == 4

    simulate(scene())


def test_window_shrinks_to_one_picture_and_grows_from_there_by_one() -> None:
    async def scene() -> None:
        one = rounds(*a_viewer(**dict.fromkeys(EIGHT, 1000)))
        assert await one(0.01) == 4
        for _ in range(20):
            await one(1.0)
        assert [await one(0.01) for _ in range(3)] == [1, 2, 3]

    simulate(scene())


def test_quickest_way_is_remembered_for_as_long_as_it_is_taken() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(**dict.fromkeys(EIGHT, 1000))
        one = rounds(viewer, given)
        for _ in range(6):
            await one(0.25)
            await asyncio.sleep(10)
        assert await one(0.5) == 8  # late, a minute after the first: that halves the window
        assert await one(0.25) < 8

    simulate(scene())


def test_pictures_that_were_late_together_halve_the_window_once() -> None:
    async def scene() -> None:
        viewer, given = a_viewer(**dict.fromkeys(EIGHT, 1000))
        for took_s in (*[0.01] * 10, 1.0, 0.01):  # in time until there is room for all, then late, then in time again
            sent = len(given)
            for camera in EIGHT:
                viewer.offer(picture(camera))
            at_once = len(given) - sent
            for _ in range(2):  # those for which there was no room go as well
                await asyncio.sleep(took_s)
                viewer.shown(EIGHT)
            if took_s == 1:
                assert at_once == 8
        assert 4 <= at_once < 8

    simulate(scene())


# -- links


class Link:
    """A way to a viewer: bytes go one after the other, then take their time; the answer takes it as well."""

    def __init__(self, bytes_per_s: float, round_trip_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.round_trip_s = round_trip_s
        self.free = 0.0
        self.ages: dict[str, list[float]] = {}

    def open(self, cameras: Iterable[str]) -> Viewer:
        """Let a viewer look over it."""
        loop = asyncio.get_running_loop()
        viewer: Viewer

        def send(sent: Picture) -> None:
            self.free = max(self.free, loop.time()) + len(sent.message) / self.bytes_per_s
            arrives = self.free + self.round_trip_s / 2
            camera, received_s = sent.frame.camera, sent.frame.received_ns / 1e9
            self.ages.setdefault(camera, []).append(arrives - received_s)
            loop.call_at(arrives + self.round_trip_s / 2, lambda: viewer.shown([camera]))

        viewer = Viewer(send, 1, "wall", "127.0.0.1", "test")
        viewer.want(dict.fromkeys(cameras, 60.0))
        return viewer


def watched(links: Iterable[Link], seconds: int = 30, changes: Mapping[int, Callable[[], None]] | None = None) -> None:
    """Let viewers watch eight cameras of 30 frames a second over these links; at some seconds something changes."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        viewers = [link.open(EIGHT) for link in links]
        for second, change in (changes or {}).items():
            loop.call_at(began + second, change)
        for number in range(30 * seconds):
            for at, camera in enumerate(EIGHT):
                await asyncio.sleep(began + number / 30 + 0.0001 * at - loop.time())
                shared = picture(camera, loop.time())
                for viewer in viewers:
                    viewer.offer(shared)
        for viewer in viewers:
            viewer.close()

    simulate(scene())


def test_slow_viewer_sees_fewer_frames_never_older_ones_and_slows_nobody() -> None:
    slow, quick = Link(1e6, 0.02), Link(100e6, 0.002)
    watched([slow, quick])
    frames = {camera: len(ages) for camera, ages in slow.ages.items()}
    ages = [age for of_camera in slow.ages.values() for age in of_camera[5:]]
    # 1 MB/s carries nine frames a second: all of them are used, each camera has its share, and none is old.
    assert sum(frames.values()) > 0.85 * 30 * 1e6 / len(JPEG)
    assert max(frames.values()) <= 1.5 * min(frames.values())
    assert statistics.quantiles(ages, n=20)[-1] < 0.5
    assert all(len(ages) >= 895 for ages in quick.ages.values())
    assert max(age for of_camera in quick.ages.values() for age in of_camera) < 0.02


def test_long_way_is_no_slow_one() -> None:
    far = Link(100e6, 0.3)
    watched([far])
    # One frame of each camera under way: as many a second as there are round trips.
    assert all(len(ages) > 0.8 * 30 / 0.3 for ages in far.ages.values())


def test_link_that_recovers_is_used_again() -> None:
    link = Link(0.3e6, 0.02)
    slow: list[int] = []

    def recover() -> None:
        slow.append(sum(map(len, link.ages.values())))
        link.bytes_per_s = 50e6

    watched([link], 40, {20: recover, 30: link.ages.clear})
    assert slow[0] < 100
    assert min(map(len, link.ages.values())) > 250  # of 300


def test_way_that_becomes_longer_is_known_after_a_while() -> None:
    link = Link(100e6, 0.02)

    def lengthen() -> None:
        link.round_trip_s = 0.3

    watched([link], 100, {5: lengthen, 90: link.ages.clear})
    assert min(map(len, link.ages.values())) > 0.8 * 10 / 0.3


# -- arrays


class Array:
    """A frame of which the JPEG is made once a test says so, or cannot be made."""

    is_jpeg = False

    def __init__(self, camera: str = "pi1", *, is_picture: bool = True) -> None:
        self.camera = camera
        self._is_picture = is_picture
        self.begun, self.go_on = threading.Event(), threading.Event()

    @functools.cached_property
    def jpeg(self) -> bytes:
        self.begun.set()
        assert self.go_on.wait(10)
        if not self._is_picture:
            raise CodecError("no picture")
        return JPEG


@contextmanager
def fan_out(**rates: float) -> Iterator[tuple[Callable[[Array], None], list[Any]]]:
    """A fan-out with a viewer; yields what gives it a frame, as the hub does, and the list of those that are sent."""
    frames: list[Array] = []
    sent: list[Any] = []
    mailbox = mock.Mock(closed=False, take=lambda: frames.pop(0) if frames else None)
    hub = mock.Mock(cameras=list)
    hub.open_mailbox.return_value = mailbox
    fan = FanOut(hub)
    viewer = fan.open(lambda picture: sent.append(picture.frame), "wall", None, "test")
    fan.want(viewer, rates)

    def give(frame: Array) -> None:
        frames.append(frame)
        hub.open_mailbox.call_args.kwargs["on_ready"]()

    yield give, sent
    fan.close_all()


async def turned(condition: Callable[[], bool]) -> None:
    """Let the loop turn until a condition is true."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_camera_s_arrays_are_encoded_one_at_a_time_and_one_that_is_no_picture_stops_nothing() -> None:
    async def scene() -> None:
        with fan_out(pi1=1000) as (give, sent):
            arrays = [Array(), Array(), Array(is_picture=False), Array(), Array()]
            give(arrays[0])
            for now, later in itertools.pairwise(arrays):
                await turned(now.begun.is_set)
                give(later)
                await asyncio.sleep(0)  # the loop takes it
                assert len(asyncio.all_tasks()) == 2, "this one, and the one that encodes"
                now.go_on.set()
            arrays[-1].go_on.set()
            await turned(lambda: "jpeg" in vars(arrays[-1]))
            await turned(lambda: bool(sent))
            give(last := Array())
            await turned(last.begun.is_set)
            last.go_on.set()
        assert sent == arrays[:1]  # it has not said that it has shown this one

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("can't start new thread"), "the system allows no more threads"),
        (OSError(errno.EMFILE, ""), "Too many open files"),
        (MemoryError(), "out of memory"),
        (KeyError(), "KeyError"),
    ],
)
def test_a_camera_s_arrays_are_encoded_again_whatever_one_of_them_failed_for(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        with fan_out(pi1=1000) as (give, sent):
            with monkeypatch.context() as starved:
                starved.setattr(asyncio, "to_thread", mock.AsyncMock(side_effect=error))
                give(Array())
                await turned(lambda: bool(caplog.messages))
            give(array := Array())
            array.go_on.set()
            await turned(lambda: bool(sent))
        assert caplog.messages == [f"pi1: the page shows no picture of it: {why}"]

    asyncio.run(scene())


def test_why_arrays_are_not_shown_is_told_once_a_minute_by_camera(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def give_one(give: Callable[[Array], None], camera: str) -> None:
        give(array := Array(camera, is_picture=False))
        array.go_on.set()
        await turned(lambda: array.begun.is_set() and len(asyncio.all_tasks()) == 1)

    async def scene() -> None:
        with fan_out(pi1=1000, pi2=1000) as (give, _):
            for camera in ("pi1", "pi1", "pi2", "pi1"):
                await give_one(give, camera)
            assert caplog.messages == [
                f"{name}: the page shows no picture of it: no picture" for name in ("pi1", "pi2")
            ]
            monkeypatch.setattr(refusals, "REMIND_S", 0.0)
            await give_one(give, "pi1")
            assert len(caplog.messages) == 3
            monkeypatch.setattr(refusals, "_REMEMBERED", 1)
            await give_one(give, "pi2")
            monkeypatch.setattr(refusals, "REMIND_S", 60.0)
            await give_one(give, "pi1")  # forgotten, as there is room for one
            assert len(caplog.messages) == 5

    asyncio.run(scene())


def test_array_that_nobody_wants_is_not_encoded() -> None:
    async def scene() -> None:
        with fan_out(pi1=1000) as (give, sent):
            give(unwanted := Array("pi2"))
            give(wanted := Array())
            wanted.go_on.set()
            await turned(lambda: sent == [wanted])
            assert not unwanted.begun.is_set()

    asyncio.run(scene())


def test_frame_that_comes_when_the_wall_has_just_closed_does_no_harm() -> None:
    async def scene() -> Callable[[Array], None]:
        with fan_out(pi1=1000) as (give, _):
            return give

    asyncio.run(scene())(Array())  # on the hub's receiving thread, which must go on


def test_viewer_that_comes_when_the_hub_has_ended_is_let_go() -> None:
    async def scene() -> None:
        hub = mock.Mock(cameras=list)
        hub.open_mailbox.return_value.closed = True
        assert FanOut(hub).open(print, "stream", None, "test").closed.done()

    asyncio.run(scene())
