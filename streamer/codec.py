"""JPEG encoding and decoding, by simplejpeg if installed, else OpenCV, else Pillow. Colours are BGR, as in OpenCV."""

from __future__ import annotations

import functools
import io
import logging
import re
from typing import TYPE_CHECKING, Any, Protocol

from streamer.errors import CodecError, MissingExtraError, reason

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

    Image = npt.NDArray[np.uint8]

_log = logging.getLogger(__name__)

# Start-of-frame markers, ITU-T T.81 table B.1: 0xC0 to 0xCF without DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# No frame header comes after SOI, EOI or SOS. The others (stuffing, TEM, RST) have no length field: taking the next two
# bytes for one, this reader could find another size than a decoder.
_NO_FRAME_YET = frozenset({0x00, 0x01, *range(0xD0, 0xDB)})
# Including fill bytes. Real pictures have some ten, or a few hundred with a large colour profile.
_MARKERS_MAX = 1024
_HEAD_MAX = 4096  # bytes kept of a picture's head, by camera
START_OF_SCAN = frozenset({0xDA})
_SEQUENTIAL = (0xC0, 0xC1)
# A scan takes ten bytes to write and a pass over the whole picture to decode. Real progressive pictures have some ten.
_SCAN = re.compile(rb"\xff\xda")
_SCANNED_PIXELS_MAX = 1_000_000_000


def jpeg_size(jpeg: bytes | memoryview) -> tuple[int, int]:
    """Read the size of a JPEG from its frame header (ITU-T T.81, B.2.2) without decoding it.

    Args:
        jpeg: the whole picture, one byte an item.

    Returns:
        (width, height) in pixels.

    Raises:
        CodecError: there is no frame header where one belongs.
    """
    return _read_size(jpeg)[0]


class JpegSizes:
    """A faster `jpeg_size` for the pictures of one camera, which are alike up to the frame header."""

    def __init__(self) -> None:
        self._last = b"", (0, 0)  # the last picture's head, and its size

    def read(self, jpeg: bytes | memoryview) -> tuple[int, int]:
        """Return (width, height) in pixels; raises what `jpeg_size` raises."""
        head, size = self._last
        if not head or bytes(jpeg[: len(head)]) != head:
            size, end = _read_size(jpeg)
            self._last = (bytes(jpeg[:end]) if end <= _HEAD_MAX else b""), size
        return size


def _read_size(jpeg: bytes | memoryview) -> tuple[tuple[int, int], int]:
    """Return a JPEG's (width, height), and where its frame header ends."""
    at = find_segment(jpeg, _START_OF_FRAME)
    if at is None:
        raise CodecError("JPEG has no frame header")
    return ((jpeg[at + 7] << 8) | jpeg[at + 8], (jpeg[at + 5] << 8) | jpeg[at + 6]), at + 9


