"""Cameras: one file per source, each imported only when it is chosen."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


class Camera(Protocol):
    """A source of JPEGs at a rate of its own. The constructor opens it; leaving its `with` block closes it."""

    def read(self) -> tuple[bytes, int]:
        """Wait for the next picture.

        Returns:
            (JPEG, when it was captured: wall clock, in ns since 1970)

        Raises:
            CameraError: the camera has failed, and must be opened again.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def opener(
    source: str, *, name: str, size: tuple[int, int], fps: float, quality: int, **pi: Any
) -> Callable[[], Camera]:
    """Import what a source needs, and return a function that opens it, again whenever the camera has failed.

    Args:
        source: `picamera2`, `usb:N`, `usb:/dev/PATH`, `file:PATH` or `pattern`.
        name: shown on the test card.
        size: (width, height) in pixels.
        fps: frames per second that are wanted.
        quality: of the JPEG, 1 to 100.
        pi: further arguments of `PiCamera`; the others ignore them.

    Returns:
        A function that opens the camera, or raises CameraError, or ConfigError if the camera cannot do what is set.

    Raises:
        MissingExtraError: its library is not installed.
    """
    kind, _, argument = source.partition(":")
    match kind:
        case "picamera2":
            from streamer.cameras.picamera2 import PiCamera

            return partial(PiCamera, size, fps, quality, **pi)
        case "usb":
            from streamer.cameras.opencv import UsbCamera

            device = int(argument) if argument.isdecimal() else argument
            return partial(UsbCamera, device, size, fps, quality)
        case "file":
            from streamer.cameras.video import VideoFile

            # No shell expands `~` behind a colon. pathlib's raises where there is no such user.
            return partial(VideoFile, os.path.expanduser(argument), size, fps, quality)  # noqa: PTH111
        case _:
            from streamer.cameras.pattern import Pattern

            return partial(Pattern, name, size, fps, quality)
