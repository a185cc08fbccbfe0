"""A hub and its senders, as units, and what the frames that the hub has taken say about an outage."""

from __future__ import annotations

import contextlib
import itertools
import math
import socket
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.unit import Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

FPS = 30
FRESH = 5  # frames of each camera that make it one that is back
STALE_S = 0.25  # older than this, beyond what its way takes, a frame is stale
WAIT_S = 20.0
BEGIN_S = 60.0
LOOK_S = 0.02
SENDER = ("--camera", "pattern", "--size", "320x240", "--fps", str(FPS))


@dataclass(frozen=True)
class Seen:
    """A frame that a hub has taken: when, in monotonic seconds, and how old it was then."""

    at: float
    age_s: float


@dataclass
class Outcome:
    """What an outage did.

    Attributes:
        recovery_s: from the end of the cause until the last camera had five fresh frames; None when that never was.
        whole_s: the same, with what it takes to start again what was killed.
        stale: frames older than a quarter of a second, of the camera with the most; None where their age says nothing.
        lost: frames that were sent and never came, of all cameras.
        broken: what else should not have been.
    """

    recovery_s: float | None
    whole_s: float | None
    stale: int | None
    lost: int
    broken: list[str] = field(default_factory=list)


class Frames:
    """The frames that a hub has taken, over all its starts.

    Args:
        file: where `tests.chaos.program` writes them.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._offset = 0
        self._wall_ahead_ns = time.time_ns() - time.monotonic_ns()
        self._newest: dict[str, int] = {}  # the count of each camera's newest frame
        self.seen: defaultdict[str, list[Seen]] = defaultdict(list)
        self.starts: defaultdict[str, list[str]] = defaultdict(list)  # of a camera's sender, as they changed
        self.lost = 0

    def read(self) -> None:
        """Take note of what has come."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(self._offset)
            chunk = file.read()
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode().splitlines():
            at_ns, camera, start, seq, captured_ns = line.split()
            age_ns = int(at_ns) - (int(captured_ns) - self._wall_ahead_ns)
            self.seen[camera].append(Seen(int(at_ns) / 1e9, age_ns / 1e9))
            if self.starts[camera][-1:] != [start]:
                self.starts[camera].append(start)
            else:
                self.lost += max(0, int(seq) - self._newest[camera] - 1)
            self._newest[camera] = int(seq)

    def fresh(self, camera: str, since: float, old_s: float) -> list[float]:
        """Return when the fresh frames of a camera came, from a moment on."""
        return [seen.at for seen in self.seen[camera] if seen.at > since and seen.age_s < old_s]

    def forget(self, before: float) -> None:
        """Keep the memory small."""
        for camera, seen in self.seen.items():
            self.seen[camera] = [each for each in seen if each.at >= before]


