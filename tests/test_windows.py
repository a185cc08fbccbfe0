"""The OpenCV windows on a real X server, looked at by screenshot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from PIL import Image, ImageGrab

import streamer
from streamer import windows
from streamer.codec import encode_jpeg
from tests.conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROGRAMS = ("Xvfb", "openbox", "xdotool")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)) and "CI" not in os.environ, reason=f"needs {' '.join(PROGRAMS)}"
)

BLUE, GREEN, RED, WHITE = (0, 0, 250), (0, 200, 0), (250, 0, 0), (250, 250, 250)
BLACK = (0, 0, 0)
WIDTH, HEIGHT = 160, 120
TITLE_BAR = windows._TITLE_BAR


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    """A virtual screen; its display's name."""
    reader, writer = os.pipe()
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", "800x600x24", "-nolisten", "tcp", "-noreset"]
    with subprocess.Popen(command, pass_fds=[writer], stderr=subprocess.DEVNULL) as server:
        os.close(writer)
        with os.fdopen(reader) as lines:
            display = f":{lines.readline().strip()}"
        # With a window manager, as on every desktop: without one, Qt now and then leaves a new window unpainted.
        with subprocess.Popen(["openbox"], env={**os.environ, "DISPLAY": display}) as manager:
            yield display
            manager.terminate()
        server.terminate()


class Shown:
    """A hub that shows windows, and what is on its screen."""

    def __init__(self, screen: str, place: Path) -> None:
        self._screen = screen
        config = place / "hub.yml"
        config.write_text(
            "cameras: [one, two, three, four, five]\nstale_after_s: 1.5\ngone_after_s: 4\n"
            f"window_rows: 2\nwindow_width: {WIDTH}\ndisplay: windows\nbind: tcp://127.0.0.1:0\nhttp: 127.0.0.1:0\n"
        )
        self.log = place / "hub.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamer", "hub", "--config", str(config)],
                env={**os.environ, "DISPLAY": screen},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        self.endpoint = self.process.stdout.readline().removeprefix("hub: ").strip()

    def screenshot(self) -> Image.Image:
        return ImageGrab.grab(xdisplay=self._screen)

    def colour_at(self, column: int, row: int, *, down: float = 0.4) -> tuple[int, int, int]:
        """The colour in a window's upper part, under its title, by its place in the grid."""
        at = int((column + 0.5) * WIDTH), int(row * (HEIGHT + TITLE_BAR) + down * HEIGHT)
        red, green, blue = self.screenshot().getpixel(at)  # type: ignore[misc]
        return red, green, blue

    def shows(self, colour: tuple[int, int, int], column: int, row: int) -> Callable[[], bool]:
        return lambda: bool(np.abs(np.subtract(self.colour_at(column, row), colour)).max() < 12)

    def press(self, key: str, window: str) -> None:
        subprocess.run(
            ["xdotool", "search", "--name", f"^{window}$", "windowfocus", "--sync", "key", key],
            env={**os.environ, "DISPLAY": self._screen},
            check=True,
            capture_output=True,
        )


@pytest.fixture
def shown(screen: str, tmp_path: Path) -> Iterator[Shown]:
    shown = Shown(screen, tmp_path)
    yield shown
    shown.process.kill()
    shown.process.communicate()


class Source:
    """A sender of one colour that can fall silent and come back."""

    def __init__(self, endpoint: str, name: str, colour: tuple[int, int, int]) -> None:
        self._sender = streamer.Sender(endpoint, name=name)
        image = np.full((HEIGHT, WIDTH, 3), colour[::-1], np.uint8)
        self._jpeg = encode_jpeg(image, 95)

    def send(self) -> None:
        self._sender.send(self._jpeg)

    def close(self) -> None:
        self._sender.close()


@pytest.fixture
def sources(shown: Shown) -> Iterator[dict[str, Source]]:
    colours = {"one": RED, "three": GREEN, "five": BLUE, "stranger": WHITE}
    sources = {name: Source(shown.endpoint, name, colour) for name, colour in colours.items()}
    yield sources
    for source in sources.values():
        source.close()


