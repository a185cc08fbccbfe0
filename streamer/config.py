"""Configuration: YAML files and flags to frozen dataclasses. The commented sender.yml and hub.yml are the manual."""

from __future__ import annotations

import contextlib
import difflib
import errno
import ipaddress
import math
import os
import re
import reprlib
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import yaml

from streamer import keys
from streamer.errors import ConfigError, TransportError, half_set
from streamer.wire import IN_FLIGHT_LIMIT, IN_FLIGHT_MAX, PIXELS_MAX, is_camera_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

PORT = 5555
PASSWORD_CHARACTERS = 8  # the fewest
_HOST = r"(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]|[A-Za-z0-9._-]+)"
_CAMERA = re.compile(r"picamera2|pattern|usb:(?:[0-9]{1,9}|/dev/.+)|file:.+")
_CONTROL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_CONTROL_ITEMS_MAX = 256
# Flags that are not named after their key.
_FLAGS = {
    "hubs": "hub",
    "http_password_file": "password_file",
    "http_open": "open",
    "curve_key_file": "key",
    "curve_hub_keys": "hub_key",
    "curve_allowed_file": "allowed",
}
# What to do about an address that cannot be listened on.
_INSTEAD = {
    errno.EADDRINUSE: "end what listens there, another hub perhaps, or give another",
    errno.EADDRNOTAVAIL: "give one that this machine has",
    errno.EACCES: "give one that this user may take: below 1024, ports are root's",
}
# The value of a libcamera control; lists become tuples.
Control: TypeAlias = "bool | int | float | str | tuple[Control, ...]"
Config = TypeVar("Config", bound="SenderConfig | HubConfig")


class Size(NamedTuple):
    """Size of a picture, in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Address(NamedTuple):
    """Where the hub's page listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    def url(self, *, tls: bool = False) -> str:
        """Return the address as a URL."""
        return f"{'https' if tls else 'http'}://{self}/"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host: a loopback address, or `localhost`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Layout(NamedTuple):
    """Arrangement of the tiles in a window."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"


class _Excerpt(reprlib.Repr):
    """Formats a refused value as in YAML, in at most a line, even if its aliases make it larger than memory."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 1
        self.maxstring = self.maxother = 80

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002 - reprlib's signature
        # Python refuses to format very large integers.
        return repr(x) if abs(x) < 10**40 else f"an integer of {x.bit_length()} bits"

    def repr_bool(self, x: bool, level: int) -> str:  # noqa: ARG002, FBT001
        return str(x).lower()

    def repr_NoneType(self, x: None, level: int) -> str:  # noqa: ARG002, N802
        return "empty"


_shown = _Excerpt().repr


def number(low: float, high: float) -> Callable[[Any], float]:
    """Make a check that accepts numbers from `low` to `high`."""

    def check(value: Any) -> float:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return float(value)

    return check


