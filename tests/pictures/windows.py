"""Takes the README's pictures of the windows: a hub and eight senders as real processes, on a virtual screen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageGrab

from tests.conftest import until
from tests.screen import virtual_screen

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = [f"pi{number}" for number in range(1, 9)]
GONE, STALE = "pi5", "pi6"


def windows_screenshots(directory: Path, videos: Sequence[Path] = ()) -> None:
    """Write `windows.png`, in which a camera is stale, and `grid.png`, in which another is gone as well.

    Args:
        directory: where to.
        videos: played by the last cameras, where the others send the test card.
    """
    _take(directory / "windows.png", (1200, 530), {"window_width": 300}, videos, silent=[STALE])
    settings = {"layout": "2x4", "window_width": 318, "gone_after_s": 10}
    _take(directory / "grid.png", (1280, 556), settings, videos, silent=[GONE, STALE])


def _take(
    file: Path, size: tuple[int, int], settings: dict[str, Any], videos: Sequence[Path], *, silent: list[str]
) -> None:
    """Run the fleet, let one camera after the other fall silent for 6 s, and write what is on the screen then."""
    cards = len(NAMES) - len(videos)
    cameras = ["pattern"] * cards + [f"file:{video}" for video in videos]
    with ExitStack() as running:
        display = running.enter_context(virtual_screen(*size))
        config = Path(running.enter_context(tempfile.TemporaryDirectory())) / "hub.yml"
        settings = {
            "cameras": NAMES,
            "display": "windows",
            "bind": "tcp://127.0.0.1:0",
            "http": "127.0.0.1:0",
        } | settings
        config.write_text(json.dumps(settings), encoding="utf-8")  # which is YAML too

        def start(*arguments: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "streamer", *arguments],
                env={**os.environ, "DISPLAY": display},
                stdout=subprocess.PIPE,
                text=True,
            )
            running.callback(process.communicate)
            running.callback(process.terminate)
            return process

        hub = start("hub", "--config", str(config))
        assert hub.stdout
        endpoint, wall = (hub.stdout.readline().split()[1] for _ in range(2))

        def all_live() -> bool:
            return all(row["frames"] > 60 and row["age_s"] < 1 for row in _table(wall))

        def is_silent(name: str) -> bool:
            return any(row["name"] == name and row["age_s"] > 6.2 for row in _table(wall))

        senders = {
            name: start("send", "--hub", endpoint, "--name", name, "--camera", camera, "--fps", "15")
            for name, camera in zip(NAMES, cameras, strict=True)
        }
        until(all_live, 60)
        for name in silent:
            senders[name].terminate()
            until(partial(is_silent, name), 60)
        ImageGrab.grab(xdisplay=display).save(file, optimize=True)


def _table(wall: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{wall}api/cameras") as answer:  # `wall` ends with a slash
        rows: list[dict[str, Any]] = json.load(answer)
    return rows
