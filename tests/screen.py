"""A screen that needs no hardware."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tests.conftest import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def virtual_screen(width: int, height: int, display: str = "") -> Iterator[str]:
    """Run an X server with a window manager, as on every desktop; yields its display's name, by default a free one."""
    with bare_screen(width, height, display) as found, window_manager(found):
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
    """Run a window manager on a screen, and wait until it minds windows."""
    environment = {**os.environ, "DISPLAY": display}
    asked = ["xdotool", "get_num_desktops"]  # which it sets up last
    with subprocess.Popen(["openbox"], env=environment) as manager:
        try:
            until(
                lambda: subprocess.run(asked, env=environment, check=False, capture_output=True).stdout.strip() > b"0"
            )
            yield
        finally:
            manager.terminate()
