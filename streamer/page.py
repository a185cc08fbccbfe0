"""A client for a hub's page: asks it for its table of cameras."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import urllib.parse
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from streamer.config import read_password
from streamer.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 5.0
# The keys of a row that hubs of every release send.
_ROW = {"name", "state", "fps", "age_s", "frames", "dropped", "lost", "width", "height", "bytes_per_s", "address"}


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
        self._name = hub if self._socket else f"{scheme}://{parts.netloc}{self._path}"
        self._hint = f": is it {scheme}://{parts.netloc}?" if path else ""
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
                connection.request("GET", self._path, headers=self._headers)
                answer = connection.getresponse()
                body = answer.read()
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(
                f"{self._name}: its certificate is not trusted ({error.verify_message}): give --ca-file FILE with the "
                "certificate that is to be trusted"
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
                raise ConfigError(f"{self._password_file}: has not the password of {self._name}")
            raise ConfigError(f"{self._name} asks for a password: give --password-file FILE")
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            return None, f"{self._name}: {body.decode(errors='replace').strip()}"
        return None, f"what answers at {self._name} is no hub (HTTP {answer.status} {answer.reason}){self._hint}"

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


def _rows(body: bytes) -> list[dict[str, Any]] | None:
    """Parse the rows of a hub's table; None if it is something else."""
    try:
        rows = json.loads(body)
    except ValueError:
        return None
    is_table = isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= _ROW for row in rows)
    return rows if is_table else None


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            why = "has no PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(f"--ca-file {ca_file}: {why}") from error
    return context
