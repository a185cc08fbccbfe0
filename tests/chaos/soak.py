"""Whether anything grows: `python -m tests.chaos.soak [--frames N] [--reconnects N]`.

Eight senders in a process of their own send small JPEGs to the real `streamer hub` as fast as it takes them; then over
a line that cuts every connection after some frames. Memory and descriptors of both processes are sampled all the
while, and every frame is accounted for: received, or lost with a connection that was cut. Prints a table, and keeps the
samples in build/soak.json and as a picture in build/soak.svg; ends with status 1 when something grew or is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamer
from tests.chaos.cases import rows
from tests.chaos.fleet import free_port
from tests.chaos.line import Line
from tests.chaos.unit import ROOT, Unit
from tests.peers import JPEG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SENDERS = [f"pi{number}" for number in range(1, 9)]
FRAMES_A_CONNECTION = 5
# Allocators keep what they once had; what grows for ever is beyond any such step.
GROWN_MAX_MB = 3.0
GROWN_MAX_FILES = 16  # connections that come and go at the moment of sampling
STUCK_S = 60.0
KEPT = ROOT / "build"


@dataclass
class Sample:
    """What the processes hold: MB, and descriptors, when so much was done."""

    done: int
    at_s: float
    hub_mb: float
    hub_files: int
    senders_mb: float
    senders_files: int


@dataclass
class Result:
    """What a soak came to."""

    told: str
    done: int
    took_s: float
    received: int
    unaccounted: int
    samples: list[Sample]

    def grown(self, what: str) -> float:
        """How much more there is at the end than when a tenth was done: the median of a tenth each."""
        tenth = max(1, len(self.samples) // 10)
        early, late = (sorted(getattr(sample, what) for sample in part)[tenth // 2] for part in self._ends(tenth))
        return float(late - early)

    def _ends(self, tenth: int) -> tuple[list[Sample], list[Sample]]:
        return self.samples[tenth : 2 * tenth] or self.samples[:1], self.samples[-tenth:]

    @property
    def has_grown(self) -> bool:
        memory = max(self.grown("hub_mb"), self.grown("senders_mb")) > GROWN_MAX_MB
        return memory or max(self.grown("hub_files"), self.grown("senders_files")) > GROWN_MAX_FILES


def send(endpoint: str) -> None:
    """Be all senders until standard input ends; then say what was sent and answered."""
    ended = threading.Event()
    counts: list[tuple[int, int]] = []

    def play(name: str) -> None:
        with streamer.Sender(endpoint, name=name, source=lambda: None if ended.is_set() else JPEG) as sender:
            ended.wait()
            time.sleep(0.5)  # for the last replies
            counts.append((sender.statistics.frames, sender.statistics.answered))

    threads = [threading.Thread(target=play, args=[name]) for name in SENDERS]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    print(json.dumps([sum(count) for count in zip(*counts, strict=True)]))


@contextlib.contextmanager
def sending(endpoint: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.chaos.soak", "send", endpoint]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def held(process: int) -> tuple[float, int]:
    """Return what a process holds, in MB, and its descriptors."""
    place = Path(f"/proc/{process}")
    pages = int((place / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6, len(list((place / "fd").iterdir()))


def soak(
    told: str, hub: Unit, http: str, endpoint: str, *, enough: int, done: Callable[[], int], may_lose: bool
) -> Result:
    """Send until enough is done."""
    assert hub.process
    before = sum(row["frames"] for row in rows(http))
    began = time.monotonic()
    samples: list[Sample] = []
    with sending(endpoint) as senders:
        while done() < enough // 100:  # all are connected
            assert time.monotonic() - began < STUCK_S, f"{told}: {done()} of {enough} in {STUCK_S:g} s"
            time.sleep(0.05)
        moved_at, moved_to = time.monotonic(), 0
        while (so_far := done()) < enough:
            if so_far > moved_to:
                moved_at, moved_to = time.monotonic(), so_far
            assert time.monotonic() - moved_at < STUCK_S, f"{told}: nothing came for {STUCK_S:g} s after {so_far}"
            hub_held, senders_held = held(hub.process.pid), held(senders.pid)
            samples.append(Sample(so_far, time.monotonic() - began, *hub_held, *senders_held))
            if len(samples) % 60 == 0:
                print(f"{told}: {so_far} of {enough}, {samples[-1]}", file=sys.stderr, flush=True)
            time.sleep(min(10.0, max(0.5, (time.monotonic() - began) / 200)))
        took_s = time.monotonic() - began
        sent, answered = json.loads(senders.communicate()[0])
    received = sum(row["frames"] for row in rows(http)) - before
    # A frame may have come and its reply not; none can be answered that did not come, and only a cut loses any.
    unaccounted = max(0, answered - received) + (max(0, received - sent) if may_lose else abs(received - sent))
    return Result(told, so_far, took_s, received, unaccounted, samples)


def picture(results: list[Result]) -> str:
    """Draw the memory over what was done, as SVG."""
    width, height, gap = 480, 160, 30
    parts = []
    for at, result in enumerate(results):
        top = max(max(sample.hub_mb, sample.senders_mb) for sample in result.samples) * 1.1
        for what, colour in (("hub_mb", "#0b63ce"), ("senders_mb", "#8a5a00")):
            points = " ".join(
                f"{sample.done / result.done * width:.1f},{height - getattr(sample, what) / top * height:.1f}"
                for sample in result.samples
            )
            parts.append(
                f'<polyline points="{points}" transform="translate(0 {at * (height + gap)})" '
                f'fill="none" stroke="{colour}"/>'
            )
        words = f"{result.told}: memory of the hub (blue) and the senders (brown), 0 to {top:.0f} MB"
        parts.append(f'<text x="0" y="{at * (height + gap) + height + 16}">{words}</text>')
    size = f'width="{width}" height="{len(results) * (height + gap)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">{"".join(parts)}</svg>'
    )


def table(results: list[Result]) -> str:
    """Write the results as a Markdown table."""
    lines = [
        "| soak | done | in | hub: memory, descriptors | senders: memory, descriptors | frames unaccounted for |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        first, last = result.samples[min(len(result.samples) // 10, len(result.samples) - 1)], result.samples[-1]
        hub = f"{first.hub_mb:.1f} → {last.hub_mb:.1f} MB, {first.hub_files} → {last.hub_files}"
        senders = f"{first.senders_mb:.1f} → {last.senders_mb:.1f} MB, {first.senders_files} → {last.senders_files}"
        lines.append(
            f"| {result.told} | {result.done} | {result.took_s:.0f} s | {hub} | {senders} | {result.unaccounted} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=10_000_000)
    parser.add_argument("--reconnects", type=int, default=10_000)
    options = parser.parse_args()
    endpoint, http = f"tcp://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        hub = stack.enter_context(Unit(place / "hub", ["hub", "--bind", endpoint, "--http", http]))
        hub.ready.wait(60)

        def received() -> int:
            return sum(row["frames"] for row in rows(http))

        results = [soak("frames", hub, http, endpoint, enough=options.frames, done=received, may_lose=False)]
        line = stack.enter_context(Line(endpoint))
        line.cut_after = FRAMES_A_CONNECTION * len(JPEG)
        enough, done = options.reconnects, lambda: line.connections
        results.append(soak("reconnects", hub, http, line.endpoint, enough=enough, done=done, may_lose=True))
        starts = hub.starts
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    today = dt.datetime.now(dt.UTC).date().isoformat()
    print(f"{today}, {machine}; figures from a tenth of the way to the end\n\n{table(results)}")
    KEPT.mkdir(exist_ok=True)
    kept: dict[str, Any] = {"date": today, "machine": machine, "results": [asdict(result) for result in results]}
    (KEPT / "soak.json").write_text(json.dumps(kept))
    (KEPT / "soak.svg").write_text(picture(results))
    wrong = [f"{result.told}: something grows" for result in results if result.has_grown]
    wrong += [f"{result.told}: {result.unaccounted} frames" for result in results if result.unaccounted]
    wrong += ["the hub was restarted"] if starts != 1 else []
    for words in wrong:
        print(words)
    return int(bool(wrong))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["send", endpoint]:
            send(endpoint)
        case _:
            sys.exit(main())
