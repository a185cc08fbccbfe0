"""Access to the page: the password, the login cookie, and protection against requests from other sites.

A wall on a loopback address asks for no password, one on the network does unless it is open to all, and on the Unix
socket nobody is ever asked. All responses get their security headers here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import hmac
import html
import ipaddress
import logging
import math
import re
import socket
import ssl
import time
from base64 import b64decode
from collections import OrderedDict
from importlib import resources
from string import Template
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlsplit

from aiohttp import web

from streamer.config import is_loopback
from streamer.errors import ConfigError, TransportError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COOKIE = "streamer"
COOKIE_LIFETIME_S = 30 * 24 * 3600
TRIES = 5
TRIES_WITHIN_S = 60.0
CLIENTS = 1024
BODY_MAX_BYTES = 16 * 1024  # of a request; only the form has one
_SOCKET_MODE = 0o660
_FORM_WITHIN_S = 10.0
_ASKED_AT_ONCE_MAX = 100  # browsers ask once, and wait
_FIELDS_MAX = 16  # of the form, which has three
# Without a password. By route, not by path, so that it applies to the handler that will run.
_OPEN = {"/login", "/logout", "/static/{file}"}
_PICTURES = {"/snapshot/{name}.jpg", "/stream/{name}.mjpg"}
_POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src {connect}; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_SERVER = {"Server": "streamer"}  # the web library would name its version and Python's
_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
# Browsers take `//host` and `/\host` for another site, and ignore tabs and line ends in it.
_LOCAL_PATH = re.compile(r"/(?!/)[!-\[\]-~]{0,2000}")
_log = logging.getLogger(__name__)


class Throttle:
    """Counts each client's wrong passwords, and makes one that gave too many wait.

    A repeated wrong password counts once: a program that still has the old one must not lock out everybody at its
    address. A right password does not reset the count, from which a guesser behind the same router would profit.
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[str, dict[bytes, float]] = OrderedDict()  # by client: the last TRIES, and when

    def wait_s(self, client: str, now: float) -> float:
        """Return the seconds until the client may try again, or 0."""
        failures = self._failures.get(client, {})
        if len(failures) < TRIES:
            return 0.0
        return max(0.0, next(iter(failures.values())) + TRIES_WITHIN_S - now)

    def failed(self, client: str, digest: bytes, now: float) -> None:
        """Note a wrong password by its digest; with too many clients, forget the one that failed longest ago."""
        failures = self._failures.setdefault(client, {})
        failures.pop(digest, None)
        failures[digest] = now
        if len(failures) > TRIES:
            del failures[next(iter(failures))]
        self._failures.move_to_end(client)
        if len(self._failures) > CLIENTS:
            self._failures.popitem(last=False)


