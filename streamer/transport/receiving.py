"""The receiving ends: of request/reply, and of publish/subscribe."""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import zmq

from streamer import keys
from streamer.errors import TransportError
from streamer.transport.connections import UNFINISHED_MAX_BYTES
from streamer.transport.door import ENCRYPTED, NO_KEY, PLAIN, Door
from streamer.transport.sockets import (
    DONTWAIT,
    ENDED,
    bind,
    connect,
    deadline_of,
    descriptor_of,
    end_context,
    get_option,
    make_context,
    open_socket,
    receive_parts,
    remaining_ms,
    send_parts,
)

if TYPE_CHECKING:
    from streamer.keys import AllowList, KeyPair
    from streamer.transport.sockets import Context, Socket


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


class _Receiver(ABC):
    """A receiving end, whose connections may be watched.

    If they are, call `weigh` a few times a second, and `admit` whenever a Poller that watches this end wakes, and
    repeatedly while it is `crowded`.
    """

    context: Context
    socket: Socket
    door: Door | None = None

    @abstractmethod
    def receive(self) -> Received | None:
        """Return the next message, or None if there is none now."""

    def wait(self) -> Received:
        """Wait for the next message, for ever or for the RCVTIMEO of `socket`.

        Raises:
            zmq.Again: RCVTIMEO is over.
        """
        deadline = deadline_of(get_option(self.socket, zmq.RCVTIMEO))
        while (received := self.receive()) is None:
            if not self.socket.poll(remaining_ms(deadline)):
                raise zmq.Again
        return received

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

    def close(self) -> None:
        """Close at once."""
        if self.door:
            self.door.close()
        self.socket.close()
        end_context(self.context)


class Replier(_Receiver):
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
        self.context = make_context()
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
                zmq.ZAP_DOMAIN: ENCRYPTED,
            }
        self._has_keys = bool(curve)
        _seed()
        self.socket = open_socket(self.context, zmq.ROUTER, {**options, **curve})
        if guarded or curve:
            self.door = Door(self.context, self.socket, zmq.EVENT_ACCEPTED | ENDED, allowed)
        try:
            self.endpoint = bind(self.socket, endpoint)
            if curve and plain_endpoint:
                # A listener keeps the options that the socket had when it was bound. The ZAP domain makes libzmq ask
                # the door here too, so that a plain peer cannot claim a key as its user id.
                self.socket.setsockopt(zmq.CURVE_SERVER, 0)
                self.socket.setsockopt(zmq.ZAP_DOMAIN, PLAIN)
                self.plain_endpoint = bind(self.socket, plain_endpoint)
        except TransportError:
            self.close()
            raise

    def weigh(self) -> None:
        """Begin to check for connections whose messages do not end; `admit` continues it."""
        self._lately.clear()
        super().weigh()

    def receive(self, *, wait: bool = False) -> Received | None:
        """Return the next request, or None if there is none now; with `wait`, if none in the RCVTIMEO of `socket`."""
        try:
            route = self.socket.recv(0 if wait else DONTWAIT)
        except zmq.Again:
            return None
        parts = receive_parts(self.socket)  # what follows the route
        # For each message: a peer may claim the route of another that has left.
        key = _key(parts[-1]) if self._has_keys else None
        if route in self._lately:
            address = self._lately[route]
        else:
            address = _address(parts[-1])
            if self.door and self.door.connections.heard(descriptor_of(parts[-1])):
                self._lately[route] = address
        if len(parts) == 3 and not len(parts[0]):
            return Received(route, (parts[1].bytes, parts[2].buffer), address, key)
        return Received(route, None, address, key)

    def reply(self, route: bytes, text: bytes) -> None:
        """Reply to a request; lost if the peer has left, or reads no replies."""
        send_parts(self.socket, (route, b"", text))


class Subscriber(_Receiver):
    """The receiving end of publish/subscribe: connects to any number of senders.

    Args:
        guarded: watch the connections.
    """

    def __init__(self, *, guarded: bool = False) -> None:
        self.context = make_context()
        # MAXMSGSIZE: as in Replier; a message over it would silently close the connection.
        self.socket = open_socket(self.context, zmq.SUB, {zmq.RCVHWM: 4, zmq.MAXMSGSIZE: UNFINISHED_MAX_BYTES})
        self.socket.subscribe(b"")
        if guarded:
            # Nothing of handshakes: who is no publisher is tried again for ever, and told as one who is silent.
            self.door = Door(self.context, self.socket, zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)

    def connect(self, endpoint: str) -> None:
        """Add a sender.

        Raises:
            TransportError: the endpoint is malformed.
        """
        connect(self.socket, endpoint)

    def receive(self) -> Received | None:
        """Return the next message, or None if there is none now."""
        try:
            parts = receive_parts(self.socket)
        except zmq.Again:
            return None
        if self.door:
            self.door.connections.heard(descriptor_of(parts[-1]))
        message = (parts[0].bytes, parts[1].buffer) if len(parts) == 2 else None
        return Received(b"", message, _address(parts[-1]))


def _seed() -> None:
    """Make libzmq's numbering of a ROUTER's peers unpredictable.

    It starts at a number from C's `rand`, the same in every process unless seeded, and libzmq aborts the process if a
    peer has claimed the next number as its routing id.
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "big"))


def _address(part: zmq.Frame) -> str | None:
    """Return the IP address of the peer that sent a part; None on a transport without addresses."""
    try:
        address = str(part.get("Peer-Address"))
    except zmq.ZMQError:
        return None
    # On ipc libzmq says "localhost:" and the process.
    return None if address.startswith("localhost:") else address.removeprefix("::ffff:") or None


def _key(part: zmq.Frame) -> str | None:
    """Return the key with which the peer that sent a part was admitted; None if it needed none."""
    key = str(part.get("User-Id"))
    return None if key == NO_KEY else key
