from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest

import streamer
from streamer import codec, wire
from streamer.codec import encode_jpeg
from streamer.errors import ConfigError, StreamerError, TransportError
from tests.conftest import until
from tests.peers import held_by_another_thread, said_after_fork

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streamer.codec import Image

WIDTH, HEIGHT = 64, 48


def jpeg(brightness: int) -> bytes:
    return encode_jpeg(np.full((HEIGHT, WIDTH, 3), brightness, np.uint8), 95)


@pytest.fixture
def hub() -> Iterator[streamer.Hub]:
    with streamer.Hub("tcp://127.0.0.1:*") as hub:
        yield hub


class Cameras:
    """Senders by name; each frame has been received when `send` returns."""

    def __init__(self, hub: streamer.Hub) -> None:
        self._hub = hub
        self._senders: dict[str, streamer.Sender] = {}
        self.stack = contextlib.ExitStack()

    def send(self, name: str, picture: bytes | Image) -> None:
        if name not in self._senders:
            self._senders[name] = self.stack.enter_context(streamer.Sender(str(self._hub.endpoint), name=name))
        sender = self._senders[name]
        answered = sender.statistics.answered
        sender.send(picture)
        until(lambda: sender.statistics.answered > answered)


@pytest.mark.parametrize("at_least", [320, (0, 0), (320, -1), (320,), ("a", "b"), (320.5, 240)])
def test_a_size_that_is_none_is_told_at_once(hub: streamer.Hub, at_least: Any) -> None:
    with pytest.raises(ConfigError, match=r"at_least is .*: it must be \(width, height\) in pixels"):
        streamer.Pictures(hub, at_least)


@pytest.mark.parametrize("threads", [0, -1, "2"])
def test_a_number_of_threads_that_decodes_nothing_is_told_at_once(hub: streamer.Hub, threads: Any) -> None:
    with pytest.raises(ConfigError, match=f"threads is {threads!r}: it must be a number from 1"):
        streamer.Pictures(hub, threads=threads)


@pytest.fixture
def cameras(hub: streamer.Hub) -> Iterator[Cameras]:
    cameras = Cameras(hub)
    with cameras.stack:
        yield cameras


