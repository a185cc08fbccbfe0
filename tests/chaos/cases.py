"""What is done to a fleet, each case many times at random moments, and what must hold after each time.

A try has recovered when every camera had five fresh frames within five seconds of the end of the cause, with no more
stale frames than a sender may have in flight, no unit restarted that need not be, and no other camera disturbed.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamer import wire
from tests.chaos import network
from tests.chaos.fleet import Fleet, Outcome, free_port
from tests.chaos.line import Line

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.chaos.unit import Unit

RECOVER_S = 5.0
UNDISTURBED_S = 1.0  # without a frame, of a camera that nothing was done to, on a machine that is busy
WATCHDOG_S = 3.0  # where a case waits for it; 30 s in the roles
DAY_S = 86400
PAUSES = 12


class ImpossibleError(Exception):
    """A case cannot be tried on this machine."""


@dataclass
class Trial:
    """The tries of one case.

    Attributes:
        rng: for its moments; the seed is printed.
        tries: how many there are to be.
        place: a folder of its own.
        outcomes: of the tries so far.
        before: memory of the hub in MB and its descriptors, after the first try that left it there.
        after: the same after the last.
        is_timed: whether it counts how long things take; on a machine that is busy with other tests it says nothing.
    """

    rng: random.Random
    tries: int
    place: Path
    say: Callable[[str], None]
    outcomes: list[Outcome] = field(default_factory=list)
    before: tuple[float, int] = (0.0, 0)
    after: tuple[float, int] = (0.0, 0)
    is_timed: bool = True

    def turns(self, tries: int | None = None) -> Iterator[int]:
        """Count the tries, each at a moment of its own."""
        for number in range(tries or self.tries):
            time.sleep(self.rng.uniform(0.1, 0.5))
            yield number

    def suffer(
        self,
        fleet: Fleet,
        cause: Callable[[], object],
        *,
        cameras: Sequence[str] | None = None,
        restarts: Mapping[str, int] | None = None,
        outages: int = 1,
        check: Callable[[float], Iterator[str]] | None = None,
    ) -> Outcome:
        """Try once.

        Args:
            fleet: it.
            cause: returns when it has been done; it ends when what it killed is ready again.
            cameras: that are concerned; all by default. The others must not be.
            restarts: by unit, how often each should be started anew; no other should be.
            outages: how many the cause is; each may have stale frames of its own.
            check: asked afterwards for what else is wrong, with when the cause began.
        """
        fleet.frames.read()
        began, lost, starts = time.monotonic(), fleet.frames.lost, fleet.starts()
        fleet.frames.forget(began - 1)
        cause()
        restarted = [(fleet.units()[name], starts[name]) for name, count in (restarts or {}).items() if count]
        outcome = fleet.outcome(time.monotonic(), restarted=restarted, began=began, lost_before=lost, cameras=cameras)
        if outcome.recovery_s is None or (self.is_timed and outcome.recovery_s > RECOVER_S):
            outcome.broken.append("not back in time")
        if outcome.stale is not None and outcome.stale > outages * wire.IN_FLIGHT_LIMIT:
            outcome.broken.append(f"{outcome.stale} stale frames")
        for unit, count in fleet.starts().items():
            if count - starts[unit] != (restarts or {}).get(unit, 0):
                ended = fleet.units()[unit]
                times, said = count - starts[unit], " | ".join(ended.said().splitlines()[-6:])
                outcome.broken.append(
                    f"{unit} was started {times} times, ended with {ended.statuses[-1:]}, says: {said}"
                )
        for name in fleet.cameras:
            gap_s = fleet.longest_gap_s(name, began)
            if self.is_timed and cameras is not None and name not in cameras and gap_s > UNDISTURBED_S:
                outcome.broken.append(f"{name} had no frame for {gap_s:.1f} s")
        outcome.broken += check(began) if check else ()
        self.add(outcome, fleet)
        return outcome

    def add(self, outcome: Outcome, fleet: Fleet) -> None:
        self.outcomes.append(outcome)
        self.after = fleet.hub.holdings()
        if not self.before[1]:  # in the first try the hub may be away
            self.before = self.after
        if outcome.broken:
            self.say(f"  try {len(self.outcomes)}: {'; '.join(outcome.broken)}")


@dataclass(frozen=True)
class Case:
    """Something that is done to a fleet."""

    told: str
    tries: int
    run: Callable[[Trial], None]


CASES: dict[str, Case] = {}


def case(told: str, tries: int) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    def register(run: Callable[[Trial], None]) -> Callable[[Trial], None]:
        CASES[run.__name__.replace("_", "-")] = Case(told, tries, run)
        return run

    return register


# -- processes


@case("hub killed (kill -9)", tries=100)
def hub_killed(trial: Trial) -> None:
    with Fleet(trial.place / "fleet") as fleet:
        for _ in trial.turns():
            trial.suffer(fleet, fleet.hub.kill, restarts={"hub": 1})


@case("hub frozen for up to 4 s (SIGSTOP)", tries=100)
def hub_frozen(trial: Trial) -> None:
    with Fleet(trial.place / "fleet") as fleet:
        for _ in trial.turns():
            trial.suffer(fleet, lambda: freeze(fleet.hub, trial.rng.uniform(0.1, 4)))


@case("a sender killed (kill -9)", tries=100)
def sender_killed(trial: Trial) -> None:
    with Fleet(trial.place / "fleet") as fleet:
        for _ in trial.turns():
            name = trial.rng.choice(fleet.cameras)
            trial.suffer(fleet, fleet.senders[name].kill, cameras=[name], restarts={name: 1})


@case("a sender frozen for up to 4 s (SIGSTOP)", tries=100)
def sender_frozen(trial: Trial) -> None:
    with Fleet(trial.place / "fleet") as fleet:
        for _ in trial.turns():
            name = trial.rng.choice(fleet.cameras)
            frozen_s = trial.rng.uniform(0.1, 4)
            trial.suffer(fleet, lambda: freeze(fleet.senders[name], frozen_s), cameras=[name])  # noqa: B023


@case("hub and all senders killed at once", tries=10)
def all_killed(trial: Trial) -> None:
    with Fleet(trial.place / "fleet") as fleet:
        units = fleet.units()

        def kill() -> None:
            for unit in trial.rng.sample([*units.values()], len(units)):
                unit.kill()

        for _ in trial.turns():
            trial.suffer(fleet, kill, restarts=dict.fromkeys(units, 1))


@case("a sender restarted while the hub is frozen", tries=10)
def sender_restarted_behind_frozen_hub(trial: Trial) -> None:
    """Then the hub reads what was under way of the old start and of the new one in turn."""
    with Fleet(trial.place / "fleet") as fleet:

        def cause() -> None:
            with frozen(fleet.hub):
                fleet.senders["pi1"].kill()
                time.sleep(2)

        for _ in trial.turns():
            trial.suffer(fleet, cause, restarts={"pi1": 1})


@case("hub away for 20 s, the watchdogs set to 3 s", tries=3)
def hub_away(trial: Trial) -> None:
    with Fleet(trial.place / "fleet", watchdog_s=WATCHDOG_S) as fleet:

        def cause() -> None:
            fleet.hub.hold()
            time.sleep(20)
            fleet.hub.release()

        for _ in trial.turns():
            trial.suffer(fleet, cause, restarts={"hub": 1})


@case("hub away for an hour, on clocks sixty times as fast", tries=1)
def hub_away_for_an_hour(trial: Trial) -> None:
    clock = Clock(trial.place / "clock", is_monotonic=True)
    with Fleet(trial.place / "fleet", sender_environment=clock.environment, watchdog_s=600) as fleet:

        def cause() -> None:
            fleet.hub.hold()
            clock.set(0, rate=60)
            time.sleep(60)
            clock.set(0)
            time.sleep(0.1)
            fleet.hub.release()

        for _ in trial.turns():
            fleet.way_s = math.inf  # their time stamps are of another hour
            trial.suffer(fleet, cause, restarts={"hub": 1})


@case("the hub's receiving thread stuck for 15 s, and going on", tries=3)
def hub_silent(trial: Trial) -> None:
    """It accepts connections and never replies, which is where senders back off furthest."""
    with Fleet(trial.place / "fleet") as fleet:

        def cause() -> None:
            fleet.hub.fail("receiving")
            time.sleep(15)
            fleet.hub.heal()

        # Every connection that was tried meanwhile had frames under way, all of which the hub takes in the end.
        for _ in trial.turns():
            trial.suffer(fleet, cause, outages=5)


# -- the network


@case("cable pulled for up to 8 s, nobody told", tries=10)
def cable_pulled(trial: Trial) -> None:
    with cabled(trial) as (cable, fleet):
        for _ in trial.turns():
            trial.suffer(fleet, lambda: pull(cable, trial.rng.uniform(0.3, 8)))


@case("hub restarted while the cable is pulled: half-open connections", tries=5)
def half_open(trial: Trial) -> None:
    with cabled(trial) as (cable, fleet):

        def cause() -> None:
            cable.pull()
            fleet.hub.kill()
            time.sleep(trial.rng.uniform(3, 6))
            cable.plug()

        for _ in trial.turns():
            trial.suffer(fleet, cause, restarts={"hub": 1})


@case("address of the hub changed, its name the same", tries=10)
def address_changed(trial: Trial) -> None:
    with cabled(trial) as (cable, fleet):
        for _ in trial.turns():
            trial.suffer(fleet, cable.move_hub)


@case("hub killed behind a line that takes connections meanwhile", tries=10)
def line_without_hub(trial: Trial) -> None:
    with lined(trial) as (line, fleet):

        def check(_: float) -> Iterator[str]:
            if (taken := line.connections - before) > 300:
                yield f"{taken} connections"

        for _ in trial.turns():
            before = line.connections
            trial.suffer(fleet, fleet.hub.kill, restarts={"hub": 1}, check=check)


@case("slow line: 100 ms each way for 5 s", tries=3)
def line_slow(trial: Trial) -> None:
    with lined(trial) as (line, fleet):

        def cause() -> None:
            # On a fresh connection: on an old one a way that is suddenly longer looks like a queue, for half a minute.
            line.delay_s = fleet.way_s = 0.1
            line.cut()
            time.sleep(5)
            line.delay_s = 0.0

        def check(began: float) -> Iterator[str]:
            for name in fleet.cameras:
                came = [seen for seen in fleet.frames.seen[name] if began + 1 < seen.at < began + 5]
                if len(came) < 0.8 * 4 * 30:
                    yield f"{name}: {len(came) / 4:.0f} frames/s over the slow line"

        for _ in trial.turns():
            trial.suffer(fleet, cause, check=check)


@case("line stalled for up to 8 s", tries=10)
def line_stalled(trial: Trial) -> None:
    with lined(trial) as (line, fleet):

        def cause() -> None:
            line.stalled = True
            time.sleep(trial.rng.uniform(0.3, 8))
            line.stalled = False

        for _ in trial.turns():
            trial.suffer(fleet, cause)


@case("connections cut in the middle of a frame", tries=50)
def line_cut(trial: Trial) -> None:
    with lined(trial) as (line, fleet):

        def check(_: float) -> Iterator[str]:
            if "refused" in fleet.hub.said():
                yield "half a frame came through"

        for _ in trial.turns():
            trial.suffer(fleet, line.cut, check=check)


@case("lossy line: a dozen pauses, and cuts", tries=5)
def line_lossy(trial: Trial) -> None:
    """What TCP makes of lost packets: pauses of some hundred ms, and now and then an end."""
    with lined(trial) as (line, fleet):

        def cause() -> None:
            for _ in range(PAUSES):
                time.sleep(trial.rng.uniform(0.05, 1))
                line.stalled = True
                time.sleep(trial.rng.uniform(0.05, 0.8))
                line.stalled = False
                if trial.rng.random() < 0.2:
                    line.cut()

        for _ in trial.turns():
            trial.suffer(fleet, cause, outages=PAUSES)


# -- hubs


@case("first of two hubs away for 5 s", tries=5)
def failover(trial: Trial) -> None:
    second = f"tcp://127.0.0.1:{free_port()}"
    with Fleet(trial.place / "fleet", to=lambda first: [first, second]) as fleet:
        fleet.open_hub("second", second, f"127.0.0.1:{free_port()}")

        home = {name: fleet.frames.starts[name][-1] for name in fleet.cameras}

        def sends_home(name: str) -> bool:
            fleet.frames.read()
            # A sender counts for each hub on its own: which one takes its frames shows in their start.
            return fleet.frames.starts[name][-1] == home[name]

        def is_away(_: float) -> Iterator[str]:
            yield from (f"{name} still sends to the first" for name in fleet.cameras if sends_home(name))

        def back() -> None:
            fleet.hub.release()
            settle(lambda: rows(fleet.http), 60)

        def is_home(_: float) -> Iterator[str]:
            for name in fleet.cameras:
                if not settle(lambda: sends_home(name), RECOVER_S):  # noqa: B023
                    yield f"{name} did not go back to the first"

        for _ in trial.turns():
            trial.suffer(fleet, fleet.hub.hold, check=is_away)
            time.sleep(5)
            trial.suffer(fleet, back, restarts={"hub": 1}, check=is_home)


@case("a second hub on the port", tries=5)
def second_hub(trial: Trial) -> None:
    with Fleet(trial.place / "fleet") as fleet:
        second = fleet.open_hub("second", fleet.endpoint, f"127.0.0.1:{free_port()}")

        def cause() -> None:
            before = len(second.statuses)
            settle(lambda: len(second.statuses) > before)

        def check(began: float) -> Iterator[str]:
            if set(second.statuses) != {2} or "Address already in use" not in second.said():
                yield f"the second hub ended with {second.statuses[-1]}"
            for name in fleet.cameras:
                if (gap_s := fleet.longest_gap_s(name, began)) > UNDISTURBED_S:
                    yield f"{name} had no frame for {gap_s:.1f} s"

        for _ in trial.turns():
            trial.suffer(fleet, cause, check=check)


@case("two ways to one hub, one of them stalled for up to 4 s", tries=5)
def two_ways(trial: Trial) -> None:
    """The sender is then two to the hub: it must not be told as its own rival, nor be refused for long."""
    with contextlib.ExitStack() as stack:
        lines: list[Line] = []

        def over(endpoint: str) -> list[str]:
            if not lines:
                lines.append(stack.enter_context(Line(endpoint)))
            return [lines[0].endpoint, endpoint]

        fleet = stack.enter_context(Fleet(trial.place / "fleet", to=over))

        def cause() -> None:
            lines[0].stalled = True
            time.sleep(trial.rng.uniform(0.5, 4))
            lines[0].stalled = False

        def check(began: float) -> Iterator[str]:
            if "has this name too" in fleet.hub.said():
                yield "told as two senders"
            for name in fleet.cameras:
                if (gap_s := fleet.longest_gap_s(name, began)) > RECOVER_S:
                    yield f"{name} had no frame for {gap_s:.1f} s"

        for _ in trial.turns():
            trial.suffer(fleet, cause, check=check)


@case("disk of the hub full, and the hub killed", tries=3)
def disk_full(trial: Trial) -> None:
    """All that a hub could write to is full: its folder, its home, temporary files, where its log goes."""
    if not network.is_possible():
        raise ImpossibleError("needs root on Linux")
    disk = trial.place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        log = disk / "log"
        prefix = ["sh", "-c", f'exec "$@" >>{log} 2>&1', "sh"]
        environment = {"TMPDIR": str(disk), "HOME": str(disk), "XDG_CACHE_HOME": str(disk)}
        with Fleet(trial.place / "fleet", hub_prefix=prefix, hub_environment=environment) as fleet:

            def cause() -> None:
                with contextlib.suppress(OSError), log.open("ab", buffering=0) as filling:
                    while True:
                        filling.write(b"x")
                fleet.hub.kill()

            for _ in trial.turns():
                trial.suffer(fleet, cause, restarts={"hub": 1})
                log.write_bytes(b"")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@case("clock of the hub a day forward, then a day back", tries=6)
def clock_jumps(trial: Trial) -> None:
    clock = Clock(trial.place / "clock")
    with Fleet(trial.place / "fleet", hub_environment=clock.environment) as fleet:
        for number in trial.turns():
            ahead_s = (DAY_S, 0, -DAY_S)[number % 3]

            def cause(ahead_s: int = ahead_s) -> None:
                clock.set(ahead_s)
                time.sleep(1)

            def check(began: float) -> Iterator[str]:
                for row in rows(fleet.http):
                    if row["state"] != "LIVE":
                        yield f"{row['name']} is {row['state']}"
                    if (gap_s := fleet.longest_gap_s(row["name"], began)) > UNDISTURBED_S:
                        yield f"{row['name']} had no frame for {gap_s:.1f} s"
                    if row["latency_ms"] is None or row["latency_ms"] - row["latency_error_ms"] > 250:
                        yield f"{row['name']} has a latency of {row['latency_ms']} ms"

            trial.suffer(fleet, cause, check=check)


@case("two senders of one name, and either of them killed", tries=3)
def one_name(trial: Trial) -> None:
    with Fleet(trial.place / "fleet") as fleet:
        first = fleet.senders["pi1"]

        def is_told() -> bool:
            return any(row["rival"] for row in rows(fleet.http))

        for number in trial.turns():
            starts = len(fleet.frames.starts["pi1"])
            clones: list[Unit] = []

            def both() -> None:
                settle(lambda: not is_told())  # of the one before
                clones.append(fleet.open_sender(f"clone{number}", "pi1"))  # noqa: B023
                clones[0].ready.wait(10)  # noqa: B023
                settle(is_told)
                time.sleep(1)

            def again() -> None:
                settle(lambda: not is_told())
                first.release()
                settle(is_told)
                time.sleep(1)

            def flaps(_: float) -> Iterator[str]:
                fleet.frames.read()
                changes = len(fleet.frames.starts["pi1"]) - starts  # noqa: B023
                if changes > 2:  # a frame of the second came in, and no more
                    yield f"the sender changed {changes} times"
                if not is_told():
                    yield "the hub does not tell it"

            trial.suffer(fleet, both, check=flaps)
            trial.suffer(fleet, first.hold, cameras=["pi1"])  # the clone gets the name
            starts = len(fleet.frames.starts["pi1"])
            trial.suffer(fleet, again, restarts={"pi1": 1}, check=flaps)
            trial.suffer(fleet, clones[0].hold, cameras=["pi1"])
            clones[0].close()


# -- cameras and threads


@case("a camera that hangs, the watchdog set to 3 s", tries=3)
def camera_hangs(trial: Trial) -> None:
    ill(trial, "hangs", restarts=1)


@case("a camera that is unplugged for 2 s", tries=3)
def camera_gone(trial: Trial) -> None:
    ill(trial, "gone", said="the camera has been unplugged; trying again")


@case("a camera that gives rubbish for 2 s", tries=3)
def camera_rubbish(trial: Trial) -> None:
    ill(trial, "rubbish", said="payload is not a whole JPEG")


@case("a camera that gives the same black picture for 12 s", tries=1)
def camera_black(trial: Trial) -> None:
    ill(trial, "black", ill_s=12, hub_said="pi1: its picture has been the same for 10 s")


@case("a sensor that gives the same picture for 12 s", tries=1)
def camera_same(trial: Trial) -> None:
    ill(trial, "same", ill_s=12, hub_said="pi1: its picture has been the same for 10 s")


@case("the hub's receiving thread stuck, the watchdog set to 3 s", tries=3)
def receiving_stuck(trial: Trial) -> None:
    stuck(trial, "hub", "receiving")


@case("the wall's event loop stuck, the watchdog set to 3 s", tries=3)
def wall_stuck(trial: Trial) -> None:
    stuck(trial, "hub", "wall")


@case("a sender's thread stuck, the watchdog set to 3 s", tries=3)
def sending_stuck(trial: Trial) -> None:
    stuck(trial, "pi1", "sending")


def stuck(trial: Trial, unit: str, part: str) -> None:
    with Fleet(trial.place / "fleet", watchdog_s=WATCHDOG_S) as fleet:
        hurt = fleet.hub if unit == "hub" else fleet.senders[unit]

        def cause() -> None:
            starved = hurt.starved
            hurt.fail(part)
            settle(lambda: hurt.starved > starved, WATCHDOG_S + 5)
            hurt.heal()

        for _ in trial.turns():
            concerned = None if unit == "hub" else [unit]
            trial.suffer(fleet, cause, cameras=concerned, restarts={unit: 1})


def ill(
    trial: Trial, illness: str, *, ill_s: float = 2.0, restarts: int = 0, said: str = "", hub_said: str = ""
) -> None:
    """Have the camera of pi1 fall ill."""
    with Fleet(trial.place / "fleet", watchdog_s=WATCHDOG_S if restarts else 30.0) as fleet:
        sender = fleet.senders["pi1"]

        def cause() -> None:
            starved = sender.starved
            sender.fail("camera", illness)
            if restarts:
                settle(lambda: sender.starved > starved, WATCHDOG_S + 5)
            else:
                time.sleep(ill_s)
            sender.heal()

        def check(_: float) -> Iterator[str]:
            if said not in sender.said():
                yield f"the sender did not say: {said}"
            if hub_said not in fleet.hub.said():
                yield f"the hub did not say: {hub_said}"

        for _ in trial.turns():
            trial.suffer(fleet, cause, cameras=["pi1"], restarts={"pi1": restarts}, check=check)


# -- what cases share


class Clock:
    """A clock that can be set while a program runs, by libfaketime (Debian's package `faketime`).

    Args:
        file: through which it is set.
        is_monotonic: whether the clocks by which programs wait go with it.

    Raises:
        ImpossibleError: libfaketime is not installed.
    """

    def __init__(self, file: Path, *, is_monotonic: bool = False) -> None:
        found = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]
        if not found:
            raise ImpossibleError("needs libfaketime: apt install faketime")
        self._file = file
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "0" if is_monotonic else "1",
        }

    def set(self, ahead_s: int, rate: int = 1) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}" + (f" x{rate}" if rate != 1 else ""))
        new.rename(self._file)


@contextlib.contextmanager
def lined(trial: Trial) -> Iterator[tuple[Line, Fleet]]:
    """Open a fleet whose senders reach the hub over a line."""
    with contextlib.ExitStack() as stack:
        lines: list[Line] = []

        def over(endpoint: str) -> list[str]:
            if not lines:
                lines.append(stack.enter_context(Line(endpoint)))
            return [lines[0].endpoint]

        fleet = stack.enter_context(Fleet(trial.place / "fleet", to=over))
        yield lines[0], fleet


@contextlib.contextmanager
def cabled(trial: Trial) -> Iterator[tuple[network.Cable, Fleet]]:
    """Open a fleet with a cable between the hub and the senders."""
    if not network.is_possible():
        raise ImpossibleError("needs root on Linux, and ip")
    with network.Cable() as cable:

        def named(endpoint: str) -> list[str]:
            return [f"tcp://{network.HUB_NAME}:{endpoint.rpartition(':')[2]}"]

        with Fleet(
            trial.place / "fleet", hub_prefix=cable.hub, sender_prefix=cable.cameras, host="0.0.0.0", to=named
        ) as fleet:
            yield cable, fleet


def pull(cable: network.Cable, seconds: float) -> None:
    cable.pull()
    time.sleep(seconds)
    cable.plug()


@contextlib.contextmanager
def frozen(unit: Unit) -> Iterator[None]:
    unit.kill(signal.SIGSTOP)
    try:
        yield
    finally:
        unit.kill(signal.SIGCONT)


def freeze(unit: Unit, seconds: float) -> None:
    with frozen(unit):
        time.sleep(seconds)


def settle(condition: Callable[[], object], within_s: float = 20.0) -> bool:
    """Wait until a condition holds; False when it does not in time, which then shows in what comes after."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def rows(http: str) -> list[dict[str, Any]]:
    """Ask the hub for its table; empty while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{http}/api/cameras", timeout=2) as answer:
            table: list[dict[str, Any]] = json.load(answer)
            return table
    except OSError:
        return []
