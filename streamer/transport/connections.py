"""Limits the TCP connections of a listening ZMQ socket: their number, and the size of their unfinished messages.

Also tells what the kernel knows of a connection's way.

libzmq limits neither the number of connections nor the parts of a message: it buffers parts until the last one comes,
and spins when descriptors run out. So its connections are watched from outside, by the descriptors that its monitor
reports: asked how much they have received (`TCP_INFO`, Linux only) and, at worst, shut down, as if the peer had left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = TypeVar("Answer")

CONNECTIONS_MAX = 2048  # per socket; but at most half of the process's descriptor limit
UNFINISHED_MAX_BYTES = 256 * 1024 * 1024  # of the unfinished messages of all peers together
_LOOKED_AT_ONCE = 32  # takes a fifth of a millisecond with cold caches
# struct tcp_info in linux/tcp.h: tcpi_rtt and tcpi_min_rtt, 32 bits, in µs; tcpi_bytes_received, 64 bits.
_RTT_AT, _RECEIVED_AT, _MIN_RTT_AT = 68, 128, 148
_INFO_BYTES = 152


@dataclass(slots=True)
class _Connection:
    address: str | None
    has_sent: bool = False  # a whole message, ever
    is_quiet: bool = True  # no whole message since the last look
    received_before: int | None = 0  # bytes received when its unfinished message began; None: not known yet


class Connections:
    """Watches the connections of one socket. Not thread-safe: for the receiving thread."""

    def __init__(self) -> None:
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = CONNECTIONS_MAX if most == resource.RLIM_INFINITY else min(CONNECTIONS_MAX, most // 2)
        _make_room(2 * self._most)
        self._open: dict[int, _Connection] = {}
        # The same by address, the oldest first: thousands may come in a second.
        self._of_address: defaultdict[str | None, dict[int, _Connection]] = defaultdict(dict)
        self._cut: dict[int, str | None] = {}  # addresses of those ended here, until libzmq reports that
        # The look in progress: connections to look at, and the sizes of the unfinished messages found so far.
        self._unseen: list[tuple[int, _Connection]] = []
        self._unfinished: list[tuple[int, int, _Connection]] = []

    def began(self, descriptor: int) -> tuple[str | None, str] | None:
        """Add a connection. If there are too many, end one, and return its address and the reason.

        That is the newest one of the address with the most; among equal addresses, of the one that came last. So a
        stranger who opens all that there are, from however many addresses, displaces nobody else.
        """
        self.ended(descriptor)  # in case its end was not reported
        address = _ask(descriptor, _address)
        self._open[descriptor] = self._of_address[address][descriptor] = _Connection(address)
        if len(self._open) <= self._most:
            return None
        crowd = max(reversed(self._of_address), key=lambda each: len(self._of_address[each]))
        theirs = self._of_address[crowd]
        self._end(next((each for each in reversed(theirs) if not theirs[each].has_sent), next(reversed(theirs))))
        return crowd, f"of {self._most} connections it has most"

    def ended(self, descriptor: int) -> tuple[str | None, bool]:
        """Remove a connection that has ended; return its address, and whether it was ended here."""
        if descriptor in self._cut:
            return self._cut.pop(descriptor), True
        return self._forget(descriptor) if descriptor in self._open else None, False

    def _forget(self, descriptor: int) -> str | None:
        """Remove a connection; return its address."""
        address = self._open.pop(descriptor).address
        del self._of_address[address][descriptor]
        if not self._of_address[address]:
            del self._of_address[address]
        return address

    def heard(self, descriptor: int) -> bool:
        """Note a whole message; return whether its connection is known: a message may arrive before that event."""
        connection = self._open.get(descriptor)
        if connection is None:
            return False
        connection.has_sent, connection.is_quiet, connection.received_before = True, False, None
        return True

    @property
    def is_looking(self) -> bool:
        """Whether a look is in progress."""
        return bool(self._unseen)

    def begin_look(self) -> None:
        """Begin to look for messages that do not end, unless a look is in progress."""
        if not self._unseen:
            self._unseen, self._unfinished = list(self._open.items()), []

    def look(self) -> list[tuple[str | None, str]]:
        """Continue a look by a few connections: frames wait meanwhile.

        With the last few, end the connections with the largest unfinished messages until the rest is under the limit;
        return the address and reason of each.
        """
        if not self._unseen:
            return []
        for descriptor, connection in self._unseen[-_LOOKED_AT_ONCE:]:
            if self._open.get(descriptor) is not connection:
                continue
            if connection.is_quiet:
                received = _ask(descriptor, _received) or 0
                if connection.received_before is None:
                    connection.received_before = received
                self._unfinished.append((received - connection.received_before, descriptor, connection))
            connection.is_quiet = True
        del self._unseen[-_LOOKED_AT_ONCE:]
        return [] if self._unseen else self._end_largest()

    def _end_largest(self) -> list[tuple[str | None, str]]:
        ended: list[tuple[str | None, str]] = []
        total = sum(size for size, _, _ in self._unfinished)
        if total > UNFINISHED_MAX_BYTES:
            self._unfinished.sort(key=lambda each: each[0])
        while total > UNFINISHED_MAX_BYTES:
            size, descriptor, connection = self._unfinished.pop()
            total -= size
            if self._open.get(descriptor) is connection:
                self._end(descriptor)
                ended.append((connection.address, f"its message had no end after {size // 1_000_000} MB"))
        return ended

    def _end(self, descriptor: int) -> None:
        address = self._cut[descriptor] = self._forget(descriptor)

        def shut(connection: socket.socket) -> None:
            # If libzmq has just closed it, its descriptor may be another connection's by now.
            if _address(connection) == address:
                connection.shutdown(socket.SHUT_RDWR)

        _ask(descriptor, shut)


def packet_times(descriptor: int) -> tuple[int, int] | None:
    """Return how long a packet of a connection and its acknowledgement take: of late, and at best in the last minutes.

    Returns:
        Both in ns, as TCP measures them; None where the system does not tell.
    """
    info = _ask(descriptor, _info)
    if not info:
        return None
    of_late_us, best_us = (struct.unpack_from("=I", info, at)[0] for at in (_RTT_AT, _MIN_RTT_AT))
    return 1000 * of_late_us, 1000 * best_us


def _make_room(descriptors: int) -> None:
    """Enlarge the kernel's descriptor table of this process.

    When the table of a multi-threaded process grows, Linux waits for all processors (`expand_fdtable` in fs/file.c):
    the connection that causes it would hold up every camera, for 10 ms or more.
    """
    with contextlib.suppress(OSError), socket.socket() as one:  # it fails if as many are open already
        os.close(fcntl.fcntl(one, fcntl.F_DUPFD, descriptors - 1))


def _ask(descriptor: int, question: Callable[[socket.socket], Answer]) -> Answer | None:
    """Query a connection that libzmq owns; None if it is closed already."""
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        return question(connection)
    except OSError:
        return None
    finally:
        connection.detach()


def _address(connection: socket.socket) -> str | None:
    """Return the IP address of the peer; None on a transport without addresses."""
    peer = connection.getpeername()
    return str(peer[0]).removeprefix("::ffff:") if isinstance(peer, tuple) else None


def _received(connection: socket.socket) -> int:
    """Return how many bytes a TCP connection has received; 0 where the system does not tell."""
    info = _info(connection)
    return int(struct.unpack_from("=Q", info, _RECEIVED_AT)[0]) if info else 0


def _info(connection: socket.socket) -> bytes:
    """Return a TCP connection's `struct tcp_info`; nothing where the system has none, or a shorter one."""
    if not hasattr(socket, "TCP_INFO"):
        return b""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    return info if len(info) == _INFO_BYTES else b""