def find_segment(jpeg: bytes | memoryview, wanted: frozenset[int]) -> int | None:
    """Return the offset of the first segment with one of these markers; None if there is none where it belongs."""
    at, end = 2, len(jpeg)
    for _ in range(_MARKERS_MAX):
        if at + 9 > end or jpeg[at] != 0xFF:
            break
        marker = jpeg[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in wanted:
            return at
        if marker in _NO_FRAME_YET:
            break
        at += 2 + ((jpeg[at + 2] << 8) | jpeg[at + 3])
    return None


def _scans(jpeg: bytes | memoryview) -> int:
    """Return an upper bound of the scans that a decoder may go through."""
    frame, scan = find_segment(jpeg, _START_OF_FRAME), find_segment(jpeg, START_OF_SCAN)
    if frame and scan and jpeg[frame + 1] in _SEQUENTIAL and jpeg[frame + 9] == jpeg[scan + 4]:
        return 1  # it has all components, so decoders accept no second scan
    return len(_SCAN.findall(jpeg))  # takes 4 % of the time to decode one scan


class _Library(Protocol):
    """The interface to a JPEG library."""

    def encode(self, image: Image, quality: int) -> bytes: ...

    def decode(self, jpeg: Buffer, at_least: tuple[int, int] | None) -> Image: ...


class _SimpleJpeg:
    def __init__(self) -> None:
        import simplejpeg

        self._library: Any = simplejpeg

    def encode(self, image: Image, quality: int) -> bytes:
        if image.ndim == 2:
            picture: bytes = self._library.encode_jpeg(image[:, :, None], quality, "GRAY", "Gray")
        else:
            # The library's default, 4:4:4, is larger and 1.6 times slower.
            picture = self._library.encode_jpeg(image, quality, "BGR", "420")
        return picture

    def decode(self, jpeg: Buffer, at_least: tuple[int, int] | None) -> Image:
        width, height = at_least or (0, 0)  # 0 for no limit
        image: Image = self._library.decode_jpeg(jpeg, "BGR", min_width=width, min_height=height)
        return image


class _OpenCv:
    def __init__(self) -> None:
        import cv2
        import numpy as np

        self._cv2: Any = cv2
        self._numpy = np
        self._reduced = (
            (8, cv2.IMREAD_REDUCED_COLOR_8),
            (4, cv2.IMREAD_REDUCED_COLOR_4),
            (2, cv2.IMREAD_REDUCED_COLOR_2),
        )

    def encode(self, image: Image, quality: int) -> bytes:
        done, buffer = self._cv2.imencode(".jpg", image, [self._cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise ValueError("OpenCV cannot encode it")
        picture: bytes = buffer.tobytes()
        return picture

    def decode(self, jpeg: Buffer, at_least: tuple[int, int] | None) -> Image:
        how = self._cv2.IMREAD_COLOR
        if at_least:
            width, height = jpeg_size(memoryview(jpeg))
            factor = min(width // at_least[0], height // at_least[1])
            how = next((flag for enough, flag in self._reduced if factor >= enough), how)
        # Rotated by its Exif tag, the picture would have another size than its frame header says.
        how |= self._cv2.IMREAD_IGNORE_ORIENTATION
        image: Image | None = self._cv2.imdecode(self._numpy.frombuffer(memoryview(jpeg), "uint8"), how)
        if image is None:
            raise ValueError("OpenCV cannot decode it")
        return image


class _Pillow:
    """Two to three times slower than the others, but on Debian a tenth of OpenCV's size."""

    def __init__(self) -> None:
        import numpy as np
        import PIL.Image

        self._numpy = np
        self._pillow = PIL.Image

    def encode(self, image: Image, quality: int) -> bytes:
        mode, raw_mode = ("L", "L") if image.ndim == 2 else ("RGB", "BGR")
        size = image.shape[1], image.shape[0]
        buffer = io.BytesIO()
        picture = self._pillow.frombytes(mode, size, image.tobytes(), "raw", raw_mode)
        picture.save(buffer, "JPEG", quality=quality, subsampling=2)
        return buffer.getvalue()

    def decode(self, jpeg: Buffer, at_least: tuple[int, int] | None) -> Image:
        with self._pillow.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
            if at_least:
                picture.draft(None, at_least)
            return self._numpy.asarray(picture.convert("RGB"))[:, :, ::-1].copy()


@functools.cache
def library() -> _Library:
    """Load the JPEG library.

    Raises:
        MissingExtraError: none is installed.
    """
    for candidate in (_SimpleJpeg, _OpenCv, _Pillow):
        try:
            return candidate()
        except ImportError:
            continue
        except ValueError as error:  # apt's simplejpeg with another numpy than it was built for
            _log.warning("%s does not load, another JPEG library is tried: %s", candidate.__name__, _one_line(error))
    raise MissingExtraError("decoding or encoding JPEG", "opencv", "python3-opencv")


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Encode an array as a 4:2:0 JPEG.

    Args:
        image: uint8 of shape (height, width, 3), BGR, or (height, width, 4), the last channel of which is left out; or
            (height, width) or (height, width, 1), greyscale.
        quality: 1 to 100, libjpeg's scale.

    Raises:
        CodecError: the array has another type or shape.
        MissingExtraError: no JPEG library is installed.
    """
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    elif image.ndim == 3 and image.shape[2] == 4:  # as Picamera2.capture_array gives it, unless it is told otherwise
        image = image[:, :, :3]
    if str(image.dtype) != "uint8" or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        shape = "x".join(map(str, image.shape))
        raise CodecError(f"only uint8 arrays of h x w, h x w x 3 or 4 become JPEG, this is {image.dtype} of {shape}")
    if not image.flags.c_contiguous:
        image = image.copy()
    encoder = library()
    try:
        return encoder.encode(image, quality)
    except Exception as error:  # each library has error types of its own
        raise CodecError(f"JPEG encoder: {_one_line(error)}") from error


def decode_jpeg(jpeg: Buffer, at_least: tuple[int, int] | None = None) -> Image:
    """Decode a JPEG.

    Args:
        jpeg: the whole picture.
        at_least: (width, height) in pixels that is large enough: a picture at least twice that size may be decoded
            scaled down, which is faster, but never below it. None decodes it at its own size.

    Returns:
        uint8 of shape (height, width, 3), BGR, also for a greyscale picture.

    Raises:
        CodecError: it is no JPEG, or damaged.
        MissingExtraError: no JPEG library is installed.
    """
    decoder = library()
    try:
        width, height = jpeg_size(memoryview(jpeg))
        scans = _scans(memoryview(jpeg))
        if scans * width * height > _SCANNED_PIXELS_MAX:
            raise ValueError(f"{scans} scans of {width} x {height} pixels are too many")
        if at_least is not None and (width < 2 * at_least[0] or height < 2 * at_least[1]):
            at_least = None  # libjpeg is slower at, say, three quarters than at full size
        return decoder.decode(jpeg, at_least)
    except Exception as error:  # each library has error types of its own
        raise CodecError(f"JPEG decoder: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(reason(error).split())
