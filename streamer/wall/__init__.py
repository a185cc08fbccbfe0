"""The wall: the page with every camera, the streams and the API, by aiohttp in a thread of its own.

JPEG bytes go from the hub to the browser untouched. A viewer that is slow misses frames and delays nobody: each
has a newest-only mailbox, and takes from it only when its socket has room again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import threading
import time
from importlib import resources
from typing import TYPE_CHECKING

from streamer.errors import CodecError, MissingExtraError, TransportError

try:
    from aiohttp import web
except ImportError as error:
    raise MissingExtraError("the hub's page", "hub", "python3-aiohttp") from error

from streamer.wall.access import Access, unix_socket

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from streamer.frame import Frame
    from streamer.hub import Hub

_BOUNDARY = "frame"
_TURN_S = 0.5
_STUCK_S = 5.0
_STATIC = {
    "wall.js": "text/javascript",
    "wall.css": "text/css",
    "login.css": "text/css",
    "icon.svg": "image/svg+xml",
}


class Wall:
    """Serves a hub's cameras over HTTP.

    Args:
        hub: whose cameras are served.
        host: address to listen on.
        port: to listen on; 0 lets the system pick one.
        access: who may look; by default everybody who reaches the address.
        tls: serves over TLS with this.
        socket: path of a Unix socket to serve on as well, to whoever may open it.

    Raises:
        TransportError: it cannot listen there.
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
        self._access = access or Access(host)
        self._tls = tls
        self._socket = socket
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._viewers: set[_Viewer] = set()
        self._listening = threading.Event()
        self._failure: TransportError | None = None
        self.port = port
        self.turned = time.monotonic()  # when the thread last went round; a watchdog may look at it
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()], name="wall")
        self._thread.start()
        self._listening.wait()
        if self._failure:
            self.close()
            raise self._failure

    def close(self) -> None:
        """End at once, whatever the viewers do."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Wall:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _serve(self) -> None:
        app = web.Application(middlewares=[self._access.middleware])
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/static/{file}", self._file),
                web.get("/api/cameras", self._cameras),
                web.get("/healthz", self._health),
                web.get("/snapshot/{name}.jpg", self._snapshot),
                web.get("/stream/{name}.mjpg", self._stream),
                *self._access.routes,
            ]
        )
        app.on_response_prepare.append(self._access.add_headers)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await self._listen(runner)
        except TransportError as error:
            self._failure = error
            self._ending.set()
        self._listening.set()
        while not self._ending.is_set():
            self.turned = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _TURN_S)
        for viewer in self._viewers:
            viewer.close()
        await runner.cleanup()
        if self._socket and not self._failure:
            self._socket.unlink(missing_ok=True)

    async def _listen(self, runner: web.AppRunner) -> None:
        try:
            await web.TCPSite(runner, *self._address, ssl_context=self._tls).start()
        except OSError as error:
            host, port = self._address
            raise TransportError(f"cannot listen on http {host}:{port}: {error.strerror}") from error
        self.port = runner.addresses[0][1]
        if self._socket:
            await web.SockSite(runner, unix_socket(self._socket)).start()

    async def _index(self, _: web.Request) -> web.Response:
        return _static("index.html", "text/html")

    async def _file(self, request: web.Request) -> web.Response:
        file = request.match_info["file"]
        if file not in _STATIC:
            raise web.HTTPNotFound(text=f"no file {file}\n")
        return _static(file, _STATIC[file])

    async def _cameras(self, _: web.Request) -> web.Response:
        rows = [dataclasses.asdict(status) for status in self._hub.cameras()]
        return web.json_response(rows, headers={"Cache-Control": "no-store"})

    async def _health(self, _: web.Request) -> web.Response:
        """Answer 200 while frames can be received, else 503."""
        if self._hub.failure or time.monotonic() - self._hub.turned > _STUCK_S:
            return web.Response(status=503, text="the receiving thread is stuck\n")
        return web.Response(text="ok\n")

    async def _snapshot(self, request: web.Request) -> web.Response:
        """Answer with a camera's newest picture, however old it is; its age is in a header."""
        name = request.match_info["name"]
        frame = self._hub.latest(name)
        if frame is None:
            raise self._unknown(name)
        headers = {"Cache-Control": "no-store", "X-Received": f"{frame.received_ns / 1e9:.3f}"}
        try:
            return web.Response(body=await _jpeg(frame), content_type="image/jpeg", headers=headers)
        except (CodecError, MissingExtraError) as error:
            raise web.HTTPUnsupportedMediaType(text=f"{name}: {error}\n") from error

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Answer with a camera's pictures as they come, as multipart/x-mixed-replace (RFC 2046 parts)."""
        name = request.match_info["name"]
        if name not in {status.name for status in self._hub.cameras()}:
            raise self._unknown(name)
        response = web.StreamResponse(
            headers={
                "Content-Type": f"multipart/x-mixed-replace; boundary={_BOUNDARY}",
                "Cache-Control": "no-store",
                "Connection": "close",
            }
        )
        await response.prepare(request)
        await response.write(f"--{_BOUNDARY}\r\n".encode())
        viewer = _Viewer(self._hub, name)
        self._viewers.add(viewer)
        try:
            while (frame := await viewer.next()) is not None:
                try:
                    jpeg = await _jpeg(frame)
                except (CodecError, MissingExtraError):  # an array that no JPEG can show, or nothing to make one
                    break
                # The boundary that ends a part goes with it, else browsers show every picture one late.
                head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
                await response.write(b"".join((head, jpeg, f"\r\n--{_BOUNDARY}\r\n".encode())))
        except ConnectionError:  # the viewer has left
            pass
        finally:
            self._viewers.discard(viewer)
            viewer.close()
        return response

    def _unknown(self, name: str) -> web.HTTPNotFound:
        names = ", ".join(status.name for status in self._hub.cameras()) or "none"
        return web.HTTPNotFound(text=f"no picture of a camera '{name}'; the cameras are: {names}\n")


class _Viewer:
    """A viewer's newest-only mailbox, with a way to wait for it in the event loop."""

    def __init__(self, hub: Hub, name: str) -> None:
        self._hub = hub
        self._ready = asyncio.Event()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._mailbox = hub.open_mailbox([name], on_ready=self._wake)

    def _wake(self) -> None:
        """Wake the event loop from the receiving thread."""
        with contextlib.suppress(RuntimeError):  # the wall has just closed
            self._loop.call_soon_threadsafe(self._ready.set)

    async def next(self) -> Frame | None:
        """Wait for the next frame; None when the wall closes."""
        while not self._closed and not self._mailbox.closed:
            frame = self._mailbox.take()
            if frame is not None:
                return frame
            self._ready.clear()
            if not self._mailbox:
                await self._ready.wait()
        return None

    def close(self) -> None:
        self._closed = True
        self._hub.close_mailbox(self._mailbox)
        self._ready.set()


async def _jpeg(frame: Frame) -> bytes | memoryview:
    """Return a frame's JPEG; encoding one from an array is kept off the event loop."""
    return frame.jpeg if frame.is_jpeg else await asyncio.to_thread(lambda: frame.jpeg)


@functools.cache
def _static_bytes(file: str) -> bytes:
    return resources.files(__package__).joinpath("static", file).read_bytes()


def _static(file: str, content_type: str) -> web.Response:
    headers = {"Cache-Control": "no-cache"}
    return web.Response(body=_static_bytes(file), content_type=content_type, charset="utf-8", headers=headers)
