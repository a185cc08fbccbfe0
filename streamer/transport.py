"""The only place that touches ZMQ sockets: a class for each end of request/reply and publish/subscribe, and a poller.

Every socket comes from `_open`, so that a reopened one has exactly the options and keys of the first. Nothing here but
`Waker` is thread-safe: a socket belongs to the thread that uses it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import math
import os
import re
import select
import struct
import sys
import threading
import time
from socket import getaddrinfo
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq
import zmq.utils.garbage  # frees lent buffers until its exit handler runs, which must be after those of senders

from streamer import keys, wire
from streamer.connections import UNFINISHED_MAX_BYTES, Connections
from streamer.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Buffer

    from streamer.keys import AllowList, KeyPair

# Plain numbers: pyzmq's are enum members, and combining two takes half a microsecond.
_DONTWAIT = int(zmq.DONTWAIT)
_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)
_SRCFD = int(zmq.SRCFD)
_EVENTS, _POLLIN, _POLLOUT = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.POLLOUT)
# Above this size copying costs more than lending libzmq the buffer, which a Python thread of pyzmq takes back.
_COPY_MAX_BYTES = 512 * 1024
# If two threads lend their first buffer at once, each makes that thread's socket and pyzmq 27 loses one: a frame leaks,
# and now and then the process hangs at exit.
_lending = threading.Lock()
os.register_at_fork(before=_lending.acquire, after_in_parent=_lending.release, after_in_child=_lending.release)
_REPLY_MAX_BYTES = 64 * 1024  # of a hub's reply to a camera
_END_S = 0.5  # to wait for libzmq's thread
_MEMORY_KEPT_BYTES = 8 * 1024 * 1024  # by the allocator, for the next frames
_PARTS_MAX = 8
_ANSWERED_AT_ONCE = 8  # handshakes and events that a door handles while frames wait
_SWITCH_S = 0.0001
_PAUSE_S = 0.1  # before reconnecting to a hub that has left
_SILENT_S = 3.0  # without a hub, before that is logged
_REMIND_S = 60.0
# ZAP domains (RFC 27): they tell a replier's two listeners apart.
_ENCRYPTED, _PLAIN = b"streamer", b"plain"
_NO_KEY = "-"  # ZAP's user id of a peer without encryption
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_ENDED = zmq.EVENT_DISCONNECTED | _HANDSHAKE_FAILED
_MET = zmq.EVENT_HANDSHAKE_SUCCEEDED
_MISSED = zmq.EVENT_CONNECT_RETRIED
# An endpoint with a host name: libzmq tries addresses of one family only, with IPv6 enabled those, if the name has any.
_NAMED = re.compile(r"tcp://[^:;\[]*[A-Za-z][^:;\[]*:[0-9]+")
_MISSES = 2  # failed attempts in one address family before the other is tried
_CUTS = 5  # handshakes in a row cut off without a reason before that is reported
_MAPPED = re.compile(r"\[::ffff:([\d.]+)\]")  # an IPv4 address as an IPv6 socket writes it
_OF_REQ = (zmq.REQ_RELAXED, zmq.REQ_CORRELATE)
_OPTIONS: dict[int, int] = {
    zmq.LINGER: 0,  # closing never waits for a peer
    zmq.IPV6: 1,
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.HEARTBEAT_TTL: 3000,
    zmq.HANDSHAKE_IVL: 5000,
    zmq.CONNECT_TIMEOUT: 3000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 200,  # a hub that is back has its cameras again within a third of a second
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
_log = logging.getLogger(__name__)


class AddressError(TransportError, zmq.ZMQError):
    """An address cannot be used. Also a ZMQError, since programs written for imagezmq catch that."""

    def __init__(self, text: str, number: int | None) -> None:
        zmq.ZMQError.__init__(self, number, text)


class _Socket(zmq.Socket[bytes]):
    """A socket that tolerates what programs written for imagezmq do with it.

    They close it by hand and then terminate the context, which would wait for ever for a monitor they do not know of:
    so the monitor is closed together with the socket.
    """

    monitored_by: zmq.Socket[bytes] | None = None
    made_in = 0  # process id: in a fork of that process, libzmq would block for ever

    def set(self, option: int, optval: Any) -> None:
        # Programs set these on imagezmq's REQ socket, to use it again after a time-out; this one needs no such option.
        if option not in _OF_REQ:
            super().set(option, optval)

    setsockopt = set  # noqa: A003 - this class's own

    def close(self, linger: int | None = None) -> None:
        monitor = self.monitored_by
        if monitor is None or monitor.closed or self.closed or self.made_in != os.getpid():
            super().close(linger)
            return
        # Stop the monitor's events before closing it, else libzmq's thread blocks for ever on the next one, and with it
        # all sockets of this context. Drain it before that: a full monitor would block the stopping, too.
        while _option(monitor, _EVENTS) & _POLLIN:
            _event(monitor)
        self.disable_monitor()
        super().close(linger)
        monitor.close()


class _Context(zmq.Context[_Socket]):
    _socket_class = _Socket


def _context() -> _Context:
    """Make a context: the factory of every context in this package."""
    # By default glibc returns free memory above 128 kB at the heap's end to the kernel, that is, each frame's, and then
    # needs fresh zeroed pages for the next. Freeing a large block raises that limit to twice its size: mallopt(3).
    bytes(_MEMORY_KEPT_BYTES // 2)
    return _Context()


def _end(context: _Context) -> None:
    """Close a context and its sockets, in the background if it takes long.

    libzmq's thread may be waiting for a name server, and cannot be interrupted.
    """
    ending = threading.Thread(target=context.destroy, args=(0,), name="ending", daemon=True)
    ending.start()
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


def _open(context: _Context, kind: int, options: Mapping[Any, int | bytes]) -> _Socket:
    """Make a socket: the factory of every socket in this package."""
    socket = context.socket(kind)
    for option, value in {**_OPTIONS, **options}.items():
        socket.setsockopt(option, value)
    return socket


def _seed() -> None:
    """Make libzmq's numbering of a ROUTER's peers unpredictable.

    It starts at a number from C's `rand`, the same in every process unless seeded, and libzmq aborts the process if a
    peer has claimed the next number as its routing id.
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "big"))


