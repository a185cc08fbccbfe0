"""The fan-out: takes each frame from the hub once, and gives it to every viewer that wants it and has room for it.

All of it runs in the wall's event loop and never blocks: a viewer gets a picture as soon as it has room for one, and
meanwhile newer frames replace waiting ones of the same camera. Two limits keep a slow viewer's pictures fresh: one
frame per camera is in flight until the viewer has shown it, and a congestion window limits the frames of all cameras
together: additive increase, multiplicative decrease on the queueing delay, as in TCP Vegas and LEDBAT (RFC 6817).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamer.errors import reason
from streamer.presence import State
from streamer.refusals import Reminders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from streamer.frame import Frame
    from streamer.hub import Hub
    from streamer.mailbox import Mailbox

BOUNDARY = "frame"
MESSAGE_VERSION = 1
RATE_MAX = 1000.0  # frames per second and camera that a viewer may ask for
# Little-endian: version, length of the name, when the hub received the frame (ms since 1970). Name and JPEG follow.
_HEAD = struct.Struct("<BBd")
_WHOLE_BINARY = 0x82
_WINDOW_FIRST = 4
# Queueing delays at which the window shrinks and may grow, in seconds.
_DELAY_HIGH_S = 0.1
_DELAY_LOW_S = 0.05
_LATE_S = 0.02  # by which a picture may be late without delaying the next
_FORGET_S = 60.0  # after which the quickest round trip expires, since the path to a viewer may change
_log = logging.getLogger(__name__)


class Picture:
    """A frame in the forms that viewers get, each made once for all of them, on first use."""

    __slots__ = ("_message", "_part", "bytes", "frame")

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.bytes = len(frame.jpeg)
        self._message: bytes | None = None
        self._part: bytes | None = None

    @property
    def message(self) -> bytes:
        """The WebSocket message, framing included: `_HEAD`, the camera's name, the JPEG.

        The library would write the framing separately, for each viewer: one more system call.
        """
        if self._message is None:
            name = self.frame.camera.encode()
            jpeg = self.frame.jpeg
            length = _HEAD.size + len(name) + len(jpeg)
            head = _HEAD.pack(MESSAGE_VERSION, len(name), self.frame.received_ns / 1e6)
            self._message = b"".join((_framing(length), head, name, jpeg))
        return self._message

    @property
    def part(self) -> bytes:
        """The part of a multipart/x-mixed-replace stream (RFC 2046), with its closing boundary.

        Without that, browsers would show each picture only when the next one comes.
        """
        if self._part is None:
            jpeg = self.frame.jpeg
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n".encode()
            self._part = b"".join((head, jpeg, f"\r\n--{BOUNDARY}\r\n".encode()))
        return self._part


def _framing(length: int) -> bytes:
    """Return the frame header of a server's binary message of `length` bytes: RFC 6455, 5.2."""
    if length < 126:
        return bytes((_WHOLE_BINARY, length))
    if length < 1 << 16:
        return struct.pack(">BBH", _WHOLE_BINARY, 126, length)
    return struct.pack(">BBQ", _WHOLE_BINARY, 127, length)


@dataclass(frozen=True)
class ViewerStatus:
    """One row of the table of viewers; the field names are those of `/api/viewers`.

    Attributes:
        id: a number from 1, in order of arrival.
        kind: `wall` (the page) or `stream` (one camera as MJPEG).
        address: its IP address, if known.
        agent: its User-Agent.
        cameras: how many cameras it wants now; 0 for a hidden tab.
        since_s: how long it has been connected, in seconds.
        frames: frames sent to it.
        bytes: bytes of these frames.
        delay_ms: from sending a frame until the viewer has shown it, smoothed; None before the first.
    """

    id: int
    kind: str
    address: str | None
    agent: str
    cameras: int
    since_s: float
    frames: int
    bytes: int
    delay_ms: float | None


class _Slot:
    """One camera that a viewer wants."""

    __slots__ = ("due", "frame", "interval_s", "picture")

    def __init__(self) -> None:
        self.interval_s = 0.0
        self.due = 0.0
        self.frame: Frame | None = None  # the last one offered
        self.picture: Picture | None = None  # the newest, if not sent yet


