"""The hub's HTTP side: the page with every camera, its WebSocket, streams, snapshots and the API.

JPEGs go from the hub to the browser untouched; `viewers` takes each frame once for all viewers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import json
import logging
import math
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from importlib import resources
from typing import TYPE_CHECKING, Any

from streamer.config import Address
from streamer.errors import CodecError, MissingExtraError, StreamerError, TransportError, log_failure, reason
from streamer.presence import State

try:
    from aiohttp import WSCloseCode, WSMsgType, web
except ImportError as error:
    raise MissingExtraError("the hub's page", "hub", "python3-aiohttp", error) from error

from streamer.wall.access import BODY_MAX_BYTES, Access, Protocol, unix_socket
from streamer.wall.door import Door
from streamer.wall.history import EVERY_S, History
from streamer.wall.metrics import Metrics
from streamer.wall.viewers import BOUNDARY, RATE_MAX, FanOut

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from streamer.frame import Frame
    from streamer.hub import Hub
    from streamer.presence import Status
    from streamer.wall.viewers import Picture, Viewer

_log = logging.getLogger(__name__)
_TURN_S = 0.25
_TABLE_S = 1.0
_STUCK_S = 5.0
# A viewer that has vanished is dropped after at most one and a half of this. Half of it is the time for a pong, which
# on a slow line waits behind a picture; and many proxies close connections that are silent for a minute.
_HEARTBEAT_S = 50.0
_CLOSE_S = 0.5
_START_S = 10.0  # for the threads to begin, on a busy machine
_THREADS = 4  # that encode arrays and write metrics
_COMMAND_MAX_BYTES = 128 * 1024  # of a page's message: the names of 1,024 cameras fit
_COMMANDS_PER_S = 5000  # of a page: 64 cameras with 60 pictures a second, each acknowledged on its own
_REASON_MAX_BYTES = 100  # of a WebSocket's close frame, which has room for 123 (RFC 6455, 5.5)
_BACKLOG_MAX_BYTES = 1024 * 1024  # unread by a page, beside its pictures: two tables of 1,024 cameras
_UNSENT_BYTES = 32 * 1024  # of a stream, in the kernel: more is taken once less waits there than this
_PAGES = {"/": "index.html", "/numbers": "numbers.html"}
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class Wall:
    """Serves a hub's cameras over HTTP.

    Args:
        hub: where the cameras are.
        host: address to listen on.
        port: port to listen on; 0 lets the system pick one.
        access: who may look; by default everybody who reaches the address.
        tls: context to serve over TLS; None for plain HTTP.
        socket: path of a Unix socket to serve on as well, for everybody who may open it.

    Raises:
        TransportError: it cannot listen there.
        StreamerError: it fails as soon as it does.
    """

    def __init__(
        self,
        hub: Hub,
        host: str,
        port: int,
        *,
        access: Access | None = None,
        tls: ssl.SSLContext | None = None,
        socket: Path | None = None,
    ) -> None:
        self._hub = hub
        self._address = host, port
        self._access = access or Access(host, "")
        self._tls = tls
        self._socket = socket
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._looking = 0, 0  # viewers and frames sent to them, as of the last request for metrics
        self._metrics = Metrics(hub, viewers=lambda: self._looking[0], viewer_frames=lambda: self._looking[1])
        self._listening = threading.Event()
        self.failure: Exception | None = None  # what ended the thread; None while it runs
        self._history = History()
        self._pages: set[_Page] = set()
        self._streams: dict[Viewer, web.Request] = {}
        self._table = ""
        self.port = port
        self.turned = time.monotonic()  # last turn of the thread's loop, for a watchdog
        self._thread = threading.Thread(target=self._run, name="wall", daemon=True)
        self._thread.start()
        self._listening.wait()
        if self.failure:
            self.close()
            if isinstance(self.failure, TransportError):
                raise self.failure
            raise StreamerError(f"the page has failed: {reason(self.failure)}") from self.failure

    def close(self) -> None:
        """Stop at once, whatever the viewers do."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Wall:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @functools.cached_property
    def _page_digest(self) -> str:
        """Identifies the page's files, by which a browser notices a new release, even one of the same version."""
        return hashlib.sha256(repr(sorted(_static_files().items())).encode()).hexdigest()[:16]

    def _run(self) -> None:
        """Run the thread."""
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:  # noqa: BLE001 - logged, and kept in `failure`
            log_failure(_log, "the page has failed", error)
            self.failure = error
        finally:
            self._listening.set()  # `__init__` waits for it, whatever has failed

    async def _serve(self) -> None:
        # All threads now, while there is room, and the files: later they could be refused, or gone.
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, "page"))
        begun = threading.Barrier(_THREADS, timeout=_START_S)  # each waits for the others, so that none serves for two
        await asyncio.gather(*[asyncio.to_thread(begun.wait) for _ in range(_THREADS)])
        await asyncio.to_thread(_static_files)
        self._fan_out = FanOut(self._hub)
        self._door = Door()
        app = web.Application(
            middlewares=[self._door.middleware, self._access.middleware], client_max_size=BODY_MAX_BYTES
        )
        app.add_routes(
            [
                *(web.get(path, self._page) for path in _PAGES),
                web.get("/static/{file}", self._file),
                web.get("/ws", self._web_socket, allow_head=False),
                web.get("/api/cameras", self._cameras),
                web.get("/api/viewers", self._viewers),
                web.get("/api/history", self._past),
                web.get("/healthz", self._health),
                web.get("/metrics", self._metrics_text),
                web.get("/snapshot/{name}.jpg", self._snapshot),
                web.get("/stream/{name}.mjpg", self._stream),
                *self._access.routes,
            ]
        )
        app.on_response_prepare.append(self._access.add_headers)
        runner = web.AppRunner(app, shutdown_timeout=_CLOSE_S)  # by default a minute
        await runner.setup()
        server = runner.server
        assert server  # noqa: S101 - `setup` has made it
        listening: list[asyncio.Server] = []
        try:
            await self._listen(server, listening)
        except Exception as error:  # noqa: BLE001 - raised by `__init__`
            self.failure = error
            self._ending.set()
        self._listening.set()
        await self._watch()
        # Since Python 3.12 a server that closes forgets the connections that it has accepted and not begun to serve.
        for each in listening:
            for listener in each.sockets:
                self._loop.remove_reader(listener)
        await asyncio.sleep(0)
        for each in listening:
            each.close()
        if self._socket and not self.failure:  # at once: another hub may take its place
            self._socket.unlink(missing_ok=True)
        self._fan_out.close_all()
        await self._door.close()
        await server.shutdown(_CLOSE_S)  # by default the library waits two minutes for peers that read nothing
        await runner.cleanup()
        # The library goes on reading, for 10 s, the rest of a request whose peer has gone.
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=_CLOSE_S)
        await self._door.end_all()

    async def _listen(self, server: web.Server, listening: list[asyncio.Server]) -> None:
        protocol = functools.partial(
            Protocol,
            server,
            loop=self._loop,
            auto_decompress=False,  # a megabyte could become a gigabyte
            access_log=None,  # type: ignore[arg-type] # the library means no log by it
            logger=self._door.logger,
        )
        host, port = self._address
        try:
            listening.append(await self._door.listen(protocol, host, port, self._tls))
            if not listening[0].sockets:  # before Python 3.13 asyncio skipped what the system lacks, and said nothing
                raise OSError(errno.EADDRNOTAVAIL, "")
        except OSError as error:
            # Name look-ups and asyncio raise numbers that are no errno, for an address that this machine does not have.
            number = error.errno if error.errno and error.errno > 0 else errno.EADDRNOTAVAIL
            raise TransportError(f"cannot listen on http {Address(host, port)}: {os.strerror(number)}") from error
        except (ValueError, OverflowError) as error:  # an invalid name or port
            raise TransportError(f"cannot listen on http {Address(host, port)}: {error}") from error
        self.port = listening[0].sockets[0].getsockname()[1]
        if self._socket:
            listening.append(await self._loop.create_server(protocol, sock=unix_socket(self._socket)))

    async def _watch(self) -> None:
        """Until the end, send the pages the table, at once if a state changes, and record the history."""
        states: dict[str, str] = {}
        told = sampled = -math.inf
        while not self._ending.is_set():
            now = self.turned = time.monotonic()
            self._door.watch(now)
            statuses = self._hub.cameras()
            before, states = states, {status.name: status.state for status in statuses}
            if states != before or now - told >= _TABLE_S:
                told = now
                if seen := [page for page in self._pages if page.seen]:
                    self._table = _table(statuses)
                    for page in seen:
                        page.news.set()
            if now - sampled >= EVERY_S:
                sampled = now
                self._history.add(statuses)
            # The library does not tell a handler that its peer has left, and without pictures it would never notice.
            for viewer, request in list(self._streams.items()):
                if request.transport is None or states.get(request.match_info["name"]) == State.GONE:
                    self._fan_out.close(viewer)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _TURN_S)

    async def _page(self, request: web.Request) -> web.Response:
        return _static(_PAGES[request.path], "text/html")

    async def _file(self, request: web.Request) -> web.Response:
        file = request.match_info["file"]
        suffix = file[file.rfind(".") :]
        if file not in _static_files() or suffix not in _TYPES:
            raise web.HTTPNotFound(text="no such file\n")
        return _static(file, _TYPES[suffix])

    async def _cameras(self, _: web.Request) -> web.Response:
        return _json([vars(status) for status in self._hub.cameras()])

    async def _viewers(self, _: web.Request) -> web.Response:
        return _json([vars(status) for status in self._fan_out.viewers()])

    async def _past(self, _: web.Request) -> web.Response:
        return _json({"page": self._page_digest, **self._history.table()})

    async def _health(self, _: web.Request) -> web.Response:
        """Respond 200 while the hub can receive frames, else 503."""
        if self._hub.failure or time.monotonic() - self._hub.turned > _STUCK_S:
            return web.Response(status=503, text="the receiving thread is stuck\n")
        return web.Response(text="ok\n")

    async def _web_socket(self, request: web.Request) -> web.StreamResponse:
        """Serve one page: pictures as binary messages, the table of cameras as JSON.

        The page sends `{"want": {camera: frames per second}}`, or `{"want": null}` while it is hidden, to get nothing;
        and `{"shown": [camera, …]}`, to get their next pictures.
        """
        response = web.WebSocketResponse(
            timeout=_CLOSE_S, heartbeat=_HEARTBEAT_S, compress=False, max_msg_size=_COMMAND_MAX_BYTES
        )
        transport = request.transport
        try:
            await response.prepare(request)
        except ConnectionError:
            transport = None
        except ValueError:  # the library does not expect a key that is not ASCII
            raise web.HTTPBadRequest(text="Sec-WebSocket-Key is not base64\n") from None
        if transport is None:  # the peer has left already
            return web.Response()
        page = _Page(self._fan_out.open(functools.partial(_write, transport), "wall", *_who(request)), transport)
        # No `version`: pages of before 28 November 2026 compare that alone, and take the newer page for want of it.
        hello = {
            "page": self._page_digest,
            "stale_after_s": self._hub.stale_after_s,
            "endpoint": self._hub.endpoint,
        }
        tables = asyncio.ensure_future(self._send_tables(response, page, hello))
        goodbye = asyncio.ensure_future(_end(response, page))
        self._pages.add(page)
        try:
            async for message in response:
                try:
                    if message.type is not WSMsgType.TEXT:
                        raise TypeError("it must be text")
                    page.count(self._loop.time())
                    self._obey(page, json.loads(message.data))
                except (TypeError, ValueError, OverflowError, RecursionError) as error:
                    self._fan_out.close(page.viewer)
                    # ASCII, so that the cut does not split a character: the reason must be valid UTF-8.
                    why = f"not understood: {error}".encode("ascii", "backslashreplace")[:_REASON_MAX_BYTES]
                    await response.close(code=WSCloseCode.POLICY_VIOLATION, message=why)
        finally:
            self._pages.discard(page)
            tables.cancel()
            if not page.viewer.closed.done():  # else it is closing the page now
                goodbye.cancel()
            self._fan_out.close(page.viewer)
            await asyncio.gather(tables, goodbye, return_exceptions=True)
        return response

    def _obey(self, page: _Page, command: Any) -> None:
        """Execute a page's command.

        Raises:
            TypeError, ValueError, OverflowError: the command is invalid.
        """
        match command:
            case {"want": None}:
                page.seen = False
                self._fan_out.want(page.viewer, {})
            case {"want": dict(wanted)}:
                rates = {str(name): float(rate) for name, rate in wanted.items()}
                if not all(0 < rate <= RATE_MAX for rate in rates.values()):
                    raise ValueError(f"a rate must be greater than 0 and at most {RATE_MAX:g}")
                if not page.seen:
                    page.seen = True
                    self._table = _table(self._hub.cameras())  # none was made if nobody saw it
                    page.news.set()
                self._fan_out.want(page.viewer, rates)
            case {"shown": list(names)}:
                page.viewer.shown(str(name) for name in names)
                page.check()
            case _:
                raise ValueError("neither 'want' nor 'shown'")

    async def _send_tables(self, response: web.WebSocketResponse, page: _Page, hello: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            await response.send_str(json.dumps({"hello": hello}))
            await response.send_str(_table(self._hub.cameras()))
            while await page.news.wait():
                page.news.clear()
                await response.send_str(self._table)

    async def _metrics_text(self, request: web.Request) -> web.Response:
        """Respond in Prometheus' text format, made off the event loop."""
        self._looking = len(self._fan_out.viewers()), self._fan_out.sent_frames()
        text, content_type = await asyncio.to_thread(self._metrics.text, request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    async def _snapshot(self, request: web.Request) -> web.Response:
        """Respond with a camera's newest picture; 503 if it is older than `?max_age=` seconds."""
        name = request.match_info["name"]
        row, frame = self._row(name), self._hub.latest(name)
        if frame is None:
            raise _silent(row)
        age_s = row.age_s or 0.0
        max_age_s = _number(request, "max_age", math.inf, 0)
        etag = f"{frame.received_ns:x}"
        headers = {
            # Clients must revalidate each time, and get a 304 while the picture is the same.
            "Cache-Control": "no-cache, private",
            "ETag": f'"{etag}"',
            "Last-Modified": formatdate(frame.received_ns / 1e9, usegmt=True),
            "Age": str(int(age_s)),
        }
        if age_s > max_age_s:
            raise web.HTTPServiceUnavailable(
                text=f"{name}: the newest picture is {age_s:.1f} s old, max_age is {max_age_s:g}\n",
                headers={"Retry-After": "1", "Cache-Control": "no-store"},
            )
        if any(tag.value in (etag, "*") for tag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=await _jpeg(frame), content_type="image/jpeg", headers=headers)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Respond with a camera's pictures as they come, at most `?fps=` a second, as multipart/x-mixed-replace.

        It ends when the camera is GONE: programs retry after an end, but would wait for pictures for ever.
        """
        name = request.match_info["name"]
        row = self._row(name)
        if row.state in {State.GONE, State.WAITING}:
            raise _silent(row)
        frame = self._hub.latest(name)
        if frame is not None:
            await _jpeg(frame)  # before the stream begins, while an error can still be reported
        rate = _number(request, "fps", RATE_MAX, 0.01)
        response = web.StreamResponse(
            headers={
                "Content-Type": f"multipart/x-mixed-replace; boundary={BOUNDARY}",
                "Cache-Control": "no-store",
            }
        )
        response.force_close()
        try:
            await response.prepare(request)
        except ConnectionError:  # the peer has left already
            return web.Response()
        if request.method == "HEAD":
            return response
        _keep_queue_short(request)
        newest: asyncio.Queue[Picture | None] = asyncio.Queue()
        viewer = self._fan_out.open(newest.put_nowait, "stream", *_who(request))
        self._streams[viewer] = request
        viewer.closed.add_done_callback(lambda _: newest.put_nowait(None))
        try:
            await response.write(f"--{BOUNDARY}\r\n".encode())
            self._fan_out.want(viewer, {name: min(RATE_MAX, rate)})
            while (picture := await newest.get()) is not None:  # at most one: the next comes after `shown`
                await response.write(picture.part)
                viewer.shown([name])
        except ConnectionError:  # the viewer has left
            pass
        finally:
            del self._streams[viewer]
            self._fan_out.close(viewer)
        return response

    def _row(self, name: str) -> Status:
        """Return a camera's row.

        Raises:
            HTTPNotFound: there is no such camera.
        """
        rows = {row.name: row for row in self._hub.cameras()}
        if name not in rows:
            names = ", ".join(rows) or "none"
            raise web.HTTPNotFound(text=f"no picture of a camera '{name}'; the cameras are: {names}\n")
        return rows[name]


class _Page:
    """A page that is open, and whether it is visible."""

    def __init__(self, viewer: Viewer, transport: asyncio.WriteTransport) -> None:
        self.viewer = viewer
        self._transport = transport
        self.seen = True
        self.news = asyncio.Event()  # there is a new table
        self._said = 0
        self._since = 0.0

    def count(self, now: float) -> None:
        """Count a message of the page.

        Raises:
            ValueError: there are too many per second, which would take all of the loop's time.
        """
        if now - self._since >= 1:
            self._since, self._said = now, 0
        self._said += 1
        if self._said > _COMMANDS_PER_S:
            raise ValueError(f"more than {_COMMANDS_PER_S} messages in a second")

    def check(self) -> None:
        """Give up on a page that says it has shown what it never read: it would be sent more and more."""
        excess = self._transport.get_write_buffer_size() - _BACKLOG_MAX_BYTES
        if excess > 0 and excess > self.viewer.under_way_bytes:  # the sum is not taken while a page reads
            self._transport.abort()


def _keep_queue_short(request: web.Request) -> None:
    """Keep what waits for a slow line here, where a newer picture replaces it, and not in the kernel.

    By itself the kernel takes megabytes, which are seconds of pictures; this way only what it is about to send.
    """
    transport = request.transport
    if transport is None or not hasattr(socket, "TCP_NOTSENT_LOWAT"):
        return
    transport.set_write_buffer_limits(high=0)  # the next picture is asked for when the kernel has all of the last
    with contextlib.suppress(OSError):  # of a Unix domain socket
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)


def _write(transport: asyncio.WriteTransport, picture: Picture) -> None:
    """Send a picture to a page."""
    if not transport.is_closing():
        transport.write(picture.message)


async def _end(response: web.WebSocketResponse, page: _Page) -> None:
    """Close a page's WebSocket when its viewer is closed."""
    await page.viewer.closed
    await response.close(code=WSCloseCode.GOING_AWAY, message=b"the hub ends")


async def _jpeg(frame: Frame) -> bytes | memoryview:
    """Return a frame's JPEG; a raw array is encoded off the event loop.

    Raises:
        HTTPUnsupportedMediaType: the array cannot be a JPEG, or there is no library to encode it.
    """
    try:
        return frame.jpeg if frame.is_jpeg else await asyncio.to_thread(lambda: frame.jpeg)
    except (CodecError, MissingExtraError) as error:
        raise web.HTTPUnsupportedMediaType(text=f"{frame.camera}: {error}\n") from error


def _silent(row: Status) -> web.HTTPServiceUnavailable:
    return web.HTTPServiceUnavailable(
        text=f"{row.name} is {row.state}: it sends no pictures\n", headers={"Retry-After": "1"}
    )


def _number(request: web.Request, key: str, default: float, low: float) -> float:
    """Return a number in the query.

    Raises:
        HTTPBadRequest: it is no number, or less than `low`.
    """
    text = request.query.get(key)
    if text is None:
        return default
    with contextlib.suppress(ValueError):
        if (value := float(text)) >= low:
            return value
    raise web.HTTPBadRequest(text=f"{key} is {text!r}: it must be a number from {low:g}\n")


def _who(request: web.Request) -> tuple[str | None, str]:
    """Return a viewer's address and User-Agent."""
    return request.remote, request.headers.get("User-Agent", "")[:200]


def _table(statuses: list[Status]) -> str:
    return json.dumps({"cameras": [vars(status) for status in statuses]})


def _json(value: Any) -> web.Response:
    return web.json_response(value, headers={"Cache-Control": "no-store"})


@functools.cache
def _static_files() -> dict[str, bytes]:
    folder = resources.files(__package__).joinpath("static")
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def _static(file: str, content_type: str) -> web.Response:
    headers = {"Cache-Control": "no-cache"}
    return web.Response(body=_static_files()[file], content_type=content_type, charset="utf-8", headers=headers)
