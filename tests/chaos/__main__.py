"""Hurts a fleet in every way there is and counts the frames that come: `python -m tests.chaos [CASE …] [--tries N]`.

Hub and senders are the real commands, kept running as systemd would keep them. Prints a table and keeps it in
build/chaos.json; ends with status 1 when anything did not recover.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import random
import secrets
import signal
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from tests.chaos.cases import CASES, ImpossibleError, Trial

KEPT = Path(__file__).parents[2] / "build/chaos.json"


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def run(name: str, tries: int | None, seed: int) -> dict[str, Any]:
    """Try a case; returns its row of the table."""
    case = CASES[name]
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        # Each case has its own moments, whichever others run.
        rng = random.Random(seed + zlib.crc32(name.encode()))
        trial = Trial(rng, tries or case.tries, Path(place), say)
        began = time.monotonic()
        say(f"{name}: {case.told}")
        failure = None
        try:
            case.run(trial)
        except ImpossibleError as error:
            return {"case": name, "told": case.told, "impossible": str(error)}
        except AssertionError as error:
            failure = str(error)
            say(f"  {failure}")
    recoveries = [outcome.recovery_s for outcome in trial.outcomes if outcome.recovery_s is not None]
    whole = [outcome.whole_s for outcome in trial.outcomes if outcome.whole_s is not None]
    row = {
        "case": name,
        "told": case.told,
        "tried": len(trial.outcomes),
        "recovered": sum(not outcome.broken for outcome in trial.outcomes),
        "worst_recovery_s": round(max(recoveries), 2) if recoveries else None,
        "worst_whole_s": round(max(whole), 2) if whole else None,
        "stale": max((outcome.stale for outcome in trial.outcomes if outcome.stale is not None), default=None),
        "lost": sum(outcome.lost for outcome in trial.outcomes),
        "before": trial.before,
        "after": trial.after,
        "broken": [words for outcome in trial.outcomes for words in outcome.broken] + ([failure] if failure else []),
        "took_s": round(time.monotonic() - began),
    }
    say(f"  {row['recovered']} of {row['tried']} in {row['took_s']} s, worst recovery {row['worst_recovery_s']} s")
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Write the rows as a Markdown table."""
    lines = [
        "| case | tried | recovered | worst recovery | with restarts | stale | lost | hub: memory, descriptors |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "impossible" in row:
            lines.append(f"| {row['told']} | - | {row['impossible']} | | | | | |")
            continue
        (memory, files), (memory_after, files_after) = row["before"], row["after"]
        worst, whole = (
            "-" if row[key] is None else f"{row[key]:.1f} s" for key in ("worst_recovery_s", "worst_whole_s")
        )
        held = f"{memory:.0f} → {memory_after:.0f} MB, {files} → {files_after}"
        stale = "-" if row["stale"] is None else row["stale"]
        counts = f"{row['tried']} | {row['recovered']} | {worst} | {whole} | {stale} | {row['lost']}"
        lines.append(f"| {row['told']} | {counts} | {held} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"by default all: {', '.join(CASES)}")
    parser.add_argument("--tries", type=int, metavar="N", help="of each case; each has its own number by default")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of the moments")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are: {', '.join(CASES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without ending what it has started
    say(f"seed {options.seed}")
    rows = [run(name, options.tries, options.seed) for name in options.cases or CASES]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    today = dt.datetime.now(dt.UTC).date().isoformat()
    print(f"{today}, {machine}, seed {options.seed}\n\n{table(rows)}")
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps({"date": today, "machine": machine, "seed": options.seed, "rows": rows}, indent=1))
    return int(any(row.get("broken") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
