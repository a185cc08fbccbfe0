"""What the benchmarks share: processes as parts, their CPU time, medians and ranges, rows of the table.

Parts of a measurement are processes of their own. What they cost is CPU time by the kernel's count, in user and
kernel mode, of all their threads.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import platform
import queue
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build/bench"
WAIT_S = 30.0


@dataclass(frozen=True)
class Options:
    """How long and how often to measure.

    Attributes:
        rounds: of all kinds, one after the other, so that what else the machine does meets each alike.
        seconds: of each measurement, after it has warmed up.
    """

    rounds: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what is done.
        what: what is measured.
        figure: what came out.
        aim: what should; empty where there is none.
        holds: whether it did; None without an aim.
    """

    work: str
    what: str
    figure: str
    aim: str = ""
    holds: bool | None = None


# -- processes


def cpu_s(process: int) -> float:
    """Give the CPU time of a process so far, in seconds."""
    return time.clock_gettime(~process << 3 | 2)  # clock_getcpuclockid(3), which Python lacks


def resident_mb(process: int) -> float:
    """Give the memory that a process holds, in MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def threads(process: int) -> int:
    """Give the number of a process's threads."""
    return len(list(Path(f"/proc/{process}/task").iterdir()))


class Part:
    """A module of this folder in a process of its own, which ends with its standard input."""

    def __init__(self, module: str, *arguments: object) -> None:
        self.name = " ".join([module, *map(str, arguments)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            for line in output:
                self._lines.put(line.rstrip("\n"))
        self._lines.put("")

    def hear(self, within_s: float = WAIT_S) -> str:
        """Return the next line that it prints.

        Raises:
            TimeoutError: it prints none in time, or has ended.
        """
        try:
            line = self._lines.get(timeout=within_s)
        except queue.Empty:
            line = ""
        if not line:
            raise TimeoutError(f"{self.name}: nothing within {within_s:g} s")
        return line

    def say(self, line: str) -> None:
        """Give it a line of input."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()


def end_with_input() -> None:
    """End this process when its standard input does, whatever its other threads are at; for a thread of its own."""
    os.read(0, 1)
    os._exit(0)


def free_ports(count: int) -> list[int]:
    """Find ports of this machine on which nobody listens."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# -- figures


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Give the 50th, 95th and 99th percentile; NaN without at least two values."""
    if len(values) < 2:
        return (float("nan"),) * 3
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[94], cuts[98]


def jain(values: Sequence[float]) -> float:
    """Give Jain's index of fairness (Jain, Chiu and Hawe 1984): 1 when all have the same, 1/n when one has all."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values)) if any(values) else 0.0


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Write a median, and the range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Divide the values of each round by those of others in the same round."""
    return [mine / other if other else float("inf") for mine, other in zip(ours, theirs, strict=True)]


def compare(  # noqa: PLR0917 - in the order in which the row reads
    work: str, what: str, ours: Sequence[float], theirs: Sequence[float], aim: str, whose: str
) -> Row:
    """Make the row of a ratio, whose median is to hold the aim: `>= 1.5` or `<= 0.75`.

    Args:
        ours: one value a round.
        theirs: of the same rounds.
        whose: theirs are, in words.
    """
    return judge(work, what, ratios(ours, theirs), aim, f"x {whose}", 2)


def beside(work: str, what: str, ours: Sequence[float], theirs: Sequence[float], whose: str) -> Row:
    """Make the row of a ratio, as `compare`, that has no aim."""
    return Row(work, what, f"{spread(ratios(ours, theirs), 2)} x {whose}")


def judge(  # noqa: PLR0917 - in the order in which the row reads
    work: str, what: str, values: Sequence[float], aim: str, unit: str, digits: int = 1
) -> Row:
    """Make the row of a figure, whose median is to hold the aim."""
    sign, limit = aim.split()
    median = statistics.median(values)
    holds = median >= float(limit) if sign == ">=" else median <= float(limit)
    return Row(work, what, f"{spread(values, digits)} {unit}", f"{aim} {unit}", holds)


# -- the program


def progress(text: str) -> None:
    """Say on standard error what is measured now."""
    print(text, file=sys.stderr, flush=True)


def machine() -> str:
    """Describe this machine, in a few words."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def table(rows: Sequence[Row]) -> str:
    """Lay out the rows for a terminal."""
    lines = []
    for at, row in enumerate(rows):
        if not at or rows[at - 1].work != row.work:
            lines.append(f"\n{row.work}")
        verdict = {None: "", True: f"holds: {row.aim}", False: f"MISSES: {row.aim}"}[row.holds]
        lines.append(f"  {row.what:52} {row.figure:48} {verdict}".rstrip())
    return "\n".join(lines)


def keep(name: str, options: Options, measurements: Sequence[Any], rows: Sequence[Row]) -> None:
    """Keep a benchmark's figures in build/bench/NAME.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = {
        "date": str(dt.date.today()),  # noqa: DTZ011
        "machine": machine(),
        **asdict(options),
        "measurements": [asdict(each) for each in measurements],
        "rows": [asdict(row) for row in rows],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(kept))
