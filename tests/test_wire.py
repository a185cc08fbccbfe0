from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamer import wire
from streamer.errors import WireError

if TYPE_CHECKING:
    from typing_extensions import Buffer

DATA = Path(__file__).parent / "data"
GOOD: dict[str, dict[str, Any]] = json.loads((DATA / "good.json").read_text())
BROKEN: dict[str, dict[str, Any]] = json.loads((DATA / "broken.json").read_text())
JPEG = (DATA / "colour.jpg").read_bytes()
RECEIVED_NS = 1_793_500_000_987_654_321


def message(name: str) -> tuple[bytes, bytes]:
    return (DATA / f"{name}.header").read_bytes(), (DATA / GOOD[name]["payload"]).read_bytes()


# -- golden messages


def test_every_golden_header_has_a_row() -> None:
    assert {path.stem for path in DATA.glob("*.header")} == set(GOOD)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("form", [bytes, memoryview])
def test_good_message(name: str, form: type[bytes | memoryview]) -> None:
    header, payload = message(name)
    expected = GOOD[name]["frame"]
    frame = wire.parse(header, form(payload), RECEIVED_NS)
    optional = "dtype", "shape", "seq", "start", "captured_ns", "dropped", "every_s", "release"
    absent = dict.fromkeys((*optional, "offset_ns", "offset_error_ns")) | {"wants_clock": False}
    shape = tuple(expected["shape"]) if "shape" in expected else None
    assert vars(frame) == absent | expected | {"shape": shape, "payload": payload, "received_ns": RECEIVED_NS}


@pytest.mark.parametrize("name", [name for name in GOOD if name.startswith("ours")])
def test_our_headers_are_written_as_they_are_read(name: str) -> None:
    header, payload = message(name)
    frame = wire.parse(header, payload, RECEIVED_NS)
    extras = {
        "seq": frame.seq,
        "start": frame.start,
        "captured": frame.captured_ns,
        "dropped": frame.dropped,
        "every": frame.every_s,
        "release": frame.release,
        "clock": frame.wants_clock or None,
        "offset": frame.offset_ns,
        "offset_error": frame.offset_error_ns,
    }
    assert wire.make_header(frame.camera, dtype=frame.dtype, shape=frame.shape, extras=extras) == header


@pytest.mark.parametrize("name", BROKEN)
def test_broken_message(name: str) -> None:
    row = BROKEN[name]
    with pytest.raises(WireError) as refused:
        wire.parse(row["header"].encode(), (DATA / row["payload"]).read_bytes(), RECEIVED_NS)
    assert str(refused.value) == row["error"]
    assert wire.error_reply(refused.value) == b"ERR " + row["error"].encode()


@pytest.mark.parametrize(
    ("header", "error"),
    [
        pytest.param(b'{"msg": "\xff"}', "header is not JSON", id="not UTF-8"),
        pytest.param(b"\xff\xfe{", "header is not JSON", id="half a UTF-16"),
        pytest.param(b'{"msg": "pi1"}\0', "header is not JSON", id="NUL at the end"),
        pytest.param(b"[" * 4096, "header is not JSON", id="deep nesting"),
        pytest.param(b'{"msg": ' * 512, "header is not JSON", id="deep objects"),
        pytest.param(
            b'{"msg": ' + b"9" * 4080 + b"}", "camera name must be 1 to 64 of A-Z a-z 0-9 . _ -", id="long number"
        ),
    ],
)
def test_broken_header(header: bytes, error: str) -> None:
    with pytest.raises(WireError) as refused:
        wire.parse(header, JPEG, RECEIVED_NS)
    assert str(refused.value) == error