class Access:
    """Authenticates requests. `middleware`, `routes` and `add_headers` are for the wall's application.

    Args:
        host: the address that the wall listens on.
        password: required of everybody over TCP; empty for none.
    """

    def __init__(self, host: str, password: str) -> None:
        self._asks = bool(password)
        self._is_loopback = is_loopback(host)
        # Slow on purpose, so that nobody who has seen a cookie can find a weak password by trying. Without a random
        # salt, so that cookies stay valid after a restart.
        self._key = b""
        if password:
            self._key = hashlib.scrypt(password.encode(), salt=b"streamer wall", n=1 << 14, r=8, p=1, dklen=32)
        self._signed = self._sign(b"password", password.encode())
        self._throttle = Throttle()
        self._page = Template(resources.files(__package__).joinpath("static", "login.html").read_text(encoding="utf-8"))
        self.routes = [
            web.get("/login", self._show_login),
            web.post("/login", self._log_in),
            web.get("/logout", self._log_out),
        ]

    # -- the cookie

    def token(self, now_s: float) -> str:
        """Return the cookie's value for a login at `now_s`, in seconds since 1970."""
        # Wall time, here alone: it must mean the same after a restart.
        expires = str(int(now_s) + COOKIE_LIFETIME_S)
        return f"{expires}.{self._sign(b'cookie', expires.encode()).hex()}"

    def _is_token(self, token: str, now_s: float) -> bool:
        expires, _, signature = token.encode(errors="replace").partition(b".")
        if not hmac.compare_digest(signature, self._sign(b"cookie", expires).hex().encode()):
            return False
        return now_s < int(expires)  # a number, since the signature is ours

    def _sign(self, purpose: bytes, what: bytes) -> bytes:
        return hmac.digest(self._key, purpose + b" " + what, "sha256")

    def _has_cookie(self, request: web.Request) -> bool:
        return self._is_token(request.cookies.get(COOKIE, ""), time.time())

    # -- every request

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests from other sites, and ask for the password if one is set."""
        if _is_by_socket(request) or _route(request) == "/healthz":
            return await handler(request)
        if self._is_loopback and not self._asks:
            _check_host(request)
        if request.method not in ("GET", "HEAD") or _is_websocket(request):
            _check_origin(request)
        if self._asks and _route(request) not in _OPEN and not self._has_cookie(request):
            self._check_password(request)
        return await handler(request)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the security headers that a response does not set itself."""
        connect = "'self'"
        if _HOST.fullmatch(request.headers.get("Host", "")):
            # For Safari before 16, 'self' does not include WebSockets.
            connect += f" {'wss' if request.secure else 'ws'}://{request.headers['Host']}"
        response.headers.setdefault("Content-Security-Policy", _POLICY.format(connect=connect))
        # Pages of the same site, on any port, may embed the pictures; those of an open wall any page may, such as Home
        # Assistant's.
        others = "same-site" if self._asks or self._is_loopback else "cross-origin"
        policy = others if _route(request) in _PICTURES else "same-origin"
        response.headers.setdefault("Cross-Origin-Resource-Policy", policy)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.update(_SERVER)

    def _check_password(self, request: web.Request) -> None:
        """Check the password of basic authentication; without a right one, raise the response that asks for it."""
        given = _basic_password(request)
        if given is not None:
            is_right, wait_s = self._try(request, given)
            if is_right:
                return
            if wait_s:
                text = f"too many wrong passwords: wait {wait_s} s\n"
                raise web.HTTPTooManyRequests(text=text, headers={"Retry-After": str(wait_s)})
        elif "text/html" in request.headers.get("Accept", ""):
            raise _SeeOther("/login" if request.path_qs == "/" else f"/login?next={quote(request.path_qs, safe='/')}")
        # Not for scripts and pictures of a page whose cookie has expired: the browser would open a dialogue of its own.
        is_browser = given is None and request.headers.get("User-Agent", "").startswith("Mozilla/")
        headers = {} if is_browser else {"WWW-Authenticate": 'Basic realm="cameras", charset="UTF-8"'}
        text = "the password is needed\n" if given is None else "wrong password\n"
        raise web.HTTPUnauthorized(text=text, headers=headers)

    def _wait_s(self, request: web.Request) -> int:
        """Return the seconds until a request's client may try a password, or 0."""
        return math.ceil(self._throttle.wait_s(_client(request.remote or ""), time.monotonic()))

    def _try(self, request: web.Request, password: bytes) -> tuple[bool, int]:
        """Return whether a password is right, and the seconds until the client may try again, or 0."""
        if wait_s := self._wait_s(request):
            return False, wait_s
        given = self._sign(b"password", password)
        if hmac.compare_digest(given, self._signed):
            return True, 0
        client, now = _client(request.remote or ""), time.monotonic()
        self._throttle.failed(client, given, now)
        if self._throttle.wait_s(client, now):
            _log.warning("%d different wrong passwords from %s; it has to wait", TRIES, client)
        return False, 0

    # -- the login page

    async def _show_login(self, request: web.Request) -> web.Response:
        wanted = _local_path(request.query.get("next", ""))
        if not self._asks or self._has_cookie(request):
            raise _SeeOther(wanted)
        return self._login_page(wanted)

    async def _log_in(self, request: web.Request) -> web.Response:
        # A client that has to wait is told so without reading its form; the form's address has `next` too.
        form = {"next": request.query.get("next", "")} if self._wait_s(request) else await _form(request)
        wanted = _local_path(form.get("next", ""))
        if not self._asks:
            raise _SeeOther(wanted)
        is_right, wait_s = self._try(request, form.get("password", "").encode())
        if wait_s:
            return self._login_page(wanted, f"Too many wrong passwords. Wait {wait_s} s.", 429, wait_s)
        if not is_right:
            return self._login_page(wanted, "Wrong password.", 403)
        answer = _SeeOther(wanted)
        # Lax, not Strict, so that links to the wall from a mail or a dashboard work. No GET changes anything.
        answer.set_cookie(
            COOKIE,
            self.token(time.time()),
            max_age=COOKIE_LIFETIME_S,
            path="/",
            secure=request.secure,
            httponly=True,
            samesite="Lax",
        )
        raise answer

    async def _log_out(self, _: web.Request) -> web.Response:
        answer = _SeeOther("/login")
        answer.del_cookie(COOKIE, path="/")
        raise answer

    def _login_page(self, wanted: str, problem: str = "", status: int = 200, wait_s: int = 0) -> web.Response:
        text = self._page.substitute(next=html.escape(wanted), problem=html.escape(problem))
        # With no-referrer, browsers send the form with `Origin: null`.
        headers = {"Referrer-Policy": "same-origin"} | ({"Retry-After": str(wait_s)} if wait_s else {})
        return web.Response(text=text, status=status, content_type="text/html", headers=headers)


