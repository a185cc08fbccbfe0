"""The wall over real HTTP, with a real hub and real senders behind it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import http.client
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import aiohttp
import cv2
import numpy as np
import pytest
from aiohttp import web
from PIL import Image

import streamer
from streamer.cameras.pattern import Pattern
from streamer.codec import encode_jpeg
from streamer.presence import Status
from streamer.wall import Wall, _Page, _static_files
from streamer.wall.access import Protocol
from tests.conftest import HubClock, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from streamer.frame import Frame

SIZE = (176, 144)
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture
def hub(hub_clock: HubClock) -> Iterator[streamer.Hub]:
    with streamer.Hub("tcp://127.0.0.1:*", cameras=["pi9"], stale_after_s=60, gone_after_s=600) as hub:
        yield hub


@pytest.fixture
def wall(hub: streamer.Hub) -> Iterator[Wall]:
    with Wall(hub, "127.0.0.1", 0) as wall:
        yield wall


@pytest.fixture
def sender(hub: streamer.Hub) -> Iterator[streamer.Sender]:
    assert hub.endpoint
    with streamer.Sender(hub.endpoint, name="pi1") as sender:
        yield sender


def picture(name: str = "pi1") -> bytes:
    return Pattern(name, SIZE, 1000, 85).read()[0]


def send_one(hub: streamer.Hub, sender: streamer.Sender, jpeg: bytes) -> None:
    frames = sum(status.frames for status in hub.cameras())
    sender.send(jpeg)
    until(lambda: sum(status.frames for status in hub.cameras()) > frames)


def get(
    wall: Wall, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{wall.port}{path}", headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def viewers(wall: Wall) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(get(wall, "/api/viewers")[2])
    return rows


def test_api_has_a_row_for_every_camera(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, hub_clock: HubClock
) -> None:
    send_one(hub, sender, picture())
    status, headers, body = get(wall, "/api/cameras")
    rows = {row["name"]: row for row in json.loads(body)}
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert list(rows) == ["pi1", "pi9"]
    assert list(rows["pi1"]) == [field.name for field in dataclasses.fields(Status)]
    assert (rows["pi1"]["state"], rows["pi1"]["width"], rows["pi1"]["height"]) == ("LIVE", *SIZE)
    assert rows["pi1"]["address"] == "127.0.0.1"
    assert (rows["pi9"]["state"], rows["pi9"]["age_s"]) == ("WAITING", None)
    hub_clock.ahead_s = 100
    until(lambda: json.loads(get(wall, "/api/cameras")[2])[0]["state"] == "STALE")


def test_snapshot_is_the_sender_s_own_bytes(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    jpeg = picture()
    send_one(hub, sender, jpeg)
    status, headers, body = get(wall, "/snapshot/pi1.jpg")
    assert (status, headers["Content-Type"], headers["Cache-Control"], body) == (
        200,
        "image/jpeg",
        "no-cache, private",
        jpeg,
    )


def test_snapshot_that_a_client_has_already_is_not_sent_again(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender
) -> None:
    send_one(hub, sender, picture())
    _, headers, _ = get(wall, "/snapshot/pi1.jpg")
    assert headers["Last-Modified"].endswith("GMT")
    known = {"If-None-Match": headers["ETag"]}
    assert get(wall, "/snapshot/pi1.jpg", known)[::2] == (304, b"")
    later = picture("later")
    send_one(hub, sender, later)
    assert get(wall, "/snapshot/pi1.jpg", known)[::2] == (200, later)


def test_snapshot_says_how_old_it_is_and_too_old_is_refused(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, hub_clock: HubClock
) -> None:
    send_one(hub, sender, picture())
    assert get(wall, "/snapshot/pi1.jpg?max_age=90.5")[0] == 200
    hub_clock.ahead_s = 100
    status, headers, _ = get(wall, "/snapshot/pi1.jpg?max_age=200")
    assert (status, int(headers["Age"]) // 10) == (200, 10)
    status, headers, body = get(wall, "/snapshot/pi1.jpg?max_age=90.5")
    assert (status, headers["Retry-After"]) == (503, "1")
    assert re.fullmatch(rb"pi1: the newest picture is 10\d\.\d s old, max_age is 90\.5\n", body)


@pytest.mark.parametrize("value", ["soon", "-1", "nan", ""])
@pytest.mark.parametrize("path", ["/snapshot/pi1.jpg?max_age=", "/stream/pi1.mjpg?fps="])
def test_number_that_is_none_is_named(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, path: str, value: str
) -> None:
    send_one(hub, sender, picture())
    status, _, body = get(wall, path + value)
    assert status == 400
    assert body.startswith(f"{path.partition('?')[2][:-1]} is {value!r}: it must be a number from 0".encode())


def test_snapshot_of_a_raw_array_is_encoded(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    sender.send(np.full((48, 64, 3), (0, 0, 255), np.uint8))
    until(lambda: hub.latest("pi1"))
    status, _, body = get(wall, "/snapshot/pi1.jpg")
    image = Image.open(io.BytesIO(body))
    colour = image.getpixel((30, 20))
    assert isinstance(colour, tuple)
    assert (status, image.size) == (200, (64, 48))
    assert colour[0] > 240  # red: the array was BGR
    assert max(colour[1:]) < 20


def test_array_that_is_no_picture_is_said_to_be_none(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    sender.send(np.zeros((4, 4), np.float32))
    until(lambda: hub.latest("pi1"))
    for path in ("/snapshot/pi1.jpg", "/stream/pi1.mjpg"):
        status, _, body = get(wall, path)
        assert status == 415
        assert b"float32" in body


@pytest.mark.parametrize("path", ["/snapshot/pi7.jpg", "/stream/pi7.mjpg"])
def test_unknown_camera_is_told_which_there_are(wall: Wall, path: str) -> None:
    status, _, body = get(wall, path)
    assert status == 404
    assert body == b"no picture of a camera 'pi7'; the cameras are: pi9\n"


def test_page_and_its_files_come_from_the_hub_alone(wall: Wall) -> None:
    status, headers, body = get(wall, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"//" not in body.replace(b"http://www.w3.org", b"").replace(b"<!--", b"")
    for file in ("wall.js", "wall.css", "icon.svg"):
        assert f"/static/{file}".encode() in body
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for path in (Path(streamer.__file__).parent / "wall/static").iterdir():
        status, headers, body = get(wall, f"/static/{path.name}")
        if path.suffix == ".html":
            assert status == 404, "pages have addresses of their own"
        else:
            assert (status, body) == (200, path.read_bytes())
            assert headers["Content-Type"] == f"{types[path.suffix[1:]]}; charset=utf-8"
    assert get(wall, "/numbers")[0] == 200
    assert get(wall, "/static/../__init__.py")[0] == 404
    assert get(wall, "/static/__init__.py")[0] == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_follows_the_receiving_thread(
    method: str, hub: streamer.Hub, wall: Wall, hub_clock: HubClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert get(wall, "/healthz", method=method)[::2] == (200, b"ok\n" if method == "GET" else b"")
    hub_clock.ahead_s = -100  # it goes round no more since then
    until(lambda: get(wall, "/healthz", method=method)[0] == 503)
    hub_clock.ahead_s = 0
    until(lambda: get(wall, "/healthz", method=method)[0] == 200)
    monkeypatch.setattr(hub, "_failure", OSError("broken"))
    assert get(wall, "/healthz", method=method)[0] == 503


class Stream:
    """A viewer of /stream/NAME.mjpg that reads part by part."""

    def __init__(self, wall: Wall, name: str, buffer_bytes: int | None = None, query: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", wall.port, timeout=10)
        self._connection.connect()
        if buffer_bytes:
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self._connection.request("GET", f"/stream/{name}.mjpg{query}")
        self._answer = self._connection.getresponse()
        assert self._answer.headers.get_content_type() == "multipart/x-mixed-replace"
        self._boundary = f"--{self._answer.headers.get_param('boundary')}\r\n".encode()
        assert self._answer.readline() == self._boundary

    def part(self) -> bytes:
        headers: dict[bytes, bytes] = {}
        while (line := self._answer.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        assert headers[b"content-type"] == b"image/jpeg"
        body = self._answer.read(int(headers[b"content-length"]))
        assert self._answer.readline() == b"\r\n"
        # The boundary is there with the part, not only with the next one.
        assert self._answer.readline() == self._boundary
        return body

    def rest(self) -> bytes:
        return self._answer.read()

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


def test_stream_gives_every_picture_at_once(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    first, second = picture("one"), picture("two")
    send_one(hub, sender, first)
    stream = Stream(wall, "pi1")
    try:
        assert stream.part() == first
        send_one(hub, sender, second)
        assert stream.part() == second
    finally:
        stream.close()


def test_wall_closes_under_its_viewers(hub: streamer.Hub, sender: streamer.Sender) -> None:
    with Wall(hub, "127.0.0.1", 0) as wall:
        send_one(hub, sender, picture())
        stream = Stream(wall, "pi1")
        stream.part()
    assert stream.rest() == b""
    stream.close()


_HEAD = b" HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /stream/pi1.mjpg" + _HEAD + b"\r\n",
        (b"GET /snapshot/pi1.jpg" + _HEAD + b"\r\n") * 20,
        b"POST /login" + _HEAD + b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\nabc",
    ],
    ids=["stream", "snapshots", "form"],
)
def test_wall_closes_though_who_asked_does_not_go_on(
    request_: bytes, hub: streamer.Hub, sender: streamer.Sender
) -> None:
    noise = encode_jpeg(np.random.default_rng(1).integers(0, 255, (720, 1280, 3), np.uint8), 90)
    send_one(hub, sender, noise)
    wall = Wall(hub, "127.0.0.1", 0)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", wall.port))
        client.sendall(request_)
        if request_.startswith(b"GET"):
            assert client.recv(12) == b"HTTP/1.1 200"
            for _ in range(10):  # more than the sockets' buffers hold
                send_one(hub, sender, noise)
        began = time.monotonic()
        wall.close()
        assert time.monotonic() - began < 5
        client.settimeout(5)
        with contextlib.suppress(ConnectionError):
            while client.recv(1 << 20):  # until the end, though the wall is still there
                pass


def test_wall_closes_though_somebody_comes_in_the_last_moment(
    hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut_down = web.Server.shutdown
    here, there = socket.socketpair()

    async def let_one_in(server: Any, timeout: float | None = None) -> None:
        await shut_down(server, timeout)
        monkeypatch.setattr(web.Server, "shutdown", shut_down)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: Protocol(server, loop=loop), here)

    monkeypatch.setattr(web.Server, "shutdown", let_one_in)
    wall = Wall(hub, "127.0.0.1", 0)
    with here, there:
        there.sendall(b"POST /login" + _HEAD + b"Content-Length: 100\r\n\r\nabc")
        began = time.monotonic()
        wall.close()
        assert time.monotonic() - began < 5


def test_viewer_that_does_not_read_delays_nobody_and_gets_the_newest(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender
) -> None:
    noise = np.random.default_rng(1)
    pictures = [encode_jpeg(noise.integers(0, 255, (480, 640, 3), np.uint8), 95) for _ in range(2)]
    send_one(hub, sender, pictures[0])
    slow = Stream(wall, "pi1", buffer_bytes=65536)
    quick = Stream(wall, "pi1")
    try:
        quick.part()
        for turn in range(60):  # more than the sockets' buffers hold
            send_one(hub, sender, pictures[turn % 2])
            assert quick.part() == pictures[turn % 2]
        last = picture("last")
        send_one(hub, sender, last)
        assert quick.part() == last
        seen = 0
        while slow.part() != last:
            seen += 1
        assert seen <= 2  # the others were left out: they waited neither here nor in the kernel
    finally:
        slow.close()
        quick.close()


def test_port_that_is_taken_is_named(hub: streamer.Hub, wall: Wall) -> None:
    for host, port, error in (
        ("127.0.0.1", wall.port, f"127.0.0.1:{wall.port}: Address already in use"),
        ("192.0.2.1", 0, "192.0.2.1:0: Cannot assign requested address"),
        ("fe80::1%none", 0, "[fe80::1%none]:0: Cannot assign requested address"),
    ):
        with pytest.raises(streamer.TransportError) as refused, Wall(hub, host, port):
            pass
        assert str(refused.value) == f"cannot listen on http {error}"


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("a..b", 0)])
def test_what_is_no_address_is_named(hub: streamer.Hub, host: str, port: int) -> None:
    with pytest.raises(streamer.TransportError, match=rf"^cannot listen on http {host}:{port}: \S"):
        Wall(hub, host, port)


def test_wall_that_cannot_even_begin_says_why(hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.wall.Door", None)
    # As of one that fails later, so that a command ends with a line and not with a traceback.
    failure = r"^the page has failed: 'NoneType' object is not callable$"
    with pytest.raises(streamer.StreamerError, match=failure) as caught:
        Wall(hub, "127.0.0.1", 0)
    assert not isinstance(caught.value, streamer.TransportError), "its address is right"


def test_address_of_a_family_that_the_system_has_not_is_named(
    hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Socket(socket.socket):
        def __init__(self, family: int = -1, *rest: Any, **options: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *rest, **options)

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(streamer.TransportError, match=r"http \[::1\]:0: Cannot assign requested address$"):
        Wall(hub, "::1", 0)


def test_many_viewers_leave_nothing_behind(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    send_one(hub, sender, picture())
    streams = [Stream(wall, "pi1") for _ in range(8)]
    for stream in streams:
        stream.part()
    assert len(viewers(wall)) == 8
    for stream in streams:
        stream.close()
    until(lambda: not viewers(wall) and not hub._mailboxes)  # though no picture goes out


@pytest.mark.parametrize("by_socket", [False, True], ids=["TCP", "socket"])
def test_viewers_of_a_camera_that_sends_nothing_leave_nothing_behind(
    hub: streamer.Hub, sender: streamer.Sender, tmp_path: Path, by_socket: bool
) -> None:
    send_one(hub, sender, picture())
    with Wall(hub, "127.0.0.1", 0, socket=tmp_path / "hub.sock") as wall:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX if by_socket else socket.AF_INET) as client:
                client.connect(str(tmp_path / "hub.sock") if by_socket else ("127.0.0.1", wall.port))
                client.sendall(b"GET /stream/pi1.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(12) == b"HTTP/1.1 200"
        until(lambda: not viewers(wall) and not hub._mailboxes and not wall._streams)


def test_stream_of_a_camera_that_is_gone_ends_and_none_begins(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, hub_clock: HubClock
) -> None:
    for path in ("/stream/pi9.mjpg", "/snapshot/pi9.jpg"):
        assert get(wall, path)[::2] == (503, b"pi9 is WAITING: it sends no pictures\n")
    send_one(hub, sender, picture())
    stream = Stream(wall, "pi1")
    stream.part()
    hub_clock.ahead_s = 1000
    assert stream.rest() == b""
    stream.close()
    assert get(wall, "/stream/pi1.mjpg")[::2] == (503, b"pi1 is GONE: it sends no pictures\n")
    send_one(hub, sender, again := picture())
    stream = Stream(wall, "pi1")
    assert stream.part() == again
    stream.close()


def test_hub_that_closes_first_ends_the_streams() -> None:
    with streamer.Hub("tcp://127.0.0.1:*") as hub, Wall(hub, "127.0.0.1", 0) as wall:
        assert hub.endpoint
        with streamer.Sender(hub.endpoint, name="pi1") as sender:
            send_one(hub, sender, picture())
        stream = Stream(wall, "pi1")
        stream.part()
        ended: list[Any] = []
        reader = threading.Thread(target=lambda: ended.append(stream.rest()))
        reader.start()
        hub.close()
        reader.join(10)
        assert ended == [b""]
        stream.close()
        late = Stream(wall, "pi1")
        late.rest()
        late.close()


def test_head_of_a_stream_is_an_answer_not_a_stream(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    send_one(hub, sender, picture())
    with socket.create_connection(("127.0.0.1", wall.port), 10) as client:
        client.sendall(b"HEAD /stream/pi1.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))  # to the end, which comes at once
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"\r\nConnection: close" in head
    assert body == b""
    assert viewers(wall) == []


class Playing:
    """Sends a test card, 30 pictures a second, until it is left."""

    def __init__(self, sender: streamer.Sender) -> None:
        self._sender = sender
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._play)

    def _play(self) -> None:
        card = Pattern("pi1", (320, 240), 30, 85)
        while not self._ended.is_set():
            self._sender.send(card.read()[0])

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_stream_at_a_lower_rate(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    with Playing(sender):
        until(lambda: hub.latest("pi1"))
        stream = Stream(wall, "pi1", query="?fps=10")
        try:
            stream.part()
            began = time.monotonic()
            for _ in range(5):
                stream.part()
            assert time.monotonic() - began > 0.4
        finally:
            stream.close()


def test_opencv_reads_the_stream(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    with Playing(sender):
        until(lambda: hub.latest("pi1"))
        capture = cv2.VideoCapture(f"http://127.0.0.1:{wall.port}/stream/pi1.mjpg")
        try:
            for _ in range(5):
                found, image = capture.read()
                assert found
                assert image.shape == (240, 320, 3)
        finally:
            capture.release()


@pytest.mark.skipif(not shutil.which("ffmpeg") and "CI" not in os.environ, reason="ffmpeg is not installed")
def test_ffmpeg_reads_the_stream(hub: streamer.Hub, wall: Wall, sender: streamer.Sender, tmp_path: Path) -> None:
    with Playing(sender):
        until(lambda: hub.latest("pi1"))
        source = f"http://127.0.0.1:{wall.port}/stream/pi1.mjpg"
        command = ["ffmpeg", "-v", "error", "-i", source, "-frames:v", "5", str(tmp_path / "%d.png")]
        subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL)
    images = [Image.open(path).tobytes() for path in sorted(tmp_path.iterdir())]
    assert len(set(images)) == 5


# -- the page's socket


def with_socket(wall: Wall, *scenes: Callable[[aiohttp.ClientWebSocketResponse], Awaitable[None]]) -> None:
    """Connect a page for each scene, and play the scenes side by side."""

    async def one(session: aiohttp.ClientSession, scene: Callable[[Any], Awaitable[None]]) -> None:
        async with session.ws_connect(f"http://127.0.0.1:{wall.port}/ws", max_msg_size=0) as page:
            await scene(page)

    async def everything() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(10)) as session:
            await asyncio.gather(*(one(session, scene) for scene in scenes))

    asyncio.run(asyncio.wait_for(everything(), 30))


async def next_table(page: aiohttp.ClientWebSocketResponse) -> list[dict[str, Any]]:
    while True:
        message = await page.receive()
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
        if message.type is aiohttp.WSMsgType.TEXT and "cameras" in (news := json.loads(message.data)):
            rows: list[dict[str, Any]] = news["cameras"]
            return rows


async def next_picture(page: aiohttp.ClientWebSocketResponse) -> tuple[str, float, bytes]:
    """Return the name, the hub's stamp in ms and the JPEG of the next picture."""
    while True:
        message = await page.receive()
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
        if message.type is aiohttp.WSMsgType.BINARY:
            version, length, received_ms = struct.unpack_from("<BBd", message.data)
            assert version == 1
            return message.data[10 : 10 + length].decode(), received_ms, message.data[10 + length :]


