"""The sender: a camera's newest picture, over a window of unanswered requests, to the first hub that answers.

The sender is brittle on purpose, the hub calm: whatever is odd about a connection, the sender throws it away and opens
a new one. Nothing queued for the old one is ever sent again.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import random
import socket
import threading
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from streamer import clock, codec, keys, wire
from streamer.errors import (
    CameraError,
    ConfigError,
    TransportError,
    WireError,
    half_set,
    listed,
    log_failure,
    reason,
    seconds,
)
from streamer.mailbox import Mailbox
from streamer.refusals import REMIND_S
from streamer.transport import Poller, Publisher, Requester, Waker, check_process, share_interpreter, tell_unreached
from streamer.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    import numpy.typing as npt
    from typing_extensions import Buffer

    from streamer.cameras import Camera
    from streamer.keys import KeyPair

_BACKOFF_FIRST_S = 0.25
_LEAVE_S = 1.0
_CLOSE_S = 2.0  # to wait for the thread, which may wait for `source`, or one that a signal handler has interrupted
_BACKOFF_MAX_S = 4.0  # a hub that has recovered gets frames again within five seconds
_PATIENCE_MAX_S = 30.0  # for a reply, over a slow line; a dead one is noticed by libzmq's heartbeats
_IDLE_S = 1.0
_LOOK_S = 0.05  # how often all hubs are checked while the first of them replies
_RETRY_FIRST_S = 0.5
_RETRY_MAX_S = 10.0
_log = logging.getLogger(__name__)


class _Outgoing(NamedTuple):
    payload: memoryview
    dtype: str | None
    shape: tuple[int, ...] | None
    captured_ns: int
    wall: tuple[int, int]  # Offset of the wall clock that `captured_ns` is from, against the monotonic clock


class _Headers:
    """Writes the headers of one connection; what they have in common is encoded once."""

    def __init__(self, camera: str, extras: Mapping[str, object]) -> None:
        self._camera = camera
        self._extras = extras
        self._form: tuple[str | None, tuple[int, ...] | None] = (None, None)
        self._common = wire.make_header(camera, extras=extras)

    def write(self, outgoing: _Outgoing, seq: int, dropped: int, offset: tuple[int, int] | None) -> bytes:
        form = outgoing.dtype, outgoing.shape
        if form != self._form:
            self._form = form
            self._common = wire.make_header(self._camera, dtype=form[0], shape=form[1], extras=self._extras)
        return wire.add_counts(self._common, seq, outgoing.captured_ns, dropped, offset)


@dataclass(frozen=True)
class SenderStatistics:
    """What a sender has done so far.

    Attributes:
        frames: frames sent, to all hubs.
        answered: how many of them a hub has replied to; 0 when publishing.
        refused: how many of those replies were refusals.
        dropped: pictures skipped because a newer one came first.
        bytes: total size of the payloads sent.
        last: the last payload sent, or None.
        elapsed_s: seconds between the first and the last frame sent.
        hub: the endpoint in use, or None while there is none.
    """

    frames: int
    answered: int
    refused: int
    dropped: int
    bytes: int
    last: memoryview | None
    elapsed_s: float
    hub: str | None


class _Link:
    """One hub, and the requests in flight to it. Not thread-safe: it belongs to the sender's thread."""

    def __init__(self, end: Requester, headers: _Headers, in_flight_limit: int, reply_timeout_s: float) -> None:
        self.end = end
        self.answered = self.refused = 0
        self._in_flight_limit = in_flight_limit
        self._window = Window(in_flight_limit, end.packet_times)
        self._reply_timeout_s = reply_timeout_s
        self._patience_s = reply_timeout_s  # more, where a frame takes longer on its way than that
        self._headers = headers
        # The hub's wall clock against our monotonic one, since a Pi's wall clock is set some time after boot.
        self._hub_clock = clock.Estimate()
        self._moved = 0.0  # when the last reply came, or the first request of several left
        self.resting = False  # backing off: the hub closed the connection, or does not reply
        self._resume = 0.0  # when to reopen it
        self._backoff_s = 0.0
        self._refused: str | None = None  # why the last reply refused a frame, if it did
        self._seq = 0  # per hub, so that a frame sent to another hub does not count as lost here

    def usable(self) -> bool:
        """Whether the hub is connected, as far as is known; its window may be full."""
        return not self.resting and self.end.connected()

    @property
    def trusted(self) -> bool:
        """Whether the hub has replied since it last failed to, if it ever did."""
        return not self._backoff_s

    def has_room(self) -> bool:
        """Whether one more frame may be in flight."""
        return self._window.has_room(time.monotonic_ns())

    def want(self) -> None:
        """Note that a frame was waiting and the window was full."""
        self._window.want()

    @property
    def deadline(self) -> float | None:
        """When `due` may change although nothing arrives, in monotonic seconds; None for never."""
        if self.resting:
            return self._resume
        return self._moved + self._patience_s if self._window.under_way else None

    def send(self, outgoing: _Outgoing, dropped: int, now: float) -> bool:
        sent_ns = time.monotonic_ns()
        hub, (wall_ns, error_ns) = self._hub_clock.read(sent_ns), outgoing.wall
        offset = (hub.ns - wall_ns, hub.error_ns + error_ns) if hub else None
        if not self.end.send(self._headers.write(outgoing, self._seq, dropped, offset), outgoing.payload):
            return False
        self._seq += 1
        if not self._window.under_way:
            self._moved = now
        self._window.sent(sent_ns)
        return True

    def receive(self, now: float) -> None:
        """Receive the waiting replies: each is credit for one more frame."""
        while (reply := self.end.receive()) is not None:
            self._take(reply, now)
            if not self._window.under_way:
                return

    def wait(self, now: float) -> None:
        """Block for a moment for one reply; to ask for more would double the cost."""
        reply = self.end.receive(wait=True)
        if reply is not None:
            self._take(reply, now)

    def _take(self, reply: bytes, now: float) -> None:
        received_ns = time.monotonic_ns()
        sent_ns = self._window.answered(received_ns)
        if sent_ns is None:  # unsolicited
            return
        stamp_ns = wire.read_stamp(reply)
        if stamp_ns is not None:
            self._hub_clock.add(sent_ns, stamp_ns, received_ns)
        self._moved = now
        self._resume = self._backoff_s = 0.0
        took_s = (received_ns - sent_ns) / 1e9
        if 2 * took_s > self._reply_timeout_s or self._patience_s > self._reply_timeout_s:
            self._wait_longer(took_s)
        self.answered += 1
        refused = wire.refusal_reason(reply)
        if refused is not None:
            self.refused += 1
            if refused != self._refused:
                _log.warning("%s refuses the frames: %s", self.end.told_as, refused)
        self._refused = refused

    def due(self, now: float) -> bool:
        """Whether to reopen: the connection ended or the hub does not reply, and the back-off is over."""
        overdue = self._window.under_way > 0 and now - self._moved >= self._patience_s
        if (self.end.left() or overdue) and not self.resting:
            self.resting = True
            if overdue:
                self._wait_longer(self._patience_s)
            self._resume = now + self._backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
            self._backoff_s = min(_BACKOFF_MAX_S, 2 * self._backoff_s or _BACKOFF_FIRST_S)
        return self.resting and now >= self._resume

    def _wait_longer(self, than_s: float) -> None:
        """Wait for the next reply twice as long as for this one: on a slow line one frame may take seconds."""
        self._patience_s = max(self._reply_timeout_s, min(_PATIENCE_MAX_S, 2 * than_s))

    def reopen(self) -> None:
        """Open a fresh connection."""
        self.end.reopen()
        self.resting = False
        # The next hub to answer may be another one, on another path.
        self._window = Window(self._in_flight_limit, self.end.packet_times)
        self._hub_clock = clock.Estimate()


