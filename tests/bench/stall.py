"""Old pictures: `python -m tests.bench.stall [--rounds N] [--seconds S]`.

A program that reads stops for 5 s, once, or the whole process of its hub does, as in a machine that swaps; and a
program that takes 10 ms for each frame of eight cameras, so that it gets 100 frames a second of 240: it waits so long,
as for a disk, or computes, in Python.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from dataclasses import dataclass, field
from statistics import median

from streamer.wire import IN_FLIGHT_LIMIT
from tests.bench import pictures
from tests.bench.load import PEERS, record, running
from tests.bench.measure import Options, Part, Row, judge, keep, progress, spread
from tests.bench.peers import TITLES

KINDS = ("streamer", *PEERS)
FPS = 30
STALL_S = 5.0
AFTER_S = 2.0
OLD_MS = 200.0  # no frame in order is older than that, here
WORK_S = 0.010


@dataclass
class Measurement:
    """Ages of what a program gets, in ms.

    Attributes:
        work: `program stalls`, `process stalls`, `slow program`, `busy program`.
        oldest_ms: of all frames.
        old: how many of them came that were older than a frame in order.
        age_ms: 50th, 95th and 99th percentile.
        over_time: (seconds, age in ms).
    """

    work: str
    kind: str
    oldest_ms: float
    old: int
    age_ms: list[float]
    over_time: list[list[float]] = field(repr=False)


def stall(work: str, seconds: float) -> list[Measurement]:
    """Let all kinds' readers stall at the same time, each with one camera of its own."""
    with contextlib.ExitStack() as parts:
        hubs: dict[str, Part] = {kind: parts.enter_context(running(kind, 1, FPS))[0] for kind in KINDS}
        time.sleep(1.0)
        for hub in hubs.values():
            hub.say("begin")
            hub.hear()
        for hub in hubs.values():
            if work == "program stalls":
                hub.say(f"stall {STALL_S}")
            else:
                hub.process.send_signal(signal.SIGSTOP)
        time.sleep(STALL_S)
        if work == "process stalls":
            for hub in hubs.values():
                hub.process.send_signal(signal.SIGCONT)
        time.sleep(max(AFTER_S, seconds))
        answers = {}
        for kind, hub in hubs.items():
            hub.say("end")
            answers[kind] = json.loads(hub.hear())
    return [measurement(work, kind, answer["over_time"], answer["age_ms"]) for kind, answer in answers.items()]


def measurement(work: str, kind: str, over_time: list[list[float]], age_ms: list[float]) -> Measurement:
    ages = [age for _, age in over_time]
    return Measurement(
        work, kind, max(ages, default=float("inf")), sum(age > OLD_MS for age in ages), age_ms, over_time
    )


def slow(work: str, kind: str, seconds: float) -> Measurement:
    """Let a program take its time for each frame of eight cameras."""
    with running(kind, 8, FPS, how="compute" if work == "busy program" else "take", work_s=WORK_S) as (hub, _):
        (seen,) = record([hub], seconds + 2)
    return measurement(work, kind, seen["over_time"], seen["age_ms"])


def run(options: Options) -> list[Row]:
    """Measure all."""
    pictures.make()
    done: list[Measurement] = []
    for number in range(options.rounds):
        for work in ("program stalls", "process stalls"):
            progress(f"round {number + 1} of {options.rounds}: {work}")
            done += stall(work, options.seconds)
        for work in ("slow program", "busy program"):
            for kind in KINDS:
                progress(f"round {number + 1} of {options.rounds}: {work}: {TITLES[kind]}")
                done.append(slow(work, kind, options.seconds))
    rows: list[Row] = []
    for short, work in (
        ("program stalls", f"the program that reads stalls for {STALL_S:g} s, {FPS} frames/s"),
        ("process stalls", f"the hub's process is stopped for {STALL_S:g} s, {FPS} frames/s"),
    ):
        for kind in KINDS:
            those = [each for each in done if (each.work, each.kind) == (short, kind)]
            what = f"{TITLES[kind]}: frames older than {OLD_MS:g} ms after it"
            old = [each.old for each in those]
            if kind == "streamer":
                rows.append(judge(work, what, old, f"<= {IN_FLIGHT_LIMIT}", "frames", 0))
            else:
                rows.append(Row(work, what, f"{spread(old, 0)} frames"))
            rows.append(Row(work, "  the oldest of all", f"{median(each.oldest_ms for each in those) / 1000:.2f} s"))
    for short, work in (
        ("slow program", f"eight cameras, {FPS} frames/s each, the program takes {1000 * WORK_S:g} ms a frame"),
        ("busy program", f"eight cameras, {FPS} frames/s each, the program computes {1000 * WORK_S:g} ms a frame"),
    ):
        for kind in KINDS:
            those = [each for each in done if (each.work, each.kind) == (short, kind)]
            what = f"{TITLES[kind]}: age of what it takes, p95"
            p95 = [each.age_ms[1] for each in those]
            if kind == "streamer":
                rows.append(judge(work, what, p95, "<= 35", "ms"))
            else:
                growth = median(grows(each.over_time) for each in those)
                rows.append(Row(work, what, f"{spread(p95, 0)} ms, grows by {growth:.2f} s a second"))
    keep("stall", options, done, rows)
    return rows


def grows(over_time: list[list[float]]) -> float:
    """Give the growth of the age, in seconds a second, from the first quarter of the time to the last."""
    if len(over_time) < 8:
        return float("nan")
    quarter = len(over_time) // 4
    (first_s, first_ms), (last_s, last_ms) = (
        (median(at for at, _ in part), median(age for _, age in part))
        for part in (over_time[:quarter], over_time[-quarter:])
    )
    return (last_ms - first_ms) / 1000 / (last_s - first_s)
