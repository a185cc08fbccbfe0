"""Who may connect to a receiving end, and how many."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import zmq

from streamer import keys
from streamer.transport.connections import Connections
from streamer.transport.sockets import (
    EVENTS,
    POLLIN,
    get_option,
    monitor_events,
    next_event,
    open_socket,
)

if TYPE_CHECKING:
    from streamer.keys import AllowList
    from streamer.transport.sockets import Context, Socket

_ANSWERED_AT_ONCE = 8  # handshakes and events that a door handles while frames wait
# ZAP domains (RFC 27): they tell a replier's two listeners apart.
ENCRYPTED, PLAIN = b"streamer", b"plain"
NO_KEY = "-"  # ZAP's user id of a peer without encryption
# What a monitor says where only one end encrypts; the second, also where a peer just leaves.
_ONE_ENCRYPTS = (
    (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH),
    (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, errno.EPIPE),
)


class Door:
    """Decides which peers to let in: a ZAP handler (RFC 27) on the receiving thread, and a monitor of the connections.

    Args:
        context: of the guarded socket.
        guarded: the guarded socket.
        events: of its connections, to monitor.
        allowed: the keys to let in; None without encryption.
    """

    def __init__(self, context: Context, guarded: Socket, events: int, allowed: AllowList | None = None) -> None:
        self._allowed = allowed
        self.requests: zmq.Socket[bytes] | None = None
        if allowed is not None:
            self.requests = open_socket(context, zmq.REP, {})
            self.requests.bind("inproc://zeromq.zap.01")  # where libzmq asks
        self.monitor = monitor_events(guarded, events)
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
        while left and self.requests and self._allowed and get_option(self.requests, EVENTS) & POLLIN:
            left -= 1
            version, number, domain, peer, _, mechanism, *credentials = self.requests.recv_multipart()
            if (domain, mechanism) == (PLAIN, b"NULL"):
                verdict = [b"200", b"", NO_KEY.encode(), b""]
            elif (domain, mechanism) == (ENCRYPTED, b"CURVE") and keys.to_public(credentials[0]) in self._allowed:
                verdict = [b"200", b"", keys.to_public(credentials[0]).encode(), b""]
            else:
                key = keys.to_public(b"".join(credentials))
                refused.append((peer.decode().removeprefix("::ffff:"), f"{key} is not in {self._allowed.path}"))
                verdict = [b"400", b"", b"", b""]
            self.requests.send_multipart([version, number, *verdict])
        while left and get_option(self.monitor, EVENTS) & POLLIN:
            left -= 1
            event, value = next_event(self.monitor)
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
                self._failed = self._guess(event, value)
        self.crowded = not left
        self._at_once = self._at_once + _ANSWERED_AT_ONCE if self.crowded else _ANSWERED_AT_ONCE
        return refused

    def _guess(self, event: int, value: int) -> str:
        """Return why a handshake may have failed: where only one end encrypts, either may end it first."""
        if self._allowed:
            return "it ended the handshake, as senders without encryption do"
        if (event, value) in _ONE_ENCRYPTS:
            remedy = "give this hub keys (--key, --allowed), or them none"
            return f"it ended the handshake, as senders that encrypt do: {remedy}"
        return "it did not complete ZMTP's handshake"

    def close(self) -> None:
        """Close at once."""
        if self.requests:
            self.requests.close()
