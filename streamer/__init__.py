"""Cameras of a fleet on one live wall, over imagezmq's wire protocol."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zmq as zmq

    from streamer.errors import (
        CameraError,
        CodecError,
        ConfigError,
        MissingExtraError,
        StreamerError,
        TransportError,
        WireError,
    )
    from streamer.frame import Frame
    from streamer.hub import Hub
    from streamer.imagezmq import ImageHub, ImageSender
    from streamer.pictures import Pictures
    from streamer.sender import Sender

__version__ = "0.1.0"

__all__ = [
    "CameraError",
    "CodecError",
    "ConfigError",
    "Frame",
    "Hub",
    "ImageHub",
    "ImageSender",
    "MissingExtraError",
    "Pictures",
    "Sender",
    "StreamerError",
    "TransportError",
    "WireError",
]

_MODULES = {
    "Frame": "frame",
    "Hub": "hub",
    "ImageHub": "imagezmq",
    "ImageSender": "imagezmq",
    "Pictures": "pictures",
    "Sender": "sender",
}


if not TYPE_CHECKING:  # to a type checker, a module with this function has every name

    def __getattr__(name: str) -> object:
        # Imported when first used, so that a command starts without what it does not need.
        if name == "zmq":  # which imagezmq exports: its users write imagezmq.zmq.RCVTIMEO
            return importlib.import_module("zmq")
        if name not in __all__:
            raise AttributeError(f"module 'streamer' has no attribute '{name}'")
        return getattr(importlib.import_module(f"streamer.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    # For help() and completion, which see only what was used already.
    return sorted({*globals(), *__all__})
