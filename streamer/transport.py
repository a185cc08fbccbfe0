"""The only place that touches ZMQ sockets: four small classes, one for each end of the two patterns.

Every socket comes from `_open`, so that a reopened one is set up exactly as the first, its keys among the rest. None of
the classes locks: a socket belongs to the thread that uses it.
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

from streamer import keys, wire
from streamer.connections import UNFINISHED_MAX_BYTES, Connections
from streamer.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Buffer

    from streamer.keys import AllowList, KeyPair

# As plain numbers: zmq's are of an enum, and to combine two of those takes half a microsecond.
_DONTWAIT = int(zmq.DONTWAIT)
_MORE = int(zmq.DONTWAIT | zmq.SNDMORE)
_SRCFD = int(zmq.SRCFD)
_EVENTS, _POLLIN, _POLLOUT = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.POLLOUT)
# Over this size a copy costs more than lending libzmq the buffer, which a thread of pyzmq's, in Python, takes back.
_COPY_MAX_BYTES = 512 * 1024
# Two threads that lend their first at once would each make that thread's socket, of which pyzmq 27 forgets one: a frame
# is kept for good, and now and then the process hangs at its end.
_lending = threading.Lock()
os.register_at_fork(before=_lending.acquire, after_in_parent=_lending.release, after_in_child=_lending.release)
_REPLY_MAX_BYTES = 64 * 1024  # of what a hub says to a camera
_END_S = 0.5  # to wait for libzmq's thread
_MEMORY_KEPT_BYTES = 8 * 1024 * 1024  # by the allocator, for the next frames
_PARTS_MAX = 8
_ANSWERED_AT_ONCE = 8  # at a door, while frames wait
_SWITCH_S = 0.0001
_PAUSE_S = 0.1  # before a hub that has left is tried again
# ZAP domains (RFC 27): they tell a replier's two listeners apart.
_ENCRYPTED, _PLAIN = b"streamer", b"plain"
_NO_KEY = "-"  # what the door calls a peer without encryption
_HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_ENDED = zmq.EVENT_DISCONNECTED | _HANDSHAKE_FAILED
_MET = zmq.EVENT_HANDSHAKE_SUCCEEDED
_MISSED = zmq.EVENT_CONNECT_RETRIED
# A host's name: libzmq looks for addresses of one kind only, with IPv6 on of that, wherever the name has any.
_NAMED = re.compile(r"tcp://[^:;\[]*[A-Za-z][^:;\[]*:[0-9]+")
_MISSES = 2  # of one kind, before the other is tried: libzmq waits after each, but for the first
_CUTS = 5  # handshakes that end without a word, one after the other, before that means something
_MAPPED = re.compile(r"\[::ffff:([\d.]+)\]")  # an IPv4 address as an IPv6 socket writes it
_OPTIONS: dict[int, int] = {
    zmq.LINGER: 0,  # closing never waits for a peer
    zmq.IPV6: 1,
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.HEARTBEAT_TTL: 3000,
    zmq.HANDSHAKE_IVL: 5000,
    zmq.CONNECT_TIMEOUT: 3000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 200,  # a hub that is back has its cameras within a third of a second
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
_log = logging.getLogger(__name__)


class AddressError(TransportError, zmq.ZMQError):
    """An address cannot be used. It is zmq's error too: programs written for imagezmq catch that."""

    def __init__(self, text: str, number: int | None) -> None:
        zmq.ZMQError.__init__(self, number, text)


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """Make a context: the factory of every context in this package."""
    # glibc returns what is free at its end to the kernel from 128 kB on: a frame, whose pages it then has to get again,
    # zeroed, for the next. A freed block raises that limit to twice its size, unless somebody has set it: mallopt(3).
    bytes(_MEMORY_KEPT_BYTES // 2)
    return zmq.Context()


def _end(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Close a context and what is still open of it; what takes longer than a moment ends by itself later.

    libzmq's thread may be waiting for a name server that does not answer, and cannot be interrupted.
    """
    ending = threading.Thread(target=context.destroy, args=(0,), name="ending", daemon=True)
    ending.start()
    ending.join(_END_S)


def share_interpreter() -> None:
    """Have threads that compute in Python give way to others after 0.1 ms, for the whole process; the default is 5 ms.

    A thread that sends and receives lets the interpreter go seven times a frame, and would wait so long each time for a
    program that computes: of eight cameras' 240 frames a second a hub then gets 140, and those late.
    """
    sys.setswitchinterval(min(_SWITCH_S, sys.getswitchinterval()))


def _open(context: zmq.Context[zmq.Socket[bytes]], kind: int, options: Mapping[Any, int | bytes]) -> zmq.Socket[bytes]:
    """Make a socket: the factory of every socket in this package."""
    socket = context.socket(kind)
    for option, value in {**_OPTIONS, **options}.items():
        socket.setsockopt(option, value)
    return socket


def _seed() -> None:
    """Have libzmq begin to number a ROUTER's peers where nobody knows.

    It does so by C's `rand`, which gives the same in every process unless somebody has seeded it; and it aborts the
    process when a peer has claimed the number that the next one gets.
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "big"))


