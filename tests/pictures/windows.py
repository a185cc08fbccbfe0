"""Takes the README's pictures of the windows: a hub and eight senders as real processes, on a virtual screen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from PIL import ImageGrab

from tests.browser import Fleet
from tests.conftest import until
from tests.screen import virtual_screen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMES = [f"pi{number}" for number in range(1, 9)]
GONE, STALE = "pi5", "pi6"


def windows_screenshots(directory: Path, videos: Sequence[Path] = ()) -> None:
    """Write `windows.png`, in which a camera is stale, and `grid.png`, in which another is gone as well.

    Args:
        directory: where to.
        videos: played by the last cameras, where the others send the test card.
    """
    _take(directory / "windows.png", (1200, 570), {"window_width": 300}, videos, silent=[STALE])
    settings = {"layout": "2x4", "window_width": 318, "gone_after_s": 10}
    _take(directory / "grid.png", (1280, 556), settings, videos, silent=[GONE, STALE])


def _take(
    file: Path, size: tuple[int, int], settings: dict[str, Any], videos: Sequence[Path], *, silent: list[str]
) -> None:
    """Run the fleet, let one camera after the other fall silent for 6 s, and write what is on the screen then."""
    played = ["pattern"] * (len(NAMES) - len(videos)) + [f"file:{video}" for video in videos]
    cameras = dict(zip(NAMES, played, strict=True))
    with (
        virtual_screen(*size) as display,
        Fleet(cameras, size="640x480", screen=display, display="windows", **settings) as fleet,
    ):
        time.sleep(4)  # for every window to be in its place, and for a person to find the moment a good one
        for name in silent:
            fleet.senders[name].process.kill()
            row = NAMES.index(name)
            until(lambda: fleet.ask("api/cameras")[row]["age_s"] > 6.2, 60)  # noqa: B023 - it is asked at once
        ImageGrab.grab(xdisplay=display).save(file, optimize=True)
