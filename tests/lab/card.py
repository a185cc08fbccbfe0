"""A host's disk as a card of its own, which loses what was not yet written when the power is cut.

Other hosts' disks lie in this machine's files, and keep all that was written whatever ends the host.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from tests.lab import lab
from tests.lab.cgroups import Group
from tests.lab.shell import LabError, run

SIZE = "3G"
# Ends an ext4 file system at once, without writing what it still holds: linux/fs/ext4/ext4.h.
_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, (2).to_bytes(4, "little")


def path(name: str) -> Path:
    return lab.CARDS / name


def make(name: str) -> None:
    """Puts the disk of a host that is down onto a card."""
    lab.CARDS.mkdir(exist_ok=True)
    card = path(name)
    run(["truncate", "--size", SIZE, str(card)])
    run(["mkfs.ext4", "-q", "-F", "-d", str(lab.DISKS / name), str(card)])


def cut(name: str) -> None:
    """Cuts the host's power: what its card had not written is lost."""
    if path(name).exists():
        _stop_writing(name)
    lab.kill(name)


def _stop_writing(name: str) -> None:
    supervisor = Group(name).supervisors()[0]
    directory = os.open(f"/proc/{supervisor}/cwd", os.O_RDONLY)
    try:
        # Never that of this machine.
        if os.fstat(directory).st_dev in {place.stat().st_dev for place in (Path("/"), lab.DISKS)}:
            raise LabError(f"{name} does not run from its card")
        fcntl.ioctl(directory, _SHUTDOWN, _WITHOUT_LOG)
    finally:
        os.close(directory)
