"""Which Raspberry Pi this is, and whether it should encode JPEGs in hardware."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from streamer.errors import ConfigError

_DEVICE_TREE = Path("/proc/device-tree")
# Whether the chip, which the device tree names after the board, has a JPEG encoder that picamera2 can use: through the
# kernel's driver bcm2835-codec, on 32 and 64 bits alike.
_ENCODES_IN_HARDWARE = {
    "brcm,bcm2835": True,  # 1, Zero, Zero W, CM1: one slow core, which software encoding would use up
    "brcm,bcm2836": True,  # 2: four slow cores
    "brcm,bcm2837": True,  # 3, 3+, CM3, Zero 2 W, late 2: keeps the cores free, and a Zero 2 W without a fan cool
    "brcm,bcm2711": True,  # 4, 400, CM4: the cores could do it, but the encoder uses the sensor's buffer without a copy
    "brcm,bcm2712": False,  # 5, 500, CM5: the chip has no encoder, but fast cores
}
# MAX_W_CODEC and MAX_H_CODEC of that driver, which silently crops larger pictures.
_HARDWARE_SIDE_MAX = 1920


class Board(NamedTuple):
    """The machine that a camera is connected to."""

    name: str
    encodes_in_hardware: bool | None  # None: unknown

    @classmethod
    def here(cls) -> Board:
        """Identify this machine by its device tree."""
        try:
            model = (_DEVICE_TREE / "model").read_text(errors="replace").strip("\0 \n")
            chips = (_DEVICE_TREE / "compatible").read_text(errors="replace").split("\0")
        except OSError:
            return cls("no Raspberry Pi", None)
        known = [_ENCODES_IN_HARDWARE[chip] for chip in chips if chip in _ENCODES_IN_HARDWARE]
        return cls(model.partition(" Rev ")[0], known[0] if known else None)

    def uses_hardware(self, wish: str, size: tuple[int, int]) -> bool:
        """Decide whether to use the board's JPEG encoder.

        Args:
            wish: `auto`, `hardware` or `software`.
            size: (width, height) of the pictures, in pixels.

        Raises:
            ConfigError: the wish is `hardware`, and that is impossible.
        """
        if wish == "software":
            return False
        fits = max(size) <= _HARDWARE_SIDE_MAX
        if wish == "hardware":
            if self.encodes_in_hardware is False:
                raise ConfigError(f"encoder is 'hardware': {self.name} has none: it must be auto or software")
            if not fits:
                raise ConfigError(
                    f"encoder is 'hardware': it makes pictures up to {_HARDWARE_SIDE_MAX}x{_HARDWARE_SIDE_MAX}: "
                    "it must be auto or software, or the size smaller"
                )
            return True
        return bool(self.encodes_in_hardware) and fits
