"""Cameras through OpenCV: USB cameras (V4L2 on Linux) and video files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from streamer import codec
from streamer.errors import CameraError, MissingExtraError

try:
    import cv2
except ImportError as error:
    raise MissingExtraError("a camera 'usb:' or 'file:'", "opencv", "python3-opencv") from error

if TYPE_CHECKING:
    from typing import Self

    from streamer.codec import Image

_WARM_UP_S = 1.0  # exposure and white balance settle
_STALL_S = 1.0

# OpenCV's own warnings go to stderr past logging; what matters of them is raised as CameraError.
if hasattr(cv2.utils, "logging"):  # Debian's build has no such module
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# One picture is too small a work to be shared among cores, and idle workers spin.
cv2.setNumThreads(1)


class UsbCamera:
    """A USB camera.

    Args:
        index: of the device, 0 for /dev/video0.
        size: (width, height) in pixels; the camera may give the nearest that it has.
        fps: frames per second that are asked of it.
        quality: of the JPEG, 1 to 100.

    Raises:
        CameraError: there is no such camera, or it is taken, or gives no picture.
    """

    def __init__(self, index: int, size: tuple[int, int], fps: float, quality: int) -> None:
        self._source = f"usb:{index}"
        self._quality = quality
        device = Path(f"/dev/video{index}")
        if Path("/dev").is_dir() and Path("/sys/class").is_dir() and not device.exists():
            raise CameraError(f"{self._source}: there is no {device}")
        self._capture = cv2.VideoCapture(index)
        if not self._capture.isOpened():
            raise CameraError(f"{self._source}: cannot be opened; is it a camera, in use, or not allowed to this user?")
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        self._capture.set(cv2.CAP_PROP_FPS, fps)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        ready = time.monotonic() + _WARM_UP_S
        try:
            while time.monotonic() < ready:
                self.read()
        except CameraError:
            self._capture.release()
            raise

    def read(self) -> tuple[bytes, int]:
        """Wait for the next picture and return (JPEG, wall clock in ns).

        Raises:
            CameraError: the camera gives none any more.
        """
        if not self._capture.grab():
            raise CameraError(f"{self._source}: gives no picture; was it unplugged?")
        captured_ns = time.time_ns()
        found, image = self._capture.retrieve()
        if not found:
            raise CameraError(f"{self._source}: gives pictures that cannot be decoded")
        return codec.encode_jpeg(image, self._quality), captured_ns  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()


class VideoFile:
    """A video file as a camera: played at its own rate, again and again.

    Args:
        path: of the file.
        size: (width, height) that the picture is fitted into, keeping its proportions.
        fps: frames per second at most; the file plays at its own speed whatever it is.
        quality: of the JPEG, 1 to 100.

    Raises:
        CameraError: it is not there, or no video.
    """

    def __init__(self, path: str, size: tuple[int, int], fps: float, quality: int) -> None:
        self._source = f"file:{path}"
        self._size = size
        self._quality = quality
        if not Path(path).is_file():
            raise CameraError(f"{self._source}: there is no such file")
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise CameraError(f"{self._source}: is no video that OpenCV can read")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._interval_s = 1 / rate if 0 < rate <= 1000 else 1 / fps
        self._wanted_interval_s = 1 / fps
        self._next = time.monotonic()
        self._next_wanted = self._next
        self._rewound = True

    def read(self) -> tuple[bytes, int]:
        """Wait until the next picture is due, and return (JPEG, wall clock in ns).

        Raises:
            CameraError: the file gives no pictures.
        """
        while True:
            self._advance()
            due = self._next
            self._next += self._interval_s
            # Half an interval of tolerance, so that a file at the wanted rate loses no frame to rounding.
            if due < self._next_wanted - self._interval_s / 2:
                continue
            self._next_wanted = max(self._next_wanted + self._wanted_interval_s, due)
            found, image = self._capture.retrieve()
            if not found:
                raise CameraError(f"{self._source}: has a picture that cannot be decoded")
            now = time.monotonic()
            if due > now:
                time.sleep(due - now)
            elif now - due > _STALL_S:  # suspended, or short of CPU: no burst to catch up
                self._next = self._next_wanted = now
            return codec.encode_jpeg(self._fitted(image), self._quality), time.time_ns()  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def _advance(self) -> None:
        """Go to the next picture, from the last to the first."""
        if self._capture.grab():
            self._rewound = False
            return
        if self._rewound:
            raise CameraError(f"{self._source}: has no pictures")
        self._rewound = True
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
        self._advance()

    def _fitted(self, image: Image) -> Image:
        height, width = image.shape[:2]
        scale = min(self._size[0] / width, self._size[1] / height)
        if scale == 1:
            return image
        # Even sides, since 4:2:0 halves them.
        target = max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        return cv2.resize(image, target, interpolation=how)  # type: ignore[return-value]
