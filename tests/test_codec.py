from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest

from streamer import codec
from streamer.errors import CodecError, MissingExtraError
from tests.conftest import JPEG_LIBRARIES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamer.codec import Image

DATA = Path(__file__).parent / "data"


@pytest.fixture(params=JPEG_LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Only one JPEG library is installed."""
    for name in JPEG_LIBRARIES:
        if name != request.param:
            monkeypatch.setitem(sys.modules, name, None)
    codec.library.cache_clear()
    yield request.param
    codec.library.cache_clear()


def gradient(height: int, width: int) -> Image:
    """Blue grows to the right, green downwards, red is flat: no channel can be taken for another."""
    image = np.full((height, width, 3), 60, "uint8")
    image[:, :, 0] = np.linspace(0, 255, width)
    image[:, :, 1] = np.linspace(0, 255, height)[:, None]
    return image


def difference(left: Image, right: Image) -> float:
    return float(np.abs(left.astype(int) - right.astype(int)).mean())


# -- sizes


@pytest.mark.parametrize(
    ("file", "size"),
    [
        ("colour.jpg", (24, 16)),
        ("grey.jpg", (24, 16)),
        ("progressive.jpg", (24, 16)),
        ("fill-bytes.jpg", (24, 16)),
        ("turned.jpg", (24, 16)),
        ("huge.jpg", (8001, 8000)),
        ("no-height.jpg", (24, 0)),
    ],
)
def test_size(file: str, size: tuple[int, int]) -> None:
    jpeg = (DATA / file).read_bytes()
    assert codec.jpeg_size(jpeg) == size
    assert codec.jpeg_size(memoryview(jpeg)) == size


@pytest.mark.parametrize("marker", sorted(set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}))
def test_size_from_every_kind_of_frame(marker: int) -> None:
    assert codec.jpeg_size(b"\xff\xd8\xff" + bytes((marker, 0, 11, 8, 1, 2, 3, 4, 1, 1, 17, 0))) == (0x304, 0x102)


@pytest.mark.parametrize("marker", [0xC4, 0xC8, 0xCC])
def test_tables_are_no_frame(marker: int) -> None:
    with pytest.raises(CodecError, match="no frame header"):
        codec.jpeg_size(b"\xff\xd8\xff" + bytes((marker, 0, 11, 8, 1, 2, 3, 4, 1, 1, 17, 0)))


@pytest.mark.parametrize(
    "jpeg",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xd8\xff\xd9", id="start and end"),
        pytest.param((DATA / "scan-first.jpg").read_bytes(), id="scan first"),
        pytest.param((DATA / "colour.jpg").read_bytes()[:160], id="cut before its frame"),
        pytest.param(b"\xff\xd8\x00\xff\xc0\x00\x0b\x08\x01\x02\x03\x04", id="no marker where one must be"),
        pytest.param(b"\xff\xd8\xff\xe0\xff\xff" + bytes(100), id="segment longer than the picture"),
        pytest.param(b"\xff\xd8\xff\xd8" + b"\xff\xc0\x00\x0b\x08\x01\x02\x03\x04", id="second start"),
    ],
)
def test_no_size(jpeg: bytes) -> None:
    with pytest.raises(CodecError, match="JPEG has no frame header"):
        codec.jpeg_size(jpeg)


def test_a_picture_with_a_large_profile_has_a_size() -> None:
    jpeg = (DATA / "colour.jpg").read_bytes()
    profile = b"\xff\xe2\xff\xff" + bytes(65533)
    assert codec.jpeg_size(jpeg[:2] + 255 * profile + jpeg[2:]) == (24, 16)


def test_size_of_a_picture_that_begins_as_the_last_is_the_lasts() -> None:
    small, large = (DATA / "colour.jpg").read_bytes(), (DATA / "huge.jpg").read_bytes()
    sizes = codec.JpegSizes()
    with mock.patch.object(codec, "find_segment", wraps=codec.find_segment) as read:
        assert [sizes.read(memoryview(jpeg)) for jpeg in (small, small + b"other", large, small)] == [
            (24, 16),
            (24, 16),
            (8001, 8000),
            (24, 16),
        ]
    assert read.call_count == 3


@pytest.mark.parametrize("before", ["colour.jpg", "progressive.jpg", "turned.jpg"])
def test_size_of_a_picture_that_begins_almost_as_the_last(before: str) -> None:
    jpeg = (DATA / before).read_bytes()
    frame = codec.find_segment(jpeg, codec._START_OF_FRAME)
    assert frame
    for at in range(2, frame + 9):
        other = jpeg[:at] + bytes([jpeg[at] ^ 1]) + jpeg[at + 1 :]
        sizes = codec.JpegSizes()
        sizes.read(jpeg)
        try:
            expected = codec.jpeg_size(other)
        except CodecError:
            with pytest.raises(CodecError):
                sizes.read(other)
        else:
            assert sizes.read(other) == expected
        assert sizes.read(jpeg) == (24, 16)


def test_a_long_beginning_is_not_kept() -> None:
    jpeg = (DATA / "colour.jpg").read_bytes()
    long = jpeg[:2] + b"\xff\xe2\xff\xff" + bytes(65533) + jpeg[2:]
    sizes = codec.JpegSizes()
    with mock.patch.object(codec, "find_segment", wraps=codec.find_segment) as read:
        assert [sizes.read(long) for _ in range(3)] == 3 * [(24, 16)]
    assert read.call_count == 3


# -- encoding and decoding, by each library


@pytest.mark.parametrize("quality", [1, 50, 85, 100])
@pytest.mark.parametrize("sides", [(48, 64), (33, 47), (1, 1)])
def test_colours_survive(library: str, sides: tuple[int, int], quality: int) -> None:
    image = gradient(*sides)
    jpeg = codec.encode_jpeg(image, quality)
    decoded = codec.decode_jpeg(jpeg)
    assert decoded.dtype == np.uint8
    assert decoded.shape == image.shape
    assert codec.jpeg_size(jpeg) == (sides[1], sides[0])
    if quality >= 50:
        assert difference(decoded, image) < 6


def test_higher_quality_is_nearer_and_larger(library: str) -> None:
    image = gradient(48, 64)
    coarse, fine = (codec.encode_jpeg(image, quality) for quality in (20, 95))
    assert len(coarse) < len(fine)
    assert difference(codec.decode_jpeg(fine), image) < difference(codec.decode_jpeg(coarse), image)


def test_chroma_is_halved(library: str) -> None:
    jpeg = codec.encode_jpeg(gradient(48, 64), 85)
    frame = jpeg.index(b"\xff\xc0")
    assert jpeg[frame + 9] == 3
    assert [jpeg[frame + 11 + 3 * component] for component in range(3)] == [0x22, 0x11, 0x11]


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 1)])
def test_greyscale(library: str, shape: tuple[int, ...]) -> None:
    grey = gradient(48, 64)[:, :, 0]
    jpeg = codec.encode_jpeg(grey.reshape(shape), 90)
    assert jpeg[jpeg.index(b"\xff\xc0") + 9] == 1
    decoded = codec.decode_jpeg(jpeg)
    assert decoded.shape == (48, 64, 3)
    assert difference(decoded, np.dstack([grey] * 3)) < 3


def test_of_four_channels_the_last_is_left_out(library: str) -> None:
    image = np.dstack([gradient(48, 64), np.full((48, 64), 9, np.uint8)])
    assert difference(codec.decode_jpeg(codec.encode_jpeg(image, 95)), gradient(48, 64)) < 6


@pytest.mark.parametrize(
    "at_least", [(1, 1), (80, 60), (81, 60), (160, 120), (300, 230), (330, 10), (640, 480), (2000, 10)]
)
def test_large_picture_may_come_out_smaller(library: str, at_least: tuple[int, int]) -> None:
    jpeg = codec.encode_jpeg(gradient(480, 640), 95)
    decoded = codec.decode_jpeg(jpeg, at_least)
    height, width = decoded.shape[:2]
    assert at_least[0] <= width <= 640 or width == 640
    assert at_least[1] <= height <= 480
    assert abs(width * 480 - height * 640) <= 640
    assert difference(decoded, gradient(height, width)) < 8
    if at_least > (320, 240):
        assert width == 640, "no picture is made smaller but to a half at most"
    if at_least <= (160, 120):
        assert width <= 160, "a quarter or an eighth is enough, and that is less work"


def test_small_picture_does_not_come_out_larger(library: str) -> None:
    jpeg = (DATA / "turned.jpg").read_bytes()
    assert codec.decode_jpeg(jpeg, (24, 17)).shape == (16, 24, 3)
    assert codec.decode_jpeg(jpeg, (12, 8)).shape == (8, 12, 3)


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(np.s_[:, ::-1], id="mirrored"),
        pytest.param(np.s_[::2, ::2], id="every second"),
        pytest.param(np.s_[:, :, ::-1], id="RGB"),
        pytest.param(np.s_[8:40, 8:56], id="part"),
    ],
)
def test_views_that_are_not_contiguous(library: str, view: Any) -> None:
    image = gradient(48, 64)[view]
    assert not image.flags.c_contiguous
    assert difference(codec.decode_jpeg(codec.encode_jpeg(image, 95)), image) < 6


@pytest.mark.parametrize("wrapped", [bytes, bytearray, memoryview])
def test_any_buffer_is_decoded(library: str, wrapped: type[bytes | bytearray | memoryview]) -> None:
    jpeg = (DATA / "colour.jpg").read_bytes()
    assert difference(codec.decode_jpeg(wrapped(jpeg)), codec.decode_jpeg(jpeg)) == 0


@pytest.mark.parametrize("file", ["progressive.jpg", "fill-bytes.jpg", "grey.jpg", "turned.jpg"])
def test_the_image_has_the_size_of_the_frame_header(library: str, file: str) -> None:
    jpeg = (DATA / file).read_bytes()
    assert codec.decode_jpeg(jpeg).shape == (*reversed(codec.jpeg_size(jpeg)), 3)


@pytest.mark.parametrize(
    "jpeg",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"no JPEG at all", id="text"),
        pytest.param((DATA / "empty.jpg").read_bytes(), id="start and end"),
        pytest.param((DATA / "scan-first.jpg").read_bytes(), id="scan first"),
        pytest.param((DATA / "no-height.jpg").read_bytes(), id="no height"),
        pytest.param(b"\xff\xd8\xff\xd0\0\4\0\0" + (DATA / "colour.jpg").read_bytes()[2:], id="restart first"),
        pytest.param((DATA / "cut.jpg").read_bytes(), id="cut"),
    ],
)
def test_what_cannot_be_decoded(library: str, jpeg: bytes) -> None:
    with pytest.raises(CodecError, match=r"\AJPEG decoder: .+\Z"):
        codec.decode_jpeg(jpeg)


@pytest.mark.parametrize(("file", "frame"), [("progressive.jpg", b"\xff\xc2"), ("colour.jpg", b"\xff\xc0")])
def test_scans_without_end_are_refused_before_they_are_decoded(library: str, file: str, frame: bytes) -> None:
    """Each goes over the whole picture, and takes ten bytes."""
    jpeg = (DATA / file).read_bytes()
    at, scan = jpeg.index(frame), jpeg.index(b"\xff\xda")
    huge = jpeg[: at + 5] + struct.pack(">HH", 8000, 8000) + jpeg[at + 9 : scan]
    with pytest.raises(CodecError, match=r"\AJPEG decoder: \d+ scans of 8000 x 8000 pixels are too many\Z"):
        codec.decode_jpeg(huge + 16 * b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + b"\xff\xd9")


def test_a_picture_of_one_scan_is_not_searched_for_more(library: str) -> None:
    width, height = 4000, 3000
    comment = b"\xff\xfe" + struct.pack(">H", 202) + 100 * b"\xff\xda"  # a hundred that are none
    jpeg = codec.encode_jpeg(np.zeros((height, width), "uint8"), 85)
    assert codec.decode_jpeg(jpeg[:2] + comment + jpeg[2:]).shape == (height, width, 3)


def test_simplejpeg_is_preferred_since_it_notices_damage() -> None:
    with pytest.raises(CodecError, match="Corrupt JPEG data"):
        codec.decode_jpeg((DATA / "damaged.jpg").read_bytes())


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros((4, 6, 3), "float32"), "this is float32 of 4x6x3"),
        (np.zeros((4, 6), ">u2"), "this is >u2 of 4x6"),
        (np.zeros((4, 6, 5), "uint8"), "this is uint8 of 4x6x5"),
        (np.zeros((4, 6, 2), "uint8"), "this is uint8 of 4x6x2"),
        (np.zeros(4, "uint8"), "this is uint8 of 4"),
        (np.zeros((1, 4, 6, 3), "uint8"), "this is uint8 of 1x4x6x3"),
        (np.zeros((0, 6, 3), "uint8"), r"\AJPEG encoder: .+\Z"),
        (np.zeros((2, 65536), "uint8"), r"\AJPEG encoder: .+\Z"),
    ],
)
def test_what_cannot_be_encoded(library: str, image: Image, error: str) -> None:
    with pytest.raises(CodecError, match=error):
        codec.encode_jpeg(image, 85)


# -- which library


def test_a_library_that_does_not_load_is_told_and_the_next_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ValueError("numpy.dtype size changed,\n may indicate binary incompatibility")

    monkeypatch.setattr(codec._SimpleJpeg, "__init__", fail)
    assert isinstance(codec.library.__wrapped__(), codec._OpenCv)
    assert caplog.messages == [
        "_SimpleJpeg does not load, another JPEG library is tried: numpy.dtype size changed, may indicate binary "
        "incompatibility"
    ]


@pytest.mark.usefixtures("no_jpeg_library")
def test_without_a_library() -> None:
    with pytest.raises(MissingExtraError, match="'opencv'"):
        codec.decode_jpeg((DATA / "colour.jpg").read_bytes())
    with pytest.raises(MissingExtraError, match="'opencv'"):
        codec.encode_jpeg(gradient(16, 16), 85)


@pytest.mark.usefixtures("no_jpeg_library")
def test_sizes_need_no_library() -> None:
    assert codec.jpeg_size((DATA / "colour.jpg").read_bytes()) == (24, 16)
