"""What a viewer costs the hub: `python -m tests.bench.wall [--rounds N] [--seconds S]`.

Eight cameras of 30 frames a second, each frame a JPEG of 110 kB, are watched by 1, 3 and 10 viewers:

    wall    this package's page protocol, one WebSocket for all cameras, each picture acknowledged
    stream  this package's /stream/NAME.mjpg, a connection for each camera
    bare    the same web library's WebSocket and nothing else: no name, no stamp, no acknowledgement
    plain   the plainest that a browser can show: MJPEG by the same web library, a loop for each connection

Hub, senders and viewers are processes of their own. Costs are CPU time of the hub's process by its kernel's
count, less what it needs with nobody looking, for each frame that reached a viewer. Rounds are interleaved.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import sys
import threading
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web

import streamer
from streamer.codec import encode_jpeg
from streamer.wall import Wall
from tests.bench.measure import Options, Part, Row, cpu_s, keep, percentiles, progress, resident_mb, spread

CAMERAS = [f"pi{number}" for number in range(1, 9)]
FPS = 30
FRAME_BYTES = 110_000
VIEWERS = (1, 3, 10)
KINDS = ("wall", "stream", "bare", "plain")
WARM_UP_S = 2.0
STUCK_VIEWERS = 20


@dataclass
class Result:
    """One measurement.

    Attributes:
        frames: that reached viewers, for each of their cameras and seconds; 30 is all.
        cost_us: CPU time of the hub for each of these frames, in microseconds.
        latency_ms: from the hub's stamp until the viewer had the frame: 50th, 95th and 99th percentile.
    """

    kind: str
    viewers: int
    frames: float
    cost_us: float
    latency_ms: tuple[float, float, float]


# -- the hub's process


def serve(kind: str) -> None:
    """Be the hub: print its endpoint and its page's port, and end with standard input."""
    with streamer.Hub("tcp://127.0.0.1:*", cameras=CAMERAS) as hub:
        if kind in ("bare", "plain"):
            port = threading.Event(), [0]
            threading.Thread(target=asyncio.run, args=[plain(hub, *port)], daemon=True).start()
            port[0].wait()
            print(hub.endpoint, port[1][0], flush=True)
            sys.stdin.read()
        else:
            with Wall(hub, "127.0.0.1", 0) as wall:
                print(hub.endpoint, wall.port, flush=True)
                sys.stdin.read()


