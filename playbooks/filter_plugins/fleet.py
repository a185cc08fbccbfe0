"""What an inventory means: whether it is a fleet at all, and what follows from it for each host.

Everything here is a function of the inventory, of which keys a sender has, and of whether the files that the inventory
names are there. The plays ask it before they contact a host, so a mistake in the inventory is one line about that line,
and no host has been touched.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ansible.module_utils.parsing.convert_bool import boolean

# The package of this checkout, which is what is deployed, whichever is installed: it knows what its files may say.
sys.path.insert(0, str(Path(__file__).parents[2]))
from streamer import config
from streamer.errors import ConfigError, half_set

sys.path.pop(0)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Variables = Mapping[str, Any]
    Groups = Mapping[str, list[str]]

HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# A name that a resolver may know. One whose last part is a number is a mistaken IPv4 address.
NETWORK_NAME = re.compile(r"(?:[A-Za-z0-9_-]+\.)*(?!\d+\.?$)[A-Za-z0-9_-]+\.?")
JOURNAL_SIZE = re.compile(r"[1-9]\d{0,8}[KMGT]?")
# Whole numbers that only the roles know, from and to. At 0.1 frames/s a sender has a picture in ten seconds.
NUMBERS = {
    "streamer_port": (1024, 65535),
    "streamer_releases_kept": (2, 100),
    "hub_watchdog_s": (5, 3600),
    "sender_watchdog_s": (15, 3600),
    "sender_start_timeout_s": (5, 3600),
}
# What roles take from the plays: nothing would come of it in an inventory.
WORKED_OUT = ("node_packages", "sender_config", "hub_config", "hub_password_file")
# How alike a name that begins as ours do must be to one of ours to be that one, misspelt. Below are those of others'
# roles, as node_exporter_version.
ALIKE = 0.76
# A fleet's groups, and how alike another group must be to one of them to be that one, misspelt. `camera` is, and
# `ip_cameras` is the operator's own.
GROUPS = ("hubs", "cameras", "retired")
GROUP_ALIKE = 0.85
# What deploy.yml takes by --tags, and what Ansible does; but not those by which plays would run and the lock would not.
TAGS = ("restart", "stop", "start", "status", "verify", "rollback")
ANSIBLES_TAGS = ("all", "always")


class Part(NamedTuple):
    """What the inventory says of the configuration of a sender or a hub.

    Attributes:
        name: of it, as in `sender.yml`.
        keys: what the package takes.
        values: keys whose value is a variable's own, each with that variable.
        said: further keys that may not stand in the options, each with what says them already.
        example: of options.
    """

    name: str
    keys: type[config.SenderConfig] | type[config.HubConfig]
    values: Mapping[str, str]
    said: Mapping[str, str]
    example: str


SENDER = Part(
    "sender",
    config.SenderConfig,
    {key: f"streamer_{key}" for key in ("camera", "size", "fps", "quality")},
    {
        "name": "inventory_hostname",
        "hubs": "streamer_hub",
        "publish": "streamer_hub",
        "curve_key_file": "streamer_curve",
        "curve_hub_keys": "streamer_curve",
    },
    "{rotate: 180}",
)
HUB = Part(
    "hub",
    config.HubConfig,
    {key: f"streamer_{key}" for key in ("http", "display")},
    {
        "bind": "streamer_port",
        "curve_key_file": "streamer_curve",
        "curve_allowed_file": "streamer_curve",
        "http_password_file": "streamer_http_open",
        "http_open": "streamer_http_open",
        "http_socket": "the role hub",
        "tls_certificate": "hub_tls_certificate",
        "tls_key": "hub_tls_key",
        "cameras": "the group 'cameras'",
    },
    "{gone_after_s: 60}",
)

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
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - read, not bound


@dataclass(frozen=True)
class Host:
    """One host of the inventory: its variables over the roles' defaults."""

    name: str
    variables: Variables
    defaults: Variables

    def __getitem__(self, variable: str) -> Any:
        return _plain(self.variables[variable] if variable in self.variables else self.defaults[variable])

    def get(self, variable: str) -> Any:
        """What the inventory says, None if nothing."""
        return _plain(self.variables.get(variable))

    @property
    def managed(self) -> bool:
        """Whether Ansible sets this hub up."""
        return _is_true(self["hub_managed"])

    @property
    def local(self) -> bool:
        """Whether Ansible reaches it without a network, so that its name says nothing."""
        return str(self.get("ansible_connection")).removeprefix("ansible.builtin.") == "local"

    @property
    def address(self) -> str:
        """Where cameras reach this host; empty if the inventory does not say."""
        given = self["streamer_address"] or self.get("ansible_host")
        return str(given or ("" if self.local else self.name))

    @property
    def login(self) -> str:
        """What `ssh` on the control machine has to be told to reach this host."""
        port, user = self.get("ansible_port"), self.get("ansible_user")
        return f"{f'-p {port} ' if port else ''}{f'{user}@' if user else ''}{self.get('ansible_host') or self.name}"

    @property
    def preferred_hubs(self) -> list[str]:
        """What `streamer_hub` says: one name, several, or none."""
        wanted = self["streamer_hub"] or []
        return [wanted] if isinstance(wanted, str) else wanted

    @property
    def endpoint(self) -> str:
        """Where cameras send, if this is their hub."""
        return f"tcp://{config.Address(self.address, int(self['streamer_port']))}"

    @property
    def http(self) -> config.Address:
        """Where the hub's page is served."""
        return config.check(config.HubConfig, "http", self["streamer_http"], "streamer_http")

    @property
    def page(self) -> str:
        """The hub's page, seen from where it can be seen."""
        http = self.http._replace(host=self.address) if self.http.host in EVERY_ADDRESS else self.http
        return http.url(tls=bool(self["hub_tls_certificate"]))

    @property
    def encrypts(self) -> bool:
        """Whether the hub takes encrypted frames only."""
        return _is_true(self["streamer_curve"])

    @property
    def asks(self) -> bool:
        """Whether the hub's page asks for the password."""
        return not self.http.is_loopback and not _is_true(self["streamer_http_open"])


