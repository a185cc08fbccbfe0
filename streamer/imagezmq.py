"""imagezmq 1.2.0's API on this package's transport: `import streamer as imagezmq` runs programs written for it.

The signatures, the lock-step of `recv_…` and `send_reply` and the attributes are those of
https://github.com/jeffbass/imagezmq. What differs is what made its users restart their programs: a sender outlives
its hub and goes on when there is one again, rubbish is refused and not raised in the receiver's loop, closing never
hangs.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from streamer import transport, wire
from streamer.errors import TransportError, WireError

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Buffer

    from streamer.transport import Received

    AnyImage = npt.NDArray[Any]

_PUBLISHED = 16  # a program may publish several cameras one right after the other; more if it has more
_TELL_S = 1.0
_COUNTED = 1024  # of as many cameras as a hub has: a program may also make a new label for each picture
_log = logging.getLogger(__name__)


class _Complaints:
    """Logs why pictures are refused: once, not for each; of several reasons in turn one a second."""

    def __init__(self) -> None:
        self._last, self._told = "", -math.inf  # the last that was told, and when

    def tell(self, text: str, who: str, why: str) -> None:
        now = time.monotonic()
        if why != self._last and now - self._told >= _TELL_S:
            self._last, self._told = why, now
            _log.warning(text, who, why)


class ImageSender:
    """Sends pictures one by one; threads that share one take turns.

    Args:
        connect_to: the hub to connect to, or with `REQ_REP=False` the address to publish on.
        REQ_REP: True waits for the hub's reply to each picture; False publishes.

    Raises:
        TransportError: the address is malformed, or cannot be bound.
    """

    def __init__(self, connect_to: str = "tcp://127.0.0.1:5555", REQ_REP: bool = True) -> None:  # noqa: FBT001, FBT002, N803
        self._end: transport.Requester | transport.Publisher
        if REQ_REP:
            self._end = transport.Requester(connect_to, queues=True)
        else:
            self._end = transport.Publisher(connect_to, queue=_PUBLISHED)
        self._process = os.getpid()
        # Of one picture and its reply: in a socket that two threads use at once libzmq aborts the program. Not an
        # ordinary lock, for a signal's handler may send while its thread does.
        self._turn = threading.RLock()
        self._start = wire.make_start()
        self._complaints = _Complaints()
        self._counts: dict[str, int] = {}  # pictures sent of each camera, the one that has waited longest first

    @property
    def zmq_socket(self) -> Any:
        """The socket; after a hub was away it is another one."""
        return self._end.socket

    @property
    def zmq_context(self) -> Any:
        """The context."""
        return self._end.context

    def send_image(self, msg: object, image: AnyImage) -> bytes | None:
        """Send an array, with any JSON value as its label; our hub takes camera names only.

        Returns:
            The hub's reply; None when publishing.

        Raises:
            WireError: the array or the label cannot be sent.
            TransportError: the sender is another process's, which was forked.
        """
        return self._send(msg, *wire.array_to_send(image))

    def send_jpg(self, msg: object, jpg_buffer: Buffer) -> bytes | None:
        """Send a JPEG, with any JSON value as its label; our hub takes camera names only.

        Returns:
            The hub's reply; None when publishing.

        Raises:
            WireError: the label cannot be sent, or it is no JPEG.
            TransportError: the sender is another process's, which was forked.
        """
        return self._send(msg, wire.jpeg_to_send(jpg_buffer))

    # What imagezmq sets these two to, by which some programs call them.
    send_image_reqrep = send_image_pubsub = send_image
    send_jpg_reqrep = send_jpg_pubsub = send_jpg

    def close(self) -> None:
        """Close at once."""
        self._end.close()

    def __enter__(self) -> ImageSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(
        self, msg: object, payload: memoryview, dtype: str | None = None, shape: tuple[int, ...] | None = None
    ) -> bytes | None:
        transport.check_process(self._process, "sender")
        with self._turn:
            seq = self._count(msg)
            extras = {"seq": seq, "start": self._start, "captured": time.time_ns()}
            header = wire.make_header(msg, dtype=dtype, shape=shape, extras=extras)
            if isinstance(self._end, transport.Requester):
                reply = self._end.ask(header, payload)
                if reply.startswith(wire.ERROR_PREFIX):  # most programs do not look at it
                    why = reply.removeprefix(wire.ERROR_PREFIX).decode(errors="replace")
                    self._complaints.tell("%s refuses the frames: %s", self._end.endpoint, why)
                return reply
            if seq:  # a label that comes again is a camera's
                self._end.widen(2 * len(self._counts))
            self._end.send(header, payload)
            return None

    def _count(self, msg: object) -> int | None:
        """Count each camera on its own: a hub takes the pictures of another in between for losses."""
        if not (isinstance(msg, str) and wire.is_camera_name(msg)):
            return None
        seq = self._counts.pop(msg, 0)
        self._counts[msg] = seq + 1
        if len(self._counts) > _COUNTED:
            del self._counts[next(iter(self._counts))]
        return seq


class ImageHub:
    """Receives pictures one by one, each to be answered before the next.

    Args:
        open_port: the address to listen on, or with `REQ_REP=False` a publishing sender to connect to.
        REQ_REP: True replies to each picture; False subscribes.

    Raises:
        TransportError: the address is malformed, or cannot be bound.
    """

    def __init__(self, open_port: str = "tcp://*:5555", REQ_REP: bool = True) -> None:  # noqa: FBT001, FBT002, N803
        self.REQ_REP = REQ_REP
        self._end: transport.Replier | transport.Subscriber
        if REQ_REP:
            self._end = transport.Replier(open_port)
        else:
            self._end = transport.Subscriber()
            try:
                self.connect(open_port)
            except TransportError:
                self._end.close()
                raise
        self._process = os.getpid()
        self._owed: bytes | None = None  # the route of the reply that is due
        self._complaints = _Complaints()

    @property
    def zmq_socket(self) -> Any:
        """The socket."""
        return self._end.socket

    @property
    def zmq_context(self) -> Any:
        """The context."""
        return self._end.context

    def connect(self, open_port: str) -> None:
        """Subscribe to one more publishing sender; a hub that replies has nothing to connect to, and says so.

        Raises:
            TransportError: the address is malformed.
        """
        if isinstance(self._end, transport.Subscriber):
            self._end.connect(open_port)
        else:
            _log.warning("connect(%r) does nothing: this hub was not made with REQ_REP=False", open_port)

    def recv_image(self, copy: bool = False) -> tuple[Any, AnyImage]:  # noqa: FBT001, FBT002
        """Wait for the next array.

        Args:
            copy: False gives a view of the message, which nobody else uses; True an array of its own.

        Returns:
            (label, array)

        Raises:
            zmq.ZMQError: the last picture was not answered by `send_reply`; or a RCVTIMEO set on `zmq_socket` is over.
            TransportError: the hub is another process's, which was forked.
        """
        import numpy as np

        while True:
            received, fields = self._receive()
            payload = self._payload(received)
            try:
                if "dtype" not in fields:
                    raise WireError("recv_image was called, and this is a JPEG: send_image, or call recv_jpg")
                dtype, shape = wire.check_array(fields, len(payload))
            except WireError as error:
                self._refuse(received, error)
                continue
            self._owed = received.route
            return fields["msg"], np.frombuffer(bytearray(payload) if copy else payload, dtype).reshape(shape)

    def recv_jpg(self, copy: bool = False) -> tuple[Any, Buffer]:  # noqa: FBT001, FBT002
        """Wait for the next JPEG.

        Args:
            copy: False gives the message's own `zmq.Frame`, True bytes.

        Returns:
            (label, JPEG)

        Raises:
            zmq.ZMQError: the last picture was not answered by `send_reply`; or a RCVTIMEO set on `zmq_socket` is over.
            TransportError: the hub is another process's, which was forked.
        """
        while True:
            received, fields = self._receive()
            payload = self._payload(received)
            try:
                if "dtype" in fields:
                    raise WireError("recv_jpg was called, and this is an array: send_jpg, or call recv_image")
                wire.check_jpeg(payload)
            except WireError as error:
                self._refuse(received, error)
                continue
            self._owed = received.route
            return fields["msg"], payload.tobytes() if copy else payload.obj

    def send_reply(self, reply_message: bytes | str = b"OK") -> None:
        """Reply to the picture received last.

        Raises:
            zmq.ZMQError: there is none, or it has its reply.
        """
        if self._owed is None or not isinstance(self._end, transport.Replier):
            raise transport.out_of_step()
        text = reply_message.encode() if isinstance(reply_message, str) else reply_message
        self._end.reply(self._owed, text)
        self._owed = None

    def close(self) -> None:
        """Close at once."""
        self._end.close()

    def __enter__(self) -> ImageHub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _payload(received: Received) -> memoryview:
        return received.parts[1] if received.parts else memoryview(b"")

    def _receive(self) -> tuple[Received, dict[str, Any]]:
        """Wait for a message with a good header."""
        transport.check_process(self._process, "hub")
        if self._owed and isinstance(self._end, transport.Replier):
            raise transport.out_of_step()
        while True:
            received = self._end.wait()
            try:
                if received.parts is None:
                    raise WireError("a message must have two parts, header and payload")
                return received, wire.read_header(received.parts[0])
            except WireError as error:
                self._refuse(received, error)

    def _refuse(self, received: Received, error: WireError) -> None:
        if isinstance(self._end, transport.Replier):
            self._end.reply(received.route, wire.error_reply(error))
        self._complaints.tell("refused from %s: %s", received.address or "?", str(error))
