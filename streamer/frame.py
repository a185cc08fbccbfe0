"""The frame: one picture of one camera, with what its sender said about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from streamer import codec

if TYPE_CHECKING:
    from streamer.codec import Image

# Quality of the JPEG made from a raw array when somebody asks for one; OpenCV's own default.
RAW_JPEG_QUALITY = 95


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture, never changed after it was received.

    Attributes:
        camera: the name its sender gave, by imagezmq the host's name.
        payload: the bytes as they came, not copied: a JPEG, or a C-contiguous array.
        width: in pixels.
        height: in pixels.
        received_ns: wall clock when the hub had it, in ns since 1970.
        dtype: of a raw array, in numpy's words; None for a JPEG.
        shape: of a raw array, (height, width) or (height, width, channels); None for a JPEG.
        seq: the sender's count of frames sent to this hub, from 0; None from a stock imagezmq sender.
        start: the random id of this start of the sender, or None.
        captured_ns: the sender's wall clock when the sensor was read, in ns since 1970, or None.
        dropped: frames the sender has skipped so far, or None.
        every_s: the interval that the sender aims at, in seconds, or None.
        release: the release that the sender runs, or None.
        offset_ns: how far the hub's wall clock is ahead of the sender's, in ns, as the sender has measured it; negative
            when behind; None while it is not known.
        offset_error_ns: how far the true value may be from that, to either side, in ns; None with `offset_ns`.
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
        """Make a frame that has these attributes, and keeps the dict; for whoever makes thousands a second.

        The `__init__` of a frozen dataclass takes three times as long: it calls `object.__setattr__` for each.
        """
        frame = cls.__new__(cls)
        object.__setattr__(frame, "__dict__", attributes)
        return frame

    @property
    def is_jpeg(self) -> bool:
        """Whether the picture came as JPEG; else as a raw array."""
        return self.dtype is None

    @property
    def latency_ns(self) -> int | None:
        """The time from the sensor to the hub, in ns, right to within `offset_error_ns`.

        None where it cannot be told: the sender has not said when, or by which clock; or the frame would have come
        before it was captured by more than the error, since a clock was set in between.
        """
        if self.captured_ns is None or self.offset_ns is None or self.offset_error_ns is None:
            return None
        latency_ns = self.received_ns - self.captured_ns - self.offset_ns
        return max(0, latency_ns) if latency_ns >= -self.offset_error_ns else None

    @cached_property
    def jpeg(self) -> bytes | memoryview:
        """The picture as JPEG: the sender's own bytes, or encoded from the raw array once, when first asked for.

        Raises:
            CodecError: a raw array that has no JPEG form (not uint8, or not 1, 3 or 4 channels).
        """
        return self.payload if self.is_jpeg else codec.encode_jpeg(self.image, RAW_JPEG_QUALITY)

    @cached_property
    def image(self) -> Image:
        """The picture as an array: decoded once, when first asked for.

        Returns:
            uint8 of shape (height, width, 3) in BGR for a JPEG; for a raw array a read-only view of what was sent.

        Raises:
            CodecError: a damaged JPEG.
        """
        if self.is_jpeg:
            return codec.decode_jpeg(self.payload)
        import numpy as np

        payload = memoryview(self.payload).toreadonly()  # others have it too
        image: Image = np.frombuffer(payload, self.dtype).reshape(self.shape or ())
        return image
