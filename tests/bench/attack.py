"""What strangers do to the cameras: `python -m tests.bench.attack [--rounds N] [--seconds S]`.

Eight cameras of 30 frames a second, and one attack after the other on the same hub and its page. Measured is how old
the cameras' frames are when the hub has them, beside the same without an attack in the same round, and what the hub's
memory comes to. A stranger has a machine of his own: here he gets what the others leave of the processor (nice 19).
What no hub can help is measured by a bare ROUTER loop that replies, refuses nothing and checks nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import zmq

import streamer
from streamer.wall import Wall
from tests.bench import pictures
from tests.bench.load import FOOTAGE
from tests.bench.measure import (
    Options,
    Part,
    Row,
    beside,
    compare,
    end_with_input,
    keep,
    percentiles,
    progress,
    resident_mb,
)
from tests.bench.peers import BARE_HWM, KEPT_BYTES, TITLES
from tests.peers import JPEG

if TYPE_CHECKING:
    from collections.abc import Callable

CAMERAS = 8
FPS = 30
SECONDS = 4.0  # at least: a 99th percentile of 960 frames
WARM_UP_S = 1.0
CROWD = 10_000
STRANGER = "127.0.0.2"
DATA = Path(__file__).parents[1] / "data"


@dataclass
class Measurement:
    """One attack, in one round.

    Attributes:
        kind: whose hub.
        age_ms: from capture to the hub: 50th, 95th and 99th percentile.
        frames: that the hub had of all cameras, for each second.
        memory_mb: of the hub's process, at the end.
        refused: messages and connections that the hub refused meanwhile.
    """

    kind: str
    attack: str
    age_ms: tuple[float, float, float]
    frames: float
    memory_mb: float
    refused: int


# -- the hub's process


def serve() -> None:
    """Be the hub: print its endpoint and its page's port, then for each second line of input what came in between."""
    ages: list[float] = []

    def take() -> None:
        for frame in hub:
            if frame.captured_ns:
                ages.append((frame.received_ns - frame.captured_ns) / 1e6)  # noqa: PERF401 - it never ends

    _allow_descriptors(8192)  # as the command does
    with streamer.Hub("tcp://127.0.0.1:*") as hub, Wall(hub, "127.0.0.1", 0) as wall:
        threading.Thread(target=take, daemon=True).start()
        assert hub.endpoint
        print(hub.endpoint.rpartition(":")[2], wall.port, flush=True)
        obey(ages, lambda: hub.refused)
    os._exit(0)


def obey(ages: list[float], refused: Callable[[], int]) -> None:
    """Say, for each second line of input, what came since the one before, until input ends."""
    for _ in sys.stdin:
        ages.clear()
        before = refused()
        print("begun", flush=True)
        sys.stdin.readline()
        taken = list(ages)
        print(json.dumps([percentiles(taken), len(taken), refused() - before]), flush=True)


def serve_bare() -> None:
    """Be a bare loop, and answer as the hub does."""
    ages: list[float] = []

    def take() -> None:
        while True:
            route, *_, header, _ = router.recv_multipart(copy=False)
            router.send_multipart([route.bytes, b"", b"OK"])
            captured_ns = header.bytes.partition(b" ")[2]
            if captured_ns.isdigit():  # else it is the stranger's
                ages.append((time.time_ns() - int(captured_ns)) / 1e6)

    _allow_descriptors(2 * CROWD)  # whom it does not refuse, it must hold
    bytes(KEPT_BYTES)
    router = zmq.Context().socket(zmq.ROUTER)
    router.setsockopt(zmq.RCVHWM, BARE_HWM)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    print(port, port, flush=True)
    threading.Thread(target=take, daemon=True).start()
    obey(ages, lambda: 0)
    os._exit(0)