def _check_port(endpoint: str) -> None:
    """Refuse a port that there is not: libzmq takes it modulo 65536."""
    match = re.fullmatch(r"tcp://.*:(-?[0-9]+)", endpoint)
    if match and (len(match[1]) > 5 or not 0 <= int(match[1]) <= 65535):
        raise zmq.ZMQError(errno.EINVAL)


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind, and return the address that it became (`*` and port 0 resolved)."""
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
    """Name an endpoint, and why nobody is reached there: a refusal that is known, or a name that does not resolve.

    Of such a name libzmq tells nobody. It may take as long as the name server does.
    """
    host = re.fullmatch(r"tcp://\[?(.+?)]?:[0-9]+", endpoint)
    if host and not refusal:
        try:
            getaddrinfo(host[1].encode(), None)  # for a str Python would load the tables of all characters
        except OSError as error:
            refusal = f"has a name that does not resolve ({error.strerror})"
    return f"{endpoint}, which {refusal}" if refusal else endpoint


def _option(socket: zmq.Socket[bytes], option: int) -> int:
    value = socket.getsockopt(option)
    assert isinstance(value, int)  # noqa: S101 - the type of the options asked for here
    return value


def _send(socket: zmq.Socket[bytes], parts: Sequence[Buffer]) -> bool:
    """Send without waiting; False when the socket takes nothing now."""
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
    """Return the IP address of the peer that sent a part; None on a transport that has none."""
    try:
        address = str(part.get("Peer-Address"))
    except zmq.ZMQError:
        return None
    # On ipc libzmq says "localhost:", and whose process it is.
    return None if address.startswith("localhost:") else address.removeprefix("::ffff:") or None


def _descriptor(part: zmq.Frame) -> int:
    """Return the descriptor of the connection that a part came by; -1 where libzmq has none, as of a peer of ZMTP 2."""
    try:
        return int(part.get(_SRCFD))
    except zmq.ZMQError:
        return -1


def _key(part: zmq.Frame) -> str | None:
    """Return the key by which the door let the peer in that sent a part; None when it needed none."""
    key = str(part.get("User-Id"))
    return None if key == _NO_KEY else key


def _monitor(socket: zmq.Socket[bytes], events: int, address: str | None = None) -> zmq.Socket[bytes]:
    """Have a socket tell of its connections' events; to be called before it has any."""
    monitor = socket.get_monitor_socket(events, address)
    _option(monitor, _EVENTS)  # its descriptor tells nothing before it was first asked
    return monitor