class Fleet:
    """The cameras and hubs of an inventory."""

    def __init__(self, groups: Groups, hostvars: Variables, defaults: Variables) -> None:
        self.groups = groups
        names = dict.fromkeys(name for group in GROUPS for name in groups.get(group, []))
        self.hosts = {name: Host(name, hostvars[name], defaults) for name in names}
        self.hubs = {name: self.hosts[name] for name in groups.get("hubs", [])}
        self.cameras = {name: self.hosts[name] for name in groups.get("cameras", [])}
        self.retired = list(groups.get("retired", []))
        self.known = set(defaults).difference(WORKED_OUT)

    def hubs_of(self, camera: Host) -> list[Host]:
        """The hubs that a camera sends to, the preferred one first."""
        return [self.hubs[name] for name in camera.preferred_hubs or list(self.hubs)[:1]]

    def cameras_of(self, hub: Host) -> list[str]:
        """The cameras that prefer this hub."""
        return [name for name, camera in self.cameras.items() if self.hubs_of(camera)[0] is hub]

    def senders_of(self, hub: Host) -> list[str]:
        """The cameras that may send to this hub, whether or not they prefer it."""
        return [name for name, camera in self.cameras.items() if hub in self.hubs_of(camera)]

    def sets_up(self, host: Host) -> bool:
        """Whether Ansible sets anything up on this host."""
        return host.managed or host.name in self.cameras or host.name not in self.hubs

    def problems(self) -> Iterator[str]:
        """What is wrong, one line each: where, what, and what would be right."""
        if not self.hubs:
            yield "the inventory names no hub: put the hub's host into the group 'hubs'"
        if not self.cameras:
            yield "the inventory names no camera: put the cameras' hosts into the group 'cameras'"
        for group in self.groups:
            left = [name for name in self.groups[group] if name not in self.hosts]
            for near in difflib.get_close_matches(group.lower(), GROUPS, 1, GROUP_ALIKE) if left else []:
                yield f"{', '.join(left)}: in none of the fleet's groups, but in {group}: did you mean {near}?"
        for name in self.retired:
            if name in self.cameras or name in self.hubs:
                yield f"{name}: it is in the group 'retired' and still a camera or a hub: take it out of one of them"
        yield from self._name_problems()
        yield from self._address_problems()
        for host in self.hosts.values():
            yield from self._variable_problems(host)
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
                if self.sets_up(host):
                    yield "localhost: every machine calls itself so: give this host a name of its own"
            elif not HOSTNAME.fullmatch(name) and self.sets_up(host):
                yield f"{name}: no hostname, which is 1 to 63 of a-z, 0-9, inner '-'; the address goes in ansible_host"

    def _address_problems(self) -> Iterator[str]:
        seen: dict[tuple[str, str], str] = {}
        for name, host in self.hosts.items():
            for variable in ("ansible_host", "streamer_address"):
                if host.get(variable) and not _is_address(str(host.get(variable))):
                    yield (
                        f"{name}: {variable} is {host.get(variable)!r}: it must be an IP address or a host's name, "
                        "as in 192.168.1.10"
                    )
            address = "this machine" if host.local else str(host.get("ansible_host") or name)
            port = str(host.get("ansible_port") or 22)
            other = seen.setdefault((address.lower(), port), name)
            if other != name:
                yield f"{other} and {name}: two hosts with one address, {address}: give each its own ansible_host"

    def _variable_problems(self, host: Host) -> Iterator[str]:
        name = host.name
        for variable in map(str, host.variables):
            if variable in WORKED_OUT:
                yield f"{name}: {variable} is worked out by the deploy: take it out"
            elif variable.startswith(("streamer_", "node_", "sender_", "hub_")) and variable not in self.known:
                alike = 0 if variable.startswith("streamer_") else ALIKE
                for near in difflib.get_close_matches(variable, self.known, 1, alike):
                    yield f"{name}: no variable is called {variable}: did you mean {near}?"
        for variable in (variable for variable, default in host.defaults.items() if isinstance(default, bool)):
            if not _is_bool(host[variable]):
                yield f"{name}: {variable} is {host[variable]!r}: it must be true or false"
        for variable, (low, high) in NUMBERS.items():
            if _integer(host[variable], low, high) is None:
                yield (
                    f"{name}: {variable} is {host[variable]!r}: it must be a number from {low} to {high}, as in "
                    f"{host.defaults[variable]}"
                )
        ports = host["node_firewall_ports"]
        if not isinstance(ports, list) or any(_integer(port, 1, 65535) is None for port in ports):
            yield f"{name}: node_firewall_ports is {ports!r}: it must be a list of ports from 1 to 65535, as in [9100]"
        if not JOURNAL_SIZE.fullmatch(str(host["node_journal_max"])):
            yield f"{name}: node_journal_max is {host['node_journal_max']!r}: it must be a size, as in 200M"
        called = host.get("node_name")
        if called is not None and not HOSTNAME.fullmatch(str(called)):
            yield f"{name}: node_name is {called!r}: it must be 1 to 63 of a-z, 0-9, inner '-'"

    def _hub_problems(self, hub: Host) -> Iterator[str]:
        name = hub.name
        problems = list(_config_problems(hub, HUB))
        yield from problems or _port_problems(hub)
        if hub.encrypts and not hub.managed and not PUBLIC_KEY.fullmatch(str(hub["hub_key"])):
            yield (
                f"{name}: hub_key is {str(hub['hub_key'])[:13]!r}…: on this hub, which Ansible does not manage, run "
                "'streamer keys make hub.key' and set hub_key to what it prints, or set streamer_curve: false"
            )
        if hub["hub_options"] and not hub.managed:
            yield (
                f"{name}: hub_options is for a hub that Ansible manages: leave it empty, and give this hub its own "
                "hub.yml with these keys"
            )
        yield from _tls_problems(hub)
        if hub["streamer_display"] == "windows" and hub.managed and not hub["hub_display_user"]:
            yield f"{name}: windows need a screen: set hub_display_user to the user who is logged in at it"
        others = [camera for camera in self.cameras if camera != name]
        if not hub.address:
            yield f"{name}: Ansible reaches this hub locally, cameras cannot: set its ansible_host or streamer_address"
        elif hub.address == name and not _is_address(name):
            yield f"{name}: cameras cannot reach a hub by such a name: set its ansible_host or streamer_address"
        elif config.is_loopback(hub.address) and others:
            yield (
                f"{name}: {hub.address} leads every camera to itself: set streamer_address to the address at which "
                "cameras reach this hub"
            )

    def _camera_problems(self, camera: Host) -> Iterator[str]:
        name, wanted = camera.name, camera["streamer_hub"]
        named = wanted if isinstance(wanted, list) else [wanted] if wanted else []
        if not all(isinstance(hub, str) for hub in named):
            yield f"{name}: streamer_hub is {wanted!r}: it must be the name of a hub, or a list of names"
            named = []
        for hub in named:
            if hub not in self.hubs:
                yield f"{name}: streamer_hub is {hub!r}, which is not in the group 'hubs': {_hint(hub, self.hubs)}"
        if len({self.hubs[hub].encrypts for hub in named if hub in self.hubs}) > 1:
            yield f"{name}: its hubs differ in streamer_curve: a camera sends either encrypted or not"
        yield from _config_problems(camera, SENDER)
        kind, _, file = str(camera["streamer_camera"]).partition(":")
        if kind == "picamera2" and not _is_true(camera["streamer_pi_archive"]):
            yield (
                f"{name}: picamera2 is only in the Raspberry Pi archive: set streamer_pi_archive: true or another "
                "streamer_camera"
            )
        elif kind == "file" and not file.startswith("/"):
            yield f"{name}: streamer_camera is {camera['streamer_camera']!r}: it must be the file's absolute path"
        elif kind == "file" and f"{file}/".startswith(HIDDEN):
            yield f"{name}: the service cannot see {file}: put the file elsewhere, below /srv for example"

    def plan(self) -> dict[str, Any]:
        """What each host gets, for a fleet without problems."""
        return {
            "problems": [],
            "hosts": {name: self._host_plan(host) for name, host in self.hosts.items()},
            "hubs": {
                name: {
                    "url": f"unix:{SOCKET}",
                    "cameras": self.cameras_of(hub),
                    "senders": self.senders_of(hub),
                    "asks": hub.asks,
                }
                for name, hub in self.hubs.items()
                if hub.managed
            },
            "commands": {name: _hub_command(hub) for name, hub in self.hubs.items() if not hub.managed},
            # For hubs with encryption: who may send, and the public keys that the inventory has.
            "allowed": {name: self.senders_of(hub) for name, hub in self.hubs.items() if hub.encrypts},
            "hub_keys": {name: str(hub["hub_key"]) for name, hub in self.hubs.items() if not hub.managed},
            "asks": any(hub.asks for hub in self.hubs.values()),
            # The host that keeps the lock of all runs.
            "lock_at": next(host.name for host in self.hosts.values() if self.sets_up(host)),
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
    elif not hub.http.is_loopback:
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
        if port.isdigit() and not config.is_loopback(address.removeprefix("tcp://").strip("[]"))
    }


