"""The hub and its page under attack, on real sockets: a good camera's frames go on, and every attack is told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import gzip
import os
import re
import resource
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import hypothesis
import pytest
import zmq
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from hypothesis import strategies as st

from streamer import presence, wire
from streamer.hub import Hub
from streamer.sender import Sender
from streamer.transport import connections, sockets
from streamer.wall import Wall, access, door
from tests.conftest import until
from tests.fuzz.targets import HANDSHAKE, framed
from tests.peers import JPEG, LOCAL, WAIT_S, Program, header, listener, raw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Certificate

STRANGER = "127.0.0.2"
NULL_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


class Good:
    """A camera that sends all the time."""

    def __init__(self, hub: Hub) -> None:
        assert hub.endpoint
        self._hub = hub
        self._stop = threading.Event()
        self._sender = Sender(hub.endpoint, "good")
        self._thread = threading.Thread(target=self._send)
        self._thread.start()
        self.goes_on()

    def _send(self) -> None:
        while not self._stop.wait(0.02):
            self._sender.send(JPEG)

    def _row(self) -> tuple[int, int]:
        return next(((row.frames, row.reconnects) for row in self._hub.cameras() if row.name == "good"), (0, 0))

    def goes_on(self) -> None:
        """Wait for ten more of its frames, and see that it never had to connect again."""
        frames = self._row()[0]
        until(lambda: self._row()[0] >= frames + 10, WAIT_S)
        assert self._row()[1] == 0

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._sender.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(LOCAL) as hub:
        yield hub


@pytest.fixture
def good(hub: Hub) -> Iterator[Good]:
    good = Good(hub)
    yield good
    good.goes_on()
    good.close()


def dial(endpoint: str | int, source: str = STRANGER) -> socket.socket:
    """Open a TCP connection to a hub's endpoint, or to a port."""
    port = int(str(endpoint).rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), WAIT_S, source_address=(source, 0))


def zmtp(endpoint: str) -> socket.socket:
    """Open a connection and complete ZMTP's handshake (RFC 23), as a DEALER without encryption."""
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
    connection = dial(endpoint)
    connection.sendall(NULL_GREETING + bytes([4, len(ready)]) + ready)
    answer = b""
    while b"Identity" not in answer and (got := connection.recv(1000)):
        answer += got
    return connection


