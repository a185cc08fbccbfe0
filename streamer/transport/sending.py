"""The sending ends: of request/reply, and of publish/subscribe."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from socket import getaddrinfo
from typing import TYPE_CHECKING

import zmq

from streamer import keys, wire
from streamer.errors import TransportError
from streamer.refusals import REMIND_S
from streamer.transport.connections import packet_times
from streamer.transport.sockets import (
    ENDED,
    EVENTS,
    POLLIN,
    POLLOUT,
    bind,
    connect,
    deadline_of,
    descriptor_of,
    end_context,
    get_option,
    make_context,
    monitor_events,
    next_event,
    open_socket,
    receive_parts,
    remaining_ms,
    send_parts,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from streamer.keys import KeyPair

_REPLY_MAX_BYTES = 64 * 1024  # of a hub's reply to a camera
_PAUSE_S = 0.1  # before reconnecting to a hub that has left
_LOOK_S = 0.5  # how often `ask` notices `stop` while it waits
_SILENT_S = 3.0  # without a hub, before that is logged
_MET = zmq.EVENT_HANDSHAKE_SUCCEEDED
_MISSED = zmq.EVENT_CONNECT_RETRIED
# An endpoint with a host name: libzmq tries addresses of one family only, with IPv6 enabled those, if the name has any.
_NAMED = re.compile(r"tcp://[^:;\[]*[A-Za-z][^:;\[]*:[0-9]+")
_MISSES = 2  # failed attempts in one address family before the other is tried
_CUTS = 5  # handshakes in a row cut off without a reason before that is reported
_log = logging.getLogger(__name__)


def tell_unreached(ends: Sequence[tuple[str, str | None]], words: str, still: Callable[[], bool]) -> None:
    """Log where no peer was reached, and why: a known refusal, or a name that does not resolve.

    libzmq does not report the latter. A name server may take long to answer, so names are looked up in a thread of its
    own; not at all where the system allows no more threads.

    Args:
        ends: an endpoint and its refusal each, if known.
        words: to log, with `%s` for the endpoints and their reasons.
        still: whether this is still so, asked when the names are looked up.
    """

    def tell(look_up: Callable[[str], str | None]) -> None:
        reasons = [(endpoint, refusal or look_up(endpoint)) for endpoint, refusal in ends]
        if still():
            places = (f"{endpoint}, which {why}" if why else endpoint for endpoint, why in reasons)
            _log.warning(words, ", and at ".join(places))

    try:
        threading.Thread(target=tell, args=(_unresolved,), name="telling", daemon=True).start()
    except RuntimeError:
        tell(lambda _: None)


def _unresolved(endpoint: str) -> str | None:
    """Return why an endpoint's name does not resolve, as words to follow it; None if it does, or is an address."""
    host = re.fullmatch(r"tcp://\[?(.+?)]?:[0-9]+", endpoint)
    if host:
        try:
            getaddrinfo(host[1].encode(), None)  # for a str Python would load its Unicode tables
        except OSError as error:
            return f"has a name that does not resolve ({error.strerror})"
    return None