def _hub_command(hub: Host) -> str:
    """What to run on a hub that Ansible does not manage."""
    flags = [f'--{key} "{value}"' for key, value in _hub_flags(hub).items()]
    if hub.encrypts:
        flags += ['--key "hub.key"', '--allowed "allowed_keys"']
    if hub.asks:
        flags.append('--password-file "wall_password"')
    elif not hub.http.is_loopback:
        flags.append("--open")
    return " ".join(["streamer hub", *flags])


def _page_told(hub: Host) -> str:
    """Say where a hub's page is and who may look, in words that {password} completes."""
    if hub.http.is_loopback:
        if hub.local:
            return f"{hub.name}: {hub.page} on this machine"
        return f"{hub.name}: {hub.page} on itself; from here: ssh -L {hub.http.port}:{hub.http} {hub.login}"
    if not hub.asks:
        return f"{hub.name}: {hub.page} shows every camera to whoever reaches it"
    copy = "" if hub.managed else ", of which its command needs a copy"
    return f"{hub.name}: {hub.page} asks for the password in {{password}}{copy}"


def _config_problems(host: Host, part: Part) -> Iterator[str]:
    """What the package would say of a host's configuration, as far as variables and options decide it."""
    variable = f"{part.name}_options"
    options = host[variable]
    if not isinstance(options, dict):
        yield f"{host.name}: {variable} is {options!r}: it must have keys of {part.name}.yml, as in {part.example}"
        options = {}
    said = {**part.values, **part.said}
    free = [setting.name for setting in fields(part.keys) if setting.name not in said]
    given = [(key, host[by], by) for key, by in part.values.items()]
    for key, value in options.items():
        if key in said:
            yield f"{host.name}: {variable} has {key}: {said[key]} says that"
        elif key not in free:
            yield f"{host.name}: {variable} has {key}, which no {part.name} takes: {_hint(str(key), free)}"
        else:
            given.append((key, value, f"{variable}: {key}"))
    good = {}
    for key, value, place in given:
        try:
            good[key] = config.check(part.keys, key, value, f"{host.name}: {place}")
        except ConfigError as error:
            yield str(error)
    if len(good) == len(given):
        access = _hub_access(host) if part is HUB else {}
        if problem := config.contradiction(part.keys(**good, **access)):
            yield f"{host.name}: {variable}: {problem}"


