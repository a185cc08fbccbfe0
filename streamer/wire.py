"""The messages, imagezmq's and ours: a JSON header and a payload, checked on sending and on receiving.

The format is imagezmq's (https://github.com/jeffbass/imagezmq, `imagezmq/imagezmq.py`): a request is
`[header, payload]`, the header `{"msg": camera}` for a JPEG and `{"msg": camera, "dtype": …, "shape": …}` for a raw
array; the reply is one part, `OK`. Our additional header keys are all optional, and stock peers ignore them:

- `seq`: counts the frames sent to this hub, from 0.
- `start`: a random id of the sender's start. For its second and further hubs a dot and a number are appended, since
  `seq` is counted per hub, and several addresses may lead to one hub.
- `captured`: when the sensor was read, by the sender's wall clock, in ns since 1970.
- `dropped`: how many frames were skipped so far.
- `every`: the intended interval between frames, in seconds.
- `release`: the sender's release, 1 to 64 of A-Z a-z 0-9 . _ + -
- `clock`: true asks for the hub's clock. The reply then has a timestamp, when the frame was received by the hub's wall
  clock, in ns since 1970: `OK 1793500000123456789`.
- `offset`, `offset_error` (both or neither): what the sender has measured by such replies: how far the hub's wall clock
  is ahead of its own (negative: behind), and the largest error of that, in ns.
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
from streamer.errors import CodecError, WireError, describe_label, one_line
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
IN_FLIGHT_LIMIT = 8  # the default: enough for 60 frames a second over a round trip of a tenth of a second
IN_FLIGHT_MAX = 16  # unanswered requests of a sender; well below every queue on the way
OK = b"OK"
_ERROR_PREFIX = b"ERR "
_REASON_MAX_BYTES = 300  # read of a refusal

# The next two in words, for error messages.
NAME_RULE = "1 to 64 of A-Z a-z 0-9 . _ -"
RELEASE_RULE = "1 to 64 of A-Z a-z 0-9 . _ + -"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_RELEASE = re.compile(r"[A-Za-z0-9._+-]{1,64}", re.ASCII)
# The numeric types that numpy has on every platform, so that any accepted array can be shown anywhere.
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
_scan_json = make_scanner(cast("Any", json.JSONDecoder()))  # typeshed has no type for its argument
_write_json = json.JSONEncoder(separators=(",", ":")).encode
_INT_MAX = 2**63 - 1
_INT_DIGITS = len(str(_INT_MAX))
_DIMENSIONS_MAX = 8
# What `add_counts` appends. Longer numbers, which may be over the limit, take the slow path.
_FIRST_COUNT = b',"seq":'
_COUNTS = re.compile(
    rb',"seq":(N),"captured":(N),"dropped":(N)(?:,"offset":(-?N),"offset_error":(N))?}'.replace(
        b"N", rb"(?:0|[1-9][0-9]{0,17}|[1-8][0-9]{18})"
    )
)
_COMMON_KEPT = 1024  # one for each camera that a hub can have


def is_camera_name(text: object) -> bool:
    """Whether `text` is a valid camera name: 1 to 64 letters, digits, dots, underscores or hyphens."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_release(text: object) -> bool:
    """Whether `text` is a valid release: like a camera name, plus signs allowed."""
    return isinstance(text, str) and _RELEASE.fullmatch(text) is not None


def is_interval(seconds: object) -> bool:
    """Whether `seconds` is a valid interval between frames."""
    # Its inverse, the frame rate, must be finite as well.
    return type(seconds) in (int, float) and 1 / _INT_MAX < cast("float", seconds) < _INT_MAX


def make_start() -> str:
    """Make a random id for a sender's start."""
    return os.urandom(8).hex()  # `secrets` would load OpenSSL, 4 MB


def item_bytes(dtype: str) -> int:
    """Return the size of one item of a plain numeric dtype, as numpy writes it (`uint8`, `float32`, `>u2`), in bytes.

    Raises:
        WireError: any other dtype; objects, strings and records are not pictures.
    """
    if dtype not in _ITEM_BYTES:
        raise WireError(f"dtype {dtype[:32]!r} is not a plain numeric type")
    return _ITEM_BYTES[dtype]


