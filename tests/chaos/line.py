"""A line between senders and a hub that goes bad: a TCP relay that delays, stalls, and cuts in mid-message."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

CHUNK_BYTES = 1 << 14
ROUND_S = 0.005


class Line:
    """Takes connections, and makes one to `endpoint` for each.

    Args:
        endpoint: where to, `tcp://HOST:PORT`.

    Attributes:
        endpoint: where to connect to instead.
        delay_s: each way, in seconds; may be set at any time.
        stalled: while true nothing passes, and no connection ends: a cable that is pulled, a switch that hangs.
        cut_after: bytes towards the hub after which a connection is cut; None for never.
        connections: taken so far.
    """

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._target = host, int(port)
        self.delay_s = 0.0
        self.stalled = False
        self.cut_after: int | None = None
        self.connections = 0
        self.endpoint = ""
        self._cutting: set[asyncio.StreamWriter] = set()
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve(listening)])
        self._thread.start()
        listening.wait()

    def cut(self) -> None:
        """End every connection in the middle of what it carries next."""
        self._loop.call_soon_threadsafe(lambda: self._cutting.update(self._open))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _serve(self, listening: threading.Event) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.endpoint = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        listening.set()
        await self._ending.wait()
        server.close()
        carrying = [*self._open.values()]
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be one connection, until either end leaves it or it is cut."""
        task = asyncio.current_task()
        assert task
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.ExitStack() as open_ends:
            open_ends.callback(writer.transport.abort)
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            open_ends.callback(far_writer.transport.abort)
            self._open[writer] = task
            open_ends.callback(self._open.pop, writer)
            open_ends.callback(self._cutting.discard, writer)
            there = asyncio.ensure_future(self._pump(reader, far_writer, writer))
            back = asyncio.ensure_future(self._pump(far_reader, writer, None))
            try:
                await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in (there, back):
                    way.cancel()
                await asyncio.gather(there, back, return_exceptions=True)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: asyncio.StreamWriter | None
    ) -> None:
        """Be one way of a connection; that to the hub is where it is cut."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1024)

        async def write() -> None:
            passed = 0
            while True:
                due, chunk = await under_way.get()
                passed += len(chunk)
                await asyncio.sleep(due - self._loop.time())
                while self.stalled:
                    await asyncio.sleep(ROUND_S)
                is_worn_out = cut is not None and self.cut_after is not None and passed > self.cut_after
                if is_worn_out or cut in self._cutting:
                    writer.write(chunk[: len(chunk) // 2])
                    await writer.drain()
                    return
                writer.write(chunk)
                await writer.drain()

        async def read() -> None:
            while chunk := await reader.read(CHUNK_BYTES):
                await under_way.put((self._loop.time() + self.delay_s, chunk))
            while self.stalled:  # the end of a connection does not pass either
                await asyncio.sleep(ROUND_S)

        await _first_of(read(), write())


async def _first_of(*ways: Coroutine[Any, Any, None]) -> None:
    """Wait for one of them, and end the others."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
