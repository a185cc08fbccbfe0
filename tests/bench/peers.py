"""This package and its peers, all doing the same work: the parts `hub` and `send` of the other benchmarks.

    streamer       this package's Hub and Sender; streamer-curve: encrypted
    imagezmq       imagezmq's REQ/REP, its default: the sender waits for each reply
    imagezmq-pub   imagezmq's PUB/SUB
    netgear        vidgear's NetGear, REQ/REP, with a port for each camera as its multi-server mode wants it
    netgear-pub    the same, PUB/SUB
    bare           the floor: a ROUTER in a loop that only receives, and DEALERs that only send
    bare-replies   the floor of request and reply: the same, and each frame is replied to, with four under way

Each hub keeps the newest picture of each camera, as it came. NetGear's own JPEG compression is off, since the pictures
are JPEGs already. All libraries are used as PyPI has them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from tests.bench import pictures
from tests.bench.measure import RESULTS, end_with_input, percentiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import zmq

TITLES = {
    "streamer": "streamer",
    "streamer-curve": "streamer, CURVE",
    "imagezmq": "imagezmq REQ/REP",
    "imagezmq-pub": "imagezmq PUB/SUB",
    "netgear": "NetGear REQ/REP",
    "netgear-pub": "NetGear PUB/SUB",
    "bare": "bare ROUTER loop",
    "bare-replies": "bare ROUTER loop that replies",
    "bare-checks": "bare ROUTER loop that checks too",
}
PORT_EACH = ("imagezmq-pub", "netgear", "netgear-pub")
BARE_HWM = 8
BARE_WINDOW = 4
# As streamer.transport has them: from the first on libzmq is lent the buffer; the other is the memory that is kept.
COPY_MAX_BYTES = 1 << 19
KEPT_BYTES = 1 << 22
KEYS = RESULTS / "keys"
LOOK_S = 0.1
LOOK_AT = 64


def ports_of(kind: str, cameras: int) -> int:
    """Tell how many ports so many cameras need."""
    return cameras if kind in PORT_EACH else 1


def make_keys(cameras: int) -> None:
    """Make what `streamer-curve` needs: key pairs of the hub and of so many cameras, and the list of who may send."""
    from streamer import keys

    shutil.rmtree(KEYS, ignore_errors=True)
    KEYS.mkdir(parents=True)
    (KEYS / "hub.public").write_text(keys.make_pair(KEYS / "hub").public)
    names = [f"cam{number}" for number in range(cameras)]
    (KEYS / "allowed").write_text("".join(f"{name} {keys.make_pair(KEYS / name).public}\n" for name in names))


# -- hubs


def take(kind: str, ports: list[int], *, raw: bool) -> Iterator[tuple[str, int, Any]]:
    """Receive as a program written for that library does: the camera's name, when it was captured, its picture."""
    if kind == "bare-checks":
        return _take_checked(ports[0])
    if kind.startswith("bare"):
        return _take_bare(ports[0], replies=kind == "bare-replies")
    if kind.startswith("netgear"):
        return _take_netgear(kind, ports)
    return _take_imagezmq(kind, ports, raw=raw)


def _take_imagezmq(kind: str, ports: list[int], *, raw: bool) -> Iterator[tuple[str, int, Any]]:
    import imagezmq

    if kind == "imagezmq":
        hub = imagezmq.ImageHub(f"tcp://127.0.0.1:{ports[0]}")
    else:
        hub = imagezmq.ImageHub(f"tcp://127.0.0.1:{ports[0]}", REQ_REP=False)
        for port in ports[1:]:
            hub.connect(f"tcp://127.0.0.1:{port}")
    while True:
        message, picture = hub.recv_image() if raw else hub.recv_jpg()
        name, _, captured_ns = message.partition(" ")
        yield name, int(captured_ns), picture
        if kind == "imagezmq":  # after the program is done with it, as in imagezmq's examples
            hub.send_reply()


def _take_netgear(kind: str, ports: list[int]) -> Iterator[tuple[str, int, Any]]:
    gear = _netgear(kind, [str(port) for port in ports], receive_mode=True)
    while (taken := gear.recv()) is not None:
        port, captured_ns, picture = taken
        number = ports.index(int(port)) if ports[1:] else 0  # a relay's port is another
        yield f"cam{number}", captured_ns, picture


