"""What an inventory means: whether it is a fleet at all, and what follows from it for each host.

Everything here is a function of the inventory, of which keys a sender has, and of whether the files that the inventory
names are there. The plays ask it before they contact a host, so a mistake in the inventory is one line about that line,
and no host has been touched.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Variables = Mapping[str, Any]
    Groups = Mapping[str, list[str]]

HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SIZE = re.compile(r"(\d{2,5})x(\d{2,5})")
HTTP = re.compile(r"(?P<host>\[[0-9A-Fa-f:]+\]|[0-9.]+|localhost):(?P<port>\d{1,5})")
CAMERA = re.compile(r"picamera2|usb:(\d+|/dev/.+)|file:/.+|pattern")
# The package's manual of a sender's keys: those that it has, and no other, may stand in sender_options.
SENDER_MANUAL = Path(__file__).parents[2] / "streamer" / "sender.yml"
# Those that have a variable of their own.
SENDER_VARIABLES = {
    "name": "inventory_hostname",
    "hubs": "streamer_hub",
    "camera": "streamer_camera",
    "size": "streamer_size",
    "fps": "streamer_fps",
    "quality": "streamer_quality",
    "curve_key_file": "streamer_curve",
    "curve_hub_keys": "streamer_curve",
}
# Those that only picamera2 has.
OF_THE_SENSOR = ("hflip", "vflip", "rotate", "controls", "encoder")

# Modules that a host's work imports, and the Debian packages that have them.
NEEDS = {
    "everywhere": {"zmq": "python3-zmq", "yaml": "python3-yaml", "installer": "python3-installer"},
    "picamera2": {"picamera2": "python3-picamera2"},
    "usb": {"cv2": "python3-opencv"},
    # PyAV decodes for half of what OpenCV takes of a card; Pillow makes the JPEGs.
    "file": {"av": "python3-av", "PIL": "python3-pil"},
    "pattern": {"PIL": "python3-pil"},
    "hub": {
        "aiohttp": "python3-aiohttp",
        "prometheus_client": "python3-prometheus-client",
        # These make a JPEG of the raw arrays that a program may send.
        "numpy": "python3-numpy",
        "PIL": "python3-pil",
    },
    "windows": {"cv2": "python3-opencv"},
}
# Faster than what Debian has for the same work, and only in the Raspberry Pi archive.
FASTER = {"simplejpeg": "python3-simplejpeg"}
CODES_JPEG = {"picamera2", "usb", "file", "windows"}

# The sandbox of the sender's service hides these.
HIDDEN = ("/home/", "/root/", "/tmp/", "/var/tmp/", "/run/user/")  # noqa: S108 - nothing is written there
# A public key, as `streamer keys` prints it.
PUBLIC_KEY = re.compile(r"curve-public:[0-9a-f]{64}")
# Where a hub's tools ask it without a password; the unit makes the directory.
SOCKET = "/run/streamer/hub.sock"
EVERY_ADDRESS = ("0.0.0.0", "[::]")  # noqa: S104 - read, not bound


@dataclass(frozen=True)
class Host:
    """One host of the inventory: its variables over the roles' defaults."""

    name: str
    variables: Variables
    defaults: Variables

    def __getitem__(self, variable: str) -> Any:
        return self.variables[variable] if variable in self.variables else self.defaults[variable]

    @property
    def managed(self) -> bool:
        """Whether Ansible sets this host up."""
        return _is_true(self["hub_managed"])

    @property
    def local(self) -> bool:
        """Whether Ansible reaches it without a network, so that its name says nothing."""
        return self.variables.get("ansible_connection") == "local"

    @property
    def address(self) -> str:
        """Where cameras reach this host; empty if the inventory does not say."""
        given = self["streamer_address"] or self.variables.get("ansible_host")
        return str(given or ("" if self.local else self.name))

    @property
    def preferred_hubs(self) -> list[str]:
        """What `streamer_hub` says: one name, several, or none."""
        wanted = self["streamer_hub"] or []
        return [wanted] if isinstance(wanted, str) else list(wanted)

    @property
    def endpoint(self) -> str:
        """Where cameras send, if this is their hub."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"tcp://{address}:{int(self['streamer_port'])}"

    @property
    def page(self) -> str:
        """The hub's page, seen from where it can be seen."""
        host, port = str(self["streamer_http"]).rsplit(":", 1)
        if host in EVERY_ADDRESS:
            host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self['hub_tls_certificate'] else 'http'}://{host}:{port}/"

    @property
    def on_loopback(self) -> bool:
        """Whether the hub's page is served to the hub itself alone."""
        return _is_loopback(str(self["streamer_http"]).rsplit(":", 1)[0].strip("[]"))

    @property
    def encrypts(self) -> bool:
        """Whether the hub takes encrypted frames only."""
        return _is_true(self["streamer_curve"])

    @property
    def asks(self) -> bool:
        """Whether the hub's page asks for the password."""
        return not self.on_loopback and not _is_true(self["streamer_http_open"])


