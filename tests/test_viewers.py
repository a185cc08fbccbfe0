"""The fan-out in simulated time: links of any speed, and not a second of waiting."""

from __future__ import annotations

import asyncio
import itertools
import selectors
import statistics
import struct
from typing import TYPE_CHECKING, Any

import pytest

from streamer.frame import Frame
from streamer.wall.viewers import Picture, Viewer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from _typeshed import FileDescriptorLike

JPEG = b"\xff\xd8" + bytes(110_000) + b"\xff\xd9"
EIGHT = [f"pi{number}" for number in range(1, 9)]


class Skipping(selectors.SelectSelector):
    """Waits in no time: where a loop would sleep, its clock is moved on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        assert ready or timeout is not None, "everybody waits for ever"
        if not ready and timeout:
            self.now += timeout
        return ready

    def register(self, fileobj: FileDescriptorLike, events: int, data: Any = None) -> selectors.SelectorKey:
        return super().register(fileobj, events, data)


def simulate(scene: Coroutine[Any, Any, Any]) -> Any:
    """Run a scene in simulated time."""
    selector = Skipping()
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
