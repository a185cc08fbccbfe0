"""Raw ZMQ and TCP peers, to meet the package from outside; a wait that takes too long fails the test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from streamer.codec import encode_jpeg
from streamer.errors import StreamerError
from tests.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

WAIT_S = 15.0
JPEG = bytes(encode_jpeg(np.full((16, 24, 3), 90, np.uint8), 80))
LOCAL = "tcp://127.0.0.1:*"


@contextlib.contextmanager
def raw(kind: int, *, connect: str = "") -> Iterator[zmq.Socket[bytes]]:
    """Open a bare socket."""
    with zmq.Context() as context, context.socket(kind) as bare:
        bare.setsockopt(zmq.LINGER, 0)
        bare.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
        bare.setsockopt(zmq.SNDTIMEO, round(WAIT_S * 1000))
        if connect:
            bare.connect(connect)
        yield bare


class RawHub:
    """A hub that replies only when the test says so."""

    def __init__(self, endpoint: str = LOCAL) -> None:
        self._stack = contextlib.ExitStack()
        self.socket = self._stack.enter_context(raw(zmq.ROUTER))
        self.socket.bind(endpoint)
        self.endpoint = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def take(self) -> tuple[bytes, dict[str, Any], bytes]:
        """Return the next request: route, header, payload."""
        route, delimiter, header, payload = self.socket.recv_multipart()
        assert delimiter == b""
        return route, json.loads(header), payload

    def waits(self, within_s: float = 0) -> bool:
        """Whether a request comes in time."""
        return bool(self.socket.poll(round(within_s * 1000)))

    def reply(self, route: bytes, text: bytes = b"OK") -> None:
        self.socket.send_multipart([route, b"", text])

    def answer(self) -> int:
        """Reply to the next request, and return the first byte of its payload."""
        route, _, payload = self.take()
        self.reply(route)
        return payload[0]

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> RawHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def listener(endpoint: str = "tcp://127.0.0.1:0") -> Iterator[tuple[socket.socket, str]]:
    """Listen on TCP without speaking ZMQ."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with socket.create_server((host, int(port))) as server:
        server.settimeout(WAIT_S)
        yield server, f"tcp://{host}:{server.getsockname()[1]}"


def picture(value: int, side: int = 2) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Make an array whose bytes all have one value."""
    return np.full((side, side), value % 256, np.uint8)


def header(message: object = "pi1", **fields: object) -> bytes:
    """Write a header as a stock sender does."""
    return json.dumps({"msg": message, **fields}).encode()


def open_descriptors() -> int:
    """Count the files, sockets and pipes that this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def said_after_fork(*calls: Callable[[], object]) -> list[str]:
    """Return which error each call raises in a process that is forked now; one that hangs is killed."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        signal.alarm(round(WAIT_S))
        for call in calls:
            try:
                call()
            except StreamerError as error:
                os.write(writer, f"{error}\n".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        lines = said.read().splitlines()
    assert os.waitpid(child, 0)[1] == 0
    return lines


def interrupt(call: Callable[[], object], handle: Callable[[], object]) -> bool:
    """Make a call during which `handle` is called at each line, as a signal handler may be; return whether it ends."""
    handling = False

    def trace(frame: object, event: str, _: object) -> Any:
        nonlocal handling
        if event == "line" and not handling:
            handling = True
            handle()
            handling = False
        return trace

    def run() -> None:
        sys.settrace(trace)
        call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    return not thread.is_alive()


@contextlib.contextmanager
def held_by_another_thread(*locks: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Hold locks as a thread in the middle of its work does, of which a fork copies the locks but not the thread."""
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            release.wait(2 * WAIT_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(WAIT_S)
    try:
        yield
    finally:
        release.set()
        holder.join()


def compute(for_s: float) -> None:
    """Compute in Python for so many seconds, as a program that gives no other thread of its process a chance."""
    end = time.monotonic() + for_s
    while time.monotonic() < end:
        pass


class Program:
    """A Python program in a process of its own; leaving `with` kills it."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=Path(__file__).parents[1],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []  # printed so far
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))

    def line(self, number: int) -> str:
        """Return a line that it prints, waiting for it."""
        until(lambda: len(self.lines) > number, WAIT_S)
        return self.lines[number]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, within_s: float = WAIT_S) -> int:
        """Wait until it has ended and all that it printed is read; return its status."""
        status = self.process.wait(within_s)
        self._reader.join()
        return status

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.end()
        assert self.process.stdin
        self.process.stdin.close()
