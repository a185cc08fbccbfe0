"""The table of cameras: states, rates, drops and losses. Time is always passed in.

A camera's name belongs to the first sender that uses it, while its frames come. But a restarted sender looks just like
a second one of the same name. So a new sender gets the name at once, and only if an earlier owner sends again there are
two of them: then the earlier one gets it back, and all others are refused. A cloned card's picture thus shows for an
instant, and a camera that restarts loses nothing.
"""

from __future__ import annotations

import enum
import math
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamer.errors import WireError, describe_label

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from streamer.frame import Frame

CAMERAS_MAX = 1024
STORED_MAX_BYTES = 512 * 1024 * 1024  # of the newest pictures of all cameras; only large ones are refused for it
# Cameras of a connection (of a publisher's address) that have sent one picture so far. With more, every picture has
# another label, a counter or a time: each would be LIVE, STALE and GONE, in the log and on the wall.
ONCE_MAX = 64
_RATE_WINDOW_S = 2.0
_CONTEST_S = 1.0  # how long two senders must share a name before that is reported
# After a sender restarts, frames of its earlier start may still arrive for so long, as after a lost packet: they do not
# give the name back.
_UNDER_WAY_S = 1.0
_STILL_S = 10.0  # how long a picture must stay the same before that is reported
_LOOK_S = 1.0
_EARLIER_MAX = 16  # earlier senders remembered by name
# Longer intervals between frames earn a camera no more patience: claiming an endless one, it would never be GONE, nor
# make room in the table.
_EVERY_MAX_S = 60.0


class State(enum.StrEnum):
    """What a viewer can rely on."""

    WAITING = "WAITING"  # expected, never seen
    LIVE = "LIVE"  # frames come
    STALE = "STALE"  # no frame for stale_after_s: the picture is old
    GONE = "GONE"  # no frame for gone_after_s: there is nothing to show


class Event(enum.Enum):
    """What can happen to a camera."""

    FRAME = "a frame came"
    QUIET = "no frame for stale_after_s"
    SILENT = "no frame for gone_after_s"


# Every state and event has its row.
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.WAITING, Event.FRAME): State.LIVE,
    (State.WAITING, Event.QUIET): State.WAITING,
    (State.WAITING, Event.SILENT): State.WAITING,
    (State.LIVE, Event.FRAME): State.LIVE,
    (State.LIVE, Event.QUIET): State.STALE,
    (State.LIVE, Event.SILENT): State.GONE,
    (State.STALE, Event.FRAME): State.LIVE,
    (State.STALE, Event.QUIET): State.STALE,
    (State.STALE, Event.SILENT): State.GONE,
    (State.GONE, Event.FRAME): State.LIVE,
    (State.GONE, Event.QUIET): State.GONE,
    (State.GONE, Event.SILENT): State.GONE,
}


@dataclass(frozen=True)
class Status:
    """One row of the hub's table; the field names are those of `/api/cameras`.

    Attributes:
        name: the camera's name.
        state: its State, as text.
        fps: frames received per second.
        wanted_fps: frames per second that its sender aims at; None if unknown.
        age_s: seconds since the newest frame arrived; None before the first.
        latency_ms: from the sensor to the hub, of the newest frame; None if unknown.
        latency_error_ms: the largest error of `latency_ms`, either way; None with `latency_ms`.
        frames: frames received.
        dropped: frames that the sender skipped on purpose.
        lost: frames that were sent and never arrived: gaps in the sender's count.
        reconnects: how often its frames continued over another connection, or from another start of the sender.
        width: of the newest picture, in pixels.
        height: of the newest picture, in pixels.
        bytes_per_s: bytes received per second.
        address: IP address of the sender.
        release: the release that the sender runs; None if unknown.
        bytes: bytes received.
        rival: address of another sender of this name, which is refused ("?" if unknown); None if there is none.
        still_s: for how many seconds its pictures have been identical, byte for byte; None below 10 s.
    """

    name: str
    state: str
    fps: float = 0.0
    wanted_fps: float | None = None
    age_s: float | None = None
    latency_ms: float | None = None
    latency_error_ms: float | None = None
    frames: int = 0
    dropped: int = 0
    lost: int = 0
    reconnects: int = 0
    width: int | None = None
    height: int | None = None
    bytes_per_s: float = 0.0
    address: str | None = None
    release: str | None = None
    bytes: int = 0
    rival: str | None = None
    still_s: float | None = None


class NameTakenError(WireError):
    """The frame's sender uses a name that another one has."""


class OvertakenError(WireError):
    """The frame arrived over an abandoned connection, after a newer frame over the next one."""


@dataclass(frozen=True)
class Notice:
    """Something odd about a camera that begins or ends; to be logged."""

    name: str
    words: str
    is_trouble: bool


