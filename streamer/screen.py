"""Finds the screen for the windows: an X server, or the one that a Wayland desktop has for X programs.

It has to be found before OpenCV is used, since without one Qt ends the whole process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import subprocess  # nosec B404
import sys
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from streamer.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence

_log = logging.getLogger(__name__)
_NAMES = ("DISPLAY", "XAUTHORITY")
_WITHIN_S = 5.0
_EVERY_S = 5.0  # between two looks for a screen
_MANAGER_EVERY_S = 0.5  # between two looks for its window manager
_MANAGER_WITHIN_S = 15.0  # after which a screen is taken to have none
_MANAGER_STARTS_S = 2.0  # from when it says that it is there until it has its hands free for windows
_ELSEWHERE = 1920, 1080  # on other systems, which always have a screen, in pixels
# In a child process: libxcb writes to standard error itself, and may wait for a server that hangs.
# A window manager names itself in a property of the root window:
# https://specifications.freedesktop.org/wm-spec/latest/ (Root Window Properties).
_OPEN = """
import sys
from ctypes import CDLL, POINTER, byref, c_char_p, c_int, c_long, c_ulong, c_void_p
x11 = CDLL("libX11.so.6")
x11.XOpenDisplay.restype = c_void_p
x11.XDefaultRootWindow.restype = x11.XInternAtom.restype = c_ulong
display = c_void_p(x11.XOpenDisplay(None))
if not display:
    raise SystemExit(1)
root = x11.XDefaultRootWindow(display)
def values(window, name):
    atom = x11.XInternAtom(display, c_char_p(name), 0)
    kind, width, count, left, value = c_ulong(), c_int(), c_ulong(), c_ulong(), POINTER(c_ulong)()
    x11.XGetWindowProperty(
        display, c_ulong(window), c_ulong(atom), c_long(0), c_long(4096), 0, c_ulong(0),
        byref(kind), byref(width), byref(count), byref(left), byref(value),
    )
    return value[: count.value] if width.value == 32 else []
"""
_LOOK = """
managed = int(bool(values(root, b"_NET_SUPPORTING_WM_CHECK")))
print(x11.XDisplayWidth(display, 0), x11.XDisplayHeight(display, 0), managed)
"""
# An XMapEvent, padded as an XEvent: type, serial, send_event, display, event, window, override_redirect. To whom
# exposures go (1 << 15), which is the program alone; the window manager need not hear of it.
_SHOW = """
for window in values(root, b"_NET_CLIENT_LIST"):
    if values(window, b"_NET_WM_PID") == [int(sys.argv[1])]:
        event = (c_long * 24)(19, 0, 1, 0, window, window)
        x11.XSendEvent(display, c_ulong(window), 0, c_long(1 << 15), byref(event))
x11.XCloseDisplay(display)
"""


class Screen(NamedTuple):
    """A screen that windows can be opened on.

    Attributes:
        width: of all its monitors together, in pixels.
        height: likewise.
        is_managed: whether a window manager is there yet: windows that were opened before it now and then stay black or
            of the wrong size once it frames them.
    """

    width: int
    height: int
    is_managed: bool


def wait_for_screen(environment: MutableMapping[str, str], ended: Callable[[float], bool]) -> tuple[int, int] | None:
    """Wait until there is a screen for windows, with its window manager if it has one, and say what is waited for.

    Args:
        environment: should be `os.environ`; the variables for the screen are set in it.
        ended: waits for so many seconds at most, and returns whether it is time to end.

    Returns:
        (width, height) in pixels; None when it is time to end.
    """
    if platform.system() != "Linux":
        return _ELSEWHERE
    found: list[tuple[int, int]] = []
    given_up = threading.Event()

    def look() -> None:
        told, since = "", None
        while not given_up.is_set():
            try:
                width, height, is_managed = find(environment)
            except TransportError as error:
                if str(error) != told:
                    _log.warning("%s: the windows open when there is one, the page is there meanwhile", error)
                told, since = str(error), None
                given_up.wait(_EVERY_S)
                continue
            now = time.monotonic()
            if is_managed or (since is not None and now - since >= _MANAGER_WITHIN_S):
                if is_managed and (told or since is not None):  # it was not there at first
                    given_up.wait(_MANAGER_STARTS_S)
                found.append((width, height))
                return
            if since is None:
                since = now
                _log.info(
                    "no window manager at %s: the windows open when there is one, in %.0f s at the latest",
                    environment["DISPLAY"],
                    _MANAGER_WITHIN_S,
                )
            given_up.wait(_MANAGER_EVERY_S)

    # In a thread: a screen may answer slowly, and signals and the watchdog must not wait for it.
    threading.Thread(target=look, name="screen", daemon=True).start()
    try:
        while not found:
            if ended(0.05):
                return None
        return found[0]
    finally:
        given_up.set()


def find(environment: MutableMapping[str, str]) -> Screen:
    """Find a screen, and set the variables for it in `environment`, which should be `os.environ`.

    It is the one named there, or else the one of the user's desktop, which a desktop reports to the user's service
    manager when it starts (`import-environment` in systemctl(1)).

    Raises:
        TransportError: there is none now.
    """
    named = dict(environment)
    try:
        return _look_at(named)
    except _RefusedError as refused:
        why = str(refused)
    told = _told(named)
    with contextlib.suppress(_RefusedError):
        if told:
            screen = _look_at({**named, **told})
            environment.update(told)
            return screen
    raise TransportError(f"no screen at {named.get('DISPLAY', 'any DISPLAY')}{f' ({why})' if why else ''}")


class _RefusedError(Exception):
    """No window can be opened; its text says why, empty if unknown."""


def show_windows() -> None:
    """Have each window of this process painted that Qt takes for one that is not on the screen.

    When much happens at once, Qt 5 now and then loses the X server's message that a window is there, and never paints
    it. So each is told again, which does no harm to the others. This takes a moment, up to five seconds.
    """
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        _run([sys.executable, "-I", "-c", _OPEN + _SHOW, str(os.getpid())], None)


def _look_at(environment: Mapping[str, str]) -> Screen:
    """Look at a screen; raise _RefusedError where no window can be opened."""
    try:
        done = _run([sys.executable, "-I", "-c", _OPEN + _LOOK], environment)
    except subprocess.TimeoutExpired:
        raise _RefusedError("it does not answer") from None
    except OSError as error:
        raise _RefusedError(str(error)) from None
    if done.returncode != 0:
        raise _RefusedError(done.stderr.strip().rpartition("\n")[2])
    width, height, is_managed = map(int, done.stdout.split())
    return Screen(width, height, bool(is_managed))


def _told(environment: Mapping[str, str]) -> dict[str, str]:
    """Ask the user's service manager for the desktop's screen; empty if there is no manager or no desktop."""
    try:
        done = _run(["systemctl", "--user", "show-environment"], environment)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs if name in _NAMES}


def _run(command: Sequence[str], environment: Mapping[str, str] | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # nosec B603 # no shell, and nothing in it is anybody's
        command, env=environment, capture_output=True, text=True, errors="replace", timeout=_WITHIN_S, check=False
    )
