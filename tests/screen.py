"""A screen that needs no hardware."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def virtual_screen(width: int, height: int, display: str = "", *flags: str) -> Iterator[str]:
    """Run an X server with a window manager, as on every desktop; yields its display's name, by default a free one."""
    with bare_screen(width, height, display, *flags) as found, window_manager(found):
        yield found


@contextmanager
def bare_screen(width: int, height: int, display: str = "", *flags: str) -> Iterator[str]:
    """Run an X server alone; yields its display's name, by default a free one."""
    reader, writer = os.pipe()
    # -r: no key repeats itself, else the one that ended a program's window goes on into the next one's.
    command = [
        "Xvfb",
        *([display] if display else []),
        "-displayfd",
        str(writer),
        "-screen",
        "0",
        f"{width}x{height}x24",
        "-nolisten",
        "tcp",
    ]
    with ExitStack() as running:
        server = running.enter_context(
            subprocess.Popen([*command, "-noreset", "-r", *flags], pass_fds=[writer], stderr=subprocess.DEVNULL)
        )
        running.callback(server.terminate)
        os.close(writer)
        with os.fdopen(reader) as lines:
            display = f":{lines.readline().strip()}"
        yield display


@contextmanager
def window_manager(display: str) -> Iterator[None]:
    """Run a window manager on a screen."""
    with subprocess.Popen(["openbox"], env={**os.environ, "DISPLAY": display}) as manager:
        try:
            yield
        finally:
            manager.terminate()