@dataclass(frozen=True)
class Change:
    """A camera went from one state to another."""

    name: str
    before: State
    after: State


class _Rate:
    """Frames and bytes per second, over windows of a few seconds; falls towards 0 when nothing comes.

    One thread adds, others may read: what belongs together is one tuple, replaced at once.
    """

    __slots__ = ("_last", "_window")

    def __init__(self, now: float) -> None:
        self._begin(now, None)

    def _begin(self, now: float, last: tuple[float, float] | None) -> None:
        self._last = last
        # When it began, frames, bytes. The frame that opens a window is not counted: n + 1 frames are n intervals.
        self._window = now, 0, 0

    def add(self, size: int, now: float) -> None:
        began, frames, size_before = self._window
        elapsed = now - began
        if frames and elapsed >= 2 * _RATE_WINDOW_S:
            # It had stopped: an average over the pause is meaningless.
            self._begin(now, None)
        elif elapsed >= _RATE_WINDOW_S:
            self._begin(now, ((frames + 1) / elapsed, (size_before + size) / elapsed))
        else:
            self._window = began, frames + 1, size_before + size

    def read(self, now: float) -> tuple[float, float]:
        (began, frames, size), last = self._window, self._last
        elapsed = now - began
        # A slow camera may have no frame in a window: its rate stands until the next frame is half an interval late.
        if last is not None and elapsed < max(_RATE_WINDOW_S, 1.5 / last[0]):
            return last
        if elapsed >= 2 * _RATE_WINDOW_S:  # it has stopped, else there would be a new window
            return 0.0, 0.0
        return (frames / elapsed, size / elapsed) if elapsed > 0 else (0.0, 0.0)


@dataclass
class _Contest:
    """Another sender uses a camera's name too, and is refused."""

    rival: str | None  # its address
    since: float
    seen: float  # when it last sent


