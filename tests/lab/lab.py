#!/usr/bin/env python3
"""The lab: nine blank Debian hosts on this machine, each with systemd, sshd and an address of its own.

    lab.py up [--suite trixie|bookworm] [--hosts N]     start what is missing; safe to repeat
    lab.py image [--suite trixie|bookworm]              only make what the hosts stand on
    lab.py status
    lab.py reboot HOST      as `systemctl reboot` does
    lab.py kill HOST        as pulling the plug does
    lab.py start HOST       plug it in again: its disk is as it was
    lab.py relay HOST       let the page's address on this machine lead to another host
    lab.py down             remove everything but the cache

A host is a systemd-nspawn container in a network namespace, its disk an overlay over a cached base. All
state is under .lab/ in the checkout; /run/streamer-lab is a link to .lab/run and says whose lab is up.
"""

from __future__ import annotations

import argparse
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if not __package__:  # run as a file: `tests` is found in the checkout it belongs to
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.lab import images
from tests.lab.cgroups import NAME, Group
from tests.lab.connect import connect
from tests.lab.shell import LabError, RefusedError, run, step, tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
LAB = CHECKOUT / ".lab"
CACHE = LAB / "cache"
RUN = LAB / "run"
DISKS = RUN / "hosts"
CARDS = RUN / "cards"  # see card.py
OWNER = Path("/run", NAME)
NAMESPACES = Path("/run/netns")
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")

NETWORK = "198.18.0"
MOST_HOSTS = 200
INSTANCES_A_HOST = 16
READY_TIMEOUT_S = 60
HTTP_PORT = 8080
PORTS_TRIED = 20
REBOOT = signal.SIGRTMIN + 5  # what tells systemd to reboot; systemd(1)

# pi2 stands for Raspberry Pi OS since Trixie, where cloud-init owns the host name.
CLOUD_INIT_HOSTS = ("pi2",)

# nspawn ends with 133 when the container asked for a reboot. The mount goes when the last process does.
# A volatile overlay ignores fsync, of which dpkg makes hundreds; its mark must go before it is mounted again.
_SUPERVISE = """
card=../../cards/$1 volatile=,volatile
if [ -e "$card" ]; then
    mount -o loop,barrier=0 "$card" . && cd "$PWD" && volatile= || exit
fi
rm -rf work/work/incompat
mount -t overlay "$1" -o "lowerdir=$2,upperdir=upper,workdir=work$volatile" root || exit
shift 2
while :; do
    "$@"
    [ $? -eq 133 ] || exit
done
"""


def hosts(count: int = 9) -> dict[str, str]:
    """Name and address of each host: the hub, then the cameras."""
    names = ["hub", *(f"pi{n}" for n in range(1, count))]
    return {name: f"{NETWORK}.{10 + n}" for n, name in enumerate(names)}


HOSTS = hosts()


# ---- verbs ---------------------------------------------------------------------------------------------------


def up(suite: str | None = None, count: int = 9) -> None:
    """Starts whatever is missing of the lab and waits until every host lets the user `pi` in."""
    if not 2 <= count <= MOST_HOSTS:
        raise RefusedError(f"--hosts is from 2 (a hub and a camera) to {MOST_HOSTS}, not {count}")
    with _alone():
        running = _image()
        if running and suite not in (None, running.suite):
            raise RefusedError(f"the lab is up with {running.suite}; take it down first (make lab-down)")
        began = time.monotonic()
        images.need_tools(CACHE)
        _claim()
        Group("build").kill()
        image = running or images.image(CACHE, suite or images.SUITES[0])
        footage = images.footage(CACHE)
        (RUN / "image").write_text(image.path.name)
        _raise_inotify(count)
        wanted = hosts(count)
        if _make_bridge():
            missing = list(wanted)  # a host on a bridge that is gone is cut off
        else:
            missing = [name for name in wanted if not ((DISKS / name).exists() and is_up(name))]
        there = [name for name in wanted if name not in missing]
        if there:
            print(f"there already: {' '.join(there)}")
        if missing:
            with step(f"starting {' '.join(missing)}"):
                for name in missing:
                    _boot(name, wanted[name], image, footage)
        _write_ssh_files()
        port = _relay("hub", restart=False)
        with step("waiting for every host to let its user in"):
            for name in wanted:
                _wait_ready(name)
        print(f"the lab is up: {len(wanted)} hosts, {image.suite}, in {time.monotonic() - began:.1f} s")
        print("a host:    ssh -F /run/streamer-lab/ssh_config pi1")
        print("the fleet: ansible-playbook -i tests/lab/hosts.yml deploy.yml")
        print(f"the wall:  http://127.0.0.1:{port}/ (answers once deployed)")