def sending(sources: list[Source], condition: Callable[[], bool]) -> Callable[[], bool]:
    """The condition, with the sources sending meanwhile."""

    def look() -> bool:
        for source in sources:
            source.send()
        return condition()

    return look


def test_windows_have_their_places_grey_when_stale_and_close_when_gone(
    shown: Shown, sources: dict[str, Source]
) -> None:
    everyone = list(sources.values())
    # Four columns, since eight cameras in two rows are laid out for; a camera that is not named comes after the named.
    for colour, column, row in ((RED, 0, 0), (GREEN, 2, 0), (BLUE, 0, 1), (WHITE, 1, 1)):
        until(sending(everyone, shown.shows(colour, column, row)), 20)
    assert shown.shows(BLACK, 1, 0)(), "a camera that never came has no window"

    others = [source for source in everyone if source is not sources["five"]]
    until(sending(others, lambda: max(shown.colour_at(0, 1)) < 60 and len(set(shown.colour_at(0, 1))) == 1), 20)
    middle = shown.screenshot().crop((0, HEIGHT + TITLE_BAR, WIDTH, 2 * HEIGHT + TITLE_BAR)).convert("L")
    assert middle.getextrema()[1] > 230, "the age stands on it in white"  # type: ignore[operator]
    assert shown.shows(RED, 0, 0)(), "another camera is not touched"

    until(sending(others, shown.shows(BLACK, 0, 1)), 20)
    until(sending(everyone, shown.shows(BLUE, 0, 1)), 20)


def test_q_ends_the_hub(shown: Shown, sources: dict[str, Source]) -> None:
    until(sending([sources["one"]], shown.shows(RED, 0, 0)), 20)
    shown.press("q", "one")
    out, _ = shown.process.communicate(timeout=10)
    assert shown.process.returncode == 0
    assert "Frames received: " in out


def test_ctrl_c_ends_the_hub(shown: Shown, sources: dict[str, Source]) -> None:
    until(sending([sources["one"]], shown.shows(RED, 0, 0)), 20)
    shown.process.send_signal(signal.SIGINT)
    shown.process.communicate(timeout=10)
    assert shown.process.returncode == 0


def test_damaged_picture_is_left_out_and_the_next_is_shown(shown: Shown, sources: dict[str, Source]) -> None:
    one = sources["one"]
    whole = one._jpeg
    one._jpeg = whole[:300] + b"\xff\xd9"
    one.send()
    until(sending([sources["three"]], shown.shows(GREEN, 2, 0)), 20)
    one._jpeg = whole
    until(sending([one], shown.shows(RED, 0, 0)), 20)


def test_array_that_no_window_can_show_is_told_and_the_others_go_on(shown: Shown, sources: dict[str, Source]) -> None:
    arrays = np.zeros((8, 8), np.complex64), np.zeros((8, 8, 2), np.uint8), np.zeros((1, 90_000), np.uint8)
    odd = [streamer.Sender(shown.endpoint, name=name) for name in ("two", "four", "six")]
    try:
        for sender, array in zip(odd, arrays, strict=True):
            sender.send(cast("np.ndarray[Any, Any]", array))
        until(lambda: all(sender.statistics.answered for sender in odd))
        complaint = "is no picture that a window can show"
        until(sending([sources["three"]], lambda: shown.log.read_text().count(complaint) == 2), 20)
        assert f"two: an array of complex64 with shape (8, 8) {complaint}" in shown.log.read_text()
        assert f"four: an array of uint8 with shape (8, 8, 2) {complaint}" in shown.log.read_text()
        until(sending([sources["three"]], shown.shows(GREEN, 2, 0)), 20)
    finally:
        for sender in odd:
            sender.close()


def test_greyed_says_the_age_and_keeps_the_size() -> None:
    for shape in ((48, 64, 3), (48, 64)):
        image = np.full(shape, 200, np.uint8)
        dark = windows.greyed(image, 12.4)
        assert dark.shape == (48, 64, 3)
        assert np.median(dark) == 100
        assert dark.max() > 230
    assert windows.greyed(np.zeros((1, 90_000), np.uint8), 1).shape == (1, windows._GREYED_WIDTH, 3)
