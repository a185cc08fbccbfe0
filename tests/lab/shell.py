"""How the lab runs other programs, tells what it is doing and gives up."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

HEARTBEAT_S = 10
TAIL_LINES = 15


class LabError(Exception):
    """Something that should have worked did not."""

    status = 1


class RefusedError(LabError):
    """The lab cannot do that here, or not as asked; nothing was changed."""

    status = 2


@contextmanager
def step(what: str) -> Iterator[None]:
    """Says what begins, and how long it took."""
    print(f"{what} ...", flush=True)
    began = time.monotonic()
    yield
    print(f"{what}: done in {time.monotonic() - began:.1f} s", flush=True)


def run(argv: Sequence[str], *, cwd: Path | None = None, stdin: str = "") -> str:
    """Runs a short command and returns what it printed.

    Raises:
        LabError: with the command's own words, when it fails.
    """
    done = subprocess.run(argv, cwd=cwd, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise LabError(f"{' '.join(argv)}: {said}")
    return done.stdout


def run_long(argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None) -> None:
    """Runs a command of many seconds: its words go to `log`, a sign of life to the terminal.

    Raises:
        LabError: with the end of the log, when the command fails.
    """
    began = time.monotonic()
    with (
        log.open("w") as words,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT, env=env) as child,
    ):
        while True:
            try:
                status = child.wait(HEARTBEAT_S)
                break
            except subprocess.TimeoutExpired:
                last = (tail(log, 1) or [""])[0]
                print(f"    {time.monotonic() - began:3.0f} s  {last[:80]}", flush=True)
    if status:
        raise LabError("\n".join([f"{argv[0]}: exit status {status}", *tail(log, TAIL_LINES)]))


def tail(log: Path, lines: int) -> list[str]:
    """The last lines of a log that may be absent, still being written, or not text."""
    if not log.exists():
        return []
    return log.read_text(errors="replace").splitlines()[-lines:]
