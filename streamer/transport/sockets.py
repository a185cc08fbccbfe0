"""What the two ends of every connection share: how a socket is made, bound, connected, sent and received on.

Every socket comes from `open_socket`, so that a reopened one has exactly the options and keys of the first.
"""

from __future__ import annotations

import errno
import math
import os
import re
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import zmq
import zmq.utils.garbage  # frees lent buffers until its exit handler runs, which must be after those of senders

from streamer.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Buffer

# Plain numbers: pyzmq's are enum members, and combining two takes half a microsecond.
DONTWAIT = int(zmq.DONTWAIT)
_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)
_SRCFD = int(zmq.SRCFD)
EVENTS, POLLIN, POLLOUT = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.POLLOUT)
# Above this size copying costs more than lending libzmq the buffer, which a Python thread of pyzmq takes back.
_COPY_MAX_BYTES = 512 * 1024
# If two threads lend their first buffer at once, each makes that thread's socket and pyzmq 27 loses one: a frame leaks,
# and now and then the process hangs at exit. Reentrant, for signal handlers.
_lending = threading.RLock()
os.register_at_fork(before=_lending.acquire, after_in_parent=_lending.release, after_in_child=_lending.release)
_END_S = 0.5  # to wait for libzmq's thread
_MEMORY_KEPT_BYTES = 8 * 1024 * 1024  # by the allocator, for the next frames
_PARTS_MAX = 8
_SWITCH_S = 0.0001
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
ENDED = zmq.EVENT_DISCONNECTED | _HANDSHAKE_FAILED
_MAPPED = re.compile(r"\[::ffff:([\d.]+)\]")  # an IPv4 address as an IPv6 socket writes it
_PLAIN = re.compile(r"[!-~]+")  # an address in which nothing is hidden
_OF_REQ = (zmq.REQ_RELAXED, zmq.REQ_CORRELATE)
OPTIONS: dict[int, int] = {
    zmq.LINGER: 0,  # closing never waits for a peer
    zmq.IPV6: 1,
    zmq.HEARTBEAT_IVL: 1000,
    # A peer whose frame takes long over a slow line cannot answer meanwhile.
    zmq.HEARTBEAT_TIMEOUT: 30_000,
    zmq.HEARTBEAT_TTL: 30_000,
    zmq.HANDSHAKE_IVL: 5000,
    zmq.CONNECT_TIMEOUT: 3000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 200,  # a hub that is back has its cameras again within a third of a second
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
}


class AddressError(TransportError, zmq.ZMQError):
    """An address cannot be used. Also a ZMQError, since programs written for imagezmq catch that."""

    def __init__(self, text: str, number: int | None) -> None:
        zmq.ZMQError.__init__(self, number, text)


class Socket(zmq.Socket[bytes]):
    """A socket that tolerates what programs written for imagezmq do with it.

    They close it by hand and then terminate the context, which would wait for ever for a monitor they do not know of:
    so the monitor is closed together with the socket.
    """

    monitored_by: zmq.Socket[bytes] | None = None
    made_in = 0  # process id: in a fork of that process, libzmq would block for ever

    def set(self, option: int, optval: Any) -> None:
        """Set an option, as `setsockopt` does."""
        # Programs set these on imagezmq's REQ socket, to use it again after a time-out; this one needs no such option.
        if option not in _OF_REQ:
            super().set(option, optval)

    setsockopt = set  # noqa: A003 - this class's own

    def wait_at_most(self, timeout_s: float) -> None:
        """Set how long receiving waits, in seconds; by default for ever."""
        self.set(zmq.RCVTIMEO, round(timeout_s * 1000))

    def close(self, linger: int | None = None) -> None:
        """Close this and its monitor."""
        monitor = self.monitored_by
        if monitor is None or monitor.closed or self.closed or self.made_in != os.getpid():
            super().close(linger)
            return
        # Stop the monitor's events before closing it, else libzmq's thread blocks for ever on the next one, and with it
        # all sockets of this context. Drain it before that: a full monitor would block the stopping, too.
        while get_option(monitor, EVENTS) & POLLIN:
            next_event(monitor)
        self.disable_monitor()
        super().close(linger)
        monitor.close()


class Context(zmq.Context[Socket]):
    """A context whose sockets are the above."""

    _socket_class = Socket