@pytest.mark.parametrize(("unread", "under_way", "is_let_go"), [(5, 4.5, False), (5, 3.5, True), (0.5, 0, False)])
def test_page_may_leave_its_pictures_unread_and_a_megabyte_more(
    unread: float, under_way: float, is_let_go: bool
) -> None:
    transport = mock.Mock(get_write_buffer_size=lambda: int(unread * 2**20))
    _Page(mock.Mock(under_way_bytes=int(under_way * 2**20)), transport).check()
    assert transport.abort.called == is_let_go


def test_page_is_another_once_one_of_its_files_is(wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    before, files = wall._page_digest, _static_files()
    monkeypatch.setattr("streamer.wall._static_files", lambda: files | {"wall.js": files["wall.js"] + b"\n"})
    del wall._page_digest
    assert wall._page_digest != before


def test_socket_brings_every_camera_untouched(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    assert hub.endpoint
    first, second = picture("one"), picture("two")
    with streamer.Sender(hub.endpoint, name="pi2") as other:
        send_one(hub, sender, first)
        send_one(hub, other, second)

        async def scene(page: aiohttp.ClientWebSocketResponse) -> None:
            hello = json.loads((await page.receive()).data)["hello"]
            assert re.fullmatch("[0-9a-f]{16}", hello.pop("page"))
            own = {"stale_after_s": 60, "endpoint": hub.endpoint}
            assert hello == own, "without a version: older pages take this one for want of it"
            assert [row["name"] for row in await next_table(page)] == ["pi1", "pi2", "pi9"]
            assert viewers(wall)[0]["frames"] == 0, "nothing was asked for"
            await page.send_json({"want": {"pi1": 60, "pi2": 60}})
            pictures = [await next_picture(page) for _ in range(2)]
            assert {name: jpeg for name, _, jpeg in pictures} == {"pi1": first, "pi2": second}
            frame = hub.latest("pi1")
            assert frame
            assert {name: stamp for name, stamp, _ in pictures}["pi1"] == frame.received_ns / 1e6

        with_socket(wall, scene)


@pytest.mark.parametrize("size", [111, 112, 113, 65_521, 65_522, 65_523, 110_000])
def test_message_of_any_length(hub: streamer.Hub, wall: Wall, sender: streamer.Sender, size: int) -> None:
    """Head and name take 13 bytes more; at 126 and at 65,536 the framing has another form."""
    start_of_frame = b"\xff\xc0\x00\x0b\x08\x00\x10\x00\x10\x01\x01\x11\x00"
    jpeg = b"\xff\xd8" + start_of_frame + bytes(size - 17) + b"\xff\xd9"
    assert len(jpeg) == size
    send_one(hub, sender, jpeg)

    async def scene(page: aiohttp.ClientWebSocketResponse) -> None:
        await page.send_json({"want": {"pi1": 1000}})
        assert (await next_picture(page))[2] == jpeg

    with_socket(wall, scene)


def test_page_may_say_any_amount_in_time(wall: Wall) -> None:
    async def scene(page: aiohttp.ClientWebSocketResponse) -> None:
        for _ in range(10):  # more than a request may have, and more than is held
            await page.send_json({"shown": ["a" * 100_000]})
        await page.send_json({"want": {"pi1": 1}})
        until(lambda: viewers(wall)[0]["cameras"] == 1)

    with_socket(wall, scene)


def test_next_picture_comes_when_the_last_is_shown(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    async def scene(page: aiohttp.ClientWebSocketResponse) -> None:
        await page.send_json({"want": {"pi1": 1000}})
        send_one(hub, sender, first := picture("first"))
        assert (await next_picture(page))[2] == first
        for number in range(3):
            send_one(hub, sender, last := picture(f"{number}"))
        assert viewers(wall)[0]["frames"] == 1
        await page.send_json({"shown": ["pi1"]})
        assert (await next_picture(page))[2] == last

    with_socket(wall, scene)


def test_page_that_nobody_sees_costs_nothing(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, hub_clock: HubClock
) -> None:
    async def scene(page: aiohttp.ClientWebSocketResponse) -> None:
        await page.send_json({"want": {"pi1": 1000}})
        send_one(hub, sender, picture("first"))
        await next_picture(page)
        await page.send_json({"want": None, "shown": ["pi1"]})
        until(lambda: viewers(wall)[0]["cameras"] == 0)
        sent = viewers(wall)[0]["frames"]
        send_one(hub, sender, picture("unseen"))
        # The camera goes STALE, which is told at once, but not here.
        hub_clock.ahead_s += 100
        until(lambda: hub.cameras()[0].state == "STALE")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(page.receive(), 1.2)
        assert viewers(wall)[0]["frames"] == sent
        await page.send_json({"want": {"pi1": 1000}})
        assert (await next_table(page))[0]["state"] == "STALE"

    with_socket(wall, scene)


@pytest.mark.parametrize("state", ["STALE", "GONE"])
def test_last_picture_of_a_stale_camera_is_given_and_of_one_that_is_gone_is_not(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, hub_clock: HubClock, state: str
) -> None:
    async def scene(page: aiohttp.ClientWebSocketResponse) -> None:
        send_one(hub, sender, picture())
        hub_clock.ahead_s += 100 if state == "STALE" else 1000
        until(lambda: hub.cameras()[0].state == state)
        await page.send_json({"want": {"pi1": 1000}})
        until(lambda: viewers(wall)[0]["cameras"] == 1)
        assert viewers(wall)[0]["frames"] == (1 if state == "STALE" else 0)

    with_socket(wall, scene)


def test_change_of_state_is_told_at_once(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, hub_clock: HubClock
) -> None:
    async def scene(page: aiohttp.ClientWebSocketResponse) -> None:
        send_one(hub, sender, picture())
        while (await next_table(page))[0]["state"] != "LIVE":
            pass
        hub_clock.ahead_s += 100
        assert [(await next_table(page))[0]["state"] for _ in range(2)][-1] == "STALE"

    with_socket(wall, scene)


@pytest.mark.parametrize(
    "command",
    [
        "nonsense", "[]", "{}", '{"want": 3}', '{"want": {"pi1": "often"}}', '{"want": {"pi1": 0}}',
        '{"want": {"pi1": NaN}}', '{"want": {"pi1": 1001}}',
        '{"want": {"pi1": null}}', '{"shown": "pi1"}', '{"other": 1}', "[" * 5000, b"binary",
        '{"want": {"pi1": "%s"}}' % ("ö" * 99),
    ],
    ids=lambda command: repr(command)[:24],
)  # fmt: skip
def test_page_that_talks_rubbish_is_told_so(wall: Wall, command: str | bytes) -> None:
    async def scene(page: aiohttp.ClientWebSocketResponse) -> None:
        await (page.send_bytes(command) if isinstance(command, bytes) else page.send_str(command))
        while (message := await page.receive()).type is aiohttp.WSMsgType.TEXT:
            pass
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert message.data == aiohttp.WSCloseCode.POLICY_VIOLATION
        assert str(message.extra).startswith("not understood: ")

    with_socket(wall, scene)
    until(lambda: viewers(wall) == [])


def test_page_that_never_shows_anything_holds_up_no_other(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender
) -> None:
    pictures: Sequence[bytes] = [picture(f"{number}") for number in range(20)]
    stuck_is_there = asyncio.Event()
    done = asyncio.Event()

    async def stuck(page: aiohttp.ClientWebSocketResponse) -> None:
        await page.send_json({"want": {"pi1": 1000}})
        stuck_is_there.set()
        await done.wait()

    async def quick(page: aiohttp.ClientWebSocketResponse) -> None:
        await stuck_is_there.wait()
        await page.send_json({"want": {"pi1": 1000}})
        for each in pictures:
            send_one(hub, sender, each)
            assert (await next_picture(page))[2] == each
            await page.send_json({"shown": ["pi1"]})
        assert [row["frames"] for row in viewers(wall)] == [1, len(pictures)]
        done.set()

    with_socket(wall, stuck, quick)


def test_page_that_lies_about_what_it_has_shown_is_let_go(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender
) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (480, 640, 3), np.uint8)
    large = encode_jpeg(noise, 95)

    async def liar() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", wall.port, limit=1024)
        writer.write(HANDSHAKE)
        for said in ['{"want": {"pi1": 1000}}', *['{"shown": ["pi1"]}'] * 200]:
            send_one(hub, sender, large)
            writer.write(bytes([0x81, 0x80 | len(said)]) + bytes(4) + said.encode())
            await asyncio.sleep(0)
            if said[2] == "s" and not viewers(wall):
                break
        else:
            pytest.fail("it is still there")
        writer.close()

    asyncio.run(asyncio.wait_for(liar(), 60))


def test_array_is_encoded_once_for_all(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Any] = []

    def encode(image: Any, quality: int) -> bytes:
        encoded.append(image)
        return bytes(encode_jpeg(image, quality))

    monkeypatch.setattr("streamer.codec.encode_jpeg", encode)

    together = asyncio.Barrier(3)

    async def scene(page: aiohttp.ClientWebSocketResponse) -> None:
        await page.send_json({"want": {"pi1": 1000}})
        await next_table(page)
        if await together.wait() == 0:
            sender.send(np.full((48, 64, 3), 90, np.uint8))
        _, _, jpeg = await next_picture(page)
        assert Image.open(io.BytesIO(jpeg)).size == (64, 48)
        assert {viewer["bytes"] for viewer in viewers(wall)} == {len(jpeg)}, "what it was sent, not the array"
        await together.wait()

    with_socket(wall, scene, scene, scene)
    assert len(encoded) == 1


def test_while_an_array_is_encoded_the_newest_waits(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    go_on = threading.Event()

    def encode(image: Any, quality: int) -> bytes:
        encoded.append(int(image[0, 0, 0]))
        assert go_on.wait(10)
        return bytes(encode_jpeg(image, quality))

    def send(shade: int) -> None:
        sender.send(np.full((48, 64, 3), shade, np.uint8))
        until(lambda: encoded == [shade] or is_next(wall._fan_out._encoding.get("pi1"), shade))

    def is_next(frame: Frame | None, shade: int) -> bool:
        return frame is not None and frame.image[0, 0, 0] == shade

    monkeypatch.setattr("streamer.codec.encode_jpeg", encode)

    async def scene(page: aiohttp.ClientWebSocketResponse) -> None:
        await page.send_json({"want": {"pi1": 1000}})
        until(lambda: viewers(wall)[0]["cameras"] == 1)
        for shade in (10, 20, 30):
            send(shade)
        go_on.set()
        for _ in range(2):
            await next_picture(page)
            await page.send_json({"shown": ["pi1"]})
        assert encoded == [10, 30]

    with_socket(wall, scene)


def test_wall_closes_under_its_pages(hub: streamer.Hub, sender: streamer.Sender) -> None:
    with Wall(hub, "127.0.0.1", 0) as wall:
        send_one(hub, sender, picture())

        async def polite(page: aiohttp.ClientWebSocketResponse) -> None:
            await page.send_json({"want": {"pi1": 1000}})
            await next_picture(page)
            closing = asyncio.get_running_loop().run_in_executor(None, wall.close)
            while (message := await page.receive()).type is not aiohttp.WSMsgType.CLOSE:
                pass
            assert (message.data, message.extra) == (aiohttp.WSCloseCode.GOING_AWAY, "the hub ends")
            await closing

        with_socket(wall, polite)


def test_wall_closes_though_a_page_does_not_answer(hub: streamer.Hub) -> None:
    wall = Wall(hub, "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", wall.port)) as silent:
        silent.sendall(HANDSHAKE)
        assert silent.recv(12) == b"HTTP/1.1 101"
        until(lambda: len(viewers(wall)) == 1)
        began = time.monotonic()
        wall.close()
        assert time.monotonic() - began < 2


def test_last_minutes_are_kept(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    send_one(hub, sender, picture())
    past = until(lambda: json.loads(get(wall, "/api/history")[2])["cameras"].get("pi1") and get(wall, "/api/history"))
    table = json.loads(past[2])
    assert (table["page"], table["every_s"], table["points"]) == (wall._page_digest, 2.0, 150)
    assert set(table["cameras"]) == {"pi1", "pi9"}
    assert set(table["cameras"]["pi1"]) == {"fps", "latency_ms", "bytes_per_s"}
    assert table["cameras"]["pi9"]["latency_ms"][0] is None


# -- short of what the system gives


def test_arrays_and_metrics_are_served_while_the_system_allows_no_more_threads(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, no_more_threads: Callable[[], None]
) -> None:
    sender.send(np.full((48, 64, 3), 90, np.uint8))
    until(lambda: hub.latest("pi1"))
    no_more_threads()
    for path in ("/snapshot/pi1.jpg", *["/metrics"] * 5):
        assert get(wall, path)[0] == 200


def test_a_request_that_the_system_has_not_enough_for_is_told_so_and_the_log_in_one_line(
    wall: Wall, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as starved:
        starved.setattr(asyncio, "to_thread", mock.AsyncMock(side_effect=RuntimeError("can't start new thread")))
        for _ in range(3):
            status, headers, body = get(wall, "/metrics")
            assert (status, headers["Retry-After"], body) == (503, "1", b"the system allows no more threads\n")
    assert get(wall, "/metrics")[0] == 200
    why = "from 127.0.0.1: a request cannot be answered: the system allows no more threads"
    until(lambda: caplog.messages)
    assert caplog.messages == [f"refused 3 {why}"]


def test_the_page_s_files_may_vanish_once_it_is_served(hub: streamer.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _static_files.cache_clear()
    with Wall(hub, "127.0.0.1", 0) as wall:
        monkeypatch.setattr("streamer.wall.resources.files", mock.Mock(side_effect=FileNotFoundError))
        assert get(wall, "/")[0] == 200
