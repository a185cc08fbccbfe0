"""What it costs to look with one's own eyes: `python -m tests.bench.show [--rounds N] [--seconds S]`.

Decoded: a program that wants the pictures of many cameras as arrays, on one core and on two. By `cv2.imdecode` in the
thread that takes the frames, as most programs do; by `frame.image` there; by `Pictures`; and by `Pictures` at half the
size; and, as the floor, by the JPEG library alone, of pictures that are there already. The hub is in the same process,
its thread on the same cores. How many cameras of 30 frames a second it has time for is told by the CPU time that
a picture takes it, receiving included, while it gets less than that: no core is left for the senders, so that two cores
full of pictures cannot be had on a machine of two. A machine busy with other things makes every figure smaller; what
`cv2.imdecode` comes to in the same rounds says by how much.

Windows: eight cameras of 30 frames a second into windows on a virtual screen, by this package and by the loop of
imagezmq's example: receive, decode, `imshow`, `waitKey(1)`, reply. Then the same with a ninth camera, whose pictures of
24 megapixels take long to decode. The floor is a program that receives nothing, and draws as this package does.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import streamer
from streamer.codec import decode_jpeg, encode_jpeg
from tests.bench import pictures
from tests.bench.measure import (
    Options,
    Part,
    Row,
    beside,
    compare,
    cpu_s,
    free_ports,
    judge,
    keep,
    percentiles,
    progress,
    spread,
)
from tests.bench.peers import KEPT_BYTES
from tests.screen import virtual_screen

FORMAT = "640x480 q95"
FPS = 30
HALF = (320, 240)
CAMERAS = [f"pi{number}" for number in range(1, 9)]
SCREEN = (1920, 1080)
HUGE = (6000, 4000)
WINDOW = (480, 360)
PAINTED_TOGETHER = 4  # pictures, 60 times a second
WARM_UP_S = 2.5
# By cores: one thread has use for one.
WAYS = {1: ("jpeg", "jpeg-half", "imdecode", "image", "pictures", "half"), 2: ("pictures", "half")}
# By whether there is the ninth camera too.
PROGRAMS = {False: ("imagezmq", "streamer", "grid", "alone"), True: ("imagezmq", "streamer", "grid")}
NAMES = {
    "jpeg": "simplejpeg alone",
    "jpeg-half": "simplejpeg alone, half the size",
    "imdecode": "cv2.imdecode where frames are taken",
    "image": "frame.image where frames are taken",
    "pictures": "Pictures",
    "half": "Pictures, half the size",
    "imagezmq": "the example's loop",
    "streamer": "windows",
    "grid": "one window with all",
    "alone": "simplejpeg and imshow alone",
}
AIMS = {"pictures": 32, "half": 44}
LOAD = 12  # cameras for each core while that is measured
ALONE = ("jpeg", "jpeg-half", "alone")  # who receive nothing


@dataclass(frozen=True)
class Decoded:
    """One measurement of decoding.

    Attributes:
        cameras: that the CPU time of so many cores is enough for.
        pictures: decoded each second.
        used: how many cores the program had.
    """

    way: str
    cores: int
    cameras: float
    pictures: float
    used: float


@dataclass(frozen=True)
class Shown:
    """One measurement of windows.

    Attributes:
        program: whose.
        huge: whether there was a ninth camera with huge pictures.
        frames: shown each second of each of the eight cameras.
        cost_us: CPU time of the program for each frame shown.
        screen_us: of the X server.
        latency_ms: of the eight cameras, from the sender until it was painted: 50th, 95th and 99th percentile.
    """

    program: str
    huge: bool
    frames: float
    cost_us: float
    screen_us: float
    latency_ms: tuple[float, float, float]


# -- the senders' process


def stamped(jpeg: bytes) -> bytes:
    """Write the time into a JPEG, as a comment (ITU-T T.81, B.2.4.5) in front."""
    return jpeg[:2] + struct.pack(">HHd", 0xFFFE, 10, time.time()) + jpeg[2:]


def stamp_of(jpeg: Any) -> float:
    """Read it."""
    stamp: float = struct.unpack_from(">d", jpeg, 6)[0]
    return stamp


def send(whose: str, endpoint: str, cameras: int, huge: int) -> None:
    """Be all cameras, until standard input ends."""
    played = pictures.load(FORMAT)
    ended = threading.Event()

    def play(name: str, jpegs: list[bytes], fps: float, at: int) -> None:
        if whose == "imagezmq":
            import imagezmq

            example = imagezmq.ImageSender(endpoint)

            def send_one(jpeg: bytes) -> None:
                example.send_jpg(name, jpeg)
        else:
            sender = streamer.Sender(endpoint, name=name, every_s=1 / fps)

            def send_one(jpeg: bytes) -> None:
                sender.send(jpeg)

        due = time.monotonic() + at / fps / cameras
        for jpeg in itertools.cycle(jpegs):
            if ended.wait(max(0.0, due - time.monotonic())):
                return
            send_one(stamped(jpeg))
            due = max(due + 1 / fps, time.monotonic() - 1 / fps)

    for at in range(cameras):
        threading.Thread(target=play, args=[f"pi{at + 1}", played, FPS, at], daemon=True).start()
    if huge:
        noise = np.random.default_rng(1).integers(0, 255, (HUGE[1] // 16, HUGE[0] // 16, 3), np.uint8)
        jpeg = encode_jpeg(cv2.resize(noise, HUGE).astype(np.uint8), 85)
        threading.Thread(target=play, args=["huge", [jpeg], 5, 0], daemon=True).start()
    sys.stdin.read()
    ended.set()
    os._exit(0)  # stock senders may wait for a reply for ever


# -- the process that decodes


def decode(way: str, cores: int, seconds: float) -> None:
    """Decode all that comes; print the endpoint, then for a line of input what was done meanwhile."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    counted = 0
    ended = threading.Event()

    def count() -> None:
        nonlocal counted
        if way in ALONE:
            for jpeg in itertools.cycle(pictures.load(FORMAT)):
                if ended.is_set():
                    break
                decode_jpeg(jpeg, HALF if way == "jpeg-half" else None)
                counted += 1
        elif way in ("imdecode", "image"):
            for frame in hub:
                if way == "image":
                    _ = frame.image
                else:
                    cv2.imdecode(np.frombuffer(frame.payload, np.uint8), cv2.IMREAD_COLOR)
                counted += 1
        else:
            with streamer.Pictures(hub, HALF if way == "half" else None) as decoding:
                for _ in decoding:
                    counted += 1

    with streamer.Hub("tcp://127.0.0.1:*") as hub:
        counting = threading.Thread(target=count)
        counting.start()
        print(hub.endpoint, flush=True)
        for _ in sys.stdin:
            began, before, spent = time.monotonic(), counted, time.process_time()
            time.sleep(seconds)
            elapsed, spent = time.monotonic() - began, time.process_time() - spent
            print(json.dumps([(counted - before) / elapsed, spent / elapsed]), flush=True)
        ended.set()
    counting.join()


