"""The gate against slower hot paths: `python -m tests.bench.check`; status 1 when one is over its limit.

What is counted are instructions (callgrind's), which another program on the machine does not change as it changes
times. Each path runs in a process of its own, in lock-step, so that nothing races. Only the thread that runs it is
counted, and only between two marks, so that start-up is not: almost all that a process costs under callgrind. Its limit
is a ratio: to the plainest program that does the same work, counted in the same process, so that another build of
Python or libzmq does not move it much.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import zmq

from streamer import window, wire
from streamer.hub import Hub
from streamer.sender import Sender
from streamer.transport import Replier, sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamer.transport import Poller
    from streamer.wall.viewers import Picture

ROOT = Path(__file__).parents[2]
JPEG = (ROOT / "tests/data/colour.jpg").read_bytes()
EXTRAS = {"start": "0123456789abcdef", "clock": True, "every": 1 / 30, "release": "1.0.0+0123abcd"}
HEADER = wire.add_counts(wire.make_header("pi1", extras=EXTRAS), 7, 1793500000123456789, 0, (12345, 50000))
LOCAL = "tcp://127.0.0.1:*"
VIEWERS = 8
N = 100
TURNS = 3 * N
MARK = "getpgid"  # a function of libc that nothing else calls meanwhile
LIMIT_S = 600  # for each count, which takes 10 s
TOLERANCE = 1.08  # four runs of the same code, other work on both cores, differed by 2 %
# Instructions of ours for one of the plain program's, on 27 November 2026, x86-64, Python 3.11.
MEASURED = {"receive": 1.162, "send": 2.184, "fan-out": 4.71}


def turns() -> Iterator[int]:
    """Count N turns to grow warm, then 2 N between two marks."""
    yield from range(N)
    os.getpgid(0)
    yield from range(N, TURNS)
    os.getpgid(0)


class Stepped(Sender):
    """A sender without its thread, whose loop goes round once when it is called."""

    def __init__(self, hub: str) -> None:
        with mock.patch("threading.Thread.start"):
            super().__init__(hub, name="pi1", in_flight_limit=2, every_s=1 / 30, reply_timeout_s=3600)

    def _wait(self, poller: Poller, now: float, *, for_hub: bool) -> bool:
        self._closing = True
        return super()._wait(poller, now, for_hub=for_hub)

    def go_round(self) -> None:
        self._closing = False
        self._request()
        self._closing = False


def receive() -> None:
    """The hub: receive, parse, store, reply, put into a mailbox."""
    with mock.patch("threading.Thread.start"):  # its thread would take the messages
        hub = Hub(None)
    replier = hub._replier = Replier(LOCAL, guarded=True)
    hub.open_mailbox()

    def turn() -> None:
        if not replier._lately:  # as the hub looks at the door now and then
            replier.admit()
        received = replier.receive()
        assert received
        hub._accept(received, time.monotonic())

    ask(replier.socket, replier.endpoint, turn)
    assert hub.cameras()[0].frames == TURNS


def plainly_receive() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(LOCAL)

        def turn() -> None:
            route, delimiter, _, _ = router.recv_multipart()
            router.send_multipart([route, delimiter, b"OK"])

        ask(router, router.getsockopt_string(zmq.LAST_ENDPOINT), turn)


def ask(router: zmq.Socket[bytes], endpoint: str, turn: Callable[[], None]) -> None:
    """Send a request, let it be taken and answered, and so on."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(endpoint)
        for _ in turns():
            dealer.send_multipart([b"", HEADER, JPEG])
            router.poll()
            turn()
            dealer.recv_multipart()