def integer(low: int, high: int) -> Callable[[Any], int]:
    """Make a check that accepts whole numbers from `low` to `high`."""

    def check(value: Any) -> int:
        if isinstance(value, str) and value.isdecimal() and len(value) <= len(str(high)):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a check that accepts None as well."""
    return lambda value: None if value is None else check(value)


def _several(check: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def check_all(value: Any) -> tuple[Any, ...]:
        if value is None:
            return ()
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_checked(check, each) for each in values)

    return check_all


def _name(value: Any) -> str:
    if not is_camera_name(value):
        unquoted = value is not None and not isinstance(value, str | list | dict)
        quotes = ", in quotes where YAML takes them for something else" if unquoted else ""
        raise ValueError(f"1 to 64 letters, digits, dots, underscores or hyphens{quotes}")
    return str(value)


def _size(value: Any) -> Size:
    match = re.fullmatch(r"([0-9]{2,5})x([0-9]{2,5})", str(value)) if isinstance(value, str | Size) else None
    sides = [int(side) for side in match.groups()] if match else []
    if not sides or any(side % 2 or not 16 <= side <= 8192 for side in sides) or math.prod(sides) > PIXELS_MAX:
        raise ValueError(
            f"WIDTHxHEIGHT, even numbers from 16 to 8192, at most {PIXELS_MAX // 1_000_000} megapixels, as in 640x480"
        )
    return Size(*sides)


def _layout(value: Any) -> Layout:
    match = re.fullmatch(r"([0-9]{1,2})x([0-9]{1,2})", str(value)) if isinstance(value, str | Layout) else None
    sides = [int(side) for side in match.groups()] if match else []
    if not sides or any(not 1 <= side <= 16 for side in sides):
        raise ValueError("ROWSxCOLUMNS, numbers from 1 to 16, as in 2x4")
    return Layout(*sides)


def _camera(value: Any) -> str:
    if not isinstance(value, str) or not _CAMERA.fullmatch(value) or not _is_file_name(value):
        raise ValueError("picamera2, usb:N, usb:/dev/PATH, file:PATH or pattern")
    return value


def _endpoint(example: str) -> Callable[[Any], str]:
    pattern = re.compile(rf"tcp://{_HOST}:([0-9]{{1,5}})|ipc://.+")

    def check(value: Any) -> str:
        match = pattern.fullmatch(value) if isinstance(value, str) and _is_file_name(value) else None
        if match is None or (match[1] and not 1 <= int(match[1]) <= 65535):
            raise ValueError(f"tcp://HOST:PORT with a port from 1 to 65535, as in {example}")
        return str(value)

    return check


def _listener(value: Any) -> str:
    # Port 0 is allowed: the system picks one.
    pattern = rf"tcp://(?:\*|{_HOST}):([0-9]{{1,5}})|ipc://.+"
    match = re.fullmatch(pattern, value) if isinstance(value, str) and _is_file_name(value) else None
    if match is None or (match[1] and int(match[1]) > 65535):
        raise ValueError(f"tcp://ADDRESS:PORT with a port up to 65535, as in tcp://*:{PORT}")
    return str(value)


def _http(value: Any) -> Address:
    match = re.fullmatch(r"(\[.+\]|[^:\s]+):([0-9]{1,5})", value) if isinstance(value, str) else None
    try:
        if match is None or int(match[2]) > 65535:
            raise ValueError
        host = match[1].strip("[]")
        if host != "localhost":
            ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("ADDRESS:PORT of this machine, as in 127.0.0.1:8080 or 0.0.0.0:8080") from None
    return Address(host, int(match[2]))


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 - what is refused here is a value
    return value


def _is_file_name(text: str) -> bool:
    """Whether a text can be a file's name; YAML can write characters that cannot."""
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def file_path(value: Any) -> Path:
    """Check the path of a file."""
    if not isinstance(value, str | Path) or not _is_file_name(str(value)):
        raise ValueError("the path of a file")
    return Path(value)


def _public_key(value: Any) -> str:
    try:
        return keys.public_key(value)
    except ConfigError as error:
        raise _RejectedError(str(error)) from None  # without the value, which may be a secret


def _rotation(value: Any) -> int:
    if type(value) not in (int, str) or value not in (0, 180, "0", "180"):
        raise ValueError("0 or 180: the camera cannot rotate by a quarter turn")
    return int(value)


def _controls(value: Any) -> tuple[tuple[str, Control], ...]:
    if value is None:
        return ()
    if not isinstance(value, dict) or not all(isinstance(name, str) and _CONTROL.fullmatch(name) for name in value):
        raise ValueError("names of libcamera's controls, each with its value, as in AfMode: Continuous")
    return tuple((name, _control(name, setting)) for name, setting in value.items())


def _control(name: str, value: Any, depth: int = 0) -> Control:
    # Only the camera knows its controls; this checks the kind of value. A list of rectangles is the deepest nesting.
    if isinstance(value, list) and depth < 2 and 0 < len(value) <= _CONTROL_ITEMS_MAX:
        return tuple(_control(name, each, depth + 1) for each in value)
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"of {name} true, false, a number, a word, or a list of those")
    return value


def _one_of(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in choices:
            raise ValueError(" or ".join(choices))
        return str(value)

    return check


def _setting(check: Callable[[Any], Any], default: Any) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True)
class SenderConfig:
    """Configuration of `streamer send`; `sender.yml` explains each field."""

    name: str | None = _setting(optional(_name), None)
    hubs: tuple[str, ...] = _setting(_several(_endpoint(f"tcp://hub:{PORT}")), ())
    curve_key_file: Path | None = _setting(optional(file_path), None)
    curve_hub_keys: tuple[str, ...] = _setting(_several(_public_key), ())
    publish: str | None = _setting(optional(_listener), None)
    camera: str = _setting(_camera, "picamera2")
    size: Size = _setting(_size, Size(640, 480))
    fps: float = _setting(number(0.1, 240), 30.0)
    quality: int = _setting(integer(1, 100), 85)
    hflip: bool = _setting(_boolean, default=False)
    vflip: bool = _setting(_boolean, default=False)
    rotate: int = _setting(_rotation, 0)
    controls: tuple[tuple[str, Control], ...] = _setting(_controls, ())
    encoder: str = _setting(_one_of("auto", "hardware", "software"), "auto")
    in_flight_limit: int = _setting(integer(1, IN_FLIGHT_MAX), IN_FLIGHT_LIMIT)
    reply_timeout_s: float = _setting(number(0.1, 60), 1.0)


