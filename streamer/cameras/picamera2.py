"""The Pi's own camera, through picamera2, which encodes the JPEGs: no raw frame is copied in Python.

`boards` knows which boards encode in hardware (`MJPEGEncoder`). On the others, picamera2's encoder of that name is one
in software that delays pictures by eight frames, so there `JpegEncoder` is used, on the YUV planes.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import itertools
import logging
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from streamer.cameras.boards import Board
from streamer.clock import WallClock
from streamer.errors import CameraError, ConfigError, MissingExtraError
from streamer.mailbox import Mailbox

try:
    import libcamera
    from picamera2 import Picamera2
    from picamera2.encoders import JpegEncoder, LibavMjpegEncoder, MJPEGEncoder
    from picamera2.outputs import Output
    from picamera2.sensor_format import SensorFormat
except ImportError as error:
    # pip's finds no libcamera, which the package index does not have.
    raise MissingExtraError("the camera 'picamera2'", "picamera2", "python3-picamera2", error, by_pip=False) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

_WARM_UP_S = 1.0  # exposure and white balance settle
_NO_FRAME_S = 5.0
_NO_FRAME_INTERVALS = 5  # for a slow camera: libcamera drops the first few frames
_END_OF_IMAGE = b"\xff\xd9"
# The hardware encoder takes a bit rate, not a quality: the bits per pixel that look about like libjpeg's quality.
_BITS_PER_PIXEL = {50: 0.8, 75: 1.3, 85: 1.9, 95: 3.6, 100: 6.0}
# The kernel's driver bcm2835-codec silently limits the bit rate to this.
_BITS_PER_S_MAX = 25_000_000
_PICTURE_BITS_MAX = 8 * 512 * 1024 * 3 // 4  # picamera2 has half a megabyte for each; some are above the mean
_RATE_TOLERANCE = 0.01  # a mode's 29.97 is 30
_AS_GOOD_AS_ALL = 0.9  # of the width: of the size, and of what could be seen
_RATE_CONTROLS = ("FrameDurationLimits", "FrameRate")
_log = logging.getLogger(__name__)


class _Newest(Output):  # type: ignore[misc]
    """Keeps the newest picture. Called with the encoder's lock held, so it must be quick."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox: Mailbox[tuple[bytes, int]] = Mailbox()

    def outputframe(
        self,
        frame: bytes,
        keyframe: bool = True,  # noqa: ARG002, FBT001, FBT002 - picamera2's signature
        timestamp: int | None = None,
        packet: object = None,  # noqa: ARG002
        audio: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        if not audio:
            self.mailbox.put("", (frame, timestamp or 0))


class PiCamera:
    """The camera on the Pi's ribbon cable.

    Args:
        size: (width, height) in pixels.
        fps: frames per second.
        quality: of the JPEG, 1 to 100.
        hflip: mirror left to right.
        vflip: mirror top to bottom.
        rotate: by 0 or 180 degrees, in addition to that.
        controls: (name, value) of libcamera's controls; the value of an enumeration may be a member's name.
        encoder: `hardware`, `software`, or `auto` for what is best on this board.

    Raises:
        CameraError: there is no camera, or another program uses it.
        ConfigError: the camera lacks a control or value, or cannot turn its picture; or the board lacks the encoder.
    """

    def __init__(
        self,
        size: tuple[int, int],
        fps: float,
        quality: int,
        *,
        hflip: bool = False,
        vflip: bool = False,
        rotate: int = 0,
        controls: Sequence[tuple[str, object]] = (),
        encoder: str = "auto",
    ) -> None:
        self._interval_s = 1 / fps
        board = Board.here()
        in_hardware = board.uses_hardware(encoder, size)
        if in_hardware and MJPEGEncoder is LibavMjpegEncoder:
            if encoder == "hardware":
                raise ConfigError("encoder is 'hardware': picamera2 finds none here: it must be auto or software")
            in_hardware = False
        how, level = "JPEG in software", logging.INFO
        if in_hardware:
            how, reached = "MJPEG in hardware", _quality_in_hardware(size, fps, quality)
            if reached < quality and encoder == "auto":
                in_hardware, how = False, f"JPEG in software: in hardware its quality would be {reached or 'under 50'}"
            elif reached < quality:
                how += f", which has bits for quality {reached or 'under 50'}, {quality} was asked for"
                level = logging.WARNING
        found = Picamera2.global_camera_info()
        # USB cameras, which it lists last, give no pictures that its encoders take.
        if all("/usb" in each["Id"] for each in found):
            # libcamera enumerates cameras once; without this it would never see one that was in use or not ready then.
            Picamera2._cm.reset()
            usb = " but one by USB, which 'usb:' is for" if found else ""
            raise CameraError(f"picamera2: no camera found{usb}; is the ribbon cable in, and the right way round?")
        try:
            self._camera: Any = Picamera2()
        except (RuntimeError, IndexError) as error:
            raise CameraError(f"picamera2: {error}; does another program use the camera?") from error
        self._newest = _Newest()
        self._wall = WallClock(partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME))
        self._encoder: Any = (
            MJPEGEncoder(bitrate=min(_bit_rate(size, fps, quality), _most_bits(fps)))
            if in_hardware
            else JpegEncoder(num_threads=2, q=quality)
        )
        try:
            self._configure(
                size, fps, libcamera.Transform(hflip=hflip != (rotate == 180), vflip=vflip != (rotate == 180))
            )
            self._camera.set_controls(dict(self._checked(controls, fps)))
            self._camera.start_recording(self._encoder, self._newest)
            ready = time.monotonic() + _WARM_UP_S
            while time.monotonic() < ready:
                self.read()
        except (RuntimeError, OSError, TypeError, ValueError) as error:  # the last two: of a control's value
            self.__exit__()
            why: object = error
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:  # of the part that is set aside for cameras
                why = f"no memory for pictures of {size[0]}x{size[1]} on {board.name}: a smaller size needs less"
            raise CameraError(f"picamera2: {why}") from error
        except (CameraError, ConfigError):
            self.__exit__()
            raise
        _log.log(level, "picamera2: %s, %s", board.name, how)

    def _configure(self, size: tuple[int, int], fps: float, transform: Any) -> None:
        plan = partial(
            self._camera.create_video_configuration,
            main={"size": size, "format": "YUV420"},
            # Nobody reads the sensor's own pictures: without a stream of them they take the least memory, of which a
            # Zero 2 W has 64 MB for cameras.
            raw=None,
            controls={"FrameRate": fps},
            transform=transform,
            # JFIF's: for video it is one whose black is 16 and whose white 235, and no encoder converts that.
            colour_space=libcamera.ColorSpace.Sycc(),
        )
        self._camera.configure(plan(sensor=self._widest_mode(plan, size, fps)))
        given = self._camera.camera_configuration()
        if (given["transform"].hflip, given["transform"].vflip) != (transform.hflip, transform.vflip):
            raise ConfigError(f"hflip, vflip or rotate is set, but {self._model} cannot turn its picture")
        if tuple(given["main"]["size"]) != tuple(size):
            _log.warning("picamera2: gives %dx%d, %dx%d was asked for", *given["main"]["size"], *size)

    def _widest_mode(self, plan: Callable[..., Any], size: tuple[int, int], fps: float) -> dict[str, Any]:
        """Find the mode of the sensor that sees the most, of those that give the size and the rate.

        picamera2 by itself takes the one nearest to the size, which may see the middle alone: 640x480 of an imx219 four
        tenths of its width. Its own list of modes, `sensor_modes`, takes more memory than a Zero 2 W has.
        """
        properties = self._camera.camera_properties
        if "ColorFilterArrangement" not in properties:  # by which picamera2 tells what is no Pi's camera
            return {}
        formats = self._camera.camera.generate_configuration([libcamera.StreamRole.Raw]).at(0).formats
        modes = [
            {"output_size": (mode.width, mode.height), "bit_depth": SensorFormat(str(pixels)).bit_depth}
            for pixels in formats.pixel_formats
            for mode in formats.sizes(pixels)
        ]
        whole = properties["PixelArraySize"]
        enough = _AS_GOOD_AS_ALL * size[0]
        most = (enough, fps, _width_within(whole, size))
        best, found, seen = (0.0, 0.0, 0.0), {}, whole
        # Of equals the smallest, which is the least work, and of these the deepest.
        for mode in sorted(modes, key=lambda each: (math.prod(each["output_size"]), -each["bit_depth"])):
            try:
                self._camera.configure(plan(sensor=mode))
            except RuntimeError:  # not on this board
                continue
            has = self._camera.camera_controls
            rate, crop = 1_000_000 / has["FrameDurationLimits"][0], has["ScalerCrop"][1][2:]
            gives = (
                min(enough, _width_within(mode["output_size"], size)),
                fps if rate * (1 + _RATE_TOLERANCE) >= fps else rate,
                _width_within(crop, size),
            )
            if gives > best:
                best, found, seen = gives, mode, crop
            if best == most:
                break
        if found and best[1] < fps:
            _log.warning("picamera2: gives %dx%d at %.4g frames/s, %.4g was asked for", *size, best[1], fps)
        if found and best[2] < _AS_GOOD_AS_ALL * most[2]:
            _log.warning(
                "picamera2: %s sees %dx%d of its %dx%d pixels: no mode that sees more gives %dx%d at %.4g frames/s",
                *(self._model, *seen, *whole, *size, best[1]),
            )
        return found

    @property
    def _model(self) -> str:
        return f"the camera {self._camera.camera_properties.get('Model', 'here')}"

    def _checked(self, controls: Sequence[tuple[str, object]], fps: float) -> Iterator[tuple[str, object]]:
        """Check controls against those of the camera, whose ranges depend on its configuration."""
        offered = {each: has for each, has in self._camera.camera_controls.items() if each not in _RATE_CONTROLS}
        # As rpicam-apps does: picamera2 leaves a lens that could focus where it is, at a metre. An AfMode of the user's
        # replaces this one.
        if "AfMode" in offered and "LensPosition" not in dict(controls):
            yield "AfMode", libcamera.controls.AfModeEnum.Continuous
        for name, value in controls:
            if name in _RATE_CONTROLS:
                raise ConfigError(f"controls: {name} follows from fps: set that")
            if name not in offered:
                near = difflib.get_close_matches(name, offered, 1)
                hint = f"did you mean {near[0]}?" if near else f"it has: {', '.join(sorted(offered))}"
                raise ConfigError(f"controls: {self._model} has no control {name}; {hint}")
            low, high, _ = offered[name]
            if name == "ExposureTime":  # libcamera would silently shorten a longer one
                high = min(high, int(1_000_000 / fps))
            yield name, _control_value(name, value, low, high)

    def read(self) -> tuple[bytes, int]:
        """Wait for the next picture; return (JPEG, wall clock in ns when the sensor was read).

        Raises:
            CameraError: the camera has stopped.
        """
        patience_s = max(_NO_FRAME_S, _NO_FRAME_INTERVALS * self._interval_s)
        newest = self._newest.mailbox.take(patience_s)
        if newest is None:
            raise CameraError(f"picamera2: no picture for {patience_s:g} s")
        jpeg, timestamp_us = newest
        if not jpeg.endswith(_END_OF_IMAGE):  # the hardware may pad
            jpeg = jpeg[: jpeg.rfind(_END_OF_IMAGE) + 2]
        # The sensor's timestamps count from boot, picamera2's from its first frame.
        return jpeg, self._wall.at(((self._encoder.firsttimestamp or 0) + timestamp_us) * 1000)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Even if the camera never started: its encoder may have, and has threads.
        with contextlib.suppress(RuntimeError):  # the encoder failed to start
            self._camera.stop_recording()
        self._camera.close()