def make_header(
    message: object,
    *,
    dtype: str | None = None,
    shape: tuple[int, ...] | None = None,
    extras: Mapping[str, object] | None = None,
) -> bytes:
    """Encode a header.

    Args:
        message: the camera's name; imagezmq's API allows any JSON value.
        dtype: of a raw array; None for a JPEG.
        shape: of a raw array; None for a JPEG.
        extras: our optional keys; None values are left out.

    Raises:
        WireError: the message is not JSON, or the header too large.
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
    """Append to a header what differs in every frame, so that the rest is encoded once; `offset` is (ns, error_ns)."""
    counts = b'%b,"seq":%d,"captured":%d,"dropped":%d' % (header[:-1], seq, captured_ns, dropped)
    return b'%b,"offset":%d,"offset_error":%d}' % (counts, *offset) if offset else counts + b"}"


def read_header(header: bytes) -> dict[str, Any]:
    """Parse a header. All of it, since spacing and key order differ between imagezmq peers.

    Returns:
        A dict with `msg`, and both or neither of `dtype` and `shape`.

    Raises:
        WireError: it is too long, not JSON, not an object, or lacks `msg`.
    """
    if len(header) > HEADER_MAX_BYTES:
        raise WireError(f"header of {len(header)} bytes, at most {HEADER_MAX_BYTES} are allowed")
    try:
        fields = _read_json(header.decode())  # json.loads would first guess the encoding
    except (ValueError, RecursionError) as error:
        raise WireError("header is not JSON") from error
    if not isinstance(fields, dict) or "msg" not in fields:
        raise WireError("header is not a JSON object with 'msg'")
    if ("dtype" in fields) != ("shape" in fields):
        raise WireError("header has only one of 'dtype' and 'shape'")
    return fields


def check_array(fields: Mapping[str, Any], length: int) -> tuple[str, tuple[int, ...]]:
    """Check that a raw array's dtype and shape match the length of its payload.

    Args:
        fields: a header with `dtype` and `shape`.
        length: of the payload, in bytes.

    Returns:
        (dtype, shape)

    Raises:
        WireError: the fields have wrong types, or do not match `length`.
    """
    dtype, shape = _read_form(fields)
    _check_form(dtype, shape, length)
    return dtype, shape


def _read_form(fields: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    dtype, shape = fields["dtype"], fields["shape"]
    if not isinstance(dtype, str):
        raise WireError("dtype is not a string")
    if not isinstance(shape, list) or not 1 <= len(shape) <= _DIMENSIONS_MAX:
        raise WireError(f"shape is not a list of 1 to {_DIMENSIONS_MAX} sizes")
    if not all(type(size) is int and 0 < size <= PAYLOAD_MAX_BYTES for size in shape):
        raise WireError("shape has a size that is not a positive integer")
    return dtype, tuple(shape)


def _check_form(dtype: str, shape: tuple[int, ...], length: int) -> None:
    expected = math.prod(shape) * item_bytes(dtype)
    if expected != length:
        raise WireError(f"dtype and shape make {expected} bytes, the payload has {length}")
    check_length(length)


def check_jpeg(payload: bytes | memoryview, read_size: _ReadSize = codec.jpeg_size) -> tuple[int, int]:
    """Check that a payload starts and ends as a JPEG does, and that its length and size are within limits.

    Args:
        payload: the JPEG, one byte an item.
        read_size: returns (width, height) or raises CodecError; `codec.JpegSizes.read` is faster for similar pictures.

    Returns:
        (width, height) in pixels.

    Raises:
        WireError: it is no JPEG, or over a limit.
    """
    check_length(len(payload))
    if len(payload) < 4 or payload[0] != 0xFF or payload[1] != 0xD8 or payload[-2] != 0xFF or payload[-1] != 0xD9:
        raise WireError("payload is not a whole JPEG: it must start with FF D8 and end with FF D9")
    try:
        width, height = read_size(payload)
    except CodecError as error:
        raise WireError(str(error)) from error
    if not width * height:
        raise WireError("JPEG without a width or height in its frame header")
    if width * height > PIXELS_MAX:
        raise WireError(f"JPEG of {width} x {height} pixels, at most {PIXELS_MAX // 1_000_000} megapixels are allowed")
    return width, height


def check_captured(captured_ns: object) -> int:
    """Return when a sensor was read, by the wall clock in ns since 1970, as an int.

    Raises:
        WireError: it is no such time.
    """
    try:
        stamp_ns = int(cast("int", captured_ns))
    except (TypeError, ValueError, OverflowError):
        stamp_ns = -1
    if not 0 <= stamp_ns <= _INT_MAX:
        raise WireError(f"captured_ns is {captured_ns!r}: it must be wall clock time as time.time_ns() returns it")
    return stamp_ns


def check_length(length: int) -> None:
    """Check the length of a payload, in bytes.

    Raises:
        WireError: it is over the limit.
    """
    if length > PAYLOAD_MAX_BYTES:
        raise WireError(f"payload of {length} bytes, at most {PAYLOAD_MAX_BYTES} are allowed")


def array_to_send(array: npt.NDArray[Any]) -> tuple[memoryview, str, tuple[int, ...]]:
    """Prepare a raw array for sending.

    Returns:
        (payload, dtype, shape); the payload is a view of the array, or of a copy if the array is not C-contiguous.

    Raises:
        WireError: its type, shape or size cannot be sent.
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
    """Do what `array_to_send` does, for arrays of two or three dimensions only."""
    _check_dimensions(image.shape)
    return array_to_send(image)


def _check_dimensions(shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3):
        raise WireError(f"an image has 2 or 3 dimensions, this array has {len(shape)}")