def _port_problems(hub: Host) -> Iterator[str]:
    """What is wrong with the ports of a hub whose addresses are right."""
    ports = {"streamer_port": str(hub["streamer_port"]), "streamer_http": str(hub.http.port)}
    if plain := hub["hub_options"].get("plain_bind"):
        ports["hub_options: plain_bind"] = plain.rpartition(":")[2]
    taken: dict[str, str] = {}
    for variable, port in ports.items():
        other = taken.setdefault(port, variable)
        if other != variable:
            yield f"{hub.name}: {other} and {variable} both take port {port}: give each its own"
        if variable != "streamer_port" and port.isdigit() and int(port) < 1024:
            yield f"{hub.name}: {variable} has port {port}, which needs root: it must be from 1024 to 65535"


def _tls_problems(hub: Host) -> Iterator[str]:
    files = {variable: hub[variable] for variable in ("hub_tls_certificate", "hub_tls_key")}
    given = [variable for variable, path in files.items() if path]
    if given and not hub.managed:
        yield (
            f"{hub.name}: {given[0]} is for a hub that Ansible manages: leave it empty, and give this hub its own "
            "hub.yml with tls_certificate and tls_key"
        )
    elif problem := half_set(**files):
        yield f"{hub.name}: {problem}"
    else:
        for variable in given:
            path = str(files[variable])
            if not path.startswith(("/", "~/")):
                yield f"{hub.name}: {variable} is {path!r}: it must be a path on this machine, absolute or from ~/"
            elif problem := _unreadable(path):
                yield f"{hub.name}: {variable} is {path!r}: {problem}"