class Sender:
    """Sends pictures to a hub, newest first, without ever blocking the caller.

    Starts a thread, which runs until `close`, and lowers the process's thread switch interval to 0.1 ms
    (`sys.setswitchinterval`), so that no other thread holds it up.

    Args:
        hubs: one endpoint or several, `tcp://HOST:PORT`; frames go to the first in the list that answers.
        name: the camera's name; by default this host's name.
        publish: instead of `hubs`, an endpoint to bind and publish on, `tcp://*:PORT`.
        source: called for a picture, as `send` takes it, whenever one more can be sent and `send` was given none: to
            send recordings as fast as the hub takes them. If it returns None it is called again within a second. It
            runs on the sender's thread, so it must not block; an exception ends the sender.
        in_flight_limit: the most frames in flight without a reply. The sender uses as many as the round trip needs; 1
            is imagezmq's lock-step.
        reply_timeout_s: after this many seconds without a reply, the connection is reopened; after up to 30 if the hub
            or the line is known to take longer over a frame.
        every_s: the intended interval between frames, in seconds; reported to the hub.
        release: the release that runs, 1 to 64 of A-Z a-z 0-9 . _ + -; reported to the hub.
        curve_key_file: this camera's key pair, made by `streamer keys make`: frames are then sent encrypted (CURVE) or
            not at all. By default nothing is encrypted.
        curve_hub_keys: with `curve_key_file`, the public key of each hub, in the order of `hubs`.

    Raises:
        TransportError: an endpoint is malformed, or cannot be bound.
        ConfigError: neither or both of `hubs` and `publish`; a `source` with `publish`; an invalid name, release or
            key file; or a limit, time or interval out of range.
    """

    def __init__(
        self,
        hubs: str | Sequence[str] = (),
        name: str | None = None,
        *,
        publish: str | None = None,
        source: Callable[[], Buffer | npt.NDArray[Any] | None] | None = None,
        in_flight_limit: int = wire.IN_FLIGHT_LIMIT,
        reply_timeout_s: float = 1.0,
        every_s: float | None = None,
        release: str | None = None,
        curve_key_file: Path | str | None = None,
        curve_hub_keys: str | Sequence[str] = (),
    ) -> None:
        endpoints, hub_keys = listed(hubs), listed(curve_hub_keys)
        if bool(endpoints) == bool(publish):
            raise ConfigError("a sender needs either hubs or an address to publish on")
        if source and publish:
            raise ConfigError("a source sends what the hub takes, and nobody replies to what is published")
        self._source = source
        self.name = name or socket.gethostname()
        if not wire.is_camera_name(self.name):
            raise ConfigError(f"{self.name!r} is not a camera name: {wire.NAME_RULE}")
        if in_flight_limit not in range(1, wire.IN_FLIGHT_MAX + 1):
            raise ConfigError(f"in_flight_limit is {in_flight_limit!r}: it must be from 1 to {wire.IN_FLIGHT_MAX}")
        reply_timeout_s = seconds("reply_timeout_s", reply_timeout_s)
        if not 0 < reply_timeout_s < math.inf:
            raise ConfigError(f"reply_timeout_s is {reply_timeout_s}: it must be a positive number of seconds")
        every_s = every_s if every_s is None else seconds("every_s", every_s)
        if every_s is not None and not wire.is_interval(every_s):
            raise ConfigError(f"every_s is {every_s}: it must be a positive number of seconds")
        if release is not None and not wire.is_release(release):
            raise ConfigError(f"{release!r} is not a release: {wire.RELEASE_RULE}")
        pair = _read_keys(curve_key_file, hub_keys, endpoints)
        self._extras = {"every": every_s, "release": release}
        self._reply_timeout_s = reply_timeout_s
        self._waker = Waker()
        self._mailbox: Mailbox[_Outgoing] = Mailbox(on_ready=None if publish else self._wake)
        self._sizes = codec.JpegSizes()
        self._is_full = False  # the window is full: only a reply need wake the thread, no picture
        self._closing = False
        self._failure: Exception | None = None
        self._unsent = 0  # pictures taken from the mailbox just as the hub left
        self._frames = self._bytes = 0
        self._first_sent = self._last_sent = 0.0
        self._last: memoryview | None = None
        self._hub: str | None = None
        self._tell_at = time.monotonic() + reply_timeout_s  # when to log next that there is no hub
        self.turned = time.monotonic()  # last turn of the thread's loop, for a watchdog
        self._links: list[_Link] = []
        self._publisher: Publisher | None = None
        self._process = os.getpid()
        try:
            start = wire.make_start()
            for number, (endpoint, hub_key) in enumerate(zip_longest(endpoints, hub_keys)):
                requester = Requester(endpoint, pair, hub_key, camera=self.name)
                requester.socket.wait_at_most(_LOOK_S)
                extras = {"start": f"{start}.{number}" if number else start, "clock": True, **self._extras}
                self._links.append(_Link(requester, _Headers(self.name, extras), in_flight_limit, reply_timeout_s))
            if publish:
                self._publisher = Publisher(publish)
            self._thread = threading.Thread(target=self._run, name=f"sender-{self.name}", daemon=True)
            self._thread.start()
        except BaseException:
            self._close_ends()
            self._waker.close()
            raise
        share_interpreter()
        atexit.register(self._leave)

    def send(self, picture: Buffer | npt.NDArray[Any], *, captured_ns: int | None = None) -> None:
        """Make `picture` the next to be sent, in place of one still waiting; returns at once.

        Args:
            picture: a JPEG, as bytes or a one-dimensional array; or a raw array of shape (height, width) or (height,
                width, channels). It is not copied, so it must not be changed afterwards.
            captured_ns: when the sensor was read: wall clock, in ns since 1970; by default now.

        Raises:
            WireError: the picture is neither, or too large; or `captured_ns` is no such time.
            TransportError: the sender is closed, has failed for good (out of file descriptors, say), or was made before
                this process was forked: a fork does not copy its thread.
        """
        if self._closing or self._failure:
            failed = self._failure and f"the sender has failed: {reason(self._failure)}"
            raise TransportError(failed or "the sender is closed")
        check_process(self._process, "sender")
        if captured_ns:
            captured_ns = wire.check_captured(captured_ns)
        self._mailbox.put(self.name, self._outgoing(picture, captured_ns))

    def _outgoing(self, picture: Buffer | npt.NDArray[Any], captured_ns: int | None) -> _Outgoing:
        # Compare the clocks now: the wall clock may step before the frame is sent.
        before_ns, wall_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        wall = clock.measure(before_ns, wall_ns, after_ns)
        captured_ns = captured_ns or wall_ns
        array = cast("npt.NDArray[Any]", picture)
        if hasattr(picture, "dtype") and array.ndim != 1:  # one dimension: a JPEG as cv2.imencode returns it
            payload, dtype, shape = wire.image_to_send(array)
            return _Outgoing(payload, dtype, shape, captured_ns, wall)
        return _Outgoing(wire.jpeg_to_send(cast("Any", picture), self._sizes.read), None, None, captured_ns, wall)

    @property
    def statistics(self) -> SenderStatistics:
        """What the sender has done so far."""
        # The thread goes on meanwhile: in this order, no reply is without its frame, and no refusal without its reply.
        refused = sum(link.refused for link in self._links)
        answered = sum(link.answered for link in self._links)
        return SenderStatistics(
            frames=self._frames,
            answered=answered,
            refused=refused,
            dropped=self._dropped,
            bytes=self._bytes,
            last=self._last,
            elapsed_s=max(0.0, self._last_sent - self._first_sent),  # the thread sets the first before the last
            hub=self._hub,
        )

    @property
    def failure(self) -> Exception | None:
        """The error that ended the sender's thread; None while it runs."""
        return self._failure

    def close(self) -> None:
        """Stop at once, whatever the hub does; a picture not sent yet is discarded."""
        atexit.unregister(self._leave)
        self._end(_CLOSE_S)

    def _leave(self) -> None:
        """Close a sender left open at the end of the program, while pyzmq can still lend and free large frames."""
        self._end(_LEAVE_S)

    def _end(self, within_s: float) -> None:
        """Stop the thread, waiting at most `within_s` seconds."""
        if self._closing or self._process != os.getpid():  # in a fork, a thread that is not there may hold a lock
            return
        self._closing = True
        self._mailbox.close()
        self._waker.wake()
        if threading.current_thread() is not self._thread:  # `source` may call this
            self._thread.join(within_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close_ends(self) -> None:
        for link in self._links:
            link.end.close()
        if self._publisher:
            self._publisher.close()

    def _count(self, outgoing: _Outgoing, now: float) -> None:
        self._last = outgoing.payload
        self._bytes += outgoing.payload.nbytes
        self._frames += 1
        self._first_sent = self._first_sent or now
        self._last_sent = now

    def _wake(self) -> None:
        if not self._is_full:
            self._waker.wake()

    @property
    def _dropped(self) -> int:
        return self._mailbox.dropped + self._unsent

    def _run(self) -> None:
        """Run the sender's thread, the only one that touches the sockets."""
        try:
            if self._publisher:
                self._publish(self._publisher)
            else:
                self._request()
        except Exception as error:  # noqa: BLE001 - logged, and kept in `failure`
            self._failure = error
            log_failure(_log, f"{self.name}: the sender has failed", error)
        finally:
            self._close_ends()
            self._waker.close()

    def _request(self) -> None:
        poller = Poller(self._waker)
        for link in self._links:
            poller.watch(link.end)
        chosen: _Link | None = None
        better: list[_Link] = []  # hubs before the chosen one that are connected and do not reply
        looked = 0.0
        has_received = False
        while not self._closing:
            now = self.turned = time.monotonic()
            if self._is_full and chosen and (self._source or self._mailbox):
                chosen.want()
            self._is_full = False
            if chosen is self._links[0] and chosen.trusted and now - looked < _LOOK_S:
                if not has_received:
                    chosen.receive(now)
            else:
                looked = now
                chosen, better = self._choose(poller, now)
            has_received = False
            while chosen and (has_room := chosen.has_room()) and (outgoing := self._next()):
                # These get a copy, and are chosen again once they reply to one.
                for link in better:
                    if link.has_room():
                        link.send(outgoing, self._dropped, now)
                if chosen.send(outgoing, self._dropped, now):
                    self._count(outgoing, now)
                else:
                    self._unsent += 1
                    chosen = None
            self._is_full = chosen is not None and not has_room
            if chosen and self._is_full and not better:
                if not chosen.trusted:
                    looked = 0.0  # choose again, and log it, as soon as it replies
                chosen.wait(now)
                has_received = True
            elif self._wait(poller, now, for_hub=chosen is None and bool(self._source or self._mailbox)):
                chosen = None

    def _choose(self, poller: Poller, now: float) -> tuple[_Link | None, list[_Link]]:
        """Check all hubs; return the one to send to, and those before it that are connected but do not reply."""
        for link in self._links:
            link.receive(now)
            if link.due(now):
                poller.forget(link.end)
                link.reopen()
                poller.watch(link.end)
        ready = [link for link in self._links if link.usable()]
        chosen = next((link for link in ready if link.trusted), ready[0] if ready else None)
        self._tell(chosen if chosen and chosen.trusted else None, now)
        return chosen, ready[: ready.index(chosen)] if chosen else []

    def _next(self) -> _Outgoing | None:
        """Return what to send next, or None."""
        outgoing = self._mailbox.take() if self._mailbox else None
        if outgoing is None and self._source and not self._closing:
            picture = self._source()
            return None if picture is None else self._outgoing(picture, None)
        return outgoing

    def _wait(self, poller: Poller, now: float, *, for_hub: bool) -> bool:
        """Wait for a picture, a reply or a deadline; with `for_hub` also until a hub can be sent to.

        Returns:
            Whether a hub may have left.
        """
        soonest = now + _IDLE_S
        for link in self._links:
            deadline = link.deadline
            if deadline and now < deadline < soonest:
                soonest = deadline
        return poller.wait(soonest - now, [link.end for link in self._links if not link.resting] if for_hub else ())

    def _publish(self, publisher: Publisher) -> None:
        self._hub = publisher.endpoint
        _log.info("%s: publishing on %s", self.name, publisher.endpoint)
        headers, seq = _Headers(self.name, {"start": wire.make_start(), **self._extras}), 0
        while not self._closing:
            outgoing = self._mailbox.take(_IDLE_S)
            now = self.turned = time.monotonic()
            if outgoing is not None:
                publisher.send(headers.write(outgoing, seq, self._dropped, None), outgoing.payload)
                self._count(outgoing, now)
                seq += 1

    def _tell(self, link: _Link | None, now: float) -> None:
        """Log a change of hub; and that there is none after `reply_timeout_s`, and again each minute."""
        if link:
            if link.end.endpoint != self._hub:
                _log.info("%s: sending to %s", self.name, link.end.endpoint)
            self._hub = link.end.endpoint
            return
        if self._hub:
            self._hub, self._tell_at = None, now + self._reply_timeout_s
        if now >= self._tell_at:
            self._tell_at = now + REMIND_S
            does = "takes the frames" if any(link.end.refusal for link in self._links) else "answers"
            ends = [(link.end.endpoint, link.end.refusal) for link in self._links]
            words = f"{self.name}: no hub {does} at %s; waiting for one"
            tell_unreached(ends, words, lambda: not (self._hub or self._closing))


def _read_keys(key_file: Path | str | None, hub_keys: Sequence[str], endpoints: Sequence[str]) -> KeyPair | None:
    """Read a camera's key pair, and check the hubs' keys that go with it."""
    if key_file and not endpoints:
        raise ConfigError("curve_key_file is set, but what is published is not encrypted: it needs hubs")
    if problem := half_set(curve_key_file=key_file, curve_hub_keys=hub_keys):
        raise ConfigError(problem)
    if not key_file:
        return None
    if len(hub_keys) != len(endpoints):
        raise ConfigError(
            f"curve_hub_keys has {len(hub_keys)} and hubs {len(endpoints)}: each hub needs its public key, in the same "
            "order"
        )
    for number, key in enumerate(hub_keys, 1):
        try:
            keys.public_key(key)
        except ConfigError as error:
            raise ConfigError(f"curve_hub_keys: number {number} {error}") from None
    return keys.read_pair(Path(key_file))


class Feed:
    """Feeds a sender from a camera, in a thread of its own. A camera that fails is logged and reopened, for ever.

    Args:
        open_camera: opens the camera; raises CameraError if it cannot now, ConfigError if it never will.
        sender: where the pictures go.
    """

    def __init__(self, open_camera: Callable[[], Camera], sender: Sender) -> None:
        self._open_camera = open_camera
        self._sender = sender
        self._stop = threading.Event()
        self.pictures = 0  # pictures so far, for a watchdog
        self.failure: Exception | None = None  # what ended the thread
        # A daemon: a camera library that hangs in the kernel cannot be stopped.
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop, and wait at most `timeout_s` seconds for the camera to close."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        delay_s, told, told_at = _RETRY_FIRST_S, "", 0.0
        while not self._stop.is_set():
            try:
                with self._open_camera() as camera:
                    while not self._stop.is_set():
                        jpeg, captured_ns = camera.read()
                        self._sender.send(jpeg, captured_ns=captured_ns)
                        self.pictures += 1
                        delay_s, told = _RETRY_FIRST_S, ""
            except (CameraError, WireError) as error:
                now = time.monotonic()
                if str(error) != told or now - told_at >= REMIND_S:
                    _log.warning("%s: %s; trying again", self._sender.name, error)
                    told, told_at = str(error), now
                self._stop.wait(delay_s)
                delay_s = min(_RETRY_MAX_S, 2 * delay_s)
            except ConfigError as error:
                self.failure = error
                return
            except Exception as error:  # noqa: BLE001 - logged, and kept in `failure`
                # The sender has failed, and has said so; or is closed, and the camera took too long to stop.
                if self._sender.failure or self._stop.is_set():
                    return
                self.failure = error
                log_failure(_log, f"{self._sender.name}: the camera's thread has failed", error)
                return
