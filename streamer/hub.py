"""The hub: receives every camera's frames in one thread, and keeps the newest of each for whoever looks.

The hub is calm: it replies as soon as a frame is stored, always replies, never decodes or waits on the receiving
thread, and counts what it refuses.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from streamer import keys, wire
from streamer.errors import ConfigError, TransportError, WireError
from streamer.mailbox import Mailbox
from streamer.presence import Change, NameTakenError, OvertakenError, Presence, State
from streamer.refusals import Refusals
from streamer.transport import Poller, Replier, Subscriber, Waker, share_interpreter, with_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from streamer.frame import Frame
    from streamer.presence import Notice, Status
    from streamer.transport import Received

_TICK_S = 0.25
_SILENT_S = 3.0  # of a publishing sender, before that is told
_REMIND_S = 60.0
_LOOK_S = 0.05  # so long the socket waits for the next frame, and a peer at the door while frames come
# Messages taken before the clock is looked at and closing is noticed.
_BATCH = 256
_log = logging.getLogger(__name__)


class Hub:
    """Receives from any number of senders, ours and stock imagezmq ones, on one port.

    It has a thread of its own. So that no other holds it up, threads of the process give way to each other after 0.1 ms
    from now on (`sys.setswitchinterval`).

    Args:
        bind: where senders connect to, `tcp://*:PORT`; None to only subscribe.
        subscribe: publishing senders to connect to, `tcp://HOST:PORT`.
        cameras: names that are shown as WAITING until they come.
        stale_after_s: without a frame for so long a camera is STALE; one that sends seldom, after two of its intervals.
        gone_after_s: without a frame for so long it is GONE; one that sends seldom, after four of its intervals.
        curve_key_file: the hub's key pair, made by `streamer keys make`: senders must then encrypt (CURVE), and have a
            key that is allowed. By default there is no encryption and everybody may send.
        curve_allowed_file: with `curve_key_file`, the keys that may send, and as which camera; a change takes effect
            within a second.
        plain_bind: with `curve_key_file`, a second address for senders without encryption, stock imagezmq ones for
            example; they can take no name that has a key.

    Raises:
        TransportError: `bind` cannot be bound, or an address is malformed.
        ConfigError: a key file is not what it must be, or is set without the other; a camera's name or a time is none.
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
        if bool(curve_key_file) != bool(curve_allowed_file):
            given, missing = ("curve_key_file", "curve_allowed_file")[:: 1 if curve_key_file else -1]
            raise ConfigError(f"{given} is set and {missing} is not: set both, or neither")
        if plain_bind and not curve_key_file:
            raise ConfigError("plain_bind is set and curve_key_file is not: without keys, senders need only bind")
        pair = keys.read_pair(Path(curve_key_file)) if curve_key_file else None
        self._allowed = keys.AllowList(Path(curve_allowed_file)) if curve_allowed_file else None
        if not 0 < stale_after_s < gone_after_s:
            raise ConfigError(
                f"stale_after_s is {stale_after_s:g} and gone_after_s {gone_after_s:g}: both must be positive, and the "
                "second the greater"
            )
        expected = [cameras] if isinstance(cameras, str) else list(cameras)
        for name in expected:
            if not wire.is_camera_name(name):
                raise ConfigError(f"{name!r} is no camera name: {wire.NAME_RULE}")
        self.stale_after_s, self.gone_after_s = stale_after_s, gone_after_s
        self._presence = Presence(expected, stale_after_s=stale_after_s, gone_after_s=gone_after_s)
        self._lock = threading.Lock()  # of the presence table and the list of mailboxes
        self._mailboxes: list[tuple[Mailbox[Frame], frozenset[str] | None]] = []
        self._refusals = Refusals(_log)
        self._closing = False
        self._failure: Exception | None = None
        self.turned = time.monotonic()  # when the thread last went round; a watchdog may look at it
        self._first = self._last = 0.0
        self._replier = Replier(bind, pair, self._allowed, plain_bind, guarded=True) if bind else None
        self._subscribers: list[Subscriber] = []
        self._silent: dict[Subscriber, tuple[str, float]] = {}  # of whom nothing has come; when to tell it next
        try:
            for endpoint in [subscribe] if isinstance(subscribe, str) else subscribe:
                # Each has a context: libzmq resolves a context's names one after the other, and may wait long for one.
                self._subscribers.append(Subscriber(guarded=True))
                self._subscribers[-1].connect(endpoint)
                self._silent[self._subscribers[-1]] = endpoint, time.monotonic() + _SILENT_S
            self._waker = Waker()
        except BaseException:
            self._close_ends()
            raise
        share_interpreter()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str | None:
        """Where it listens, with the port that `*` or 0 became; None when it only subscribes."""
        return self._replier.endpoint if self._replier else None

    @property
    def plain_endpoint(self) -> str | None:
        """Where it listens for senders without encryption beside the others, as `endpoint`; None when it does not."""
        return self._replier.plain_endpoint if self._replier else None

    @property
    def keys_allowed(self) -> int | None:
        """How many keys may send; None where senders need none."""
        return self._allowed.count if self._allowed else None

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames as they come, of each camera only the newest, until the hub is closed.

        Raises:
            TransportError: receiving has failed for good.
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
        if self._failure:
            raise TransportError(f"the hub has failed: {self._failure}")

    def latest(self, name: str) -> Frame | None:
        """Return a camera's newest frame, or None when there is no such camera or it never came."""
        with self._lock:
            return self._presence.latest(name)

    def cameras(self) -> list[Status]:
        """Return a row for every camera, by name."""
        return self._presence.statuses(time.monotonic())  # not locked: frames come while hundreds of rows are written

    @property
    def expected(self) -> frozenset[str]:
        """The names of the cameras that there should be."""
        return self._presence.expected

    @property
    def refused(self) -> int:
        """Messages and connections that were refused since the start."""
        return self._refusals.total

    @property
    def elapsed_s(self) -> float:
        """Seconds from the first frame to the last."""
        return self._last - self._first

    @property
    def failure(self) -> Exception | None:
        """What ended the receiving thread; None while it works."""
        return self._failure

    def open_mailbox(
        self, cameras: Iterable[str] | None = None, on_ready: Callable[[], None] | None = None
    ) -> Mailbox[Frame]:
        """Open a mailbox that gets every new frame from now on, and at once the newest of each LIVE camera.

        Args:
            cameras: names to get frames of; None for all.
            on_ready: called when the mailbox is no longer empty, as a rule in the receiving thread; it must neither
                block nor ask the hub for anything.
        """
        wanted = None if cameras is None else frozenset(cameras)
        mailbox: Mailbox[Frame] = Mailbox(on_ready)
        with self._lock:
            if self._closing or self._failure:
                mailbox.close()
            for frame in self._presence.newest():
                if wanted is None or frame.camera in wanted:
                    mailbox.put(frame.camera, frame)
            # A new list: the receiving thread may be walking through the old one.
            self._mailboxes = [*self._mailboxes, (mailbox, wanted)]
        return mailbox

    def close_mailbox(self, mailbox: Mailbox[Frame]) -> None:
        """Close it and send it nothing more."""
        mailbox.close()
        with self._lock:
            self._mailboxes = [entry for entry in self._mailboxes if entry[0] is not mailbox]

    def close(self) -> None:
        """End at once, whatever the senders do."""
        if self._closing:
            return
        self._closing = True
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _ends(self) -> list[Replier | Subscriber]:
        return [*([self._replier] if self._replier else []), *self._subscribers]

    def _close_ends(self) -> None:
        for end in self._ends:
            end.close()

    def _run(self) -> None:
        """Be the receiving thread, the only one that touches the sockets."""
        try:
            self._receive()
        except Exception as error:  # noqa: BLE001 - logged, and kept for whoever asks
            self._failure = error
            _log.exception("the hub has failed")
        finally:
            with self._lock:
                mailboxes = self._mailboxes
            for mailbox, _ in mailboxes:
                mailbox.close()
            self._close_ends()

    def _receive(self) -> None:
        poller = Poller(self._waker)
        ends = self._ends
        for end in ends:
            poller.watch(end)
        alone = self._replier if not self._subscribers else None
        if alone:
            alone.wait_at_most(_LOOK_S)
        flowing = crowded = False
        looked = ticked = 0.0
        while not self._closing:
            # While frames come, the socket waits for the next itself: a poll takes three times as many system calls.
            # But only a poll can be woken, so when none has come for a moment it is polled again.
            if flowing and alone:
                received = alone.receive(wait=True)
                now = self.turned = time.monotonic()
                flowing = received is not None
                if received:
                    self._accept(received, now)
            else:
                poller.wait(0 if crowded else _TICK_S)
                now = self.turned = time.monotonic()
                flowing = self._receive_waiting(ends, now)
                looked = 0.0
            if now - ticked >= _TICK_S:
                ticked = now
                self._tick(now)
            if crowded or now - looked >= _LOOK_S:
                looked = now
                for end in ends:
                    self._count(end.admit())
                crowded = any(end.crowded for end in ends)

    def _receive_waiting(self, ends: Sequence[Replier | Subscriber], now: float) -> bool:
        """Take the messages that are there, of each end at most a batch; whether there were any."""
        some = False
        for end in ends:
            for _ in range(_BATCH):
                received = end.receive()
                if received is None:
                    break
                self._accept(received, now)
                some = True
                if isinstance(end, Subscriber):
                    self._silent.pop(end, None)
        return some

    def _accept(self, received: Received, now: float) -> None:
        """Store a frame, reply, and tell those who look; or say why not."""
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
            if not isinstance(error, NameTakenError | OvertakenError):  # of which the table tells
                self._refusals.add(received.address, str(error))
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

    def _count(self, refused: list[tuple[str | None, str]]) -> None:
        for address, why in refused:
            self._refusals.add(address, why)

    def _tick(self, now: float) -> None:
        for end in self._ends:
            end.weigh()
        with self._lock:
            changes = self._presence.tick(now)
        for change in changes:
            _tell(change)
        for subscriber, (endpoint, tell_at) in self._silent.items():
            if now >= tell_at:
                self._silent[subscriber] = endpoint, now + _REMIND_S
                # A thread of its own, since it may take as long as a name server that does not answer.
                threading.Thread(target=_tell_silence, args=(endpoint,), name="telling", daemon=True).start()
        if self._allowed:
            self._allowed.refresh()
        self._refusals.tell(now)


def _tell_silence(endpoint: str) -> None:
    _log.warning("nothing comes from %s; waiting for it", with_reason(endpoint))


def _tell(change: Change | Notice) -> None:
    if not isinstance(change, Change):
        _log.log(logging.WARNING if change.is_trouble else logging.INFO, "%s: %s", change.name, change.words)
        return
    level = logging.INFO if change.after is State.LIVE else logging.WARNING
    _log.log(level, "%s: %s, was %s", change.name, change.after.value, change.before.value)
