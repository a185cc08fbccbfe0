"""Who may hold a connection to the page: how many, and for how long without asking or reading anything.

The web library parses any request safely, but lets a peer take its time: one that sends a byte an hour, or never reads
what it asked for, would keep its connection for ever. And as Debian has it, it lets a peer say what it will: header
lines without an end, or requests faster than they are answered, fill the memory. On the Unix socket nobody is counted,
so that whoever runs the hub gets in when strangers hold all that there are.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from streamer.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONNECTIONS_MAX = 1024
CONNECTIONS_OF_ADDRESS_MAX = 128  # a proxy, or a company's router, is one address for many
ASK_WITHIN_S = 20.0  # from connecting, or from when the last answer has gone, to the end of a request's head
READ_WITHIN_S = 60.0  # from when a peer reads no more until it reads again
ASKED_MAX_BYTES = 64 * 1024  # that are read of a request until it is answered, but of a form, and of what a page says
HELD_MAX_BYTES = 512 * 1024  # that wait to be read: more than comes before the library has seen that it is a form
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_log = logging.getLogger(__name__)


class Door:
    """Counts and watches the connections of a wall; all of it runs in the wall's event loop.

    `logger` is for the web library: of requests that are none it would log a traceback each.
    """

    def __init__(self) -> None:
        self._connections: dict[Any, _Connection] = {}  # by the web library's protocol
        self._of_address: Counter[str] = Counter()
        self._refusals = Refusals(_log)
        self.logger = logging.Logger(__name__)  # noqa: LOG001 - its filter is this door's alone
        self.logger.parent = _log
        self.logger.setLevel(logging.DEBUG)  # some of them are logged as no more than that
        self.logger.addFilter(self._is_own_fault)

    async def listen(
        self, protocol: Callable[[], web.RequestHandler], host: str, port: int, tls: ssl.SSLContext | None
    ) -> asyncio.Server:
        """Let the web library's `protocol` serve whoever gets in."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._tell_failure)
        return await loop.create_server(lambda: _Connection(self, protocol(), tls), host, port)

    async def close(self) -> None:
        """End the connections that have not come to speak TLS, of which the web library knows nothing."""
        handshakes = [connection.handshake for connection in self._connections.values() if connection.handshake]
        for handshake in handshakes:
            handshake.cancel()
        await asyncio.gather(*handshakes, return_exceptions=True)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Take note that a peer has asked, and is being answered."""
        connection = self._connections.get(request.protocol)
        if connection is None:  # the Unix socket's, or it has left
            return await handler(request)
        connection.is_answered, connection.has_asked = True, True
        try:
            if "Transfer-Encoding" in request.headers:  # the lines after its end would be read until memory is full
                raise web.HTTPLengthRequired(text="a request must say how long it is: Content-Length\n")
            connection.listen(to_all=request.method == "POST" or request.path == "/ws")
            return await handler(request)
        finally:
            connection.listen()
            connection.is_answered = False
            connection.moved = asyncio.get_running_loop().time()

    def watch(self, now: float) -> None:
        """End the connections that have had their time, and tell what was refused; `now` is the loop's time."""
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
        """Count a connection that is ended, or not let in, and why."""
        self._refusals.add(connection.address, why)

    def let_in(self, connection: _Connection) -> bool:
        """Say whether there is room for a connection."""
        if self._of_address[connection.address] >= CONNECTIONS_OF_ADDRESS_MAX:
            self.refuse(connection, f"has {CONNECTIONS_OF_ADDRESS_MAX} connections to the page already")
        elif len(self._connections) >= CONNECTIONS_MAX:
            self.refuse(connection, f"the page has {CONNECTIONS_MAX} connections already")
        else:
            self._connections[connection.inner] = connection
            self._of_address[connection.address] += 1
            return True
        return False

    def let_out(self, connection: _Connection) -> None:
        """Take note that a connection has ended, if it was let in."""
        if self._connections.pop(connection.inner, None):
            self._of_address[connection.address] -= 1
            if not self._of_address[connection.address]:
                del self._of_address[connection.address]

    def _tell_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Count who cannot be let in for want of descriptors, of whom the loop would log a hundred a second."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            self._refusals.add(None, f"the page cannot take a connection: {error.strerror}")
        else:
            loop.default_exception_handler(context)

    def _is_own_fault(self, record: logging.LogRecord) -> bool:
        """Count what the web library logs of a request that was none, and let it log the rest."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError):  # the peer left in the middle of its request
            return False
        # Of the latter kind: the library quotes a peer's header in its answer, and that is not UTF-8.
        if not isinstance(error, HttpProcessingError | UnicodeEncodeError):
            return record.levelno >= logging.WARNING
        address = record.args[0] if isinstance(record.args, tuple) and record.args else None
        self._refusals.add(str(address) if address else None, "no HTTP request")
        return False


class _Connection(asyncio.Protocol):
    """Stands between a transport and the web library's protocol, which it calls by the same names.

    Over TLS too it is there from the first packet on: who never completes the handshake is counted and watched as well.
    """

    transport: asyncio.Transport  # what goes over the network, encrypted or not

    def __init__(self, door: Door, inner: Any, tls: ssl.SSLContext | None) -> None:
        self._door = door
        self._tls = tls
        self._held = b""  # what came, and the web library has not been given yet
        self._room = ASKED_MAX_BYTES  # for what it is given
        self._is_open = False  # it was told of the connection
        self.inner = inner
        self.handshake: asyncio.Task[None] | None = None
        self.address = "?"
        self.moved = 0.0  # when it came, had its answer, or was last seen to read
        self.unread = 0  # bytes that were waiting for it then
        self.is_answered = False  # now
        self.has_asked = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a TCP server
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.address = peer[0].removeprefix("::ffff:") if peer else "?"
        loop = asyncio.get_running_loop()
        self.moved = loop.time()
        if not self._door.let_in(self):
            transport.abort()
        elif self._tls:
            self.handshake = loop.create_task(self._shake_hands(self._tls))
        else:
            self._open(transport)

    async def _shake_hands(self, tls: ssl.SSLContext) -> None:
        """Go on over TLS. Who takes too long is ended as one who asks nothing."""
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