def measure_decoding(way: str, cores: int, seconds: float) -> Decoded:
    """Let a program decode, and see what it takes."""
    with Part("show", "decode", way, cores, seconds) as decoding:
        endpoint = decoding.hear()
        with Part("show", "send", "streamer", endpoint, 0 if way in ALONE else LOAD * cores, 0):
            time.sleep(WARM_UP_S)
            decoding.say("")
            done, used = json.loads(decoding.hear(seconds + 30))
    return Decoded(way, cores, cores * done / used / FPS, done, used)


# -- the process that shows


def show_ours(layout: str) -> None:
    """Be this package's display, until standard input says so."""
    from streamer.config import Layout
    from streamer.windows import GridWindow, Windows

    stamps: list[float] = []

    class Timed:
        def _show(self, frame: Any, picture: Any) -> None:
            super()._show(frame, picture)  # type: ignore[misc]
            if frame.camera != "huge":
                stamps.append(stamp_of(frame.payload))

        def _press(self, key: int) -> None:
            painted(stamps)
            super()._press(key)  # type: ignore[misc]

    # Classes of their own, so that mypy looks at how they are made.
    class TimedGrid(Timed, GridWindow):
        pass

    class TimedWindows(Timed, Windows):
        pass

    with streamer.Hub("tcp://127.0.0.1:*") as hub:
        print(hub.endpoint, flush=True)
        window = (
            TimedGrid(hub, CAMERAS, layout=Layout(2, 4), screen=SCREEN)
            if layout
            else TimedWindows(hub, CAMERAS, screen=SCREEN)
        )
        window.run(ended_by_input().is_set)