def is_ended(connection: socket.socket) -> bool:
    """Whether the other side ends a connection."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return True


# -- messages


PART = st.binary(max_size=40) | st.sampled_from([header("pi1"), JPEG, b"", b"\0" * 5000])


@hypothesis.settings(max_examples=150, deadline=None, database=None, derandomize=True)
@hypothesis.given(parts=st.lists(PART, min_size=1, max_size=100))
def test_any_number_of_parts_has_its_reply(shared: tuple[Hub, zmq.Socket[bytes]], parts: list[bytes]) -> None:
    _, peer = shared
    peer.send_multipart(parts)
    (reply,) = peer.recv_multipart()
    assert reply[:3] in (b"OK", b"ERR")
    assert (reply == b"OK") <= (len(parts) == 2)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Hub, zmq.Socket[bytes]]]:
    with Hub(LOCAL) as hub:
        assert hub.endpoint
        with raw(zmq.REQ, connect=hub.endpoint) as peer:
            yield hub, peer


@pytest.mark.parametrize(
    "said",
    [b"\1\0" + b"\1\1\5\1head\5\0body", b"\xff" + bytes(8) + b"\x7f\1\5\0\0" + b"\1\0\1\4head\0\4body"],
    ids=["ZMTP 1", "ZMTP 2"],
)
def test_a_peer_of_an_old_protocol_is_answered_like_any_other(hub: Hub, good: Good, said: bytes) -> None:
    assert hub.endpoint
    with dial(hub.endpoint) as old:
        old.sendall(said)
        answer = b""
        while b"ERR header is not JSON" not in answer and (got := old.recv(1000)):
            answer += got
        assert answer.endswith(b"ERR header is not JSON")
    good.goes_on()


def test_a_message_of_200_mb_is_told_why_it_is_refused(hub: Hub, good: Good) -> None:
    assert hub.endpoint
    before = resident_mb()
    with raw(zmq.REQ, connect=hub.endpoint) as peer:
        peer.send_multipart([header("large"), bytes(200_000_000)], copy=False)
        good.goes_on()
        assert peer.recv() == b"ERR payload of 200000000 bytes, at most 33554432 are allowed"
        peer.send_multipart([header("large"), JPEG])
        assert peer.recv() == b"OK"
    until(lambda: resident_mb() < before + 100)


@pytest.mark.parametrize("at_once", [32, 1], ids="{} looked at at once".format)
def test_a_message_without_an_end_is_ended_and_told(
    hub: Hub, good: Good, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, at_once: int
) -> None:
    assert hub.endpoint
    monkeypatch.setattr(connections, "_LOOKED_AT_ONCE", at_once)
    monkeypatch.setattr(connections, "UNFINISHED_MAX_BYTES", 20_000_000)
    with zmtp(hub.endpoint) as endless, zmtp(hub.endpoint) as slow:
        part = b"\x03" + struct.pack(">Q", 100_000) + bytes(100_000)
        slow.sendall(part * 20)
        with pytest.raises(ConnectionError):  # noqa: PT012 - it ends while we send
            while True:
                endless.sendall(part)
                time.sleep(0.0005)  # 200 MB/s: a quarter of a second is let through
        until(lambda: re.search(r"refused 1 from 127.0.0.2: its message had no end after \d+ MB", caplog.text))
        slow.sendall(b"\x01\0" + b"\0\0")  # that one, with a tenth, may end its own
        while b"ERR a message must have two parts" not in slow.recv(1000):
            pass
    until(lambda: hub.refused == 2)  # counted after the reply


def test_what_is_subscribed_to_and_has_no_end_is_ended_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "UNFINISHED_MAX_BYTES", 20_000_000)
    ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 3) + b"PUB"
    with listener() as (server, endpoint), Hub(None, subscribe=endpoint):
        with server.accept()[0] as publisher:
            publisher.sendall(NULL_GREETING + bytes([4, len(ready)]) + ready)
            said = b""
            while not said.endswith(b"\0\x01\x01"):  # the subscription: before it no publisher sends anything
                more = publisher.recv(1000)
                assert more, said
                said += more
            with pytest.raises(ConnectionError):  # noqa: PT012 - it ends while we send
                while True:
                    publisher.sendall(b"\x03" + struct.pack(">Q", 100_000) + bytes(100_000))
                    time.sleep(0.0005)
        until(lambda: re.search(r"refused 1 from 127.0.0.1: its message had no end after \d+ MB", caplog.text))


# -- connections


def test_who_says_nothing_is_ended_and_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sockets.OPTIONS, zmq.HANDSHAKE_IVL, 300)
    with Hub(LOCAL) as hub:
        assert hub.endpoint
        for greeting in (b"", b"\xff", NULL_GREETING):
            with dial(hub.endpoint) as silent:
                silent.sendall(greeting)
                assert is_ended(silent)
        until(lambda: hub.refused >= 3)
        until(lambda: "from 127.0.0.2: it did not complete ZMTP's handshake" in caplog.text)


def test_a_camera_that_is_silent_while_its_frame_takes_long_on_a_slow_line_is_kept(hub: Hub) -> None:
    head = header("slow")
    message = b"\x01\0\x01" + bytes([len(head)]) + head + b"\x02" + struct.pack(">Q", len(JPEG)) + JPEG
    with zmtp(str(hub.endpoint)) as slow:
        slow.sendall(message[:-1])
        ends = time.monotonic() + 5  # two more than a hub has to answer its sender's heartbeats
        while time.monotonic() < ends:
            assert slow.recv(1000)  # the hub's, which the rest of the frame delays the answers to
        slow.sendall(message[-1:])
        until(lambda: hub.latest("slow"))


def test_a_stranger_who_takes_all_connections_gets_nobody_elses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 40)
    with ExitStack() as stack:
        hub = stack.enter_context(Hub(LOCAL))
        assert hub.endpoint
        good = Good(hub)
        stack.callback(good.close)
        crowd = [stack.enter_context(zmtp(hub.endpoint)) for _ in range(150)]
        good.goes_on()
        with raw(zmq.REQ, connect=hub.endpoint) as newcomer:
            newcomer.send_multipart([header("new"), JPEG])
            assert newcomer.recv() == b"OK"
        until(lambda: hub.refused >= 112)
        until(lambda: "from 127.0.0.2: of 40 connections it has most" in caplog.text)
        assert sum(1 for connection in crowd[40:] if is_ended(connection)) == 110
        good.goes_on()


@pytest.mark.skipif(sys.platform != "linux", reason="asks for /proc")
@pytest.mark.parametrize(("allowed", "holds"), [(8192, 4096), (1024, 1024)])
def test_the_table_of_descriptors_need_not_grow_while_connections_come(allowed: int, holds: int) -> None:
    program = f"""if True:
        import pathlib, re, resource, streamer
        resource.setrlimit(resource.RLIMIT_NOFILE, ({allowed}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        with streamer.Hub("{LOCAL}"):
            print(re.search("FDSize:(.*)", pathlib.Path("/proc/self/status").read_text())[1])
    """
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert holds <= int(told) < 2 * holds


class Doorstep:
    """Accepts TCP connections as libzmq does, under the eyes of a Connections."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        self._listener = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.connections = connections.Connections()

    def accept(self, source: str = STRANGER) -> tuple[socket.socket, socket.socket]:
        """Have a peer connect; returns its end, and ours."""
        peer = self.stack.enter_context(dial(self._listener.getsockname()[1], source))
        return peer, self.stack.enter_context(self._listener.accept()[0])

    def begin(self, source: str = STRANGER) -> tuple[socket.socket, socket.socket]:
        """Have a peer connect whose connection is noted."""
        peer, ours = self.accept(source)
        self.connections.began(ours.fileno())
        return peer, ours

    def look(self) -> list[tuple[str | None, str]]:
        """Look at all connections."""
        self.connections.begin_look()
        ended = self.connections.look()
        while self.connections.is_looking:
            ended += self.connections.look()
        return ended


@pytest.fixture
def doorstep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Doorstep]:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 2)
    monkeypatch.setattr(connections, "UNFINISHED_MAX_BYTES", 100_000)
    doorstep = Doorstep()
    with doorstep.stack:
        yield doorstep


