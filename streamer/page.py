"""A client for a hub's page: asks it for its table of cameras."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
import urllib.parse
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from streamer.config import read_password
from streamer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TIMEOUT_S = 5.0
_WITHIN_S = 20.0  # for a whole response, however often a little of it arrives
_TABLE_MAX_BYTES = 4 * 1024 * 1024  # 1,024 cameras take half a megabyte
# The keys of a row that hubs of every release send.
_ROW = {"name", "state", "fps", "age_s", "frames", "dropped", "lost", "width", "height", "bytes_per_s", "address"}
_NEVER_UNKNOWN = {"name", "state", "fps", "frames", "dropped", "lost", "bytes_per_s"}
_WORDS = {"name", "state", "address", "release", "rival"}
_NUMBERS = {*(_ROW - _WORDS), "wanted_fps", "latency_ms", "latency_error_ms", "reconnects", "still_s"}
_NUMBER_MAX = 1e30  # of larger ones not all can be written as others are


class Page:
    """A hub's page. It is asked directly, without a proxy.

    Args:
        hub: its address: http://…, https://… or unix:PATH.
        password_file: a file with the page's password in its first line.
        ca_file: PEM certificates to trust besides the system's.

    Raises:
        ConfigError: the address or a file is invalid.
    """

    def __init__(self, hub: str, password_file: Path | None, ca_file: Path | None) -> None:
        scheme, _, rest = hub.partition(":")
        try:
            parts = urllib.parse.urlsplit(hub)
            self._host, self._port = parts.hostname or "", parts.port
            self._host.encode("idna")
        except ValueError:
            self._host, self._port = "", None
        is_url = scheme in ("http", "https") and self._host and hub.isprintable() and " " not in hub
        if not (rest if scheme == "unix" else is_url):
            raise ConfigError(f"--hub is {hub!r}: it must be the hub's page, as in http://hub:8080, or unix:PATH")
        if ca_file and scheme != "https":
            raise ConfigError(f"--ca-file is for https://, and --hub is {hub}")
        self._socket = rest if scheme == "unix" else None
        path = "" if self._socket else urllib.parse.quote(parts.path.rstrip("/"), safe="/%")
        self._path = f"{path}/api/cameras"
        place = f"{scheme}://{parts.netloc.rpartition('@')[2]}"  # without a password, which some write there
        self._name = hub if self._socket else f"{place}{self._path}"
        self._hint = f": is it {place}?" if path else ""
        self._password_file = password_file
        self._headers = {}
        if password_file:
            try:
                credentials = f":{read_password(password_file)}".encode()
            except ConfigError as error:
                raise ConfigError(f"--password-file {error}") from error
            self._headers["Authorization"] = f"Basic {base64.b64encode(credentials).decode()}"
        self._tls = _trust(ca_file) if scheme == "https" else None

    def cameras(self) -> tuple[list[dict[str, Any]] | None, str]:
        """Return (the rows of the hub's table, ""), or (None, why there are none).

        Raises:
            ConfigError: the hub wants another password, or its certificate is not trusted.
        """
        try:
            with contextlib.closing(self._connect()) as connection:
                connection.connect()
                with _ended_after(_WITHIN_S, connection.sock):
                    connection.request("GET", self._path, headers=self._headers)
                    answer = connection.getresponse()
                    body = answer.read(_TABLE_MAX_BYTES)
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(
                f"{self._name}: its certificate is not trusted ({error.verify_message}): give --ca-file FILE with the "
                "certificate to trust"
            ) from error
        except ssl.SSLError as error:
            why = (error.reason or type(error).__name__).replace("_", " ").lower()
            return None, f"no hub answers at {self._name}: TLS fails ({why}): is it http:// there?"
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            hangs_up = isinstance(error, http.client.RemoteDisconnected) and not self._tls and not self._socket
            hint = ": is it https:// there?" if hangs_up else ""
            return None, f"no hub answers at {self._name}: {why}{hint}"
        if answer.status == HTTPStatus.OK and (rows := _rows(body)) is not None:
            return rows, ""
        if answer.status == HTTPStatus.UNAUTHORIZED:
            if self._password_file:
                raise ConfigError(f"{self._password_file}: does not have the password of {self._name}")
            raise ConfigError(f"{self._name} asks for a password: give --password-file FILE")
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            return None, f"{self._name}: {body[:200].decode(errors='replace').strip()}"
        return None, f"what answers at {self._name} is not a hub (HTTP {answer.status} {answer.reason}){self._hint}"

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls:
            return http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_S, context=self._tls)
        if self._socket:
            return UnixConnection(self._socket)
        return http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)


@contextlib.contextmanager
def _ended_after(seconds: float, connection: socket.socket) -> Iterator[None]:
    """End a connection that takes longer: a time-out of its own is only of each wait for a few bytes."""

    def end() -> None:
        with contextlib.suppress(OSError):  # it has ended already
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _rows(body: bytes) -> list[dict[str, Any]] | None:
    """Parse the rows of a hub's table; None if it is something else."""
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return rows if isinstance(rows, list) and all(map(_is_row, rows)) else None


def _is_row(row: Any) -> bool:
    """Say whether it can be printed as a camera's row; what a later release tells besides may be anything."""
    return isinstance(row, dict) and row.keys() >= _ROW and all(_is_told(key, value) for key, value in row.items())


def _is_told(key: str, value: Any) -> bool:
    if value is None:
        return key not in _NEVER_UNKNOWN
    if key in _WORDS:
        return isinstance(value, str) and value.isprintable()  # a terminal would obey the rest
    return key not in _NUMBERS or (isinstance(value, int | float) and abs(value) < _NUMBER_MAX)


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            why = "has no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(f"--ca-file {ca_file}: {why}") from error
    return context
