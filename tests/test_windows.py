"""The OpenCV windows on a real X server, looked at by screenshot."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from PIL import Image, ImageGrab

import streamer
from streamer import screen as screens
from streamer import tiles, windows
from streamer.codec import encode_jpeg
from streamer.errors import TransportError
from streamer.screen import find
from tests.conftest import until
from tests.screen import bare_screen, virtual_screen, window_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

PROGRAMS = ("Xvfb", "openbox", "xdotool")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, PROGRAMS)) and "CI" not in os.environ, reason=f"needs {' '.join(PROGRAMS)}"
)

BLUE, GREEN, RED, WHITE = (0, 0, 250), (0, 200, 0), (250, 0, 0), (250, 250, 250)
BLACK = (0, 0, 0)
DARK = tiles.GROUND[::-1]
WIDTH, HEIGHT = 160, 120
TITLE_BAR = windows._TITLE_BAR


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    """A virtual screen; its display's name."""
    with virtual_screen(800, 600) as display:
        yield display


class Shown:
    """A hub that shows windows, and what is on its screen."""

    def __init__(self, screen: str, place: Path, *flags: str, **environment: str) -> None:
        self._screen = screen
        config = place / "hub.yml"
        config.write_text(
            "cameras: [one, two, three, four, five]\nstale_after_s: 1.5\ngone_after_s: 5\n"
            f"window_rows: 2\nwindow_width: {WIDTH}\ndisplay: windows\nbind: tcp://127.0.0.1:0\nhttp: 127.0.0.1:0\n"
        )
        self.log = place / "hub.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamer", "hub", "--config", str(config), *flags],
                env={**os.environ, "DISPLAY": screen, **environment},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout
        self.endpoint = self.process.stdout.readline().removeprefix("hub: ").strip()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def screenshot(self) -> Image.Image:
        return ImageGrab.grab(xdisplay=self._screen)

    def colour_at(self, column: int, row: int, *, down: float = 0.4) -> tuple[int, int, int]:
        """The colour in a window's upper part, under its title, by its place in the grid."""
        at = int((column + 0.5) * WIDTH), int(row * (HEIGHT + TITLE_BAR) + TITLE_BAR + down * HEIGHT)
        red, green, blue = self.screenshot().getpixel(at)  # type: ignore[misc]
        return red, green, blue

    def shows(self, colour: tuple[int, int, int], column: int, row: int) -> Callable[[], bool]:
        return lambda: bool(np.abs(np.subtract(self.colour_at(column, row), colour)).max() < 12)

    def has_words(self) -> bool:
        """Whether there are words on the red picture of the first window."""
        window = np.asarray(self.screenshot().crop((8, TITLE_BAR + HEIGHT // 3, WIDTH - 8, TITLE_BAR + HEIGHT)))
        return bool(window.min(2).max() > 100)

    def press(self, key: str, window: str, done: Callable[[], object]) -> None:
        """Press a key in a window until it has done what it does; a window that is just opening may take it away."""

        def pressed() -> bool:
            with contextlib.suppress(subprocess.CalledProcessError):  # it is not there yet, or was closed by the key
                self.xdotool(window, "windowactivate", "--sync", "key", key)
            # When the key has closed the window, xdotool fails before it has let go of it.
            subprocess.run(["xdotool", "keyup", key], env={**os.environ, "DISPLAY": self._screen}, check=True)
            with contextlib.suppress(AssertionError):
                until(done, 2)
                return True
            return False

        until(pressed, 20)

    def is_open(self, window: str) -> bool:
        try:
            return bool(self.xdotool(window))
        except subprocess.CalledProcessError:
            return False

    def xdotool(self, window: str, *commands: str) -> str:
        return subprocess.run(
            ["xdotool", "search", "--name", f"^{window}$", *commands],
            env={**os.environ, "DISPLAY": self._screen},
            check=True,
            capture_output=True,
            text=True,
        ).stdout


@pytest.fixture
def shown(screen: str, tmp_path: Path) -> Iterator[Shown]:
    shown = Shown(screen, tmp_path)
    yield shown
    shown.close()


class Source:
    """A sender of one colour, or of one picture, that can fall silent and come back."""

    def __init__(self, endpoint: str, name: str, image: tuple[int, int, int] | np.ndarray) -> None:
        self._sender = streamer.Sender(endpoint, name=name)
        self._sent = 0
        self.paint(image)

    def paint(self, image: tuple[int, int, int] | np.ndarray) -> None:
        if isinstance(image, tuple):
            image = np.full((HEIGHT, WIDTH, 3), image[::-1], np.uint8)
        self._jpeg = encode_jpeg(image, 95)

    def send(self) -> None:
        self._sent += 1
        comment = b"\xff\xfe\x00\x06" + self._sent.to_bytes(4)  # no two are the same, byte for byte
        self._sender.send(self._jpeg[:2] + comment + self._jpeg[2:])

    def close(self) -> None:
        self._sender.close()


@contextlib.contextmanager
def four_sources(endpoint: str) -> Iterator[dict[str, Source]]:
    colours = {"one": RED, "three": GREEN, "five": BLUE, "stranger": WHITE}
    sources = {name: Source(endpoint, name, colour) for name, colour in colours.items()}
    yield sources
    for source in sources.values():
        source.close()


@pytest.fixture
def sources(shown: Shown) -> Iterator[dict[str, Source]]:
    with four_sources(shown.endpoint) as sources:
        yield sources


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
    assert shown.shows(BLACK, 1, 0)(), "its place is kept for a camera that never came"

    others = [source for source in everyone if source is not sources["five"]]
    until(sending(others, lambda: max(shown.colour_at(0, 1)) < 60 and len(set(shown.colour_at(0, 1))) == 1), 20)
    middle = shown.screenshot().crop((0, HEIGHT + 2 * TITLE_BAR, WIDTH, 2 * (HEIGHT + TITLE_BAR))).convert("L")
    assert middle.getextrema()[1] > 230, "the age stands on it in white"  # type: ignore[operator]
    assert shown.shows(RED, 0, 0)(), "another camera is not touched"

    until(sending(others, shown.shows(BLACK, 0, 1)), 20)
    until(sending(everyone, shown.shows(BLUE, 0, 1)), 20)


def test_window_of_a_name_that_two_have_says_so(shown: Shown, sources: dict[str, Source]) -> None:
    one = sources["one"]
    until(sending([one], shown.shows(RED, 0, 0)), 20)
    with contextlib.closing(Source(shown.endpoint, "one", GREEN)) as second:
        until(sending([one, second], lambda: "has this name too" in shown.log.read_text()), 20)
        until(sending([one, second], lambda: shown.has_words() and shown.shows(RED, 0, 0)()), 20)
    until(sending([one], lambda: not shown.has_words()), 20)


def test_q_ends_the_hub(shown: Shown, sources: dict[str, Source]) -> None:
    until(sending([sources["one"]], shown.shows(RED, 0, 0)), 20)
    shown.press("q", "one", lambda: shown.process.poll() is not None)
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
    one._jpeg = whole[:300] + b"\xff\xd9"
    until(sending([one], lambda: shown.has_words() and shown.shows(RED, 0, 0)()), 20)
    one._jpeg = whole
    until(sending([one], lambda: not shown.has_words()), 20)


def test_a_ninth_camera_makes_room_for_itself(shown: Shown) -> None:
    names = [f"pi{number}" for number in range(1, 5)]  # after the five of the file
    with contextlib.ExitStack() as stack:
        sources = [Source(shown.endpoint, name, WHITE) for name in names]
        for source in sources:
            stack.callback(source.close)

        def places() -> set[tuple[str, ...]]:
            with contextlib.suppress(subprocess.CalledProcessError):
                asked = "getwindowgeometry", "--shell"
                return {tuple(re.findall(r"[XY]=(\d+)", shown.xdotool(name, *asked))) for name in names}
            return set()

        columns = [0, 1, 2, 3]  # of five, in the second row
        assert WIDTH * 5 <= 800
        until(sending(sources, lambda: {int(x) // WIDTH for x, _ in places()} == set(columns)), 20)
        assert len({y for _, y in places()}) == 1


def test_array_that_no_window_can_show_is_told_and_the_others_go_on(shown: Shown, sources: dict[str, Source]) -> None:
    arrays = np.zeros((8, 8), np.complex64), np.zeros((8, 8, 2), np.uint8), np.zeros((1, 90_000), np.uint8)
    odd = [streamer.Sender(shown.endpoint, name=name) for name in ("two", "four", "six")]
    complaint = "is not a picture that a window can show"

    def is_told() -> bool:
        for sender, array in zip(odd, arrays, strict=True):
            sender.send(cast("np.ndarray[Any, Any]", array))
        return shown.log.read_text().count(complaint) == 2

    try:
        until(is_told, 20)
        assert f"two: an array of complex64 with shape (8, 8) {complaint}" in shown.log.read_text()
        assert f"four: an array of uint8 with shape (8, 8, 2) {complaint}" in shown.log.read_text()
        until(sending([sources["three"]], shown.shows(GREEN, 2, 0)), 20)
    finally:
        for sender in odd:
            sender.close()


def test_window_closed_by_hand_stays_closed_until_the_camera_comes_back(
    shown: Shown, sources: dict[str, Source]
) -> None:
    one, three = sources["one"], sources["three"]
    until(sending([one, three], shown.shows(RED, 0, 0)), 20)
    until(sending([one, three], shown.shows(GREEN, 2, 0)), 20)  # a new window takes the keyboard to itself
    shown.press("alt+F4", "one", sending([one, three], shown.shows(BLACK, 0, 0)))
    seen = time.monotonic()
    while time.monotonic() < seen + windows._CLOSED_S + 1:  # that is when it would be opened anew
        one.send()
        assert shown.shows(BLACK, 0, 0)()
    until(sending([three], lambda: "one: GONE" in shown.log.read_text()), 20)
    until(sending([one, three], shown.shows(RED, 0, 0)), 20)


# -- which screen


@pytest.fixture
def free() -> str:
    """A display that is not there."""
    with virtual_screen(800, 600) as display:
        return display


def manager(place: Path, *told: str) -> str:
    """Make a `systemctl` that says what a desktop has told its user's manager; returns a PATH with it."""
    program = place / "systemctl"
    lines = ["HOME=/home/pi", *told, "WAYLAND_DISPLAY=wayland-0"]
    program.write_text(
        "\n".join(["#!/bin/sh", '[ "$*" = "--user show-environment" ] || exit 1', *map("echo {}".format, lines)])
    )
    program.chmod(0o755)
    return f"{place}:{os.environ['PATH']}"


@contextlib.contextmanager
def showing(screen: str, place: Path, *flags: str, **environment: str) -> Iterator[tuple[Shown, Source]]:
    shown = Shown(screen, place, *flags, **environment)
    with contextlib.closing(Source(shown.endpoint, "one", RED)) as one:
        yield shown, one
        shown.process.send_signal(signal.SIGINT)
        shown.process.communicate(timeout=10)
    assert shown.process.returncode == 0, shown.log.read_text()


def test_hub_without_a_screen_goes_on_and_opens_its_windows_when_there_is_one(free: str, tmp_path: Path) -> None:
    with showing(free, tmp_path, PATH=manager(tmp_path)) as (shown, one):
        until(sending([one], lambda: "one: LIVE" in shown.log.read_text()), 20)
        until(lambda: "the windows open when there is one" in shown.log.read_text(), 20)
        with virtual_screen(800, 600, free):
            until(sending([one], shown.shows(RED, 0, 0)), 20)
            shown.process.send_signal(signal.SIGINT)
            shown.process.wait(10)
    assert shown.log.read_text().count("no screen at") == 1


@pytest.mark.parametrize(
    ("screen_size", "layout", "window", "size"),
    [
        ((400, 500), [], "one", (100, 75)),
        ((1000, 230), [], "one", (100, 75)),
        ((400, 500), ["--layout", "2x4"], "streamer", (400, 165)),
        ((1000, 230), ["--layout", "2x4"], "streamer", (460, 190)),
    ],
    ids=["windows on a narrow one", "windows on a low one", "grid on a narrow one", "grid on a low one"],
)
def test_windows_fit_a_small_screen(
    screen_size: tuple[int, int], layout: list[str], window: str, size: tuple[int, int], tmp_path: Path
) -> None:
    with virtual_screen(*screen_size) as display, showing(display, tmp_path, *layout) as (shown, one):
        asked = "getwindowgeometry", "--shell"

        def looks() -> tuple[int, ...]:
            with contextlib.suppress(subprocess.CalledProcessError):
                return tuple(map(int, re.findall(r"(?:WIDTH|HEIGHT)=(\d+)", shown.xdotool(window, *asked))))
            return ()

        until(sending([one], lambda: looks() == size), 10)


@pytest.mark.parametrize("layout", [[], ["--layout", "2x3"]], ids=["windows", "grid"])
def test_window_that_qt_takes_for_one_that_is_not_on_the_screen_is_painted(layout: list[str], tmp_path: Path) -> None:
    lose = screens._OPEN + screens._SHOW.replace("(19,", "(18,")  # UnmapNotify, which Qt believes just so
    with virtual_screen(800, 600) as display, showing(display, tmp_path, *layout) as (shown, one):

        def shows(colour: tuple[int, int, int]) -> bool:
            return bool(
                np.count_nonzero(np.abs(np.subtract(np.asarray(shown.screenshot()), colour)).max(axis=2) < 12) > 1000
            )

        until(sending([one], lambda: shows(RED)), 20)
        subprocess.run(
            [sys.executable, "-c", lose, str(shown.process.pid)], env={**os.environ, "DISPLAY": display}, check=True
        )
        one.paint(GREEN)
        until(sending([one], lambda: shows(GREEN)), 20)


def test_windows_wait_for_the_window_manager(tmp_path: Path) -> None:
    with bare_screen(800, 600) as display, showing(display, tmp_path) as (shown, one):
        until(sending([one], lambda: f"no window manager at {display}: " in shown.log.read_text()), 20)
        assert not shown.is_open("one")
        with window_manager(display):
            until(sending([one], shown.shows(RED, 0, 0)), 10)
            shown.process.send_signal(signal.SIGINT)
            shown.process.wait(10)
    assert shown.log.read_text().count("no window manager") == 1


def test_screen_that_never_gets_a_window_manager_is_used_without(
    free: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(screens, "_MANAGER_WITHIN_S", 0.8)
    caplog.set_level("INFO")
    with bare_screen(800, 600, free) as display:
        monkeypatch.setenv("DISPLAY", display)
        monkeypatch.setenv("PATH", str(tmp_path))
        began = time.monotonic()
        assert screens.wait_for_screen(os.environ, threading.Event().wait) == (800, 600)
        assert time.monotonic() - began > 0.8
    assert caplog.messages == [
        f"no window manager at {display}: the windows open when there is one, in 1 s at the latest"
    ]


def test_hub_that_never_gets_a_screen_ends_as_any(free: str, tmp_path: Path) -> None:
    with showing(free, tmp_path, PATH=manager(tmp_path)) as (shown, one):
        until(sending([one], lambda: f"no screen at {free}: the windows" in shown.log.read_text()), 20)


@pytest.mark.parametrize("attempt", range(3))  # that what is being decoded is hit is likely, not certain
def test_screen_that_goes_away_ends_the_hub_without_a_crash(attempt: int, tmp_path: Path) -> None:
    # OpenCV decodes, as where Debian's packages are: it is what Qt's exit would destroy under the threads that decode.
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['simplejpeg'] = None")
    noise = np.random.default_rng(attempt).integers(0, 255, (1440, 2560, 3), np.uint8)
    with contextlib.ExitStack() as stack:
        with virtual_screen(800, 600) as display:
            shown = Shown(display, tmp_path, PYTHONPATH=str(tmp_path))
            stack.callback(shown.close)
            names = "one", "two", "three", "four"
            sources = [stack.enter_context(contextlib.closing(Source(shown.endpoint, name, noise))) for name in names]
            until(sending(sources, lambda: all(map(shown.is_open, names))), 20)
        until(sending(sources, lambda: shown.process.poll() is not None), 10)
    assert shown.process.returncode == 1, shown.log.read_text()


@pytest.mark.parametrize(("platform", "is_closed"), [("linux", True), ("darwin", False)])
def test_window_that_is_minimised_on_a_mac_is_not_closed(
    platform: str, is_closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible = True
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(windows, "_CLOSED_S", -1.0)
    monkeypatch.setattr(windows, "_is_visible", lambda _: visible)
    closing = windows._Closing()
    assert not closing.look("one")
    visible = False
    assert (closing.look("one"), closing.is_away("one")) == (is_closed, not is_closed)
    visible = True
    assert not closing.look("one")
    assert not closing.is_away("one"), "it is shown again"


def test_of_what_a_desktop_has_told_only_the_screen_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "HOME=/home/pi\nDISPLAY=:5\nXAUTHORITY=/run/authority\nWAYLAND_DISPLAY=wayland-0\n"

    def run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        is_asked = command[0] == "systemctl"
        out = told if is_asked else "800 600 1"
        return subprocess.CompletedProcess(command, 0 if is_asked or "XAUTHORITY" in environment else 1, out, "")

    monkeypatch.setattr("streamer.screen._run", run)
    environment = {"HOME": "/root", "DISPLAY": ":1"}
    find(environment)
    assert environment == {"HOME": "/root", "DISPLAY": ":5", "XAUTHORITY": "/run/authority"}


def test_screen_and_desktop_that_do_not_answer_are_no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired(command, 5)

    monkeypatch.setattr("streamer.screen._run", run)
    with pytest.raises(TransportError, match=r"^no screen at :1 \(it does not answer\)$"):
        find({"DISPLAY": ":1"})


def test_screen_that_does_not_answer_holds_nobody_up(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        number = next(number for number in range(100, 200) if can_listen(stack, 6000 + number))
        shown, one = stack.enter_context(showing(f"127.0.0.1:{number}", tmp_path))
        until(sending([one], lambda: "one: LIVE" in shown.log.read_text()), 20)
        began = time.monotonic()
        shown.process.send_signal(signal.SIGINT)
        shown.process.wait(10)
        assert time.monotonic() - began < 2


def can_listen(stack: contextlib.ExitStack, port: int) -> bool:
    """Listen there until the stack ends, and answer nobody; False where another program does."""
    try:
        stack.enter_context(socket.create_server(("127.0.0.1", port)))
    except OSError:
        return False
    return True


def test_windows_open_where_the_user_s_desktop_is(screen: str, free: str, tmp_path: Path) -> None:
    with showing(screen, tmp_path, DISPLAY=free, PATH=manager(tmp_path, f"DISPLAY={screen}")) as (shown, one):
        until(sending([one], shown.shows(RED, 0, 0)), 20)


def test_screen_that_is_named_comes_before_the_desktop_s(screen: str, free: str, tmp_path: Path) -> None:
    environment = {"DISPLAY": screen, "PATH": manager(tmp_path, f"DISPLAY={free}")}
    before = environment.copy()
    find(environment)
    assert environment == before
    environment["DISPLAY"] = f"{free}.7"
    with pytest.raises(TransportError, match=f"^no screen at {re.escape(free)}.7$"):
        find(environment)
    assert environment == {**before, "DISPLAY": f"{free}.7"}, "next time it is looked for there first"
    environment |= {"DISPLAY": free, "PATH": manager(tmp_path, f"DISPLAY={screen}", "XAUTHORITY=/run/user/7/.auth")}
    find(environment)
    assert (environment["DISPLAY"], environment["XAUTHORITY"]) == (screen, "/run/user/7/.auth")


def test_screen_that_keeps_strangers_out_is_opened_with_the_desktop_s_key(free: str, tmp_path: Path) -> None:
    # Xau(3): a family (any), an address, a display's number, a method's name and its data, each after its length.
    parts = b"", free.removeprefix(":").encode(), b"MIT-MAGIC-COOKIE-1", bytes(range(16))
    keys = tmp_path / "keys"
    keys.write_bytes(b"\xff\xff" + b"".join(len(part).to_bytes(2) + part for part in parts))
    environment = {"DISPLAY": free, "PATH": str(tmp_path)}  # without systemctl
    with pytest.raises(TransportError, match=f"^no screen at {free}$"):
        find(environment)
    with bare_screen(800, 600, free, "-auth", str(keys)):
        with pytest.raises(TransportError, match=rf"^no screen at {free} \(.*[Aa]uthori.*\)$"):
            find(environment)
        environment["PATH"] = manager(tmp_path, f"DISPLAY={free}", f"XAUTHORITY={keys}")
        find(environment)
    assert environment["XAUTHORITY"] == str(keys)


# -- all in one window


class Wall(Shown):
    """A hub that shows all cameras in one window, in two rows of three."""

    ROWS, COLUMNS = 2, 3

    def __init__(self, screen: str, place: Path, layout: str = f"{ROWS}x{COLUMNS}", *flags: str) -> None:
        super().__init__(screen, place, "--layout", layout, *flags)

    def tile(self, row: int, column: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """What is shown of a camera, without its caption: RGB of shape (height, width, 3); nothing before it is."""
        try:
            # The pointer is asked, since xdotool reports a framed window lower than it is.
            pointer = self.xdotool("streamer", "mousemove", "--window", "%1", "0", "0", "getmouselocation", "--shell")
            geometry = self.xdotool("streamer", "getwindowgeometry", "--shell")
        except subprocess.CalledProcessError:  # there is no window yet
            return np.zeros((1, 1, 3), np.uint8)
        left, top, width, height = (
            int(number)
            for names, text in (("X|Y", pointer), ("WIDTH|HEIGHT", geometry))
            for number in re.findall(rf"^(?:{names})=(-?\d+)$", text, re.MULTILINE)
        )
        picture = self.screenshot().crop((left, top, left + width, top + height))
        box = (
            column * picture.width // self.COLUMNS + 4,
            row * picture.height // self.ROWS + 4,
            (column + 1) * picture.width // self.COLUMNS - 4,
            int((row + 0.85) * picture.height / self.ROWS),
        )
        return np.asarray(picture.crop(box))

    def has(self, colour: tuple[int, int, int], row: int, column: int) -> Callable[[], bool]:
        """Whether a camera's picture stands in the middle of its tile."""

        def look() -> bool:
            tile = self.tile(row, column)
            return bool(np.abs(np.subtract(tile[tile.shape[0] // 3, tile.shape[1] // 2], colour)).max() < 12)

        return look


@pytest.fixture
def wall(screen: str, tmp_path: Path) -> Iterator[Wall]:
    wall = Wall(screen, tmp_path)
    yield wall
    wall.close()


@pytest.fixture
def senders(wall: Wall) -> Iterator[dict[str, Source]]:
    with four_sources(wall.endpoint) as senders:
        yield senders


def test_grid_shows_every_camera_in_its_place_and_state(wall: Wall, senders: dict[str, Source]) -> None:
    everyone = list(senders.values())
    for colour, row, column in ((RED, 0, 0), (GREEN, 0, 2), (BLUE, 1, 1), (WHITE, 1, 2)):
        until(sending(everyone, wall.has(colour, row, column)), 20)
    for row, column in ((0, 1), (1, 0)):
        tile = wall.tile(row, column)
        assert tuple(tile[0, 0]) == DARK
        assert tile.max() > 230, "it is waited for"

    others = [sender for sender in everyone if sender is not senders["five"]]
    until(sending(others, lambda: "five: STALE" in wall.log.read_text()), 20)
    until(sending(others, lambda: np.ptp(wall.tile(1, 1), axis=2).max() == 0), 20)
    tile = wall.tile(1, 1)
    assert np.median(tile) < 60
    assert tile.max() > 230, "the age stands on it in white"
    assert wall.has(RED, 0, 0)(), "another camera is not touched"

    until(sending(others, wall.has(DARK, 1, 1)), 20)
    assert wall.tile(1, 1).max() > 230, "it is gone, and the tile says so"
    until(sending(everyone, wall.has(BLUE, 1, 1)), 20)


def test_resized_grid_fills_its_window(wall: Wall, senders: dict[str, Source]) -> None:
    one = senders["one"]
    until(sending([one], wall.has(RED, 0, 0)), 20)
    wall.xdotool("streamer", "windowsize", "780", "200")

    def is_laid_out() -> bool:
        tile = wall.tile(0, 0)
        red = np.abs(np.subtract(tile, RED, dtype=int)).max(2) < 12
        beside, inside = red[:, : tile.shape[1] // 6], red[4:-8, tile.shape[1] // 3 : -tile.shape[1] // 3]
        return tile.shape[1] > 220 and bool(inside.all()) and not beside.any()

    until(sending([one], is_laid_out), 20)


def test_grid_fills_the_screen_and_leaves_it(screen: str, tmp_path: Path) -> None:
    wall = Wall(screen, tmp_path, "2x3", "--full-screen")
    try:
        with four_sources(wall.endpoint) as senders:
            one = senders["one"]

            def fills() -> bool:
                size = wall.xdotool("streamer", "getwindowgeometry", "--shell") if wall.is_open("streamer") else ""
                return "WIDTH=800\nHEIGHT=600\n" in size

            until(sending([one], fills), 20)
            until(sending([one], wall.has(RED, 0, 0)), 20)
            wall.press("f", "streamer", sending([one], lambda: not fills()))
            wall.press("f", "streamer", sending([one], fills))
    finally:
        wall.close()


def test_click_shows_one_camera_alone_and_escape_all_again(wall: Wall, senders: dict[str, Source]) -> None:
    both = [senders["one"], senders["three"]]
    until(sending(both, wall.has(GREEN, 0, 2)), 20)
    wall.xdotool("streamer", "mousemove", "--window", "%1", "400", "50", "click", "1")
    until(sending(both, lambda: wall.has(GREEN, 0, 1)() and wall.has(GREEN, 1, 1)()), 20)
    wall.press("Escape", "streamer", sending(both, lambda: wall.has(RED, 0, 0)() and wall.has(GREEN, 0, 2)()))


@pytest.mark.parametrize("key", ["q", "alt+F4"])
def test_q_and_closing_the_grid_end_the_hub(wall: Wall, senders: dict[str, Source], key: str) -> None:
    until(sending([senders["one"]], wall.has(RED, 0, 0)), 20)
    wall.press(key, "streamer", lambda: wall.process.poll() is not None)
    out, _ = wall.process.communicate(timeout=10)
    assert wall.process.returncode == 0
    assert "Frames received: " in out


def test_cameras_that_the_grid_has_no_place_for_are_told(screen: str, tmp_path: Path) -> None:
    wall = Wall(screen, tmp_path, "1x3")
    try:
        until(lambda: wall.log.read_text().count("has no place among the 1x3 tiles and is not shown") == 2, 20)
        assert "four: has no place" in wall.log.read_text()
        assert "five: has no place" in wall.log.read_text()
    finally:
        wall.close()


def test_a_display_goes_on_while_the_system_allows_no_more_threads(no_more_threads: Callable[[], None]) -> None:
    display = windows._Display(cast("Any", None))
    display._note_opened()
    no_more_threads()
    display._show_lost(time.monotonic() + 20)
    assert len(display._show_at) == 1, "it is tried once more"
