"""imagezmq 1.2.0's API on this package's transport: `import streamer as imagezmq` runs programs written for it.

Signatures, attributes and the lock-step of `recv_…` and `send_reply` are those of https://github.com/jeffbass/imagezmq.
What differs is what made its users restart their programs: a sender outlives its hub and goes on when there is one
again, rubbish is refused instead of raised in the receiver's loop, and closing never hangs.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from streamer import codec, transport, wire
from streamer.errors import CodecError, MissingExtraError, TransportError, WireError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    import numpy.typing as npt
    from typing_extensions import Buffer

    from streamer.transport import Received

    AnyImage = npt.NDArray[Any]

Checked = TypeVar("Checked")

_PUBLISHED = 16  # queued pictures: a program may publish several cameras in a burst; more if it has more cameras
_TELL_S = 1.0
_CLOSE_S = 2.0  # to wait for a turn, which one that a signal handler has interrupted may not give back
_COUNTED = 1024  # labels counted, as many as a hub has cameras: a program may make a new label for each picture
_log = logging.getLogger(__name__)


class _Complaints:
    """Logs why pictures are refused: a repeated reason once, changing reasons once a second."""

    def __init__(self) -> None:
        self._last, self._told = "", -math.inf  # the last reason logged, and when

    def tell(self, text: str, who: str, why: str) -> None:
        now = time.monotonic()
        if why != self._last and now - self._told >= _TELL_S:
            self._last, self._told = why, now
            _log.warning(text, who, why)


class ImageSender:
    """Sends pictures one by one; threads that share one take turns, and any may close it.

    Args:
        connect_to: the hub to connect to; with `REQ_REP=False`, the address to publish on.
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
        # Held for one picture and its reply: libzmq aborts the process if two threads use a socket at once. Reentrant,
        # as a signal handler may send while its thread does.
        self._turn = threading.RLock()
        self._asking = False
        self._start = wire.make_start()
        self._complaints = _Complaints()
        self._counts: dict[str, int] = {}  # pictures sent by camera, the least recently used first

    @property
    def zmq_socket(self) -> Any:
        """The ZMQ socket; a new one after the hub was away."""
        return self._end.socket

    @property
    def zmq_context(self) -> Any:
        """The ZMQ context."""
        return self._end.context

    def send_image(self, msg: object, image: AnyImage) -> bytes | None:
        """Send an array.

        Args:
            msg: its label, any JSON value; this package's own `Hub` takes camera names only.
            image: any array of numbers.

        Returns:
            The hub's reply; None when publishing.

        Raises:
            WireError: the array or the label cannot be sent.
            TransportError: the sender belongs to a process that this one was forked from.
            zmq.Again: a SNDTIMEO or RCVTIMEO set on `zmq_socket` is over.
        """
        return self._send(msg, *wire.array_to_send(image))

    def send_jpg(self, msg: object, jpg_buffer: Buffer) -> bytes | None:
        """Send a JPEG.

        Args:
            msg: its label, as for `send_image`.
            jpg_buffer: the whole JPEG.

        Returns:
            The hub's reply; None when publishing.

        Raises:
            WireError: the label cannot be sent, or the buffer is not a JPEG.
            TransportError: the sender belongs to a process that this one was forked from.
            zmq.Again: a SNDTIMEO or RCVTIMEO set on `zmq_socket` is over.
        """
        return self._send(msg, wire.jpeg_to_send(jpg_buffer))

    # imagezmq's other names for these two, which some programs call.
    send_image_reqrep = send_image_pubsub = send_image
    send_jpg_reqrep = send_jpg_pubsub = send_jpg

    def close(self) -> None:
        """Close at once, whatever is in flight; a thread that waits for a reply gets a `zmq.ZMQError`."""
        is_mine = False
        if self._process == os.getpid():  # in a fork, a thread that is not there may have the turn
            if isinstance(self._end, transport.Requester):
                self._end.stop()
            is_mine = self._turn.acquire(timeout=_CLOSE_S)
        try:
            self._end.close()
        finally:
            if is_mine:
                self._turn.release()

    def __enter__(self) -> Self:
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
                reply = self._ask(self._end, header, payload)
                why = wire.refusal_reason(reply)
                if why is not None:  # most programs do not look at the reply
                    self._complaints.tell("%s refuses the frames: %s", self._end.endpoint, why)
                return reply
            if seq == 1:  # one more label is a camera's, and not of a single picture
                self._end.widen(2 * sum(count > 1 for count in self._counts.values()))
            self._end.send(header, payload)
            return None

    def _ask(self, end: transport.Requester, header: bytes, payload: memoryview) -> bytes:
        """Send a picture and wait for its reply."""
        if self._asking:  # by what a signal handler has interrupted, which still waits for its own reply
            with closing(end.another()) as other:
                return other.ask(header, payload)
        self._asking = True
        try:
            return end.ask(header, payload)
        finally:
            self._asking = False

    def _count(self, msg: object) -> int | None:
        """Return the next sequence number of a camera, or None for a label that is no camera's name."""
        if not (isinstance(msg, str) and wire.is_camera_name(msg)):
            return None
        seq = self._counts.pop(msg, 0)
        self._counts[msg] = seq + 1
        if len(self._counts) > _COUNTED:
            del self._counts[next(iter(self._counts))]
        return seq


