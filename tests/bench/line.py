"""A long line: `python -m tests.bench.line [--rounds N] [--seconds S]`.

One sender, whose packets a relay delays, wants 30 and 60 pictures a second over round trips of 2 to 80 ms.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from statistics import median

from tests.bench import pictures
from tests.bench.load import FOOTAGE, record
from tests.bench.measure import Options, Part, Row, free_ports, judge, keep, progress, spread
from tests.bench.peers import TITLES
from tests.chaos.line import Line

ROUND_TRIPS_MS = (2, 20, 40, 80)
RATES = (30, 60)
KINDS = ("streamer", "imagezmq", "netgear")
WARM_UP_S = 1.0  # until the window is as long as the line
REACHED = 0.97  # of the wanted rate: a frame is missed now and then where others use the processor too


@dataclass
class Measurement:
    """The rate of one kind, in frames a second, and the age of its frames in ms: 50th, 95th, 99th percentile."""

    kind: str
    round_trip_ms: int
    wanted: int
    fps: float
    age_ms: list[float]


def relay(port: int, round_trip_ms: float) -> None:
    """Be the line: print the port to connect to instead, and end with standard input."""
    with Line(f"tcp://127.0.0.1:{port}") as line:
        line.delay_s = round_trip_ms / 2000
        print(line.endpoint.rpartition(":")[2], flush=True)
        sys.stdin.read()


def measure(round_trip_ms: int, wanted: int, seconds: float) -> list[Measurement]:
    """Measure all kinds at the same time, each over a line of its own."""
    ports = dict(zip(KINDS, free_ports(len(KINDS)), strict=True))
    with contextlib.ExitStack() as parts:
        hubs = {
            kind: parts.enter_context(Part("peers", "hub", kind, port, 1, "take", 0, FOOTAGE))
            for kind, port in ports.items()
        }
        lines = [parts.enter_context(Part("line", port, round_trip_ms)) for port in ports.values()]
        for kind, line in zip(KINDS, lines, strict=True):
            hubs[kind].hear()
            parts.enter_context(Part("peers", "send", kind, line.hear(), 1, wanted, FOOTAGE))
        for hub in hubs.values():
            assert hub.hear() == "all"
        time.sleep(WARM_UP_S)
        seen = record(list(hubs.values()), seconds)
    return [
        Measurement(kind, round_trip_ms, wanted, sum(each["frames"].values()) / each["seconds"], each["age_ms"])
        for kind, each in zip(KINDS, seen, strict=True)
    ]


def run(options: Options) -> list[Row]:
    """Measure all lines."""
    pictures.make()
    done = []
    for number in range(options.rounds):
        for wanted in RATES:
            for round_trip_ms in ROUND_TRIPS_MS:
                progress(f"round {number + 1} of {options.rounds}: {wanted} frames/s over {round_trip_ms} ms")
                done += measure(round_trip_ms, wanted, options.seconds)
    rows: list[Row] = []
    for wanted in RATES:
        for round_trip_ms in ROUND_TRIPS_MS:
            work = f"one sender, {wanted} frames/s wanted, round trip {round_trip_ms} ms"
            for kind in KINDS:
                those = [
                    each
                    for each in done
                    if (each.kind, each.wanted, each.round_trip_ms) == (kind, wanted, round_trip_ms)
                ]
                rates = [each.fps for each in those]
                what = f"{TITLES[kind]}: frames/s, age {median(each.age_ms[0] for each in those):.0f} ms"
                if kind == "streamer":
                    rows.append(judge(work, what, rates, f">= {REACHED * wanted:.1f}", "frames/s"))
                else:
                    rows.append(Row(work, what, f"{spread(rates)} frames/s"))
    keep("line", options, done, rows)
    return rows


if __name__ == "__main__":
    relay(int(sys.argv[1]), float(sys.argv[2]))