def make_image(suite: str | None = None) -> None:
    """Makes the suite's image, unless it is there; what `up` then needs not do."""
    with _alone():
        images.need_tools(CACHE, for_footage=False)
        Group("build").kill()
        images.image(CACHE, suite or images.SUITES[0])


def down() -> None:
    """Removes everything but the cache, whatever state it is in."""
    with _alone():
        began = time.monotonic()
        left = [p for p in (OWNER, RUN) if os.path.lexists(p)] + _namespaces() + Group().pids()
        everything = Group()
        everything.kill()
        everything.remove()
        for namespace in _namespaces():
            _forget_namespace(namespace)
        _forget_empty_namespaces()
        for trace in Path("/run/systemd/nspawn").glob(f"*/{NAME}-*"):
            shutil.rmtree(trace)
        _restore_inotify()
        for building in CACHE.glob(".building-*"):
            images.clear(building)
        images.clear(images.TEMPORARY)
        images.clear(RUN)
        OWNER.unlink(missing_ok=True)
        took = f"the lab is down, in {time.monotonic() - began:.1f} s"
        print(took if left else "no lab was up")


def status() -> None:
    """Prints a line a host."""
    _refuse_strangers()
    image = _image()
    if not image:
        print("no lab is up")
        return
    print(f"{image.suite}, in {CHECKOUT}")
    for name in _made():
        group = Group(name)
        state = "up" if group.supervised() else "down"
        if state == "down" and group.pids():
            state = "orphan (make lab heals it)"
        elif state == "up" and not _ready(name):
            state = "booting"
        print(f"{name:6} {_address(name):14} {state:8} init {group.init() or '-'}")
    if (RUN / "http").exists():
        print(f"the wall: http://127.0.0.1:{(RUN / 'http').read_text().strip()}/")


def reboot(name: str) -> None:
    """Restarts a host the orderly way and waits until it is back."""
    with _alone():
        init = _running(name)
        with step(f"reboot {name}"):
            gone = os.pidfd_open(init)
            try:
                os.kill(init, REBOOT)
                _wait(f"{name} to go down", lambda: bool(select.select([gone], [], [], 1)[0]))
            finally:
                os.close(gone)
            _wait_ready(name)


def is_up(name: str) -> bool:
    """Whether a host runs."""
    return Group(name).supervised()


def kill(name: str) -> None:
    """Ends a host at once, as when its power goes; its disk stays."""
    with _alone():
        init = _running(name)
        with step(f"kill {name}"):
            os.kill(init, signal.SIGKILL)
            Group(name).wait_empty()


def start(name: str) -> None:
    """Boots a host that is down, from the disk it had."""
    with _alone():
        _check_made(name)
        if Group(name).supervised():
            print(f"{name} is up already")
            return
        with step(f"start {name}"):
            image = _image()
            if not image:
                raise RefusedError("no lab is up")
            _boot(name, _address(name), image, images.footage(CACHE))
            _wait_ready(name)


def relay(name: str) -> None:
    """Lets the page's address on this machine lead to another host."""
    with _alone():
        _check_made(name)
        print(f"{name}'s page: http://127.0.0.1:{_relay(name, restart=True)}/")