def _width_within(area: tuple[int, int], shape: tuple[int, int]) -> float:
    """Give the width of the largest rectangle of a shape within an area; both are (width, height)."""
    return min(area[0], area[1] * shape[0] / shape[1])


def _bit_rate(size: tuple[int, int], fps: float, quality: int) -> int:
    """Convert a JPEG quality to bits per second, by linear interpolation in the table."""
    bits = _BITS_PER_PIXEL[50]
    for (low, low_bits), (high, high_bits) in itertools.pairwise(_BITS_PER_PIXEL.items()):
        if quality >= low:
            bits = low_bits + (quality - low) / (high - low) * (high_bits - low_bits)
    return int(size[0] * size[1] * fps * bits)


def _most_bits(fps: float) -> int:
    """Return the most bits per second that the board's encoder can produce."""
    return int(min(_BITS_PER_S_MAX, _PICTURE_BITS_MAX * fps))


def _quality_in_hardware(size: tuple[int, int], fps: float, quality: int) -> int:
    """Return the best quality, up to `quality`, that the board's encoder has the bits for; 0 if there is none."""
    return next((each for each in range(quality, 0, -1) if _bit_rate(size, fps, each) <= _most_bits(fps)), 0)


def _control_value(name: str, value: Any, low: Any, high: Any) -> Any:
    """Check and convert a control's value, from `low` to `high`, which also tell its type."""
    if members := _members(name, low, high):
        if value is False and "Off" in members:  # how YAML reads the bare word Off
            value = "Off"
        if isinstance(value, str) and value in members:
            return members[value]
        if isinstance(value, bool) or value not in map(int, members.values()):
            raise ConfigError(f"controls: {name} is {value!r}: it must be {_either(list(members))}")
        return value
    if isinstance(low, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"controls: {name} is {value!r}: it must be true or false")
        return value
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return value  # a rectangle, say, which libcamera clips
    whole = isinstance(low, int)
    for number in value if isinstance(value, tuple) else (value,):
        if (
            isinstance(number, bool)
            or not isinstance(number, int if whole else int | float)
            or not low <= number <= high
        ):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"controls: {name} is {value!r}: it must be {kind} from {low:.7g} to {high:.7g}")
    return value


def _members(name: str, low: Any, high: Any) -> dict[str, Any]:
    """Return the enumeration members of a control that the camera supports, by name; none for a plain number."""
    for place in (libcamera.controls, *(getattr(libcamera.controls, each, None) for each in ("draft", "rpi"))):
        if enumeration := getattr(place, f"{name}Enum", None):
            return {word: member for word, member in enumeration.__members__.items() if low <= int(member) <= high}
    return {}


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