class Viewer:
    """A page or stream that is open; made by `FanOut.open`.

    Args:
        send: sends it a picture; must not block.
        number: its id.
        kind: `wall` or `stream`.
        address: its IP address, if known.
        agent: its User-Agent.
    """

    def __init__(
        self, send: Callable[[Picture], None], number: int, kind: str, address: str | None, agent: str
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._identity = number, kind, address, agent
        self._since = self._loop.time()
        self._slots: dict[str, _Slot] = {}
        self._waiting: dict[str, None] = {}  # cameras with a picture to send, the one that has waited longest first
        self._under_way: dict[str, tuple[float, int]] = {}  # camera: when the picture in flight was sent, and its bytes
        self._timer: asyncio.TimerHandle | None = None
        self._window = float(_WINDOW_FIRST)
        self._quickest_s = math.inf
        self._quickest_at = 0.0
        self._shrunk = 0.0
        self._delay_s: float | None = None
        self._frames = self._bytes = 0
        self.closed = self._loop.create_future()  # done once it is closed

    def want(self, rates: Mapping[str, float]) -> None:
        """Set the cameras wanted from now on, each with the most frames per second."""
        self._slots = {name: self._slots.get(name) or _Slot() for name in rates}
        for name, rate in rates.items():
            slot = self._slots[name]
            slot.interval_s = 1 / rate
            slot.due = min(slot.due, self._loop.time() + slot.interval_s)
        self._waiting = {name: None for name in self._waiting if name in self._slots}
        self._pump()

    @property
    def wanted(self) -> Iterable[str]:
        """Names of the cameras wanted."""
        return self._slots.keys()

    @property
    def under_way_bytes(self) -> int:
        """Of the pictures that it has not shown yet."""
        return sum(size for _, size in self._under_way.values())

    def offer(self, picture: Picture) -> None:
        """Make this the next picture of its camera, in place of one still waiting."""
        name = picture.frame.camera
        slot = self._slots.get(name)
        if slot is None or slot.frame is picture.frame:
            return
        slot.frame = picture.frame
        slot.picture = picture
        if name not in self._under_way:
            self._waiting[name] = None
            self._pump()

    def _pump(self) -> None:
        """Send what is due and has room; call this again when the next is due."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        soonest = math.inf
        for name in [*self._waiting]:
            if len(self._under_way) >= self._window or self.closed.done():
                return
            slot = self._slots[name]
            if slot.due > now:
                soonest = min(soonest, slot.due)
                continue
            del self._waiting[name]
            picture, slot.picture = slot.picture, None
            if picture is None:
                continue
            # From when it was due, not from now, so that a slightly late timer or camera does not lower the rate.
            slot.due = max(slot.due, now - min(_LATE_S, slot.interval_s / 2)) + slot.interval_s
            self._under_way[name] = now, picture.bytes
            self._frames += 1
            self._bytes += picture.bytes
            self._send(picture)
        if soonest < math.inf:
            self._timer = self._loop.call_at(soonest, self._pump)

    def shown(self, names: Iterable[str]) -> None:
        """Note that it has shown the pictures in flight of these cameras: there is room for the next."""
        now = self._loop.time()
        is_full = len(self._under_way) >= self._window
        for name in names:
            sent = self._under_way.pop(name, None)
            if sent is None:
                continue
            self._adapt(now - sent[0], now, is_full=is_full)
            slot = self._slots.get(name)
            if slot is not None and slot.picture is not None:
                self._waiting[name] = None
        self._pump()

    def _adapt(self, took_s: float, now: float, *, is_full: bool) -> None:
        """Adapt the window to what the viewer and the path to it can take; it grows only while it is a limit."""
        self._delay_s = took_s if self._delay_s is None else self._delay_s + (took_s - self._delay_s) / 8
        if took_s <= self._quickest_s or now - self._quickest_at > _FORGET_S:
            self._quickest_s, self._quickest_at = took_s, now
        queued_s = took_s - self._quickest_s
        if queued_s > _DELAY_HIGH_S:
            if now - self._shrunk > took_s:  # once per round trip
                self._window = max(1.0, self._window / 2)
                self._shrunk = now
        elif queued_s < _DELAY_LOW_S and is_full:
            self._window += 1 / self._window

    def status(self) -> ViewerStatus:
        """Return its row."""
        return ViewerStatus(
            *self._identity,
            cameras=len(self._slots),
            since_s=round(self._loop.time() - self._since, 1),
            frames=self._frames,
            bytes=self._bytes,
            delay_ms=None if self._delay_s is None else round(self._delay_s * 1000, 1),
        )

    def close(self) -> None:
        """Send it nothing more."""
        if self._timer:
            self._timer.cancel()
        if not self.closed.done():
            self.closed.set_result(None)


class FanOut:
    """Distributes the hub's frames to all viewers; takes none while there is no viewer.

    Args:
        hub: where the frames come from.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._viewers: set[Viewer] = set()
        self._mailbox: Mailbox[Frame] | None = None
        self._encoding: dict[str, Frame | None] = {}  # cameras with a raw array being encoded, and the frame after it
        self._complaints = Reminders()  # by camera, that its arrays are not shown
        self._tasks: set[asyncio.Task[None]] = set()
        self._left_frames = 0  # sent to viewers who have left

    def open(self, send: Callable[[Picture], None], kind: str, address: str | None, agent: str) -> Viewer:
        """Add a viewer; `send` sends it a picture and must not block."""
        viewer = Viewer(send, next(self._numbers), kind, address, agent)
        self._viewers.add(viewer)
        if self._mailbox is None:
            self._mailbox = self._hub.open_mailbox(on_ready=self._wake)
        if self._mailbox.closed:  # the hub has ended
            viewer.close()
        return viewer

    def close(self, viewer: Viewer) -> None:
        """Remove a viewer."""
        viewer.close()
        if viewer in self._viewers:
            self._viewers.remove(viewer)
            self._left_frames += viewer.status().frames
        if not self._viewers and self._mailbox is not None:
            self._hub.close_mailbox(self._mailbox)
            self._mailbox = None

    def close_all(self) -> None:
        """Remove all viewers."""
        for viewer in list(self._viewers):
            self.close(viewer)

    def want(self, viewer: Viewer, rates: Mapping[str, float]) -> None:
        """Set what a viewer wants, and give it the newest picture of each camera that it did not want before."""
        new = rates.keys() - viewer.wanted
        viewer.want(rates)
        for status in self._hub.cameras() if new else ():
            if status.name in new and status.state in (State.LIVE, State.STALE):
                frame = self._hub.latest(status.name)
                if frame is not None:
                    self._give(frame, [viewer])

    def viewers(self) -> list[ViewerStatus]:
        """Return the status of each viewer, in order of arrival."""
        return sorted((viewer.status() for viewer in self._viewers), key=lambda status: status.id)

    def sent_frames(self) -> int:
        """Return how many frames were sent to viewers so far, including those that have left."""
        return self._left_frames + sum(row.frames for row in self.viewers())

    def _wake(self) -> None:
        """Wake the event loop from the receiving thread."""
        with contextlib.suppress(RuntimeError):  # the wall has just closed
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        mailbox = self._mailbox
        if mailbox is None:
            return
        while (frame := mailbox.take()) is not None:
            self._give(frame, self._viewers)
        if mailbox.closed:
            self.close_all()

    def _give(self, frame: Frame, viewers: Iterable[Viewer]) -> None:
        if frame.is_jpeg or "jpeg" in vars(frame):
            picture = Picture(frame)
            for viewer in viewers:
                viewer.offer(picture)
        elif frame.camera in self._encoding:
            self._encoding[frame.camera] = frame
        elif any(frame.camera in viewer.wanted for viewer in viewers):
            self._encoding[frame.camera] = None
            task = self._loop.create_task(self._encode(frame))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _encode(self, frame: Frame) -> None:
        """Encode a camera's raw arrays off the event loop, one at a time, always the newest."""
        following: Frame | None = frame
        while following is not None:
            frame = following
            try:
                await asyncio.to_thread(getattr, frame, "jpeg")
            except Exception as error:  # noqa: BLE001 - whatever it is, the next array is tried
                if self._complaints.is_due(frame.camera):
                    why = reason(error) or type(error).__name__
                    _log.warning("%s: the page shows no picture of it: %s", frame.camera, why)
            else:
                self._give(frame, self._viewers)
            following = self._encoding.pop(frame.camera)
            if following is not None:
                self._encoding[frame.camera] = None
