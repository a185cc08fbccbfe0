"""A headless Chromium and a small fleet of real processes for it to look at."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.conftest import until
from tests.peers import Program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def _runs(program: str) -> bool:
    """Whether it is more than Ubuntu's note that a snap would have it."""
    return subprocess.run([program, "--version"], check=False, capture_output=True).returncode == 0


_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name)) and _runs(found)), None)
needs_chromium = pytest.mark.skipif(not CHROMIUM and "CI" not in os.environ, reason="no Chromium: apt install chromium")
# Counts what is drawn on each canvas from now on.
COUNT_DRAWINGS = """
window.drawings = {};
const draw = ImageBitmapRenderingContext.prototype.transferFromImageBitmap;
ImageBitmapRenderingContext.prototype.transferFromImageBitmap = function (bitmap) {
  const name = this.canvas.closest(".tile").dataset.name;
  window.drawings[name] = (window.drawings[name] ?? 0) + 1;
  return draw.call(this, bitmap);
};
"""
# A browser that asks nobody but the hub, and that root may run.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def reads(what: str, text: Callable[[], str], pattern: str, within_s: float) -> None:
    """Wait until a text, its words one space apart, has a pattern in it."""
    words = ""

    def look() -> bool:
        nonlocal words
        words = " ".join(text().split())
        return re.search(pattern, words) is not None

    try:
        until(look, within_s)
    except AssertionError:
        raise AssertionError(f"{what} says {words!r}, not {pattern!r}") from None


class Fleet:
    """A hub and senders, each a process of its own.

    Args:
        cameras: what each camera of this name plays; None for one that the hub waits for in vain.
        size: of the pictures.
        password: what the page asks for; empty: it asks nobody.
        screen: the display that the hub has; empty: what this process has.
        hub: further keys of hub.yml.
    """

    def __init__(
        self,
        cameras: Mapping[str, str | None],
        size: str = "320x240",
        password: str = "",
        screen: str = "",
        **hub: Any,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self._size = size
        self._cameras = cameras
        self._environment = {"DISPLAY": screen} if screen else {}
        place = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._config = place / "hub.yml"
        self._keys = {"bind": "tcp://127.0.0.1:0", "http": "127.0.0.1:0", "cameras": list(cameras), **hub}
        self._basic = base64.b64encode(f":{password}".encode()).decode() if password else ""
        if password:
            (place / "password").write_text(password)
            self._keys["http_password_file"] = str(place / "password")
        self.senders: dict[str, Program] = {}
        try:
            self._start_hub()
            for name, camera in cameras.items():
                if camera:
                    self.start(name)
            until(lambda: self.live() == len(self.senders), 30)
        except BaseException:
            self._stack.close()
            raise

    def _start_hub(self) -> None:
        self._config.write_text(json.dumps(self._keys))
        self.hub = self._stack.enter_context(
            Program("-m", "streamer", "hub", "--config", str(self._config), environment=self._environment)
        )
        self.endpoint = self.hub.line(0).removeprefix("hub: ")
        self.url = self.hub.line(1).removeprefix("wall: ")

    def restart_hub(self) -> None:
        """Let the hub come back, after it was killed, at the addresses that it had."""
        self._keys |= {"bind": self.endpoint, "http": self.url.split("/")[2]}
        self._start_hub()

    def start(self, name: str) -> None:
        """Start a sender."""
        arguments = ["--hub", self.endpoint, "--name", name, "--camera", str(self._cameras[name]), "--size", self._size]
        self.senders[name] = self._stack.enter_context(Program("-m", "streamer", "send", *arguments))

    def ask(self, path: str) -> Any:
        """Ask the hub's API."""
        headers = {"Authorization": f"Basic {self._basic}"} if self._basic else {}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=10) as answer:
            return json.load(answer)

    def live(self) -> int:
        """How many cameras are LIVE."""
        return sum(row["state"] == "LIVE" for row in self.ask("api/cameras"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class SlowLine:
    """A way to the hub's page on which little fits: what comes back from it passes at `bytes_per_s`.

    Args:
        url: of the page.
        bytes_per_s: of all connections together.
    """

    def __init__(self, url: str, bytes_per_s: float) -> None:
        self._host, self._port = url.split("/")[2].split(":")
        self._second = 1 / bytes_per_s
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/"
        self._serving = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=[self._serve()])
        self._thread.start()
        self._serving.wait()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        self._turn = asyncio.Lock()
        server = await asyncio.start_server(self._carry, sock=self._listening)
        self._serving.set()
        await self._ending.wait()
        server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A small buffer, so that what waits for the line waits at the hub.
        inner = socket.create_connection((self._host, int(self._port)))
        inner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        hub_reader, hub_writer = await asyncio.open_connection(sock=inner, limit=16 * 1024)
        await asyncio.gather(self._pump(reader, hub_writer, 0), self._pump(hub_reader, writer, self._second))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, second: float) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while chunk := await reader.read(8 * 1024):
                if second:
                    async with self._turn:
                        await asyncio.sleep(len(chunk) * second)
                writer.write(chunk)
                await writer.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