class ImageHub:
    """Receives pictures one by one, each to be answered before the next. Not thread-safe, not even `close`.

    Args:
        open_port: the address to listen on; with `REQ_REP=False`, a publishing sender to connect to.
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
        self._owed: bytes | None = None  # route of the reply that is due
        self._complaints = _Complaints()

    @property
    def zmq_socket(self) -> Any:
        """The ZMQ socket."""
        return self._end.socket

    @property
    def zmq_context(self) -> Any:
        """The ZMQ context."""
        return self._end.context

    def connect(self, open_port: str) -> None:
        """Subscribe to one more publishing sender; only with `REQ_REP=False`, else it logs a warning.

        Raises:
            TransportError: the address is malformed.
        """
        if isinstance(self._end, transport.Subscriber):
            self._end.connect(open_port)
        else:
            _log.warning("connect(%r) does nothing: this hub was not made with REQ_REP=False", open_port)

    def recv_image(self, copy: bool = False) -> tuple[Any, AnyImage]:  # noqa: FBT001, FBT002
        """Wait for the next array; a JPEG, as `streamer send` sends it, is decoded.

        Args:
            copy: False returns a view of the message's buffer, which nothing else uses; True a copy.

        Returns:
            (label, array); of a JPEG uint8 of shape (height, width, 3), BGR.

        Raises:
            zmq.ZMQError: `send_reply` was not called for the last picture, or the socket's RCVTIMEO is over.
            TransportError: the hub belongs to a process that this one was forked from.
        """
        label, _, image = self._next(_read_image)
        return label, image.copy() if copy else image

    def recv_jpg(self, copy: bool = False) -> tuple[Any, Any]:  # noqa: FBT001, FBT002
        """Wait for the next JPEG.

        Args:
            copy: False returns the message's `zmq.Frame`; True bytes.

        Returns:
            (label, JPEG)

        Raises:
            zmq.ZMQError: `send_reply` was not called for the last picture, or the socket's RCVTIMEO is over.
            TransportError: the hub belongs to a process that this one was forked from.
        """
        label, payload, _ = self._next(_check_jpeg)
        return label, payload.tobytes() if copy else payload.obj

    def send_reply(self, reply_message: bytes | str = b"OK") -> None:
        """Reply to the last picture received.

        Raises:
            zmq.ZMQError: there is none, or it was answered already.
        """
        if self._owed is None or not isinstance(self._end, transport.Replier):
            raise transport.out_of_step("there is no picture to reply to")
        text = reply_message.encode() if isinstance(reply_message, str) else reply_message
        self._end.reply(self._owed, text)
        self._owed = None

    def close(self) -> None:
        """Close at once, whatever is in flight."""
        self._end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self, check: Callable[[dict[str, Any], memoryview], Checked]) -> tuple[Any, memoryview, Checked]:
        """Wait for the next picture that passes `check`, which gets its header's fields and its payload; refuse others.

        Returns:
            (label, payload, what `check` returned)
        """
        transport.check_process(self._process, "hub")
        if self._owed:
            raise transport.out_of_step("no reply to the last picture: call send_reply, zmq_socket.send does not reply")
        while True:
            received = self._end.wait()
            try:
                if received.parts is None:
                    raise WireError("a message must have two parts, header and payload")
                header, payload = received.parts
                fields = wire.read_header(header)
                checked = check(fields, payload)
            except WireError as error:
                self._refuse(received, error)
                continue
            self._owed = received.route
            return fields["msg"], payload, checked

    def _refuse(self, received: Received, error: WireError) -> None:
        if isinstance(self._end, transport.Replier):
            self._end.reply(received.route, wire.error_reply(error))
        self._complaints.tell("refused from %s: %s", received.address or "?", str(error))


def _read_image(fields: dict[str, Any], payload: memoryview) -> AnyImage:
    if "dtype" in fields:
        import numpy as np

        dtype, shape = wire.check_array(fields, len(payload))
        array: AnyImage = np.frombuffer(payload, dtype).reshape(shape)
        return array
    wire.check_jpeg(payload)
    try:
        return codec.decode_jpeg(payload)
    except (CodecError, MissingExtraError) as error:
        raise WireError(f"recv_image was called, and this is a JPEG: {error}") from None


def _check_jpeg(fields: dict[str, Any], payload: memoryview) -> tuple[int, int]:
    if "dtype" in fields:
        raise WireError("recv_jpg was called, and this is an array: send_jpg, or call recv_image")
    return wire.check_jpeg(payload)
