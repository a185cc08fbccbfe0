"""Decoded pictures of many cameras: a few threads decode the newest frames, one at a time per camera.

JPEG libraries release the GIL, so threads can use every core. A camera occupies at most one of them, so that it delays
no other and its pictures stay in order. Frames wait in newest-only mailboxes, before decoding and after it. On a single
core this costs some 10 % more than decoding each frame by its `image`.

Measured and rejected: `fastdct` and `fastupsample` (6 % faster together, visibly worse); one reused output buffer (2 %
faster, but nobody could keep a picture); scaling to three quarters (slower in libjpeg than full size). At quality 95
most of the time is entropy decoding, which every size needs.
"""

from __future__ import annotations

import atexit
import logging
import operator
import os
import threading
from typing import TYPE_CHECKING

from streamer.codec import decode_jpeg
from streamer.errors import CodecError, ConfigError, TransportError
from streamer.mailbox import Mailbox
from streamer.refusals import Reminders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self

    from streamer.codec import Image
    from streamer.frame import Frame
    from streamer.hub import Hub

# A single thread could be taken up by one camera with large pictures; more than four gain nothing.
_THREADS = min(4, max(2, os.cpu_count() or 2))
_LEAVE_S = 1.0
_log = logging.getLogger(__name__)


class Pictures:
    """Decodes the newest frames of a hub in threads of its own.

    Args:
        hub: where the frames come from.
        at_least: (width, height) in pixels that is large enough: a JPEG at least twice that size may be decoded scaled
            down, which is faster, but never below it. None decodes every picture at its own size.
        cameras: names of the cameras to decode; None for all.
        decode: instead of `at_least`, a function that makes the picture of a frame: it may return None where no picture
            is wanted, or raise CodecError. Called from several threads, but from one at a time per camera.
        threads: how many threads decode; by default one per core, from two to four.

    Raises:
        ConfigError: `at_least` is not such a pair, or `threads` not positive.
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
        if not isinstance(threads, int) or threads < 1:
            raise ConfigError(f"threads is {threads!r}: it must be a number from 1")
        self._decode = decode or (lambda frame: decoded(frame, at_least))
        self._complaints = Reminders()  # by camera
        self._hub = hub
        self._process = os.getpid()
        self._failure: Exception | None = None
        self._decoded: Mailbox[tuple[Frame, Image | None]] = Mailbox()
        self._frames = hub.open_mailbox(cameras)
        self._threads = [threading.Thread(target=self._run, name=f"decode-{at}", daemon=True) for at in range(threads)]
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # the system allows no more: end those that it has
            hub.close_mailbox(self._frames)
            raise
        atexit.register(self._end, _LEAVE_S)  # a thread that returns from OpenCV later than that aborts the process

    def take(self, timeout_s: float | None = 0.0) -> tuple[Frame, Image | None] | None:
        """Remove and return the newest decoded picture of the camera that has waited longest.

        Args:
            timeout_s: how long to wait for one, in seconds; None waits until there is one or the hub is closed.

        Returns:
            (frame, picture); None on timeout, or when the hub is closed. The picture is uint8 of shape (height, width,
            3), BGR, or the raw array as sent; None if the frame is damaged, which is logged, at most once a minute for
            each camera.

        Raises:
            TransportError: receiving has failed for good; or these belong to a process that this one was forked from.
            MissingExtraError: no JPEG library is installed.
        """
        if self._process != os.getpid():
            raise TransportError("the pictures were made before this process was forked: make a hub and them in each")
        taken = self._decoded.take(timeout_s)
        if taken is None and self._failure:
            raise self._failure
        if taken is None:
            self._hub.check_failure()
        return taken

    def __iter__(self) -> Iterator[tuple[Frame, Image]]:
        """Yield (frame, picture) as they are decoded, skipping damaged frames, until the hub is closed.

        Raises:
            TransportError: receiving has failed for good; or these belong to a process that this one was forked from.
            MissingExtraError: no JPEG library is installed.
        """
        while (taken := self.take(None)) is not None:
            frame, image = taken
            if image is not None:
                yield frame, image

    def close(self) -> None:
        """Stop the threads, each after its current picture."""
        atexit.unregister(self._end)
        self._end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, within_s: float | None) -> None:
        """Stop the threads, waiting at most `within_s` seconds for each."""
        self._hub.close_mailbox(self._frames)
        for thread in self._threads:
            thread.join(within_s)

    def _run(self) -> None:
        """Run one of the threads."""
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
            if self._complaints.is_due(frame.camera):
                _log.warning("%s: %s", frame.camera, error)
            return None


def _check_size(at_least: tuple[int, int]) -> None:
    try:
        width, height = map(operator.index, at_least)
        if width > 0 and height > 0:
            return
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"at_least is {at_least!r}: it must be (width, height) in pixels, as in (320, 240)")


def decoded(frame: Frame, at_least: tuple[int, int] | None) -> Image:
    """Return a frame's picture, a JPEG scaled down as by `decode_jpeg`.

    Raises:
        CodecError: the JPEG is damaged.
        MissingExtraError: no JPEG library is installed.
    """
    return decode_jpeg(frame.payload, at_least) if frame.is_jpeg and at_least else frame.image