def _netgear(kind: str, port: Any, *, receive_mode: bool) -> Any:
    from vidgear.gears.netgear import NetGear

    logging.disable(logging.CRITICAL)  # it tells each of its steps
    options: dict[str, Any] = {"multiserver_mode": True, "jpeg_compression": False}
    pattern = 2 if kind == "netgear-pub" else 1
    return NetGear("127.0.0.1", port, "tcp", pattern, receive_mode=receive_mode, **options)


@contextlib.contextmanager
def _router(port: int) -> Iterator[zmq.Socket[bytes]]:
    import zmq

    bytes(KEPT_BYTES)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.RCVHWM, BARE_HWM)
        router.bind(f"tcp://127.0.0.1:{port}")
        yield router


def _take_bare(port: int, *, replies: bool) -> Iterator[tuple[str, int, Any]]:
    with _router(port) as router:
        while True:
            route, *_, header, payload = router.recv_multipart(copy=False)
            if replies:
                router.send_multipart([route.bytes, b"", b"OK"])
            name, _, captured_ns = header.bytes.partition(b" ")
            yield name.decode(), int(captured_ns), payload


def _take_checked(port: int) -> Iterator[tuple[str, int, Any]]:
    """Do for each message what this package's hub does, in one thread and nothing besides."""
    import zmq

    from streamer import wire
    from streamer.presence import Presence

    presence = Presence(stale_after_s=3, gone_after_s=30)
    more = int(zmq.SNDMORE)
    with _router(port) as router:
        while True:
            route = router.recv()
            _, header, payload = (router.recv(copy=False) for _ in range(3))
            frame = wire.parse(header.bytes, payload.buffer, time.time_ns())
            presence.add(frame, "127.0.0.1", time.monotonic(), route)
            router.send(route, more)
            router.send(b"", more)
            router.send(wire.reply_to(frame))
            yield frame.camera, frame.captured_ns or 0, frame


