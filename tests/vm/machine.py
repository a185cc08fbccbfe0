"""The machine: a disk with Debian, picamera2 and kernel modules, built once and cached, and QEMU that boots it.

It is emulated in software, so it needs no KVM; it has no network, and what it says comes over two serial lines. The
checkout is there read-only, and what is written to the disk is thrown away.

    python -m tests.vm.machine [CHECK ...]      only these of inside/checks.py, and what they found
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from tests.lab.images import bootstrap, cached, clear, confined, install, locked
from tests.lab.lab import CACHE, CHECKOUT
from tests.lab.shell import LabError, RefusedError, run, run_long, step, tail

RECIPE = 1  # to be raised when the code below makes something else of the same lists
SUITE, PYTHON = "trixie", "3.13"
HERE = Path(__file__).resolve().parent

PACKAGES = (
    "udev",
    "kmod",
    "busybox-static",
    "v4l-utils",
    "python3-zmq",
    "python3-yaml",
    "python3-numpy",
    "python3-opencv",
    "python3-pil",
    # What picamera2 imports.
    "python3-libcamera",
    "libcamera-ipa",
    "python3-av",
    "python3-jsonschema",
    "python3-libarchive-c",
    "python3-piexif",
    "python3-prctl",
    "python3-tqdm",
)
# Only unpacked, in a layer of their own: see modules.sh.
KERNEL_PACKAGES = (
    "linux-image-amd64",
    "linux-headers-amd64",
    "linux-source",
    "v4l2loopback-dkms",
    "gcc",
    "make",
    "cpio",
    "xz-utils",
)
# What is in no archive of Debian's. PiDNG comes as source, of which picamera2 imports the part that is Python.
WHEELS = ("picamera2==0.3.38", "simplejpeg==1.9.0", "videodev2==0.0.4", "OpenEXR==3.5.3")
SOURCES = ("pidng==4.0.9",)

TOOLS = {"mmdebstrap": "mmdebstrap", "qemu-system-x86_64": "qemu-system-x86", "mkfs.ext4": "e2fsprogs"}
DISK_BYTES = 3 << 30  # sparse
TIMEOUT_S = 1800


def need_tools() -> None:
    """Installs what is missing on this machine.

    Raises:
        RefusedError: where the machine cannot be built or booted.
    """
    if os.geteuid() != 0:
        raise RefusedError("the machine with cameras is built by root")
    if os.uname().machine != "x86_64":
        raise RefusedError(f"the machine with cameras is an x86-64; this one is {os.uname().machine}")
    install(TOOLS, CACHE)


def image() -> Path:
    """The cached directory with the machine's disk, kernel and first file system, made where it is missing."""
    scripts = [(HERE / name).read_text() for name in ("modules.sh", "first.sh")]
    recipe = (RECIPE, SUITE, PACKAGES, KERNEL_PACKAGES, WHEELS, SOURCES, scripts)
    with locked(CACHE):
        return cached(CACHE, "vm", recipe, _make)


def _make(building: Path) -> None:
    with step(f"machine: {SUITE} with libcamera and OpenCV"):
        hook = '--customize-hook=mkdir "$1/checkout"'
        bootstrap(building / "root", SUITE, PACKAGES, building / "debs", KERNEL_PACKAGES, confined, hook)
    with step("machine: a kernel with virtual cameras"):
        _make_kernel(building)
    with step("machine: picamera2"):
        _add_picamera2(building)
    with step("machine: a disk of it"):
        _make_disk(building)


def boot(made: Path, scratch: Path, *only: str) -> dict[str, dict[str, Any]]:
    """Boots the machine and waits until it has switched itself off.

    Returns:
        What each check found, by its name.

    Raises:
        LabError: it did not come to an end.
    """
    console, results = scratch / "console", scratch / "results"
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-kernel", str(made / "vmlinuz"), "-initrd", str(made / "initrd"),
        "-append", f"console=ttyS0 quiet panic=-1 -- {' '.join(only)}",
        "-drive", f"file={_option(made / 'disk')},format=raw,if=virtio,snapshot=on",
        "-virtfs", f"local,path={_option(CHECKOUT)},mount_tag=checkout,security_model=none,readonly=on",
        "-serial", f"file:{console}", "-serial", f"file:{results}",
    ]  # fmt: skip
    with step("machine: booting, and all its checks"):
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=True)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            raise LabError("\n".join([str(error), *tail(console, 30)])) from error
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    return {row.pop("check"): row for row in rows}


def _option(path: Path) -> str:
    return str(path).replace(",", ",,")


def _make_kernel(building: Path) -> None:
    for directory in ("layer", "work", "mount"):
        (building / directory).mkdir()
    script = f"""
        cd {shlex.quote(str(building))}
        mount -t overlay overlay -o lowerdir=root,upperdir=layer,workdir=work mount
        mkdir mount/debs
        mount --bind debs mount/debs
        cp {shlex.quote(str(HERE))}/modules.sh mount/modules.sh
        cp {shlex.quote(str(HERE))}/first.sh mount/init.sh
        chroot mount /bin/sh /modules.sh
    """
    run_long(confined(["sh", "-ec", script]), building / "log")
    out = building / "layer/out"
    for name in ("vmlinuz", "initrd"):
        (out / name).rename(building / name)
    shutil.copytree(out / "modules", building / "root", dirs_exist_ok=True)
    for directory in ("layer", "work", "mount", "debs"):
        clear(building / directory)


def _add_picamera2(building: Path) -> None:
    packages = building / "pip"
    site = building / f"root/usr/local/lib/python{PYTHON}/dist-packages"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", f"--dest={packages}"]
    linux = [f"--platform=manylinux{glibc}_x86_64" for glibc in ("2014", "_2_28")]
    run_long([*pip, "--only-binary=:all:", f"--python-version={PYTHON}", *linux, *WHEELS], building / "log")
    run_long([*pip, "--no-binary=:all:", *SOURCES], building / "log")
    for wheel in packages.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    for source in packages.glob("*.tar.gz"):
        with tarfile.open(source) as archive:
            archive.extractall(packages, filter="data")
    for package in packages.glob("*/src/pidng"):
        package.rename(site / "pidng")
    inside = f"/{site.relative_to(building / 'root')}"
    run(["chroot", str(building / "root"), "python3", "-m", "compileall", "-q", inside])
    clear(packages)


def _make_disk(building: Path) -> None:
    root, disk = building / "root", building / "disk"
    with disk.open("wb") as file:
        file.truncate(DISK_BYTES)
    run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", "-d", str(root), str(disk)])
    clear(root)
    (building / "log").unlink()


if __name__ == "__main__":
    need_tools()
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(boot(image(), Path(directory), *sys.argv[1:]), indent=1))