COMMON = wire.make_header("pi1", extras={"start": "a", "clock": True, "every": 0.5, "offset": 1, "offset_error": 2})


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(wire.add_counts(COMMON, 7, 8, 9, None), id="counts"),
        pytest.param(wire.add_counts(COMMON, 7, 8, 9, (-3, 4)), id="counts and offset"),
        pytest.param(wire.add_counts(COMMON, 2**63 - 1, 9 * 10**18, 0, (-(2**63) + 1, 0)), id="the largest counts"),
        pytest.param(wire.add_counts(b'{"seq":1,"offset":5,"msg":"pi1"}', 7, 8, 9, (3, 4)), id="half an offset before"),
        pytest.param(COMMON[:-1] + b',"seq":7,"captured":8,"dropped":9,"offset":3}', id="half an offset after"),
        pytest.param(wire.add_counts(wire.add_counts(COMMON, 1, 2, 3, None), 7, 8, 9, None), id="counts twice"),
        pytest.param(wire.add_counts(b'{"msg":"pi1" }', 7, 8, 9, None), id="white space before"),
        pytest.param(wire.add_counts(COMMON, 7, 8, 9, None) + b" ", id="white space after"),
    ],
)
def test_a_header_that_begins_as_one_before_is_read_like_the_first(header: bytes) -> None:
    expected = wire._read_whole(header)
    for counts in ((0, 0, 0, None), (5, 6, 7, (8, 9))):  # what is remembered is of other counts
        with contextlib.suppress(WireError):
            wire.parse(wire.add_counts(header[: header.rfind(b',"seq"')] + b"}", *counts), JPEG, 0)
    frame = wire.parse(header, JPEG, RECEIVED_NS)
    assert {name: value for name, value in vars(frame).items() if name in expected} == expected


@pytest.mark.parametrize(
    ("header", "error"),
    [
        pytest.param(wire.add_counts(COMMON, 2**63, 8, 9, None), "seq must be an integer from 0", id="too large"),
        pytest.param(wire.add_counts(COMMON, 7, -8, 9, None), "captured must be an integer from 0", id="negative"),
        pytest.param(wire.add_counts(COMMON, 7, 8, 9, (0, -1)), "offset_error must be an integer from 0", id="error"),
        pytest.param(wire.add_counts(COMMON, 7, 8, 9, None)[:-1], "header is not JSON", id="no end"),
        pytest.param(wire.add_counts(COMMON, 7, 8, 9, None) + b"}", "header is not JSON", id="two ends"),
        pytest.param(COMMON[:-1] + b',"seq":07,"captured":8,"dropped":9}', "header is not JSON", id="leading zero"),
        pytest.param(b'{"a":' + wire.add_counts(COMMON, 7, 8, 9, None), "header is not JSON", id="open before"),
        pytest.param(wire.add_counts(b'{"msg":"p"i}', 7, 8, 9, None), "header is not JSON", id="broken before"),
        pytest.param(wire.add_counts(b'{"msg":"pi1', 7, 8, 9, None), "header is not JSON", id="in a string"),
        pytest.param(wire.add_counts(b"{}", 7, 8, 9, None), "header is not JSON", id="nothing before"),
        pytest.param(
            wire.add_counts(b'{"msg":"pi1","x":"%b"}' % (4050 * b"x"), 7, 8, 9, None),
            "header of 4103 bytes, at most 4096 are allowed",
            id="too long",
        ),
    ],
)
def test_a_broken_header_is_refused_whatever_it_begins_with(header: bytes, error: str) -> None:
    wire.parse(wire.add_counts(COMMON, 0, 0, 0, None), JPEG, 0)
    with pytest.raises(WireError) as refused:
        wire.parse(header, JPEG, RECEIVED_NS)
    assert str(refused.value) == error


# -- replies


@pytest.mark.parametrize(
    ("fields", "reply"),
    [
        ({}, b"OK"),
        ({"clock": False}, b"OK"),
        ({"seq": 1, "captured": 5, "offset": 3, "offset_error": 2}, b"OK"),
        ({"clock": True}, b"OK 1793500000987654321"),
    ],
)
def test_the_reply_says_the_time_only_to_who_asks(fields: dict[str, object], reply: bytes) -> None:
    frame = wire.parse(wire.make_header("pi1", extras=fields), JPEG, RECEIVED_NS)
    assert wire.reply_to(frame) == reply
    assert wire.read_stamp(reply) == (RECEIVED_NS if fields.get("clock") else None)