def _unreadable(path: str) -> str:
    """Say why this user cannot read a file of this machine."""
    try:
        with Path(path).expanduser().open("rb"):
            return ""
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file on this machine"
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        return f"who deploys must be able to read that file on this machine: {why}"


def _hint(word: str, choices: Iterable[str]) -> str:
    near = config.nearest(word, choices := list(choices))
    return f"did you mean {near}?" if near else f"there are: {', '.join(choices) or 'none'}"


def _plain(value: Any) -> Any:
    """Return a value as YAML gives it: Ansible's own types know more, and are none that the package knows."""
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


def _is_bool(value: Any) -> bool:
    try:
        boolean(value)
    except TypeError:
        return False
    return True


def _is_true(value: Any) -> bool:
    # An INI inventory and -e give text.
    return bool(boolean(value, strict=False))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return NETWORK_NAME.fullmatch(text) is not None
    return True


def _integer(value: Any, low: int, high: int) -> int | None:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)):
        return None
    return int(value) if low <= int(value) <= high else None


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


def tag_problems(tags: list[str], skipped: list[str]) -> list[str]:
    """Say which tags no play has: for one of these Ansible does nothing, and calls that a success.

    And which of those skipped run only when they are named, but for the lock, which would be skipped with them.
    """
    problems = [
        f"--skip-tags={tag} leaves out nothing: a deploy has no {tag} of its own, and switches what is new"
        for tag in skipped
        if tag in TAGS and tag != "verify"
    ]
    for tag in (tag for tag in tags + skipped if tag not in TAGS + ANSIBLES_TAGS):
        near = config.nearest(tag, TAGS)
        hint = f"did you mean {near}? There" if near else "there"
        problems.append(f"no tag is called {tag}: {hint} are: {', '.join(TAGS)}")
    return problems


def password_problem(path: str) -> str:
    """Say why a hub would not start with the password in this file."""
    try:
        config.read_password(Path(path))
    except ConfigError as error:
        return str(error)
    return ""