@dataclass(frozen=True)
class HubConfig:
    """Configuration of `streamer hub`; `hub.yml` explains each field."""

    bind: str = _setting(_listener, f"tcp://*:{PORT}")
    curve_key_file: Path | None = _setting(optional(file_path), None)
    curve_allowed_file: Path | None = _setting(optional(file_path), None)
    plain_bind: str | None = _setting(optional(_listener), None)
    subscribe: tuple[str, ...] = _setting(_several(_endpoint(f"tcp://pi1:{PORT}")), ())
    http: Address = _setting(_http, Address("127.0.0.1", 8080))
    http_password_file: Path | None = _setting(optional(file_path), None)
    http_open: bool = _setting(_boolean, default=False)
    http_socket: Path | None = _setting(optional(file_path), None)
    tls_certificate: Path | None = _setting(optional(file_path), None)
    tls_key: Path | None = _setting(optional(file_path), None)
    display: str = _setting(_one_of("none", "windows"), "none")
    cameras: tuple[str, ...] = _setting(_several(_name), ())
    stale_after_s: float = _setting(number(0.5, 3600), 3.0)
    gone_after_s: float = _setting(number(1, 86400), 30.0)
    layout: Layout | None = _setting(optional(_layout), None)
    full_screen: bool = _setting(_boolean, default=False)
    window_rows: int = _setting(integer(1, 16), 2)
    window_width: int = _setting(integer(64, 8192), 480)


class Given(NamedTuple):
    """Where a configuration comes from; words problems by the names that the user gave: flags, or keys in the file.

    Attributes:
        path: of the YAML file; None for the defaults alone.
        flags: values from the command line by key, which override the file's; None for a flag that was not given.
    """

    path: Path | None
    flags: Mapping[str, Any]

    def place(self, key: str) -> str:
        """Return where a setting was given, or could be: a flag, or file and key."""
        name = self._name(key)
        return f"{self.path}: {name}" if self.path and name == key else name

    @contextlib.contextmanager
    def wording(self, config: SenderConfig | HubConfig) -> Iterator[None]:
        """Context in which errors about a configuration are reworded for the user.

        Raises:
            ConfigError: in place of any ConfigError or TransportError.
        """
        try:
            yield
        except (ConfigError, TransportError) as error:
            raise ConfigError(self.worded(str(error), config)) from error

    def worded(self, problem: str, config: SenderConfig | HubConfig) -> str:
        """Return a problem, which names keys or the file or address in one, with the names that the user gave."""
        for key, value in reversed(vars(config).items()):  # plain_bind before bind: if they are equal, it failed
            if isinstance(value, Path) and problem.startswith(f"{value}:"):
                return f"{self.place(key)} {problem}"
            if re.match(rf"cannot listen on (http )?{re.escape(str(value))}: ", problem):
                instead = (text for number, text in _INSTEAD.items() if problem.endswith(os.strerror(number)))
                return f"{self.place(key)}: {problem}; {next(instead, 'give another')}"
        key = r"(?<![\w/.-])(?!(?:camera|name)\b)\w+(?![\w/.-])"  # those two are also plain English words
        text = re.sub(key, lambda word: self._name(word[0]), problem)
        return f"{self.path}: {text}" if self.path else text

    def _name(self, key: str) -> str:
        is_flag = self.flags.get(key) is not None or (not self.path and key in self.flags)
        return _flag(key) if is_flag else key


def _flag(key: str) -> str:
    return f"--{_FLAGS.get(key, key).replace('_', '-')}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that an unknown one probably means, or an empty string."""
    longer = [each for each in known if each.startswith(word)]
    return next(iter(longer or difflib.get_close_matches(word, known, 1)), "")


def load(cls: type[Config], path: Path | None, flags: Mapping[str, Any]) -> Config:
    """Read a configuration.

    Args:
        cls: `SenderConfig` or `HubConfig`.
        path: the YAML file; None for the defaults alone.
        flags: values from the command line, which override the file's; None for a flag that was not given.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; the text names file, line and key.
    """
    settings = [setting.name for setting in fields(cls)]
    values: dict[str, Any] = {}
    for key, (value, place) in (_read(path) if path else {}).items():
        if key not in settings:
            near = nearest(str(key), settings)
            hint = f"did you mean '{near}'?" if near else f"the keys are: {', '.join(settings)}"
            raise ConfigError(f"{place}: unknown key {_shown(key)}; {hint}")
        values[key] = check(cls, key, value, f"{place}: {key}")
    for key, value in flags.items():
        if value is not None:
            values[key] = check(cls, key, value, _flag(key))
    config = cls(**values)
    if problem := contradiction(config):
        raise ConfigError(Given(path, flags).worded(problem, config))
    return config


