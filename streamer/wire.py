"""imagezmq's messages and ours: a JSON header and a payload, checked on sending and on receiving.

The format is imagezmq's (https://github.com/jeffbass/imagezmq, `imagezmq/imagezmq.py`): a request is
`[header, payload]`, the header `{"msg": camera}` for a JPEG and `{"msg": camera, "dtype": …, "shape": …}` for a raw
array; the reply is one part, `OK`. Stock peers ignore the keys that we add, all of them optional:

- `seq`: frames sent to this hub before, from 0; `start`: a random id of this start of the sender; to its second hub
  and further ones with a dot and a number, since `seq` is counted for each, and they may be one hub by several ways.
- `captured`: the sender's wall clock when the sensor was read, in ns since 1970.
- `dropped`: frames skipped so far; `every`: the interval that is aimed at, in seconds.
- `release`: the sender's release, 1 to 64 of A-Z a-z 0-9 . _ + -
- `clock`: true asks for the hub's clock. Only then the reply is `OK` and when the frame was received, by the hub's
  wall clock in ns since 1970: `OK 1793500000123456789`.
- `offset`, `offset_error`: what the sender has learnt from such replies, both or neither: how far the hub's wall clock
  is ahead of its own (negative: behind), and how far from that it may be, to either side, in ns.
"""

from __future__ import annotations

import json
import math
import os
import re
from functools import lru_cache
from json.scanner import make_scanner
from typing import TYPE_CHECKING, Any, cast

from streamer import codec
from streamer.errors import CodecError, WireError
from streamer.frame import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Buffer

    _ReadSize = Callable[[bytes | memoryview], tuple[int, int]]


HEADER_MAX_BYTES = 4 * 1024
PAYLOAD_MAX_BYTES = 32 * 1024 * 1024
PIXELS_MAX = 64_000_000
IN_FLIGHT_LIMIT = 8  # by default: enough for 60 frames a second over a round trip of a tenth of a second
IN_FLIGHT_MAX = 16  # requests that a sender may have unanswered; well below every queue on the way
OK = b"OK"
ERROR_PREFIX = b"ERR "

# What the two below take, as people are told it.
NAME_RULE = "1 to 64 of A-Z a-z 0-9 . _ -"
RELEASE_RULE = "1 to 64 of A-Z a-z 0-9 . _ + -"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_RELEASE = re.compile(r"[A-Za-z0-9._+-]{1,64}", re.ASCII)
# The numeric types that numpy has on every platform, so that what is taken here can be shown anywhere.
_KINDS = {"bool": "b", "int": "i", "uint": "u", "float": "f", "complex": "c"}
_SIZES = {"bool": (1,), "int": (1, 2, 4, 8), "uint": (1, 2, 4, 8), "float": (2, 4, 8), "complex": (8, 16)}
_ITEM_BYTES = {
    dtype: size
    for kind, sizes in _SIZES.items()
    for size in sizes
    for dtype in (
        kind if kind == "bool" else f"{kind}{8 * size}",
        *(f"{order}{_KINDS[kind]}{size}" for order in ("", "<", ">", "|", "=")),
    )
}
_scan_json = make_scanner(cast("Any", json.JSONDecoder()))  # typeshed has no word for what it takes
_write_json = json.JSONEncoder(separators=(",", ":")).encode
_INT_MAX = 2**63 - 1
_INT_DIGITS = len(str(_INT_MAX))
_DIMENSIONS_MAX = 8
# What `add_counts` adds, as far as its numbers are under the limit for sure.
_FIRST_COUNT = b',"seq":'
_COUNTS = re.compile(
    rb',"seq":(N),"captured":(N),"dropped":(N)(?:,"offset":(-?N),"offset_error":(N))?}'.replace(
        b"N", rb"(?:0|[1-9][0-9]{0,17}|[1-8][0-9]{18})"
    )
)
_COMMON_KEPT = 1024  # of as many senders as a hub has cameras


def is_camera_name(text: object) -> bool:
    """Whether `text` may name a camera: 1 to 64 of the letters, digits, dot, underscore and hyphen."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_release(text: object) -> bool:
    """Whether `text` may name a release: as a camera's name, and the plus sign."""
    return isinstance(text, str) and _RELEASE.fullmatch(text) is not None


