"""Finds the screen for the windows: an X server, or the one that a Wayland desktop has for X programs.

It has to be found before OpenCV is used, since without one Qt ends the whole process.
"""

from __future__ import annotations

import contextlib
import os
import subprocess  # nosec B404
import sys
from typing import TYPE_CHECKING, NamedTuple

from streamer.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

_NAMES = ("DISPLAY", "XAUTHORITY")
_WITHIN_S = 5.0
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
