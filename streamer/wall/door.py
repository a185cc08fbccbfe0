"""Limits the connections to the page: their number, and how long they may be idle.

The web library parses any request safely, but lets a peer take its time: one that sends a byte an hour, or never reads
its response, would keep its connection for ever. And in the versions that Debian has, it reads header lines without an
end, and queues requests faster than they are answered, until memory is full. Connections to the Unix socket are not
limited, so that the hub's operator gets in even when strangers hold all the others.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import ssl
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from streamer.errors import want
from streamer.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONNECTIONS_MAX = 1024  # but at most a quarter of the process's descriptor limit: senders have half
CONNECTIONS_OF_ADDRESS_MAX = 128  # many viewers share the address of a proxy or router
ASK_WITHIN_S = 20.0  # from connecting, or the last response, to the end of the next request's head
READ_WITHIN_S = 60.0  # for which a peer may leave data unread
ASKED_MAX_BYTES = 64 * 1024  # read of a request until it is answered, except of a page's WebSocket
HELD_MAX_BYTES = 512 * 1024  # waiting to be read: more than arrives before the library has a request's head
_log = logging.getLogger(__name__)


class Door:
    """Counts and watches the connections of a wall, in the wall's event loop.

    `logger` is for the web library, which would log a traceback for each malformed request.
    """

    def __init__(self) -> None:
        self._connections: dict[Any, _Connection] = {}  # by the web library's protocol
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room = sys.maxsize if descriptors == resource.RLIM_INFINITY else descriptors // 4
        self._of_address: Counter[str] = Counter()
        self._refusals = Refusals(_log)
        self.logger = logging.Logger(__name__)  # noqa: LOG001 - its filter is this door's alone
        self.logger.parent = _log
        self.logger.setLevel(logging.DEBUG)  # some malformed requests are logged at that level
        self.logger.addFilter(self._is_own_fault)

    async def listen(
        self, protocol: Callable[[], web.RequestHandler], host: str, port: int, tls: ssl.SSLContext | None
    ) -> asyncio.Server:
        """Listen, and have the web library's `protocol` serve the connections that are let in."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._tell_failure)
        return await loop.create_server(lambda: _Connection(self, protocol(), tls), host, port)

    async def close(self) -> None:
        """End the connections still in their TLS handshake, which the web library does not know about."""
        handshakes = []
        for connection in self._connections.values():
            if connection.handshake:
                handshakes.append(connection.handshake)
                connection.handshake.cancel()
                connection.transport.abort()  # what is cancelled before it has begun closes nothing
        await asyncio.gather(*handshakes, return_exceptions=True)

    async def end_all(self) -> None:
        """End the connections that the web library has closed and whose peers do not read the rest."""
        for connection in [*self._connections.values()]:
            connection.transport.abort()
        await asyncio.sleep(0)  # the loop closes their sockets in its next turn

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note that a connection has a request, and when it is answered; 503 where the system has not enough for it."""
        try:
            return await self._watched(request, handler)
        except Exception as error:
            if not (why := want(error)):
                raise
            self._refusals.add(request.remote, f"a request cannot be answered: {why}")
            raise web.HTTPServiceUnavailable(text=f"{why}\n", headers={"Retry-After": "1"}) from error

    async def _watched(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = self._connections.get(request.protocol)
        if connection is None:  # on the Unix socket, or closed already
            return await handler(request)
        connection.is_answered, connection.has_asked = True, True
        try:
            if "Transfer-Encoding" in request.headers:  # the lines after its end would be read until memory is full
                raise web.HTTPLengthRequired(text="a request must say how long it is: Content-Length\n")
            connection.listen(to_all=request.path == "/ws")
            return await handler(request)
        finally:
            connection.listen()
            connection.is_answered = False
            connection.moved = asyncio.get_running_loop().time()

    def watch(self, now: float) -> None:
        """End the connections that have timed out, and log what was refused; `now` is the loop's time."""
        for connection in [*self._connections.values()]:
            unread = connection.transport.get_write_buffer_size()
            if unread < connection.unread or (unread and not connection.unread):
                connection.moved = now
            connection.unread = unread
            if now - connection.moved <= (READ_WITHIN_S if unread else ASK_WITHIN_S):
                continue
            if unread:
                self.refuse(connection, f"reads nothing for {READ_WITHIN_S:g} s")
            elif connection.is_answered:
                continue
            elif not connection.has_asked:
                self.refuse(connection, f"no request within {ASK_WITHIN_S:g} s")
            connection.transport.abort()
        self._refusals.tell(now)

    def refuse(self, connection: _Connection, why: str) -> None:
        """Count a connection that is ended or not let in, with the reason."""
        self._refusals.add(connection.address, why)

    def let_in(self, connection: _Connection) -> bool:
        """Add a connection if there is room; return whether there is."""
        most = min(CONNECTIONS_MAX, self._room)
        if self._of_address[connection.address] >= CONNECTIONS_OF_ADDRESS_MAX:
            self.refuse(connection, f"has {CONNECTIONS_OF_ADDRESS_MAX} connections to the page already")
        elif len(self._connections) >= most:
            self.refuse(connection, f"the page has {most} connections already")
        else:
            self._connections[connection.inner] = connection
            self._of_address[connection.address] += 1
            return True
        return False

    def let_out(self, connection: _Connection) -> None:
        """Remove a connection, if it was let in."""
        if self._connections.pop(connection.inner, None):
            self._of_address[connection.address] -= 1
            if not self._of_address[connection.address]:
                del self._of_address[connection.address]

    def _tell_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Count connections lost for want of descriptors, which the loop would log a hundred times a second."""
        error = context.get("exception")
        if error and (why := want(error)):
            self._refusals.add(None, f"the page cannot take a connection: {why}")
        else:
            loop.default_exception_handler(context)

    def _is_own_fault(self, record: logging.LogRecord) -> bool:
        """Filter the web library's log: count malformed requests instead of logging them."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError):  # the peer left in the middle of its request
            return False
        # UnicodeEncodeError: the library quotes a request's header in its response, and it is not UTF-8.
        if not isinstance(error, HttpProcessingError | UnicodeEncodeError):
            return record.levelno >= logging.WARNING
        address = record.args[0] if isinstance(record.args, tuple) and record.args else None
        self._refusals.add(str(address) if address else None, "no HTTP request")
        return False