def is_interval(seconds: object) -> bool:
    """Say whether it can be the interval between a camera's frames."""
    # Its inverse, frames per second, has to be a number too.
    return type(seconds) in (int, float) and 1 / _INT_MAX < cast("float", seconds) < _INT_MAX


def make_start() -> str:
    """Make the random id of a sender's start."""
    return os.urandom(8).hex()  # the module secrets would load OpenSSL for it, 4 MB


def item_bytes(dtype: str) -> int:
    """Give the bytes of one item of a plain numeric dtype, as numpy writes it (`uint8`, `float32`, `>u2`).

    Raises:
        WireError: another dtype; objects, strings and records are not pictures.
    """
    if dtype not in _ITEM_BYTES:
        raise WireError(f"dtype {dtype[:32]!r} is no plain numeric type")
    return _ITEM_BYTES[dtype]


def make_header(
    message: object,
    *,
    dtype: str | None = None,
    shape: tuple[int, ...] | None = None,
    extras: Mapping[str, object] | None = None,
) -> bytes:
    """Write a header.

    Args:
        message: the camera's name; imagezmq's API allows any JSON value.
        dtype: of a raw array; None for a JPEG.
        shape: of a raw array; None for a JPEG.
        extras: our optional keys; those that are None are left out.

    Raises:
        WireError: it is not JSON, or larger than a header may be.
    """
    header: dict[str, object] = {"msg": message}
    if dtype is not None:
        header |= {"dtype": dtype, "shape": shape}
    if extras:
        header |= {key: value for key, value in extras.items() if value is not None}
    try:
        packed = _write_json(header).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"the message cannot be written as JSON: {error}") from error
    if len(packed) > HEADER_MAX_BYTES:
        raise WireError(f"header of {len(packed)} bytes, at most {HEADER_MAX_BYTES} are allowed")
    return packed


def add_counts(header: bytes, seq: int, captured_ns: int, dropped: int, offset: tuple[int, int] | None) -> bytes:
    """Add to a header what is new in each frame's, while the rest was written once; `offset` is (ns, error_ns)."""
    counts = b'%b,"seq":%d,"captured":%d,"dropped":%d' % (header[:-1], seq, captured_ns, dropped)
    return b'%b,"offset":%d,"offset_error":%d}' % (counts, *offset) if offset else counts + b"}"


def read_header(header: bytes) -> dict[str, Any]:
    """Parse a header; the whole JSON is read, since spacing and key order differ between imagezmq's peers.

    Returns:
        A dict with `msg`, and `dtype` and `shape` both or neither.

    Raises:
        WireError: too long, not JSON, not an object, or without `msg`.
    """
    if len(header) > HEADER_MAX_BYTES:
        raise WireError(f"header of {len(header)} bytes, at most {HEADER_MAX_BYTES} are allowed")
    try:
        fields = _read_json(header.decode())  # json.loads would take longer to find out that it is UTF-8
    except (ValueError, RecursionError) as error:
        raise WireError("header is not JSON") from error
    if not isinstance(fields, dict) or "msg" not in fields:
        raise WireError("header is no JSON object with 'msg'")
    if ("dtype" in fields) != ("shape" in fields):
        raise WireError("header has only one of 'dtype' and 'shape'")
    return fields


def check_array(fields: Mapping[str, Any], length: int) -> tuple[str, tuple[int, ...]]:
    """Check that a raw array's dtype and shape say how long its payload is.

    Args:
        fields: a header that has `dtype` and `shape`.
        length: of the payload, in bytes.

    Returns:
        (dtype, shape)

    Raises:
        WireError: the fields have wrong types, or do not add up to `length`.
    """
    dtype, shape = _read_form(fields)
    _check_form(dtype, shape, length)
    return dtype, shape


