"""All that the unmodified picamera2 lacks where no Pi is: a module for a screen, limits of a rate, controls at start.

python3 -m tests.vm.inside.shim send …      the streamer, with that in place
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

__all__ = ["OFFERED", "Picamera2", "picamera2"]

kms: Any = ModuleType("kms")
kms.PixelFormats = MagicMock()
sys.modules["kms"] = kms

from libcamera import controls  # noqa: E402
from picamera2 import Picamera2  # noqa: E402 - it imports kms

from streamer.cameras import picamera2  # noqa: E402

# vimc has no rate to be set.
OFFERED = {
    "FrameDurationLimits": (controls.FrameDurationLimits, SimpleNamespace(min=33333, max=1000000, default=33333))
}


def _set(camera: Any, known: dict[str, Any]) -> None:
    vars(camera)["camera_ctrl_info"] = OFFERED | known


# picamera2 begins with an empty table whenever it asks a camera what it has.
Picamera2.camera_ctrl_info = property(lambda camera: vars(camera)["camera_ctrl_info"], _set)

_start = Picamera2.start_


def _start_and_set(camera: Any) -> None:
    wished = camera.controls.make_dict()
    _start(camera)
    camera.set_controls({name: value for name, value in wished.items() if name not in OFFERED})


# libcamera's part for vimc takes controls with a request for a frame, and lets go of those with which it is started.
Picamera2.start_ = _start_and_set

if __name__ == "__main__":
    from streamer.cli import main

    sys.exit(main())
