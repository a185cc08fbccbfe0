"""Cuts a camera's power at every step of its deploy: `python -m tests.lab.power [--only WHICH]`; root on Debian.

The camera's disk is a card of its own, which loses what was not yet written. The power goes in the middle of each task
that changes something on it, right after it, and when only half of what it did has been written. Then the camera boots;
after an upgrade it must stream, the old release or the new one. The next deploy must end LIVE, and the one after it
change nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.lab import card, lab, test_fleet
from tests.lab.test_fleet import on

HOST = "pi1"
# After so long ext4 has written that a new file is there, and not yet what is in it.
UNWRITTEN_S = 7.0


@dataclass(frozen=True)
class Step:
    """A task that changes something on the host."""

    number: int
    name: str
    took_s: float


class Cuts:
    """A fleet of one camera, and the deploy that is cut off."""

    def __init__(self, place: Path) -> None:
        self.place = place
        inventory = yaml.safe_load(test_fleet.INVENTORY.read_text())
        inventory["cameras"]["hosts"] = {HOST: inventory["cameras"]["hosts"][HOST]}
        self.inventory = place / "hosts.yml"
        self.inventory.write_text(yaml.safe_dump(inventory))
        inventory["cameras"]["hosts"][HOST]["streamer_quality"] = 70
        self.changed_inventory = place / "changed.yml"
        self.changed_inventory.write_text(yaml.safe_dump(inventory))
        self.later = test_fleet.later_source(place, "99.0")
        self.kept = place / "card"

    def deploy(self, source: Path, inventory: Path, cut: str = "") -> test_fleet.Play:
        """Deploy to the camera; `cut` says where that breaks off."""
        variables = test_fleet.power_cut(cut) if cut else {}
        if cut == HOST:
            variables["POWER_TOLD"] = str(self.place / "told")
        return test_fleet.play("--limit", HOST, inventory=inventory, source=source, variables=variables)

    def steps(self, source: Path, inventory: Path) -> list[Step]:
        """What a deploy that is not cut off changes on the camera, beginning from the card that was kept."""
        told = self.place / "told"
        told.unlink(missing_ok=True)
        self.restore()
        done = self.deploy(source, inventory, HOST)
        assert done.status == 0, done.output
        return [Step(**json.loads(line)) for line in told.read_text().splitlines()]

    def keep(self) -> None:
        """Keep what the card holds now, all of it written."""
        on(HOST, "sync")
        lab.kill(HOST)
        subprocess.run(["cp", "--sparse=always", card.path(HOST), self.kept], check=True)

    def restore(self) -> None:
        """Boot the camera with the card that was kept."""
        if lab.is_up(HOST):
            lab.kill(HOST)
        subprocess.run(["cp", "--sparse=always", self.kept, card.path(HOST)], check=True)
        lab.start(HOST)

    def tried(self, source: Path, inventory: Path, step: Step, cut: str, *, had: str) -> dict[str, Any]:
        """Cut one deploy off, and see what becomes of it."""
        self.restore()
        row: dict[str, Any] = {"broken": []}
        done = self.deploy(source, inventory, cut)
        if lab.is_up(HOST):
            row["broken"].append("was not cut off")
            return row
        assert done.status != 0, done.output
        lab.start(HOST)
        if had:
            try:
                test_fleet.all_live([HOST])
            except AssertionError:
                row["broken"].append(f"does not stream: {on(HOST, 'journalctl -u streamer-sender -o cat | tail -n 3')}")
            row["runs"] = "old" if on(HOST, "readlink /opt/streamer/current") == had else "new"
        for what in ("next", "the one after it"):
            done = self.deploy(source, inventory)
            if done.status:
                row["broken"].append(f"the {what} deploy failed: {done.output[-3000:]}")
                return row
        if changed := done.changed[HOST]:
            row["broken"].append(f"the second deploy after it changed {changed}: {done.output}")
        return row


def run(cuts: Cuts, scenario: str) -> list[dict[str, Any]]:
    """Try every step of one scenario."""
    source, inventory = lab.CHECKOUT, cuts.inventory
    had = ""
    if scenario == "upgrade":
        cuts.restore()
        done = cuts.deploy(source, inventory)
        assert done.status == 0, done.output
        had = on(HOST, "readlink /opt/streamer/current")
        blank = cuts.kept
        cuts.kept = cuts.place / "deployed"
        cuts.keep()
        source, inventory = cuts.later, cuts.changed_inventory
    steps = cuts.steps(source, inventory)
    rows = []
    for step in steps:
        for moment, seconds in (("during", step.took_s / 2), ("after", 0), ("after", UNWRITTEN_S)):
            row = cuts.tried(source, inventory, step, f"{HOST}|{moment}|{step.number}|{seconds:.3f}", had=had)
            told = f"ran the {row['runs']} release; " if "runs" in row else ""
            broken = "; ".join(row["broken"])
            print(f"{scenario}: {seconds:.1f} s {moment} {step.name!r}: {told}{broken or 'healed'}", flush=True)
            rows.append(row)
    if scenario == "upgrade":
        cuts.kept = blank
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=["upgrade", "first"], help="instead of both")
    only = parser.parse_args().only
    scenarios = [only] if only else ["upgrade", "first"]
    lab.need_root(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without taking the lab down
    lab.down()
    with tempfile.TemporaryDirectory() as directory:
        try:
            lab.up(count=2)
            cuts = Cuts(Path(directory))
            # A card's dpkg waits until its files are written; the lab's is in a hurry.
            on(HOST, "sed -i /force-unsafe-io/d /etc/dpkg/dpkg.cfg.d/*")
            lab.kill(HOST)
            done = test_fleet.play(inventory=cuts.inventory)
            assert f"no answer from {HOST}; the others are done" in " ".join(done.output.split()), done.output
            card.make(HOST)
            subprocess.run(["cp", "--sparse=always", card.path(HOST), cuts.kept], check=True)
            rows = [row for scenario in scenarios for row in run(cuts, scenario)]
        finally:
            lab.down()
    broken = [row for row in rows if row["broken"]]
    print(f"{len(rows)} cuts, {len(rows) - len(broken)} healed")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