class Requester:
    """The sending end of request/reply: a DEALER that speaks REQ's format, with many requests in flight.

    Args:
        endpoint: of the hub, `tcp://HOST:PORT`.
        pair: this end's keys, for CURVE; None for no encryption.
        hub_key: the hub's public key; required with `pair`.
        queues: queue requests while there is no hub, as `ask` needs; by default `send` refuses them.
        camera: the sender's, to name it in what is logged.

    Raises:
        TransportError: the endpoint is malformed.
    """

    def __init__(
        self,
        endpoint: str,
        pair: KeyPair | None = None,
        hub_key: str | None = None,
        *,
        queues: bool = False,
        camera: str | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.told_as = f"{camera}: {endpoint}" if camera else endpoint
        self._queues = queues
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
        self.context = make_context()
        self._opened = 0
        self._unanswered = False  # the last request has no reply, or the hub has left since
        self._stopped = False
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
        # HEARTBEAT_TIMEOUT: what hubs send is short.
        options = {
            zmq.HEARTBEAT_TIMEOUT: 3000,
            zmq.IMMEDIATE: int(not self._queues),
            zmq.SNDHWM: 64,
            zmq.RCVHWM: 64,
            zmq.IPV6: self._ipv6,
            **limits,
        }
        self.socket = open_socket(self.context, zmq.DEALER, {**options, **self._curve})
        self._opened += 1
        self._is_refused = self._met = False
        self._misses = 0
        self._replied: zmq.Frame | None = None
        events = (_MET | ENDED if self._queues else ENDED) | (_MISSED if _NAMED.fullmatch(str(self.endpoint)) else 0)
        self.monitor = monitor_events(self.socket, events, f"inproc://left-{self._opened}")
        connect(self.socket, self.endpoint)

    def reopen(self) -> None:
        """Discard the socket, with all that is queued or in flight, and open a new one with the same timeouts.

        Logs why the handshake failed, if it did, once.
        """
        if self.refusal and self.refusal != self._refusal_told:
            _log.warning("%s %s", self.told_as, self.refusal)
        self._refusal_told = self.refusal
        own = self._timeouts()
        self.socket.close()
        self._unanswered = False
        self._fresh()
        for option, value in own:
            self.socket.setsockopt(option, value)

    def another(self) -> Requester:
        """Open another one to the same hub, with the same timeouts, but without keys."""
        other = Requester(self.endpoint, queues=self._queues)
        for option, value in self._timeouts():
            other.socket.setsockopt(option, value)
        return other

    def _timeouts(self) -> list[tuple[int, int]]:
        return [(option, get_option(self.socket, option)) for option in (zmq.SNDTIMEO, zmq.RCVTIMEO)]

    def left(self) -> bool:
        """Whether a connection has ended since the last call: all that was in flight on it is lost. If so, `reopen`.

        `connected` cannot tell: the hub may be back already. And libzmq does not reconnect by itself to a peer that is
        no hub, or has other security. If no address of one family (IPv4, IPv6) answers, this tries the other.
        """
        left = False
        while get_option(self.monitor, EVENTS) & POLLIN:
            event, value = next_event(self.monitor)
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
        connect(self.socket, self.endpoint)
        return True

    def _note(self, event: int, value: int) -> None:
        """Note why a handshake failed."""
        self._cuts = self._cuts + 1 if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL else 0
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            self.refusal = "refuses this sender's key: the hub's list of allowed keys has not got it"
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
            self.refusal = (
                "has no encryption, and this sender sends with encryption only (give the hub keys, or this sender none)"
                if self._curve
                else "takes encrypted frames only: this sender has no keys"
            )
        elif self._cuts >= _CUTS and self._curve:
            # A hub does this when it cannot decrypt the first message; one that is shutting down does so once.
            self.refusal = "ends every handshake: it has another key than the one that this sender expects"

    def connected(self) -> bool:
        """Whether there is a connection to a hub, with its handshake completed."""
        return bool(get_option(self.socket, EVENTS) & POLLOUT)

    def send(self, header: bytes, payload: Buffer) -> bool:
        """Send a request without blocking; False if there is no hub."""
        return send_parts(self.socket, (b"", header, payload))

    def receive(self, *, wait: bool = False) -> bytes | None:
        """Return the next reply, or None if there is none now; with `wait`, if none comes in the RCVTIMEO of `socket`.

        A malformed reply counts as none, and sets `refusal`.
        """
        if not wait and not get_option(self.socket, EVENTS) & POLLIN:  # cheaper than an exception
            return None
        try:
            parts = receive_parts(self.socket, wait=wait)
        except zmq.Again:
            return None
        if len(parts[0]) or len(parts) == 1:  # libzmq reads an HTTP server's response as ZMTP 1.0
            self._is_refused, self.refusal = True, "is not a hub (is this the port of a page?)"
            return None
        if not self._queues:  # what `ask` gets may be large, and is not to be kept
            self._replied = parts[-1]
        return parts[-1].bytes

    def packet_times(self) -> tuple[int, int] | None:
        """Return how long a packet to the hub and its acknowledgement take: of late, and at best; in ns, if known."""
        return packet_times(descriptor_of(self._replied)) if self._replied else None

    def ask(self, header: bytes, payload: Buffer) -> bytes:
        """Send a request and wait for its reply, as REQ does; if the hub leaves meanwhile, ask again when one is back.

        Only with `queues`. A hub may take any time to reply while its connection lives. Timeouts set on `socket` are
        respected: SNDTIMEO limits the wait for a hub, RCVTIMEO the whole call.

        Raises:
            zmq.Again: such a timeout is over.
            zmq.ZMQError: `stop` was called.
        """
        send_within_ms, receive_within_ms = get_option(self.socket, zmq.SNDTIMEO), get_option(self.socket, zmq.RCVTIMEO)
        replied_by = deadline_of(receive_within_ms)
        tell_at = time.monotonic() + _SILENT_S
        while True:
            if self.left() or self._unanswered:  # a late reply must not be taken for this one's
                self.reopen()
            self._unanswered = True
            met_by = min(deadline_of(send_within_ms), replied_by)
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
                    tell_at += REMIND_S
                    words = "no hub answers at %s; waiting for one"
                    tell_unreached([(self.endpoint, self.refusal)], words, self._is_unmet)
                if self._stopped:
                    raise zmq.ZMQError(zmq.ENOTSOCK)  # as once it is closed
                if not left:
                    self._await(*((replied_by, math.inf) if self._met else (met_by, tell_at)))
            self.reopen()  # at once: libzmq would reconnect by itself, and send the request a second time
            time.sleep(_PAUSE_S)

    def _is_unmet(self) -> bool:
        return not self._met and not self.socket.closed

    def _await(self, deadline: float, look_at: float) -> None:
        """Wait until `look_at`, but not for long, for a reply, or for a hub to come or leave.

        Raises:
            zmq.Again: none of these happens before the deadline, which comes first.
        """
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.monitor, zmq.POLLIN)
        look_at = min(look_at, time.monotonic() + _LOOK_S)
        if not poller.poll(remaining_ms(min(deadline, look_at))) and deadline <= look_at:
            raise zmq.Again

    def stop(self) -> None:
        """Make `ask` raise soon, in whatever thread it runs; any thread may call this. Then it can be closed."""
        self._stopped = True

    def close(self) -> None:
        """Close at once, whatever is in flight."""
        if self._opened:
            self.socket.close()
        end_context(self.context)


class Publisher:
    """The sending end of publish/subscribe; as in imagezmq, the sender binds.

    Args:
        endpoint: to bind, `tcp://*:PORT`.
        queue: the most frames queued for a subscriber; the default is for a single camera.

    Raises:
        TransportError: the endpoint cannot be bound.
    """

    def __init__(self, endpoint: str, *, queue: int = 2) -> None:
        self.context = make_context()
        self.socket = open_socket(self.context, zmq.PUB, {zmq.SNDHWM: queue})
        try:
            self.endpoint = bind(self.socket, endpoint)
        except TransportError:
            self.close()
            raise

    def widen(self, queue: int) -> None:
        """Enlarge the queue to this many frames, if it is smaller."""
        if queue > get_option(self.socket, zmq.SNDHWM):
            self.socket.setsockopt(zmq.SNDHWM, queue)

    def send(self, header: bytes, payload: Buffer) -> None:
        """Send to every subscriber that keeps up; the others miss the frame."""
        send_parts(self.socket, (header, payload))

    def close(self) -> None:
        """Close at once."""
        self.socket.close()
        end_context(self.context)