def _check_port(endpoint: str) -> None:
    """Reject a port over 65535, which libzmq would take modulo 65536."""
    match = re.fullmatch(r"tcp://.*:(-?[0-9]+)", endpoint)
    if match and (len(match[1]) > 5 or not 0 <= int(match[1]) <= 65535):
        raise zmq.ZMQError(errno.EINVAL)


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind, and return the actual address, with the port that 0 became."""
    try:
        _check_port(endpoint)
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise _refused(f"cannot listen on {endpoint}", error) from error
    bound = _MAPPED.sub(r"\1", socket.getsockopt_string(zmq.LAST_ENDPOINT))
    return bound.replace("[::]", "*").replace("0.0.0.0", "*")  # noqa: S104 - it is written, not bound


def _connect(socket: zmq.Socket[bytes], endpoint: str) -> None:
    try:
        _check_port(endpoint)
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise _refused(f"cannot connect to {endpoint}", error) from error


def _refused(what: str, error: zmq.ZMQError) -> AddressError:
    malformed = error.errno in (zmq.EINVAL, zmq.EPROTONOSUPPORT)
    hint = ": an address is tcp://HOST:PORT, as in tcp://hub:5555 or tcp://*:5555" if malformed else ""
    return AddressError(f"{what}: {zmq.strerror(error.errno or 0)}{hint}", error.errno)


def with_reason(endpoint: str, refusal: str | None = None) -> str:
    """Return an endpoint with the reason why it cannot be reached: a known refusal, or a name that does not resolve.

    libzmq does not report the latter. This blocks while the name is looked up.
    """
    host = re.fullmatch(r"tcp://\[?(.+?)]?:[0-9]+", endpoint)
    if host and not refusal:
        try:
            getaddrinfo(host[1].encode(), None)  # for a str Python would load its Unicode tables
        except OSError as error:
            refusal = f"has a name that does not resolve ({error.strerror})"
    return f"{endpoint}, which {refusal}" if refusal else endpoint


def _option(socket: zmq.Socket[bytes], option: int) -> int:
    value = socket.getsockopt(option)
    assert isinstance(value, int)  # noqa: S101 - true of all options used here
    return value


def _send(socket: zmq.Socket[bytes], parts: Sequence[Buffer]) -> bool:
    """Send without blocking; False if the socket cannot send now."""
    try:
        for part in parts[:-1]:
            socket.send(part, _MORE)
        payload = parts[-1]
        if memoryview(payload).nbytes <= _COPY_MAX_BYTES:
            socket.send(payload, _DONTWAIT)
        else:
            with _lending:
                socket.send(payload, _DONTWAIT, copy=False)
    except zmq.Again:
        return False
    return True


def _address(part: zmq.Frame) -> str | None:
    """Return the IP address of the peer that sent a part; None on a transport without addresses."""
    try:
        address = str(part.get("Peer-Address"))
    except zmq.ZMQError:
        return None
    # On ipc libzmq says "localhost:" and the process.
    return None if address.startswith("localhost:") else address.removeprefix("::ffff:") or None


def _descriptor(part: zmq.Frame) -> int:
    """Return the descriptor of a part's connection; -1 if libzmq does not know it, as for a peer that speaks ZMTP 2."""
    try:
        return int(part.get(_SRCFD))
    except zmq.ZMQError:
        return -1