class Fleet:
    """The cameras and hubs of an inventory."""

    def __init__(self, groups: Groups, hostvars: Variables, defaults: Variables) -> None:
        names = dict.fromkeys([*groups.get("hubs", []), *groups.get("cameras", []), *groups.get("retired", [])])
        self.hosts = {name: Host(name, hostvars[name], defaults) for name in names}
        self.hubs = {name: self.hosts[name] for name in groups.get("hubs", [])}
        self.cameras = {name: self.hosts[name] for name in groups.get("cameras", [])}
        self.retired = list(groups.get("retired", []))
        self.known = {variable for variable in defaults if variable.startswith("streamer_")}
        self.sender_keys = set(yaml.safe_load(SENDER_MANUAL.read_text(encoding="utf-8")))

    def hubs_of(self, camera: Host) -> list[Host]:
        """The hubs that a camera sends to, the preferred one first."""
        return [self.hubs[name] for name in camera.preferred_hubs or list(self.hubs)[:1]]

    def cameras_of(self, hub: Host) -> list[str]:
        """The cameras that prefer this hub."""
        return [name for name, camera in self.cameras.items() if self.hubs_of(camera)[0] is hub]

    def senders_of(self, hub: Host) -> list[str]:
        """The cameras that may send to this hub, whether or not they prefer it."""
        return [name for name, camera in self.cameras.items() if hub in self.hubs_of(camera)]

    def problems(self) -> Iterator[str]:
        """What is wrong, one line each: where, what, and what would be right."""
        if not self.hubs:
            yield "the inventory names no hub: put the hub's host into the group 'hubs'"
        if not self.cameras:
            yield "the inventory names no camera: put the cameras' hosts into the group 'cameras'"
        for name in self.retired:
            if name in self.cameras or name in self.hubs:
                yield f"{name}: it is in the group 'retired' and still a camera or a hub: take it out of one of them"
        yield from self._name_problems()
        yield from self._address_problems()
        for host in self.hosts.values():
            for variable in host.variables:
                if str(variable).startswith("streamer_") and variable not in self.known:
                    near = difflib.get_close_matches(str(variable), self.known, 1, 0)
                    yield f"{host.name}: no variable is called {variable}: did you mean {near[0]}?"
            yield from _firewall_problems(host)
        for hub in self.hubs.values():
            yield from self._hub_problems(hub)
        for camera in self.cameras.values():
            yield from self._camera_problems(camera)

    def _name_problems(self) -> Iterator[str]:
        seen: dict[str, str] = {}
        for name, host in self.hosts.items():
            twin = seen.setdefault(name.lower(), name)
            if twin != name:
                yield f"{twin} and {name}: two hosts with one name: give each a name of its own, a-z, 0-9 and '-'"
            elif name == "localhost":
                if host.managed:
                    yield "localhost: every machine calls itself so: give this host a name of its own"
            elif not HOSTNAME.fullmatch(name) and (host.managed or name in self.cameras):
                yield f"{name}: no hostname: 1 to 63 of a-z, 0-9, inner '-' are right; the address goes in ansible_host"

    def _address_problems(self) -> Iterator[str]:
        seen: dict[tuple[str, str], str] = {}
        for name, host in self.hosts.items():
            address = "this machine" if host.local else str(host.variables.get("ansible_host", name))
            port = str(host.variables.get("ansible_port", 22))
            other = seen.setdefault((address.lower(), port), name)
            if other != name:
                yield f"{other} and {name}: two hosts with one address, {address}: give each its own ansible_host"

    def _hub_problems(self, hub: Host) -> Iterator[str]:
        name = hub.name
        port = _integer(hub["streamer_port"], 1024, 65535)
        if port is None:
            yield f"{name}: streamer_port is {hub['streamer_port']!r}: a number from 1024 to 65535 is right, as in 5555"
        http = HTTP.fullmatch(str(hub["streamer_http"]))
        http_port = _integer(http["port"], 1024, 65535) if http else None
        if http_port is None:
            yield (
                f"{name}: streamer_http is {hub['streamer_http']!r}: ADDRESS:PORT with a port from 1024 to 65535 is "
                "right, as in 127.0.0.1:8080"
            )
        elif http_port == port:
            yield f"{name}: streamer_port and streamer_http both take port {port}: give each its own"
        if not _is_bool(hub["streamer_http_open"]):
            yield f"{name}: streamer_http_open is {hub['streamer_http_open']!r}: true or false is right"
        if hub.encrypts and not hub.managed and not PUBLIC_KEY.fullmatch(str(hub["hub_key"])):
            yield (
                f"{name}: hub_key is {str(hub['hub_key'])[:13]!r}…: on this hub, which Ansible does not manage, run "
                "'streamer keys make hub.key' and set hub_key to what it prints, or set streamer_curve: false"
            )
        if not isinstance(hub["hub_options"], dict):
            yield f"{name}: hub_options is {hub['hub_options']!r}: keys of hub.yml are right, as in {{layout: 2x4}}"
        yield from self._tls_problems(hub)
        if hub["streamer_display"] not in ("none", "windows"):
            yield f"{name}: streamer_display is {hub['streamer_display']!r}: none or windows is right"
        elif hub["streamer_display"] == "windows" and hub.managed and not hub["hub_display_user"]:
            yield f"{name}: windows need a screen: set hub_display_user to the user who is logged in at it"
        others = [camera for camera in self.cameras if camera != name]
        if not hub.address:
            yield f"{name}: Ansible reaches this hub locally, cameras cannot: set its ansible_host or streamer_address"
        elif _is_loopback(hub.address) and others:
            yield (
                f"{name}: {hub.address} leads every camera to itself: set streamer_address to the address at which "
                "cameras reach this hub"
            )

    def _tls_problems(self, hub: Host) -> Iterator[str]:
        files = {variable: hub[variable] for variable in ("hub_tls_certificate", "hub_tls_key")}
        given = [variable for variable, path in files.items() if path]
        if given and not hub.managed:
            yield (
                f"{hub.name}: {given[0]} is for a hub that Ansible manages: leave it empty, and give this hub its own "
                "hub.yml with tls_certificate and tls_key"
            )
        elif len(given) == 1:
            missing = "hub_tls_key" if given[0] == "hub_tls_certificate" else "hub_tls_certificate"
            yield f"{hub.name}: {given[0]} is set and {missing} is not: set both, or neither"
        else:
            for variable in given:
                path = str(files[variable])
                if not path.startswith(("/", "~/")):
                    yield f"{hub.name}: {variable} is {path!r}: a path on this machine, from / or ~/ on, is right"
                elif not Path(path).expanduser().is_file():
                    yield f"{hub.name}: {variable} is {path!r}: there is no such file on this machine"

    def _camera_problems(self, camera: Host) -> Iterator[str]:
        name = camera.name
        for hub in camera.preferred_hubs:
            if hub not in self.hubs:
                near = difflib.get_close_matches(str(hub), self.hubs, 1)
                hint = f"did you mean {near[0]}?" if near else f"the hubs are: {', '.join(self.hubs) or 'none'}"
                yield f"{name}: streamer_hub is {hub!r}, which is not in the group 'hubs': {hint}"
        hubs = [self.hubs[hub] for hub in camera.preferred_hubs if hub in self.hubs]
        if len({hub.encrypts for hub in hubs}) > 1:
            yield f"{name}: its hubs differ in streamer_curve: a camera sends either encrypted or not"
        source = camera["streamer_camera"]
        if not isinstance(source, str) or not CAMERA.fullmatch(source):
            yield (
                f"{name}: streamer_camera is {source!r}: picamera2, usb:N, usb:/dev/PATH, file:/PATH or pattern is "
                "right"
            )
        elif source == "picamera2" and not _is_true(camera["streamer_pi_archive"]):
            yield (
                f"{name}: picamera2 is only in the Raspberry Pi archive: set streamer_pi_archive: true or another "
                "streamer_camera"
            )
        elif source.startswith("file:") and f"{source[5:]}/".startswith(HIDDEN):
            yield f"{name}: the service cannot see {source[5:]}: put the file elsewhere, below /srv for example"
        size = SIZE.fullmatch(str(camera["streamer_size"]))
        sides = [int(side) for side in size.groups()] if size else []
        if not sides or any(side % 2 or not 16 <= side <= 8192 for side in sides):
            yield (
                f"{name}: streamer_size is {camera['streamer_size']!r}: WIDTHxHEIGHT in even numbers from 16 to 8192 "
                "is right, as in 640x480"
            )
        if not _is_rate(camera["streamer_fps"]):
            yield f"{name}: streamer_fps is {camera['streamer_fps']!r}: a number from 0.1 to 240 is right, as in 30"
        if _integer(camera["streamer_quality"], 1, 100) is None:
            yield f"{name}: streamer_quality is {camera['streamer_quality']!r}: a whole number from 1 to 100 is right"
        yield from self._option_problems(camera)

    def _option_problems(self, camera: Host) -> Iterator[str]:
        name, options, source = camera.name, camera["sender_options"], camera["streamer_camera"]
        if not isinstance(options, dict):
            yield f"{name}: sender_options is {options!r}: keys of sender.yml are right, as in {{rotate: 180}}"
            return
        for key in options:
            if key in SENDER_VARIABLES:
                yield f"{name}: sender_options has {key}: the inventory says that, by {SENDER_VARIABLES[key]}"
            elif key not in self.sender_keys:
                near = difflib.get_close_matches(str(key), self.sender_keys, 1, 0)
                yield f"{name}: sender_options has {key}, which no sender takes: did you mean {near[0]}?"
            elif key in OF_THE_SENSOR and source != "picamera2":
                yield f"{name}: sender_options has {key}, but only picamera2 has it: {source} sends what comes"

    def plan(self) -> dict[str, Any]:
        """What each host gets, for a fleet without problems."""
        return {
            "problems": [],
            "hosts": {name: self._host_plan(host) for name, host in self.hosts.items()},
            "hubs": {
                name: {"url": f"unix:{SOCKET}", "cameras": self.cameras_of(hub), "asks": hub.asks}
                for name, hub in self.hubs.items()
                if hub.managed
            },
            "commands": {name: _hub_command(hub) for name, hub in self.hubs.items() if not hub.managed},
            # For hubs with encryption: who may send, and the public keys that the inventory has.
            "allowed": {name: self.senders_of(hub) for name, hub in self.hubs.items() if hub.encrypts},
            "hub_keys": {name: str(hub["hub_key"]) for name, hub in self.hubs.items() if not hub.managed},
            "asks": any(hub.asks for hub in self.hubs.values()),
            # The host that keeps the lock of all runs.
            "lock_at": next(host.name for host in self.hosts.values() if host.managed),
            "pages": [_page_told(hub) for hub in self.hubs.values()],
        }

    def _host_plan(self, host: Host) -> dict[str, Any]:
        runs_hub = host.name in self.hubs and host.managed
        is_camera = host.name in self.cameras
        work = ["everywhere"]
        if is_camera:
            work.append(str(host["streamer_camera"]).split(":")[0])
        if runs_hub:
            work += ["hub"] if host["streamer_display"] == "none" else ["hub", "windows"]
        needs = {module: package for part in work for module, package in NEEDS[part].items()}
        if _is_true(host["streamer_pi_archive"]) and CODES_JPEG.intersection(work):
            needs |= FASTER
        plan: dict[str, Any] = {
            "packages": list(needs.values()),
            "imports": list(needs),
            "firewall": False,
            "ports": [],
            "units": ["streamer-hub"] * runs_hub + ["streamer-sender"] * is_camera,
            "key_users": {},
        }
        if is_camera:
            plan["hub"] = self.hubs_of(host)[0].name
            plan["sender"] = {
                "name": host.name,
                "hubs": [hub.endpoint for hub in self.hubs_of(host)],
                "camera": host["streamer_camera"],
                "size": host["streamer_size"],
                "fps": float(host["streamer_fps"]),
                "quality": int(host["streamer_quality"]),
            }
            if self.hubs_of(host)[0].encrypts:
                plan["key_users"]["sender"] = "streamer"
                plan["sender"]["curve_key_file"] = "/etc/streamer/sender.key"
                # Which the plays find out.
                plan["sender"]["curve_hub_keys"] = [hub.name for hub in self.hubs_of(host)]
        if runs_hub:
            if host.encrypts:
                windows = host["streamer_display"] == "windows"
                plan["key_users"]["hub"] = host["hub_display_user"] if windows else "streamer"
            plan["hub_config"] = {
                **_hub_flags(host),
                **_hub_keys(host),
                **_hub_access(host),
                "cameras": self.cameras_of(host),
            }
        if plan["units"] and _is_true(host["node_firewall"]):
            plan["packages"].append("nftables")
            plan["firewall"] = True
            hub_ports = _open_ports({**plan["hub_config"], **host["hub_options"]}) if runs_hub else set()
            plan["ports"] = sorted(hub_ports.union(map(int, host["node_firewall_ports"])))
        return plan


