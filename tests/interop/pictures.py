"""What the programs here send to each other, and how they name what came."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from streamer.codec import encode_jpeg

Array = npt.NDArray[Any]

_GRID = np.arange(24 * 32 * 3).reshape(24, 32, 3)
ARRAYS: list[Array] = [
    _GRID.astype(np.uint8),
    _GRID[..., 0].astype(np.uint8),
    _GRID.astype(np.float32) / 7,
    _GRID.astype(">u2"),
    _GRID.astype(np.uint8)[::2, ::-1],
    _GRID.astype(np.uint8).transpose(1, 0, 2),
    np.resize(_GRID.astype(np.uint8), (480, 640, 3)),
]
JPEGS: list[bytes] = [encode_jpeg(np.roll(_GRID.astype(np.uint8), turn, axis=1), 90) for turn in range(7)]


def describe(array: Array) -> str:
    """Name an array by shape, type and content."""
    return f"{array.shape} {array.dtype} {zlib.crc32(np.ascontiguousarray(array).tobytes())}"


def describe_jpeg(jpeg: memoryview) -> str:
    """Name a JPEG by length and content."""
    return f"{jpeg.nbytes} bytes {zlib.crc32(jpeg)}"