def _allow_descriptors(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


# -- the stranger's process


def rubbish(port: int, _page: int) -> None:
    """A thousand messages a second that are no frames: parts, headers, pictures that lie."""
    lying = [path.read_bytes() for path in sorted(DATA.glob("*.jpg"))]
    messages: list[list[bytes]] = [
        [b""],
        [b"", b"{" * 4000, JPEG],
        [b"", b"\xff" * 4000, JPEG],
        [b"", json.dumps({"msg": "../../etc/passwd"}).encode(), JPEG],
        [b"", json.dumps({"msg": "a", "dtype": "uint8", "shape": [2**62, 4]}).encode(), b"\0" * 4],
        *([b"", b'{"msg": "lies"}', picture] for picture in lying),
        [b"x"] * 100,
    ]
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(f"tcp://127.0.0.1:{port}")
        for message in itertools.cycle(messages):
            with contextlib.suppress(zmq.Again):
                dealer.send_multipart(message, zmq.DONTWAIT)
            with contextlib.suppress(zmq.Again):
                dealer.recv_multipart(zmq.DONTWAIT)
            time.sleep(0.001)


def large(port: int, _page: int) -> None:
    """Messages of 200 MB, one after the other."""
    huge = bytes(200_000_000)
    with zmq.Context() as context, context.socket(zmq.REQ) as peer:
        peer.connect(f"tcp://127.0.0.1:{port}")
        while True:
            peer.send_multipart([b'{"msg": "large"}', huge], copy=False)
            peer.recv()


def deaf(port: int, _page: int) -> None:
    """Twenty peers that send frames, fifty a second each, and never read a reply."""
    with zmq.Context() as context:
        peers = []
        for _ in range(20):
            peer = context.socket(zmq.DEALER)
            peer.setsockopt(zmq.RCVHWM, 1)
            peer.setsockopt(zmq.RCVBUF, 4096)
            peer.connect(f"tcp://127.0.0.1:{port}")
            peers.append(peer)
        for peer in itertools.cycle(peers):
            with contextlib.suppress(zmq.Again):
                peer.send_multipart([b"", b'{"msg": "deaf"}', JPEG], zmq.DONTWAIT)
            time.sleep(0.001)


def crowd(port: int, page: int) -> None:
    """Ten thousand connections that say nothing, three quarters to the hub, the rest to its page."""
    _allow_descriptors(CROWD + 1000)
    held = []
    for number in range(CROWD):
        stranger = socket.socket()
        stranger.setblocking(False)
        stranger.connect_ex(("127.0.0.1", page if number % 4 == 0 else port))
        held.append(stranger)
        time.sleep(0.0005)
    threading.Event().wait()


def slow(_port: int, page: int) -> None:
    """A hundred requests of the page, of which a byte comes now and then; who is let go comes again."""
    lorises: list[socket.socket] = []
    while True:
        while len(lorises) < 100:
            loris = socket.create_connection(("127.0.0.1", page), 5, (STRANGER, 0))
            loris.sendall(b"GET / HTTP/1.1\r\nX: ")
            lorises.append(loris)
        loris = random.choice(lorises)
        try:
            loris.sendall(b"a")
        except OSError:
            lorises.remove(loris)
        time.sleep(0.01)


def requests(_port: int, page: int) -> None:
    """Two hundred bad requests a second: paths that climb, heads of 100 kB, no HTTP at all."""
    bad = [
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /snapshot/%2e%2e%2f HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Flood: y\r\n" * 8000 + b"\r\n",
        b"\x16\x03\x01" * 100,
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" + b"\xff" * 2000,
    ]
    for request in itertools.cycle(bad):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", page), 5) as connection:
            connection.sendall(request)
            connection.settimeout(1.0)
            connection.recv(1000)
        time.sleep(0.005)


ATTACKS: dict[str, Callable[[int, int], None] | None] = {
    "nobody": None,
    "rubbish": rubbish,
    "large": large,
    "deaf": deaf,
    "crowd": crowd,
    "slow": slow,
    "requests": requests,
}
# What a bare loop bears too.
BARE_ATTACKS = ("nobody", "large", "crowd")


def told(attack: str) -> str:
    """Say what an attack is."""
    does = ATTACKS[attack]
    return (does.__doc__ or "").rstrip(".").lower() if does else "no attack"


# -- the measurement


def measure(kind: str, attack: str, seconds: float) -> Measurement:
    """Attack a fresh hub that has its cameras."""
    with contextlib.ExitStack() as stack:
        hub = stack.enter_context(Part("attack", "serve", kind))
        port, page = hub.hear().split()
        stack.enter_context(Part("peers", "send", kind, port, CAMERAS, FPS, FOOTAGE))
        time.sleep(WARM_UP_S)
        if attack != "nobody":
            stack.enter_context(Part("attack", "do", attack, port, page))
            time.sleep(WARM_UP_S)
        hub.say("begin")
        hub.hear()
        time.sleep(seconds)
        hub.say("end")
        age_ms, frames, refused = json.loads(hub.hear())
        return Measurement(kind, attack, age_ms, frames / seconds, resident_mb(hub.pid), refused)


def run(options: Options) -> list[Row]:
    """Measure all attacks, a fresh hub each."""
    pictures.make()
    done: list[Measurement] = []
    for number in range(options.rounds):
        for attack in ATTACKS:
            for kind in ("streamer", "bare-replies") if attack in BARE_ATTACKS else ("streamer",):
                progress(f"attack, round {number + 1} of {options.rounds}: {told(attack)}: {TITLES[kind]}")
                done.append(measure(kind, attack, max(SECONDS, options.seconds)))

    def of(kind: str, attack: str) -> list[Measurement]:
        return [each for each in done if (each.kind, each.attack) == (kind, attack)]

    def p99(kind: str, attack: str) -> list[float]:
        return [each.age_ms[2] for each in of(kind, attack)]

    rows = []
    for attack in ATTACKS:
        work = f"{CAMERAS} x {FPS}/s, {told(attack)}"
        each = of("streamer", attack)
        figure = f"{median(one.frames for one in each):.0f} | {_ages(each)}"
        rows.append(Row(work, "cameras' frames/s | latency p50 p99", figure))
        figure = f"{max(one.memory_mb for one in each):.0f} MB | {median(one.refused for one in each):.0f}"
        rows.append(Row(work, "hub's memory | refused", figure))
        if attack in BARE_ATTACKS:
            bare = of("bare-replies", attack)
            figure = f"{median(one.frames for one in bare):.0f} | {_ages(bare)}"
            rows.append(Row(work, f"{TITLES['bare-replies']}: frames/s | latency p50 p99", figure))
        if attack == "nobody":
            continue
        if attack in BARE_ATTACKS:
            what = f"{TITLES['bare-replies']}: latency p99"
            floor = p99("bare-replies", attack), p99("bare-replies", "nobody")
            rows.append(beside(work, what, *floor, "without it"))
        rows.append(
            compare(work, "latency p99", p99("streamer", attack), p99("streamer", "nobody"), "<= 2", "without it")
        )
    keep("attack", options, done, rows)
    return rows


def _ages(done: list[Measurement]) -> str:
    p50, p99 = (median(each.age_ms[at] for each in done) for at in (0, 2))
    return f"{p50:.1f} {p99:.1f} ms"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", "streamer"]:
            serve()
        case ["serve", "bare-replies"]:
            serve_bare()
        case ["do", attack, port, page]:
            os.nice(19)
            threading.Thread(target=end_with_input, daemon=True).start()
            does: Any = ATTACKS[attack]
            does(int(port), int(page))