def _hub_flags(hub: Host) -> dict[str, str]:
    return {
        "bind": f"tcp://*:{int(hub['streamer_port'])}",
        "http": str(hub["streamer_http"]),
        "display": str(hub["streamer_display"]),
    }


def _hub_keys(hub: Host) -> dict[str, str]:
    if not hub.encrypts:
        return {}
    return {"curve_key_file": "/etc/streamer/hub.key", "curve_allowed_file": "/etc/streamer/allowed_keys"}


def _hub_access(hub: Host) -> dict[str, Any]:
    """What hub.yml says about who may look, on a hub that Ansible manages: the role brings these files."""
    access: dict[str, Any] = {"http_socket": SOCKET}
    if hub.asks:
        access["http_password_file"] = "/etc/streamer/wall_password"  # noqa: S105 - a path
    elif not hub.on_loopback:
        access["http_open"] = True
    if hub["hub_tls_certificate"]:
        access |= {"tls_certificate": "/etc/streamer/wall.crt", "tls_key": "/etc/streamer/wall.key"}
    return access


def _open_ports(hub_config: Mapping[str, Any]) -> set[int]:
    """The ports at which a hub takes what comes from other hosts."""
    doors = [str(hub_config.get(key) or "").rpartition(":") for key in ("bind", "plain_bind", "http")]
    return {
        int(port)
        for address, _, port in doors
        if port.isdigit() and not _is_loopback(address.removeprefix("tcp://").strip("[]"))
    }