def make_context() -> Context:
    """Make a context: the factory of every context in this package."""
    # By default glibc returns free memory above 128 kB at the heap's end to the kernel, that is, each frame's, and then
    # needs fresh zeroed pages for the next. Freeing a large block raises that limit to twice its size: mallopt(3).
    bytes(_MEMORY_KEPT_BYTES // 2)
    return Context()


def end_context(context: Context) -> None:
    """Close a context and its sockets, in the background if it takes long.

    libzmq's thread may be waiting for a name server, and cannot be interrupted.
    """
    ending = threading.Thread(target=context.destroy, args=(0,), name="ending", daemon=True)
    try:
        ending.start()
    except RuntimeError:  # the system allows no more threads
        context.destroy(0)
    else:
        ending.join(_END_S)


def share_interpreter() -> None:
    """Lower the process's thread switch interval to 0.1 ms; the default is 5 ms.

    A thread that sends and receives releases the GIL seven times a frame, and would wait that long each time for a
    program that computes: of eight cameras' 240 frames a second a hub would get 140, and late.
    """
    sys.setswitchinterval(min(_SWITCH_S, sys.getswitchinterval()))


def check_process(made_in: int, what: str) -> None:
    """Check that something is used in the process that made it: threads and sockets do not survive a fork.

    Raises:
        TransportError: this is another process, which would wait for ever.
    """
    if os.getpid() != made_in:
        raise TransportError(f"the {what} was made before this process was forked: make one in each")


def open_socket(context: Context, kind: int, options: Mapping[Any, int | bytes]) -> Socket:
    """Make a socket: the factory of every socket in this package."""
    socket = context.socket(kind)
    for option, value in {**OPTIONS, **options}.items():
        socket.setsockopt(option, value)
    return socket


def _check(endpoint: object) -> None:
    """Reject what is no text, and a port over 65535, which libzmq would take modulo 65536."""
    if not isinstance(endpoint, str):
        raise zmq.ZMQError(errno.EINVAL)
    match = re.fullmatch(r"tcp://.*:(-?[0-9]+)", endpoint)
    if match and (len(match[1]) > 5 or not 0 <= int(match[1]) <= 65535):
        raise zmq.ZMQError(errno.EINVAL)


def bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind, and return the actual address, with the port that 0 became."""
    try:
        _check(endpoint)
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise _refused("listen on", endpoint, "tcp://*:5555", error) from error
    bound = _MAPPED.sub(r"\1", socket.getsockopt_string(zmq.LAST_ENDPOINT))
    return bound.replace("[::]", "*").replace("0.0.0.0", "*")  # noqa: S104 - it is written, not bound


def connect(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Connect; libzmq does so in the background, as soon as there is a peer."""
    try:
        _check(endpoint)
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise _refused("connect to", endpoint, "tcp://hub:5555", error) from error


def _refused(what: str, endpoint: object, example: str, error: zmq.ZMQError) -> AddressError:
    malformed = error.errno in (zmq.EINVAL, zmq.EPROTONOSUPPORT)
    hint = f": an address is tcp://HOST:PORT, as in {example}" if malformed else ""
    place = endpoint if isinstance(endpoint, str) and _PLAIN.fullmatch(endpoint) else repr(endpoint)
    return AddressError(f"cannot {what} {place}: {zmq.strerror(error.errno or 0)}{hint}", error.errno)


def get_option(socket: zmq.Socket[bytes], option: int) -> int:
    """Return an option whose value is a number."""
    value = socket.getsockopt(option)
    assert isinstance(value, int)  # noqa: S101 - true of all options used here
    return value


def send_parts(socket: zmq.Socket[bytes], parts: Sequence[Buffer]) -> bool:
    """Send without blocking; False if the socket cannot send now."""
    try:
        for part in parts[:-1]:
            socket.send(part, _MORE)
        payload = parts[-1]
        if memoryview(payload).nbytes <= _COPY_MAX_BYTES:
            socket.send(payload, DONTWAIT)
        else:
            with _lending:
                socket.send(payload, DONTWAIT, copy=False)
    except zmq.Again:
        return False
    return True


def receive_parts(socket: zmq.Socket[bytes], *, wait: bool = False) -> list[zmq.Frame]:
    """Receive a message, or the rest of one, without copying; of too many parts, keep the first few and the last.

    Raises:
        zmq.Again: there is none, or with `wait` none comes in time; never in the middle of a message.
    """
    part = socket.recv(0 if wait else DONTWAIT, copy=False)
    parts = [part]
    while part.more:
        part = socket.recv(DONTWAIT, copy=False)
        if len(parts) == _PARTS_MAX:
            parts.pop()
        parts.append(part)
    return parts


def descriptor_of(part: zmq.Frame) -> int:
    """Return the descriptor of a part's connection; -1 if libzmq does not know it, as for a peer that speaks ZMTP 2."""
    try:
        return int(part.get(_SRCFD))
    except zmq.ZMQError:
        return -1


def monitor_events(socket: Socket, events: int, address: str | None = None) -> zmq.Socket[bytes]:
    """Monitor the connection events of a socket that has no connections yet."""
    socket.made_in = os.getpid()
    socket.monitored_by = monitor = socket.get_monitor_socket(events, address)
    get_option(monitor, EVENTS)  # its descriptor signals nothing before this was read once
    return monitor


def next_event(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """Receive a monitor's next event, and its value."""
    event, value = struct.unpack("=HI", monitor.recv_multipart()[0])  # as zmq_socket_monitor(3) has it
    return event, value


def deadline_of(within_ms: int) -> float:
    """Convert a ZMQ timeout, milliseconds or -1 for none, to a deadline in monotonic seconds."""
    return time.monotonic() + within_ms / 1000 if within_ms >= 0 else math.inf


def remaining_ms(deadline: float) -> int | None:
    """Return the timeout to poll with until a deadline, in ms; None for no limit."""
    return None if deadline == math.inf else math.ceil(max(0.0, deadline - time.monotonic()) * 1000)


def out_of_step(why: str) -> zmq.ZMQError:
    """Return the error that REQ and REP sockets raise when sending and receiving do not alternate."""
    return zmq.ZMQError(zmq.EFSM, why)
