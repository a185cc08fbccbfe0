"""Which Raspberry Pi this is, and where it makes its JPEGs best."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from streamer.errors import ConfigError

_DEVICE_TREE = Path("/proc/device-tree")
# By the chip, which the device tree names after the board: whether it has a JPEG encoder that picamera2 can use. 32 or
# 64 bits make no difference: the encoder is reached through the kernel's driver bcm2835-codec, which both have.
_ENCODES_IN_HARDWARE = {
    "brcm,bcm2835": True,  # 1, Zero, Zero W, CM1: they have one slow core, which software would take whole
    "brcm,bcm2836": True,  # 2: four cores, slow ones
    "brcm,bcm2837": True,  # 3, 3+, CM3, Zero 2 W, late 2: the cores stay free, and a Zero 2 W without a fan cool
    "brcm,bcm2711": True,  # 4, 400, CM4: the cores could do it, but the encoder takes the sensor's buffer uncopied
    "brcm,bcm2712": False,  # 5, 500, CM5: the chip has no encoder any more, and cores fast enough
}
# MAX_W_CODEC and MAX_H_CODEC of that driver, which cuts what is larger without a word.
_HARDWARE_SIDE_MAX = 1920


class Board(NamedTuple):
    """The machine that a camera is plugged into."""

    name: str
    encodes_in_hardware: bool | None  # None: not known

    @classmethod
    def here(cls) -> Board:
        """Ask the device tree of this machine."""
        try:
            model = (_DEVICE_TREE / "model").read_text(errors="replace").strip("\0 \n")
            chips = (_DEVICE_TREE / "compatible").read_text(errors="replace").split("\0")
        except OSError:
            return cls("no Raspberry Pi", None)
        known = [_ENCODES_IN_HARDWARE[chip] for chip in chips if chip in _ENCODES_IN_HARDWARE]
        return cls(model.partition(" Rev ")[0], known[0] if known else None)

    def uses_hardware(self, wish: str, size: tuple[int, int]) -> bool:
        """Say whether the JPEGs are to be made by the board's encoder.

        Args:
            wish: `auto`, `hardware` or `software`.
            size: (width, height) of the pictures in pixels.

        Raises:
            ConfigError: `hardware` is wished for where it cannot be.
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
