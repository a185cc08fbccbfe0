from __future__ import annotations

import errno
import fcntl
import importlib
import itertools
import math
import os
import re
import struct
import sys
import threading
import time
import zlib
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np
import pytest
import simplejpeg

from streamer import cameras, codec
from streamer import clock as clocks
from streamer.cameras import boards, mjpeg, opencv, pattern, v4l2, video
from streamer.cameras.boards import Board
from streamer.cameras.opencv import UsbCamera
from streamer.cameras.pattern import Pattern
from streamer.cameras.video import VideoFile
from streamer.errors import CameraError, CodecError, ConfigError, MissingExtraError
from streamer.mailbox import Mailbox
from tests.conftest import until
from tests.peers import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.cameras import Camera
    from streamer.codec import Image


class Clock:
    """Stands in for the module `time`: sleeping moves it on, nothing else does."""

    strftime = staticmethod(time.strftime)
    localtime = staticmethod(time.localtime)

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return round(self.now * 1e9)

    def time_ns(self) -> int:
        return 1_793_500_000_000_000_000 + round(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (pattern, opencv, video, clocks):
        monkeypatch.setattr(module, "time", clock)
    return clock


def strictly_decoded(jpeg: bytes) -> Image:
    image: Image = simplejpeg.decode_jpeg(jpeg, "BGR", strict=True)
    return image


# -- the test card


PI_WARM_UP_S = 0.02
SIZES = [(176, 144), (320, 240), (641, 481), (177, 159), (1920, 1080), (200, 720)]


@pytest.mark.parametrize(("size", "quality"), [*((size, 85) for size in SIZES), ((640, 480), 1), ((640, 480), 100)])
def test_card_is_a_jpeg_without_fault(size: tuple[int, int], quality: int, capfd: pytest.CaptureFixture[str]) -> None:
    with Pattern("pi1", size, 1000, quality) as camera:
        jpeg, _ = camera.read()
    width, height = size
    assert codec.jpeg_size(jpeg) == size
    assert strictly_decoded(jpeg).shape == (height, width, 3)
    by_opencv = cv2.imdecode(np.frombuffer(jpeg, "uint8"), cv2.IMREAD_COLOR)
    assert by_opencv is not None
    assert by_opencv.shape == (height, width, 3)
    assert capfd.readouterr().err == "", "libjpeg complains"


def test_card_has_a_restart_marker_after_every_block() -> None:
    jpeg, _ = Pattern("pi1", (176, 144), 1000, 85).read()
    scan = jpeg[jpeg.index(b"\xff\xda") :]
    markers = [following for byte, following in itertools.pairwise(scan[2:]) if byte == 0xFF and following]
    assert markers == [0xD0 + at % 8 for at in range(11 * 9 - 1)] + [0xD9]


def test_card_shows_the_colour_bars_in_their_order() -> None:
    image = strictly_decoded(Pattern("pi1", (640, 480), 1000, 95).read()[0])
    bars = [image[8, round((bar + 0.5) * 640 / 7)].astype(int) for bar in range(7)]
    expected = ["c0c0c0", "c0c000", "00c0c0", "00c000", "c000c0", "c00000", "0000c0"]
    for bar, colour in zip(bars, expected, strict=True):
        assert np.abs(bar - list(bytes.fromhex(colour))[::-1]).max() < 12


def of_one_hue() -> list[str]:
    """Find names whose cards have the same background, so that only the letters tell them apart."""
    hue = zlib.crc32(b"pi1") % 360
    return [name for name in (f"pi{at}" for at in range(3000)) if zlib.crc32(name.encode()) % 360 == hue][:3]


@pytest.mark.parametrize("size", [(176, 144), (640, 480)])
@pytest.mark.parametrize("names", [["pi1", "pi2", "pi3"], of_one_hue(), ["-", ".", "_"], ["a" * 64, "a" * 63 + "b"]])
def test_cards_of_different_names_differ(names: list[str], size: tuple[int, int], clock: Clock) -> None:
    images = [strictly_decoded(Pattern(name, size, 30, 85).read()[0]).astype(int) for name in names]
    for left, right in itertools.combinations(images, 2):
        difference = np.abs(left - right).max(axis=2) > 40
        assert difference.sum() >= 8
        below_name = size[1] * 3 // 4
        assert not difference[below_name:].any()


def test_name_is_as_large_as_its_box() -> None:
    with_name, with_dot = (strictly_decoded(Pattern(name, (640, 480), 30, 85).read()[0]) for name in ("pi1", "."))
    rows, columns = np.nonzero((with_name.min(axis=2) > 200)[: 480 // 2])
    assert np.ptp(rows) > 60
    assert np.ptp(columns) > 60
    assert (with_dot.min(axis=2) > 200)[: 480 // 2].any()


def test_cards_of_one_name_are_the_same_at_every_start(clock: Clock) -> None:
    first, second = (Pattern("pi1", (320, 240), 30, 85).read()[0] for _ in range(2))
    assert first == second


def test_card_moves_with_every_frame(clock: Clock) -> None:
    camera = Pattern("pi1", (320, 240), 30, 85)
    images = [strictly_decoded(camera.read()[0]) for _ in range(200)]
    ball = []
    for before, after in itertools.pairwise(images):
        assert (before != after).any()
        orange = (after[:, :, 2] > 200) & (after[:, :, 0] < 80)
        ball.append(np.nonzero(orange[-48:])[1].mean())
    steps = np.abs(np.diff(ball))
    assert 2 < np.median(steps) < 6, "4 pixels a frame"
    assert min(ball) < 30
    assert max(ball) > 280, "from one side to the other"


def test_counter_runs(clock: Clock) -> None:
    camera = Pattern("pi1", (320, 240), 1, 85)
    shown = [strictly_decoded(camera.read()[0]) for _ in range(21)]
    row, columns = camera._counter_at[1] * 16, camera._counter_at[0] * 16
    digits = [image[row : row + 32, columns + 5 * 16 : columns + 6 * 16].tobytes() for image in shown]
    assert digits[0] == digits[10] == digits[20]
    assert len(set(digits)) == 10


@pytest.mark.parametrize("size", [(175, 144), (176, 143), (16, 16)])
def test_card_too_small_to_be_read(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"size is {size[0]}x{size[1]}: it must be 176x144 or more for the camera pa"):
        Pattern("pi1", size, 30, 85)


@pytest.mark.parametrize("fps", [0.1, 7, 30, 240])
def test_card_comes_at_its_rate(fps: float, clock: Clock) -> None:
    camera = Pattern("pi1", (176, 144), fps, 85)
    captured = [camera.read()[1] for _ in range(11)]
    assert clock.now - 1000 == pytest.approx(10 / fps)
    assert np.diff(captured) / 1e9 == pytest.approx([1 / fps] * 10, rel=1e-3)


def test_card_catches_up_over_a_short_delay_and_not_over_a_long_one(clock: Clock) -> None:
    camera = Pattern("pi1", (176, 144), 10, 85)
    camera.read()
    clock.now += 0.5
    for _ in range(10):
        camera.read()
    assert clock.now - 1000 == pytest.approx(1.0)
    clock.now += 60
    for _ in range(11):
        camera.read()
    assert clock.now - 1000 == pytest.approx(62.0)


# -- video files, by PyAV

LEVELS = [20, 60, 100, 140, 180, 220]
INVALID = "Invalid data found when processing input"
# A WAVE file: 8000 samples a second, of 8 bits.
SOUND = b"RIFF" + struct.pack("<I4s4sIHHIIHH4sI", 136, b"WAVE", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8, b"data", 100)
SOUND += bytes(100)


def write_video(path: Path, rate: float = 10, size: tuple[int, int] = (64, 48)) -> str:
    """Write a video of one grey picture for each of LEVELS."""
    file = path / "video.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), rate, size)
    assert writer.isOpened()
    for level in LEVELS:
        writer.write(np.full((size[1], size[0], 3), level, "uint8"))
    writer.release()
    return str(file)


def level(jpeg: bytes) -> int:
    """Tell which of LEVELS a picture shows."""
    return min(LEVELS, key=lambda each: abs(each - float(strictly_decoded(jpeg).mean())))


def test_video_s_title_may_be_in_any_encoding(tmp_path: Path) -> None:
    file = tmp_path / "titled.avi"
    with av.open(write_video(tmp_path)) as untitled, av.open(str(file), "w") as titled:
        titled.metadata["title"] = "Grosse Tuer"
        (stream,) = untitled.streams
        copy = titled.add_stream_from_template(stream)
        for packet in untitled.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                titled.mux(packet)
    content = file.read_bytes()
    assert b"Grosse Tuer" in content
    file.write_bytes(content.replace(b"Grosse Tuer", "Große  Tür ".encode("latin-1")))
    with VideoFile(str(file), (64, 48), 10, 85) as camera:
        assert level(camera.read()[0]) == LEVELS[0]


def test_video_is_looped(tmp_path: Path, clock: Clock) -> None:
    with VideoFile(write_video(tmp_path), (64, 48), 10, 85) as camera:
        assert [level(camera.read()[0]) for _ in range(15)] == (LEVELS * 3)[:15]


@pytest.mark.parametrize(
    ("rate", "fps", "expected"),
    [
        pytest.param(10, 10, 10, id="its own"),
        pytest.param(10, 30, 10, id="never faster than its own"),
        pytest.param(30, 10, 10, id="a third"),
        pytest.param(30, 20, 20, id="two thirds"),
        pytest.param(30, 29.97, 29.97, id="nearly its own"),
        pytest.param(25, 0.5, 0.5, id="seldom"),
    ],
)
def test_video_plays_at_its_own_speed(rate: float, fps: float, expected: float, tmp_path: Path, clock: Clock) -> None:
    camera = VideoFile(write_video(tmp_path, rate), (64, 48), fps, 85)
    levels, moments = [], []
    for _ in range(31):
        levels.append(level(camera.read()[0]))
        moments.append(clock.now)
    assert 30 / (moments[-1] - moments[0]) == pytest.approx(expected, rel=0.05)
    # Each picture is the one that is on at its moment.
    assert levels == [LEVELS[round((moment - moments[0]) * rate) % len(LEVELS)] for moment in moments]


def test_video_of_a_rate_that_none_has_plays_at_the_wanted_one(tmp_path: Path, clock: Clock) -> None:
    file = Path(write_video(tmp_path))
    content = file.read_bytes()
    at = content.index(b"strh") + 28  # of dwScale and dwRate: the latter by the former is the rate
    file.write_bytes(content[:at] + struct.pack("<II", 1, 5000) + content[at + 8 :])
    with VideoFile(str(file), (64, 48), 10, 85) as camera:
        assert [level(camera.read()[0]) for _ in LEVELS] == LEVELS
    assert clock.now - 1000 == pytest.approx(0.5)


def test_video_does_not_catch_up_over_a_long_delay(tmp_path: Path, clock: Clock) -> None:
    camera = VideoFile(write_video(tmp_path), (64, 48), 10, 85)
    camera.read()
    clock.now += 60
    for _ in range(11):
        camera.read()
    assert clock.now - 1000 == pytest.approx(61.0, abs=0.21)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((64, 48), (64, 48)),
        ((32, 32), (32, 24)),
        ((640, 48), (64, 48)),
        ((128, 128), (128, 96)),
        ((1280, 720), (960, 720)),
        ((50, 50), (50, 38)),
        ((16, 16), (16, 12)),
    ],
)
def test_video_is_fitted_into_the_size(
    size: tuple[int, int], fitted: tuple[int, int], tmp_path: Path, clock: Clock
) -> None:
    jpeg, _ = VideoFile(write_video(tmp_path), size, 10, 85).read()
    assert codec.jpeg_size(jpeg) == fitted
    assert level(jpeg) == LEVELS[0]


def test_video_of_a_turned_phone_is_shown_upright(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "video.mp4"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    image = np.zeros((48, 64, 3), "uint8")
    image[:, :32, 0] = image[:, 32:, 2] = 220  # blue is left, red is right
    writer.write(image)
    writer.release()
    content = file.read_bytes()
    # The track header's matrix, ISO/IEC 14496-12, 8.3.2: a quarter turn clockwise.
    matrix = content.index(b"tkhd") + 40
    turn = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    file.write_bytes(content[:matrix] + turn + content[matrix + len(turn) :])
    with VideoFile(str(file), (64, 48), 10, 85) as camera:
        shown = strictly_decoded(camera.read()[0])
    assert shown.shape == (48, 36, 3)
    assert [int(shown[row, 18].argmax()) for row in (10, 38)] == [0, 2], "blue is above red"


def test_damaged_pictures_of_a_video_are_left_out_and_told(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    file = Path(write_video(tmp_path))
    content = file.read_bytes()
    first = content.index(b"00dc", content.index(b"movi"))
    second, third = (match.start() for match in itertools.islice(re.finditer(b"00dc", content[first:]), 1, 3))
    file.write_bytes(content[: first + second + 8] + bytes(third - second - 8) + content[first + third :])
    with VideoFile(str(file), (64, 48), 10, 85) as camera:
        shown = [level(camera.read()[0]) for _ in range(7)]
    assert shown == [LEVELS[0], *LEVELS[2:], LEVELS[0], LEVELS[2]]
    assert [record.getMessage() for record in caplog.records] == [f"file:{file}: 1 damaged pictures left out"]


def test_video_without_pictures(tmp_path: Path, clock: Clock) -> None:
    file = Path(write_video(tmp_path))
    content = file.read_bytes()
    start = content.index(b"movi")
    file.write_bytes(content[: start + 4] + bytes(len(content) - start - 4))
    with VideoFile(str(file), (64, 48), 10, 85) as camera, pytest.raises(CameraError, match="has no pictures"):
        camera.read()


def test_video_stamps_the_moment_of_each_picture(tmp_path: Path, clock: Clock) -> None:
    camera = VideoFile(write_video(tmp_path), (64, 48), 10, 85)
    for _ in range(3):
        assert camera.read()[1] == clock.time_ns()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(None, "there is no such file", id="missing"),
        pytest.param(b"", f"is not a video that FFmpeg can read: {INVALID}", id="empty"),
        pytest.param(b"no video at all\n" * 99, f"is not a video that FFmpeg can read: {INVALID}", id="garbage"),
        pytest.param(SOUND, "has no video in it", id="sound"),
    ],
)
def test_file_that_is_no_video(
    content: bytes | None, error: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "video.avi"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CameraError) as refused:
        VideoFile(str(file), (64, 48), 10, 85)
    assert str(refused.value) == f"file:{file}: {error}"
    assert capfd.readouterr().err == ""


def test_what_is_no_file_is_no_video(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, error in (
        (tmp_path, "is a directory: it must be a video file"),
        (Path("/dev/null"), "is a device, a pipe or a socket: it must be a video file"),
        (pipe, "is a device, a pipe or a socket: it must be a video file"),
        (tmp_path / ("a" * 300), "File name too long"),
        (pipe / "below", "there is no such file"),
    ):
        with pytest.raises(CameraError) as refused:
            VideoFile(str(path), (64, 48), 10, 85)
        assert str(refused.value) == f"file:{path}: {error}"


def test_video_that_this_user_may_not_read(tmp_path: Path) -> None:
    file = write_video(tmp_path)
    tmp_path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may enter every directory
        with pytest.raises(CameraError, match=f"^file:{file}: is not open to this user: let it read the file, and"):
            VideoFile(file, (64, 48), 10, 85)
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)


# -- USB cameras, by OpenCV


def encoded(colour: bool = True, optimised: bool = False) -> bytes:
    rows, columns = np.mgrid[:48, :64]
    image = np.dstack([rows * 5, columns * 4, (rows * columns) % 256]).astype("uint8")
    how = [cv2.IMWRITE_JPEG_OPTIMIZE, int(optimised), cv2.IMWRITE_JPEG_RST_INTERVAL, 3]
    return cv2.imencode(".jpg", image if colour else image[:, :, 2], how)[1].tobytes()


JPEG = encoded()
JPEG_CUT_OFF = JPEG[:-2]


class Device:
    """Stands in for cv2.VideoCapture of a USB camera, which moves the clock by 0.1 s a picture."""

    opens = True
    pictures = 1000
    decodes = True
    fourcc = "YUYV"
    gives = (64, 48, 15.0)
    transit_s = 0.02  # from the first byte on the bus to the program
    frame: bytes = b""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.asked: list[tuple[int, float]] = []
        self.taken = 0
        self.released = False

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self.opens

    def set(self, key: int, value: float) -> bool:
        self.asked.append((key, value))
        return True

    def get(self, key: int) -> float:
        return {
            cv2.CAP_PROP_FOURCC: int.from_bytes(self.fourcc.encode(), "little"),
            cv2.CAP_PROP_FRAME_WIDTH: self.gives[0],
            cv2.CAP_PROP_FRAME_HEIGHT: self.gives[1],
            cv2.CAP_PROP_FPS: self.gives[2],
            cv2.CAP_PROP_POS_MSEC: (self._clock.now - self.transit_s) * 1000,
        }[key]

    def grab(self) -> bool:
        self._clock.now += 0.1
        self.taken += 1
        return self.taken <= self.pictures

    def retrieve(self) -> tuple[bool, Image | None]:
        if not self.decodes:
            return False, None
        if (cv2.CAP_PROP_CONVERT_RGB, 0) in self.asked:
            if not self.frame:
                return True, None
            return True, np.frombuffer(self.frame, "uint8").reshape(1, -1)
        return True, np.full((48, 64, 3), 140, "uint8")

    def release(self) -> None:
        self.released = True


@pytest.fixture
def device(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Plug in a camera as /dev/video3."""
    device = Device(clock)
    monkeypatch.setattr(v4l2, "check", lambda source, path: None)

    def open_device(path: str, backend: int) -> Device:
        assert (path, backend) in {("/dev/video3", cv2.CAP_V4L2), ("/dev/v4l/by-id/door", cv2.CAP_V4L2)}
        return device

    monkeypatch.setattr(cv2, "VideoCapture", open_device)
    return device


def test_usb_camera(device: Device, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with UsbCamera(3, (64, 48), 15, 85) as camera:
        assert device.asked == [
            (cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")),
            (cv2.CAP_PROP_FRAME_WIDTH, 64),
            (cv2.CAP_PROP_FRAME_HEIGHT, 48),
            (cv2.CAP_PROP_BUFFERSIZE, 2),
            (cv2.CAP_PROP_FPS, 15),
        ]
        assert clock.now - 1000 == pytest.approx(1.0, abs=0.11), "exposure settles first"
        jpeg, captured_ns = camera.read()
        assert level(jpeg) == 140
        assert clock.time_ns() - captured_ns == pytest.approx(20_000_000, abs=1000)
        device.pictures = 0
        with pytest.raises(CameraError, match="usb:3: gives no picture"):
            camera.read()
        assert not device.released
    assert device.released
    assert caplog.messages == ["usb:3: YUYV, encoded at quality 85"]


@pytest.mark.parametrize(("fps", "asked"), [(0.1, 1), (0.5, 1), (29.97, 30)])
def test_usb_camera_is_asked_for_a_whole_rate(fps: float, asked: int, device: Device) -> None:
    UsbCamera(3, (64, 48), fps, 85)
    assert device.asked[-1] == (cv2.CAP_PROP_FPS, asked)


@pytest.mark.parametrize("transit_s", [-0.5, 11, 1e9])
def test_usb_camera_with_another_clock_is_stamped_on_arrival(transit_s: float, device: Device, clock: Clock) -> None:
    device.transit_s = transit_s
    assert UsbCamera(3, (64, 48), 15, 85).read()[1] == clock.time_ns()


@pytest.mark.parametrize(
    ("gives", "told"),
    [
        ((64, 48, 14.99), []),
        ((64, 48, math.inf), []),
        ((64, 48, -1), []),
        ((64, 48, 12.5), ["usb:3: gives 64x48 at 12.5 frames/s, 64x48 at 15 was asked for"]),
        ((32, 24, 15), ["usb:3: gives 32x24 at 15 frames/s, 64x48 at 15 was asked for"]),
    ],
)
def test_what_a_usb_camera_gives_instead_is_told_once(
    gives: tuple[int, int, float], told: list[str], device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.gives = gives
    with UsbCamera(3, (64, 48), 15, 85) as camera:
        camera.read()
    assert caplog.messages == told


@pytest.mark.parametrize("fourcc", ["MJPG", "JPEG"])
def test_usb_camera_s_jpeg_is_passed_on(fourcc: str, device: Device, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    device.fourcc = fourcc
    device.frame = JPEG + bytes(100)
    with UsbCamera("/dev/v4l/by-id/door", (64, 48), 15, 1) as camera:
        assert camera.read()[0] == JPEG
        assert camera.damaged == 0
    assert caplog.messages == [f"usb:/dev/v4l/by-id/door: {fourcc}, passed on as it comes"]


@pytest.mark.parametrize(
    ("frame", "why"), [(b"", "empty, or cannot be decoded"), (JPEG_CUT_OFF, "JPEG ends within its picture")]
)
def test_damaged_pictures_are_dropped_and_counted(
    frame: bytes, why: str, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.fourcc = "MJPG"
    device.frame = JPEG
    with UsbCamera(3, (64, 48), 15, 85) as camera:
        device.frame = frame
        with pytest.raises(CameraError, match="usb:3: gives only damaged pictures"):
            camera.read()
        assert 50 <= camera.damaged <= 51
        lines = f"usb:3: 1[01] damaged pictures dropped, the last: {why}"
        assert len(caplog.messages) == 5, "about once a second"
        assert all(re.fullmatch(lines, message) for message in caplog.messages[1:])
        device.frame = JPEG
        assert camera.read()[0] == JPEG


@pytest.mark.parametrize(
    ("trait", "value", "error"),
    [
        ("opens", False, "usb:3: has no picture format that OpenCV reads, or has just been taken"),
        ("pictures", 0, "usb:3: gives no picture; was it unplugged?"),
        ("pictures", 4, "usb:3: gives no picture; was it unplugged?"),
        ("decodes", False, "usb:3: gives only damaged pictures; is its cable or hub too slow?"),
    ],
)
def test_usb_camera_that_does_not_work(trait: str, value: object, error: str, device: Device) -> None:
    setattr(device, trait, value)
    with pytest.raises(CameraError) as refused:
        UsbCamera(3, (64, 48), 15, 85)
    assert str(refused.value) == error
    assert device.released == (trait != "opens")


def test_usb_camera_that_is_really_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CameraError, match=re.escape("usb:97: there is no /dev/video97 (is the camera plugged in?)")):
        UsbCamera(97, (64, 48), 15, 85)
    assert capfd.readouterr().err == ""


# -- what the kernel says of a device


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOENT, "usb:0: there is no /dev/null (is the camera plugged in?)"),
        (errno.ENODEV, "usb:0: there is no /dev/null (is the camera plugged in?)"),
        (errno.ENOTDIR, "usb:0: there is no /dev/null (is the camera plugged in?)"),
        (errno.EACCES, "usb:0: /dev/null is not open to this user: put it into the group 'root', and log in again"),
        (errno.EBUSY, "usb:0: /dev/null is in use: another program has this camera"),
        (errno.EIO, "usb:0: /dev/null: Input/output error"),
    ],
)
def test_device_that_cannot_be_opened(number: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CameraError) as refused:
        v4l2.check("usb:0", "/dev/null")
    assert str(refused.value) == said


def test_group_without_a_name_is_taken_for_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def group(_: Path) -> str:
        raise KeyError("gid not found")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "group", group)
    with pytest.raises(CameraError, match="put it into the group 'video'"):
        v4l2.check("usb:0", "/dev/null")


def test_device_that_goes_as_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(CameraError, match=r"there is no /dev/null \(is the camera plugged in\?\)"):
        v4l2.check("usb:0", "/dev/null")


def test_device_that_is_no_video_device() -> None:
    with pytest.raises(CameraError, match="usb:/dev/null: /dev/null is not a camera: it is not a video device at all"):
        v4l2.check("usb:/dev/null", "/dev/null")


CAPTURE, METADATA, OUTPUT = 0x1, 0x0080_0000, 0x2
STREAMS = 0x0400_0000


@pytest.mark.parametrize(
    ("capabilities", "device_capabilities", "fails_with", "said"),
    [
        (CAPTURE | METADATA | STREAMS, CAPTURE | STREAMS, None, None),
        (CAPTURE | STREAMS, None, None, None),
        (CAPTURE | STREAMS, None, errno.EINVAL, None),  # for OpenCV to find out
        (CAPTURE | STREAMS, None, errno.EBUSY, "/dev/null is in use: another program has this camera"),
        (CAPTURE | STREAMS, None, errno.ENODEV, "there is no /dev/null (is the camera plugged in?)"),
        (OUTPUT | STREAMS, None, None, "/dev/null of 'Webcam' gives no pictures: a camera often has several devices"),
        (CAPTURE | METADATA, METADATA, None, "/dev/null of 'Webcam' gives no pictures: a camera often has several"),
    ],
)
def test_device_that_answers(
    capabilities: int,
    device_capabilities: int | None,
    fails_with: int | None,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(_device: int, request: int, argument: bytes) -> bytes:
        if request == 0x80685600:  # VIDIOC_QUERYCAP
            assert len(argument) == 104
            has = capabilities | (0 if device_capabilities is None else 0x8000_0000)
            return struct.pack("<16s32s32s3I12x", b"uvcvideo", b"Webcam", b"usb", 0, has, device_capabilities or 0)
        assert request == 0xC0145608  # VIDIOC_REQBUFS
        assert argument == struct.pack("<5I", 0, 1, 1, 0, 0)
        if fails_with is not None:
            raise OSError(fails_with, os.strerror(fails_with))
        return argument

    monkeypatch.setattr(fcntl, "ioctl", answer)
    before = open_descriptors()
    if said is None:
        v4l2.check("usb:0", "/dev/null")
    else:
        with pytest.raises(CameraError, match=re.escape(f"usb:0: {said}")):
            v4l2.check("usb:0", "/dev/null")
    until(lambda: open_descriptors() <= before)  # a camera that is away is tried for ever


# -- motion JPEG


def without_tables(jpeg: bytes) -> bytes:
    """Leave the Huffman tables away, as many cameras do."""
    at, kept = 2, [jpeg[:2]]
    while jpeg[at + 1] != 0xDA:
        after = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] != 0xC4:
            kept.append(jpeg[at:after])
        at = after
    return b"".join([*kept, jpeg[at:]])


@pytest.mark.parametrize("colour", [True, False])
def test_missing_huffman_tables_are_put_in(colour: bool) -> None:
    whole = encoded(colour)
    bare = without_tables(whole)
    assert b"\xff\xc4" not in bare
    mended = mjpeg.to_jpeg(bare)
    assert (strictly_decoded(mended) == strictly_decoded(whole)).all()
    assert mjpeg.to_jpeg(mended) == mended


@pytest.mark.parametrize("jpeg", [JPEG, encoded(optimised=True)])
@pytest.mark.parametrize("padding", [b"", b"\0", bytes(4096), b"\xff" * 3, b"\xff\xd9", JPEG])
def test_picture_ends_at_its_end(jpeg: bytes, padding: bytes) -> None:
    assert mjpeg.to_jpeg(jpeg + padding) == jpeg


def test_fill_bytes_before_a_marker_are_allowed() -> None:
    at = JPEG.index(b"\xff\xdb")
    filled = JPEG[:at] + b"\xff\xff" + JPEG[at:-2] + b"\xff" + JPEG[-2:]
    assert mjpeg.to_jpeg(filled) == filled
    assert (strictly_decoded(filled) == strictly_decoded(JPEG)).all()


@pytest.mark.parametrize("picture", [b"", b"\0", JPEG[1:], bytes(500), b"\xff\xd9"])
def test_picture_that_is_none(picture: bytes) -> None:
    with pytest.raises(CodecError, match="does not start as a JPEG"):
        mjpeg.to_jpeg(picture)


def test_picture_cut_off_anywhere_is_refused() -> None:
    for length in range(2, len(JPEG)):
        with pytest.raises(CodecError, match=r"JPEG ends within its (head|picture)"):
            mjpeg.to_jpeg(JPEG[:length])


def test_picture_that_the_next_one_follows_too_soon() -> None:
    with pytest.raises(CodecError, match="JPEG ends within its picture"):
        mjpeg.to_jpeg(JPEG[: len(JPEG) * 3 // 4] + JPEG)


# -- boards

PI4 = ("Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b", "brcm,bcm2711")
PI5 = ("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")
ZERO2 = ("Raspberry Pi Zero 2 W Rev 1.0", "raspberrypi,model-zero-2-w", "brcm,bcm2837")
PI3 = ("Raspberry Pi 3 Model B Plus Rev 1.3", "raspberrypi,3-model-b-plus", "brcm,bcm2837")
PI400 = ("Raspberry Pi 400 Rev 1.0", "raspberrypi,400", "brcm,bcm2711")
CM5 = ("Raspberry Pi Compute Module 5 Rev 1.0", "raspberrypi,5-compute-module", "brcm,bcm2712")
ROCK = ("Radxa ROCK 5B", "radxa,rock-5b", "rockchip,rk3588")


def put_into(path: Path, monkeypatch: pytest.MonkeyPatch, model: str, *compatible: str) -> None:
    """Make this machine another board."""
    (path / "model").write_text(f"{model}\0")
    (path / "compatible").write_text("".join(f"{each}\0" for each in compatible))
    monkeypatch.setattr(boards, "_DEVICE_TREE", path)


@pytest.mark.parametrize(
    ("board", "name", "hardware"),
    [
        (ZERO2, "Raspberry Pi Zero 2 W", True),
        (PI3, "Raspberry Pi 3 Model B Plus", True),
        (PI4, "Raspberry Pi 4 Model B", True),
        (PI400, "Raspberry Pi 400", True),
        (PI5, "Raspberry Pi 5 Model B", False),
        (CM5, "Raspberry Pi Compute Module 5", False),
        (ROCK, "Radxa ROCK 5B", None),
    ],
)
def test_board(
    board: tuple[str, ...], name: str, hardware: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_into(tmp_path, monkeypatch, *board)
    assert Board.here() == (name, hardware)


def test_board_without_a_device_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "_DEVICE_TREE", tmp_path / "none")
    assert Board.here() == ("no Raspberry Pi", None)


@pytest.mark.parametrize(
    ("hardware", "wish", "size", "used"),
    [
        (True, "auto", (640, 480), True),
        (True, "auto", (1080, 1920), True),
        (True, "auto", (1922, 1080), False),
        (True, "auto", (1080, 1922), False),
        (True, "software", (640, 480), False),
        (True, "hardware", (1920, 1080), True),
        (False, "auto", (640, 480), False),
        (None, "auto", (640, 480), False),
        (None, "hardware", (640, 480), True),
    ],
)
def test_where_jpegs_are_made(hardware: bool | None, wish: str, size: tuple[int, int], used: bool) -> None:
    assert Board("Pi", hardware).uses_hardware(wish, size) is used


@pytest.mark.parametrize(
    ("hardware", "size", "error"),
    [
        (False, (640, 480), "encoder is 'hardware': Pi has none: it must be auto or software"),
        (
            True,
            (2304, 1296),
            "encoder is 'hardware': it makes pictures up to 1920x1920: it must be auto or software, or",
        ),
    ],
)
def test_hardware_that_is_not_there(hardware: bool, size: tuple[int, int], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        Board("Pi", hardware).uses_hardware("hardware", size)


# -- the Pi's camera: the thinnest stand-ins for picamera2 0.3.38 and libcamera, with their names and signatures


class Transform:
    def __init__(self, hflip: int = 0, vflip: int = 0, transpose: int = 0) -> None:
        self.hflip = bool(hflip)
        self.vflip = bool(vflip)


class AfModeEnum(IntEnum):
    Manual = 0
    Auto = 1
    Continuous = 2


class AwbModeEnum(IntEnum):
    Auto = 0
    Indoor = 4
    Custom = 7


class NoiseReductionModeEnum(IntEnum):
    Off = 0
    Fast = 1


class SensorFormat:
    def __init__(self, fmt_string: str) -> None:
        self.bit_depth = int(fmt_string.removesuffix("_CSI2P")[-2:].lstrip("RB"))


# As `rpicam-hello --list-cameras` lists them: bits, size, frames/s, and which of the sensor's pixels the mode sees.
MODES: dict[str, list[tuple[int, tuple[int, int], float, tuple[int, int, int, int]]]] = {
    "imx219": [
        (10, (640, 480), 206.65, (1000, 752, 1280, 960)),
        (10, (1640, 1232), 41.85, (0, 0, 3280, 2464)),
        (10, (1920, 1080), 47.57, (680, 692, 1920, 1080)),
        (10, (3280, 2464), 21.19, (0, 0, 3280, 2464)),
        (8, (640, 480), 206.65, (1000, 752, 1280, 960)),
        (8, (1640, 1232), 83.70, (0, 0, 3280, 2464)),
        (8, (1920, 1080), 47.57, (680, 692, 1920, 1080)),
        (8, (3280, 2464), 21.19, (0, 0, 3280, 2464)),
    ],
    "imx477": [
        (10, (1332, 990), 120.05, (696, 528, 2664, 1980)),
        (12, (2028, 1080), 50.03, (0, 440, 4056, 2160)),
        (12, (2028, 1520), 40.01, (0, 0, 4056, 3040)),
        (12, (4056, 3040), 10.00, (0, 0, 4056, 3040)),
    ],
    "imx708": [
        (10, (1536, 864), 120.13, (768, 432, 3072, 1728)),
        (10, (2304, 1296), 56.03, (0, 0, 4608, 2592)),
        (10, (4608, 2592), 14.35, (0, 0, 4608, 2592)),
    ],
    "ov5647": [
        (10, (640, 480), 58.92, (16, 0, 2560, 1920)),
        (10, (1296, 972), 43.25, (0, 0, 2592, 1944)),
        (10, (1920, 1080), 30.62, (348, 434, 1928, 1080)),
        (10, (2592, 1944), 15.63, (0, 0, 2592, 1944)),
    ],
}


class RawFormats:
    """The sensor's own formats, as libcamera says them."""

    def __init__(self, sensor: str) -> None:
        self.modes = MODES[sensor]
        self.pixel_formats = list(dict.fromkeys(self._named(bits) for bits, *_ in self.modes))

    @staticmethod
    def _named(bits: int) -> str:
        return f"SRGGB{bits}_CSI2P" if bits > 8 else "SRGGB8"

    def sizes(self, pixel_format: str) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(width=width, height=height)
            for bits, (width, height), *_ in self.modes
            if self._named(bits) == pixel_format
        ]


LIBCAMERA_CONTROLS = SimpleNamespace(
    AfModeEnum=AfModeEnum,
    AwbModeEnum=AwbModeEnum,
    draft=SimpleNamespace(NoiseReductionModeEnum=NoiseReductionModeEnum),
)


class Output:
    def __init__(self, pts: str | None = None) -> None:
        self.recording = False

    def outputframe(
        self,
        frame: bytes | None,
        keyframe: bool = True,
        timestamp: int | None = None,
        packet: object = None,
        audio: bool = False,
    ) -> None:
        raise NotImplementedError


class Encoder:
    firsttimestamp: int | None = None


class JpegEncoder(Encoder):
    def __init__(
        self,
        num_threads: int = 4,
        q: int | None = None,
        colour_space: str | None = None,
        colour_subsampling: str = "420",
    ) -> None:
        self.num_threads = num_threads
        self.q = q


class LibavMjpegEncoder(Encoder):
    def __init__(self) -> None:
        pytest.fail("it delays by eight frames")


class MJPEGEncoder(Encoder):
    def __init__(self, bitrate: int | None = None) -> None:
        self.bitrate = bitrate


class CameraManager:
    """Looks for cameras once, as libcamera does, until it is told to look again."""

    def __init__(self) -> None:
        self.seen: int | None = None

    def cameras(self) -> int:
        if self.seen is None:
            self.seen = Picamera2.attached
        return self.seen

    def reset(self) -> None:
        self.seen = None


class Picamera2:
    """A camera that gives numbered pictures, about every millisecond, from a thread as the real one does."""

    attached = 1
    by_usb = 0
    taken = False
    starts = True
    turns = True
    of_a_pi = True
    memory = 512 << 20
    biggest = (4608, 2592)
    sensor = "imx708"
    not_to_be_had: tuple[int, int] | None = None
    pictures = 1_000_000
    padding = b""
    opened: list[Picamera2]
    _cm: CameraManager

    @staticmethod
    def global_camera_info() -> list[dict[str, Any]]:
        place = "/base/axi/pcie@1000120000/rp1/i2c@88000/imx708@1a"
        ribbon = [{"Model": "imx708", "Num": number, "Id": place} for number in range(Picamera2._cm.cameras())]
        by_usb = "/base/axi/pcie@1000120000/rp1/usb@200000-1:1.0-046d:0825"
        return ribbon + [{"Model": "C270", "Num": len(ribbon), "Id": by_usb}] * Picamera2.by_usb

    def __init__(
        self,
        camera_num: int = 0,
        verbose_console: int | None = None,
        tuning: str | None = None,
        allocator: object = None,
    ) -> None:
        if self.taken:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        self.started = self.encoding = False
        self.closed = False
        self.given = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.configuration: dict[str, Any] = {}
        self.configured = 0
        self.opened.append(self)

    @property
    def camera(self) -> SimpleNamespace:
        def generate_configuration(roles: list[str]) -> SimpleNamespace:
            assert roles == ["raw"]
            return SimpleNamespace(at=[SimpleNamespace(formats=RawFormats(self.sensor))].__getitem__)

        return SimpleNamespace(generate_configuration=generate_configuration)

    @property
    def camera_properties(self) -> dict[str, Any]:
        has = {"Model": self.sensor}
        return has | (
            {"ColorFilterArrangement": 0, "PixelArraySize": MODES[self.sensor][-1][1]} if self.of_a_pi else {}
        )

    def create_video_configuration(  # noqa: PLR0917 - picamera2's signature
        self,
        main: dict[str, Any],
        raw: object,
        transform: Transform,
        colour_space: object,
        controls: dict[str, Any],
        sensor: dict[str, Any],
    ) -> dict[str, Any]:
        assert raw is None, "the sensor's own pictures take memory"
        return {
            "main": main,
            "controls": controls,
            "transform": transform,
            "colour_space": colour_space,
            "sensor": sensor,
        }

    def configure(self, camera_config: dict[str, Any] | None = None) -> None:
        assert camera_config
        self.configured += 1
        sensor = camera_config["sensor"]
        if sensor and sensor["output_size"] == self.not_to_be_had:
            raise RuntimeError("Configuration failed: ...")
        if math.prod(camera_config["main"]["size"]) * 3 // 2 * 6 > self.memory:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.mode = next(
            mode
            for mode in MODES[self.sensor]
            if not sensor or mode[:2] == (sensor["bit_depth"], sensor["output_size"])
        )
        self.configuration = {
            **camera_config,
            "main": {**camera_config["main"], "size": min(camera_config["main"]["size"], self.biggest)},
            "transform": camera_config["transform"] if self.turns else Transform(),
        }

    def camera_configuration(self) -> dict[str, Any]:
        return self.configuration

    @property
    def camera_controls(self) -> dict[str, tuple[Any, Any, Any]]:
        assert self.configuration, "ranges follow from the configuration"
        return {
            "AeEnable": (False, True, True),
            "AnalogueGain": (1.0, 16.0, 1.0),
            "AwbMode": (0, 6, 0),
            "ColourGains": (0.0, 32.0, None),
            "ExposureTime": (14, 66_666, 20_000),
            "FrameDurationLimits": (int(1_000_000 / self.mode[2]), 220_535_845, 33_333),
            "NoiseReductionMode": (0, 4, 0),
            "ScalerCrop": ((0, 0, 64, 64), self.mode[3], self.mode[3]),
        } | ({"AfMode": (0, 2, 0), "LensPosition": (0.0, 15.0, 1.0)} if self.sensor == "imx708" else {})

    def set_controls(self, controls: dict[str, Any]) -> None:
        assert not self.started
        if controls.get("ScalerCrop") == 1:
            raise TypeError("Rectangle() argument after * must be an iterable, not int")
        self.controls = controls

    def start_recording(  # noqa: PLR0917 - picamera2's signature
        self,
        encoder: Encoder,
        output: Output,
        pts: str | None = None,
        config: object = None,
        quality: object = None,
        name: str | None = None,
    ) -> None:
        assert isinstance(output, Output)
        self.encoder = encoder
        self.encoding = True  # before the camera starts, and also when it then does not
        if not self.starts:
            raise RuntimeError("Failed to start camera: Device or resource busy")
        self.started = True
        self._thread = threading.Thread(target=self._give, args=[encoder, output], daemon=True)
        self._thread.start()

    def _give(self, encoder: Encoder, output: Output) -> None:
        while not self._stop.wait(0.001):
            if self.given >= self.pictures:
                continue
            now_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
            encoder.firsttimestamp = encoder.firsttimestamp or now_us
            self.given += 1
            jpeg = b"\xff\xd8" + str(self.given).encode() + b"\xff\xd9" + self.padding
            output.outputframe(jpeg, True, now_us - encoder.firsttimestamp)
            output.outputframe(None, True, 0, object(), True)

    def stop_recording(self) -> None:
        self.started = self.encoding = False
        self._stop.set()
        if self._thread:
            self._thread.join()

    def close(self) -> None:
        assert not self.started
        assert not self.encoding, "its threads would stay"
        self.closed = True


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Let the cameras' files be imported afresh, and bring back those that were there."""
    names = [f"streamer.cameras.{name}" for name in ("opencv", "pattern", "picamera2", "video")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)
    for name, module in before.items():
        setattr(cameras, name.rpartition(".")[2], module)


@pytest.fixture(params=["hardware", "Pi 5", "an encoder that picamera2 does not find"])
def board(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: None) -> str:
    """Install picamera2 as it is on a board."""
    put_into(tmp_path, monkeypatch, *(PI5 if request.param == "Pi 5" else PI4))
    mjpeg_encoder = MJPEGEncoder if request.param == "hardware" else LibavMjpegEncoder
    modules: dict[str, dict[str, object]] = {
        "libcamera": {
            "Transform": Transform,
            "controls": LIBCAMERA_CONTROLS,
            "ColorSpace": SimpleNamespace(Sycc=lambda: "Sycc"),
            "StreamRole": SimpleNamespace(Raw="raw"),
        },
        "picamera2": {"Picamera2": Picamera2},
        "picamera2.encoders": {
            "JpegEncoder": JpegEncoder,
            "LibavMjpegEncoder": LibavMjpegEncoder,
            "MJPEGEncoder": mjpeg_encoder,
        },
        "picamera2.outputs": {"Output": Output},
        "picamera2.sensor_format": {"SensorFormat": SensorFormat},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(Picamera2, "opened", [], raising=False)
    monkeypatch.setattr(Picamera2, "_cm", CameraManager(), raising=False)
    file = importlib.import_module("streamer.cameras.picamera2")
    monkeypatch.setattr(file, "_WARM_UP_S", PI_WARM_UP_S)
    board: str = request.param
    return board


def open_pi_camera(quality: int = 85, size: tuple[int, int] = (640, 480), fps: float = 30, **settings: Any) -> Camera:
    return cameras.opener("picamera2", name="pi1", size=size, fps=fps, quality=quality, **settings)()


def test_pi_camera(board: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    began = time.monotonic()
    with open_pi_camera() as camera:
        assert time.monotonic() - began >= PI_WARM_UP_S, "exposure settles first"
        (device,) = Picamera2.opened
        assert device.configuration["main"] == {"size": (640, 480), "format": "YUV420"}
        assert device.configuration["controls"] == {"FrameRate": 30}
        assert device.configuration["colour_space"] == "Sycc", "a JPEG's black is 0, a video's 16"
        if board == "hardware":
            assert isinstance(device.encoder, MJPEGEncoder)
            assert device.encoder.bitrate == 640 * 480 * 30 * 1.9
        else:
            assert isinstance(device.encoder, JpegEncoder)
            assert (device.encoder.num_threads, device.encoder.q) == (2, 85)
        numbers = [int(camera.read()[0][2:-2]) for _ in range(5)]
        assert numbers == sorted(set(numbers))
    assert device.closed
    how = "MJPEG in hardware" if board == "hardware" else "JPEG in software"
    assert caplog.messages == [f"picamera2: Raspberry Pi {5 if board == 'Pi 5' else 4} Model B, {how}"]


ONE_BOARD = pytest.mark.parametrize("board", ["hardware"], indirect=True)


@ONE_BOARD
@pytest.mark.parametrize(
    ("settings", "hflip", "vflip"),
    [
        ({}, False, False),
        ({"hflip": True}, True, False),
        ({"vflip": True}, False, True),
        ({"rotate": 180}, True, True),
        ({"rotate": 180, "hflip": True}, False, True),
        ({"rotate": 180, "hflip": True, "vflip": True}, False, False),
    ],
)
def test_pi_camera_turned(board: str, settings: dict[str, Any], hflip: bool, vflip: bool) -> None:
    with open_pi_camera(**settings):
        transform = Picamera2.opened[0].configuration["transform"]
        assert (transform.hflip, transform.vflip) == (hflip, vflip)


@ONE_BOARD
def test_pi_camera_gives_another_size(
    board: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Picamera2, "biggest", (640, 480))
    with open_pi_camera(size=(1280, 720)):
        assert caplog.messages == ["picamera2: gives 640x480, 1280x720 was asked for"]


# Of each kind of camera: what is asked for, and the mode that sees the most of what gives that.
WIDEST = [
    ("ov5647", (640, 480), 30, 10, (1296, 972)),
    ("imx219", (640, 480), 30, 10, (1640, 1232)),
    ("imx219", (640, 480), 10, 10, (1640, 1232)),
    ("imx219", (640, 480), 60, 8, (1640, 1232)),
    ("imx219", (1640, 1232), 41.9, 10, (1640, 1232)),
    ("imx219", (3280, 2464), 20, 10, (3280, 2464)),
    ("imx477", (640, 480), 30, 12, (2028, 1520)),
    ("imx477", (1280, 720), 30, 12, (2028, 1520)),
    ("imx477", (1280, 720), 50, 12, (2028, 1080)),
    ("imx708", (640, 480), 30, 10, (2304, 1296)),
    ("imx708", (1920, 1080), 30, 10, (2304, 1296)),
    ("imx708", (1920, 1440), 30, 10, (2304, 1296)),
]


@pytest.mark.parametrize(("sensor", "size", "fps", "bits", "mode"), WIDEST)
@ONE_BOARD
def test_pi_camera_sees_as_much_as_its_sensor_does(  # noqa: PLR0917
    board: str,
    sensor: str,
    size: tuple[int, int],
    fps: float,
    bits: int,
    mode: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Picamera2, "sensor", sensor)
    with open_pi_camera(size=size, fps=fps):
        (device,) = Picamera2.opened
    assert device.configuration["sensor"] == {"output_size": mode, "bit_depth": bits}
    assert caplog.messages == []


SEES = "picamera2: the camera {} sees {} of its {} pixels: no mode that sees more gives {} frames/s"


@pytest.mark.parametrize(
    ("sensor", "size", "fps", "said"),
    [
        (
            "imx219",
            (1920, 1080),
            30,
            [SEES.format("imx219", "1920x1080", "3280x2464", "1920x1080 at 30")],
        ),
        (
            "imx708",
            (640, 480),
            120,
            [SEES.format("imx708", "3072x1728", "4608x2592", "640x480 at 120")],
        ),
        (
            "imx477",
            (640, 480),
            200,
            [
                "picamera2: gives 640x480 at 120.1 frames/s, 200 was asked for",
                SEES.format("imx477", "2664x1980", "4056x3040", "640x480 at 120.1"),
            ],
        ),
        (
            "imx219",
            (3280, 2464),
            30,
            ["picamera2: gives 3280x2464 at 21.19 frames/s, 30 was asked for"],
        ),
    ],
)
@ONE_BOARD
def test_pi_camera_that_gives_less_says_so(  # noqa: PLR0917
    board: str,
    sensor: str,
    size: tuple[int, int],
    fps: float,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Picamera2, "sensor", sensor)
    with open_pi_camera(size=size, fps=fps):
        assert caplog.messages == said


@ONE_BOARD
def test_mode_that_the_board_cannot_have_is_left_out(board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picamera2, "not_to_be_had", (2304, 1296))
    with open_pi_camera(fps=10):
        (device,) = Picamera2.opened
    assert device.configuration["sensor"]["output_size"] == (4608, 2592)


@ONE_BOARD
def test_no_more_modes_are_tried_than_need_be(board: str) -> None:
    with open_pi_camera():
        (device,) = Picamera2.opened
    assert device.configured == 3, "the cropped mode, the one that is taken, and that for good"


@ONE_BOARD
def test_what_is_no_camera_of_a_pi_has_no_modes(board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picamera2, "of_a_pi", False)
    with open_pi_camera():
        (device,) = Picamera2.opened
    assert device.configuration["sensor"] == {}


@ONE_BOARD
def test_pi_camera_encodes_in_software_if_told(board: str) -> None:
    with open_pi_camera(encoder="software"):
        assert isinstance(Picamera2.opened[0].encoder, JpegEncoder)


@pytest.mark.parametrize("board", ["Pi 5", "an encoder that picamera2 does not find"], indirect=True)
def test_pi_camera_cannot_encode_in_hardware(board: str) -> None:
    with pytest.raises(ConfigError, match=r"encoder is 'hardware': .* none.*: it must be auto or software"):
        open_pi_camera(encoder="hardware")
    assert Picamera2.opened == []


@ONE_BOARD
@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("AeEnable", False, False),
        ("AfMode", "Continuous", AfModeEnum.Continuous),
        ("AfMode", 1, 1),
        ("NoiseReductionMode", False, NoiseReductionModeEnum.Off),
        ("ExposureTime", 14, 14),
        ("AnalogueGain", 2, 2),
        ("ColourGains", (1.5, 2), (1.5, 2)),
        ("ScalerCrop", (0, 0, 640, 480), (0, 0, 640, 480)),
    ],
)
def test_pi_camera_s_controls(board: str, name: str, value: object, taken: object) -> None:
    with open_pi_camera(controls=[(name, value)]):
        controls = Picamera2.opened[0].controls
    assert controls == {"AfMode": AfModeEnum.Continuous, name: taken}
    assert type(controls[name]) is type(taken)


@pytest.mark.parametrize(
    ("sensor", "wished", "controls"),
    [
        ("imx708", [], {"AfMode": AfModeEnum.Continuous}),
        ("imx708", [("AfMode", "Manual")], {"AfMode": AfModeEnum.Manual}),
        ("imx708", [("LensPosition", 2.5)], {"LensPosition": 2.5}),
        ("imx219", [], {}),
    ],
)
@ONE_BOARD
def test_pi_camera_that_can_focus_does(
    board: str,
    sensor: str,
    wished: list[tuple[str, object]],
    controls: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Picamera2, "sensor", sensor)
    with open_pi_camera(controls=wished):
        assert Picamera2.opened[0].controls == controls


@ONE_BOARD
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("ExposureTme", 1, "controls: the camera imx708 has no control ExposureTme; did you mean ExposureTime?"),
        ("Zzz", 1, "controls: the camera imx708 has no control Zzz; it has: AeEnable, AfMode, AnalogueGain, AwbMode, "),
        ("FrameRate", 5, "controls: FrameRate follows from fps: set that"),
        ("FrameDurationLimits", (1, 1), "controls: FrameDurationLimits follows from fps: set that"),
        ("AeEnable", 1, "controls: AeEnable is 1: it must be true or false"),
        ("AfMode", "Continous", "controls: AfMode is 'Continous': it must be Manual, Auto or Continuous"),
        ("AfMode", True, "controls: AfMode is True: it must be Manual, Auto or Continuous"),
        ("AfMode", 3, "controls: AfMode is 3: it must be Manual, Auto or Continuous"),
        ("AfMode", (1, 2), "controls: AfMode is (1, 2): it must be Manual, Auto or Continuous"),
        ("AwbMode", "Custom", "controls: AwbMode is 'Custom': it must be Auto or Indoor"),
        ("ExposureTime", 13, "controls: ExposureTime is 13: it must be a whole number from 14 to 33333"),
        ("ExposureTime", 33_334, "controls: ExposureTime is 33334: it must be a whole number from 14 to 33333"),
        ("ExposureTime", 20.5, "controls: ExposureTime is 20.5: it must be a whole number from 14 to 33333"),
        ("ExposureTime", True, "controls: ExposureTime is True: it must be a whole number from 14 to 33333"),
        ("AnalogueGain", "high", "controls: AnalogueGain is 'high': it must be a number from 1 to 16"),
        ("ColourGains", (1, 33.0), "controls: ColourGains is (1, 33.0): it must be a number from 0 to 32"),
    ],
)
def test_control_that_the_pi_camera_does_not_have(board: str, name: str, value: object, error: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_pi_camera(controls=[(name, value)])
    assert str(refused.value).startswith(error)
    assert Picamera2.opened[0].closed


@ONE_BOARD
def test_control_that_libcamera_refuses(board: str) -> None:
    with pytest.raises(CameraError, match=r"picamera2: Rectangle\(\) argument after \* must be an iterable, not int"):
        open_pi_camera(controls=[("ScalerCrop", 1)])
    assert Picamera2.opened[0].closed


@ONE_BOARD
def test_pi_camera_that_cannot_turn_its_picture(board: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picamera2, "turns", False)
    with open_pi_camera():
        pass
    with pytest.raises(ConfigError, match="hflip, vflip or rotate is set, but the camera imx708 cannot turn its"):
        open_pi_camera(vflip=True)


@pytest.mark.usefixtures("board")
def test_pi_camera_gives_the_newest_picture() -> None:
    with open_pi_camera() as camera:
        (device,) = Picamera2.opened
        camera.read()
        seen = device.given
        until(lambda: device.given > seen + 10)
        assert int(camera.read()[0][2:-2]) > seen + 10


@pytest.mark.usefixtures("board")
def test_pi_camera_stamps_when_the_sensor_was_read() -> None:
    with open_pi_camera() as camera:
        for _ in range(3):
            before = time.time_ns()
            # The first may have waited, the second may have been begun before.
            camera.read()
            camera.read()
            captured_ns = camera.read()[1]
            assert before - 50_000_000 < captured_ns <= time.time_ns() + 1_000_000


@pytest.mark.parametrize("padding", [b"\0", bytes(4096), b"\xff" * 3, b"\0\xff"])
def test_padding_is_trimmed(board: str, padding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picamera2, "padding", padding)
    with open_pi_camera() as camera:
        jpeg, _ = camera.read()
    assert jpeg[:2] == b"\xff\xd8"
    assert jpeg[2:-2].isdigit()
    assert jpeg[-2:] == b"\xff\xd9"


@pytest.mark.parametrize(
    ("quality", "bits_per_pixel"),
    [(1, 0.8), (50, 0.8), (75, 1.3), (80, 1.6), (85, 1.9), (90, 2.75), (95, 3.6), (100, 6.0)],
)
@ONE_BOARD
def test_quality_becomes_a_bit_rate(board: str, quality: int, bits_per_pixel: float) -> None:
    with open_pi_camera(quality, (320, 240)):
        encoder = Picamera2.opened[0].encoder
        assert isinstance(encoder, MJPEGEncoder)
        assert encoder.bitrate == pytest.approx(320 * 240 * 30 * bits_per_pixel, abs=1)


# Quality, size, frames a second; what the board's encoder has bits for, 25 Mbit/s and pictures of 384 KiB on average.
TOO_MUCH = [
    (95, (640, 480), 30, "89", 25_000_000),
    (100, (640, 480), 60, "75", 25_000_000),
    (85, (1280, 720), 30, "55", 25_000_000),
    (85, (1920, 1080), 30, "under 50", 25_000_000),
    (85, (1920, 1080), 5, "78", 15_728_640),
]


@pytest.mark.parametrize(("quality", "size", "fps", "reached", "bits"), TOO_MUCH)
@ONE_BOARD
def test_what_the_board_has_no_bits_for_is_encoded_in_software(  # noqa: PLR0917
    board: str,
    quality: int,
    size: tuple[int, int],
    fps: int,
    reached: str,
    bits: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Picamera2, "of_a_pi", False)  # whose modes would say something too
    caplog.set_level("INFO")
    with open_pi_camera(quality, size, fps=fps):
        encoder = Picamera2.opened[0].encoder
        assert isinstance(encoder, JpegEncoder)
        assert encoder.q == quality
    with open_pi_camera(quality, size, fps=fps, encoder="hardware"):
        encoder = Picamera2.opened[1].encoder
        assert isinstance(encoder, MJPEGEncoder)
        assert encoder.bitrate == bits
    assert [(record.levelname, record.message) for record in caplog.records] == [
        (
            "INFO",
            f"picamera2: Raspberry Pi 4 Model B, JPEG in software: in hardware its quality would be {reached}",
        ),
        (
            "WARNING",
            "picamera2: Raspberry Pi 4 Model B, MJPEG in hardware, which has bits for quality "
            f"{reached}, {quality} was asked for",
        ),
    ]


@pytest.mark.usefixtures("board")
@pytest.mark.parametrize(("fps", "patience_s"), [(30, 5), (1, 5), (0.5, 10), (0.1, 50)])
def test_slow_pi_camera_is_waited_for(fps: float, patience_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []

    class Watched(Mailbox[Any]):
        def take(self, timeout_s: float | None = 0.0, *, hold: bool = False) -> Any:
            waits.append(timeout_s)
            return super().take(timeout_s, hold=hold)

    monkeypatch.setattr(sys.modules["streamer.cameras.picamera2"], "Mailbox", Watched)
    with open_pi_camera(fps=fps) as camera:
        camera.read()
    assert set(waits) == {patience_s}


def give_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait for a picture; where one is to come, a busy machine could be too late with it."""
    monkeypatch.setattr(sys.modules["streamer.cameras.picamera2"], "_NO_FRAME_S", 0.2)


@pytest.mark.parametrize(
    ("trait", "value", "error"),
    [
        ("attached", 0, "picamera2: no camera found; is the ribbon cable in, and the right way round?"),
        ("taken", True, "picamera2: Camera __init__ sequence did not complete.; does another program use the camera?"),
        ("starts", False, "picamera2: Failed to start camera: Device or resource busy"),
        ("pictures", 0, "picamera2: no picture for 0.2 s"),
        ("memory", 0, "picamera2: no memory for pictures of 640x480 on Raspberry Pi {}: a smaller size needs less"),
    ],
)
def test_pi_camera_that_does_not_work(
    board: str, trait: str, value: object, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Picamera2, trait, value)
    give_up_soon(monkeypatch)
    with pytest.raises(CameraError) as refused:
        open_pi_camera()
    assert str(refused.value) == error.format("5 Model B" if board == "Pi 5" else "4 Model B")
    assert all(device.closed and not device.started for device in Picamera2.opened)


@pytest.mark.usefixtures("board")
def test_camera_by_usb_is_not_taken_for_the_pi_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Picamera2, "by_usb", 1)
    with open_pi_camera():
        pass
    monkeypatch.setattr(Picamera2, "attached", 0)
    Picamera2._cm.reset()
    with pytest.raises(CameraError) as refused:
        open_pi_camera()
    assert str(refused.value) == (
        "picamera2: no camera found but one by USB, which 'usb:' is for; is the ribbon cable in, and the right way "
        "round?"
    )


@pytest.mark.usefixtures("board")
def test_pi_camera_whose_encoder_cannot_be_stopped_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Picamera2.stop_recording

    def fail(device: Picamera2) -> None:
        stop(device)
        raise RuntimeError("Encoder already stopped")

    monkeypatch.setattr(Picamera2, "starts", False)
    monkeypatch.setattr(Picamera2, "stop_recording", fail)
    with pytest.raises(CameraError, match="picamera2: Failed to start camera"):
        open_pi_camera()
    assert [device.closed for device in Picamera2.opened] == [True]


@pytest.mark.usefixtures("board")
def test_pi_camera_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(Picamera2, "attached", 0)
        with pytest.raises(CameraError, match="no camera found"):
            open_pi_camera()
    with open_pi_camera() as camera:
        assert camera.read()


@pytest.mark.usefixtures("board")
def test_pi_camera_that_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_pi_camera() as camera:
        (device,) = Picamera2.opened
        device.pictures = 0
        give_up_soon(monkeypatch)
        with pytest.raises(CameraError, match=r"picamera2: no picture for 0\.2 s"):  # noqa: PT012 - some may wait
            for _ in range(3):
                camera.read()
    assert device.closed


# -- choosing one


@pytest.mark.parametrize(
    ("source", "library", "extra", "package"),
    [
        ("picamera2", "picamera2", "picamera2", "python3-picamera2"),
        ("usb:0", "cv2", "opencv", "python3-opencv"),
        ("file:video.mp4", "av", "video", "python3-av"),
        ("pattern", "PIL", "pattern", "python3-pil"),
    ],
)
@pytest.mark.usefixtures("forgotten")
def test_missing_extra(source: str, library: str, extra: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError) as missing:
        cameras.opener(source, name="pi1", size=(640, 480), fps=30, quality=85)
    pip = f": pip install '.[{extra}]' in this project's directory, or on Debian"
    by = ", on Raspberry Pi OS" if source == "picamera2" else pip  # pip's picamera2 finds no libcamera
    apt = f"apt install {package} (a virtual environment has it only with --system-site-packages)"
    assert str(missing.value).endswith(f" needs the extra '{extra}'{by}: {apt}")
    assert "\n" not in str(missing.value)


@pytest.mark.parametrize(
    ("source", "blocked"),
    [
        ("pattern", ["av", "cv2", "picamera2"]),
        ("usb:97", ["PIL", "av", "picamera2"]),
        ("file:none", ["PIL", "cv2", "picamera2"]),
    ],
)
@pytest.mark.usefixtures("forgotten")
def test_a_camera_needs_no_other_ones_library(source: str, blocked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for library in blocked:
        monkeypatch.setitem(sys.modules, library, None)
    assert callable(cameras.opener(source, name="pi1", size=(640, 480), fps=30, quality=85))


@pytest.mark.usefixtures("forgotten", "no_jpeg_library")
def test_a_video_for_which_there_is_no_jpeg_library_is_refused_at_once() -> None:
    with pytest.raises(MissingExtraError, match=r"^decoding or encoding JPEG needs the extra 'opencv'"):
        cameras.opener("file:none", name="pi1", size=(640, 480), fps=30, quality=85)


@pytest.mark.parametrize("device", [0, 12, "/dev/v4l/by-id/door"])
def test_usb_camera_is_opened_by_its_number_or_its_path(device: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    monkeypatch.setattr(opencv, "UsbCamera", lambda *arguments: opened.extend(arguments))
    cameras.opener(f"usb:{device}", name="pi1", size=(640, 480), fps=30, quality=85)()
    assert opened == [device, (640, 480), 30, 85]


def test_a_video_in_ones_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    video = Path(write_video(tmp_path)).name
    with cameras.opener(f"file:~/{video}", name="pi1", size=(64, 48), fps=10, quality=85)() as camera:
        assert isinstance(camera, VideoFile)
    with pytest.raises(CameraError, match=r"^file:~no\.such/a\.avi: there is no such file$"):
        cameras.opener("file:~no.such/a.avi", name="pi1", size=(64, 48), fps=10, quality=85)()


@pytest.mark.parametrize(("source", "kind"), [("pattern", Pattern), ("file:VIDEO", VideoFile)])
def test_opener_opens_again_and_again(source: str, kind: type, tmp_path: Path, clock: Clock) -> None:
    source = source.replace("VIDEO", write_video(tmp_path, size=(320, 240)))
    open_camera = cameras.opener(source, name="pi1", size=(320, 240), fps=10, quality=85)
    for _ in range(2):
        began = clock.now
        with open_camera() as camera:
            assert isinstance(camera, kind)
            sizes = {codec.jpeg_size(camera.read()[0]) for _ in range(3)}
        assert sizes == {(320, 240)}
        assert clock.now - began == pytest.approx(2 / 10)
