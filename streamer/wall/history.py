"""The last minutes of every camera, for the sparklines on the page of numbers."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamer.presence import Status

EVERY_S = 2.0
POINTS = 150
FIELDS = ("fps", "latency_ms", "bytes_per_s")


class History:
    """Keeps `POINTS` samples of `FIELDS` for every camera, one every `EVERY_S` seconds."""

    def __init__(self) -> None:
        self._cameras: dict[str, deque[tuple[float | None, ...]]] = {}

    def add(self, statuses: Iterable[Status]) -> None:
        """Add a sample; forget cameras that are no longer in the table."""
        before, self._cameras = self._cameras, {}
        for status in statuses:
            samples = self._cameras[status.name] = before.get(status.name, deque(maxlen=POINTS))
            samples.append(tuple(getattr(status, field) for field in FIELDS))

    def table(self) -> dict[str, Any]:
        """Return the samples, oldest first: `{every_s, points, cameras: {name: {field: [value, …]}}}`."""
        cameras = {
            name: {field: [sample[at] for sample in samples] for at, field in enumerate(FIELDS)}
            for name, samples in self._cameras.items()
        }
        return {"every_s": EVERY_S, "points": POINTS, "cameras": cameras}