@pytest.mark.parametrize(("reply", "stamp_ns"), [(b"OK 0", 0), (b"OK 9223372036854775807", 2**63 - 1)])
def test_stamp_in_a_reply(reply: bytes, stamp_ns: int) -> None:
    assert wire.read_stamp(reply) == stamp_ns


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"OK",
        b"OK ",
        b"OK  1",
        b"OK -1",
        b"OK +1",
        b"OK 1.0",
        b"OK 1_0",
        b"OK 1 ",
        b"OK 1 2",
        b"OK\n1",
        b"ok 1",
        b"ERR 1",
        b"1793500000987654321",
        "OK \u0661".encode(),
        b"OK 9223372036854775808",
        b"OK " + b"9" * 60_000,  # of more digits than int() takes
    ],
)
def test_any_other_reply_has_no_stamp(reply: bytes) -> None:
    assert wire.read_stamp(reply) is None


# -- limits, each at its edge


@pytest.mark.parametrize(("size", "good"), [(4096, True), (4097, False)])
def test_header_limit(size: int, good: bool) -> None:
    filling = "x" * (size - len('{"msg":"pi1","fill":""}'))
    header = f'{{"msg":"pi1","fill":"{filling}"}}'.encode()
    assert len(header) == size
    if good:
        assert wire.read_header(header)["msg"] == "pi1"
        assert wire.make_header("pi1", extras={"fill": filling}) == header
        return
    error = "header of 4097 bytes, at most 4096 are allowed"
    with pytest.raises(WireError, match=error):
        wire.read_header(header)
    with pytest.raises(WireError, match=error):
        wire.make_header("pi1", extras={"fill": filling})


PAYLOAD_MAX = 32 * 1024 * 1024


def jpeg_of(length: int) -> bytes:
    return JPEG[:-2].ljust(length - 2, b"\0") + JPEG[-2:]


def test_largest_payload() -> None:
    assert wire.jpeg_to_send(jpeg_of(PAYLOAD_MAX)).nbytes == PAYLOAD_MAX
    payload, dtype, shape = wire.array_to_send(np.zeros((4096, 8192), "uint8"))
    header = wire.make_header("pi1", dtype=dtype, shape=shape)
    assert wire.parse(header, payload.cast("B"), RECEIVED_NS).height == 4096


def test_payload_too_large() -> None:
    with pytest.raises(WireError, match="payload of 33554433 bytes, at most 33554432 are allowed"):
        wire.jpeg_to_send(jpeg_of(PAYLOAD_MAX + 1))
    with pytest.raises(WireError, match="payload of 33562624 bytes, at most 33554432 are allowed"):
        wire.array_to_send(np.zeros((4097, 8192), "uint8"))


@pytest.mark.parametrize(("sides", "good"), [((8000, 8000), True), ((8001, 8000), False), ((65535, 65535), False)])
def test_pixel_limit(sides: tuple[int, int], good: bool) -> None:
    huge = (DATA / "huge.jpg").read_bytes()
    size = [side.to_bytes(2, "big") for side in (8000, 8001, *reversed(sides))]
    jpeg = huge.replace(b"".join(size[:2]), b"".join(size[2:]))
    if good:
        assert wire.check_jpeg(jpeg) == sides
        return
    with pytest.raises(WireError, match="at most 64 megapixels"):
        wire.check_jpeg(jpeg)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("a", True),
        ("Z9._-", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        ("a/b", False),
        ("a\n", False),
        ("é", False),
        ("٣", False),
        (b"a", False),
        (1, False),
        (None, False),
        (["a"], False),
    ],
)
def test_camera_name(name: object, good: bool) -> None:
    assert wire.is_camera_name(name) is good


