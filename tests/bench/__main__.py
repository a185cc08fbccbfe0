"""Everything: `make bench`, or `python -m tests.bench [--rounds N] [--seconds S] [--only NAME …]`.

Figures are kept in build/bench/NAME.json, plots of them in build/bench/NAME.png.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys

from tests.bench import attack, cameras, line, load, plots, restart, show, stall, start, wall
from tests.bench.measure import RESULTS, Options, machine, progress, table

BENCHES = {
    "load": load.run,
    "line": line.run,
    "stall": stall.run,
    "restart": restart.run,
    "cameras": cameras.run,
    "wall": wall.run,
    "show": show.run,
    "start": start.run,
    "attack": attack.run,
}


def main() -> int:
    """Measure, print the table, draw the plots."""
    parser = argparse.ArgumentParser(description="Measure this package and its peers side by side.")
    parser.add_argument("--rounds", type=int, default=3, help="of all kinds, interleaved (3)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement (1.5)")
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES), help="instead of all")
    given = parser.parse_args()
    rows = []
    for name in given.only:
        progress(f"{name}: {dt.datetime.now():%H:%M:%S}")  # noqa: DTZ005
        rows += BENCHES[name](Options(given.rounds, given.seconds))
    print(f"{dt.date.today()}, {machine()}, {given.rounds} rounds of {given.seconds:g} s: medians and ranges")  # noqa: DTZ011
    print(table(rows))
    judged = [row for row in rows if row.holds is not None]
    print(f"\n{sum(row.holds is True for row in judged)} of {len(judged)} aims hold")
    plots.draw(RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
