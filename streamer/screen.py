"""Finds the screen for the windows: an X server, or the one that a Wayland desktop has for X programs.

It has to be found before OpenCV is used, since without one Qt ends the whole process.
"""

from __future__ import annotations

import subprocess  # nosec B404
import sys
from typing import TYPE_CHECKING

from streamer.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

_NAMES = ("DISPLAY", "XAUTHORITY")
_WITHIN_S = 5.0
# In a child process: libxcb writes to standard error itself, and may wait for a server that hangs.
_ASK = """
import ctypes
x11 = ctypes.CDLL("libX11.so.6")
x11.XOpenDisplay.restype = ctypes.c_void_p
raise SystemExit(not x11.XOpenDisplay(None))
"""


def find(environment: MutableMapping[str, str]) -> None:
    """Find a screen, and set the variables for it in `environment`, which should be `os.environ`.

    It is the one named there, or else the one of the user's desktop, which a desktop reports to the user's service
    manager when it starts (`import-environment` in systemctl(1)).

    Raises:
        TransportError: there is none now.
    """
    named = dict(environment)
    why = _refusal(named)
    if why is None:
        return
    told = _told(named)
    if not told or _refusal({**named, **told}) is not None:
        raise TransportError(f"no screen at {named.get('DISPLAY', 'any DISPLAY')}{f' ({why})' if why else ''}")
    environment.update(told)


def _refusal(environment: Mapping[str, str]) -> str | None:
    """Return why no window can be opened, empty if unknown; None if one can."""
    try:
        done = _run([sys.executable, "-I", "-c", _ASK], environment)
    except subprocess.TimeoutExpired:
        return "it does not answer"
    except OSError as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]


def _told(environment: Mapping[str, str]) -> dict[str, str]:
    """Ask the user's service manager for the desktop's screen; empty if there is no manager or no desktop."""
    try:
        done = _run(["systemctl", "--user", "show-environment"], environment)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: value for name, _, value in pairs if name in _NAMES}


def _run(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # nosec B603 # no shell, and nothing in it is anybody's
        command, env=environment, capture_output=True, text=True, errors="replace", timeout=_WITHIN_S, check=False
    )
