"""Real footage as the pictures that are sent: JPEG of three sizes, and raw arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.bench.measure import RESULTS

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

COUNT = 24  # about a second of the video, sent over and over
VIDEO = "bigbuckbunny.mp4"
# By name: width, height, JPEG quality; None for raw.
FORMATS: dict[str, tuple[int, int, int | None]] = {
    "640x480 q95": (640, 480, 95),
    "320x240 q80": (320, 240, 80),
    "1280x720 q85": (1280, 720, 85),
    "640x480 raw": (640, 480, None),
}


def load(name: str) -> list[Any]:
    """Return the pictures of a format: bytes, or arrays of shape (height, width, 3)."""
    import numpy as np

    stored = np.load(_path(name), allow_pickle=False)
    if FORMATS[name][2] is None:
        return list(stored["pictures"])
    return [stored[key].tobytes() for key in stored]


def make() -> None:
    """Make all, where they are missing: the video is fetched, decoded, scaled and encoded once."""
    if all(_path(name).exists() for name in FORMATS):
        return
    import cv2
    import numpy as np

    from streamer.codec import encode_jpeg
    from tests.lab import images
    from tests.lab.lab import CACHE

    CACHE.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    video = cv2.VideoCapture(str(images.footage(CACHE) / VIDEO))
    frames: list[npt.NDArray[np.uint8]] = []
    while len(frames) < COUNT:
        done, frame = video.read()
        assert done, VIDEO
        frames.append(frame.astype(np.uint8, copy=False))
    for name, (width, height, quality) in FORMATS.items():
        scaled = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8) for frame in frames]
        if quality is None:
            np.savez(_path(name), pictures=np.stack(scaled))
        else:
            np.savez(_path(name), *[np.frombuffer(encode_jpeg(picture, quality), np.uint8) for picture in scaled])


def _path(name: str) -> Path:
    return RESULTS / f"{name.replace(' ', '-')}.npz"
