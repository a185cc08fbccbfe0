"""Video files as cameras, through PyAV, the Python of FFmpeg's libraries."""

from __future__ import annotations

import logging
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamer import codec
from streamer.errors import CameraError, MissingExtraError

try:
    import av
    import numpy as np
except ImportError as error:
    raise MissingExtraError("a camera 'file:'", "video", "python3-av", error) from error
codec.library()  # at once, rather than with the first picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from av.container import InputContainer

    from streamer.codec import Image

_STALL_S = 1.0
_log = logging.getLogger(__name__)

# FFmpeg's own messages are many; what matters is raised as CameraError.
av.logging.set_level(av.logging.PANIC)


class VideoFile:
    """A video file as a camera, played at its own speed in a loop.

    Args:
        path: of the file.
        size: (width, height) in pixels to scale the picture to fit, keeping its proportions.
        fps: the most frames per second; it does not change the speed.
        quality: of the JPEG, 1 to 100.

    Raises:
        CameraError: it is not there, or no video.
    """

    def __init__(self, path: str, size: tuple[int, int], fps: float, quality: int) -> None:
        self._source = f"file:{path}"
        self._path = path
        self._size = size
        self._quality = quality
        self._container = self._open()
        rate = self._container.streams.video[0].average_rate
        self._interval_s = float(1 / rate) if rate and 0 < rate <= 1000 else 1 / fps
        self._wanted_interval_s = 1 / fps
        self._frames = self._decode()
        self._next = time.monotonic()
        self._next_wanted = self._next

    def read(self) -> tuple[bytes, int]:
        """Wait until the next picture is due, and return (JPEG, wall clock in ns).

        Raises:
            CameraError: the file gives no pictures.
        """
        for frame in self._frames:
            due = self._next
            self._next += self._interval_s
            if due < self._next_wanted:
                continue
            self._next_wanted += self._wanted_interval_s
            now = time.monotonic()
            if due > now:
                time.sleep(due - now)
            elif now - due > _STALL_S:  # suspended, or short of CPU: no burst to catch up
                self._next = self._next_wanted = now
            return codec.encode_jpeg(self._fitted(frame), self._quality), time.time_ns()
        raise CameraError(f"{self._source}: has no pictures")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _open(self) -> InputContainer:
        if why := _why_closed(Path(self._path)):
            raise CameraError(f"{self._source}: {why}")
        try:
            container = _open(self._path)
        except av.FFmpegError as error:
            raise CameraError(f"{self._source}: is not a video that FFmpeg can read: {error.strerror}") from error
        if not container.streams.video:
            container.close()
            raise CameraError(f"{self._source}: has no video in it")
        return container

    def _decode(self) -> Iterator[av.VideoFrame]:
        """Decode the file in a loop; ends when it yields nothing."""
        while True:
            count = damaged = 0
            for packet in self._container.demux(self._container.streams.video[0]):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    damaged += 1
                    continue
                for frame in frames:
                    count += 1
                    yield frame
            if damaged:
                _log.warning("%s: %d damaged pictures left out", self._source, damaged)
            if not count:
                return
            # Reopened: not every kind of file can be rewound.
            self._container.close()
            self._container = self._open()

    def _fitted(self, frame: av.VideoFrame) -> Image:
        """Convert a frame to an image, upright and as large as fits."""
        quarters = round(getattr(frame, "rotation", 0) / 90) % 4  # PyAV 10 of Debian 12 does not tell
        room = self._size[::-1] if quarters % 2 else self._size
        scale = min(room[0] / frame.width, room[1] / frame.height)
        width, height = frame.width, frame.height
        if scale != 1:
            # Even sides, since 4:2:0 halves them.
            width, height = (max(2, round(side * scale / 2) * 2) for side in (width, height))
        how = "AREA" if scale < 1 else "BILINEAR"
        image = frame.to_ndarray(width=width, height=height, format="bgr24", interpolation=how)
        return np.rot90(image, quarters)


def _open(path: str) -> InputContainer:
    """Open a file, whose metadata may be in any encoding: PyAV up to 18 needs an option for that, 19 has none."""
    try:
        return av.open(path)
    except UnicodeDecodeError:
        option: dict[str, Any] = {"metadata_errors": "replace"}
        container: InputContainer = av.open(path, **option)
        return container


def _why_closed(path: Path) -> str:
    """Return why this process cannot read a file; empty if it can."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # to open a pipe could take for ever
            kind = "a directory" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
            return f"is {kind}: it must be a video file"
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except PermissionError:
        return "is not open to this user: let it read the file, and enter the directories above"
    except OSError as error:
        return str(error.strerror)
    return ""
