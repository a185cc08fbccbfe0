"""Firefox and WebKit, Safari's engine, as Debian has them: as much of each as its own remote control needs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp

from tests.conftest import until
from tests.screen import virtual_screen

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = {"width": 1280, "height": 800}
_MINI_BROWSER = next(Path("/usr/lib").glob("*/webkit2gtk-4.1/MiniBrowser"), None)
_STARTS_WITHIN_S = 60


class Engine(Protocol):
    """A browser with one page."""

    def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""

    def ask(self, expression: str) -> Any:
        """Evaluate JavaScript in the page; the value, or what its promise comes to, is handed over as JSON."""

    def press(self, *keys: str) -> None:
        """Press keys one after the other, as WebDriver names them (`KEYS`), or characters."""


KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "ArrowRight": "\ue014"}


def _strokes(keys: tuple[str, ...]) -> list[dict[str, Any]]:
    strokes = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
    return [{"type": "key", "id": "keyboard", "actions": strokes}]


class _Firefox:
    """Firefox by WebDriver BiDi, https://www.w3.org/TR/webdriver-bidi/."""

    def __init__(self, runner: asyncio.Runner, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._runner = runner
        self._socket = socket
        self._numbers = itertools.count(1)
        self._call("session.new", capabilities={"alwaysMatch": {"acceptInsecureCerts": True}})
        self._page: str = self._call("browsingContext.getTree")["contexts"][0]["context"]
        self._call("browsingContext.setViewport", context=self._page, viewport=SIZE)

    def open(self, url: str) -> None:
        self._call("browsingContext.navigate", context=self._page, url=url, wait="complete")

    def ask(self, expression: str) -> Any:
        answer = self._call(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self._page},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"].get("value", "null"))

    def press(self, *keys: str) -> None:
        self._call("input.performActions", context=self._page, actions=_strokes(keys))

    def _call(self, method: str, **parameters: Any) -> Any:
        return self._runner.run(self._exchange(next(self._numbers), method, parameters))

    async def _exchange(self, number: int, method: str, parameters: dict[str, Any]) -> Any:
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while (answer := await self._socket.receive_json(timeout=_STARTS_WITHIN_S)).get("id") != number:
            pass
        assert answer["type"] == "success", answer
        return answer["result"]


@contextlib.contextmanager
def firefox() -> Iterator[Engine]:
    """Start a Firefox without a window."""
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(tempfile.TemporaryDirectory())
        command = ["firefox-esr", "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0"]
        process = stack.enter_context(
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HOME": profile})
        )
        stack.callback(process.kill)
        assert process.stderr
        address = next(filter(None, (re.search(r"WebDriver BiDi listening on (\S+)", line) for line in process.stderr)))
        runner = stack.enter_context(asyncio.Runner())

        async def connect() -> aiohttp.ClientWebSocketResponse:
            session = aiohttp.ClientSession()
            stack.callback(lambda: runner.run(session.close()))
            return await session.ws_connect(f"{address[1]}/session", max_msg_size=0)

        yield _Firefox(runner, runner.run(connect()))


class _WebKit:
    """WebKitGTK by WebDriver, https://www.w3.org/TR/webdriver2/."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/session"
        options = {"binary": str(_MINI_BROWSER), "args": ["--automation"]}
        wanted = {"acceptInsecureCerts": True, "webkitgtk:browserOptions": options}
        self._url += f"/{self._call('', capabilities={'alwaysMatch': wanted})['sessionId']}"
        self._call("/window/rect", x=0, y=0, **SIZE)

    def open(self, url: str) -> None:
        self._call("/url", url=url)

    def ask(self, expression: str) -> Any:
        return self._call("/execute/sync", script=f"return {expression}", args=[])

    def press(self, *keys: str) -> None:
        self._call("/actions", actions=_strokes(keys))

    def _call(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(self._url + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=_STARTS_WITHIN_S) as answer:
            return json.load(answer)["value"]


@contextlib.contextmanager
def webkit() -> Iterator[Engine]:
    """Start a WebKit in a window of a screen of its own."""
    with contextlib.ExitStack() as stack:
        screen = stack.enter_context(virtual_screen(1400, 900))
        with socket.create_server(("127.0.0.1", 0)) as one:
            port = one.getsockname()[1]
        driver = stack.enter_context(
            subprocess.Popen(["WebKitWebDriver", f"--port={port}"], env={**os.environ, "DISPLAY": screen})
        )
        stack.callback(driver.terminate)
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/status", timeout=1) as answer:
                return bool(json.load(answer)["value"]["ready"])
            return False

        until(answers)
        yield _WebKit(url)


ENGINES = {
    "firefox": (firefox, bool(shutil.which("firefox-esr"))),
    "webkit": (webkit, bool(_MINI_BROWSER and shutil.which("WebKitWebDriver"))),
}
