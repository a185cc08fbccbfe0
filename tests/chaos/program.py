"""A command of the package that can be looked into and hurt: `python -m tests.chaos.program hub|send …`.

It is the command itself, by `streamer.cli.main`, with two things added, both by the environment:

- `CHAOS_FRAMES`: a file to which a hub appends a line for every frame that it takes: monotonic ns, camera, start of
  the sender, its count, when it was captured in ns since 1970. Nothing that is counted here can be missing there.
- `CHAOS_FAULTS`: a folder in which a file makes something go wrong for as long as it is there: `camera`, with what the
  camera does (`hangs`, `gone`, `rubbish`, `black`, `same`), or `receiving`, `wall`, `sending`, a thread that is stuck.
"""

from __future__ import annotations

import functools
import io
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from streamer import cli
from streamer.cameras.pattern import Pattern
from streamer.errors import CameraError
from streamer.hub import Hub
from streamer.presence import Presence
from streamer.sender import _Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamer.frame import Frame

POLL_S = 0.02


def record(file: str) -> None:
    """Have every frame that the hub takes written down."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    add = Presence.add

    @functools.wraps(add)
    def adding(self: Presence, frame: Frame, *arguments: Any) -> Any:
        change = add(self, frame, *arguments)
        told = time.monotonic_ns(), frame.camera, frame.start, frame.seq, frame.captured_ns
        os.write(descriptor, (" ".join(map(str, told)) + "\n").encode())
        return change

    Presence.add = adding  # type: ignore[assignment]


def wedge(owner: type, method: str, fault: Path) -> None:
    """Have a method never return while the fault is there."""
    works: Callable[..., Any] = getattr(owner, method)

    def wedged(*arguments: Any, **options: Any) -> Any:
        while fault.exists():
            time.sleep(POLL_S)
        return works(*arguments, **options)

    setattr(owner, method, wedged)


def sicken(fault: Path) -> None:
    """Have the test card do what is asked of it."""
    read = Pattern.read
    black = io.BytesIO()
    Image.new("RGB", (320, 240)).save(black, "JPEG")
    last = b""

    def reading(self: Pattern) -> tuple[bytes, int]:
        nonlocal last
        jpeg, captured_ns = read(self)
        try:
            illness = fault.read_text()
        except OSError:
            illness = ""
        match illness:
            case "hangs":
                while fault.exists():
                    time.sleep(POLL_S)
            case "gone":
                raise CameraError("pattern: the camera has been unplugged")
            case "rubbish":
                jpeg = os.urandom(len(jpeg))
            case "black":
                jpeg = black.getvalue()
            case "same":
                jpeg = last or jpeg
        last = jpeg
        return jpeg, captured_ns

    Pattern.read = reading  # type: ignore[method-assign]


def main() -> int:
    if frames := os.environ.get("CHAOS_FRAMES"):
        record(frames)
    if faults := os.environ.get("CHAOS_FAULTS"):
        place = Path(faults)
        wedge(Hub, "_tick", place / "receiving")
        wedge(Hub, "cameras", place / "wall")
        wedge(_Link, "receive", place / "sending")
        sicken(place / "camera")
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