def _event(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """Receive a monitor's next event, and the value that belongs to it."""
    event, value = struct.unpack("=HI", monitor.recv_multipart()[0])  # as zmq_socket_monitor(3) has it
    return event, value


class Waker:
    """Wakes a thread that polls: a pipe, since a ZMQ socket may not be touched by two threads."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._lock = threading.Lock()  # a wake that comes late must not write into a stranger's file
        self._closed = False

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._reader

    def wake(self) -> None:
        """Make the poll return, now or the next time; any thread may call it, after `close` in vain."""
        with self._lock, contextlib.suppress(BlockingIOError):  # full: it is awake already
            if not self._closed:
                os.write(self._writer, b"\0")

    def clear(self) -> None:
        """Forget the wakes so far."""
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
    """A message as it came.

    Attributes:
        route: where a reply goes; empty for a subscriber, who cannot reply.
        parts: the application's parts, without routing and delimiter; None when there is no message in them.
        address: the peer's IP address, if known.
        key: the peer's public key; None for one without encryption.
    """

    route: bytes
    parts: tuple[bytes, memoryview] | None
    address: str | None
    key: str | None = None


class Requester:
    """The sending end of request and reply: a DEALER that speaks REQ's format, many requests in flight.

    Args:
        endpoint: of the hub, `tcp://HOST:PORT`.
        pair: this end's keys, for CURVE; None does without.
        hub_key: the hub's public key; needed with `pair`.
        patience_s: how long `receive` waits when it is to; by default for ever.
        queues: what is sent while no hub is there waits for one, as `ask` needs it; by default it is not taken.

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
        # Why the hub that was met last does not take this end, to be said after its endpoint: libzmq says nothing.
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
        self._unanswered = False  # what was asked last, or the hub has left since
        try:
            self._fresh()
        except TransportError:
            self.close()
            raise

    def _fresh(self) -> None:
        # IMMEDIATE: without it frames queue for a hub that is not there, and are old when it comes; with it libzmq
        # throws away what a hub replied right before it left.
        # SNDHWM: well over any window, since a pipe that is full looks as if no hub were there.
        # MAXMSGSIZE: programs that ask reply with results, and with pictures.
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
        """Throw the socket away, with all that is queued or in flight, and open a fresh one with the same time-outs.

        Why the handshake has failed, if it has, is logged once.
        """
        if self.refusal and self.refusal != self._refusal_told:
            _log.warning("%s %s", self.endpoint, self.refusal)
        self._refusal_told = self.refusal
        own = [(option, _option(self.socket, option)) for option in (zmq.SNDTIMEO, zmq.RCVTIMEO)]
        self._shut()
        self._unanswered = False
        self._fresh()
        for option, value in own:
            self.socket.setsockopt(option, value)

    def _shut(self) -> None:
        # First of all no more events: libzmq's thread waits for ever to tell one to a monitor that is closed, and no
        # socket of this context works any more. Nor can events be ended while it waits with one for room.
        if not self.socket.closed:
            while _option(self.monitor, _EVENTS) & _POLLIN:
                _event(self.monitor)
            self.socket.disable_monitor()
        self.socket.close()
        self.monitor.close()

    def left(self) -> bool:
        """Whether a connection has ended since this was last asked; all that was in flight on it is lost.

        `connected` cannot tell: the hub may be back already. And after a peer that is no hub, or one of another
        security, libzmq does not connect again by itself: after True the socket is to be reopened.
        Where nobody is at a host's addresses of one kind, this turns to the other.
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
        """Connect to the host's addresses of the other kind if there was nobody at those; what is queued is lost."""
        if self._misses < _MISSES:
            return False
        self._misses = 0
        self._ipv6 = int(not self._ipv6)
        self.socket.disconnect(self.endpoint)
        self.socket.setsockopt(zmq.IPV6, self._ipv6)
        _connect(self.socket, self.endpoint)
        return True

    def _note(self, event: int, value: int) -> None:
        """Take note of why a handshake has failed."""
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
            # What a hub does when it cannot decrypt the first message; one that is just ending does so once.
            self.refusal = "ends every handshake: it has another key than the one that this sender expects"

    def connected(self) -> bool:
        """Whether a hub has completed the handshake on this socket, and still holds the connection."""
        return bool(_option(self.socket, _EVENTS) & _POLLOUT)

    def send(self, header: bytes, payload: Buffer) -> bool:
        """Send a request without waiting; False when the hub is away."""
        return _send(self.socket, (b"", header, payload))

    def receive(self, *, wait: bool = False) -> bytes | None:
        """Return the next reply, or None when there is none now; with `wait`, when none comes in time.

        What is no reply is none, and told as why no hub is reached.
        """
        if not wait and not _option(self.socket, _EVENTS) & _POLLIN:  # an exception would take longer
            return None
        try:
            parts = _receive_parts(self.socket, wait=wait)
        except zmq.Again:
            return None
        if len(parts[0]) or len(parts) == 1:  # as libzmq reads an HTTP server's answer, of ZMTP's first version
            self._is_refused, self.refusal = True, "is no hub (is this the port of a page?)"
            return None
        return parts[-1].bytes

    def ask(self, header: bytes, payload: Buffer) -> bytes:
        """Send a request and wait for its reply, as REQ does; when the hub leaves in between, ask the next that comes.

        Only for an end that queues. A hub may take its time to reply for as long as its connection lives. Time-outs
        that a program has set on `socket` are kept: SNDTIMEO limits the wait for a hub, RCVTIMEO the whole.

        Raises:
            zmq.Again: such a time-out is over.
        """
        send_within_ms, receive_within_ms = _option(self.socket, zmq.SNDTIMEO), _option(self.socket, zmq.RCVTIMEO)
        replied_by = _deadline(receive_within_ms)
        while True:
            if self.left() or self._unanswered:  # no late reply may be taken for this
                self.reopen()
            self._unanswered = True
            met_by = min(_deadline(send_within_ms), replied_by)
            self.send(header, payload)
            left = False
            while not left:
                left = self.left()
                if (reply := self.receive()) is not None:
                    self._unanswered = left  # and then the next is asked afresh
                    return reply
                if not left and self._try_other_kind():
                    self.send(header, payload)
                if not left:
                    self._await(replied_by if self._met else met_by)
            self.reopen()  # at once: libzmq would connect again by itself, and ask a second time
            time.sleep(_PAUSE_S)

    def _await(self, deadline: float) -> None:
        """Wait for a reply, or for a hub to come or leave; zmq.Again when neither happens in time."""
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        if not poller.poll(_remaining_ms(deadline)):
            raise zmq.Again

    def close(self) -> None:
        """Close at once, whatever is in flight."""
        if self._opened:
            self._shut()
        _end(self.context)


class _Guarded:
    """A receiving end whose connections may be watched.

    If they are, `weigh` is to be called a few times a second, and `admit` whenever a Poller that watches this end
    wakes, and again for as long as this end is `crowded`.
    """

    door: _Door | None = None

    def admit(self) -> list[tuple[str | None, str]]:
        """Let in some of the peers that wait and may come in, and go on to weigh what lies unfinished.

        Returns:
            The address of each that may not come in, or whose message has no end, if known, and why.
        """
        return [*self.door.answer(), *self.door.connections.look()] if self.door else []

    @property
    def crowded(self) -> bool:
        """Whether `admit` has left something to do, so that no frame waits for all of it."""
        return self.door is not None and (self.door.crowded or self.door.connections.is_looking)

    def weigh(self) -> None:
        """Begin to look for connections whose messages have no end; `admit` goes on with it."""
        if self.door:
            self.door.connections.begin_look()


class Replier(_Guarded):
    """The receiving end of request and reply: a ROUTER, which serves stock REQ senders and ours on one port.

    With keys, handshakes wait until `admit` is called.

    Args:
        endpoint: to bind, `tcp://*:PORT`.
        pair: this end's keys, for CURVE; None does without.
        allowed: with `pair`, the peers' keys that are let in.
        plain_endpoint: with `pair`, to bind as well, for peers without encryption.
        guarded: watch the connections, as is always done with keys.

    Raises:
        TransportError: it cannot be bound.
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
        # MAXMSGSIZE: far above what is taken, since libzmq ends the connection of who exceeds it without a word to
        # anybody, and a REQ peer then waits for ever; below it the peer is told.
        options = {zmq.RCVHWM: 16, zmq.SNDHWM: 64, zmq.MAXMSGSIZE: UNFINISHED_MAX_BYTES}
        self.plain_endpoint: str | None = None
        # By route, who has sent since connections were last weighed: to ask libzmq takes as long as to receive a part.
        self._lately: dict[bytes, str | None] = {}
        self._has_keys = pair is not None and allowed is not None
        curve: dict[int, int | bytes] = {}
        if pair is not None and allowed is not None:
            curve = {
                zmq.CURVE_SERVER: 1,
                zmq.CURVE_SECRETKEY: keys.to_bytes(pair.secret),
                zmq.ZAP_DOMAIN: _ENCRYPTED,
            }
        _seed()
        self.socket = _open(self.context, zmq.ROUTER, {**options, **curve})
        if guarded or curve:
            self.door = _Door(self.context, self.socket, zmq.EVENT_ACCEPTED | _ENDED, allowed)
        try:
            self.endpoint = _bind(self.socket, endpoint)
            if curve and plain_endpoint:
                # A listener keeps the options that the socket had when it was bound. The domain is what makes libzmq
                # ask the door: what the door says of a peer, the peer cannot say of itself.
                self.socket.setsockopt(zmq.CURVE_SERVER, 0)
                self.socket.setsockopt(zmq.ZAP_DOMAIN, _PLAIN)
                self.plain_endpoint = _bind(self.socket, plain_endpoint)
        except TransportError:
            self.close()
            raise

    def weigh(self) -> None:
        """Begin to look for connections whose messages have no end; `admit` goes on with it."""
        self._lately.clear()
        super().weigh()

    def receive(self, *, wait: bool = False) -> Received | None:
        """Return the next request, or None when there is none now, or in time. What is no request has no parts."""
        try:
            route = self.socket.recv(0 if wait else _DONTWAIT)
        except zmq.Again:
            return None
        parts = _receive_parts(self.socket)  # a ROUTER's message goes on after the route
        # Asked for each message: a peer may claim the route of another that has left.
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
        """Set how long `receive` waits when it is to, in seconds; by default for ever."""
        self.socket.setsockopt(zmq.RCVTIMEO, round(timeout_s * 1000))

    def wait(self) -> Received:
        """Wait for the next request, for ever or as long as RCVTIMEO on `socket` says.

        Raises:
            zmq.Again: RCVTIMEO is over.
        """
        return _wait(self)

    def reply(self, route: bytes, text: bytes) -> None:
        """Reply to a request; a peer that has left, or reads no replies, misses it."""
        _send(self.socket, (route, b"", text))

    def close(self) -> None:
        """Close at once."""
        if self.door:
            self.door.close()
        self.socket.close()
        _end(self.context)


class _Door:
    """Says who may come in: ZAP's handler (RFC 27) in the thread that receives, and a look at who comes and leaves.

    Args:
        context: of the socket that is guarded.
        guarded: it.
        events: of its connections, that are looked at.
        allowed: the keys that are let in; None where nobody has any.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        guarded: zmq.Socket[bytes],
        events: int,
        allowed: AllowList | None = None,
    ) -> None:
        self._allowed = allowed
        self.requests: zmq.Socket[bytes] | None = None
        if allowed is not None:
            self.requests = _open(context, zmq.REP, {})
            self.requests.bind("inproc://zeromq.zap.01")  # where libzmq asks
        self.monitor = _monitor(guarded, events)
        self._guarded = guarded
        self.connections = Connections()
        self.crowded = False  # more wait than were answered at once
        self._at_once = _ANSWERED_AT_ONCE
        self._failed: str | None = None

    def answer(self) -> list[tuple[str | None, str]]:
        """Answer some that wait, and return the address of each that was kept out, if known, and why.

        More each time that some are left: libzmq's own thread would wait if they became too many.
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
            elif event == zmq.EVENT_DISCONNECTED:  # follows a handshake's failure, in the same breath
                address, is_ours = self.connections.ended(value)
                if self._failed and not is_ours:
                    refused.append((address, self._failed))
                self._failed = None
            elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
                self._failed = "it expects another key of this hub"
            elif event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # of which we know already
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
        self.answer()  # a monitor that is full would hold up libzmq
        while self.crowded:
            self.answer()
        if not self._guarded.closed:
            self._guarded.disable_monitor()
        self.monitor.close()
        if self.requests:
            self.requests.close()


class Publisher:
    """The sending end of publish and subscribe; by imagezmq's custom it is the sender that binds.

    Args:
        endpoint: to bind, `tcp://*:PORT`.
        queue: frames that wait for a subscriber, at most; by default for one camera, of which only the newest counts.

    Raises:
        TransportError: it cannot be bound.
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
        """Let more frames wait for a subscriber, if it is more: a program has so many cameras."""
        if queue > _option(self.socket, zmq.SNDHWM):
            self.socket.setsockopt(zmq.SNDHWM, queue)

    def send(self, header: bytes, payload: Buffer) -> None:
        """Send to every subscriber that keeps up; one that does not misses the frame."""
        _send(self.socket, (header, payload))

    def close(self) -> None:
        """Close at once."""
        self.socket.close()
        _end(self.context)


