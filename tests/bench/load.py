"""Rate, cost and latency: `python -m tests.bench.load [--rounds N] [--seconds S]`.

One sender and eight, flat out with real footage as JPEG of three sizes and as raw arrays; eight at 30 frames a second.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.bench import pictures
from tests.bench.measure import (
    Options,
    Part,
    Row,
    beside,
    compare,
    cpu_s,
    free_ports,
    jain,
    judge,
    keep,
    progress,
    spread,
)
from tests.bench.peers import TITLES, make_keys, ports_of

if TYPE_CHECKING:
    from collections.abc import Iterator

WARM_UP_S = 0.5
PEERS = ("imagezmq", "imagezmq-pub", "netgear", "netgear-pub")
BARE = ("bare", "bare-replies", "bare-checks")
PLAIN = BARE[1:]  # what the rows of this package are held against, beside its peers
FOOTAGE = "640x480 q95"
RAW = "640x480 raw"
# Format, cameras, frames a second (0: flat out), how the hub's frames are used, kinds; the one that checks takes JPEG.
LOADS: list[tuple[str, int, int, str, tuple[str, ...]]] = [
    (FOOTAGE, 1, 0, "keep", ("streamer", *PEERS, *BARE)),
    (FOOTAGE, 8, 0, "keep", ("streamer", *PEERS, *BARE)),
    ("320x240 q80", 8, 0, "keep", ("streamer", "imagezmq", *BARE)),
    ("1280x720 q85", 8, 0, "keep", ("streamer", "imagezmq", *BARE)),
    (RAW, 1, 0, "keep", ("streamer", "imagezmq", *BARE[:2])),
    (RAW, 8, 0, "keep", ("streamer", "imagezmq", *BARE[:2])),
    (FOOTAGE, 8, 30, "take", ("streamer", "streamer-curve", *PEERS, *BARE)),
]


@dataclass
class Measurement:
    """One kind's under one load, in one round.

    Attributes:
        fps: frames a second that the hub received, of all cameras together.
        hub_us: CPU time of the hub's process for each, in microseconds.
        sender_us: of all senders' processes together, for each.
        fairness: Jain's index over the cameras' frames.
        age_ms: from capture to the hub, or to the program that takes them: 50th, 95th and 99th percentile.
        copied: whether the array that the hub hands out is a copy of the message.
    """

    load: str
    kind: str
    fps: float
    hub_us: float
    sender_us: float
    fairness: float
    age_ms: list[float]
    copied: bool


def title(format_name: str, cameras: int, fps: int) -> str:
    """Name a load."""
    senders = f"{cameras} sender{'s' if cameras > 1 else ''}"
    return f"{senders}, {format_name}, {f'{fps} frames/s each' if fps else 'flat out'}"


@contextlib.contextmanager
def running(
    kind: str, cameras: int, fps: float, *, how: str = "take", work_s: float = 0.0, format_name: str = FOOTAGE
) -> Iterator[tuple[Part, Part]]:
    """Run a hub and its senders; both are there, and every camera has come, when the context is entered."""
    ports = ",".join(map(str, free_ports(ports_of(kind, cameras))))
    with Part("peers", "hub", kind, ports, cameras, how, work_s, format_name) as hub:
        assert hub.hear() == "listening"
        with Part("peers", "send", kind, ports, cameras, fps, format_name) as senders:
            assert hub.hear() == "all", hub.name
            yield hub, senders


def record(hubs: list[Part], seconds: float) -> list[dict[str, Any]]:
    """Let hubs record for a while."""
    for hub in hubs:
        hub.say("begin")
        hub.hear()
    time.sleep(seconds)
    for hub in hubs:
        hub.say("end")
    return [json.loads(hub.hear()) for hub in hubs]


def measure(load: tuple[str, int, int, str, tuple[str, ...]], kind: str, seconds: float) -> Measurement:
    """Measure one kind."""
    format_name, cameras, fps, how, _ = load
    with running(kind, cameras, fps, how=how, format_name=format_name) as (hub, senders):
        cameras_pids = [int(pid) for pid in senders.hear().split()]
        time.sleep(WARM_UP_S)
        hub_before, senders_before = cpu_s(hub.pid), sum(map(cpu_s, cameras_pids))
        (seen,) = record([hub], 2 * seconds if fps else seconds)
        hub_s, senders_s = cpu_s(hub.pid) - hub_before, sum(map(cpu_s, cameras_pids)) - senders_before
    counts = [seen["frames"].get(f"cam{number}", 0) for number in range(cameras)]
    frames = max(1, sum(counts))
    return Measurement(
        title(*load[:3]),
        kind,
        frames / seen["seconds"],
        1e6 * hub_s / frames,
        1e6 * senders_s / frames,
        jain(counts),
        seen["age_ms"],
        seen["copied"],
    )


def rows_of(done: list[Measurement]) -> list[Row]:
    """Judge all."""
    rows: list[Row] = []

    def values(load: str, kind: str, field: str) -> list[float]:
        return [getattr(each, field) for each in done if (each.load, each.kind) == (load, kind)]

    for format_name, cameras, fps, _, kinds in LOADS:
        load = title(format_name, cameras, fps)
        for kind in kinds:
            rates, hub_us, sender_us = (values(load, kind, field) for field in ("fps", "hub_us", "sender_us"))
            figure = f"{spread(rates, 0)} | {spread(hub_us)} | {spread(sender_us)}"
            rows.append(Row(load, f"{TITLES[kind]}: frames/s | us hub | us senders", figure))
        ours, stock, bare = (
            {field: values(load, kind, field) for field in ("fps", "hub_us", "fairness")}
            for kind in ("streamer", "imagezmq", "bare")
        )
        for field, what in (("fps", "frames/s"), ("hub_us", "hub CPU a frame")):
            rows += [
                beside(load, f"{TITLES[kind]}: {what}", values(load, kind, field), stock[field], "imagezmq's")
                for kind in PLAIN
                if kind in kinds
            ]
        if fps:
            ages = {kind: [each.age_ms for each in done if (each.load, each.kind) == (load, kind)] for kind in kinds}
            for kind in kinds:
                figure = " ".join(f"{median(age[at] for age in ages[kind]):.2f}" for at in range(3))
                rows.append(Row(load, f"{TITLES[kind]}: capture to program, ms p50 p95 p99", figure))
            p99 = {kind: [age[2] for age in ages[kind]] for kind in kinds}
            for kind in PLAIN:
                what = f"{TITLES[kind]}: latency p99"
                rows.append(beside(load, what, p99[kind], p99["imagezmq"], "imagezmq's"))
            rows.append(compare(load, "hub CPU", ours["hub_us"], stock["hub_us"], "<= 1", "imagezmq's"))
            curve = values(load, "streamer-curve", "hub_us")
            rows.append(compare(load, "hub CPU with CURVE", curve, ours["hub_us"], "<= 1.6", "that without"))
            rows.append(compare(load, "latency p99", p99["streamer"], p99["imagezmq"], "<= 1", "imagezmq's"))
            continue
        if format_name == RAW:
            rows.append(compare(load, "frames/s", ours["fps"], stock["fps"], ">= 1.3", "imagezmq's"))
            for kind in ("streamer", "imagezmq"):
                copied = any(each.copied for each in done if (each.load, each.kind) == (load, kind))
                rows.append(Row(load, f"{TITLES[kind]}: copies by the hub's Python", "1" if copied else "0"))
            continue
        aim = ">= 1.5" if cameras > 1 else ">= 2"
        rows.append(compare(load, "frames/s", ours["fps"], stock["fps"], aim, "imagezmq's"))
        cost_aim = "<= 0.75" if cameras > 1 else "<= 1"
        rows.append(compare(load, "hub CPU a frame", ours["hub_us"], stock["hub_us"], cost_aim, "imagezmq's"))
        rows.append(compare(load, "frames/s of the bare loop", bare["fps"], ours["fps"], "<= 1.25", "ours"))
        rows.append(compare(load, "hub CPU a frame", ours["hub_us"], bare["hub_us"], "<= 1.25", "the bare loop's"))
        if cameras > 1:
            rows.append(judge(load, "fairness between the senders", ours["fairness"], ">= 0.99", "Jain", 4))
    return rows


def run(options: Options) -> list[Row]:
    """Measure all loads."""
    pictures.make()
    make_keys(max(cameras for _, cameras, *_ in LOADS))
    done = []
    for number in range(options.rounds):
        for load in LOADS:
            for kind in load[4]:
                progress(f"round {number + 1} of {options.rounds}: {title(*load[:3])}: {TITLES[kind]}")
                done.append(measure(load, kind, options.seconds))
    rows = rows_of(done)
    keep("load", options, done, rows)
    return rows