def inside(name: str, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a command as root inside a host, through the machine's kernel: a login costs many times as much."""
    # Into each of its namespaces, its root and its working directory.
    enter = ["nsenter", f"--target={_running(name)}", *(f"-{what}" for what in "muinpCrw")]
    clean = ["env", "-i", "HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    return subprocess.run(
        [*enter, *clean, *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


# ---- whose lab -----------------------------------------------------------------------------------------------


@contextmanager
def _alone() -> Iterator[None]:
    """One lab.py at a time, and none while the lab of another checkout is up."""
    with images.locked(CACHE):
        _refuse_strangers()
        yield


def _refuse_strangers() -> None:
    owner = OWNER.readlink() if OWNER.is_symlink() else RUN
    # A link that leads nowhere is left of a checkout that is gone: what remains of it is ours to heal.
    if owner != RUN and owner.exists():
        raise RefusedError(f"the lab of {owner.parents[1]} is up; take it down there first (make lab-down)")


def _claim() -> None:
    RUN.mkdir(exist_ok=True)
    if OWNER.is_symlink() and OWNER.readlink() != RUN:
        OWNER.unlink()
    if not OWNER.is_symlink():
        OWNER.symlink_to(RUN)


def _image() -> images.Image | None:
    """What the hosts of a lab that is up stand on; a recipe that has changed since does not pull it away."""
    noted = RUN / "image"
    image = images.Image(CACHE / noted.read_text()) if noted.exists() else None
    return image if image and image.path.exists() else None


def _made() -> list[str]:
    found = [path.name for path in DISKS.glob("[!.]*")] if DISKS.exists() else []
    return sorted(found, key=lambda name: (name != "hub", len(name), name))


def _check_made(name: str) -> None:
    if name not in _made():
        raise RefusedError(f"no host {name} in the lab; there are: {' '.join(_made()) or 'none'}")


def _running(name: str) -> int:
    _check_made(name)
    init = Group(name).init()
    if init is None:
        raise RefusedError(f"{name} is not running")
    return init


def _address(name: str) -> str:
    return hosts(MOST_HOSTS)[name]


# ---- network -------------------------------------------------------------------------------------------------


def _make_bridge() -> bool:
    """Makes the network that all hosts share, unless it is there; returns whether it had to."""
    ask = ["ip", "-n", NAME, "-brief", "address", "show", "lab0"]
    if f"{NETWORK}.1/24" in subprocess.run(ask, capture_output=True, text=True, check=False).stdout:
        return False
    _forget_namespace(NAME)
    run(["ip", "netns", "add", NAME])
    _ip(
        NAME,
        "link set lo up",
        "link add lab0 type bridge",
        f"address add {NETWORK}.1/24 dev lab0",
        "link set lab0 up",
    )
    return True


def _wire(name: str, address: str) -> None:
    """A namespace with one interface on the bridge. Made before the host boots, so a reboot keeps it."""
    subprocess.run(["ip", "-n", NAME, "link", "delete", name], capture_output=True, check=False)
    namespace = f"{NAME}-{name}"
    _forget_namespace(namespace)
    run(["ip", "netns", "add", namespace])
    # An address of the card, not of the boot: the neighbours of a host that comes back know it already.
    mac = f"02:00:c6:12:00:{int(address.rsplit('.', 1)[1]):02x}"
    _ip(
        NAME,
        f"link add {name} type veth peer name eth0 address {mac} netns {namespace}",
        f"link set {name} master lab0 up",
    )
    _ip(
        namespace,
        "link set lo up",
        f"address add {address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {NETWORK}.1",
    )


def _ip(namespace: str, *lines: str) -> None:
    run(["ip", "-n", namespace, "-batch", "-"], stdin="\n".join(lines))


def _namespaces() -> list[str]:
    return [path.name for path in [*NAMESPACES.glob(NAME), *NAMESPACES.glob(f"{NAME}-*")]]


def _forget_namespace(namespace: str) -> None:
    path = NAMESPACES / namespace
    if path.exists():
        # A crash between making the file and mounting on it leaves what `ip` will not delete.
        subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
        path.unlink(missing_ok=True)


def _forget_empty_namespaces() -> None:
    """Removes what iproute2 made and mounted, maybe more than once, when it made the first namespace."""
    while NAMESPACES.is_dir() and not any(NAMESPACES.iterdir()):
        # Path.is_mount() does not see a directory that is mounted on itself.
        mounts = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        if str(NAMESPACES) not in mounts:
            NAMESPACES.rmdir()
        elif subprocess.run(["umount", str(NAMESPACES)], capture_output=True, check=False).returncode:
            return  # in use by somebody else


# ---- hosts ---------------------------------------------------------------------------------------------------


def _boot(name: str, address: str, image: images.Image, footage: Path) -> None:
    group = Group(name)
    group.kill()  # an orphan whose nspawn was killed
    # Linux notes a kill in every group below, and kills what is started from a group with a note into one without:
    # systemd, in a group of the last boot, could restart no service.
    group.remove()
    disk = DISKS / name
    if not disk.exists():
        _make_disk(disk)
    _wire(name, address)
    lower = [image.cloud, image.base] if name in CLOUD_INIT_HOSTS else [image.base]
    # Relative names: a checkout may have any character in its path, overlayfs's options may not.
    lowerdir = ":".join(os.path.relpath(layer, disk) for layer in lower)
    nspawn = [
        "systemd-nspawn", "-q", "-D", "root", "--boot",
        f"--network-namespace-path={NAMESPACES}/{NAME}-{name}",
        f"--machine={NAME}-{name}", "--register=no", "--keep-unit", "--console=read-only",
        "--resolv-conf=off", "--timezone=off", "--link-journal=no",
        # For a firewall of its own, in its own namespace.
        "--capability=CAP_NET_ADMIN",
        images.bind(image.packages, images.REPOSITORY), images.bind(footage, images.FOOTAGE),
    ]  # fmt: skip
    supervise = ["unshare", "--mount", "sh", "-c", _SUPERVISE, "sh", name, lowerdir, *nspawn]
    env = os.environ | {
        "SYSTEMD_COLORS": "0",
        "SYSTEMD_NSPAWN_LOCK": "0",
        "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    }
    with (disk / "console.log").open("a") as console:
        # setsid --fork: no terminal, and no child of ours left to wait for.
        subprocess.run(
            group.wrap(["setsid", "--fork", *supervise]),
            cwd=disk,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env=env,
            check=True,
        )


def _make_disk(disk: Path) -> None:
    """What tells one fresh card from the next: a machine id, an SSH host key, and the key that may log in."""
    key = _key(RUN / "id_ed25519")
    making = disk.with_name(f".{disk.name}")
    images.clear(making)
    for directory in ("upper", "work", "root", "upper/etc/ssh", "upper/home/pi/.ssh"):
        (making / directory).mkdir(parents=True, mode=0o755)
    upper = making / "upper"
    _key(upper / "etc/ssh/ssh_host_ed25519_key")
    (upper / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (upper / "home/pi/.ssh/authorized_keys").write_text(key)
    for path in (upper / "home/pi", upper / "home/pi/.ssh"):
        path.chmod(0o700)
    for path in (upper / "home/pi", *(upper / "home/pi").rglob("*")):
        os.chown(path, 1000, 1000)
    making.rename(disk)


def _key(path: Path) -> str:
    """A key pair, made where it is missing; returns the public half."""
    public = path.with_name(f"{path.name}.pub")
    if not public.exists():
        path.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "streamer-lab", "-f", str(path)])
    return public.read_text()


def _write_ssh_files() -> None:
    """One configuration for ssh and Ansible; by /run/streamer-lab any inventory finds it, wherever it is."""
    known, config = [], []
    for name in _made():
        host_key = (DISKS / name / "upper/etc/ssh/ssh_host_ed25519_key.pub").read_text()
        known.append(f"{_address(name)} {host_key}")
        config.append(f"Host {name}\n    HostName {_address(name)}\n")
    proxy = f"{shlex.quote(sys.executable)} -I {shlex.quote(str(HERE / 'connect.py'))}"
    config.append(f"""\
Host *
    User pi
    IdentityFile "{_percent(RUN / "id_ed25519")}"
    IdentitiesOnly yes
    UserKnownHostsFile "{_percent(RUN / "known_hosts")}"
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    ProxyCommand {_percent(proxy)} %h %p
    ProxyUseFdpass yes
""")
    (RUN / "known_hosts").write_text("".join(known))
    (RUN / "ssh_config").write_text("".join(config))


def _percent(text: object) -> str:
    return str(text).replace("%", "%%")


def _ready(name: str) -> bool:
    """Whether sshd answers and lets ordinary users in, which it does not before the end of the boot."""
    init = Group(name).init()
    if init is None or Path(f"/proc/{init}/root/run/nologin").exists():
        return False
    try:
        with connect(_address(name), 22, 1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _wait_ready(name: str) -> None:
    def ready() -> bool:
        if not Group(name).supervised():
            raise LabError(f"{name} has ended")
        return _ready(name)

    try:
        _wait(f"{name} to answer on port 22", ready)
    except LabError as error:
        raise LabError("\n".join([str(error), *tail(DISKS / name / "console.log", 10)])) from None


def _wait(what: str, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not true():
        if time.monotonic() > deadline:
            raise LabError(f"waited {READY_TIMEOUT_S} s for {what}")
        time.sleep(0.05)


# ---- the machine ---------------------------------------------------------------------------------------------


def _relay(name: str, *, restart: bool) -> int:
    """Starts the program that carries the page out, on the port it had, else on the first free one."""
    group = Group("relay")
    noted = RUN / "http"
    if noted.exists() and group.supervised() and not restart:
        return int(noted.read_text())
    group.kill()
    port = int(noted.read_text()) if noted.exists() else HTTP_PORT
    with _listen(port) as listening:
        port = int(listening.getsockname()[1])
        descriptor = listening.fileno()
        program = [sys.executable, "-m", "tests.lab.relay", str(descriptor), _address(name), str(HTTP_PORT)]
        with (RUN / "relay.log").open("a") as log:
            subprocess.run(
                group.wrap(["setsid", "--fork", *program]),
                cwd=CHECKOUT,
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=True,
            )
    noted.write_text(f"{port}\n")
    return port


def _listen(first: int) -> socket.socket:
    for port in range(first, first + PORTS_TRIED):
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
    raise LabError(f"no free port on 127.0.0.1 from {first} to {first + PORTS_TRIED - 1}")


def _raise_inotify(count: int) -> None:
    """Each host's systemd takes several instances; 128, the default, is for fewer than twenty hosts."""
    need = max(1024, count * INSTANCES_A_HOST)
    have = int(INOTIFY.read_text())
    if have < need:
        noted = RUN / "inotify"
        if not noted.exists():
            noted.write_text(f"{have}\n")
        INOTIFY.write_text(str(need))
        print(f"fs.inotify.max_user_instances: {have} -> {need} until the lab is down")


def _restore_inotify() -> None:
    noted = RUN / "inotify"
    if noted.exists():
        INOTIFY.write_text(noted.read_text())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"lab: {message}\n")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="lab.py", description="Nine blank Debian hosts on this machine.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    starts = verbs.add_parser("up", help="start what is missing")
    starts.add_argument("--suite", choices=images.SUITES, help="default: what is up, else trixie")
    starts.add_argument("--hosts", type=int, default=9, metavar="N", help="default: 9, a hub and 8 cameras")
    verbs.add_parser("down", help="remove everything but the cache")
    makes = verbs.add_parser("image", help="only make what the hosts stand on")
    makes.add_argument("--suite", choices=images.SUITES, help="default: trixie")
    verbs.add_parser("status", help="a line a host")
    for verb, does in {
        "reboot": "restart a host the orderly way",
        "kill": "end a host at once",
        "start": "boot a host that is down",
        "relay": "let the page's address lead to another host",
    }.items():
        verbs.add_parser(verb, help=does).add_argument("host")
    return parser.parse_args(argv)


def need_root(parser: argparse.ArgumentParser) -> None:
    """Refuses where the lab cannot run, as a program that makes its own."""
    if os.geteuid() != 0:
        parser.error("the lab needs root on Debian or Ubuntu")


def main(argv: list[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    given = _parse(argv)
    try:
        if sys.platform != "linux":
            raise RefusedError(f"the lab needs Linux (Debian or Ubuntu), not {sys.platform}")
        if os.geteuid() != 0:
            raise RefusedError("the lab makes network namespaces and containers: run it as root")
        match given.verb:
            case "up":
                up(given.suite, given.hosts)
            case "image":
                make_image(given.suite)
            case "down":
                down()
            case "status":
                status()
            case verb:
                {"reboot": reboot, "kill": kill, "start": start, "relay": relay}[verb](given.host)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
