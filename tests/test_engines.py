"""The wall in the browsers that are not Chromium: what differs between engines, once over."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from tests.browser import COUNT_DRAWINGS, Fleet, reads
from tests.conftest import until
from tests.engines import ENGINES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines import Engine

CAMERAS = {f"pi{number}": "pattern" for number in range(1, 5)}
DIFFERENT_PIXELS = """[...document.querySelectorAll(".tile canvas")].map(canvas => {
  const copy = new OffscreenCanvas(64, 48).getContext("2d");
  copy.drawImage(canvas, 0, 0, 64, 48);
  return new Set(new Uint32Array(copy.getImageData(0, 0, 64, 48).data.buffer)).size;
})"""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    start, is_there = ENGINES[request.param]
    if not is_there and "CI" not in os.environ:
        pytest.skip(f"no {request.param}: apt install firefox-esr webkit2gtk-driver")
    with start() as engine:
        yield engine


def says(engine: Engine, selector: str, pattern: str) -> None:
    """Wait until an element says so."""
    script = f"document.querySelector({json.dumps(selector)})?.innerText"
    reads(selector, lambda: engine.ask(script) or "", pattern, 20)


def all_move(engine: Engine) -> None:
    """Wait until each picture was drawn ten times more."""
    engine.ask(f"(() => {{{COUNT_DRAWINGS}}})()")
    until(lambda: all(engine.ask("window.drawings").get(name, 0) >= 10 for name in CAMERAS), 30)


def test_wall_is_alive_and_honest(engine: Engine) -> None:
    with Fleet(CAMERAS, stale_after_s=1, gone_after_s=3) as fleet:
        engine.open(fleet.url)
        says(engine, "#summary", "^● 4 of 4 LIVE$")
        all_move(engine)
        assert min(engine.ask(DIFFERENT_PIXELS)) > 20

        engine.press("ArrowRight", "ArrowRight", "Enter")
        until(lambda: engine.ask("location.hash") == "#pi2")
        says(engine, '.tile[data-name="pi2"]', r"^pi2 ● LIVE \d+ fps")
        engine.press("Escape")
        until(lambda: engine.ask("location.hash") == "")

        fleet.senders["pi3"].process.kill()
        says(engine, '.tile[data-name="pi3"]', r"no picture for \d s pi3 ▲ STALE")
        assert "grayscale(1)" in engine.ask(
            """getComputedStyle(document.querySelector('.tile[data-name="pi3"] canvas')).filter"""
        )
        says(engine, '.tile[data-name="pi3"]', r"gone, last seen \d s ago pi3 ■ GONE")
        fleet.start("pi3")

        fleet.hub.process.kill()
        fleet.hub.process.wait()
        says(engine, "#notice", "The hub does not answer")
        fleet.restart_hub()
        says(engine, "#summary", "^● 4 of 4 LIVE$")
        all_move(engine)


def test_password_is_asked_for_and_the_numbers_draw_their_curves(engine: Engine) -> None:
    with Fleet({"pi1": "pattern"}, password="open sesame") as fleet:
        engine.open(fleet.url)
        says(engine, "body", "Password")
        until(lambda: engine.ask("document.activeElement.name") == "password")  # a moment later it has the focus
        engine.press(*"open sesame", "Enter")
        says(engine, "#summary", "^● 1 of 1 LIVE$")
        engine.open(f"{fleet.url}numbers")
        says(engine, "tbody tr", r"pi1 ● LIVE 30")
        until(lambda: engine.ask("document.querySelector('tbody tr canvas, tbody tr svg') !== null"))