def _key(part: zmq.Frame) -> str | None:
    """Return the key with which the peer that sent a part was admitted; None if it needed none."""
    key = str(part.get("User-Id"))
    return None if key == _NO_KEY else key


def _monitor(socket: _Socket, events: int, address: str | None = None) -> zmq.Socket[bytes]:
    """Monitor the connection events of a socket that has no connections yet."""
    socket.made_in = os.getpid()
    socket.monitored_by = monitor = socket.get_monitor_socket(events, address)
    _option(monitor, _EVENTS)  # its descriptor signals nothing before this was read once
    return monitor


def _event(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """Receive a monitor's next event, and its value."""
    event, value = struct.unpack("=HI", monitor.recv_multipart()[0])  # as zmq_socket_monitor(3) has it
    return event, value


class Waker:
    """Wakes a polling thread, by a pipe: a ZMQ socket must not be used by two threads."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._lock = threading.Lock()  # a late wake must not write to a descriptor that was closed and reused
        self._closed = False

    def fileno(self) -> int:
        """Return the file descriptor to poll for reading."""
        return self._reader

    def wake(self) -> None:
        """Make the current or next poll return; any thread may call this. No effect after `close`."""
        with self._lock, contextlib.suppress(BlockingIOError):  # the pipe is full: it will wake anyway
            if not self._closed:
                os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Discard the wakes so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)

    def close(self) -> None:
        """Close both ends."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._reader)
                os.close(self._writer)


class Received(NamedTuple):
    """A message as received.

    Attributes:
        route: identifies the peer for the reply; empty for a subscriber, which cannot reply.
        parts: header and payload; None if the message is malformed.
        address: the peer's IP address, if known.
        key: the peer's public key; None without encryption.
    """

    route: bytes
    parts: tuple[bytes, memoryview] | None
    address: str | None
    key: str | None = None


class Requester:
    """The sending end of request/reply: a DEALER that speaks REQ's format, with many requests in flight.

    Args:
        endpoint: of the hub, `tcp://HOST:PORT`.
        pair: this end's keys, for CURVE; None for no encryption.
        hub_key: the hub's public key; required with `pair`.
        patience_s: how long `receive(wait=True)` waits, in seconds; by default for ever.
        queues: queue requests while there is no hub, as `ask` needs; by default `send` refuses them.

    Raises:
        TransportError: the endpoint is malformed.
    """

    def __init__(
        self,
        endpoint: str,
        pair: KeyPair | None = None,
        hub_key: str | None = None,
        patience_s: float | None = None,
        *,
        queues: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self._queues = queues
        self._patience_ms = -1 if patience_s is None else round(patience_s * 1000)
        # Why the hub refuses this end, as words to follow its endpoint; libzmq does not report it.
        self.refusal: str | None = None
        self._refusal_told: str | None = None
        self._curve: dict[int, bytes] = {}
        if pair and hub_key:
            self._curve = {
                zmq.CURVE_SERVERKEY: keys.to_bytes(hub_key),
                zmq.CURVE_PUBLICKEY: keys.to_bytes(pair.public),
                zmq.CURVE_SECRETKEY: keys.to_bytes(pair.secret),
            }
        self._cuts = 0
        self._ipv6 = 1
        self.context = _context()
        self._opened = 0
        self._unanswered = False  # the last request has no reply, or the hub has left since
        try:
            self._fresh()
        except TransportError:
            self.close()
            raise

    def _fresh(self) -> None:
        # IMMEDIATE: without it frames queue while there is no hub, and are old when it comes; with it libzmq discards
        # replies that a hub sent right before it left.
        # SNDHWM: well above any window, since a full pipe looks as if there were no hub.
        # MAXMSGSIZE: imagezmq programs reply with results, even pictures.
        limits = {zmq.MAXMSGSIZE: wire.PAYLOAD_MAX_BYTES if self._queues else _REPLY_MAX_BYTES}
        options = {zmq.IMMEDIATE: int(not self._queues), zmq.SNDHWM: 64, zmq.RCVHWM: 64, zmq.IPV6: self._ipv6, **limits}
        self.socket = _open(self.context, zmq.DEALER, {**options, zmq.RCVTIMEO: self._patience_ms, **self._curve})
        self._opened += 1
        self._is_refused = self._met = False
        self._misses = 0
        events = (_MET | _ENDED if self._queues else _ENDED) | (_MISSED if _NAMED.fullmatch(self.endpoint) else 0)
        self.monitor = _monitor(self.socket, events, f"inproc://left-{self._opened}")
        _connect(self.socket, self.endpoint)

    def reopen(self) -> None:
        """Discard the socket, with all that is queued or in flight, and open a new one with the same timeouts.

        Logs why the handshake failed, if it did, once.
        """
        if self.refusal and self.refusal != self._refusal_told:
            _log.warning("%s %s", self.endpoint, self.refusal)
        self._refusal_told = self.refusal
        own = [(option, _option(self.socket, option)) for option in (zmq.SNDTIMEO, zmq.RCVTIMEO)]
        self.socket.close()
        self._unanswered = False
        self._fresh()
        for option, value in own:
            self.socket.setsockopt(option, value)

    def left(self) -> bool:
        """Whether a connection has ended since the last call: all that was in flight on it is lost. If so, `reopen`.

        `connected` cannot tell: the hub may be back already. And libzmq does not reconnect by itself to a peer that is
        no hub, or has other security. If no address of one family (IPv4, IPv6) answers, this tries the other.
        """
        left = False
        while _option(self.monitor, _EVENTS) & _POLLIN:
            event, value = _event(self.monitor)
            if event == _MET:
                self._met, self._misses = True, 0
                continue
            if event == _MISSED:
                self._misses += 1
                continue
            left = True
            if event != zmq.EVENT_DISCONNECTED:
                self._is_refused = True
                self._note(event, value)
            elif not self._is_refused:
                self.refusal, self._cuts = None, 0
        if not self._queues and not self.connected():
            self._try_other_kind()
        return left

    def _try_other_kind(self) -> bool:
        """Try the host's addresses of the other family if these did not answer; what is queued is lost."""
        if self._misses < _MISSES:
            return False
        self._misses = 0
        self._ipv6 = int(not self._ipv6)
        self.socket.disconnect(self.endpoint)
        self.socket.setsockopt(zmq.IPV6, self._ipv6)
        _connect(self.socket, self.endpoint)
        return True

    def _note(self, event: int, value: int) -> None:
        """Note why a handshake failed."""
        self._cuts = self._cuts + 1 if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL else 0
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.refusal = "refuses this sender's key: the hub's list of allowed keys has not got it"
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self.refusal = (
                "has no encryption, and this sender sends with encryption only"
                if self._curve
                else "takes encrypted frames only: this sender has no keys"
            )
        elif self._cuts >= _CUTS and self._curve:
            # A hub does this when it cannot decrypt the first message; one that is shutting down does so once.
            self.refusal = "ends every handshake: it has another key than the one that this sender expects"

    def connected(self) -> bool:
        """Whether there is a connection to a hub, with its handshake completed."""
        return bool(_option(self.socket, _EVENTS) & _POLLOUT)

    def send(self, header: bytes, payload: Buffer) -> bool:
        """Send a request without blocking; False if there is no hub."""
        return _send(self.socket, (b"", header, payload))

    def receive(self, *, wait: bool = False) -> bytes | None:
        """Return the next reply, or None if there is none now; with `wait`, if none comes in time.

        A malformed reply counts as none, and sets `refusal`.
        """
        if not wait and not _option(self.socket, _EVENTS) & _POLLIN:  # cheaper than an exception
            return None
        try:
            parts = _receive_parts(self.socket, wait=wait)
        except zmq.Again:
            return None
        if len(parts[0]) or len(parts) == 1:  # libzmq reads an HTTP server's response as ZMTP 1.0
            self._is_refused, self.refusal = True, "is not a hub (is this the port of a page?)"
            return None
        return parts[-1].bytes

    def ask(self, header: bytes, payload: Buffer) -> bytes:
        """Send a request and wait for its reply, as REQ does; if the hub leaves meanwhile, ask again when one is back.

        Only with `queues`. A hub may take any time to reply while its connection lives. Timeouts set on `socket` are
        respected: SNDTIMEO limits the wait for a hub, RCVTIMEO the whole call.

        Raises:
            zmq.Again: such a timeout is over.
        """
        send_within_ms, receive_within_ms = _option(self.socket, zmq.SNDTIMEO), _option(self.socket, zmq.RCVTIMEO)
        replied_by = _deadline(receive_within_ms)
        tell_at = time.monotonic() + _SILENT_S
        while True:
            if self.left() or self._unanswered:  # a late reply must not be taken for this one's
                self.reopen()
            self._unanswered = True
            met_by = min(_deadline(send_within_ms), replied_by)
            self.send(header, payload)
            left = False
            while not left:
                left = self.left()
                if (reply := self.receive()) is not None:
                    self._unanswered = left  # if so, the next request needs a new connection
                    return reply
                if not left and self._try_other_kind():
                    self.send(header, payload)
                if not self._met and time.monotonic() >= tell_at:
                    tell_at += _REMIND_S
                    # A thread of its own, since it may take as long as a name server that does not answer.
                    threading.Thread(target=self._tell_want, name="telling", daemon=True).start()
                if not left:
                    self._await(*((replied_by, math.inf) if self._met else (met_by, tell_at)))
            self.reopen()  # at once: libzmq would reconnect by itself, and send the request a second time
            time.sleep(_PAUSE_S)

    def _tell_want(self) -> None:
        """Log that there is no hub and, if known, why."""
        place = with_reason(self.endpoint, self.refusal)
        if not self._met and not self.socket.closed:
            _log.warning("no hub answers at %s; waiting for one", place)

    def _await(self, deadline: float, look_at: float) -> None:
        """Wait until `look_at` for a reply, or for a hub to come or leave.

        Raises:
            zmq.Again: none of these happens before the deadline, which comes first.
        """
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        if not poller.poll(_remaining_ms(min(deadline, look_at))) and deadline <= look_at:
            raise zmq.Again

    def close(self) -> None:
        """Close at once, whatever is in flight."""
        if self._opened:
            self.socket.close()
        _end(self.context)


class _Guarded:
    """A receiving end whose connections may be watched.

    If they are, call `weigh` a few times a second, and `admit` whenever a Poller that watches this end wakes, and
    repeatedly while it is `crowded`.
    """

    door: _Door | None = None

    def admit(self) -> list[tuple[str | None, str]]:
        """Let in some of the waiting peers that are allowed, and continue the check that `weigh` began.

        Returns:
            (IP address if known, reason) for each peer refused or cut off.
        """
        return [*self.door.answer(), *self.door.connections.look()] if self.door else []

    @property
    def crowded(self) -> bool:
        """Whether `admit` has left work for another call, so that frames do not wait for all of it."""
        return self.door is not None and (self.door.crowded or self.door.connections.is_looking)

    def weigh(self) -> None:
        """Begin to check for connections whose messages do not end; `admit` continues it."""
        if self.door:
            self.door.connections.begin_look()


class Replier(_Guarded):
    """The receiving end of request/reply: a ROUTER, which serves stock REQ senders and ours on one port.

    With keys, handshakes wait until `admit` is called.

    Args:
        endpoint: to bind, `tcp://*:PORT`.
        pair: this end's keys, for CURVE; None for no encryption.
        allowed: with `pair`, the keys of the peers to let in.
        plain_endpoint: with `pair`, a second address to bind, for peers without encryption.
        guarded: limit the connections; always done with keys.

    Raises:
        TransportError: an address cannot be bound.
    """

    def __init__(
        self,
        endpoint: str,
        pair: KeyPair | None = None,
        allowed: AllowList | None = None,
        plain_endpoint: str | None = None,
        *,
        guarded: bool = False,
    ) -> None:
        self.context = _context()
        # MAXMSGSIZE: far above what is accepted. libzmq silently closes the connection of a peer that exceeds it, and a
        # REQ peer then waits for ever; below it, the peer gets an error reply.
        options = {zmq.RCVHWM: 16, zmq.SNDHWM: 64, zmq.MAXMSGSIZE: UNFINISHED_MAX_BYTES}
        self.plain_endpoint: str | None = None
        # Addresses by route, of peers heard since the last `weigh`: asking libzmq takes as long as receiving a part.
        self._lately: dict[bytes, str | None] = {}
        curve: dict[int, int | bytes] = {}
        if pair and allowed:
            curve = {
                zmq.CURVE_SERVER: 1,
                zmq.CURVE_SECRETKEY: keys.to_bytes(pair.secret),
                zmq.ZAP_DOMAIN: _ENCRYPTED,
            }
        self._has_keys = bool(curve)
        _seed()
        self.socket = _open(self.context, zmq.ROUTER, {**options, **curve})
        if guarded or curve:
            self.door = _Door(self.context, self.socket, zmq.EVENT_ACCEPTED | _ENDED, allowed)
        try:
            self.endpoint = _bind(self.socket, endpoint)
            if curve and plain_endpoint:
                # A listener keeps the options that the socket had when it was bound. The ZAP domain makes libzmq ask
                # the door here too, so that a plain peer cannot claim a key as its user id.
                self.socket.setsockopt(zmq.CURVE_SERVER, 0)
                self.socket.setsockopt(zmq.ZAP_DOMAIN, _PLAIN)
                self.plain_endpoint = _bind(self.socket, plain_endpoint)
        except TransportError:
            self.close()
            raise

    def weigh(self) -> None:
        """Begin to check for connections whose messages do not end; `admit` continues it."""
        self._lately.clear()
        super().weigh()

    def receive(self, *, wait: bool = False) -> Received | None:
        """Return the next request, or None if there is none now; with `wait`, if none comes in time."""
        try:
            route = self.socket.recv(0 if wait else _DONTWAIT)
        except zmq.Again:
            return None
        parts = _receive_parts(self.socket)  # what follows the route
        # For each message: a peer may claim the route of another that has left.
        key = _key(parts[-1]) if self._has_keys else None
        if route in self._lately:
            address = self._lately[route]
        else:
            address = _address(parts[-1])
            if self.door and self.door.connections.heard(_descriptor(parts[-1])):
                self._lately[route] = address
        if len(parts) == 3 and not len(parts[0]):
            return Received(route, (parts[1].bytes, parts[2].buffer), address, key)
        return Received(route, None, address, key)

    def wait_at_most(self, timeout_s: float) -> None:
        """Set how long `receive(wait=True)` waits, in seconds; by default for ever."""
        self.socket.setsockopt(zmq.RCVTIMEO, round(timeout_s * 1000))

    def wait(self) -> Received:
        """Wait for the next request, for ever or for the RCVTIMEO of `socket`.

        Raises:
            zmq.Again: RCVTIMEO is over.
        """
        return _wait(self)

    def reply(self, route: bytes, text: bytes) -> None:
        """Reply to a request; lost if the peer has left, or reads no replies."""
        _send(self.socket, (route, b"", text))

    def close(self) -> None:
        """Close at once."""
        if self.door:
            self.door.close()
        self.socket.close()
        _end(self.context)


class _Door:
    """Decides which peers to let in: a ZAP handler (RFC 27) on the receiving thread, and a monitor of the connections.

    Args:
        context: of the guarded socket.
        guarded: the guarded socket.
        events: of its connections, to monitor.
        allowed: the keys to let in; None without encryption.
    """

    def __init__(self, context: _Context, guarded: _Socket, events: int, allowed: AllowList | None = None) -> None:
        self._allowed = allowed
        self.requests: zmq.Socket[bytes] | None = None
        if allowed is not None:
            self.requests = _open(context, zmq.REP, {})
            self.requests.bind("inproc://zeromq.zap.01")  # where libzmq asks
        self.monitor = _monitor(guarded, events)
        self.connections = Connections()
        self.crowded = False  # `answer` has left some waiting
        self._at_once = _ANSWERED_AT_ONCE
        self._failed: str | None = None

    def answer(self) -> list[tuple[str | None, str]]:
        """Handle some handshakes and events; return (IP address if known, reason) for each peer refused.

        More of them each time that some are left: too many would block libzmq's thread.
        """
        refused: list[tuple[str | None, str]] = []
        left = self._at_once
        while left and self.requests and self._allowed and _option(self.requests, _EVENTS) & _POLLIN:
            left -= 1
            version, number, domain, peer, _, mechanism, *credentials = self.requests.recv_multipart()
            if (domain, mechanism) == (_PLAIN, b"NULL"):
                verdict = [b"200", b"", _NO_KEY.encode(), b""]
            elif (domain, mechanism) == (_ENCRYPTED, b"CURVE") and keys.to_public(credentials[0]) in self._allowed:
                verdict = [b"200", b"", keys.to_public(credentials[0]).encode(), b""]
            else:
                key = keys.to_public(b"".join(credentials))
                refused.append((peer.decode().removeprefix("::ffff:"), f"{key} is not in {self._allowed.path}"))
                verdict = [b"400", b"", b"", b""]
            self.requests.send_multipart([version, number, *verdict])
        while left and _option(self.monitor, _EVENTS) & _POLLIN:
            left -= 1
            event, value = _event(self.monitor)
            if event in (zmq.EVENT_ACCEPTED, zmq.EVENT_CONNECTED):
                if surplus := self.connections.began(value):
                    refused.append(surplus)
            elif event == zmq.EVENT_DISCONNECTED:  # directly follows a failed handshake
                address, is_ours = self.connections.ended(value)
                if self._failed and not is_ours:
                    refused.append((address, self._failed))
                self._failed = None
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
                self._failed = "it expects another key of this hub"
            elif event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # that one was counted above
                self._failed = (
                    "it ended the handshake, as senders without encryption do"
                    if self._allowed
                    else "it did not complete ZMTP's handshake"
                )
        self.crowded = not left
        self._at_once = self._at_once + _ANSWERED_AT_ONCE if self.crowded else _ANSWERED_AT_ONCE
        return refused

    def close(self) -> None:
        """Close at once."""
        if self.requests:
            self.requests.close()


class Publisher:
    """The sending end of publish/subscribe; as in imagezmq, the sender binds.

    Args:
        endpoint: to bind, `tcp://*:PORT`.
        queue: the most frames queued for a subscriber; the default is for a single camera.

    Raises:
        TransportError: the endpoint cannot be bound.
    """

    def __init__(self, endpoint: str, *, queue: int = 2) -> None:
        self.context = _context()
        self.socket = _open(self.context, zmq.PUB, {zmq.SNDHWM: queue})
        try:
            self.endpoint = _bind(self.socket, endpoint)
        except TransportError:
            _end(self.context)
            raise

    def widen(self, queue: int) -> None:
        """Enlarge the queue to this many frames, if it is smaller."""
        if queue > _option(self.socket, zmq.SNDHWM):
            self.socket.setsockopt(zmq.SNDHWM, queue)

    def send(self, header: bytes, payload: Buffer) -> None:
        """Send to every subscriber that keeps up; the others miss the frame."""
        _send(self.socket, (header, payload))

    def close(self) -> None:
        """Close at once."""
        self.socket.close()
        _end(self.context)


class Subscriber(_Guarded):
    """The receiving end of publish/subscribe: connects to any number of senders.

    Args:
        guarded: watch the connections.
    """

    def __init__(self, *, guarded: bool = False) -> None:
        self.context = _context()
        # MAXMSGSIZE: as in Replier; a message over it would silently close the connection.
        self.socket = _open(self.context, zmq.SUB, {zmq.RCVHWM: 4, zmq.MAXMSGSIZE: UNFINISHED_MAX_BYTES})
        self.socket.subscribe(b"")
        if guarded:
            # Nothing of handshakes: who is no publisher is tried again for ever, and told as one who is silent.
            self.door = _Door(self.context, self.socket, zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)

    def connect(self, endpoint: str) -> None:
        """Add a sender.

        Raises:
            TransportError: the endpoint is malformed.
        """
        _connect(self.socket, endpoint)

    def receive(self) -> Received | None:
        """Return the next message, or None if there is none now."""
        try:
            parts = _receive_parts(self.socket)
        except zmq.Again:
            return None
        if self.door:
            self.door.connections.heard(_descriptor(parts[-1]))
        message = (parts[0].bytes, parts[1].buffer) if len(parts) == 2 else None
        return Received(b"", message, _address(parts[-1]))

    def wait(self) -> Received:
        """Wait for the next message, for ever or for the RCVTIMEO of `socket`.

        Raises:
            zmq.Again: RCVTIMEO is over.
        """
        return _wait(self)

    def close(self) -> None:
        """Close at once."""
        if self.door:
            self.door.close()
        self.socket.close()
        _end(self.context)


def _receive_parts(socket: zmq.Socket[bytes], *, wait: bool = False) -> list[zmq.Frame]:
    """Receive a message, or the rest of one, without copying; of too many parts, keep the first few and the last.

    Raises:
        zmq.Again: there is none, or with `wait` none comes in time; never in the middle of a message.
    """
    part = socket.recv(0 if wait else _DONTWAIT, copy=False)
    parts = [part]
    while part.more:
        part = socket.recv(_DONTWAIT, copy=False)
        if len(parts) == _PARTS_MAX:
            parts.pop()
        parts.append(part)
    return parts


def _deadline(within_ms: int) -> float:
    """Convert a ZMQ timeout, milliseconds or -1 for none, to a deadline in monotonic seconds."""
    return time.monotonic() + within_ms / 1000 if within_ms >= 0 else math.inf


def _remaining_ms(deadline: float) -> int | None:
    """Return the timeout to poll with until a deadline, in ms; None for no limit."""
    return None if deadline == math.inf else math.ceil(max(0.0, deadline - time.monotonic()) * 1000)


def _wait(end: Replier | Subscriber) -> Received:
    deadline = _deadline(_option(end.socket, zmq.RCVTIMEO))
    while (received := end.receive()) is None:
        if not end.socket.poll(_remaining_ms(deadline)):
            raise zmq.Again
    return received


def out_of_step() -> zmq.ZMQError:
    """Return the error that REQ and REP sockets raise when sending and receiving do not alternate."""
    return zmq.ZMQError(zmq.EFSM)


class Poller:
    """Waits until something happens on a socket, or the thread is woken.

    Polls libzmq's descriptors (ZMQ_FD, zmq_getsockopt(3)) in one system call, where zmq_poll makes a dozen. They are
    edge-triggered: they signal what is new since the socket's events were last read. So the events are read before each
    wait; not those of monitors and doors, which are always drained.
    """

    def __init__(self, waker: Waker) -> None:
        self._waker = waker
        self._poll = select.poll()
        self._poll.register(waker.fileno(), select.POLLIN)
        self._ends: list[Requester | Replier | Subscriber] = []
        self._monitors: set[int] = set()

    def watch(self, end: Requester | Replier | Subscriber) -> None:
        """Wake up if there is something to receive, a hub comes or leaves, or a peer wants to be let in."""
        self._ends.append(end)
        for socket in _sockets(end):
            self._poll.register(_option(socket, zmq.FD), select.POLLIN)
        if isinstance(end, Requester):
            self._monitors.add(_option(end.monitor, zmq.FD))

    def forget(self, end: Requester) -> None:
        """Stop watching an end; call this before reopening it."""
        self._ends.remove(end)
        for socket in _sockets(end):
            self._poll.unregister(_option(socket, zmq.FD))
        self._monitors.discard(_option(end.monitor, zmq.FD))

    def wait(self, timeout_s: float, for_hubs: Sequence[Requester] = ()) -> bool:
        """Wait, but not if a wake has come since the last wait.

        Args:
            timeout_s: the longest wait, in seconds; negative is 0.
            for_hubs: do not wait either if one of these ends can be sent to.

        Returns:
            Whether a hub may have left.
        """
        for end in self._ends:
            if _option(end.socket, _EVENTS) & (_POLLIN | _POLLOUT if end in for_hubs else _POLLIN):
                timeout_s = 0
        ready = {descriptor for descriptor, _ in self._poll.poll(math.ceil(max(0.0, timeout_s) * 1000))}
        if self._waker.fileno() in ready:
            self._waker.clear()
        return not self._monitors.isdisjoint(ready)


def _sockets(end: Requester | Replier | Subscriber) -> list[zmq.Socket[bytes]]:
    """Return the sockets on which an end can have news."""
    if isinstance(end, Requester):
        return [end.socket, end.monitor]
    if end.door:
        return [end.socket, end.door.monitor, *([end.door.requests] if end.door.requests else [])]
    return [end.socket]
