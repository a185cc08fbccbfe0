"""Many cameras on one hub: `python -m tests.bench.cameras [--rounds N] [--seconds S]`.

One to 600 cameras of 640x480 q95, received and kept, not decoded, beside a bare ROUTER loop that only receives, and
one that replies too. One process plays them all, with a socket each and, but for the first of these, at most two
unanswered frames; where this machine cannot make so many frames a second, or take them, fewer are sent, and the table
says how many of those wanted.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import zmq

from streamer import wire
from tests.bench import pictures
from tests.bench.load import BARE, FOOTAGE, PLAIN, record
from tests.bench.measure import (
    Options,
    Part,
    Row,
    beside,
    compare,
    cpu_s,
    free_ports,
    judge,
    keep,
    progress,
    resident_mb,
    spread,
    threads,
)
from tests.bench.peers import BARE_HWM, COPY_MAX_BYTES, TITLES

KINDS = ("streamer", *BARE)
# Cameras, and frames a second of each. The last is what two cores cannot do.
FLEETS = ((1, 30), (8, 30), (60, 30), (200, 30), (600, 10), (600, 30))
IN_FLIGHT = 2
WARM_UP_S = 1.0


@dataclass
class Measurement:
    """What one kind of hub did with so many cameras.

    Attributes:
        fps: frames a second that it received, of all cameras together.
        hub_us: CPU time for each, in microseconds.
        memory_mb: resident, of its process.
        threads: of its process.
        age_ms: from capture to the hub: 50th, 95th and 99th percentile.
    """

    kind: str
    cameras: int
    wanted: int
    fps: float
    hub_us: float
    memory_mb: float
    threads: int
    age_ms: list[float]


def play(kind: str, port: int, cameras: int, fps: float) -> None:
    """Be all cameras, until standard input ends: their frames are spread evenly over the time."""
    shown = pictures.load(FOOTAGE)
    context = zmq.Context()
    context.setsockopt(zmq.MAX_SOCKETS, cameras + 8)
    sockets = []
    for _ in range(cameras):
        sockets.append(context.socket(zmq.DEALER))
        sockets[-1].setsockopt(zmq.SNDHWM, BARE_HWM)
        sockets[-1].setsockopt(zmq.LINGER, 0)
        sockets[-1].connect(f"tcp://127.0.0.1:{port}")
    headers = [wire.make_header(f"cam{number}", extras={"every": 1 / fps}) for number in range(cameras)]
    unanswered = [0] * cameras
    ending = zmq.Poller()
    ending.register(0, zmq.POLLIN)
    every_s = 1 / (fps * cameras)
    first = time.monotonic()
    at = -1
    while True:
        # Too late for some: these are left out, none is made up for.
        at = max(at + 1, int((time.monotonic() - first) / every_s))
        due = first + at * every_s
        if at % 64 == 0 and ending.poll(0):
            return
        time.sleep(max(0.0, due - time.monotonic()))
        number = at % cameras
        dealer = sockets[number]
        picture = shown[at % len(shown)]
        if kind in ("streamer", "bare-checks"):
            header = wire.add_counts(headers[number], at // cameras, time.time_ns(), 0, None)
        else:
            header = f"cam{number} {time.time_ns()}".encode()
        parts = [header, picture]
        if kind != "bare":
            while unanswered[number] and _answered(dealer):
                unanswered[number] -= 1
            if unanswered[number] == IN_FLIGHT:
                continue
            unanswered[number] += 1
            parts = [b"", *parts]
        try:
            dealer.send_multipart(parts, zmq.DONTWAIT, copy=len(picture) < COPY_MAX_BYTES)
        except zmq.Again:
            continue


def _answered(dealer: Any) -> bool:
    try:
        dealer.recv_multipart(zmq.DONTWAIT)
    except zmq.Again:
        return False
    return True


def measure(kind: str, cameras: int, wanted: int, seconds: float) -> Measurement:
    """Measure one kind of hub."""
    (port,) = free_ports(1)
    with Part("peers", "hub", kind, port, cameras, "keep", 0, FOOTAGE) as hub:
        hub.hear()
        with Part("cameras", kind, port, cameras, wanted):
            assert hub.hear() == "all"
            time.sleep(WARM_UP_S)
            before = cpu_s(hub.pid)
            (seen,) = record([hub], seconds)
            spent = cpu_s(hub.pid) - before
            memory, count = resident_mb(hub.pid), threads(hub.pid)
    frames = max(1, sum(seen["frames"].values()))
    return Measurement(
        kind, cameras, wanted, frames / seen["seconds"], 1e6 * spent / frames, memory, count, seen["age_ms"]
    )


def run(options: Options) -> list[Row]:
    """Measure all fleets."""
    pictures.make()
    done = []
    for number in range(options.rounds):
        for cameras, wanted in FLEETS:
            progress(f"round {number + 1} of {options.rounds}: {cameras} cameras, {wanted} frames/s each")
            done += [measure(kind, cameras, wanted, options.seconds) for kind in KINDS]
    rows = []
    ours = {}
    for cameras, wanted in FLEETS:
        work = f"{cameras} cameras x {wanted} frames/s"
        costs = {}
        for kind in KINDS:
            those = [each for each in done if (each.kind, each.cameras, each.wanted) == (kind, cameras, wanted)]
            costs[kind] = [each.hub_us for each in those]
            rate = median(each.fps for each in those)
            figure = f"{rate:.0f} of {cameras * wanted} | {spread(costs[kind])}"
            rows.append(Row(work, f"{TITLES[kind]}: frames/s | us hub a frame", figure))
            memory, p99 = median(each.memory_mb for each in those), median(each.age_ms[2] for each in those)
            held = f"{memory:.0f} MB | {max(each.threads for each in those)} | {p99:.1f} ms"
            rows.append(Row(work, f"{TITLES[kind]}: memory | threads | age p99", held))
        ours[cameras, wanted] = costs["streamer"]
        rows += [
            beside(work, f"{TITLES[kind]}: hub CPU a frame", costs[kind], costs["bare"], "the bare loop's")
            for kind in PLAIN
        ]
        rows.append(compare(work, "hub CPU a frame", costs["streamer"], costs["bare"], "<= 1.3", "the bare loop's"))
    flat = "600 cameras x 10 frames/s beside 60 x 30"
    rows.append(compare(flat, "hub CPU a frame", ours[600, 10], ours[60, 30], "<= 1.3", "that of 60"))
    counts = [each.threads for each in done if each.kind == "streamer"]
    rows.append(judge(flat, "threads, the most beside the fewest", [max(counts) - min(counts)], "<= 0", "more", 0))
    keep("cameras", options, done, rows)
    return rows


if __name__ == "__main__":
    play(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