async def plain(hub: streamer.Hub, ready: threading.Event, port: list[int]) -> None:
    """Serve every frame to everybody, with nothing that is not needed for it."""
    news: dict[str, asyncio.Event] = {name: asyncio.Event() for name in CAMERAS}
    loop = asyncio.get_running_loop()

    def announce(name: str) -> None:
        news[name].set()
        news[name] = asyncio.Event()

    def receive() -> None:
        for frame in hub:
            loop.call_soon_threadsafe(announce, frame.camera)

    async def stream(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        response = web.StreamResponse(headers={"Content-Type": "multipart/x-mixed-replace; boundary=frame"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await news[name].wait()
                frame = hub.latest(name)
                assert frame
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame.payload)}\r\n\r\n".encode()
                await response.write(b"".join((head, frame.payload, b"\r\n")))
        return response

    async def push(response: web.WebSocketResponse, name: str) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await news[name].wait()
                frame = hub.latest(name)
                assert frame
                await response.send_bytes(bytes(frame.payload))

    async def page(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(compress=False)
        await response.prepare(request)
        pushing = [asyncio.ensure_future(push(response, name)) for name in CAMERAS]
        async for _ in response:
            pass
        for task in pushing:
            task.cancel()
        return response

    app = web.Application()
    app.add_routes([web.get("/stream/{name}.mjpg", stream), web.get("/ws", page)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port[0] = runner.addresses[0][1]
    threading.Thread(target=receive, daemon=True).start()
    ready.set()
    await asyncio.Event().wait()


# -- the senders' process


def send(endpoint: str) -> None:
    """Be all cameras, until standard input ends."""
    noise = np.random.default_rng(1).integers(0, 255, (480, 640, 3), np.uint8)
    quality = next(q for q in range(95, 0, -1) if len(encode_jpeg(noise, q)) < FRAME_BYTES)
    jpeg = bytearray(encode_jpeg(noise, quality))
    # A comment makes up the rest: ITU-T T.81, B.2.4.5.
    rest = FRAME_BYTES - len(jpeg)
    while rest > 4:
        length = min(rest - 2, 65535)
        jpeg[2:2] = b"\xff\xfe" + struct.pack(">H", length) + bytes(length - 2)
        rest -= length + 2
    picture = bytes(jpeg)
    ended = threading.Event()

    def play(name: str, at: int) -> None:
        with streamer.Sender(endpoint, name=name, every_s=1 / FPS) as sender:
            due = time.monotonic() + at / FPS / len(CAMERAS)
            while not ended.wait(max(0.0, due - time.monotonic())):
                sender.send(picture)
                due += 1 / FPS

    threads = [threading.Thread(target=play, args=[name, at]) for at, name in enumerate(CAMERAS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()


# -- the viewers' process


async def watch(kind: str, port: int, viewers: int, seconds: float) -> dict[str, Any]:
    """Be the viewers; returns the frames that came in time, and the latencies in ms where they can be known."""
    url = f"http://127.0.0.1:{port}"
    began = time.monotonic() + WARM_UP_S
    counted = [0]
    tasks: list[asyncio.Future[None]] = []
    latencies: list[float] = []

    def count(received_ms: float | None) -> None:
        if began <= time.monotonic() < began + seconds:
            counted[0] += 1
            if received_ms is not None:
                latencies.append(time.time() * 1000 - received_ms)

    async def paint(socket: aiohttp.ClientWebSocketResponse, shown: list[str]) -> None:
        """Show what has come, as a browser does: sixty times a second."""
        while True:
            await asyncio.sleep(1 / 60)
            if shown:
                await socket.send_json({"shown": shown})
                shown.clear()

    async def page(session: aiohttp.ClientSession) -> None:
        async with session.ws_connect(f"{url}/ws", max_msg_size=0) as socket:
            if kind == "wall":
                await socket.send_json({"want": dict.fromkeys(CAMERAS, 60)})
            shown: list[str] = []
            tasks.append(asyncio.ensure_future(paint(socket, shown)))
            async for message in socket:
                if kind == "bare":
                    count(None)
                elif message.type is aiohttp.WSMsgType.BINARY:
                    _, length, received_ms = struct.unpack_from("<BBd", message.data)
                    count(received_ms)
                    shown.append(message.data[10 : 10 + length].decode())

    async def stream(session: aiohttp.ClientSession, name: str) -> None:
        while True:
            async with session.get(f"{url}/stream/{name}.mjpg", timeout=aiohttp.ClientTimeout(None)) as answer:
                while not answer.content.at_eof():  # at once if the hub has no picture yet
                    line = await answer.content.readline()
                    if line.lower().startswith(b"content-length"):
                        await answer.content.readexactly(int(line.split(b":")[1]) + 4)
                        count(None)
            await asyncio.sleep(0.05)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), read_bufsize=4 * FRAME_BYTES) as session:
        tasks += [
            asyncio.ensure_future(task)
            for _ in range(viewers)
            for task in ([page(session)] if kind in ("wall", "bare") else [stream(session, name) for name in CAMERAS])
        ]
        await asyncio.sleep(WARM_UP_S + seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {"frames": counted[0], "latencies": latencies}


async def get_stuck(port: int, viewers: int, seconds: float) -> dict[str, Any]:
    """Be viewers who ask for everything and read nothing."""
    want = json.dumps({"want": dict.fromkeys(CAMERAS, 60)}).encode()
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    ask = b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + key + b"\r\n"
    frame = bytes([0x81, 0x80 | 126]) + struct.pack(">H", len(want)) + bytes(4) + want
    writers = []
    for _ in range(viewers):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(ask + frame)
        writers.append(writer)
    await asyncio.sleep(WARM_UP_S + seconds)
    for writer in writers:
        writer.close()
    return {"frames": 0, "latencies": []}


# -- the measurement


def measure(kind: str, viewers: int, seconds: float) -> tuple[dict[str, Any], float, float]:
    """Return what viewers saw, the hub's CPU time meanwhile in seconds, and the growth of its memory in MB."""
    with Part("wall", "serve", kind) as hub:
        endpoint, port = hub.hear().split()
        with Part("wall", "send", endpoint), Part("wall", "watch", kind, port, viewers, seconds) as watching:
            watching.hear()  # has imported what it needs
            time.sleep(WARM_UP_S)
            before, memory = cpu_s(hub.pid), resident_mb(hub.pid)
            time.sleep(seconds)
            spent, grown = cpu_s(hub.pid) - before, resident_mb(hub.pid) - memory
            return json.loads(watching.hear()), spent, grown


def run(options: Options) -> list[Row]:
    """Measure all."""
    results: list[Result] = []
    for number in range(options.rounds):
        _, idle_s, _ = measure("wall", 0, options.seconds)
        for kind in KINDS:
            for viewers in VIEWERS:
                progress(f"round {number + 1} of {options.rounds}: {kind}, {viewers} viewers")
                seen, spent_s, _ = measure(kind, viewers, options.seconds)
                frames = seen["frames"] / (viewers * len(CAMERAS) * options.seconds)
                cost_us = 1e6 * (spent_s - idle_s) / max(1, seen["frames"])
                results.append(Result(kind, viewers, frames, cost_us, percentiles(seen["latencies"])))
    _, _, grown = measure("stuck", STUCK_VIEWERS, options.seconds)

    rows: list[Row] = []
    for viewers in VIEWERS:
        work = f"{viewers} viewer{'s' if viewers > 1 else ''} of eight cameras, {FPS} frames/s each"
        for kind in KINDS:
            those = [each for each in results if (each.kind, each.viewers) == (kind, viewers)]
            frames = median(each.frames for each in those)
            figure = f"{frames:.1f} | {spread([each.cost_us for each in those], 0)}"
            rows.append(Row(work, f"{kind}: frames/s | us hub a frame and viewer", figure))
        ours = [each for each in results if (each.kind, each.viewers) == ("wall", viewers)]
        latency = " ".join(f"{median(each.latency_ms[at] for each in ours):.1f}" for at in range(3))
        rows.append(Row(work, "wall: added latency, ms p50 p95 p99", latency))
    stuck = f"{STUCK_VIEWERS} viewers who ask for everything and read nothing"
    rows.append(Row(stuck, "the hub grows by", f"{grown:.1f} MB"))
    keep("wall", options, results, rows)
    return rows


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", kind]:
            serve(kind)
        case ["send", endpoint]:
            send(endpoint)
        case ["watch", kind, port, viewers, seconds]:
            print("ready", flush=True)
            looking = (
                get_stuck(int(port), int(viewers), float(seconds))
                if kind == "stuck"
                else watch(kind, int(port), int(viewers), float(seconds))
            )
            print(json.dumps(asyncio.run(looking)), flush=True)