def _hub_command(hub: Host) -> str:
    """What to run on a hub that Ansible does not manage."""
    flags = [f'--{key} "{value}"' for key, value in _hub_flags(hub).items()]
    if hub.encrypts:
        flags += ['--key "hub.key"', '--allowed "allowed_keys"']
    if hub.asks:
        flags.append('--password-file "wall_password"')
    elif not hub.on_loopback:
        flags.append("--open")
    return " ".join(["streamer hub", *flags])


def _page_told(hub: Host) -> str:
    """Say where a hub's page is and who may look, in words that {password} completes."""
    if hub.on_loopback:
        port = str(hub["streamer_http"]).rsplit(":", 1)[1]
        return f"{hub.name}: {hub.page} on itself; from here: ssh -L {port}:{hub['streamer_http']} {hub.address}"
    if not hub.asks:
        return f"{hub.name}: {hub.page} shows every camera to whoever reaches it"
    copy = "" if hub.managed else ", of which its command needs a copy"
    return f"{hub.name}: {hub.page} asks for the password in {{password}}{copy}"


def _firewall_problems(host: Host) -> Iterator[str]:
    if not _is_bool(host["node_firewall"]):
        yield f"{host.name}: node_firewall is {host['node_firewall']!r}: true or false is right"
    ports = host["node_firewall_ports"]
    if not isinstance(ports, list) or any(_integer(port, 1, 65535) is None for port in ports):
        yield f"{host.name}: node_firewall_ports is {ports!r}: a list of numbers from 1 to 65535 is right, as in [9100]"