class _Connection(asyncio.Protocol):
    """Stands between a transport and the web library's protocol, and forwards all events.

    With TLS it is there before the handshake, so that a connection that never completes it is counted and watched too.
    """

    transport: asyncio.Transport  # what goes over the network, encrypted or not

    def __init__(self, door: Door, inner: Any, tls: ssl.SSLContext | None) -> None:
        self._door = door
        self._tls = tls
        self._held = b""  # received, and not yet given to the web library
        self._room = ASKED_MAX_BYTES  # that the web library may still be given
        self._is_open = False  # the web library has the connection
        self.inner = inner
        self.handshake: asyncio.Task[None] | None = None
        self.address = "?"
        self.moved = 0.0  # when it connected, was answered, or last read something
        self.unread = 0  # bytes that it had not read at the last look
        self.is_answered = False  # a request is being answered
        self.has_asked = False  # it has sent a request, ever

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a TCP server
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if peer else "?"
        loop = asyncio.get_running_loop()
        self.moved = loop.time()
        if not self._door.let_in(self):
            transport.abort()
        elif self._tls:
            self.handshake = loop.create_task(self._shake_hands(self._tls))
        else:
            self._open(transport)

    async def _shake_hands(self, tls: ssl.SSLContext) -> None:
        """Do the TLS handshake; one that takes too long ends as a connection without a request."""
        encrypted = None
        try:
            encrypted = await asyncio.get_running_loop().start_tls(self.transport, self, tls, server_side=True)
        except ssl.SSLError:
            self._door.refuse(self, "no TLS handshake")
        except OSError:  # it has left
            pass
        finally:
            self.handshake = None
            if not encrypted:
                self._door.let_out(self)
        if encrypted:
            self._open(encrypted)

    def _open(self, transport: asyncio.Transport) -> None:
        self._is_open = True
        self.inner.connection_made(transport)
        self._give()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.let_out(self)
        if self._is_open:
            self.inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._held += data
        if self._is_open:
            self._give()

    def listen(self, *, to_all: bool = False) -> None:
        """Go on to read: all that comes, or so much as a request may have."""
        self._room = sys.maxsize if to_all else ASKED_MAX_BYTES
        self._give()

    def _give(self) -> None:
        """Give the web library what it may be given; end a connection that says too much."""
        data, self._held = self._held[: self._room], self._held[self._room :]
        self._room -= len(data)
        if len(self._held) > HELD_MAX_BYTES:
            self._held = b""
            self._door.refuse(self, "its request has no end")
            self.transport.abort()
        elif data:
            self.inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()  # type: ignore[no-any-return]

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.moved = asyncio.get_running_loop().time()
        self.inner.resume_writing()
