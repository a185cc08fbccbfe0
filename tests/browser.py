"""A headless Chromium and a small fleet of real processes for it to look at."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.conftest import until
from tests.peers import Program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
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


class Fleet:
    """A hub and senders, each a process of its own.

    Args:
        cameras: what each camera of this name plays; None for one that the hub waits for in vain.
        size: of the pictures.
        hub: further keys of hub.yml.
    """

    def __init__(self, cameras: Mapping[str, str | None], size: str = "320x240", **hub: Any) -> None:
        self._stack = contextlib.ExitStack()
        self._size = size
        self._cameras = cameras
        place = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._config = place / "hub.yml"
        self._keys = {"bind": "tcp://127.0.0.1:0", "http": "127.0.0.1:0", "cameras": list(cameras), **hub}
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
        self.hub = self._stack.enter_context(Program("-m", "streamer", "hub", "--config", str(self._config)))
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
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def live(self) -> int:
        """How many cameras are LIVE."""
        return sum(row["state"] == "LIVE" for row in self.ask("api/cameras"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