class _Camera:
    """What is known about one camera."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.order = natural(name)
        self.state = State.WAITING
        self.frame: Frame | None = None
        self.seen = 0.0
        self.frames = 0
        self.bytes = 0
        self.lost = 0
        self.reconnects = 0
        self.address: str | None = None
        self.sender: bytes | str | None = None  # the owner of the name: a start, else a connection, else an address
        self.rival: str | None = None  # as last reported
        self.is_still = False  # as last reported
        self._contest: _Contest | None = None
        # Who owned the name recently: until when, and how many frames it had dropped by then.
        self._earlier: dict[bytes | str | None, tuple[float, int]] = {}
        self._printed = -math.inf
        self._print: int | None = None  # checksum of the picture at `_printed`
        self._moved = 0.0  # when that last changed
        self.connection = b""
        self._rate: _Rate | None = None
        self.dropped = 0  # by all starts of the sender: the sum of these two, for concurrent readers
        self._dropped_before = 0  # by earlier starts
        self._dropped = 0

    @property
    def bytes_stored(self) -> int:
        return len(self.frame.payload) if self.frame else 0

    def admit(self, sender: bytes | str | None, address: str | None, now: float, stale_after_s: float) -> None:
        """Give the name to another sender, or refuse it.

        Raises:
            NameTakenError: the name is another's.
        """
        until, dropped = self._earlier.get(sender, (-math.inf, 0))
        if self.frame is None or now - self.seen >= stale_after_s:
            self._contest = None
            self._earlier.clear()
        elif self._contest or now - until < _UNDER_WAY_S:
            if self._contest:
                self._contest.rival, self._contest.seen = address, now
            raise NameTakenError(f"another sender at {self.address or '?'} has this name")
        elif now - until < stale_after_s:
            self._contest = _Contest(self.address, since=now, seen=now)
            self._dropped_before -= dropped  # its own count includes them
            self._earlier.clear()
        else:
            self._earlier.pop(sender, None)
            self._earlier[self.sender] = now, self._dropped
            if len(self._earlier) > _EARLIER_MAX:
                del self._earlier[next(iter(self._earlier))]
        self.sender = sender

    def check_order(self, frame: Frame) -> None:
        """Check that a frame over another connection than the newest is not older than that.

        Raises:
            OvertakenError: it is; it counts as lost.
        """
        before = self.frame
        if before is None or frame.start is None or frame.start != before.start:
            return
        if frame.seq is not None and before.seq is not None and frame.seq < before.seq:
            raise OvertakenError("a newer frame has come by another connection")

    def look(self, now: float, gone_after_s: float) -> Iterator[Notice]:
        """Check whether another sender uses the name too, and whether the picture changes.

        Yields:
            What has begun, and what has ended.
        """
        contest = self._contest
        if contest and now - contest.seen >= gone_after_s:
            contest = self._contest = None
        # Both must keep sending: frames still in flight from before a restart are no second sender.
        if contest and min(contest.seen, self.seen) - contest.since >= _CONTEST_S:
            if self.rival is None:
                others = f"another sender at {contest.rival or '?'} has this name too: "
                told = f"{others}it is refused for as long as the first, at {self.address or '?'}, sends"
                yield Notice(self.name, told, is_trouble=True)
            self.rival = contest.rival or "?"
        elif self.rival is not None and contest is None:
            self.rival = None
            yield Notice(self.name, "only one sender has this name now", is_trouble=False)

        is_still = self.seen - self._moved >= _STILL_S
        if is_still and not self.is_still:
            yield Notice(self.name, f"its picture has been the same for {_STILL_S:g} s: is it stuck?", is_trouble=True)
        elif self.is_still and not is_still:
            yield Notice(self.name, "its picture moves again", is_trouble=False)
        self.is_still = is_still

    def add(self, frame: Frame, address: str | None, now: float, connection: bytes) -> None:
        before = self.frame
        if before is not None and (connection != self.connection or frame.start != before.start):
            self.reconnects += 1
        self.connection = connection
        if before is not None and frame.start != before.start:
            if _origin(frame) != _origin(before):
                self._dropped_before += self._dropped
                self._dropped = 0
        elif before is not None and frame.seq is not None and before.seq is not None and frame.seq > before.seq:
            self.lost += frame.seq - before.seq - 1
        self._dropped = max(self._dropped, frame.dropped or 0)
        self.dropped = self._dropped_before + self._dropped
        if now - self._printed >= _LOOK_S:  # here, not in `look`, to spread the work of hundreds of cameras
            self._printed = now
            taken = zlib.crc32(frame.payload)
            if taken != self._print:
                self._print, self._moved = taken, now
        self.frame = frame
        self.seen = now  # after `_moved`, else a concurrent reader could take a pause for a still picture
        self.frames += 1
        self.bytes += len(frame.payload)
        self.address = address
        if self._rate is None:
            self._rate = _Rate(now)
        else:
            self._rate.add(len(frame.payload), now)

    def status(self, now: float) -> Status:
        frame = self.frame
        if frame is None or self._rate is None:
            return Status(self.name, self.state.value)
        fps, bytes_per_s = self._rate.read(now)
        latency_ms, latency_error_ms = _latency_ms(frame)
        still_s = self.seen - self._moved
        return Status(
            name=self.name,
            state=self.state.value,
            fps=round(fps, 1),
            wanted_fps=None if frame.every_s is None else round(1 / frame.every_s, 2),
            age_s=round(max(0.0, now - self.seen), 3),
            latency_ms=latency_ms,
            latency_error_ms=latency_error_ms,
            frames=self.frames,
            dropped=self.dropped,
            lost=self.lost,
            reconnects=self.reconnects,
            width=frame.width,
            height=frame.height,
            bytes_per_s=round(bytes_per_s),
            address=self.address,
            release=frame.release,
            bytes=self.bytes,
            rival=self.rival,
            still_s=round(still_s, 1) if still_s >= _STILL_S else None,
        )


class Presence:
    """The table of all cameras. Not thread-safe: callers must lock, except for `statuses` beside one writing thread.

    Args:
        expected: names of expected cameras, WAITING until their first frame.
        stale_after_s: a camera is STALE after this many seconds without a frame, or two of its intervals if longer.
        gone_after_s: a camera is GONE after this many seconds without a frame, or four of its intervals if longer. An
            interval counts as a minute at most.
    """

    def __init__(self, expected: Iterable[str] = (), *, stale_after_s: float, gone_after_s: float) -> None:
        self._stale_after_s = stale_after_s
        self._gone_after_s = gone_after_s
        self.expected = frozenset(expected)
        self._cameras = {name: _Camera(name) for name in sorted(self.expected)}
        self._stored_bytes = 0
        self._looked = -math.inf

    def add(self, frame: Frame, address: str | None, now: float, connection: bytes = b"") -> Change | None:
        """Add a frame.

        Args:
            frame: the frame.
            address: the sender's IP address, if known.
            now: monotonic seconds.
            connection: identifies the connection; empty if unknown.

        Returns:
            The resulting change of state, if any.

        Raises:
            NameTakenError: another sender owns the camera's name.
            OvertakenError: it is older than the newest frame.
            WireError: it is of a new camera, and its connection has too many that sent one picture, or the table is
                full of cameras that are not GONE; or it is large, and the memory for their pictures is used up.
        """
        camera = self._cameras.get(frame.camera)
        more = len(frame.payload) - (camera.bytes_stored if camera else 0)
        if len(frame.payload) > STORED_MAX_BYTES // CAMERAS_MAX:
            while self._stored_bytes + more > STORED_MAX_BYTES:
                self._make_room(f"the hub already holds {self._stored_bytes // 1_000_000} MB of pictures", frame.camera)
        if camera is None:
            self._check_once(frame.camera, connection or address)
            if len(self._cameras) >= CAMERAS_MAX:
                self._make_room(f"the hub already has {CAMERAS_MAX} cameras", frame.camera)
            camera = self._cameras[frame.camera] = _Camera(frame.camera)
        sender = _origin(frame) or connection or address
        if sender != camera.sender:
            stale_after_s, _ = patience_s(camera.frame, self._stale_after_s, self._gone_after_s)
            camera.admit(sender, address, now, stale_after_s)
        if connection != camera.connection:
            camera.check_order(frame)
        self._stored_bytes += more
        camera.add(frame, address, now, connection)
        # The case of nearly every frame, without looking it up.
        return None if camera.state is State.LIVE else self._move(camera, Event.FRAME)

    def tick(self, now: float) -> list[Change | Notice]:
        """Update the state of every camera to `now`, in monotonic seconds; return what to log."""
        changes: list[Change | Notice] = []
        if is_due := now - self._looked >= _LOOK_S:
            self._looked = now
        for camera in self._cameras.values():
            stale_after_s, gone_after_s = patience_s(camera.frame, self._stale_after_s, self._gone_after_s)
            if is_due:
                changes += camera.look(now, gone_after_s)
            age_s = now - camera.seen
            if age_s >= gone_after_s:
                change = self._move(camera, Event.SILENT)
            elif age_s >= stale_after_s:
                change = self._move(camera, Event.QUIET)
            else:
                continue
            if change is not None:
                changes.append(change)
        return changes

    def latest(self, name: str) -> Frame | None:
        """Return the newest frame of a camera, or None. Needs no lock."""
        camera = self._cameras.get(name)
        return camera.frame if camera else None

    def newest(self) -> list[Frame]:
        """Return the newest frame of each LIVE camera, by name."""
        return [camera.frame for camera in self._by_name() if camera.frame and camera.state is State.LIVE]

    def statuses(self, now: float) -> list[Status]:
        """Return the status of every camera at `now`, in monotonic seconds, sorted by name. Needs no lock."""
        return [camera.status(now) for camera in self._by_name()]

    def _by_name(self) -> list[_Camera]:
        # Atomic: `sorted` copies the values before it calls any Python code.
        return sorted(self._cameras.values(), key=lambda camera: camera.order)

    def _check_once(self, name: str, source: bytes | str | None) -> None:
        """Refuse a new camera of a connection whose others never send again; it is let in as soon as they do."""
        cameras = self._cameras.values()
        once = sum(1 for each in cameras if each.frames == 1 and (each.connection or each.address) == source)
        if source and once >= ONCE_MAX:
            raise WireError(
                f"{ONCE_MAX} labels came with one picture each: a label must be the camera's name, always the same",
                label=describe_label(name),
            )

    def _make_room(self, why: str, for_camera: str) -> None:
        """Forget the camera that is GONE longest; if there is none, raise WireError(why)."""
        kept = self.expected | {for_camera}
        gone = [c for c in self._cameras.values() if c.state is State.GONE and c.name not in kept]
        if not gone:
            raise WireError(why)
        forgotten = self._cameras.pop(min(gone, key=lambda camera: camera.seen).name)
        self._stored_bytes -= forgotten.bytes_stored

    @staticmethod
    def _move(camera: _Camera, event: Event) -> Change | None:
        before = camera.state
        after = camera.state = TRANSITIONS[before, event]
        return Change(camera.name, before, after) if after is not before else None


def patience_s(frame: Frame | None, stale_after_s: float, gone_after_s: float) -> tuple[float, float]:
    """Return the seconds from a frame until its camera is STALE and GONE: at least two and four of its intervals.

    An interval counts as a minute at most.
    """
    every_s = min(_EVERY_MAX_S, (frame.every_s if frame else None) or 0.0)
    return max(stale_after_s, 2 * every_s), max(gone_after_s, 4 * every_s)


def _origin(frame: Frame) -> str | None:
    """Return the start of a frame's sender, without the number of the hub's address."""
    return frame.start and frame.start.partition(".")[0]


def _latency_ms(frame: Frame) -> tuple[float | None, float | None]:
    """Return a frame's latency and its error, in ms, rounded to the microsecond; the error includes that."""
    latency_ns, error_ns = frame.latency_ns, frame.offset_error_ns
    if latency_ns is None or error_ns is None:
        return None, None
    return round(latency_ns / 1e6, 3), math.ceil((error_ns + 500) / 1000) / 1000


def natural(name: str) -> list[str | int]:
    """Return a sort key that puts pi2 before pi10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
