"""A hub that dies: `python -m tests.bench.restart [--rounds N]`.

Eight senders stream at 30 frames a second; their hub is killed, and a second later another listens on its port.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median

from tests.bench import pictures
from tests.bench.load import FOOTAGE
from tests.bench.measure import Options, Part, Row, free_ports, judge, keep, progress, spread
from tests.bench.peers import TITLES, ports_of

KINDS = ("streamer", "imagezmq", "imagezmq-pub", "netgear", "netgear-pub")
CAMERAS = 8
FPS = 30
AWAY_S = 1.0
LIMIT_S = 6.0


@dataclass
class Measurement:
    """Seconds from when the new hub listens until it has had a picture of every camera; None: not within the limit."""

    kind: str
    all_s: float | None


def measure(kind: str) -> Measurement:
    """Kill one kind's hub."""
    ports = ",".join(map(str, free_ports(ports_of(kind, CAMERAS))))
    hub_arguments = ("peers", "hub", kind, ports, CAMERAS, "take", 0, FOOTAGE)
    with Part(*hub_arguments) as hub:
        hub.hear()
        with Part("peers", "send", kind, ports, CAMERAS, FPS, FOOTAGE):
            assert hub.hear() == "all"
            time.sleep(1.0)
            hub.kill()
            time.sleep(AWAY_S)
            with Part(*hub_arguments) as restarted:
                assert restarted.hear() == "listening"
                listening = time.monotonic()
                try:
                    restarted.hear(LIMIT_S)
                except TimeoutError:
                    return Measurement(kind, None)
                return Measurement(kind, time.monotonic() - listening)


def run(options: Options) -> list[Row]:
    """Measure all."""
    pictures.make()
    done = []
    for number in range(options.rounds):
        for kind in KINDS:
            progress(f"round {number + 1} of {options.rounds}: the hub is killed: {TITLES[kind]}")
            done.append(measure(kind))
    work = f"hub killed under {CAMERAS} x {FPS} frames/s, and restarted {AWAY_S:g} s later"
    rows = []
    for kind in KINDS:
        what = f"{TITLES[kind]}: until all stream again"
        times = [each.all_s if each.all_s is not None else math.inf for each in done if each.kind == kind]
        if kind == "streamer":
            rows.append(judge(work, what, times, "<= 2", "s", 2))
        elif math.isinf(median(times)):
            rows.append(Row(work, what, f"not within {LIMIT_S:g} s"))
        else:
            rows.append(Row(work, what, f"{spread(times, 2)} s"))
    keep("restart", options, done, rows)
    return rows
