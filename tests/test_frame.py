from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from streamer import codec
from streamer.errors import CodecError
from streamer.frame import Frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

DATA = Path(__file__).parent / "data"
JPEG = (DATA / "colour.jpg").read_bytes()


def of_array(array: np.ndarray[Any, Any]) -> Frame:
    height, width = array.shape[:2]
    # The memory of what zmq receives can be written to.
    return Frame("pi1", memoryview(bytearray(array.tobytes())), width, height, 0, str(array.dtype), array.shape)


def of_jpeg(jpeg: bytes = JPEG) -> Frame:
    return Frame("pi1", memoryview(jpeg), *codec.jpeg_size(jpeg), 0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the codec is asked for."""
    asked: list[str] = []

    def noted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object) -> object:
            asked.append(name)
            return function(*given)

        return call

    for name in ("decode_jpeg", "encode_jpeg"):
        monkeypatch.setattr(codec, name, noted(name, getattr(codec, name)))
    return asked


def test_a_frame_cannot_be_changed() -> None:
    frame = of_jpeg()
    for field in dataclasses.fields(frame):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frame, field.name, None)


def test_frames_are_the_same_only_when_they_are_one() -> None:
    frame = of_jpeg()
    assert frame != of_jpeg()
    assert len({frame, of_jpeg(), frame}) == 2


@pytest.mark.parametrize(
    ("fields", "latency_ns"),
    [
        pytest.param({}, None, id="a stock sender says nothing"),
        pytest.param({"captured_ns": 995_000}, None, id="by a clock that may be any"),
        pytest.param({"offset_ns": 5, "offset_error_ns": 5}, None, id="not when it was captured"),
        pytest.param({"captured_ns": 995_000, "offset_ns": 0, "offset_error_ns": 0}, 5_000, id="same clock"),
        pytest.param({"captured_ns": 0, "offset_ns": 400_000, "offset_error_ns": 0}, 600_000, id="sender behind"),
        pytest.param({"captured_ns": 10**18, "offset_ns": 10**5 - 10**18, "offset_error_ns": 9}, 900_000, id="ahead"),
        pytest.param({"captured_ns": 0, "offset_ns": 1_000_300, "offset_error_ns": 300}, 0, id="below 0 by the error"),
        pytest.param({"captured_ns": 0, "offset_ns": 1_000_301, "offset_error_ns": 300}, None, id="and by more"),
    ],
)
def test_latency_is_told_only_when_both_clocks_are_known(fields: dict[str, int], latency_ns: int | None) -> None:
    assert Frame("pi1", JPEG, 24, 16, received_ns=1_000_000, **fields).latency_ns == latency_ns  # type: ignore[arg-type]


def test_jpeg_is_decoded_once_and_only_when_asked_for(decoded: list[str]) -> None:
    frame = of_jpeg()
    assert frame.is_jpeg
    assert frame.jpeg is frame.payload
    assert decoded == []
    assert frame.image is frame.image
    assert decoded == ["decode_jpeg"]
    assert frame.image.shape == (frame.height, frame.width, 3)
    np.testing.assert_array_equal(frame.image, codec.decode_jpeg(JPEG))


@pytest.mark.parametrize("shape", [(16, 24, 3), (16, 24), (16, 24, 1)])
def test_array_is_encoded_once_and_only_when_asked_for(decoded: list[str], shape: tuple[int, ...]) -> None:
    array = np.linspace(0, 255, np.prod(shape)).astype("uint8").reshape(shape)
    frame = of_array(array)
    assert not frame.is_jpeg
    np.testing.assert_array_equal(frame.image, array)
    assert decoded == []
    assert frame.jpeg is frame.jpeg
    assert decoded == ["encode_jpeg"]
    assert codec.jpeg_size(frame.jpeg) == (24, 16)
    image = codec.decode_jpeg(frame.jpeg).astype(int)
    assert np.abs(image - array.reshape(16, 24, -1)).mean() < 4


@pytest.mark.parametrize("dtype", ["uint8", "float32", ">u2", "<i4", "bool", "complex64"])
def test_array_of_any_dtype_is_what_was_sent(dtype: str) -> None:
    array = np.arange(24).reshape(4, 6).astype(dtype)
    image = of_array(array).image
    assert image.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(image, array)


def test_array_is_a_view_that_cannot_be_written() -> None:
    frame = of_array(np.zeros((4, 6), "uint8"))
    assert np.shares_memory(frame.image, np.frombuffer(frame.payload, "uint8"))
    with pytest.raises(ValueError, match="read-only"):
        frame.image[0, 0] = 1


@pytest.mark.parametrize(
    "array", [np.zeros((4, 6, 3), "float32"), np.zeros((4, 6), ">u2"), np.zeros((4, 6, 2), "uint8")]
)
def test_array_that_no_jpeg_can_show(array: np.ndarray[Any, Any]) -> None:
    frame = of_array(array)
    with pytest.raises(CodecError, match="only uint8 arrays"):
        frame.jpeg  # noqa: B018 - asking is the test
    assert frame.image.shape == array.shape


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda frame: pickle.loads(pickle.dumps(frame))])
@pytest.mark.parametrize("used", [False, True])
def test_a_frame_can_be_given_to_another_process(copied: Callable[[Frame], Frame], used: bool) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    frame = Frame("pi1", memoryview(array.tobytes()), 4, 2, 5, dtype="uint8", shape=(2, 4, 3), seq=7)
    if used:
        assert frame.jpeg is not None
    other = copied(frame)
    assert np.array_equal(other.image, array)
    assert (other.camera, other.seq, other.received_ns, other.jpeg) == ("pi1", 7, 5, frame.jpeg)
    assert set(vars(other)) == set(vars(frame)) | {"image", "jpeg"}


def test_damaged_jpeg_still_goes_on_as_it_came() -> None:
    damaged = (DATA / "damaged.jpg").read_bytes()
    frame = of_jpeg(damaged)
    assert frame.jpeg == damaged
    with pytest.raises(CodecError):
        frame.image  # noqa: B018 - asking is the test


@pytest.mark.parametrize(
    ("makes", "slow", "other"),
    [
        ("encode_jpeg", of_array(np.zeros((2, 2, 3), np.uint8)), of_jpeg()),
        ("decode_jpeg", of_jpeg(), of_array(np.zeros((2, 2, 3), np.uint8))),
    ],
)
def test_frame_does_not_wait_for_what_is_made_of_another(
    makes: str, slow: Frame, other: Frame, monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor
) -> None:
    name = "jpeg" if makes == "encode_jpeg" else "image"
    begun, go_on = threading.Event(), threading.Event()

    def make(*_: object) -> object:
        begun.set()
        assert go_on.wait(10)
        return object()

    monkeypatch.setattr(codec, makes, make)
    making = [pool.submit(getattr, slow, name) for _ in range(2)]
    try:
        assert begun.wait(10)
        pool.submit(getattr, other, name).result(5)
    finally:
        go_on.set()
    first, second = (each.result(10) for each in making)
    assert first is second is getattr(slow, name)
