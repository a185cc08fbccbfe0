"""USB cameras, through OpenCV (V4L2 on Linux)."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import TYPE_CHECKING

from streamer import codec
from streamer.cameras import mjpeg, v4l2
from streamer.clock import WallClock
from streamer.errors import CameraError, CodecError, MissingExtraError

try:
    import cv2
except ImportError as error:
    raise MissingExtraError("a camera 'usb:'", "opencv", "python3-opencv", error) from error

if TYPE_CHECKING:
    from typing import Self

_WARM_UP_S = 1.0  # exposure and white balance settle
_NO_PICTURE_S = 5.0
_TELL_S = 1.0
_STAMP_AGE_MAX_NS = 10_000_000_000
_RATE_TOLERANCE = 0.01  # 29.97 is 30
_JPEGS = ("MJPG", "JPEG")
_log = logging.getLogger(__name__)

# OpenCV's own warnings bypass logging; what matters is raised as CameraError.
if hasattr(cv2.utils, "logging"):  # Debian's build has no such module
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# A single picture is too little work for several cores, and idle workers spin.
cv2.setNumThreads(1)


class UsbCamera:
    """A USB camera.

    A camera's own JPEGs (MJPG), at its own quality, are passed on without being decoded. Other formats are converted by
    OpenCV and encoded here.

    Args:
        device: 0 for /dev/video0, or a path, such as /dev/v4l/by-id/….
        size: (width, height) in pixels; the camera may use the nearest size that it has.
        fps: frames per second, rounded to a whole number; the camera may use the nearest rate that it has.
        quality: of JPEGs encoded here, 1 to 100.

    Raises:
        CameraError: there is no such camera, or it is in use, denied, or gives no picture.
    """

    def __init__(self, device: int | str, size: tuple[int, int], fps: float, quality: int) -> None:
        self._source = f"usb:{device}"
        self._quality = quality
        self._wall = WallClock(time.monotonic_ns)
        self.damaged = 0  # incomplete pictures dropped so far
        self._told_damaged, self._told_at = 0, time.monotonic()
        if sys.platform == "linux":
            path = device if isinstance(device, str) else f"/dev/video{device}"
            v4l2.check(self._source, path)
            # Explicitly V4L2: Debian's OpenCV would try GStreamer first, which supports none of the settings below.
            self._capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
        else:
            self._capture = cv2.VideoCapture(device)
        if not self._capture.isOpened():
            raise CameraError(f"{self._source}: has no picture format that OpenCV reads, or has just been taken")
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        # One is filled while the other is read: with a single one, the camera would miss every second picture.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 2)
        # Last: each of the above restarts the device, and OpenCV 4 would ask 30000 fps of one at 30000/1001.
        self._capture.set(cv2.CAP_PROP_FPS, max(1, round(fps)))
        fourcc = int(self._capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF
        self._format = fourcc.to_bytes(4, "little").decode("latin-1")
        # Without conversion OpenCV's V4L2 returns the buffer's bytes, as an array of one row.
        self._passes_on = (
            sys.platform == "linux" and self._format in _JPEGS and self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        )
        ready = time.monotonic() + _WARM_UP_S
        try:
            while time.monotonic() < ready:
                self.read()
        except CameraError:
            self._capture.release()
            raise
        self._tell(size, fps)

    def read(self) -> tuple[bytes, int]:
        """Wait for the next complete picture; return (JPEG, wall clock in ns when the camera began to send it).

        Raises:
            CameraError: the camera gives no more pictures.
        """
        give_up = time.monotonic() + _NO_PICTURE_S
        while time.monotonic() < give_up:
            if not self._capture.grab():
                raise CameraError(f"{self._source}: gives no picture; was it unplugged?")
            captured_ns = self._captured_ns()
            found, image = self._capture.retrieve()
            try:
                if not found or image is None:  # None is an empty buffer
                    raise CodecError("empty, or cannot be decoded")
                if self._passes_on:
                    return mjpeg.to_jpeg(image.tobytes()), captured_ns
                return codec.encode_jpeg(image, self._quality), captured_ns  # type: ignore[arg-type]
            except CodecError as error:
                self._drop(error)
        raise CameraError(f"{self._source}: gives only damaged pictures; is its cable or hub too slow?")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def _captured_ns(self) -> int:
        """Return V4L2's timestamp of the picture, which is on the monotonic clock, on the wall clock."""
        stamp_ns = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
        age_ns = time.monotonic_ns() - stamp_ns
        # A driver may have another clock, or none.
        return self._wall.at(stamp_ns) if 0 <= age_ns < _STAMP_AGE_MAX_NS else time.time_ns()

    def _drop(self, error: CodecError) -> None:
        self.damaged += 1
        if time.monotonic() - self._told_at >= _TELL_S:
            count = self.damaged - self._told_damaged
            _log.warning("%s: %d damaged pictures dropped, the last: %s", self._source, count, error)
            self._told_damaged, self._told_at = self.damaged, time.monotonic()

    def _tell(self, size: tuple[int, int], fps: float) -> None:
        """Log what the camera uses, and where that is not what was asked for."""
        how = "passed on as it comes" if self._passes_on else f"encoded at quality {self._quality}"
        _log.info("%s: %s, %s", self._source, self._format.strip("\0 ") or "pictures", how)
        width, height = (int(self._capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        if not 0 < rate < math.inf:  # it does not say
            rate = fps
        if (width, height) != tuple(size) or abs(rate - fps) > _RATE_TOLERANCE * fps:
            _log.warning(
                "%s: gives %dx%d at %.4g frames/s, %dx%d at %.4g was asked for",
                self._source,
                width,
                height,
                rate,
                *size,
                fps,
            )