class Protocol(web.RequestHandler):
    """The web library's protocol, with our headers on its responses to malformed requests, which pass no middleware.

    It also drops a peer that sends many requests before it has its responses: the library would queue any number.
    """

    def data_received(self, data: bytes) -> None:
        """Parse what a peer sends."""
        super().data_received(data)
        if len(self._messages) > _ASKED_AT_ONCE_MAX:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Respond as the library does, with the headers that all responses have."""
        response = super().handle_error(request, status, exc, message)
        response.headers.update(_HEADERS | _SERVER | {"Content-Security-Policy": "default-src 'none'"})
        return response


class _SeeOther(web.HTTPException):
    """Redirects to a path of this wall as it is; the library's own redirects would normalise it."""

    status_code = 303

    def __init__(self, path: str) -> None:
        super().__init__(headers={"Location": path})


async def _form(request: web.Request) -> dict[str, str]:
    """Read the login form; a malformed one has no fields.

    Raises:
        HTTPRequestTimeout: it takes too long.
        HTTPRequestEntityTooLarge: it is too large.
    """
    try:
        async with asyncio.timeout(_FORM_WITHIN_S):
            body = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"no whole form within {_FORM_WITHIN_S:g} s\n") from None
    with contextlib.suppress(ValueError):  # not UTF-8, or too many fields, which would take long to parse
        return dict(parse_qsl(body.decode(), max_num_fields=_FIELDS_MAX))
    return {}


def _route(request: web.Request) -> str:
    """Return the route of a request, as `/snapshot/{name}.jpg`; empty if there is none."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else ""


def _is_by_socket(request: web.Request) -> bool:
    """Whether a request came by the Unix socket, where the file's mode decides who may."""
    connection = request.transport.get_extra_info("socket") if request.transport else None
    return connection is not None and connection.family == socket.AF_UNIX


def _is_websocket(request: web.Request) -> bool:
    return "websocket" in request.headers.get("Upgrade", "").lower()


def _check_host(request: web.Request) -> None:
    """Refuse foreign host names: a page under a name that resolves to here would be same-origin (DNS rebinding)."""
    name, _ = _host_and_port(f"//{request.headers.get('Host', '')}", 80)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if name != "localhost":
            raise web.HTTPForbidden(text=f"this is not {name!r}: open it as localhost, or by its address\n") from None


def _check_origin(request: web.Request) -> None:
    """Refuse requests of pages from another origin. Programs send no Origin."""
    origin = request.headers.get("Origin")
    if origin is None:
        return
    default = 443 if origin.startswith("https:") else 80
    here = _host_and_port(f"//{request.headers.get('Host', '')}", default)
    there = _host_and_port(origin, default)
    if there != here or not there[0]:
        raise web.HTTPForbidden(text=f"a page from {origin!r} may not do this here\n")


def _host_and_port(url: str, default: int) -> tuple[str, int]:
    """Return the lower-case host and the port of a URL; an empty host if it is malformed."""
    try:
        parts = urlsplit(url)
        port = parts.port or default
    except ValueError:
        return "", default
    return parts.hostname or "", port


def _basic_password(request: web.Request) -> bytes | None:
    """Return the password of a request's basic authentication; None if it has none."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except ValueError:  # not base64, or not ASCII
        return b""


def _client(address: str) -> str:
    """Return what to count a client by: its address, or for IPv6 the /64 that a single host may have."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, 64), strict=False))


def _local_path(path: str) -> str:
    """Return a path if it stays on this wall, else the page's."""
    return path if _LOCAL_PATH.fullmatch(path) else "/"


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Load the wall's TLS certificate and key.

    Args:
        certificate: PEM file with the certificate and its chain.
        key: PEM file with its key, without a passphrase.

    Raises:
        ConfigError: a file cannot be read, or the two do not belong together.
    """
    for setting, path in (("tls_certificate", certificate), ("tls_key", key)):
        try:
            path.open("rb").close()  # ssl would not say which one it cannot read
        except OSError as error:
            raise ConfigError(f"{setting}: {path}: {error.strerror}") from error
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Given no password at all, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")  # nosec B106 # it is none
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"tls_certificate {certificate} and tls_key {key}: they must be a PEM certificate and its own key, without "
            + (f"a passphrase ({reason})" if (reason := getattr(error, "reason", None)) else "a passphrase")
        ) from error
    return context


def unix_socket(path: Path) -> socket.socket:
    """Bind the Unix socket, replacing one that a dead hub has left.

    Raises:
        TransportError: another hub listens there, or the file cannot be made.
    """
    listening = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket() and not _is_answered(path):
            path.unlink()
        listening.bind(str(path))
        path.chmod(_SOCKET_MODE)  # nobody can connect before it listens
    except OSError as error:
        listening.close()
        is_other = error.errno == errno.EADDRINUSE and not path.is_socket()
        why = "it exists already and is not a socket" if is_other else error.strerror or error
        raise TransportError(f"cannot listen on {path}: {why}") from error
    return listening


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
