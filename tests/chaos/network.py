"""A cable of one's own: two network namespaces and a veth pair between them. Needs root on Linux."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Of the range for benchmarks: RFC 2544.
SUBNET = "198.18.77"
ENDS = ("chaos-hub", "chaos-cameras")
HUB_NAME = "hub.chaos"


def is_possible() -> bool:
    """Whether namespaces can be made here."""
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("ip") is not None


class Cable:
    """Hub and cameras on two hosts, with a cable between them.

    Attributes:
        hub: prefix of a command that runs at the hub's end.
        cameras: prefix of a command that runs at the cameras' end.
        address: of the hub now; `HUB_NAME` stands for it at the cameras' end.
    """

    def __init__(self) -> None:
        self.hub, self.cameras = ([*("ip", "netns", "exec"), end] for end in ENDS)
        self._clean()
        for end in ENDS:
            _ip("netns", "add", end)
        _ip("link", "add", "v0", "netns", ENDS[0], "type", "veth", "peer", "name", "v0", "netns", ENDS[1])
        self._hosts = Path("/etc/netns") / ENDS[1] / "hosts"
        self._hosts.parent.mkdir(parents=True)
        self._number = 1
        self.address = f"{SUBNET}.1"
        self._name()
        for end, address in zip(ENDS, (self.address, f"{SUBNET}.200"), strict=True):
            _ip("-n", end, "address", "add", f"{address}/24", "dev", "v0")
            _ip("-n", end, "link", "set", "v0", "up")
            _ip("-n", end, "link", "set", "lo", "up")

    def pull(self) -> None:
        """Pull the cable at the hub: nothing passes, and nobody is told."""
        _ip("-n", ENDS[0], "link", "set", "v0", "down")

    def plug(self) -> None:
        _ip("-n", ENDS[0], "link", "set", "v0", "up")

    def move_hub(self) -> None:
        """Give the hub another address in the moment, as a router does that hands out new leases."""
        before, self._number = self.address, self._number % 100 + 1
        self.address = f"{SUBNET}.{self._number}"
        # In this order: the first address of a subnet takes the others with it.
        _ip("-n", ENDS[0], "address", "del", f"{before}/24", "dev", "v0")
        _ip("-n", ENDS[0], "address", "add", f"{self.address}/24", "dev", "v0")
        self._name()

    def _name(self) -> None:
        # In place: it is mounted over /etc/hosts.
        self._hosts.write_text(f"127.0.0.1 localhost\n{self.address} {HUB_NAME}\n")

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: object) -> None:
        self._clean()

    def _clean(self) -> None:
        for end in ENDS:
            subprocess.run(["ip", "netns", "del", end], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(Path("/etc/netns") / end, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