@lru_cache  # a camera's pictures are alike, and numpy is slow to name a dtype
def _form(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    if 0 in shape:
        raise WireError(f"an empty array, its shape is {shape}")
    return check_array({"dtype": str(dtype), "shape": list(shape)}, math.prod(shape) * dtype.itemsize)


def jpeg_to_send(jpeg: Buffer, read_size: _ReadSize = codec.jpeg_size) -> memoryview:
    """Check a JPEG and return a view of it; `read_size` is passed to `check_jpeg`.

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
    """Do what json.loads does, faster if there is no surrounding white space."""
    try:
        value, end = _scan_json(text, 0)
    except StopIteration:
        end = -1
    return value if end == len(text) else json.loads(text)


def parse(header: bytes, payload: bytes | memoryview, received_ns: int) -> Frame:
    """Parse a message into a frame.

    Args:
        header: the first part.
        payload: the second part, one byte an item; kept, not copied.
        received_ns: when it was received: wall clock, in ns since 1970.

    Raises:
        WireError: it breaks the format or a limit; the text says which.
    """
    attributes, read_size = _read_attributes(header)
    dtype, shape = attributes["dtype"], attributes["shape"]
    if dtype is not None and _is_jpeg_array(dtype, shape, payload):
        dtype = attributes["dtype"] = attributes["shape"] = None
    if dtype is None:
        attributes["width"], attributes["height"] = check_jpeg(payload, read_size)
    else:
        _check_dimensions(shape)
        _check_form(dtype, shape, len(payload))
        attributes["height"], attributes["width"] = shape[:2]
    attributes["payload"] = payload
    attributes["received_ns"] = received_ns
    return Frame.of(attributes)


def _is_jpeg_array(dtype: str, shape: tuple[int, ...], payload: bytes | memoryview) -> bool:
    """Whether an array is what OpenCV's imencode returned: some imagezmq programs hand that to `send_image`."""
    length = len(payload)
    return dtype == "uint8" and shape in ((length,), (length, 1)) and payload[:3] == b"\xff\xd8\xff"


def _read_attributes(header: bytes) -> tuple[dict[str, Any], _ReadSize]:
    """Return the attributes of a Frame that are in its header, and a function that reads the size of its JPEG.

    What `add_counts` wrote is parsed each time; the rest, which all headers of a sender share, is cached.
    """
    at = header.rfind(_FIRST_COUNT)
    counts = _COUNTS.fullmatch(header, at) if at >= 0 and len(header) <= HEADER_MAX_BYTES else None
    if counts is None:
        return _read_whole(header), codec.jpeg_size
    try:
        common, sizes = _read_common(header[:at])
    except WireError:  # its text would be about a part of the header
        return _read_whole(header), codec.jpeg_size
    attributes = common.copy()
    seq, captured, dropped, offset, offset_error = counts.groups()
    attributes["seq"], attributes["captured_ns"], attributes["dropped"] = int(seq), int(captured), int(dropped)
    if offset:
        attributes["offset_ns"], attributes["offset_error_ns"] = int(offset), int(offset_error)
    return attributes, sizes.read


@lru_cache(_COMMON_KEPT)
def _read_common(header: bytes) -> tuple[dict[str, Any], codec.JpegSizes]:
    """Parse a header up to its counts, as an object closed there."""
    return _read_whole(header + b"}"), codec.JpegSizes()


def _read_whole(header: bytes) -> dict[str, Any]:
    fields = read_header(header)
    camera = fields["msg"]
    if not is_camera_name(camera):
        raise WireError(f"camera name must be {NAME_RULE}", label=describe_label(camera))
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    if "dtype" in fields:
        dtype, shape = _read_form(fields)
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
    """Return the reply to a frame that was stored."""
    return b"%b %d" % (OK, frame.received_ns) if frame.wants_clock else OK


def read_stamp(reply: bytes) -> int | None:
    """Return the timestamp in a reply, the hub's wall clock in ns since 1970; None if it has none."""
    word, _, digits = reply.partition(b" ")
    if word != OK or not digits.isdigit() or len(digits) > _INT_DIGITS:
        return None
    stamp_ns = int(digits)
    return stamp_ns if stamp_ns <= _INT_MAX else None


def error_reply(error: WireError) -> bytes:
    """Return the reply that tells a peer why its message was refused."""
    return _ERROR_PREFIX + str(error).encode()


def refusal_reason(reply: bytes) -> str | None:
    """Return why a reply refuses a message, as one short line, whatever the hub wrote; None if it does not."""
    if not reply.startswith(_ERROR_PREFIX):
        return None
    return one_line(reply.removeprefix(_ERROR_PREFIX)[:_REASON_MAX_BYTES].decode(errors="replace"))


def _count(fields: Mapping[str, Any], key: str) -> int | None:
    value = fields.get(key)
    if value is not None and not (type(value) is int and 0 <= value <= _INT_MAX):
        raise WireError(f"{key} must be an integer from 0")
    return value
