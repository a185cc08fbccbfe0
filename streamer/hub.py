"""The hub: receives the frames of all cameras in one thread, and keeps the newest of each.

The hub is calm: it replies as soon as a frame is stored, always replies, never decodes or blocks on the receiving
thread, and counts what it refuses.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from streamer import keys, wire
from streamer.errors import ConfigError, TransportError, WireError, half_set, listed, log_failure, reason, seconds
from streamer.mailbox import Mailbox
from streamer.presence import Change, NameTakenError, OvertakenError, Presence, State
from streamer.refusals import REMIND_S, Refusals
from streamer.transport import Poller, Replier, Subscriber, Waker, check_process, share_interpreter, tell_unreached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self

    from streamer.frame import Frame
    from streamer.presence import Notice, Status
    from streamer.transport import Received

_TICK_S = 0.25
_SILENT_S = 3.0  # without a frame from a publisher before that is logged
_LOOK_S = 0.05  # how long the socket waits for the next frame, and new peers are kept waiting while frames come
_CLOSE_S = 2.0  # to wait for the thread, which may wait for one that a signal handler has interrupted
_BATCH = 256  # messages received in a row before the clock is read
_log = logging.getLogger(__name__)


class Hub:
    """Receives from any number of senders, ours and stock imagezmq ones, on one port.

    Starts a thread, which runs until `close`, and lowers the process's thread switch interval to 0.1 ms
    (`sys.setswitchinterval`), so that no other thread holds it up.

    Args:
        bind: where senders connect, `tcp://*:PORT`; None to subscribe only.
        subscribe: publishing senders to connect to, `tcp://HOST:PORT`.
        cameras: names of expected cameras, WAITING until their first frame.
        stale_after_s: a camera is STALE after this many seconds without a frame, or two of its intervals if longer.
        gone_after_s: a camera is GONE after this many seconds without a frame, or four of its intervals if longer. An
            interval counts as a minute at most.
        curve_key_file: the hub's key pair, made by `streamer keys make`. Senders must then encrypt (CURVE), with an
            allowed key. By default nothing is encrypted and anybody may send.
        curve_allowed_file: required with `curve_key_file`: which key may send as which camera. Changes take effect
            within a second.
        plain_bind: with `curve_key_file`, a second address for senders that cannot encrypt, such as stock imagezmq
            ones; they cannot use the name of a camera that has a key.

    Raises:
        TransportError: an address cannot be bound, or is malformed.
        ConfigError: a key file is invalid or set without the other; or a camera name or time is invalid.
    """

    def __init__(
        self,
        bind: str | None = "tcp://*:5555",
        *,
        subscribe: Iterable[str] = (),
        cameras: Iterable[str] = (),
        stale_after_s: float = 3.0,
        gone_after_s: float = 30.0,
        curve_key_file: Path | str | None = None,
        curve_allowed_file: Path | str | None = None,
        plain_bind: str | None = None,
    ) -> None:
        if problem := half_set(curve_key_file=curve_key_file, curve_allowed_file=curve_allowed_file):
            raise ConfigError(problem)
        if plain_bind and not curve_key_file:
            raise ConfigError("plain_bind is set and curve_key_file is not: without keys, senders need only bind")
        pair = keys.read_pair(Path(curve_key_file)) if curve_key_file else None
        self._allowed = keys.AllowList(Path(curve_allowed_file)) if curve_allowed_file else None
        stale_after_s, gone_after_s = seconds("stale_after_s", stale_after_s), seconds("gone_after_s", gone_after_s)
        if not 0 < stale_after_s < gone_after_s:
            raise ConfigError(
                f"stale_after_s is {stale_after_s:g} and gone_after_s {gone_after_s:g}: both must be positive, and the "
                "second the greater"
            )
        expected = listed(cameras)
        for name in expected:
            if not wire.is_camera_name(name):
                raise ConfigError(f"{name!r} is not a camera name: {wire.NAME_RULE}")
        self.stale_after_s, self.gone_after_s = stale_after_s, gone_after_s
        self._presence = Presence(expected, stale_after_s=stale_after_s, gone_after_s=gone_after_s)
        self._lock = threading.RLock()  # guards the presence table and the list of mailboxes
        self._mailboxes: list[tuple[Mailbox[Frame], frozenset[str] | None]] = []
        self._refusals = Refusals(_log)
        self._closing = False
        self._failure: Exception | None = None
        self._process = os.getpid()
        self.turned = time.monotonic()  # last turn of the thread's loop, for a watchdog
        self._first = self._last = 0.0
        self._waker = Waker()
        self._replier: Replier | None = None
        self._ends: list[Replier | Subscriber] = []
        # Those of which no frame has come yet: the endpoint, and when to log that.
        self._silent: dict[Replier | Subscriber, tuple[str, float]] = {}
        try:
            if bind:
                self._replier = Replier(bind, pair, self._allowed, plain_bind, guarded=True)
                self._ends.append(self._replier)
            for endpoint in listed(subscribe):
                # A context each: libzmq resolves host names of one context in turn, and one may take long.
                self._ends.append(subscriber := Subscriber(guarded=True))
                subscriber.connect(endpoint)
                self._silent[subscriber] = endpoint, time.monotonic() + _SILENT_S
            self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
            self._thread.start()
        except BaseException:
            self._close_ends()
            self._waker.close()
            raise
        share_interpreter()

    @property
    def endpoint(self) -> str | None:
        """The address it listens on, with the actual port; None if it only subscribes."""
        return self._replier.endpoint if self._replier else None

    @property
    def plain_endpoint(self) -> str | None:
        """The address of `plain_bind`, with the actual port; None without one."""
        return self._replier.plain_endpoint if self._replier else None

    @property
    def keys_allowed(self) -> int | None:
        """How many keys may send; None without encryption."""
        return self._allowed.count if self._allowed else None

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames as they arrive until the hub is closed; a slow caller gets only the newest of each camera.

        Raises:
            TransportError: receiving has failed for good; or the hub belongs to a process that this one was forked
                from.
        """
        mailbox = self.open_mailbox()
        try:
            while True:
                frame = mailbox.take(None)
                if frame is None:
                    break
                yield frame
        finally:
            self.close_mailbox(mailbox)
        self.check_failure()

    def latest(self, name: str) -> Frame | None:
        """Return a camera's newest frame; None if there is no such camera, or no frame yet.

        Raises:
            TransportError: the hub belongs to a process that this one was forked from.
        """
        check_process(self._process, "hub")
        return self._presence.latest(name)

    def cameras(self) -> list[Status]:
        """Return the status of every camera, sorted by name.

        Raises:
            TransportError: the hub belongs to a process that this one was forked from.
        """
        check_process(self._process, "hub")
        return self._presence.statuses(time.monotonic())  # no lock: hundreds of rows would hold up the frames

    @property
    def expected(self) -> frozenset[str]:
        """Names of the expected cameras."""
        return self._presence.expected

    @property
    def refused(self) -> int:
        """How many messages and connections were refused since the start."""
        return self._refusals.total

    @property
    def elapsed_s(self) -> float:
        """Seconds between the first and the last frame."""
        return max(0.0, self._last - self._first)  # the thread sets the first before the last

    @property
    def failure(self) -> Exception | None:
        """The error that ended the receiving thread; None while it runs."""
        return self._failure

    def check_failure(self) -> None:
        """Check that the receiving thread has not failed.

        Raises:
            TransportError: it has, for good.
        """
        if self._failure:
            raise TransportError(f"the hub has failed: {reason(self._failure)}")

    def open_mailbox(
        self, cameras: Iterable[str] | None = None, on_ready: Callable[[], None] | None = None
    ) -> Mailbox[Frame]:
        """Open a mailbox that gets every new frame from now on, starting with the newest of each LIVE camera.

        Args:
            cameras: names of the cameras wanted; None for all.
            on_ready: called when the mailbox is no longer empty, usually on the receiving thread; it must not block,
                raise or call the hub.

        Raises:
            TransportError: the hub belongs to a process that this one was forked from.
        """
        check_process(self._process, "hub")
        wanted = None if cameras is None else frozenset(listed(cameras))
        mailbox: Mailbox[Frame] = Mailbox(on_ready)
        with self._lock:
            if self._closing or self._failure:
                mailbox.close()
            for frame in self._presence.newest():
                if wanted is None or frame.camera in wanted:
                    mailbox.put(frame.camera, frame)
            # A new list: the receiving thread may be iterating over the old one.
            self._mailboxes = [*self._mailboxes, (mailbox, wanted)]
        return mailbox

    def close_mailbox(self, mailbox: Mailbox[Frame]) -> None:
        """Close a mailbox that `open_mailbox` returned."""
        if self._process != os.getpid():  # in a fork, a thread that is not there may hold a lock
            return
        mailbox.close()
        with self._lock:
            self._mailboxes = [entry for entry in self._mailboxes if entry[0] is not mailbox]

    def close(self) -> None:
        """Stop at once, whatever the senders do."""
        if self._closing or self._process != os.getpid():
            return
        self._closing = True
        self._waker.wake()
        if threading.current_thread() is not self._thread:  # on which the garbage collector may run a finaliser
            self._thread.join(_CLOSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close_ends(self) -> None:
        for end in self._ends:
            end.close()

    def _run(self) -> None:
        """Run the receiving thread, the only one that touches the sockets."""
        try:
            self._receive()
        except Exception as error:  # noqa: BLE001 - logged, and kept in `failure`
            self._failure = error
            log_failure(_log, "the hub has failed", error)
        finally:
            with ExitStack() as ending:  # an `on_ready` may raise: the others end all the same
                ending.callback(self._waker.close)
                ending.callback(self._close_ends)
                with self._lock:
                    mailboxes = self._mailboxes
                for mailbox, _ in mailboxes:
                    ending.callback(mailbox.close)

    def _receive(self) -> None:
        poller = Poller(self._waker)
        for end in self._ends:
            poller.watch(end)
        alone = self._replier if len(self._ends) == 1 else None
        if alone:
            alone.socket.wait_at_most(_LOOK_S)
        flowing = crowded = False
        looked = ticked = 0.0
        while not self._closing:
            # While frames flow, block in the socket's own receive: polling takes three times as many system calls. But
            # only a poll can be woken, so go back to it after a moment without a frame.
            if flowing and alone:
                received = alone.receive(wait=True)
                now = self.turned = time.monotonic()
                flowing = received is not None
                if received:
                    self._accept(received, now)
            else:
                poller.wait(0 if crowded else _TICK_S)
                now = self.turned = time.monotonic()
                flowing = self._receive_waiting(now)
                looked = 0.0
            if now - ticked >= _TICK_S:
                ticked = now
                self._tick(now)
            if crowded or now - looked >= _LOOK_S:
                looked = now
                for end in self._ends:
                    for address, why in end.admit():
                        self._refusals.add(address, why)
                crowded = any(end.crowded for end in self._ends)

    def _receive_waiting(self, now: float) -> bool:
        """Receive what is waiting, at most a batch per socket; return whether there was anything."""
        some = False
        for end in self._ends:
            for _ in range(_BATCH):
                if self._closing or (received := end.receive()) is None:
                    break
                self._accept(received, now)
                some = True
                self._silent.pop(end, None)
        return some

    def _accept(self, received: Received, now: float) -> None:
        """Store a frame, reply, and fill the mailboxes; or refuse it and reply why."""
        try:
            if received.parts is None:
                raise WireError("a message must have two parts, header and payload")
            frame = wire.parse(*received.parts, time.time_ns())
            if self._allowed:
                self._allowed.check(received.key, frame.camera)
            with self._lock:
                change = self._presence.add(frame, received.address, now, received.route)
                mailboxes = self._mailboxes
        except WireError as error:
            if self._replier and received.route:
                self._replier.reply(received.route, wire.error_reply(error))
            if not isinstance(error, NameTakenError | OvertakenError):  # these show in the table
                self._refusals.add(received.address, str(error), error.label)
            return
        if self._replier and received.route:
            self._replier.reply(received.route, wire.reply_to(frame))
        self._first = self._first or now
        self._last = now
        for mailbox, wanted in mailboxes:
            if wanted is None or frame.camera in wanted:
                mailbox.put(frame.camera, frame)
        if change:
            _tell(change)

    def _tick(self, now: float) -> None:
        for end in self._ends:
            end.weigh()
        with self._lock:
            changes = self._presence.tick(now)
        for change in changes:
            _tell(change)
        for end, (endpoint, tell_at) in self._silent.items():
            if now >= tell_at:
                self._silent[end] = endpoint, now + REMIND_S
                is_silent = partial(self._is_silent, end)
                tell_unreached([(endpoint, None)], "nothing comes from %s; waiting for it", is_silent)
        if self._allowed:
            self._allowed.refresh()
        self._refusals.tell(now)

    def _is_silent(self, end: Replier | Subscriber) -> bool:
        return end in self._silent and not self._closing


def _tell(change: Change | Notice) -> None:
    if not isinstance(change, Change):
        _log.log(logging.WARNING if change.is_trouble else logging.INFO, "%s: %s", change.name, change.words)
        return
    level = logging.INFO if change.after is State.LIVE else logging.WARNING
    _log.log(level, "%s: %s, was %s", change.name, change.after, change.before)
