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
    from collections.abc import Coroutine, Iterable

    from _typeshed import FileDescriptorLike

JPEG = b"\xff\xd8" + bytes(110_000) + b"\xff\xd9"
SIXTEEN = [f"pi{number}" for number in range(1, 17)]
EIGHT = SIXTEEN[:8]


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


def a_viewer(**rates: float) -> Viewer:
    viewer = Viewer(1, "wall", "127.0.0.1", "test")
    viewer.want(rates)
    return viewer


_received = itertools.count(1)


def picture(camera: str = "pi1", received_s: float | None = None) -> Picture:
    received_ns = next(_received) if received_s is None else round(received_s * 1e9)
    return Picture(Frame(camera, JPEG, 640, 480, received_ns))


async def given(viewer: Viewer) -> Picture | None:
    """What the viewer is given now; None when it is to wait."""
    try:
        return await asyncio.wait_for(viewer.next(), 0.001)
    except TimeoutError:
        return None


# -- one viewer


def test_message_is_head_name_and_the_jpeg_as_it_came() -> None:
    message = picture("pi3", 12.5).message
    assert struct.unpack_from("<BBd", message) == (1, 3, 12500.0)
    assert message[10:13] == b"pi3"
    assert message[13:] == JPEG


def test_forms_are_made_once_for_all_viewers() -> None:
    shared = picture()
    assert shared.message is shared.message
    assert shared.part is shared.part
    assert JPEG in shared.part


def test_one_frame_of_a_camera_is_under_way_and_the_next_is_the_newest() -> None:
    async def scene() -> None:
        viewer = a_viewer(pi1=1000)
        pictures = [picture() for _ in range(4)]
        viewer.offer(pictures[0])
        assert await given(viewer) is pictures[0]
        for later in pictures[1:]:
            viewer.offer(later)
            assert await given(viewer) is None
        viewer.shown(["pi1"])
        assert await given(viewer) is pictures[3]
        viewer.shown(["pi1"])
        assert await given(viewer) is None

    simulate(scene())


def test_picture_that_was_offered_is_not_given_again() -> None:
    async def scene() -> None:
        viewer = a_viewer(pi1=1000)
        only = picture()
        viewer.offer(only)
        assert await given(viewer) is only
        viewer.shown(["pi1"])
        viewer.offer(Picture(only.frame))
        assert await given(viewer) is None

    simulate(scene())


def test_cameras_that_are_not_wanted_are_not_given() -> None:
    async def scene() -> None:
        viewer = a_viewer(pi1=1000)
        viewer.offer(picture("pi2"))
        assert await given(viewer) is None
        viewer.want({"pi2": 1000})
        viewer.offer(picture("pi1"))
        viewer.offer(mine := picture("pi2"))
        assert await given(viewer) is mine
        assert await given(viewer) is None

    simulate(scene())


def test_camera_that_is_let_go_and_wanted_again_has_one_frame_under_way() -> None:
    async def scene() -> None:
        viewer = a_viewer(pi1=1000)
        viewer.offer(picture())
        assert await given(viewer)
        viewer.want({})
        viewer.want({"pi1": 1000})
        viewer.offer(later := picture())
        assert await given(viewer) is None
        viewer.shown(["pi1"])
        assert await given(viewer) is later

    simulate(scene())


@pytest.mark.parametrize("names", [["pi1"], ["pi7"], ["pi1", "pi1"]])
def test_what_is_said_to_be_shown_and_was_not_sent_changes_nothing(names: list[str]) -> None:
    async def scene() -> None:
        viewer = a_viewer(pi1=1000)
        viewer.shown(names)
        viewer.offer(first := picture())
        assert await given(viewer) is first
        viewer.offer(picture())
        assert await given(viewer) is None

    simulate(scene())


def test_the_camera_that_has_waited_longest_is_first() -> None:
    async def scene() -> None:
        viewer = a_viewer(pi1=1000, pi2=1000, pi3=1000)
        for camera in ("pi2", "pi1", "pi3", "pi2"):  # overwriting keeps the place
            viewer.offer(picture(camera))
        order = [found.frame.camera for _ in range(3) if (found := await given(viewer))]
        assert order == ["pi2", "pi1", "pi3"]

    simulate(scene())