class Subscriber(_Guarded):
    """The receiving end of publish and subscribe: connects to any number of senders.

    Args:
        guarded: watch the connections.
    """

    def __init__(self, *, guarded: bool = False) -> None:
        self.context = _context()
        # MAXMSGSIZE: as of a replier; what exceeds it would end the connection, and all that comes by it, untold.
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
        """Return the next message, or None when there is none now. What is no message has no parts."""
        try:
            parts = _receive_parts(self.socket)
        except zmq.Again:
            return None
        if self.door:
            self.door.connections.heard(_descriptor(parts[-1]))
        message = (parts[0].bytes, parts[1].buffer) if len(parts) == 2 else None
        return Received(b"", message, _address(parts[-1]))

    def wait(self) -> Received:
        """Wait for the next message, for ever or as long as RCVTIMEO on `socket` says.

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
    """Receive a message, or the rest of one, without copying; parts beyond those that any message has are dropped.

    Raises:
        zmq.Again: none is there, or with `wait` none comes in time; never in the middle of a message.
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
    """Turn a time-out in ZMQ's terms, milliseconds and -1 for never, into monotonic seconds."""
    return time.monotonic() + within_ms / 1000 if within_ms >= 0 else math.inf


def _remaining_ms(deadline: float) -> int | None:
    """Return what to poll for: 0 once the deadline has passed, None when there is none."""
    return None if deadline == math.inf else math.ceil(max(0.0, deadline - time.monotonic()) * 1000)