def _is_bool(value: Any) -> bool:
    return str(value).lower() in ("true", "false", "yes", "no", "1", "0")


def _is_true(value: Any) -> bool:
    # An INI inventory and -e give text.
    return str(value).lower() in ("true", "yes", "1")


def _integer(value: Any, low: int, high: int) -> int | None:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
        return None
    return int(value) if low <= int(value) <= high else None


def _is_rate(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and 0.1 <= float(value) <= 240
    except (TypeError, ValueError):
        return False


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def fleet_plan(groups: Groups, hostvars: Variables, defaults: Variables) -> dict[str, Any]:
    """Say what is wrong with an inventory or, if nothing is, what each of its hosts gets.

    Args:
        groups: Ansible's `groups`.
        hostvars: Ansible's `hostvars`.
        defaults: the roles' defaults, for what the inventory does not set.
    """
    fleet = Fleet(groups, hostvars, defaults)
    problems = list(fleet.problems())
    return {"problems": problems} if problems else fleet.plan()


def sender_keys(found: list[tuple[str, Mapping[str, str]]]) -> dict[str, str]:
    """Return each camera's public key, by its name.

    Args:
        found: hosts, each with what the survey has found on it.
    """
    return {name: host["sender.key"].split()[0] for name, host in found if host.get("sender.key")}


def hub_keys(results: list[Mapping[str, Any]]) -> dict[str, str]:
    """Return each hub's public key, by its name; empty for one that has none yet."""
    return {
        result["item"]: next((line for line in result["stdout"].splitlines() if PUBLIC_KEY.fullmatch(line)), "")
        for result in results
    }


def with_keys(sender: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return a sender's configuration with the public keys of its hubs instead of their names."""
    hubs = sender.get("curve_hub_keys")
    return {**sender, "curve_hub_keys": [keys[hub] for hub in hubs]} if hubs else dict(sender)


def allowed_keys(found: str, cameras: list[str] | None = None, fresh: Mapping[str, str] | None = None) -> str:
    """Return the text of a hub's list of who may send.

    Args:
        found: the list that the hub has.
        cameras: those that may send; None for all that the hub has.
        fresh: the keys that this run has read, by camera; what a hub knows of the others stays.
    """
    known = {words[0]: words[1] for line in found.splitlines() if len(words := line.split()) == 2 and words[0] != "#"}
    known |= fresh or {}
    lines = [f"{name} {known[name]}" for name in (known if cameras is None else cameras) if name in known]
    return "\n".join(
        ["# Written by Ansible from the inventory: who may send. Deploy to change it.", *sorted(lines), ""]
    )


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {
            "fleet_plan": fleet_plan,
            "sender_keys": sender_keys,
            "hub_keys": hub_keys,
            "with_keys": with_keys,
            "allowed_keys": allowed_keys,
        }
