"""The frame: one picture of one camera, and its metadata."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from streamer import codec

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from streamer.codec import Image

Value = TypeVar("Value")

# JPEG quality when a raw array is encoded; OpenCV's default.
RAW_JPEG_QUALITY = 95


class _Kept(Generic[Value]):
    """An attribute that is made on first access and kept in its frame's `__dict__`. Thread-safe: one result stays.

    Python 3.11's `functools.cached_property` has a lock for all frames together: while the array of one camera was
    encoded, nobody got the JPEG of another.
    """

    def __init__(self, make: Callable[[Frame], Value]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, frame: None, owner: type[Frame]) -> Self: ...

    @overload
    def __get__(self, frame: Frame, owner: type[Frame]) -> Value: ...

    def __get__(self, frame: Frame | None, owner: type[Frame]) -> Self | Value:
        if frame is None:
            return self
        value: Value = vars(frame).setdefault(self._name, self._make(frame))
        return value


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture as the hub received it. Immutable; pickling copies the payload.

    Attributes:
        camera: name of the camera, as its sender gave it; imagezmq programs send their host's name.
        payload: the bytes as received, not copied: a JPEG, or a C-contiguous array.
        width: in pixels.
        height: in pixels.
        received_ns: when the hub received it: the hub's wall clock, in ns since 1970.
        dtype: numpy's name for a raw array's type; None for a JPEG.
        shape: of a raw array, (height, width) or (height, width, channels); None for a JPEG.
        seq: counts the frames sent to this hub, from 0; None from a stock imagezmq sender.
        start: random id of the sender's start, or None.
        captured_ns: when the sensor was read: the sender's wall clock, in ns since 1970; or None.
        dropped: how many frames the sender has skipped so far, or None.
        every_s: the intended interval between frames, in seconds, or None.
        release: the release the sender runs, or None.
        offset_ns: how far the hub's wall clock is ahead of the sender's (negative: behind), in ns, as measured by the
            sender; None while unknown.
        offset_error_ns: the largest error of `offset_ns`, either way, in ns; None with `offset_ns`.
        wants_clock: whether the sender asks for the hub's clock.
    """

    camera: str
    payload: bytes | memoryview
    width: int
    height: int
    received_ns: int
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    seq: int | None = None
    start: str | None = None
    captured_ns: int | None = None
    dropped: int | None = None
    every_s: float | None = None
    release: str | None = None
    offset_ns: int | None = None
    offset_error_ns: int | None = None
    wants_clock: bool = False

    @classmethod
    def of(cls, attributes: dict[str, Any]) -> Frame:
        """Make a frame of a dict with all its attributes, which it keeps: the fast path, for thousands a second.

        A frozen dataclass's `__init__` takes three times as long: it calls `object.__setattr__` for each field.
        """
        frame = cls.__new__(cls)
        object.__setattr__(frame, "__dict__", attributes)
        return frame

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"payload": bytes(self.payload)}

    @property
    def is_jpeg(self) -> bool:
        """Whether the payload is a JPEG, not a raw array."""
        return self.dtype is None

    @property
    def latency_ns(self) -> int | None:
        """Time from sensor to hub, in ns, accurate to `offset_error_ns`.

        None where it is unknown: the sender did not say when it captured the frame, or has not measured the hub's clock
        yet; or a clock was set meanwhile, so that the frame seems to have arrived before it was captured.
        """
        if self.captured_ns is None or self.offset_ns is None or self.offset_error_ns is None:
            return None
        latency_ns = self.received_ns - self.captured_ns - self.offset_ns
        return max(0, latency_ns) if latency_ns >= -self.offset_error_ns else None

    @_Kept
    def jpeg(self) -> bytes | memoryview:
        """The picture as a JPEG: the sender's own bytes, or the raw array encoded on first access.

        Raises:
            CodecError: the raw array cannot be a JPEG (not uint8, or not 1, 3 or 4 channels).
            MissingExtraError: no JPEG library is installed.
        """
        return self.payload if self.is_jpeg else codec.encode_jpeg(self.image, RAW_JPEG_QUALITY)

    @_Kept
    def image(self) -> Image:
        """The picture as an array, decoded on first access.

        Returns:
            For a JPEG, uint8 of shape (height, width, 3), BGR; for a raw array, a read-only view of the payload.

        Raises:
            CodecError: the JPEG is damaged.
            MissingExtraError: no JPEG library is installed.
        """
        if self.is_jpeg:
            return codec.decode_jpeg(self.payload)
        import numpy as np

        payload = memoryview(self.payload).toreadonly()  # it is shared
        image: Image = np.frombuffer(payload, self.dtype).reshape(self.shape or ())
        return image
