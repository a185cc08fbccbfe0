"""What systemd does for a unit of the roles: it restarts for ever, and by the watchdog; and a count of it all.

The settings are those of `roles/*/templates/*.service.j2`, but for the watchdog's time, which a case may shorten.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[2]
RESTART_S = 1.0
WATCHDOG_S = 30.0
STOP_S = 5.0


class Unit:
    """A command that is kept running.

    Args:
        place: an empty folder: `log` has what the command says, `faults/` what is to go wrong in it.
        arguments: of the command, `hub …` or `send …`.
        prefix: what to run it by: `ip netns exec …`.
        environment: beside this process's own.
        watchdog_s: without a sign of life for so long, once it was ready, it is killed.
    """

    def __init__(
        self,
        place: Path,
        arguments: Sequence[str],
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        watchdog_s: float = WATCHDOG_S,
    ) -> None:
        place.mkdir()
        self.faults = place / "faults"
        self.faults.mkdir()
        self.log = place / "log"
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(place / "notify"))
        self._command = [*prefix, sys.executable, "-m", "tests.chaos.program", *arguments]
        self._environment = {
            **os.environ,
            **(environment or {}),
            "NOTIFY_SOCKET": str(place / "notify"),
            "CHAOS_FAULTS": str(self.faults),
        }
        self._watchdog_s = watchdog_s
        self._held = threading.Event()  # set: not to be started
        self._ending = threading.Event()
        self.starts = 0
        self.starved = 0  # killed by the watchdog
        self.statuses: list[int] = []  # with which it ended, by itself or killed
        self.ready = threading.Event()
        self.ready_at = 0.0  # monotonic seconds
        self.process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._supervise)
        self._thread.start()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the process a signal, as somebody else than systemd does."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    def hold(self) -> None:
        """Take the command away, without a word, until `release`."""
        self._held.set()
        while self.process:
            self.kill()
            time.sleep(0.01)

    def release(self) -> None:
        """Let it be started again."""
        self._held.clear()

    def fail(self, fault: str, how: str = "") -> None:
        """Have a part of the command fail until `heal`."""
        file = self.faults / f"{fault}.new"
        file.write_text(how)
        file.rename(self.faults / fault)

    def heal(self) -> None:
        for file in self.faults.iterdir():
            file.unlink()

    def holdings(self) -> tuple[float, int]:
        """Return the memory that it holds, in MB, and its open descriptors."""
        process = self.process
        if process is None:
            return 0.0, 0
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGESIZE") / 1e6, len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        except OSError:
            return 0.0, 0

    def said(self) -> str:
        """Return all that it has printed and logged, of all its starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def close(self) -> None:
        self._ending.set()
        self._thread.join()
        self._notify.close()

    def __enter__(self) -> Unit:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _supervise(self) -> None:
        while not self._ending.is_set():
            if self._held.is_set():
                self._ending.wait(0.01)
                continue
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self._command,
                    cwd=ROOT,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            self.starts += 1
            self._watch(self.process)
            self.ready.clear()
            self.statuses.append(self.process.wait())
            self.process = None
            if not self._held.is_set():
                self._ending.wait(RESTART_S)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the process has ended, or end it."""
        fed = time.monotonic()
        while process.poll() is None and not self._ending.is_set():
            if select.select([self._notify], [], [], 0.05)[0]:
                words = self._notify.recv(4096)
                if words in (b"READY=1", b"WATCHDOG=1"):
                    fed = time.monotonic()
                    if not self.ready.is_set():
                        self.ready_at = fed
                        self.ready.set()
            elif self.ready.is_set() and time.monotonic() - fed > self._watchdog_s:
                self.starved += 1
                process.kill()
                return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