def hand_over(peer: socket.socket, ours: socket.socket, size: int = 60_000) -> None:
    peer.sendall(bytes(size))
    while size:
        size -= len(ours.recv(size))


def lives(peer: socket.socket, ours: socket.socket) -> bool:
    """Whether a connection was not shut down."""
    with contextlib.suppress(OSError):
        hand_over(peer, ours, 1)
        return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what was received")
def test_of_a_camera_only_what_came_after_its_last_whole_message_is_unfinished(doorstep: Doorstep) -> None:
    camera, ours = doorstep.begin()
    for _ in range(5):
        hand_over(camera, ours)
        assert doorstep.connections.heard(ours.fileno())
        for _ in range(3):
            assert doorstep.look() == []
    hand_over(camera, ours, 120_000)
    assert doorstep.look() == [(STRANGER, "its message had no end after 0 MB")]
    assert not lives(camera, ours)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what was received")
def test_a_few_connections_are_looked_at_at_a_time(doorstep: Doorstep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_LOOKED_AT_ONCE", 2)
    doorstep.connections._most = 9
    crowd = [doorstep.begin() for _ in range(5)]
    hand_over(*crowd[0], 120_000)
    left = []
    doorstep.connections.begin_look()
    for _ in range(2):
        assert doorstep.connections.look() == []
        left.append(len(doorstep.connections._unseen))
        doorstep.connections.begin_look()  # one that is under way is not begun anew
    assert left == [3, 1]
    doorstep.connections.ended(crowd[4][1].fileno())
    assert doorstep.connections.look() == [(STRANGER, "its message had no end after 0 MB")]
    assert not doorstep.connections.is_looking
    assert [lives(*each) for each in crowd] == [False, True, True, True, True]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what was received")
@pytest.mark.parametrize("was_seen", [False, True])
def test_who_has_gone_meanwhile_has_nothing_unfinished(
    doorstep: Doorstep, monkeypatch: pytest.MonkeyPatch, was_seen: bool
) -> None:
    monkeypatch.setattr(connections, "_LOOKED_AT_ONCE", 1)
    both = doorstep.begin(), doorstep.begin()
    hand_over(*both[0], 50_000)
    hand_over(*both[1])
    doorstep.connections.begin_look()
    doorstep.connections.look()  # at the second
    doorstep.connections.ended(both[was_seen][1].fileno())
    assert doorstep.connections.look() == []
    assert lives(*both[not was_seen])


def test_who_is_one_too_many_costs_a_silent_connection_and_no_camera(doorstep: Doorstep) -> None:
    silent = doorstep.begin()
    camera = doorstep.begin()  # the newer one
    doorstep.connections.heard(camera[1].fileno())
    newcomer = doorstep.begin("127.0.0.3")
    assert [lives(*each) for each in (silent, camera, newcomer)] == [False, True, True]


def test_of_silent_ones_the_newest_goes(doorstep: Doorstep) -> None:
    older, newer = doorstep.begin(), doorstep.begin()
    newcomer = doorstep.begin("127.0.0.3")
    assert [lives(*each) for each in (older, newer, newcomer)] == [True, False, True]
    assert doorstep.connections.ended(newer[1].fileno()) == (STRANGER, True)
    assert doorstep.connections.ended(newer[1].fileno()) == (None, False), "it may be another's from now on"


def test_where_all_are_cameras_the_newest_of_the_crowd_goes(doorstep: Doorstep) -> None:
    cameras = [doorstep.begin() for _ in range(2)]
    for _, ours in cameras:
        doorstep.connections.heard(ours.fileno())
    newcomer = doorstep.begin("127.0.0.3")
    assert [lives(*each) for each in (*cameras, newcomer)] == [True, False, True]


def test_who_comes_from_many_addresses_costs_no_camera_either(doorstep: Doorstep) -> None:
    camera, stranger = doorstep.begin("127.0.0.3"), doorstep.begin("127.0.0.4")
    doorstep.connections.heard(camera[1].fileno())
    one_more = doorstep.begin("127.0.0.5")
    assert [lives(*each) for each in (camera, stranger, one_more)] == [True, True, False]


def test_an_end_that_was_not_told_is_noticed_when_the_descriptor_is_used_again(doorstep: Doorstep) -> None:
    _, ours = doorstep.begin()
    _, others = doorstep.accept("127.0.0.3")
    os.dup2(others.fileno(), ours.fileno())
    doorstep.connections.began(ours.fileno())
    assert doorstep.connections.ended(ours.fileno()) == ("127.0.0.3", False)
    assert not doorstep.connections._of_address


def test_a_descriptor_that_is_anothers_by_now_is_left_alone(doorstep: Doorstep) -> None:
    _, (_, gone) = doorstep.begin(), doorstep.begin()
    peer, ours = doorstep.accept("127.0.0.3")
    os.dup2(ours.fileno(), gone.fileno())
    doorstep.begin("127.0.0.3")  # one too many, for which the newest of 127.0.0.2 has to go
    assert lives(peer, ours)


HUB_OF_FEW_DESCRIPTORS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
taken = [open("/dev/null") for _ in range(int(sys.argv[2]))]
from streamer.cli import main
sys.exit(main(["hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]))
"""


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_ten_thousand_connections_to_a_hub_of_few_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 11_000 if hard == resource.RLIM_INFINITY else min(11_000, hard)
    with Program("-c", HUB_OF_FEW_DESCRIPTORS, "300", "0") as program, ExitStack() as stack:
        endpoint, page = (program.line(number).partition(": ")[2].strip("/") for number in range(2))
        peer = stack.enter_context(raw(zmq.REQ, connect=endpoint))
        peer.send_multipart([header("good"), JPEG])
        assert peer.recv() == b"OK"
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        address = "127.0.0.1", int(endpoint.rpartition(":")[2])
        web = "127.0.0.1", int(page.rpartition(":")[2])
        for number in range(wanted - 1000):
            stranger = stack.enter_context(socket.socket())
            stranger.setblocking(False)
            stranger.connect_ex(web if number % 4 == 0 else address)
        for _ in range(20):
            peer.send_multipart([header("good"), JPEG])
            assert peer.recv() == b"OK"
        # Those who wait in the kernel's queue come in as others are let go; it is busy with that, but does not spin.
        began, before = time.monotonic(), processor_s(program.process.pid)
        until(lambda: time.monotonic() - began > 2)
        assert processor_s(program.process.pid) - before < 1.5
        assert program.process.poll() is None


def test_a_page_without_descriptors_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    told = ""
    with Program("-c", HUB_OF_FEW_DESCRIPTORS, "80", "45") as program, ExitStack() as stack:
        port = int(program.line(1).strip("/").rpartition(":")[2])
        for _ in range(100):
            stack.enter_context(dial(port))

        def is_told() -> bool:
            nonlocal told
            told += capfd.readouterr().err
            return "from an unknown address: the page cannot take a connection: Too many open files" in told

        until(is_told)
        assert program.process.poll() is None
    told += capfd.readouterr().err
    assert "Traceback" not in told
    assert len(told.splitlines()) < 20


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_viewers_leave_descriptors_for_senders(capfd: pytest.CaptureFixture[str]) -> None:
    with Program("-c", HUB_OF_FEW_DESCRIPTORS, "128", "0") as program, ExitStack() as stack:
        endpoint, page = (program.line(number).partition(": ")[2].strip("/") for number in range(2))
        for _ in range(120):
            stack.enter_context(dial(int(page.rpartition(":")[2])))
        until(lambda: f"from {STRANGER}: the page has 32 connections already" in capfd.readouterr().err)
        before = processor_s(program.process.pid)
        for _ in range(20):
            peer = stack.enter_context(raw(zmq.REQ, connect=endpoint))
            peer.send_multipart([header("good"), JPEG])
            assert peer.recv() == b"OK"
        assert processor_s(program.process.pid) - before < 1, "libzmq spins where it can take no connection"


# -- the page


def test_limits_are_those_that_are_promised() -> None:
    promised = " ".join((Path(__file__).parent.parent / "SECURITY.md").read_text(encoding="utf-8").split())
    limits = (door.CONNECTIONS_MAX, door.CONNECTIONS_OF_ADDRESS_MAX, door.ASK_WITHIN_S, door.READ_WITHIN_S)
    in_all, of_address, ask_s, read_s = (format(limit, ",g") for limit in limits)
    assert f"page takes {in_all}, of these {of_address} from one address" in promised
    assert f"page without a request for {ask_s} s, or with unread data for {read_s} s, is closed" in promised
    assert f"Of a request to the page at most {door.ASKED_MAX_BYTES // 1024} KiB are parsed" in promised
    assert f"There may be {connections.CONNECTIONS_MAX:,} connections of senders" in promised
    unfinished, stored = connections.UNFINISHED_MAX_BYTES // 2**20, presence.STORED_MAX_BYTES // 2**20
    assert f"A message of up to {unfinished} MiB is read to its end and answered" in promised
    assert f"Unfinished messages may hold {unfinished} MiB for all peers together" in promised
    assert f"The newest pictures of all cameras may hold {stored} MiB" in promised
    assert f"There may be {presence.CAMERAS_MAX:,} cameras: a new one takes the place of" in promised
    assert f"Of the cameras of one connection, {presence.ONCE_MAX} may have sent one picture only" in promised
    header_kib, payload_mib = wire.HEADER_MAX_BYTES // 2**10, wire.PAYLOAD_MAX_BYTES // 2**20
    megapixels = wire.PIXELS_MAX // 1_000_000
    assert f"header up to {header_kib} KiB, payload up to {payload_mib} MiB, names of" in promised
    assert f"a JPEG of at most {megapixels} megapixels" in promised


@pytest.fixture
def wall(hub: Hub, tmp_path: Path) -> Iterator[Wall]:
    with Wall(hub, "127.0.0.1", 0, access=access.Access("127.0.0.1", "cameras!"), socket=tmp_path / "hub.sock") as wall:
        yield wall


def health(connection: socket.socket) -> bool:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    return connection.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nX: y", b"\x16\x03\x01"], ids=["silent", "endless", "TLS"])
def test_who_never_asks_is_let_go_and_told(
    wall: Wall, good: Good, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, head: bytes
) -> None:
    monkeypatch.setattr(door, "ASK_WITHIN_S", 0.5)
    with dial(wall.port) as loris:
        loris.settimeout(0.05)
        with pytest.raises(ConnectionError):  # noqa: PT012 - whichever of the two notices
            loris.sendall(head)
            while True:
                with contextlib.suppress(TimeoutError):
                    if not loris.recv(1000):
                        raise ConnectionError
                if head:
                    loris.sendall(b"a")
    until(lambda: "refused 1 from 127.0.0.2: no" in caplog.text)


def test_who_has_asked_is_let_go_in_silence(
    wall: Wall, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with dial(wall.port) as browser:
        assert health(browser)
        monkeypatch.setattr(door, "ASK_WITHIN_S", 0.3)
        assert is_ended(browser)
    with dial(wall.port, "127.0.0.3") as silent:
        assert is_ended(silent)
    until(lambda: caplog.messages)  # all that was refused is told together
    assert caplog.messages == ["refused 1 from 127.0.0.3: no request within 0.3 s"]


@pytest.mark.parametrize(
    ("asks", "then"),
    [
        (b"GET /stream/pi1.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
        (HANDSHAKE, framed(b'{"want": {"pi1": 1}}')),
    ],
    ids=["stream", "page"],
)
def test_who_is_served_stays_though_he_asks_nothing_more(
    hub: Hub, unlocked: Wall, monkeypatch: pytest.MonkeyPatch, asks: bytes, then: bytes
) -> None:
    monkeypatch.setattr(door, "ASK_WITHIN_S", 0.3)
    later = JPEG[:-2] + b"later" + JPEG[-2:]
    assert hub.endpoint
    with raw(zmq.REQ, connect=hub.endpoint) as camera:
        camera.send_multipart([header("pi1"), JPEG])
        assert camera.recv() == b"OK"
        with dial(unlocked.port) as viewer:
            viewer.sendall(asks.replace(b"Host: x", b"Host: localhost"))
            assert viewer.recv(10).startswith(b"HTTP/1.1 ")
            with dial(unlocked.port) as silent:  # came after him, and has had its time
                assert is_ended(silent)
            camera.send_multipart([header("pi1"), later])
            assert camera.recv() == b"OK"
            viewer.sendall(then)
            answer = b""
            while later not in answer:
                answer += viewer.recv(65536) or pytest.fail("he was let go")


def test_only_what_peers_do_wrong_is_counted_instead_of_logged(caplog: pytest.LogCaptureFixture) -> None:
    entrance = door.Door()
    for error in (
        BadHttpMessage("no HTTP"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "the library has quoted a header"),
        ConnectionResetError(),
        KeyError("a bug"),
    ):
        entrance.logger.error("Error handling request from %s", STRANGER, exc_info=error)
    entrance.logger.debug("chatter")
    entrance._refusals.tell(time.monotonic() + 10)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [
        ("ERROR", f"Error handling request from {STRANGER}"),
        ("WARNING", f"refused 2 from {STRANGER}: no HTTP request"),
    ]
    assert caplog.records[0].exc_info
    loop = mock.Mock()
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM):
        entrance._tell_failure(loop, {"exception": OSError(number, "")})
    entrance._tell_failure(loop, unknown := {"message": "a bug"})
    (permission,), (other,) = (call.args for call in loop.default_exception_handler.call_args_list)
    assert permission["exception"].errno == errno.EPERM
    assert other is unknown


class Wire(asyncio.Transport):
    """Has as much to write as a test says."""

    unread = 0
    is_ended = False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def abort(self) -> None:
        self.is_ended = True


async def watched() -> tuple[door.Door, door._Connection, Wire, float]:
    """A connection that has just come, and what time it is."""
    entrance, wire = door.Door(), Wire()
    connection = door._Connection(entrance, mock.Mock(), None)
    connection.connection_made(wire)
    return entrance, connection, wire, asyncio.get_running_loop().time()


def test_web_library_hears_of_a_connection_when_its_handshake_is_done() -> None:
    early, brief = (door._Connection(door.Door(), mock.Mock(), None) for _ in range(2))
    early.data_received(b"GET ")
    brief.connection_lost(None)
    assert early.inner.mock_calls == brief.inner.mock_calls == []
    early._open(Wire())
    early.data_received(b"/")
    early.connection_lost(None)
    assert [name for name, *_ in early.inner.mock_calls] == [
        "connection_made", "data_received", "data_received", "connection_lost"
    ]  # fmt: skip


def test_connection_that_comes_just_as_the_door_closes_is_ended(certificate: Certificate) -> None:
    async def scene() -> None:
        entrance, wire = door.Door(), Wire()
        door._Connection(entrance, mock.Mock(), access.tls_context(*certificate)).connection_made(wire)
        await entrance.close()
        assert wire.is_ended

    asyncio.run(scene())


def test_who_has_read_all_between_two_looks_has_his_time_again() -> None:
    async def scene() -> None:
        entrance, connection, wire, now = await watched()
        wire.unread = 1000
        entrance.watch(now - door.READ_WITHIN_S - 1)
        connection.resume_writing()  # and at once as much is written again
        entrance.watch(now)
        assert not wire.is_ended
        entrance.watch(now + door.READ_WITHIN_S + 1)
        assert wire.is_ended

    asyncio.run(scene())


def test_time_to_read_begins_when_there_is_something_to_read() -> None:
    async def scene() -> None:
        entrance, connection, wire, now = await watched()
        connection.is_answered = True
        for later_s in (0.0, 1000.0):  # of a camera that has long been silent
            entrance.watch(now + later_s)
        wire.unread = 1000
        for later_s in (1001, 1001 + door.READ_WITHIN_S):
            entrance.watch(now + later_s)
            assert not wire.is_ended
        entrance.watch(now + 1002 + door.READ_WITHIN_S)
        assert wire.is_ended

    asyncio.run(scene())


def test_time_to_ask_again_begins_when_the_answer_has_gone() -> None:
    async def scene() -> None:
        entrance, connection, wire, now = await watched()
        connection.moved = now - door.ASK_WITHIN_S - 1  # came that long ago

        async def answer(_: web.Request) -> web.Response:
            entrance.watch(now)
            return web.Response()

        await entrance.middleware(mock.Mock(protocol=connection.inner, headers={}), answer)
        entrance.watch(now)
        assert not wire.is_ended
        entrance.watch(now + door.ASK_WITHIN_S + 1)
        assert wire.is_ended

    asyncio.run(scene())


@pytest.fixture
def large(hub: Hub) -> bytes:
    """The picture, of 16 MB, that the camera of this name has sent."""
    assert hub.endpoint
    jpeg = JPEG[:-2].ljust(16_000_000, b"\0") + JPEG[-2:]
    with raw(zmq.REQ, connect=hub.endpoint) as peer:
        peer.send_multipart([header("large"), jpeg])
        assert peer.recv() == b"OK"
    return jpeg


def dialled(wall: Wall, certificate: Certificate | None) -> socket.socket:
    """Open a connection of which the kernel keeps little, over TLS if there is a certificate."""
    connection = dial(wall.port)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    return trusting(certificate).wrap_socket(connection, server_hostname="localhost") if certificate else connection


@pytest.fixture(params=[False, True], ids=["plain", "TLS"])
def either(request: pytest.FixtureRequest, certificate: Certificate) -> tuple[Wall, Certificate | None]:
    """A wall that asks nobody, and the certificate that it has."""
    if request.param:
        return request.getfixturevalue("over_tls"), certificate
    return request.getfixturevalue("unlocked"), None


@pytest.fixture
def unlocked(hub: Hub) -> Iterator[Wall]:
    with Wall(hub, "127.0.0.1", 0) as wall:
        yield wall


@pytest.mark.filterwarnings("ignore:Sending a large body")
@pytest.mark.usefixtures("good", "large")
@pytest.mark.parametrize("path", ["/snapshot/large.jpg", "/stream/large.mjpg"])
def test_who_asks_and_reads_nothing_is_let_go_and_told(
    either: tuple[Wall, Certificate | None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
) -> None:
    monkeypatch.setattr(door, "READ_WITHIN_S", 0.5)
    with dialled(*either) as deaf:
        deaf.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        until(lambda: "refused 1 from 127.0.0.2: reads nothing for 0.5 s" in caplog.text)


@pytest.mark.filterwarnings("ignore:Sending a large body")
def test_who_reads_slowly_gets_all_of_a_picture(
    either: tuple[Wall, Certificate | None],
    large: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(door, "ASK_WITHIN_S", 0.3)
    monkeypatch.setattr(door, "READ_WITHIN_S", 1)
    with dialled(*either) as slow:
        slow.sendall(b"GET /snapshot/large.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
        began, answer = time.monotonic(), b""
        while got := slow.recv(100_000):  # until the hub ends the connection, for having been asked nothing more
            answer += got
            time.sleep(max(0, began + len(answer) / 8e6 - time.monotonic()))
        assert time.monotonic() - began > 1.5
        assert answer.partition(b"\r\n\r\n")[2] == large
    assert "refused" not in caplog.text


def test_a_form_without_an_end_is_ended(wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_FORM_WITHIN_S", 0.3)
    with dial(wall.port) as loris:
        loris.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\npassword=")
        assert loris.recv(1000).startswith(b"HTTP/1.1 408")


def test_who_leaves_in_the_middle_of_a_form_is_worth_no_line(wall: Wall, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        with dial(wall.port) as stranger:
            stranger.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\npassword=")
            until(lambda: any(connection.is_answered for connection in wall._door._connections.values()))
    until(lambda: not wall._door._connections)
    assert not wall._door._of_address, "who has gone is forgotten"
    assert is_let_in(wall)
    assert caplog.text == ""


def test_forms_of_a_megabyte_hold_up_nobody(wall: Wall) -> None:
    form = b"a=b&" * 250_000
    head = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(form)
    with ExitStack() as stack:
        crowd = [stack.enter_context(dial(wall.port)) for _ in range(30)]
        for stranger in crowd:
            with contextlib.suppress(ConnectionError):  # it may have been refused already
                stranger.sendall(head + form[:-1])
        began = time.monotonic()
        for stranger in crowd:
            with contextlib.suppress(ConnectionError):
                stranger.sendall(form[-1:])
        assert is_let_in(wall)
        assert time.monotonic() - began < 1
        assert crowd[0].recv(1000).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n",
        b"GET /stream/good.mjpg HTTP/1.1\r\nHost: x\r\nAuthorization: Basic OmNhbWVyYXMh\r\n\r\nGET /",
    ],
    ids=["head", "extension of a chunk", "body of what has none", "request after a stream"],
)
def test_a_request_without_an_end_is_ended(
    wall: Wall, good: Good, caplog: pytest.LogCaptureFixture, head: bytes
) -> None:
    before = resident_mb()
    with dial(wall.port) as stranger, pytest.raises(ConnectionError):  # noqa: PT012 - it ends while we send
        stranger.sendall(head)
        for number in range(1_000_000):
            stranger.sendall(b"x%d: y\r\n" % number if head.startswith(b"GET / ") else b"x" * 1000)
    assert resident_mb() < before + 20
    until(lambda: "refused 1 from 127.0.0.2: " in caplog.text)


def test_a_request_is_given_so_much_and_the_next_one_as_much_again() -> None:
    async def scene() -> None:
        entrance, connection, wire, _ = await watched()
        some = b"x" * door.ASKED_MAX_BYTES

        async def answer(_: web.Request) -> web.Response:
            connection.data_received(some + b"held")
            return web.Response()

        connection.data_received(some)
        await entrance.middleware(mock.Mock(protocol=connection.inner, headers={}), answer)
        given = [call.args[0] for call in connection.inner.data_received.call_args_list]
        assert given == [some, some, b"held"]
        for _ in range(8):
            connection.data_received(some)
        assert not wire.is_ended
        connection.data_received(some)
        assert wire.is_ended

    asyncio.run(scene())


def test_a_form_must_say_how_long_it_is_and_is_never_unpacked(wall: Wall) -> None:
    form = gzip.compress(b"password=cameras!")
    length = b"Content-Length: %d" % len(form)
    for said, body, status in ((b"Transfer-Encoding: chunked", b"", b"411"), (length, form, b"403")):
        with dial(wall.port) as stranger:
            head = b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n%b\r\n\r\n" % said
            stranger.sendall(head + body)
            assert stranger.recv(1000)[9:12] == status


def test_who_asks_on_and_on_before_he_has_his_answers_is_let_go(wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_ASKED_AT_ONCE_MAX", 3)
    with dial(wall.port) as stranger:
        stranger.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        assert is_ended(stranger)
    assert is_let_in(wall)


def test_guesses_that_come_all_at_once_are_no_more(wall: Wall) -> None:
    with ExitStack() as stack:
        crowd = [stack.enter_context(dial(wall.port)) for _ in range(access.TRIES + 10)]
        for number, guesser in enumerate(crowd):
            guesser.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\npassword=%c" % (65 + number))
        time.sleep(0.2)  # for all to have been found to have no need to wait
        for guesser in crowd:
            guesser.sendall(b"x")
        told = [guesser.recv(4000)[9:12] for guesser in crowd]
        assert sorted(told) == [b"403"] * access.TRIES + [b"429"] * 10


def test_an_address_has_so_many_connections_and_the_socket_any_number(
    wall: Wall, good: Good, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "CONNECTIONS_OF_ADDRESS_MAX", 20)
    monkeypatch.setattr(door, "CONNECTIONS_MAX", 25)
    with ExitStack() as stack:
        crowd = [stack.enter_context(dial(wall.port)) for _ in range(50)]
        assert sum(is_ended(connection) for connection in crowd[20:]) == 30
        assert all(health(connection) for connection in crowd[:20])
        until(lambda: "from 127.0.0.2: has 20 connections to the page already" in caplog.text)
        others = [stack.enter_context(dial(wall.port, f"127.0.0.{number}")) for number in range(3, 9)]
        assert all(health(connection) for connection in others[:5])
        assert is_ended(others[5])
        until(lambda: "from 127.0.0.8: the page has 25 connections already" in caplog.text)
        for _ in range(30):
            own = stack.enter_context(socket.socket(socket.AF_UNIX))
            own.connect(str(tmp_path / "hub.sock"))
            assert health(own)
    until(lambda: is_let_in(wall))


@pytest.fixture
def over_tls(hub: Hub, certificate: Certificate) -> Iterator[Wall]:
    with Wall(hub, "127.0.0.1", 0, tls=access.tls_context(*certificate)) as wall:
        yield wall


def trusting(certificate: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate.certificate)


def test_who_does_not_speak_tls_is_counted_and_let_go_as_well(
    over_tls: Wall,
    certificate: Certificate,
    good: Good,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(door, "CONNECTIONS_OF_ADDRESS_MAX", 20)
    with ExitStack() as stack:
        crowd = [stack.enter_context(dial(over_tls.port)) for _ in range(50)]
        assert sum(is_ended(connection) for connection in crowd[20:]) == 30
        until(lambda: "from 127.0.0.2: has 20 connections to the page already" in caplog.text)
        assert len(over_tls._door._connections) == 20
        monkeypatch.setattr(door, "ASK_WITHIN_S", 0.3)
        assert all(is_ended(connection) for connection in crowd[:20])
        until(lambda: "refused 20 from 127.0.0.2: no request within 0.3 s" in caplog.text)
        monkeypatch.undo()
        with trusting(certificate).wrap_socket(dial(over_tls.port), server_hostname="localhost") as known:
            assert health(known)


def test_who_speaks_http_where_tls_is_asked_for_is_told(over_tls: Wall, caplog: pytest.LogCaptureFixture) -> None:
    with dial(over_tls.port) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert is_ended(plain)
    until(lambda: "refused 1 from 127.0.0.2: no TLS handshake" in caplog.text)
    with dial(over_tls.port) as brief:
        until(lambda: over_tls._door._connections)
        brief.close()
        until(lambda: not over_tls._door._connections)
    assert "ERROR" not in caplog.text


def test_request_that_comes_with_the_end_of_the_handshake_is_answered(over_tls: Wall, certificate: Certificate) -> None:
    coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = trusting(certificate).wrap_bio(coming, going, server_hostname="localhost")
    with dial(over_tls.port) as connection:
        with pytest.raises(ssl.SSLWantReadError):
            session.do_handshake()
        connection.sendall(going.read())
        while True:
            coming.write(connection.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                session.do_handshake()
                break
        session.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.sendall(going.read())
        answer = b""
        while b"ok" not in answer:
            coming.write(connection.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                while True:  # head and body may have come at once
                    answer += session.read()
        assert answer.startswith(b"HTTP/1.1 200")


def test_wall_closes_in_the_middle_of_a_handshake(
    hub: Hub, certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    with Wall(hub, "127.0.0.1", 0, tls=access.tls_context(*certificate)) as wall, dial(wall.port) as silent:
        until(lambda: wall._door._connections)
        wall.close()
        assert is_ended(silent)
    gc.collect()
    assert caplog.text == ""


def is_let_in(wall: Wall) -> bool:
    with dial(wall.port) as again:
        return health(again)


def websocket(wall: Wall) -> socket.socket:
    connection = dial(wall.port)
    connection.sendall(HANDSHAKE)
    assert connection.recv(12) == b"HTTP/1.1 101"
    return connection


def test_a_page_that_has_vanished_is_let_go(wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.wall._HEARTBEAT_S", 0.2)
    with websocket(wall) as page:
        page.sendall(framed(b'{"want": null}'))  # nothing comes from now on but pings, which are not answered
        assert is_ended(page)


def test_fragments_without_an_end_are_ended(wall: Wall, good: Good) -> None:
    before = resident_mb()
    with websocket(wall) as page, pytest.raises(ConnectionError):  # noqa: PT012 - it ends while we send
        page.sendall(framed(b"x" * 60_000, 0x01))
        while True:
            page.sendall(framed(b"x" * 60_000, 0x00))
    assert resident_mb() < before + 50


def test_a_page_that_pings_and_never_reads_fills_no_memory(wall: Wall, good: Good) -> None:
    before = resident_mb()
    with websocket(wall) as page:
        page.settimeout(0.5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(2000):
                page.sendall(framed(b"x" * 125, 0x89) * 100)
        assert is_let_in(wall)
    assert resident_mb() < before + 50


@pytest.mark.parametrize("said", [b'{"want": {"good": 1000}}', b'{"shown": []}'])
def test_a_page_that_says_too_much_is_let_go(wall: Wall, good: Good, said: bytes) -> None:
    with websocket(wall) as page, contextlib.suppress(ConnectionError):
        page.sendall(framed(said) * 10_000)
        answer = b""
        while got := page.recv(65536):
            answer = (answer + got)[-1000:]
        assert b"more than 500 messages in a second" in answer
    assert is_let_in(wall)


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the limit be reached within a second, however busy the machine is."""
    monkeypatch.setattr("streamer.wall._COMMANDS_PER_S", 500)