class Fleet:
    """A hub and senders on this machine.

    Args:
        place: an empty folder.
        cameras: their names.
        hub_prefix: what to run the hub by.
        sender_prefix: what to run the senders by.
        hub_environment: of the hub.
        sender_environment: of the senders.
        host: where the hub listens.
        to: where senders send to, made from the hub's endpoint.
        watchdog_s: of all units.
    """

    def __init__(
        self,
        place: Path,
        cameras: Sequence[str] = ("pi1", "pi2", "pi3"),
        *,
        hub_prefix: Sequence[str] = (),
        sender_prefix: Sequence[str] = (),
        hub_environment: dict[str, str] | None = None,
        sender_environment: dict[str, str] | None = None,
        host: str = "127.0.0.1",
        to: Callable[[str], Iterable[str]] = lambda endpoint: [endpoint],
        watchdog_s: float = 30.0,
    ) -> None:
        place.mkdir(parents=True)
        self.place = place
        self.cameras = cameras
        self.way_s = 0.0  # how long a frame's way takes; infinite where clocks differ
        self.endpoint = f"tcp://{host}:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}"
        self.frames = Frames(place / "frames")
        self._stack = contextlib.ExitStack()
        self._watchdog_s = watchdog_s
        self._sender_prefix, self._sender_environment = sender_prefix, sender_environment
        self._to = to
        try:
            self.hub = self.open_hub("hub", self.endpoint, self.http, hub_prefix, hub_environment)
            self.senders = {name: self.open_sender(name, name) for name in cameras}
            outcome = self.outcome(time.monotonic(), within_s=BEGIN_S)
            if outcome.recovery_s is None:
                said = "".join(f"\n{name}: {unit.said()}" for name, unit in self.units().items())
                raise AssertionError(f"the fleet does not begin{said}")
        except BaseException:
            self.close()
            raise

    def open_hub(
        self,
        unit: str,
        endpoint: str,
        http: str,
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> Unit:
        """Start a hub; the frames of all are counted together."""
        arguments = ["hub", "--bind", endpoint.replace("0.0.0.0", "*"), "--http", http]
        environment = {**(environment or {}), "CHAOS_FRAMES": str(self.frames.file)}
        return self._open(unit, arguments, prefix, environment)

    def open_sender(self, unit: str, camera: str) -> Unit:
        """Start a sender."""
        hubs = [word for endpoint in self._to(self.endpoint) for word in ("--hub", endpoint)]
        arguments = ["send", *hubs, "--name", camera, *SENDER]
        return self._open(unit, arguments, self._sender_prefix, self._sender_environment)

    def _open(
        self, unit: str, arguments: Sequence[str], prefix: Sequence[str], environment: dict[str, str] | None
    ) -> Unit:
        return self._stack.enter_context(
            Unit(
                self.place / unit,
                arguments,
                prefix=prefix,
                environment=environment,
                watchdog_s=self._watchdog_s,
            )
        )

    def outcome(
        self,
        done: float,
        *,
        restarted: Iterable[tuple[Unit, int]] = (),
        began: float | None = None,
        lost_before: int = 0,
        cameras: Sequence[str] | None = None,
        within_s: float = WAIT_S,
    ) -> Outcome:
        """Wait until cameras are back, and say what the outage did.

        Args:
            done: when what was done was done, in monotonic seconds.
            restarted: units that must be ready again before its cause has ended, and how often they had been started.
            began: when its cause began.
            lost_before: frames lost before that.
            cameras: that must come back; all by default.
            within_s: how long to wait for them.
        """
        ended = done
        for unit, starts in restarted:
            while not (unit.starts > starts and unit.ready.is_set()) and time.monotonic() < done + BEGIN_S:
                time.sleep(LOOK_S)
            ended = max(ended, unit.ready_at)
        back: dict[str, float] = {}
        wanted = self.cameras if cameras is None else cameras
        while len(back) < len(wanted) and time.monotonic() < ended + within_s:
            time.sleep(LOOK_S)
            self.frames.read()
            for name in wanted:
                came = self.frames.fresh(name, ended, self.way_s + STALE_S)
                if len(came) >= FRESH:
                    back[name] = came[FRESH - 1]
        is_back = len(back) == len(wanted)
        since = done if began is None else began
        stale = max(
            sum(seen.at >= since and seen.age_s >= self.way_s + STALE_S for seen in self.frames.seen[name])
            for name in self.cameras
        )
        at = max(back.values()) if is_back else None
        return Outcome(
            None if at is None else at - ended,
            None if at is None else at - done,
            stale if math.isfinite(self.way_s) else None,
            self.frames.lost - lost_before,
        )

    def longest_gap_s(self, camera: str, began: float) -> float:
        """Return the longest time without a frame of a camera, from a moment until now."""
        self.frames.read()
        moments = [began, *(seen.at for seen in self.frames.seen[camera] if seen.at > began), time.monotonic()]
        return max(late - early for early, late in itertools.pairwise(moments))

    def units(self) -> dict[str, Unit]:
        """Return the hub and the senders."""
        return {"hub": self.hub, **self.senders}

    def starts(self) -> dict[str, int]:
        """Return how often each unit was started."""
        return {name: unit.starts for name, unit in self.units().items()}

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
