"""Decoded pictures of many cameras: a few threads decode the newest frames, of each camera one at a time.

JPEG libraries let other threads run while they decode, so threads are enough to use every core. A camera has at most
one of them, whatever the size of its pictures: it delays no other, and its pictures come in order. Frames that come
meanwhile wait in a newest-only mailbox, before decoding and after it. On one core alone that costs some 10 % more than
to ask each frame for its `image`.

Measured, and left out: `fastdct` and `fastupsample` (together 6 % of a decode, at visible cost); one buffer to decode
into again and again (2 %, and nobody could keep a picture); three quarters of the size (libjpeg takes longer for that
than for all of it). Of a JPEG of quality 95 most of the time goes into its entropy coding, which every size needs.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from typing import TYPE_CHECKING

from streamer.codec import decode_jpeg
from streamer.errors import CodecError, ConfigError, TransportError
from streamer.mailbox import Mailbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self

    from streamer.codec import Image
    from streamer.frame import Frame
    from streamer.hub import Hub

# Of one thread a camera with large pictures would have all; more than four gain nothing beside the hub's.
_THREADS = min(4, max(2, os.cpu_count() or 2))
_LEAVE_S = 1.0
_log = logging.getLogger(__name__)


class Pictures:
    """Takes the newest frames of a hub, decodes them in threads of its own, and gives the newest of each camera.

    Args:
        hub: whose frames.
        at_least: (width, height) in pixels that are enough: a picture more than twice as large may come out scaled
            down, never below it, which costs less than to decode all of it. None for every picture's own size.
        cameras: names to decode the frames of; None for all.
        decode: in place of `at_least`: makes a picture of a frame, or None where nobody wants one, or raises
            CodecError; called by several threads, for each camera by one at a time.
        threads: how many decode; by default one a core, from two to four.

    Raises:
        ConfigError: `at_least` is no such pair.
    """

    def __init__(
        self,
        hub: Hub,
        at_least: tuple[int, int] | None = None,
        *,
        cameras: Iterable[str] | None = None,
        decode: Callable[[Frame], Image | None] | None = None,
        threads: int = _THREADS,
    ) -> None:
        if at_least is not None:
            _check_size(at_least)
        self._decode = decode or (lambda frame: decoded(frame, at_least))
        self._complaints: dict[str, str] = {}  # of each camera, the last
        self._hub = hub
        self._failure: Exception | None = None
        self._decoded: Mailbox[tuple[Frame, Image | None]] = Mailbox()
        self._frames = hub.open_mailbox(cameras)
        self._threads = [threading.Thread(target=self._run, name=f"decode-{at}", daemon=True) for at in range(threads)]
        for thread in self._threads:
            thread.start()
        atexit.register(self._end, _LEAVE_S)  # a thread that came back from OpenCV after that would abort the program

    def take(self, timeout_s: float | None = 0.0) -> tuple[Frame, Image | None] | None:
        """Remove and return the newest decoded picture of the camera that has waited longest.

        Args:
            timeout_s: how long to wait for one, in seconds; None waits until there is one or the hub is closed.

        Returns:
            The frame and its picture, uint8 of shape (height, width, 3) in BGR, or for a raw array what was sent; or
            the frame and None when it is damaged, which is logged once for each camera and reason. None when the time
            is over or the hub is closed.

        Raises:
            TransportError: receiving has failed for good.
        """
        taken = self._decoded.take(timeout_s)
        if taken is None and self._failure:
            raise self._failure
        if taken is None and self._hub.failure:
            raise TransportError(f"the hub has failed: {self._hub.failure}")
        return taken

    def __iter__(self) -> Iterator[tuple[Frame, Image]]:
        """Yield frames with their pictures as they are decoded, without the damaged, until the hub is closed.

        Raises:
            TransportError: receiving has failed for good.
        """
        while (taken := self.take(None)) is not None:
            frame, image = taken
            if image is not None:
                yield frame, image

    def close(self) -> None:
        """End the threads, each after the picture that it is at."""
        atexit.unregister(self._end)
        self._end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, within_s: float | None) -> None:
        """End the threads, waiting for each for at most so many seconds."""
        self._hub.close_mailbox(self._frames)
        for thread in self._threads:
            thread.join(within_s)

    def _run(self) -> None:
        """Be one of the threads."""
        try:
            while (frame := self._frames.take(None, hold=True)) is not None:
                self._decoded.put(frame.camera, (frame, self._picture(frame)))
                self._frames.release(frame.camera)
        except Exception as error:  # noqa: BLE001 - raised by whoever takes
            self._failure = error
            self._hub.close_mailbox(self._frames)
        self._decoded.close()

    def _picture(self, frame: Frame) -> Image | None:
        try:
            return self._decode(frame)
        except CodecError as error:
            if str(error) != self._complaints.get(frame.camera):
                self._complaints[frame.camera] = str(error)
                _log.warning("%s: %s", frame.camera, error)
            return None


def _check_size(at_least: tuple[int, int]) -> None:
    try:
        width, height = at_least
        if width > 0 and height > 0:
            return
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"at_least is {at_least!r}: it must be (width, height) in pixels, as in (320, 240)")


def decoded(frame: Frame, at_least: tuple[int, int] | None) -> Image:
    """Return a frame's picture, of a JPEG scaled down as `decode_jpeg` does.

    Raises:
        CodecError: a damaged JPEG.
    """
    return decode_jpeg(frame.payload, at_least) if frame.is_jpeg and at_least else frame.image
