"""A long line on one machine: a TCP relay that passes on what comes later, and if wanted only so fast."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time

CHUNK_BYTES = 1 << 14
UNDER_WAY_MAX = 1024  # chunks, after which it reads no more, as a line whose other end does not read


class DelayRelay:
    """Takes connections, and makes one to `endpoint` for each; what comes from either end reaches the other later.

    Args:
        endpoint: where to, `tcp://HOST:PORT`.
        delay_s: each way, in seconds, so that a round trip takes twice as long; may be changed while it runs.
        bytes_per_s: what the line carries, of each connection and each way; None for all that the machine can.

    Attributes:
        endpoint: where to connect to instead.
    """

    def __init__(self, endpoint: str, delay_s: float, bytes_per_s: float | None = None) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._target = host, int(port)
        self.delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listening.getsockname()[1]}"
        self._lock = threading.Lock()  # of the two below
        self._closing = False
        self._open: set[socket.socket] = set()
        self._carrying: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        """Cut every connection, whatever is under way."""
        with self._lock:
            self._closing = True
            for end in (self._listening, *self._open):
                _cut(end)
        self._accepting.join()
        for carrying in self._carrying:
            carrying.join()
        self._listening.close()

    def __enter__(self) -> DelayRelay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # cut
            while True:
                near, _ = self._listening.accept()
                carrying = threading.Thread(target=self._carry, args=[near])
                self._carrying.append(carrying)
                carrying.start()

    def _carry(self, near: socket.socket) -> None:
        """Be one connection, until both of its ends are closed."""
        with near, contextlib.suppress(OSError), socket.create_connection(self._target) as far:
            with self._lock:
                if self._closing:
                    return
                self._open |= {near, far}
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._read, args=[far, near])
            back.start()
            self._read(near, far)
            back.join()
            with self._lock:
                self._open -= {near, far}

    def _read(self, source: socket.socket, sink: socket.socket) -> None:
        """Be one direction of a connection: read here, write in a thread of its own."""
        under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(UNDER_WAY_MAX)
        writing = threading.Thread(target=_write, args=[under_way, source, sink])
        writing.start()
        free = time.monotonic()  # when the line will have carried what it was given
        chunk = b"more"
        while chunk:
            try:
                chunk = source.recv(CHUNK_BYTES)
            except OSError:
                chunk = b""
            if self._bytes_per_s:
                free = max(free, time.monotonic()) + len(chunk) / self._bytes_per_s
                time.sleep(max(0.0, free - time.monotonic()))
            under_way.put((time.monotonic() + self.delay_s, chunk))
        writing.join()


def _write(under_way: queue.Queue[tuple[float, bytes]], source: socket.socket, sink: socket.socket) -> None:
    """Write each chunk when it is due; an empty one is the last."""
    while True:
        due, chunk = under_way.get()
        time.sleep(max(0.0, due - time.monotonic()))
        if not chunk:
            break
        with contextlib.suppress(OSError):
            sink.sendall(chunk)
            continue
        _cut(source)  # whoever sends is to learn that nobody receives
        _cut(sink)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _cut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