def move_problems(found: list[tuple[str, Mapping[str, str]]], plan: Mapping[str, Any], names: list[str]) -> list[str]:
    """Say which hubs would go to another port without cameras that send there.

    Args:
        found: the hubs of this run, each with what the survey has found on it.
        plan: of the fleet.
        names: the hosts of this run.
    """
    problems = []
    for name, host in found:
        had, port = host["hub_port"], plan["hosts"][name]["hub_config"]["bind"].rpartition(":")[2]
        left = [camera for camera in plan["hubs"][name]["senders"] if camera not in names]
        if left and had not in ("", port):
            problems.append(f"{name}: its port changes from {had} to {port}, and {', '.join(left)} would not find it")
    return problems


def sender_keys(found: list[tuple[str, Mapping[str, str]]]) -> dict[str, str]:
    """Return each camera's public key, by its name.

    Args:
        found: hosts, each with what the survey has found on it.
    """
    return {name: host["sender.key"].partition(" ")[0] for name, host in found if host.get("sender.key")}


def hub_keys(results: list[Mapping[str, Any]]) -> dict[str, str]:
    """Return each hub's public key, by its name; empty for one that has none yet."""
    return {
        result["item"]: next((line for line in result["stdout"].splitlines() if PUBLIC_KEY.fullmatch(line)), "")
        for result in results
    }


def sender_with_keys(sender: Mapping[str, Any], known: Mapping[str, str], knew: str) -> dict[str, Any]:
    """Return a sender's configuration with the public keys of its hubs instead of their names.

    A hub whose key nobody knows is left out.

    Args:
        sender: its configuration.
        known: the hubs' keys; in check mode one may be empty.
        knew: the hubs that its host was told of before, then the key of each, as the survey finds them.
    """
    words = knew.split()
    before = dict(
        zip(
            (word for word in words if word.startswith("tcp:")),
            (word for word in words if word.startswith("curve-")),
            strict=False,  # it may have sent without keys
        )
    )
    pairs = [
        (endpoint, known[hub] if hub in known else before[endpoint])
        for endpoint, hub in zip(sender["hubs"], sender["curve_hub_keys"], strict=True)
        if hub in known or endpoint in before
    ]
    return {**sender, "hubs": [at for at, _ in pairs], "curve_hub_keys": [key for _, key in pairs]}


def allowed_keys(found: str, cameras: list[str] | None = None, fresh: Mapping[str, str] | None = None) -> str:
    """Return the text of a hub's list of who may send.

    Args:
        found: the list that the hub has.
        cameras: those that may send; None for all that the hub has.
        fresh: the keys that this run has read, by camera; what a hub knows of the others stays.
    """
    lines = [f"{name} {key}" for name, key in _keys_of(found, cameras, fresh or {}).items()]
    return "\n".join(
        ["# Written by Ansible from the inventory: who may send. Deploy to change it.", *sorted(lines), ""]
    )


def _keys_of(found: str, cameras: list[str] | None, fresh: Mapping[str, str]) -> dict[str, str]:
    known = {words[0]: words[1] for line in found.splitlines() if len(words := line.split()) == 2 and words[0] != "#"}
    known |= fresh
    return {name: known[name] for name in (known if cameras is None else cameras) if name in known}


def key_problems(
    fresh: Mapping[str, str], results: list[Mapping[str, Any]], allowed: Mapping[str, list[str]]
) -> list[str]:
    """List the cameras whose keys would make a hub's list of allowed keys invalid: the hub rejects it as a whole.

    Args:
        fresh: the keys read by this run, by camera, as each host reports its own.
        results: the answers of the hubs that were asked, with their present lists.
        allowed: the cameras that may send, by hub.
    """
    found = {result["item"]: result["stdout"] for result in results}
    problems = set()
    for hub, cameras in allowed.items():
        names_of: dict[str, list[str]] = {}
        for name, key in sorted(_keys_of(found.get(hub, ""), cameras, fresh).items()):
            names_of.setdefault(key, []).append(name)
        for key, names in names_of.items():
            if not PUBLIC_KEY.fullmatch(key):
                problems.add(f"{' and '.join(names)}: what it shows as its public key is not one")
            elif len(names) > 1:
                problems.add(f"{' and '.join(names)} have one key, as after a card was copied")
    return sorted(problems)


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {
            "fleet_plan": fleet_plan,
            "tag_problems": tag_problems,
            "password_problem": password_problem,
            "move_problems": move_problems,
            "sender_keys": sender_keys,
            "hub_keys": hub_keys,
            "sender_with_keys": sender_with_keys,
            "allowed_keys": allowed_keys,
            "key_problems": key_problems,
        }