def check(cls: type[Config], key: str, value: Any, place: str) -> Any:
    """Check and convert the value of a key.

    Args:
        cls: `SenderConfig` or `HubConfig`.
        key: one of its fields.
        value: from YAML or the command line.
        place: where it was given.

    Raises:
        ConfigError: it is wrong; the text begins with the place.
    """
    return checked(cls.__dataclass_fields__[key].metadata["check"], value, place)


def contradiction(config: SenderConfig | HubConfig) -> str:
    """Return which values, each valid by itself, contradict each other; empty if none do."""
    return _hub_contradiction(config) if isinstance(config, HubConfig) else _sender_contradiction(config)


def _sender_contradiction(config: SenderConfig) -> str:
    if config.hubs and config.publish:
        return "hubs and publish are both set: either it sends, or it publishes for whoever subscribes"
    if config.camera == "picamera2":
        return ""
    # Turning a USB camera's picture would mean to decode and encode its JPEG.
    for key in ("hflip", "vflip", "rotate", "controls", "encoder"):
        if getattr(config, key) != getattr(SenderConfig, key):
            return (
                f"{key} is set, but only the camera picamera2 has it: pictures of {config.camera} are sent as they come"
            )
    return ""


def _hub_contradiction(config: HubConfig) -> str:
    if config.gone_after_s <= config.stale_after_s:
        return (
            f"gone_after_s is {config.gone_after_s:g}: it must be greater than stale_after_s, which is "
            f"{config.stale_after_s:g}"
        )
    if config.http_open and config.http_password_file:
        return "http_open and http_password_file are both set: either everybody may look or who knows the password"
    if not (config.http.is_loopback or config.http_open or config.http_password_file):
        return (
            f"http is {config.http}, which others can reach: set http_password_file to a file with a password, or "
            "http_open to let everybody look"
        )
    if problem := half_set(tls_certificate=config.tls_certificate, tls_key=config.tls_key):
        return problem
    if config.layout and config.display != "windows":
        return f"layout is {config.layout} and display is {config.display}: set display to windows, or no layout"
    if config.full_screen and not config.layout:
        return "full_screen is true and there is no layout: set it to ROWSxCOLUMNS, as in 2x4"
    return ""


def read_password(path: Path) -> str:
    """Read the password in the first line of a file.

    Raises:
        ConfigError: the file cannot be read, or the password is too short.
    """
    try:
        password = path.read_text(encoding="utf-8-sig").partition("\n")[0]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: its first line must be the password") from error
    if len(password) < PASSWORD_CHARACTERS:
        has = f"has {len(password)} characters" if password else "is empty"
        raise ConfigError(
            f"{path}: the first line {has}: it must be a password of {PASSWORD_CHARACTERS} characters or more"
        )
    return password


def manual(cls: type[Config]) -> str:
    """Return the commented default file of a configuration."""
    return resources.files(__package__).joinpath("sender.yml" if cls is SenderConfig else "hub.yml").read_text("utf-8")


class _RejectedError(Exception):
    """A value, or one in a list, is invalid."""


def _checked(check: Callable[[Any], Any], value: Any) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise _RejectedError(f"is {_shown(value)}: it must be {error}") from error


def checked(check: Callable[[Any], Any], value: Any, place: str) -> Any:
    """Check a value.

    Raises:
        ConfigError: it is invalid; the text begins with `place`.
    """
    try:
        return _checked(check, value)
    except _RejectedError as error:
        raise ConfigError(f"{place} {error}") from error


def _read(path: Path) -> dict[Any, tuple[Any, str]]:
    """Read a YAML mapping: key to (value, place in the file)."""
    place = f"{path}"
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None or node.tag == "tag:yaml.org,2002:null":  # nothing, or nothing after `---`
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: must be a list of 'key: value' lines")
        settings: dict[Any, tuple[Any, str]] = {}
        for key_node, value_node in node.value:
            place = f"{path}:{key_node.start_mark.line + 1}"
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise ConfigError(f"{place}: the key {_shown(key)} must be a word")
            if key in settings:
                raise ConfigError(f"{place}: the key {_shown(key)} appears a second time")
            settings[key] = (loader.construct_object(value_node, deep=True), place)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # Not only YAMLErrors: a date like 2026-99-99 makes PyYAML raise others.
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else place
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{place}: is not YAML: {problem[:200]}") from error
    return settings