@pytest.mark.parametrize(
    ("name", "good"),
    [("0.1.0+a968bc91298f.py313", True), ("+", True), ("a" * 64, True), ("a" * 65, False), ("", False), (1, False)],
)
def test_release_name(name: object, good: bool) -> None:
    assert wire.is_release(name) is good


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\xe0\x00\x02", b"\xff\xfe\x00\x00\xff\xe0\x00\x02"])
def test_a_jpeg_of_nothing_but_markers_is_refused_at_once(filling: bytes) -> None:
    # The hub checks on its receiving thread: 32 MiB of this kept it busy for ten seconds.
    jpeg = b"\xff\xd8" + filling * (31 * 1024 * 1024 // len(filling)) + JPEG[2:]
    began = time.process_time()
    with pytest.raises(WireError, match="JPEG has no frame header"):
        wire.check_jpeg(jpeg)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("column", [(), (1,)], ids=["OpenCV", "OpenCV before 4.5.4"])
@pytest.mark.parametrize("extras", [{}, {"seq": 1, "captured": 2, "dropped": 3}], ids=["stock", "ours"])
def test_a_jpeg_that_was_sent_as_an_array_is_a_jpeg(column: tuple[int, ...], extras: dict[str, int]) -> None:
    header = wire.make_header("pi1", dtype="uint8", shape=(len(JPEG), *column), extras=extras)
    frame = wire.parse(header, memoryview(JPEG), RECEIVED_NS)
    assert (frame.dtype, frame.shape, frame.width, frame.height) == (None, None, 24, 16)
    assert frame.jpeg == JPEG
    with pytest.raises(WireError, match="payload is not a whole JPEG"):
        wire.parse(header, JPEG[:-1] + b"x", RECEIVED_NS)


@pytest.mark.parametrize(
    "fields", [{"dtype": "int8", "shape": (len(JPEG), 1)}, {"dtype": "uint8", "shape": (1, len(JPEG))}]
)
def test_another_array_is_none(fields: dict[str, Any]) -> None:
    assert wire.parse(wire.make_header("pi1", **fields), JPEG, RECEIVED_NS).shape == fields["shape"]


def test_headers_without_end_fill_no_memory() -> None:
    for number in range(1100):
        wire.parse(wire.add_counts(wire.make_header(f"pi{number}"), 0, 0, 0, None), JPEG, RECEIVED_NS)
    assert wire._read_common.cache_info().currsize == 1024


# -- dtypes


PLAIN = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32"]
PLAIN += ["float64", "complex64", "complex128", ">u2", "<u2", ">i4", ">f4", ">f8", "<f2", ">c8", "|u1", "|b1", "=i8"]


@pytest.mark.parametrize("dtype", PLAIN)
def test_plain_dtypes(dtype: str) -> None:
    assert wire.item_bytes(dtype) == np.dtype(dtype).itemsize


def test_what_is_taken_is_what_numpy_makes_of_it() -> None:
    kinds, sizes, orders = "biufcOSUVmMg?", (0, 1, 2, 3, 4, 8, 16, 32), ("", *"<>|=")
    words = "bool", "int", "uint", "float", "complex", "object", "str", "bytes", "void", "datetime", "timedelta"
    named = [f"{word}{bits}" for word in words for bits in ("", 8, 16, 32, 64, 128, 256)]
    short = [f"{order}{kind}{size}" for order in orders for kind in kinds for size in sizes]
    taken = {}
    for dtype in named + short:
        with contextlib.suppress(WireError):
            taken[dtype] = wire.item_bytes(dtype)
    assert set(PLAIN) <= set(taken)
    assert taken == {dtype: np.dtype(dtype).itemsize for dtype in taken if np.dtype(dtype).kind in "biufc"}


@pytest.mark.parametrize(
    "dtype", ["object", "|O8", "<U4", "|S1", "|V2", "<M8[ns]", "float128", "f16", "u3", "", "uint8 "]
)
def test_other_dtypes(dtype: str) -> None:
    with pytest.raises(WireError, match="is not a plain numeric type"):
        wire.item_bytes(dtype)


def test_a_long_dtype_is_not_quoted_whole() -> None:
    with pytest.raises(WireError) as refused:
        wire.item_bytes("x" * 3000)
    assert len(str(refused.value)) < 100


# -- sending


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        pytest.param(np.arange(24, dtype="uint8").reshape(2, 4, 3), "uint8", id="colour"),
        pytest.param(np.arange(8, dtype="uint8").reshape(2, 4), "uint8", id="grey"),
        pytest.param(np.arange(8, dtype="float32").reshape(2, 4), "float32", id="float"),
        pytest.param(np.arange(8, dtype=">u2").reshape(2, 4), ">u2", id="big-endian"),
        pytest.param(np.arange(8).reshape(2, 4) % 2 == 0, "bool", id="boolean"),
        pytest.param(np.arange(24, dtype="uint8").reshape(2, 4, 3)[:, ::-1], "uint8", id="mirrored"),
        pytest.param(np.asfortranarray(np.arange(8, dtype="int32").reshape(2, 4)), "int32", id="Fortran's order"),
    ],
)
def test_array_arrives_as_it_was_sent(array: np.ndarray[Any, Any], dtype: str) -> None:
    payload, sent_dtype, shape = wire.array_to_send(array)
    assert (sent_dtype, shape) == (dtype, array.shape)
    header = wire.make_header("pi1", dtype=sent_dtype, shape=shape)
    frame = wire.parse(header, payload.cast("B"), RECEIVED_NS)
    assert (frame.width, frame.height, frame.dtype) == (4, 2, dtype)
    np.testing.assert_array_equal(frame.image, array)


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.zeros((2, 4), "uint8")
    payload, _, _ = wire.array_to_send(array)
    array[1, 3] = 7
    assert payload[1, 3] == 7


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.zeros((2, 2), "object"), id="objects"),
        pytest.param(np.zeros((2, 2), "U1"), id="text"),
        pytest.param(np.zeros((2, 2), "M8[s]"), id="dates"),
        pytest.param(np.zeros((2, 2), [("x", "u1")]), id="records"),
        pytest.param(np.zeros((2, 0), "uint8"), id="nothing"),
        pytest.param(np.zeros((), "uint8"), id="no dimension"),
        pytest.param(np.zeros((1,) * 9, "uint8"), id="nine dimensions"),
    ],
)
def test_array_that_cannot_be_sent(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(WireError):
        wire.array_to_send(array)


@pytest.mark.parametrize(
    "jpeg",
    [
        pytest.param(JPEG, id="bytes"),
        pytest.param(bytearray(JPEG), id="bytearray"),
        pytest.param(memoryview(JPEG), id="memoryview"),
        pytest.param(np.frombuffer(JPEG, "uint8"), id="array of OpenCV 4"),
        pytest.param(np.frombuffer(JPEG, "uint8").reshape(-1, 1), id="array of OpenCV 3"),
    ],
)
def test_jpeg_of_any_buffer_can_be_sent(jpeg: Buffer) -> None:
    payload = wire.jpeg_to_send(jpeg)
    assert (payload.format, payload.ndim, payload.tobytes()) == ("B", 1, JPEG)


@pytest.mark.parametrize("jpeg", [b"", b"\xff\xd8", JPEG[:-1], JPEG[1:], JPEG + b"\0", JPEG[:-2] + b"\0\xd9"])
def test_what_is_no_whole_jpeg_cannot_be_sent(jpeg: bytes) -> None:
    with pytest.raises(WireError, match="not a whole JPEG"):
        wire.jpeg_to_send(jpeg)


@pytest.mark.parametrize("label", ["pi1", "Zoë", 5, None, ["a", 1], {"x": [1.5, True]}])
def test_imagezmq_labels_may_be_any_json_value(label: object) -> None:
    assert wire.read_header(wire.make_header(label)) == {"msg": label}


@pytest.mark.parametrize("label", [b"pi1", {1, 2}, object()])
def test_label_that_is_not_json(label: object) -> None:
    with pytest.raises(WireError, match="cannot be written as JSON"):
        wire.make_header(label)


def test_label_that_contains_itself() -> None:
    label: list[object] = []
    label.append(label)
    with pytest.raises(WireError, match="cannot be written as JSON"):
        wire.make_header(label)


def test_extras_that_are_not_known_are_left_out() -> None:
    assert wire.make_header("pi1", extras={"seq": 0, "every": None}) == b'{"msg":"pi1","seq":0}'


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"OK", None),
        (b"OK 1700000000000000000", None),
        (b"ERR", None),
        (wire.error_reply(WireError("camera name is empty")), "camera name is empty"),
        (b"ERR \x1b[2J\n\xff", "\\x1b[2J\\n\ufffd"),
        (b"ERR " + b"x" * 60_000, "x" * 300),
    ],
)
def test_why_a_hub_refuses_is_one_short_line(reply: bytes, why: str | None) -> None:
    assert wire.refusal_reason(reply) == why