class Record:
    """What a hub has taken since it was begun."""

    def __init__(self) -> None:
        self.frames: Counter[str] = Counter()
        self.ages: list[tuple[int, int]] = []  # (when it was taken, how old it was), in ns
        self.copied = False

    def answer(self, seconds: float) -> str:
        """Write it as JSON: frames of each camera, percentiles of the age in ms, ages over the time."""
        began = self.ages[0][0] if self.ages else 0
        ages = [age / 1e6 for _, age in self.ages]
        # Every frame at first, where a stall shows; later enough for a plot.
        shown = self.ages if len(self.ages) < 2000 else self.ages[:: len(self.ages) // 500]
        return json.dumps(
            {
                "frames": self.frames,
                "seconds": seconds,
                "age_ms": percentiles(ages),
                "over_time": [((at - began) / 1e9, age / 1e6) for at, age in shown],
                "copied": self.copied,
            }
        )


def hub(kind: str, ports: list[int], cameras: int, how: str, work_s: float, *, raw: bool) -> None:
    """Be a hub, which tells when it has had all cameras, and what it takes between `begin` and `end`.

    Args:
        how: `keep` leaves this package's frames in the hub, whose table counts them; `take` hands each to this program;
            so does `compute`.
        work_s: that the program needs for each frame, in seconds; it waits so long, or with `compute` it computes.
    """
    records = [Record()]
    stall_s = [0.0]
    seen: set[str] = set()
    counts: Callable[[], Counter[str]] = lambda: Counter(records[0].frames)  # noqa: E731
    source: Iterator[tuple[str, int, Any]]
    latest: dict[str, Any] = {}
    own: Any = None
    if kind.startswith("streamer"):
        import streamer

        security: dict[str, Any] = {"curve_key_file": KEYS / "hub", "curve_allowed_file": KEYS / "allowed"}
        own = streamer.Hub(f"tcp://127.0.0.1:{ports[0]}", **security if kind == "streamer-curve" else {})
        if how == "keep":
            counts = lambda: Counter({row.name: row.frames for row in own.cameras()})  # noqa: E731
            source = _look(own, records)
        else:
            source = ((frame.camera, frame.captured_ns or 0, frame) for frame in own)
    else:
        source = take(kind, ports, raw=raw)

    def obey() -> None:
        before, began = Counter[str](), 0.0
        for line in sys.stdin:
            command, _, argument = line.strip().partition(" ")
            if command == "begin":
                records[0] = Record()
                before, began = counts(), time.monotonic()
                print("begun", flush=True)
            elif command == "end":
                records[0].frames = counts() - before
                records[0].copied = _is_copy(own.latest("cam0") if own else latest.get("cam0"))
                print(records[0].answer(time.monotonic() - began), flush=True)
            elif command == "stall":
                stall_s[0] = float(argument)
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()
    print("listening", flush=True)
    if how == "keep" and kind.startswith("streamer"):
        while len(counts()) < cameras:
            time.sleep(0.01)
        print("all", flush=True)
    for name, captured_ns, picture in source:
        now_ns = time.time_ns()
        record = records[0]
        record.frames[name] += 1
        record.ages.append((now_ns, now_ns - captured_ns))
        latest[name] = picture
        if len(seen) < cameras:
            seen.add(name)
            if len(seen) == cameras:
                print("all", flush=True)
        if how == "compute":
            done_s = time.thread_time() + work_s
            while time.thread_time() < done_s:
                pass
        elif work_s or stall_s[0]:
            time.sleep(work_s + stall_s[0])
            stall_s[0] = 0.0
    print("ended", flush=True)  # NetGear gives up


def _is_copy(picture: Any) -> bool:
    """Whether an array was copied out of the message that brought it."""
    array = getattr(picture, "image", picture) if getattr(picture, "dtype", None) else None
    return array is not None and bool(array.flags.owndata)


def _look(own: Any, records: list[Record]) -> Iterator[tuple[str, int, Any]]:
    """Look now and then how old some kept frames were when they came, each camera in its turn: at next to no cost."""
    names = [row.name for row in own.cameras()]
    looks = itertools.cycle(names)
    while True:
        time.sleep(LOOK_S)
        for _ in range(min(LOOK_AT, len(names))):
            frame = own.latest(next(looks))
            if frame and frame.captured_ns:
                records[0].ages.append((frame.received_ns, frame.received_ns - frame.captured_ns))
    yield from ()


# -- senders


def sender(kind: str, port: int, name: str, source: Callable[[], Any] | None = None) -> Callable[[Any, int], None]:
    """Connect one camera; returns what sends a picture, captured when.

    Args:
        source: for this package's, which asks it for pictures whenever it can send one.
    """
    if kind.startswith("bare"):
        import zmq

        bytes(KEPT_BYTES)
        dealer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        dealer.setsockopt(zmq.SNDHWM, BARE_HWM)
        dealer.connect(f"tcp://127.0.0.1:{port}")

        if kind == "bare-checks":
            return _send_checked(dealer, name)
        replies = kind == "bare-replies"
        delimiter = [b""] if replies else []
        under_way = 0

        def send_bare(picture: Any, captured_ns: int) -> None:
            nonlocal under_way
            header = b"%b %d" % (name.encode(), captured_ns)
            dealer.send_multipart([*delimiter, header, picture], copy=memoryview(picture).nbytes < COPY_MAX_BYTES)
            under_way += replies
            if under_way == BARE_WINDOW:
                dealer.recv_multipart()
                under_way -= 1

        return send_bare
    if kind.startswith("netgear"):
        gear = _netgear(kind, str(port), receive_mode=False)

        def send_netgear(picture: Any, captured_ns: int) -> None:
            import numpy as np

            array = np.frombuffer(picture, np.uint8) if isinstance(picture, bytes) else picture
            gear.send(array, message=captured_ns)

        return send_netgear
    if kind.startswith("imagezmq"):
        import imagezmq

        stock = imagezmq.ImageSender(f"tcp://127.0.0.1:{port}", REQ_REP=kind == "imagezmq")

        def send_imagezmq(picture: Any, captured_ns: int) -> None:
            send = stock.send_jpg if isinstance(picture, bytes) else stock.send_image
            send(f"{name} {captured_ns}", picture)

        return send_imagezmq

    import streamer

    security: dict[str, Any] = {}
    if kind == "streamer-curve":
        security = {"curve_key_file": KEYS / name, "curve_hub_keys": (KEYS / "hub.public").read_text()}
    own = streamer.Sender(f"tcp://127.0.0.1:{port}", name=name, source=source, **security)
    return lambda picture, captured_ns: own.send(picture, captured_ns=captured_ns)


def _send_checked(dealer: Any, name: str) -> Callable[[Any, int], None]:
    """Return what does for each picture what this package's sender does, in one thread and nothing besides."""
    import zmq

    from streamer import clock, codec, wire

    common = wire.make_header(name, extras={"start": wire.make_start(), "clock": True})
    sizes, hub_clock, more = codec.JpegSizes(), clock.Estimate(), int(zmq.SNDMORE)
    sent: deque[int] = deque()
    numbers = itertools.count()

    def send_checked(picture: Any, captured_ns: int) -> None:
        wall_ns, error_ns = clock.measure(time.monotonic_ns(), time.time_ns(), time.monotonic_ns())
        jpeg = wire.jpeg_to_send(picture, sizes.read)
        sent.append(time.monotonic_ns())
        hub = hub_clock.read(sent[-1])
        offset = (hub.ns - wall_ns, hub.error_ns + error_ns) if hub else None
        dealer.send(b"", more)
        dealer.send(wire.add_counts(common, next(numbers), captured_ns, 0, offset), more)
        dealer.send(jpeg)
        if len(sent) == BARE_WINDOW:
            dealer.recv()
            reply = dealer.recv()
            stamp_ns = wire.read_stamp(reply)
            if stamp_ns is not None:
                hub_clock.add(sent.popleft(), stamp_ns, time.monotonic_ns())
            assert wire.refusal_reason(reply) is None

    return send_checked


def play(kind: str, port: int, number: int, fps: float, shown: list[Any]) -> None:
    """Be one camera: flat out with 0 frames a second; else with pictures by the clock, of which the newest is read."""
    name = f"cam{number}"
    if not fps and kind.startswith("streamer"):
        sender(kind, port, name, itertools.cycle(shown).__next__)
        threading.Event().wait()
    send = sender(kind, port, name)
    if not fps:
        for picture in itertools.cycle(shown):
            send(picture, time.time_ns())
    at = 0
    every_ns = round(1e9 / fps)
    first_ns = time.time_ns() + every_ns * number // 8  # cameras are not in step
    while True:
        at = max(at + 1, (time.time_ns() - first_ns) // every_ns)
        captured_ns = first_ns + at * every_ns
        time.sleep(max(0.0, (captured_ns - time.time_ns()) / 1e9))
        send(shown[at % len(shown)], captured_ns)


def send(kind: str, ports: list[int], cameras: int, fps: float, format_name: str) -> None:
    """Be all cameras, a process each, which begin as copies of this one: libraries are loaded once."""
    import zmq  # noqa: F401

    if kind.startswith("imagezmq"):
        import imagezmq  # noqa: F401
    elif kind.startswith("netgear"):
        import vidgear.gears.netgear  # noqa: F401
    else:
        import streamer.sender  # noqa: F401
    shown = pictures.load(format_name)
    children = []
    for number in range(cameras):
        child = os.fork()
        if not child:
            threading.Thread(target=end_with_input, daemon=True).start()
            with contextlib.suppress(KeyboardInterrupt):
                try:
                    play(kind, ports[number % len(ports)], number, fps, shown)
                except RuntimeError as error:  # NetGear gives up
                    print(error, file=sys.stderr, flush=True)
            os._exit(1)
        children.append(child)
    print(" ".join(map(str, children)), flush=True)
    sys.stdin.read()
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["hub", kind, ports, cameras, how, work_s, format_name]:
            raw = format_name.endswith("raw")
            hub(kind, [int(port) for port in ports.split(",")], int(cameras), how, float(work_s), raw=raw)
        case ["send", kind, ports, cameras, fps, format_name]:
            send(kind, [int(port) for port in ports.split(",")], int(cameras), float(fps), format_name)
