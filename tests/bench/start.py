"""Start and memory: `python -m tests.bench.start [--rounds N]`.

How long the command takes to say its help, and what a sender on the test card and a hub with its page hold in memory.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench.measure import ROOT, WAIT_S, Options, Row, free_ports, judge, keep, progress, resident_mb

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAMER = [sys.executable, "-m", "streamer"]
RUNS = 5
WARM_UP_S = 3.0


@dataclass
class Measurement:
    """Of one round: seconds until the help is there, the best of five; memory in MB; whether a sender loads OpenCV."""

    help_s: float
    sender_mb: float
    hub_mb: float
    sender_loads_opencv: bool


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[int]:
    """Run the command; gives its process."""
    process = subprocess.Popen([*STREAMER, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(WAIT_S)


def measure() -> Measurement:
    """Measure one round."""
    times = []
    for _ in range(RUNS):
        began = time.monotonic()
        subprocess.run([*STREAMER, "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - began)
    port, page = free_ports(2)
    endpoint, http = f"tcp://127.0.0.1:{port}", f"127.0.0.1:{page}"
    with (
        running("hub", "--bind", endpoint, "--http", http) as hub,
        running("send", "--hub", endpoint, "--camera", "pattern", "--name", "pi1") as sender,
    ):
        wait_live(f"http://{http}/api/cameras")
        time.sleep(WARM_UP_S)
        with open(f"/proc/{sender}/maps") as maps:  # noqa: PTH123 - it has no size
            opencv = "cv2" in maps.read()
        return Measurement(min(times), resident_mb(sender), resident_mb(hub), opencv)


def wait_live(url: str) -> None:
    """Wait until the hub has its camera."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url) as answer:
            if any(row["state"] == "LIVE" for row in json.load(answer)):
                return
        time.sleep(0.1)
    raise TimeoutError(f"{url}: no camera within {WAIT_S:g} s")


def run(options: Options) -> list[Row]:
    """Measure all."""
    done = []
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}: start and memory")
        done.append(measure())
    work = "start and memory"
    rows = [
        judge(work, "streamer --help, best of five", [each.help_s for each in done], "<= 0.15", "s", 3),
        judge(work, "sender on the test card, 640x480 at 30", [each.sender_mb for each in done], "<= 40", "MB"),
        judge(work, "hub with its page, one camera", [each.hub_mb for each in done], "<= 70", "MB"),
        judge(work, "OpenCV in that sender", [each.sender_loads_opencv for each in done], "<= 0", "loaded", 0),
    ]
    keep("start", options, done, rows)
    return rows