@pytest.mark.parametrize("attempt", range(3))
def test_program_that_ends_in_the_middle_of_decoding_ends_well(attempt: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(attempt).integers(0, 255, (1080, 1920, 3), np.uint8)
    (tmp_path / "noise.jpg").write_bytes(encode_jpeg(noise, 90))
    program = """
import sys, pathlib
sys.modules["simplejpeg"] = None  # OpenCV decodes, as where Debian's packages are
import streamer
jpeg = pathlib.Path(sys.argv[1]).read_bytes()
hub = streamer.Hub("tcp://127.0.0.1:*")
senders = [streamer.Sender(hub.endpoint, name, source=lambda: jpeg) for name in ("one", "two")]
pictures = streamer.Pictures(hub)
for _ in range(20):
    pictures.take(5)
"""
    arguments = [sys.executable, "-c", program, str(tmp_path / "noise.jpg")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


class Slow:
    """Decodes nothing; of the camera "slow" each picture takes until the test lets it go."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.begun: list[tuple[str, int | None]] = []

    def __call__(self, frame: streamer.Frame) -> Image:
        self.begun.append((frame.camera, frame.seq))
        if frame.camera == "slow":
            assert self.go.acquire(timeout=20)
        return np.zeros((1, 1, 3), np.uint8)

    def of_slow(self) -> list[int | None]:
        return [seq for camera, seq in self.begun if camera == "slow"]


def take(pictures: streamer.Pictures) -> tuple[str, int | None]:
    taken = pictures.take(10)
    assert taken
    return taken[0].camera, taken[0].seq


def test_slow_pictures_of_one_camera_delay_no_other(hub: streamer.Hub, cameras: Cameras) -> None:
    slow = Slow()
    with streamer.Pictures(hub, decode=slow, threads=2) as pictures:
        cameras.send("slow", jpeg(0))
        until(slow.of_slow)
        for seq in range(20):
            cameras.send("slow", jpeg(0))  # each could take the other thread as well
            cameras.send("quick", jpeg(0))
            assert take(pictures) == ("quick", seq)
        assert slow.of_slow() == [0]
        slow.go.release()
        assert take(pictures) == ("slow", 0)
        until(lambda: slow.of_slow() == [0, 20])  # the newest, and none of those between
        slow.go.release()
        assert take(pictures) == ("slow", 20)


def test_who_takes_late_gets_the_newest(hub: streamer.Hub, cameras: Cameras) -> None:
    slow = Slow()
    with streamer.Pictures(hub, decode=slow, threads=1) as pictures:
        for seq in range(3):
            cameras.send("quick", jpeg(0))
            until(lambda: ("quick", seq) in slow.begun)  # noqa: B023 - it is asked at once
        cameras.send("other", jpeg(0))
        until(lambda: ("other", 0) in slow.begun)
        assert {take(pictures), take(pictures)} == {("quick", 2), ("other", 0)}
        assert pictures.take() is None


def test_pictures_are_decoded_at_the_size_that_is_enough(hub: streamer.Hub, cameras: Cameras) -> None:
    with streamer.Pictures(hub, (WIDTH // 2, HEIGHT // 2)) as halves, streamer.Pictures(hub) as pictures:
        cameras.send("pi1", jpeg(90))
        frame, image = next(iter(pictures))
        _, half = next(iter(halves))
        assert frame.jpeg == jpeg(90)
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert half.shape == (HEIGHT // 2, WIDTH // 2, 3)
        assert abs(int(half.mean()) - 90) < 3
        array = np.arange(24, dtype=np.uint8).reshape(4, 6)
        cameras.send("pi1", array)
        assert (next(iter(halves))[1] == array).all()


def test_closed_pictures_are_not_kept_until_the_program_ends(hub: streamer.Hub) -> None:
    with streamer.Pictures(hub) as pictures:
        kept = weakref.ref(pictures)
    del pictures
    gc.collect()
    assert kept() is None


def test_picture_of_its_own_size_is_that_of_the_frame(hub: streamer.Hub, cameras: Cameras) -> None:
    with streamer.Pictures(hub) as pictures:
        cameras.send("pi1", jpeg(50))
        taken = pictures.take(10)
        assert taken
        frame, image = taken
        assert image is frame.image, "not decoded twice"


def test_only_the_cameras_that_are_wanted(hub: streamer.Hub, cameras: Cameras) -> None:
    with streamer.Pictures(hub, cameras=["pi2"]) as pictures:
        cameras.send("pi1", jpeg(90))
        cameras.send("pi2", jpeg(90))
        assert take(pictures) == ("pi2", 0)
        assert pictures.take() is None


def test_damaged_picture_is_told_once_and_left_out(
    hub: streamer.Hub, cameras: Cameras, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = jpeg(90)[:300] + b"\xff\xd9"
    with caplog.at_level(logging.WARNING), streamer.Pictures(hub) as pictures:
        for _ in range(2):
            cameras.send("pi1", damaged)
            taken = pictures.take(10)
            assert taken
            assert taken[1] is None
        cameras.send("pi1", damaged)
        cameras.send("pi1", jpeg(90))
        frame, _ = next(iter(pictures))
        assert frame.seq == 3
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("pi1: JPEG decoder: ")


def test_pictures_that_are_each_damaged_in_another_way_fill_no_log(
    hub: streamer.Hub, cameras: Cameras, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, library = jpeg(90), mock.Mock()
    library.decode.side_effect = (ValueError(f"{count} extraneous bytes") for count in itertools.count())
    monkeypatch.setattr(codec, "library", lambda: library)
    with streamer.Pictures(hub) as pictures:
        for _ in range(3):
            cameras.send("pi1", whole)
            assert pictures.take(10)
    assert caplog.messages == ["pi1: JPEG decoder: 0 extraneous bytes"]


def test_a_picture_for_which_there_is_no_memory_is_left_out_and_told(
    hub: streamer.Hub, cameras: Cameras, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dark, library = jpeg(10), mock.Mock()
    library.decode.side_effect = MemoryError
    with streamer.Pictures(hub) as pictures:
        with monkeypatch.context() as starved:
            starved.setattr(codec, "library", lambda: library)
            cameras.send("pi1", dark)
            _, picture = pictures.take(10) or (None, None)
            assert picture is None
        assert "pi1: JPEG decoder: out of memory" in caplog.messages
        cameras.send("pi1", jpeg(20))
        _, picture = pictures.take(10) or (None, None)
        assert picture is not None


def test_closing_the_hub_ends_the_pictures(hub: streamer.Hub, cameras: Cameras) -> None:
    pictures = streamer.Pictures(hub)
    closing = threading.Thread(target=hub.close)
    closing.start()
    assert list(pictures) == []
    closing.join()
    pictures.close()
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_pictures_of_another_process_say_so_and_closing_them_waits_for_none_of_its_threads(hub: streamer.Hub) -> None:
    with streamer.Pictures(hub) as pictures:
        with held_by_another_thread(hub._lock, pictures._frames._lock, pictures._decoded._lock):
            calls = [
                lambda: pictures.take(None),
                lambda: next(iter(pictures)),
                lambda: pictures._end(1),
                pictures.close,
            ]
            said = said_after_fork(*calls)
        assert said == 2 * ["the pictures were made before this process was forked: make a hub and them in each"]


def test_error_in_a_thread_is_raised_where_pictures_are_taken(hub: streamer.Hub, cameras: Cameras) -> None:
    def decode(frame: streamer.Frame) -> Image:
        raise StreamerError(f"not {frame.camera}")

    with streamer.Pictures(hub, decode=decode, threads=2) as pictures:
        cameras.send("pi1", jpeg(90))
        with pytest.raises(StreamerError, match="not pi1"):
            pictures.take(10)
        until(lambda: not any(thread.name.startswith("decode") for thread in threading.enumerate()))


def test_a_hub_that_fails_is_told_to_who_takes_pictures(hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(wire, "parse", fail)
    with streamer.Pictures(hub) as pictures, streamer.Sender(str(hub.endpoint), name="pi1") as sender:
        sender.send(jpeg(90))
        with pytest.raises(TransportError, match="the hub has failed: a bug"):
            pictures.take(10)


def test_pictures_for_which_there_are_not_enough_threads_leave_none(
    hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "decode-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        streamer.Pictures(hub, threads=4)
    until(lambda: not any(thread.name.startswith("decode-") for thread in threading.enumerate()))