def show_example(endpoint: str) -> None:
    """Be imagezmq's example: its README's loop for JPEG, and nothing else."""
    import imagezmq

    ended = ended_by_input()
    hub = imagezmq.ImageHub(endpoint)
    print(endpoint, flush=True)
    while not ended.is_set():
        name, jpeg = hub.recv_jpg()
        image: Any = cv2.imdecode(np.frombuffer(jpeg, dtype="uint8"), -1)
        cv2.imshow(name, image)
        cv2.waitKey(1)
        hub.send_reply(b"OK")
        if name != "huge":
            painted([stamp_of(jpeg)])
    os._exit(0)


def show_alone() -> None:
    """Decode and draw pictures that are there already, as often as eight cameras would send them."""
    ended = ended_by_input()
    bytes(KEPT_BYTES)
    cv2.setNumThreads(1)
    for at, name in enumerate(CAMERAS):
        cv2.namedWindow(name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        cv2.resizeWindow(name, *WINDOW)
        cv2.moveWindow(name, at % 4 * WINDOW[0], at // 4 * SCREEN[1] // 2)
    print("-", flush=True)
    began = time.monotonic()
    stamps = []
    for at, jpeg in enumerate(itertools.cycle(pictures.load(FORMAT)), 1):
        stamps.append(time.time())
        cv2.imshow(CAMERAS[at % len(CAMERAS)], decode_jpeg(jpeg))
        if at % PAINTED_TOGETHER == 0:
            rest_s = began + at / FPS / len(CAMERAS) - time.monotonic()
            cv2.waitKey(max(1, int(1000 * rest_s)))
            painted(stamps)
            if ended.is_set():
                break
    os._exit(0)


_painted: list[tuple[float, float]] = []  # when, and how long after it was sent


def painted(stamps: list[float]) -> None:
    """Note what is on the screen now."""
    now = time.time()
    _painted.extend((now, 1000 * (now - stamp)) for stamp in stamps)
    stamps.clear()


def ended_by_input() -> threading.Event:
    """Answer each line of input with the latencies since the last, in ms; the event is set when input ends."""
    ended = threading.Event()

    def listen() -> None:
        for _ in sys.stdin:
            latencies = [latency for _, latency in _painted]
            _painted.clear()
            print(json.dumps(latencies), flush=True)
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    return ended


def measure_windows(whose: str, huge: bool, seconds: float) -> Shown:
    """Show eight cameras, and perhaps the huge one."""
    with virtual_screen(*SCREEN) as display:
        os.environ["DISPLAY"] = display
        server = x_server()
        if whose == "imagezmq":
            part = Part("show", "example", f"tcp://127.0.0.1:{free_ports(1)[0]}")
        elif whose in ALONE:
            part = Part("show", whose)
        else:
            part = Part("show", "ours", *[whose] * (whose == "grid"))
        with part as showing:
            endpoint = showing.hear()
            with Part("show", "send", whose, endpoint, 0 if whose in ALONE else len(CAMERAS), int(huge)):
                time.sleep(2 * WARM_UP_S)
                showing.say("")
                showing.hear()
                before, before_screen = cpu_s(showing.pid), cpu_s(server)
                time.sleep(seconds)
                spent, spent_screen = cpu_s(showing.pid) - before, cpu_s(server) - before_screen
                showing.say("")
                latencies = json.loads(showing.hear())
    shown = max(1, len(latencies))
    return Shown(
        whose,
        huge,
        shown / seconds / len(CAMERAS),
        1e6 * spent / shown,
        1e6 * spent_screen / shown,
        percentiles(latencies),
    )


def x_server() -> int:
    """Find the X server that was started here."""
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    return next(int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "Xvfb\n")


# -- the measurement


def run(options: Options) -> list[Row]:
    """Measure both, and keep the figures in build/bench/show.json."""
    pictures.make()
    decoded: list[Decoded] = []
    shown: list[Shown] = []
    for number in range(options.rounds):
        for cores, ways in WAYS.items():
            for way in ways:
                decoded.append(measure_decoding(way, cores, options.seconds))
                progress(f"show, round {number + 1} of {options.rounds}: {way}, {cores} cores")
        for huge in (False, True):
            for whose in PROGRAMS[huge]:
                shown.append(measure_windows(whose, huge, options.seconds))
                progress(f"show, round {number + 1} of {options.rounds}: windows of {whose}, huge: {huge}")
    rows = [*decoding_rows(decoded), *window_rows(shown)]
    keep("show", options, [*decoded, *shown], rows)
    return rows


def decoding_rows(decoded: list[Decoded]) -> list[Row]:
    """Make the rows of decoding."""
    rows = []
    for cores, ways in WAYS.items():
        for way in ways:
            cameras = [each.cameras for each in decoded if (each.way, each.cores) == (way, cores)]
            work = f"{FORMAT} at {FPS}/s, decoded, {cores} core{'s' * (cores > 1)}"
            aim = AIMS.get(way)
            if aim:
                rows.append(judge(work, NAMES[way], cameras, f">= {aim * cores}", "cameras"))
            else:
                rows.append(Row(work, NAMES[way], f"{spread(cameras)} cameras"))
    return rows


def window_rows(shown: list[Shown]) -> list[Row]:
    """Make the rows of windows."""
    rows = []
    for huge in (False, True):
        work = f"{len(CAMERAS)} x {FPS}/s of {FORMAT} into windows{', and one of 24 megapixels' * huge}"
        of = {whose: [each for each in shown if (each.program, each.huge) == (whose, huge)] for whose in PROGRAMS[huge]}
        for whose, each in of.items():
            frames = spread([one.frames for one in each])
            rows.append(Row(work, f"{NAMES[whose]}: frames/s a camera", frames))
            cost = (
                f"{spread([one.cost_us for one in each], 0)} us, X server {spread([one.screen_us for one in each], 0)}"
            )
            rows.append(Row(work, f"{NAMES[whose]}: CPU time a frame", cost))
            late = " ".join(f"{statistics.median(one.latency_ms[at] for one in each):.0f}" for at in range(3))
            rows.append(Row(work, f"{NAMES[whose]}: age when painted, p50 p95 p99", f"{late} ms"))
        if not huge:
            ours, theirs, floor = ([one.cost_us for one in of[whose]] for whose in ("streamer", "imagezmq", "alone"))
            rows.append(beside(work, f"{NAMES['alone']}: CPU time a frame", floor, theirs, "the example's"))
            rows.append(compare(work, "windows: CPU time a frame", ours, theirs, "<= 0.7", "the example's"))
        else:
            alone = [one for one in shown if one.program == "streamer" and not one.huge]
            with_it, without = ([one.latency_ms[1] for one in each] for each in (of["streamer"], alone))
            rows.append(compare(work, "windows: age p95 of the eight", with_it, without, "<= 1.5", "without it"))
    return rows


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["send", whose, endpoint, cameras, huge]:
            send(whose, endpoint, int(cameras), int(huge))
        case ["decode", way, cores, seconds]:
            decode(way, int(cores), float(seconds))
        case ["ours", *layout]:
            show_ours("".join(layout))
        case ["example", endpoint]:
            show_example(endpoint)
        case ["alone"]:
            show_alone()
