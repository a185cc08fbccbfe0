"""Plots of what was measured last: `python -m tests.bench.plots FOLDER`; the README's are in tests/pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tests.bench.measure import RESULTS
from tests.bench.peers import TITLES

# Okabe and Ito's colours, which all people can tell apart.
COLOURS = {
    "streamer": "#0072B2",
    "streamer-curve": "#56B4E9",
    "imagezmq": "#D55E00",
    "imagezmq-pub": "#E69F00",
    "netgear": "#009E73",
    "netgear-pub": "#CC79A7",
    "bare": "#777777",
    "bare-replies": "#BBBBBB",
    "bare-checks": "#333333",
}
SIZE_IN = (8.2, 3.4)
DPI = 110
FOOTAGE_LOADS = ("1 sender, 640x480 q95, flat out", "8 senders, 640x480 q95, flat out")


def draw(folder: Path) -> None:
    """Draw each benchmark that has a plot and has been run."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True})
    for name, plot in (("load", _load), ("line", _line), ("stall", _stall), ("cameras", _cameras)):
        if not (RESULTS / f"{name}.json").exists():
            continue
        kept = json.loads((RESULTS / f"{name}.json").read_text())
        figure = Figure(SIZE_IN, layout=ConstrainedLayoutEngine(rect=(0, 0.04, 1, 0.96)))
        plot(figure, kept["measurements"])
        rounds = f"{kept['rounds']} interleaved rounds of {kept['seconds']:g} s"
        figure.text(
            0.995, 0.005, f"{kept['date']}, {kept['machine']}, {rounds}", ha="right", fontsize=7, color="#555555"
        )
        figure.savefig(folder / f"bench-{name}.png", dpi=DPI)


def _load(figure: Figure, done: list[dict[str, Any]]) -> None:
    """Rate and cost of one sender and of eight, as bars with the range."""
    panels = figure.subplots(1, 2, sharey=True)
    measured = {(each["load"], each["kind"]) for each in done}
    kinds = [kind for kind in TITLES if all((load, kind) in measured for load in FOOTAGE_LOADS)]
    for panel, field, title in zip(
        panels, ("fps", "hub_us"), ("frames/s, flat out", "hub's CPU time a frame, µs"), strict=True
    ):
        for load, offset, alpha in zip(FOOTAGE_LOADS, (-0.2, 0.2), (0.5, 1.0), strict=True):
            for at, kind in enumerate(kinds):
                values = [each[field] for each in done if (each["load"], each["kind"]) == (load, kind)]
                middle = median(values)
                panel.barh(
                    at + offset,
                    middle,
                    0.38,
                    xerr=[[middle - min(values)], [max(values) - middle]],
                    color=COLOURS[kind],
                    alpha=alpha,
                    error_kw={"elinewidth": 1, "capsize": 2},
                )
                panel.annotate(
                    f" {'1' if load == FOOTAGE_LOADS[0] else '8'}: {middle:,.0f}",
                    (max(values), at + offset),
                    va="center",
                    fontsize=7,
                )
        panel.set_title(title, fontsize=9)
        panel.margins(x=0.18)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(kinds)), [TITLES[kind] for kind in kinds])
    panels[0].invert_yaxis()
    figure.suptitle("Flat out, 640x480 JPEG of real footage: one sender (pale) and eight", fontsize=10)


def _line(figure: Figure, done: list[dict[str, Any]]) -> None:
    """Rate over the round trip."""
    wanted = sorted({each["wanted"] for each in done})
    for panel, rate in zip(figure.subplots(1, len(wanted), squeeze=False)[0], wanted, strict=True):
        for kind in TITLES:
            those = [each for each in done if (each["kind"], each["wanted"]) == (kind, rate)]
            trips = sorted({each["round_trip_ms"] for each in those})
            rates = [[each["fps"] for each in those if each["round_trip_ms"] == trip] for trip in trips]
            if trips:
                panel.plot(trips, [median(each) for each in rates], "o-", color=COLOURS[kind], label=TITLES[kind])
                panel.fill_between(
                    trips, [min(each) for each in rates], [max(each) for each in rates], color=COLOURS[kind], alpha=0.2
                )
        panel.axhline(rate, color="#999999", linestyle=":", label="wanted")
        panel.set_title(f"{rate} frames/s wanted", fontsize=9)
        panel.set_xlabel("round trip, ms")
        panel.set_ylabel("frames/s that arrive")
        panel.set_ylim(0, rate * 1.12)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, frameon=False, loc="lower left")
    figure.suptitle("One sender over a long line", fontsize=10)


def _stall(figure: Figure, done: list[dict[str, Any]]) -> None:
    """Age over the time, of the last round."""
    panels = figure.subplots(1, 2)
    works = {"slow program": "it takes 10 ms a frame, 8 cameras", "program stalls": "it stalls for 5 s, 1 camera"}
    for panel, (work, title) in zip(panels, works.items(), strict=True):
        for kind in TITLES:
            those = [each for each in done if (each["work"], each["kind"]) == (work, kind)]
            if those:
                times, ages = zip(*those[-1]["over_time"], strict=True)
                shown = [max(age, 0.1) for age in ages]
                lw = 0.8 if work == "slow program" else 0  # while it stalls it gets nothing
                panel.plot(times, shown, ".-", ms=3, lw=lw, color=COLOURS[kind], label=TITLES[kind])
        panel.set_yscale("log")
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("time, s")
        panel.set_ylabel("age of what it gets, ms")
        panel.grid(alpha=0.3)
    panels[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.05, 0.95))
    figure.suptitle("How old pictures are when the program that reads is slow", fontsize=10)


def _cameras(figure: Figure, done: list[dict[str, Any]]) -> None:
    """Cost and memory over the number of cameras, at the lowest rate of each number: two cores send no more."""
    rates: dict[int, int] = {}
    for each in done:
        rates[each["cameras"]] = min(each["wanted"], rates.get(each["cameras"], each["wanted"]))
    counts = sorted(rates)
    titles = {"hub_us": "hub's CPU time a frame, µs", "memory_mb": "hub's memory, MB"}
    kinds = [kind for kind in TITLES if any(each["kind"] == kind for each in done)]
    for panel, (field, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for kind in kinds:
            values = [
                [
                    each[field]
                    for each in done
                    if (each["kind"], each["cameras"], each["wanted"]) == (kind, count, rates[count])
                ]
                for count in counts
            ]
            lowest, highest = [min(each) for each in values], [max(each) for each in values]
            panel.plot(counts, [median(each) for each in values], "o-", color=COLOURS[kind], label=TITLES[kind])
            panel.fill_between(counts, lowest, highest, color=COLOURS[kind], alpha=0.2)
        panel.set_xscale("log")
        panel.set_xticks(counts, [f"{count}\n{rates[count]}/s" for count in counts])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("cameras, and frames/s of each")
        panel.grid(alpha=0.3)
    panel.legend(fontsize=8, frameon=False, loc="upper left")  # where little memory is needed
    figure.suptitle("Many cameras on one hub, 640x480 JPEG received and kept", fontsize=10)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
