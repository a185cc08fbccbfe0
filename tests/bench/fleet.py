"""What Ansible needs for a fleet: `python -m tests.bench.fleet [--hosts 9 32] [--rounds N]`; root on Debian or Ubuntu.

In each round the lab's hosts are blank, and these follow one another:

    first deploy    of blank hosts, until the hub reports every camera LIVE
    second deploy   of the same source, which changes nothing
    restart         of every service
    upgrade         a deploy of another version of the package
    rollback        to the version before, on every host

Beside the seconds stands CPU time, since all hosts share this machine's processors with Ansible, the cameras and
the hub streaming meanwhile, and whatever else runs here: by the kernel's count of Ansible's processes, of the hosts'
control groups, and of the whole machine less these two.
"""

from __future__ import annotations

import argparse
import copy
import datetime as dt
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from tests.lab import lab
from tests.lab.cgroups import Group
from tests.lab.test_fleet import later_source

ROOT = Path(__file__).parents[2]
INVENTORY = ROOT / "tests/lab/hosts.yml"
KEPT = ROOT / "build/bench/fleet.json"
TICKS = os.sysconf("SC_CLK_TCK")
# Seconds for nine hosts on two processors. More hosts may take as much more, and no more than that.
AIMS_S = {"first deploy": 60, "second deploy": 15, "restart": 8, "upgrade": None, "rollback": 8}
AIMED_HOSTS = 9


@dataclass
class Result:
    """One run of ansible-playbook.

    Attributes:
        wall_s: from its start to its end.
        ansible_s: CPU time of Ansible's own processes.
        hosts_s: CPU time of all hosts, streams included.
        others_s: CPU time that the machine spent on anything else meanwhile.
    """

    hosts: int
    what: str
    wall_s: float
    ansible_s: float
    hosts_s: float
    others_s: float


def inventory(count: int, place: Path) -> Path:
    """Write the lab's inventory for more or fewer hosts: those that are added are test cards, as pi1 is."""
    fleet = yaml.safe_load(INVENTORY.read_text())
    cameras = fleet["cameras"]["hosts"]
    card = cameras["pi1"]
    addresses = {name: address for name, address in lab.hosts(count).items() if name != "hub"}
    fleet["cameras"]["hosts"] = {
        name: copy.copy(cameras.get(name, card)) | {"ansible_host": address} for name, address in addresses.items()
    }
    for group in fleet.values():
        for host in group.get("hosts", {}).values():
            host["node_firewall"] = False  # as it is by default
    place.write_text(yaml.safe_dump(fleet))
    return place


def spent_s() -> tuple[float, float, float]:
    """CPU time so far: of this process's children, of the hosts, of the whole machine; in seconds."""
    ours = resource.getrusage(resource.RUSAGE_CHILDREN)
    user, nice, system, _idle, _wait, *rest = (int(word) for word in _first_line("/proc/stat").split()[1:9])
    return ours.ru_utime + ours.ru_stime, Group().spent_s(), (user + nice + system + sum(rest)) / TICKS


def _first_line(path: str) -> str:
    return Path(path).read_text().partition("\n")[0]


def play(count: int, what: str, hosts: Path, *arguments: str, source: Path = ROOT) -> Result:
    """Run the one command and measure it.

    Raises:
        SystemExit: it failed; with all that it said.
    """
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(hosts), "deploy.yml", *arguments]
    before, began = spent_s(), time.monotonic()
    done = subprocess.run(command, cwd=source, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wall_s = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stdout}{done.stderr}")
    print(f"{count} hosts, {what}: {wall_s:.1f} s", file=sys.stderr, flush=True)
    ansible_s, hosts_s, machine_s = (now - then for now, then in zip(spent_s(), before, strict=True))
    return Result(count, what, wall_s, ansible_s, hosts_s, machine_s - ansible_s - hosts_s)


def measure(count: int) -> list[Result]:
    """Go once through all of it, beginning with blank hosts."""
    lab.down()
    lab.up(count=count)
    try:
        with tempfile.TemporaryDirectory() as directory:
            hosts = inventory(count, Path(directory, "hosts.yml"))
            results = [
                play(count, "first deploy", hosts),
                play(count, "second deploy", hosts),
                play(count, "restart", hosts, "--tags", "restart"),
            ]
            later = later_source(Path(directory), "99.0")
            return [
                *results,
                play(count, "upgrade", hosts, source=later),
                play(count, "rollback", hosts, "--tags", "rollback", source=later),
            ]
    finally:
        lab.down()


def line(count: int, what: str, aim_s: float | None, rows: list[Result]) -> str:
    """Write one line of the table: medians, and of the seconds the range."""
    walls = [row.wall_s for row in rows]
    middle = statistics.median(walls)
    seconds = f"{middle:.1f} ({min(walls):.1f} to {max(walls):.1f})"
    aim, holds = "-", "-"
    if aim_s is not None:
        most_s = aim_s * max(1, count / AIMED_HOSTS)
        aim, holds = f"{most_s:.0f}", "yes" if middle <= most_s else "no"
    spent = (statistics.median(getattr(row, kind) for row in rows) for kind in ("ansible_s", "hosts_s", "others_s"))
    return f"{count:5} {what:14} {seconds:>24} {aim:>4} {holds:5} " + " ".join(f"{seconds:8.1f}" for seconds in spent)


def main() -> int:
    """Measure, print the table, and keep the figures in build/bench/fleet.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--hosts", type=int, nargs="+", default=[9, 32])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lab.need_root(parser)
    results = [result for _ in range(options.rounds) for count in options.hosts for result in measure(count)]

    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{dt.date.today()}, {machine}, {options.rounds} rounds")  # noqa: DTZ011
    print(f"{'hosts':>5} {'':14} {'seconds':>24} {'aim':>4} holds  Ansible    hosts   others")
    for count in options.hosts:
        for what, aim_s in AIMS_S.items():
            print(line(count, what, aim_s, [row for row in results if (row.hosts, row.what) == (count, what)]))
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps({"machine": machine, "results": [asdict(row) for row in results]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
