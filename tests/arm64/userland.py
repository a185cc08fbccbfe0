"""Debian for arm64 on another machine: qemu-user runs its programs one by one, the kernel is this machine's."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.images import (
    FLEET_PACKAGES,
    REPOSITORY,
    SOURCES_LIST,
    Image,
    bootstrap,
    cached,
    clear,
    confined,
    index,
    install,
    locked,
    repack,
)
from tests.lab.lab import CACHE
from tests.lab.shell import RefusedError, step

if TYPE_CHECKING:
    from collections.abc import Iterator

RECIPE = 1  # to be raised when the code below makes something else of the same lists
BINFMT = Path("/proc/sys/fs/binfmt_misc")
NAME = "streamer-aarch64"
# An ELF file of 64 bits, little-endian, for the machine 183; a program or a library.
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# What a deploy finds on a host, and uses: every package more is minutes of emulation.
BASE_PACKAGES = ("systemd", "python3")
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "arch-test": "arch-test",
    "qemu-aarch64-static": "qemu-user-static",
    "apt-ftparchive": "apt-utils",
    "zstd": "zstd",
}


@dataclass(frozen=True)
class Host:
    """A copy of the base, whose programs can be run."""

    root: Path
    packages: Path

    def wrap(self, *argv: str) -> list[str]:
        """The command line that runs `argv` on it: with a /proc and /dev of its own, and this machine's network."""
        script = """
            mount -t proc proc "$0/proc"
            mount --rbind /dev "$0/dev"
            mkdir -p "$0$2"
            mount --bind "$1" "$0$2"
            root=$0
            shift 2
            exec chroot "$root" "$@"
        """
        inside = ["sh", "-ec", script, str(self.root), str(self.packages), REPOSITORY, *argv]
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", *inside]

    def run(self, *argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run(self.wrap(*argv), input=stdin, env=env, capture_output=True, text=True, check=False)


def need_tools() -> None:
    """Installs what is missing on this machine.

    Raises:
        RefusedError: where arm64 cannot be run.
    """
    if os.geteuid() != 0:
        raise RefusedError("another processor's Debian is built and run by root")
    install(TOOLS, CACHE)


@contextmanager
def emulation() -> Iterator[None]:
    """Lets the kernel run programs for arm64, as long as the context lasts; where it does already, nothing changes."""
    if os.uname().machine == "aarch64":
        yield
        return
    mounted = not (BINFMT / "register").exists()
    if mounted:
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    # Debian's own entry, if that is there, does the same.
    registered = not any((BINFMT / name).exists() for name in (NAME, "qemu-aarch64"))
    if registered:
        # F: the interpreter is opened now, so that it is found in every root.
        rule = f":{NAME}:M::{MAGIC}:{MASK}:{shutil.which('qemu-aarch64-static')}:OCF"
        (BINFMT / "register").write_text(rule)
    try:
        yield
    finally:
        if registered:
            (BINFMT / NAME).write_text("-1")
        if mounted:
            subprocess.run(["umount", str(BINFMT)], check=True)


def image(suite: str) -> Image:
    """The suite's cached image, made first where it is missing or its recipe has changed."""

    def make(building: Path) -> None:
        image = Image(building)
        with step(f"arm64 {suite}: a base system and {len(FLEET_PACKAGES)} packages with what they need"):
            arm64 = "--architectures=arm64"
            bootstrap(image.base, suite, BASE_PACKAGES, image.packages, FLEET_PACKAGES, confined, arm64)
            repack(image.packages)
            index(image.packages)
        (image.base / "etc/apt/sources.list").write_text(SOURCES_LIST)

    with locked(CACHE):
        return Image(cached(CACHE, f"arm64-{suite}", (RECIPE, BASE_PACKAGES, FLEET_PACKAGES), make))


@contextmanager
def host(made: Image, root: Path) -> Iterator[Host]:
    """A new host on the image, removed with all that was installed on it."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(made.base), str(root)], check=True)
    try:
        yield Host(root, made.packages)
    finally:
        clear(root)
