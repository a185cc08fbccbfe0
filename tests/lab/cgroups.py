"""Control groups: how the lab finds, and ends, every process it ever started.

Each host's processes, down to the last daemon, live in one group below /streamer-lab. A process cannot leave
by forking or by losing its parent, so this holds after a crash too, when no pid file could be trusted.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.shell import LabError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "streamer-lab"
KILL_TIMEOUT_S = 20


def _mounted(kind: str, option: str = "") -> list[Path]:
    rows = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(row[1]) for row in rows if row[2] == kind and option in [*row[3].split(","), ""]]


def _unified() -> Path:
    # On a hybrid machine this is /sys/fs/cgroup/unified, else /sys/fs/cgroup itself.
    mounts = _mounted("cgroup2")
    if not mounts:
        raise RefusedError("this machine has no cgroup v2 mounted: the hosts' systemd needs it")
    return mounts[0]


class Group:
    """One control group of the lab: a host, the relay, a build; without a name, all of them."""

    def __init__(self, name: str = "") -> None:
        self._below = Path(NAME, name)
        self._path = _unified() / self._below

    def wrap(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside this group from its first instruction."""
        self._path.mkdir(parents=True, exist_ok=True)
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._path / "cgroup.procs"), *argv]

    def pids(self) -> list[int]:
        """Every process in it, as deep as groups go."""
        found: list[int] = []
        for directory, _, _ in os.walk(self._path):  # unlike rglob, it bears directories that vanish meanwhile
            with contextlib.suppress(OSError):
                found += map(int, Path(directory, "cgroup.procs").read_text().split())
        return found

    def supervisors(self) -> list[int]:
        """The processes that stand in the group itself, not in those that they started."""
        try:
            return [*map(int, (self._path / "cgroup.procs").read_text().split())]
        except FileNotFoundError:
            return []

    def supervised(self) -> bool:
        """Whether there is such a process."""
        return bool(self.supervisors())

    def init(self) -> int | None:
        """The container's first process: the one whose innermost process id is 1."""
        for pid in self.pids():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            ids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if len(ids) > 2 and ids[-1] == "1":
                return pid
        return None

    def spent_s(self) -> float:
        """Processor time of all that ever ran in it, in seconds."""
        lines = (self._path / "cpu.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6

    def kill(self) -> None:
        """Ends every process in it at once, and waits until they are gone."""
        if self._path.exists():
            (self._path / "cgroup.kill").write_text("1")
            self.wait_empty()

    def wait_empty(self) -> None:
        """Waits until the group holds no process.

        Raises:
            LabError: when it still does after some seconds.
        """
        deadline = time.monotonic() + KILL_TIMEOUT_S
        with (self._path / "cgroup.events").open() as events:
            changed = select.poll()
            changed.register(events, select.POLLPRI)
            while "populated 0" not in events.read():
                if time.monotonic() > deadline:
                    raise LabError(f"processes that do not end: {self.pids()}")
                changed.poll(1000)
                events.seek(0)

    def remove(self) -> None:
        """Removes the empty group, and what nspawn mirrors of it on a hybrid machine."""
        for root in [*_mounted("cgroup2"), *_mounted("cgroup", "name=systemd")]:
            for directory, _, _ in os.walk(root / self._below, topdown=False):
                Path(directory).rmdir()