def test_close_ends_the_wait() -> None:
    async def scene() -> Picture | None:
        viewer = a_viewer(pi1=1000)
        asyncio.get_running_loop().call_later(1, viewer.close)
        return await viewer.next()

    assert simulate(scene()) is None


@pytest.mark.parametrize(("rate", "expected"), [(60, 300), (30, 300), (10, 100), (0.5, 5)])
def test_rate_is_kept(rate: float, expected: int) -> None:
    """A camera of 30 frames a second for ten seconds, whose frames come up to 5 ms late."""

    async def scene() -> int:
        viewer = a_viewer(pi1=rate)
        loop = asyncio.get_running_loop()
        for number in range(300):
            loop.call_at(loop.time() + number / 30 + number * 7 % 11 / 2000, lambda: viewer.offer(picture()))
        loop.call_at(loop.time() + 9.999, viewer.close)
        count = 0
        while await viewer.next():
            count += 1
            viewer.shown(["pi1"])
        return count

    assert abs(simulate(scene()) - expected) <= max(1, expected // 50)


# -- links


class Link:
    """A way to a viewer: bytes go one after the other, then take their time; the answer takes it as well."""

    def __init__(self, bytes_per_s: float, round_trip_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.round_trip_s = round_trip_s
        self.free = 0.0
        self.ages: dict[str, list[float]] = {}

    async def carry(self, viewer: Viewer) -> None:
        loop = asyncio.get_running_loop()
        while (sent := await viewer.next()) is not None:
            self.free = max(self.free, loop.time()) + len(sent.message) / self.bytes_per_s
            arrives = self.free + self.round_trip_s / 2
            camera, received_s = sent.frame.camera, sent.frame.received_ns / 1e9
            self.ages.setdefault(camera, []).append(arrives - received_s)
            loop.call_at(arrives + self.round_trip_s / 2, viewer.shown, [camera])


def watched(links: Iterable[Link], cameras: list[str], seconds: int = 30) -> None:
    """Let viewers watch cameras of 30 frames a second over these links."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        viewers = [a_viewer(**dict.fromkeys(cameras, 60)) for _ in links]
        carrying = [asyncio.ensure_future(link.carry(viewer)) for link, viewer in zip(links, viewers, strict=True)]
        for number in range(30 * seconds):
            await asyncio.sleep(began + number / 30 - loop.time())
            for at, camera in enumerate(cameras):
                await asyncio.sleep(0.0001 * (at > 0))
                shared = picture(camera, loop.time())
                for viewer in viewers:
                    viewer.offer(shared)
        for viewer in viewers:
            viewer.close()
        await asyncio.gather(*carrying)

    simulate(scene())


def test_slow_viewer_sees_fewer_frames_never_older_ones_and_slows_nobody() -> None:
    slow, quick = Link(1e6, 0.02), Link(100e6, 0.002)
    watched([slow, quick], EIGHT)
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
    watched([far], EIGHT)
    # One frame of each camera under way: as many a second as there are round trips.
    assert all(len(ages) > 0.8 * 30 / 0.3 for ages in far.ages.values())


def test_link_that_recovers_is_used_again() -> None:
    link = Link(0.3e6, 0.02)
    watched([link], EIGHT, 20)
    before = sum(map(len, link.ages.values()))

    async def scene() -> int:
        viewer = a_viewer(**dict.fromkeys(EIGHT, 60))
        loop = asyncio.get_running_loop()
        link.ages.clear()
        link.free = 0.0
        carrying = asyncio.ensure_future(link.carry(viewer))
        for number in range(900):
            if number == 300:
                link.bytes_per_s = 50e6
            if number == 600:
                link.ages.clear()
            for camera in EIGHT:
                viewer.offer(picture(camera, loop.time()))
            await asyncio.sleep(1 / 30)
        viewer.close()
        await carrying
        return min(map(len, link.ages.values()))

    assert simulate(scene()) > 250  # of 300
    assert before < 100