def send() -> None:
    """The sender: check, mailbox, header, send, reply."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(LOCAL)
        sender = Stepped(router.getsockopt_string(zmq.LAST_ENDPOINT))
        socket = sender._links[0].end.socket
        socket.poll(flags=zmq.POLLOUT)
        for _ in turns():
            sender.send(JPEG)
            sender.go_round()
            route, _, _, _ = router.recv_multipart()
            router.send_multipart([route, b"", b"OK 1793500000123456789"])
            socket.poll()
        assert sender.statistics.frames == TURNS


def plainly_send() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        router.bind(LOCAL)
        dealer.connect(router.getsockopt_string(zmq.LAST_ENDPOINT))
        for _ in turns():
            dealer.send_multipart([b"", HEADER, JPEG])
            route, _, _, _ = router.recv_multipart()
            router.send_multipart([route, b"", b"OK 1793500000123456789"])
            dealer.poll()
            dealer.recv_multipart()


async def fan_out() -> None:
    """The wall: from the hub's mailbox to viewers who show every picture."""
    from streamer.wall.viewers import FanOut

    loop = asyncio.get_running_loop()
    sent: list[bytes] = []

    def give(picture: Picture) -> None:
        sent.append(picture.message)

    with Hub(None) as hub, mock.patch.object(loop, "time", itertools.count(1.0).__next__):
        wall = FanOut(hub)
        viewers = [wall.open(give, "wall", "127.0.0.1", "") for _ in range(VIEWERS)]
        for viewer in viewers:
            wall.want(viewer, {"pi1": 30.0})
        frames = [wire.parse(HEADER, JPEG, received_ns) for received_ns in range(2)]
        for number in turns():
            hub._mailboxes[0][0].put("pi1", frames[number % 2])
            await asyncio.sleep(0)
            for viewer in viewers:
                viewer.shown(["pi1"])
            assert len(sent) == VIEWERS
            sent.clear()


async def plainly_fan_out() -> None:
    loop = asyncio.get_running_loop()
    sent: list[bytes] = []

    def give(frame: bytes) -> None:
        for _ in range(VIEWERS):
            sent.append(b"".join((b"\x82", frame)))  # noqa: PERF401 - a call each, as a viewer is

    for _ in turns():
        loop.call_soon_threadsafe(give, JPEG)
        await asyncio.sleep(0)
        sent.clear()


PATHS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "receive": (receive, plainly_receive),
    "send": (send, plainly_send),
    "fan-out": (lambda: asyncio.run(fan_out()), lambda: asyncio.run(plainly_fan_out())),
}


def count(path: str) -> tuple[float, float]:
    """Return the instructions that a turn costs ours, and the plain one."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        tool = ["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={out}"]
        command = [*tool, f"--dump-before={MARK}", sys.executable, "-m", "tests.bench.check", path]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S
        )
        if done.returncode:
            raise RuntimeError(f"{path}: {done.stderr}")
        # A file for each mark, with what came before it, and one for the end; of the first thread.
        assert len(list(out.parent.glob("out*-01"))) == 5, "nothing but the marks was taken for one"

        def cost(part: int) -> float:
            totals = re.search(r"^(?:summary|totals): (\d+)", Path(f"{out}.{part}-01").read_text(), re.MULTILINE)
            assert totals, "callgrind's output has a line of totals"
            return int(totals[1]) / (TURNS - N)

        return cost(4), cost(2)


def ratios() -> dict[str, float]:
    """Count every path."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        costs = dict(zip(PATHS, pool.map(count, PATHS), strict=True))
    for path, (ours, plain) in costs.items():
        print(f"{path}: {ours:.0f} instructions, plainly {plain:.0f}", file=sys.stderr)
    return {path: ours / plain for path, (ours, plain) in costs.items()}


def judge(found: dict[str, float]) -> list[str]:
    """Say which paths are over their limit."""
    return [
        f"{path} costs {ratio:.2f} x the plain program, at most {MEASURED[path] * TOLERANCE:.2f} is allowed"
        for path, ratio in found.items()
        if ratio > MEASURED[path] * TOLERANCE
    ]


def main() -> int:
    """Count, and print a line a path."""
    found = ratios()
    for path, ratio in found.items():
        print(f"{path:8} {ratio:.3f} x the plain program, {MEASURED[path]:.3f} on record")
    complaints = judge(found)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case [path]:
            # Callgrind may take longer than a peer is given, or a round trip is remembered.
            never = {zmq.HEARTBEAT_IVL: 0, zmq.HANDSHAKE_IVL: 0}
            with mock.patch.dict(sockets.OPTIONS, never), mock.patch.object(window, "FORGET_SMALLEST_NS", math.inf):
                for run in reversed(PATHS[path]):  # the plain program first
                    run()
        case _:
            sys.exit(main())
