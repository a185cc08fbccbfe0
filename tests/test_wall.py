"""The wall over real HTTP, with a real hub and real senders behind it."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import streamer
from streamer.cameras.pattern import Pattern
from streamer.codec import encode_jpeg
from streamer.wall import Wall
from tests.conftest import HubClock, until

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = (176, 144)


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


def get(wall: Wall, path: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{wall.port}{path}", timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_api_has_a_row_for_every_camera(
    hub: streamer.Hub, wall: Wall, sender: streamer.Sender, hub_clock: HubClock
) -> None:
    send_one(hub, sender, picture())
    status, headers, body = get(wall, "/api/cameras")
    rows = {row["name"]: row for row in json.loads(body)}
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert list(rows) == ["pi1", "pi9"]
    fields = "name state fps age_s latency_ms frames dropped lost width height bytes_per_s address"
    assert set(rows["pi1"]) == set(fields.split())
    assert (rows["pi1"]["state"], rows["pi1"]["width"], rows["pi1"]["height"]) == ("LIVE", *SIZE)
    assert rows["pi1"]["address"] == "127.0.0.1"
    assert (rows["pi9"]["state"], rows["pi9"]["age_s"]) == ("WAITING", None)
    hub_clock.ahead_s = 100
    until(lambda: json.loads(get(wall, "/api/cameras")[2])[0]["state"] == "STALE")


def test_snapshot_is_the_sender_s_own_bytes(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    jpeg = picture()
    send_one(hub, sender, jpeg)
    status, headers, body = get(wall, "/snapshot/pi1.jpg")
    assert (status, headers["Content-Type"], headers["Cache-Control"], body) == (200, "image/jpeg", "no-store", jpeg)


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
    status, _, body = get(wall, "/snapshot/pi1.jpg")
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
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert b"//" not in body.replace(b"http://www.w3.org", b"").replace(b"<!--", b"")
    for file in ("wall.js", "wall.css", "icon.svg"):
        assert f"/static/{file}".encode() in body
        assert get(wall, f"/static/{file}")[0] == 200
    assert get(wall, "/static/../__init__.py")[0] == 404
    assert get(wall, "/static/__init__.py")[0] == 404


def test_health_follows_the_receiving_thread(hub: streamer.Hub, wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get(wall, "/healthz")[::2] == (200, b"ok\n")
    monkeypatch.setattr(hub, "_failure", OSError("broken"))
    assert get(wall, "/healthz")[0] == 503


class Stream:
    """A viewer of /stream/NAME.mjpg that reads part by part."""

    def __init__(self, wall: Wall, name: str, buffer_bytes: int | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", wall.port, timeout=10)
        self._connection.connect()
        if buffer_bytes:
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self._connection.request("GET", f"/stream/{name}.mjpg")
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
        assert seen < 55  # the others were left out, not queued
    finally:
        slow.close()
        quick.close()


def test_port_that_is_taken_is_named(hub: streamer.Hub, wall: Wall) -> None:
    with pytest.raises(streamer.TransportError, match=f"cannot listen on http 127.0.0.1:{wall.port}: "):
        Wall(hub, "127.0.0.1", wall.port)


def test_many_viewers_leave_nothing_behind(hub: streamer.Hub, wall: Wall, sender: streamer.Sender) -> None:
    send_one(hub, sender, picture())
    streams = [Stream(wall, "pi1") for _ in range(8)]
    for stream in streams:
        stream.part()
    assert len(wall._viewers) == 8
    for stream in streams:
        stream.close()

    def nobody_is_left() -> bool:
        send_one(hub, sender, picture())  # a viewer who left is noticed when a picture goes out
        return not wall._viewers and not hub._mailboxes

    until(nobody_is_left)


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