def _read_form(fields: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    dtype, shape = fields["dtype"], fields["shape"]
    if not isinstance(dtype, str):
        raise WireError("dtype is no string")
    if not isinstance(shape, list) or not 1 <= len(shape) <= _DIMENSIONS_MAX:
        raise WireError(f"shape is no list of 1 to {_DIMENSIONS_MAX} sizes")
    if not all(type(size) is int and 0 < size <= PAYLOAD_MAX_BYTES for size in shape):
        raise WireError("shape has a size that is no positive integer")
    return dtype, tuple(shape)


def _check_form(dtype: str, shape: tuple[int, ...], length: int) -> None:
    expected = math.prod(shape) * item_bytes(dtype)
    if expected != length:
        raise WireError(f"dtype and shape make {expected} bytes, the payload has {length}")
    check_length(length)


def check_jpeg(payload: bytes | memoryview, read_size: _ReadSize = codec.jpeg_size) -> tuple[int, int]:
    """Check that a payload starts and ends as a JPEG, and that its length and size are sane.

    Args:
        payload: one byte an item.
        read_size: reads its width and height, or raises CodecError; that of a `codec.JpegSizes` where many are alike.

    Returns:
        (width, height) in pixels.

    Raises:
        WireError: it does not, or is not.
    """
    check_length(len(payload))
    if len(payload) < 4 or payload[0] != 0xFF or payload[1] != 0xD8 or payload[-2] != 0xFF or payload[-1] != 0xD9:
        raise WireError("payload is no whole JPEG: it must start with FF D8 and end with FF D9")
    try:
        width, height = read_size(payload)
    except CodecError as error:
        raise WireError(str(error)) from error
    if not width * height:
        raise WireError("JPEG without a width or height in its frame header")
    if width * height > PIXELS_MAX:
        raise WireError(f"JPEG of {width} x {height} pixels, at most {PIXELS_MAX // 1_000_000} megapixels are allowed")
    return width, height


def check_length(length: int) -> None:
    """Check that a payload, of `length` bytes, is not larger than a message may carry.

    Raises:
        WireError: it is.
    """
    if length > PAYLOAD_MAX_BYTES:
        raise WireError(f"payload of {length} bytes, at most {PAYLOAD_MAX_BYTES} are allowed")


def array_to_send(array: npt.NDArray[Any]) -> tuple[memoryview, str, tuple[int, ...]]:
    """Make a raw array ready to be sent.

    Returns:
        (payload, dtype, shape); the payload is a view, or that of a contiguous copy when the array is not contiguous.

    Raises:
        WireError: it cannot be sent.
    """
    try:
        is_contiguous = array.flags.c_contiguous
    except AttributeError:  # a camera that gave nothing, as a rule: OpenCV's returns None then
        raise WireError(f"no array: {type(array).__name__}") from None
    if not is_contiguous:
        array = array.copy()
    dtype, shape = _form(array.dtype, array.shape)
    return memoryview(cast("Buffer", array)), dtype, shape


def image_to_send(image: npt.NDArray[Any]) -> tuple[memoryview, str, tuple[int, ...]]:
    """Do as `array_to_send` for an array that has to be an image, of two or three dimensions."""
    _check_dimensions(image.shape)
    return array_to_send(image)


def _check_dimensions(shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3):
        raise WireError(f"an image has 2 or 3 dimensions, this array has {len(shape)}")


@lru_cache  # a camera's pictures are all alike, and to ask numpy for a dtype's name takes longer than the rest
def _form(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    return check_array({"dtype": str(dtype), "shape": list(shape)}, math.prod(shape) * dtype.itemsize)


def jpeg_to_send(jpeg: Buffer, read_size: _ReadSize = codec.jpeg_size) -> memoryview:
    """Return a view of a JPEG that may be sent; `read_size` is that of `check_jpeg`.

    Raises:
        WireError: it is too large, or no JPEG.
    """
    try:
        payload = memoryview(jpeg).cast("B")
    except TypeError as error:
        raise WireError(f"neither the bytes of a JPEG nor an array: {type(jpeg).__name__}") from error
    check_jpeg(payload, read_size)
    return payload


def _read_json(text: str) -> Any:
    """Do what json.loads does, sooner where there is no white space around."""
    try:
        value, end = _scan_json(text, 0)
    except StopIteration:
        end = -1
    return value if end == len(text) else json.loads(text)


def parse(header: bytes, payload: bytes | memoryview, received_ns: int) -> Frame:
    """Make the frame of a message, or refuse it.

    Args:
        header: the first part.
        payload: the second part, one byte an item; kept, not copied.
        received_ns: wall clock, ns since 1970.

    Raises:
        WireError: any rule of the format or limit is broken; the text says which.
    """
    attributes, read_size = _read_attributes(header)
    dtype, shape = attributes["dtype"], attributes["shape"]
    if dtype is None:
        attributes["width"], attributes["height"] = check_jpeg(payload, read_size)
    else:
        _check_form(dtype, shape, len(payload))
        attributes["height"], attributes["width"] = shape[:2]
    attributes["payload"] = payload
    attributes["received_ns"] = received_ns
    return Frame.of(attributes)


def _read_attributes(header: bytes) -> tuple[dict[str, Any], _ReadSize]:
    """Read the attributes of a Frame that its header gives, and how the size of its JPEG is read.

    What `add_counts` wrote is read each time; the rest, which all headers of a sender have, the first time.
    """
    at = header.rfind(_FIRST_COUNT)
    counts = _COUNTS.fullmatch(header, at) if at >= 0 and len(header) <= HEADER_MAX_BYTES else None
    if counts is None:
        return _read_whole(header), codec.jpeg_size
    try:
        common, sizes = _read_common(header[:at])
    except WireError:  # which says what is wrong with a part
        return _read_whole(header), codec.jpeg_size
    attributes = common.copy()
    seq, captured, dropped, offset, offset_error = counts.groups()
    attributes["seq"], attributes["captured_ns"], attributes["dropped"] = int(seq), int(captured), int(dropped)
    if offset:
        attributes["offset_ns"], attributes["offset_error_ns"] = int(offset), int(offset_error)
    return attributes, sizes.read


@lru_cache(_COMMON_KEPT)
def _read_common(header: bytes) -> tuple[dict[str, Any], codec.JpegSizes]:
    """Read a header without its end: an object, if it is closed here, and what comes then are more of its members."""
    return _read_whole(header + b"}"), codec.JpegSizes()


def _read_whole(header: bytes) -> dict[str, Any]:
    fields = read_header(header)
    camera = fields["msg"]
    if not is_camera_name(camera):
        raise WireError(f"camera name must be {NAME_RULE}")
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    if "dtype" in fields:
        dtype, shape = _read_form(fields)
        _check_dimensions(shape)
    start = fields.get("start")
    if start is not None and not is_camera_name(start):
        raise WireError(f"start must be {NAME_RULE}")
    every_s = fields.get("every")
    if every_s is not None and not is_interval(every_s):
        raise WireError("every must be a positive number of seconds")
    release = fields.get("release")
    if release is not None and not is_release(release):
        raise WireError(f"release must be {RELEASE_RULE}")
    wants_clock = fields.get("clock", False)
    if type(wants_clock) is not bool:
        raise WireError("clock must be true or false")
    offset_ns = fields.get("offset")
    if offset_ns is not None and not (type(offset_ns) is int and abs(offset_ns) <= _INT_MAX):
        raise WireError("offset must be an integer")
    offset_error_ns = _count(fields, "offset_error")
    if (offset_ns is None) != (offset_error_ns is None):
        raise WireError("header has only one of 'offset' and 'offset_error'")
    return {
        "camera": camera,
        "dtype": dtype,
        "shape": shape,
        "seq": _count(fields, "seq"),
        "start": start,
        "captured_ns": _count(fields, "captured"),
        "dropped": _count(fields, "dropped"),
        "every_s": every_s,
        "release": release,
        "offset_ns": offset_ns,
        "offset_error_ns": offset_error_ns,
        "wants_clock": wants_clock,
    }


def reply_to(frame: Frame) -> bytes:
    """Write the reply to a frame that was stored."""
    return b"%b %d" % (OK, frame.received_ns) if frame.wants_clock else OK


def read_stamp(reply: bytes) -> int | None:
    """Return when the hub received the frame, by its wall clock in ns since 1970; None when the reply does not say."""
    word, _, digits = reply.partition(b" ")
    if word != OK or not digits.isdigit() or len(digits) > _INT_DIGITS:
        return None
    stamp_ns = int(digits)
    return stamp_ns if stamp_ns <= _INT_MAX else None


def error_reply(error: WireError) -> bytes:
    """Write the reply that tells a peer why its message was refused."""
    return ERROR_PREFIX + str(error).encode()


def _count(fields: Mapping[str, Any], key: str) -> int | None:
    value = fields.get(key)
    if value is not None and not (type(value) is int and 0 <= value <= _INT_MAX):
        raise WireError(f"{key} must be an integer from 0")
    return value