def _wait(end: Replier | Subscriber) -> Received:
    deadline = _deadline(_option(end.socket, zmq.RCVTIMEO))
    while (received := end.receive()) is None:
        if not end.socket.poll(_remaining_ms(deadline)):
            raise zmq.Again
    return received


def out_of_step() -> zmq.ZMQError:
    """Return the error that REQ and REP sockets raise when receiving and replying do not take turns."""
    return zmq.ZMQError(zmq.EFSM)


class Poller:
    """Waits until something happens on a socket, or somebody wakes the thread.

    On libzmq's own descriptors (ZMQ_FD, zmq_getsockopt(3)), in one system call where zmq_poll takes a dozen. They tell
    only of what is new since a socket's events were last asked for. So those are asked for before each wait, but for a
    monitor's and a door's: nobody touches these without taking all that is there.
    """

    def __init__(self, waker: Waker) -> None:
        self._waker = waker
        self._poll = select.poll()
        self._poll.register(waker.fileno(), select.POLLIN)
        self._ends: list[Requester | Replier | Subscriber] = []
        self._monitors: set[int] = set()

    def watch(self, end: Requester | Replier | Subscriber) -> None:
        """Wake up when there is something to receive, a hub comes or leaves, or a peer waits at the door."""
        self._ends.append(end)
        for socket in _sockets(end):
            self._poll.register(_option(socket, zmq.FD), select.POLLIN)
        if isinstance(end, Requester):
            self._monitors.add(_option(end.monitor, zmq.FD))

    def forget(self, end: Requester) -> None:
        """No longer watch it; to be called before it is reopened."""
        self._ends.remove(end)
        for socket in _sockets(end):
            self._poll.unregister(_option(socket, zmq.FD))
        self._monitors.discard(_option(end.monitor, zmq.FD))

    def wait(self, timeout_s: float, for_hubs: Sequence[Requester] = ()) -> bool:
        """Wait for at most `timeout_s` seconds; wakes that came before are answered at once.

        Args:
            timeout_s: in seconds; less than 0 is 0.
            for_hubs: ends of which one that can be sent to ends the wait too, not only when that is news.

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
    """Return all by which an end has news."""
    if isinstance(end, Requester):
        return [end.socket, end.monitor]
    if end.door:
        return [end.socket, end.door.monitor, *([end.door.requests] if end.door.requests else [])]
    return [end.socket]
