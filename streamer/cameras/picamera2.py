"""The Pi's own camera through picamera2; the pictures leave it as JPEG, no raw frame is copied in Python.

Boards up to the Pi 4 encode in hardware (`MJPEGEncoder`). A Pi 5 has no such encoder: under the same name picamera2
gives a software one that delays by eight frames, so there it is `JpegEncoder` on the YUV planes.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import TYPE_CHECKING, Any

from streamer.errors import CameraError, MissingExtraError
from streamer.mailbox import Mailbox

try:
    from picamera2 import Picamera2
    from picamera2.encoders import JpegEncoder, LibavMjpegEncoder, MJPEGEncoder
    from picamera2.outputs import Output
except ImportError as error:
    raise MissingExtraError("the camera 'picamera2'", "picamera2", "python3-picamera2") from error

if TYPE_CHECKING:
    from typing import Self

_WARM_UP_S = 1.0  # exposure and white balance settle
_NO_FRAME_S = 5.0
_END_OF_IMAGE = b"\xff\xd9"
# The hardware encoder takes a bit rate, not a quality: bits a pixel that give about what libjpeg's quality gives.
_BITS_PER_PIXEL = {50: 0.8, 75: 1.3, 85: 1.9, 95: 3.6, 100: 6.0}


class _Newest(Output):  # type: ignore[misc]
    """Keeps the newest picture. Called with the encoder's lock held, so it only swaps."""

    def __init__(self) -> None:
        super().__init__()
        self.mailbox: Mailbox[tuple[bytes, int]] = Mailbox()

    def outputframe(
        self,
        frame: bytes,
        keyframe: bool = True,  # noqa: ARG002, FBT001, FBT002 - picamera2's signature
        timestamp: int | None = None,
        packet: object = None,  # noqa: ARG002
        audio: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        if not audio:
            self.mailbox.put("", (frame, timestamp or 0))


class PiCamera:
    """The camera on the Pi's ribbon cable.

    Args:
        size: (width, height) in pixels.
        fps: frames per second.
        quality: of the JPEG, 1 to 100.

    Raises:
        CameraError: there is no camera, or another program has it.
    """

    def __init__(self, size: tuple[int, int], fps: float, quality: int) -> None:
        if not Picamera2.global_camera_info():
            raise CameraError("picamera2: no camera found; is the ribbon cable in, and the right way round?")
        try:
            self._camera: Any = Picamera2()
        except (RuntimeError, IndexError) as error:
            raise CameraError(f"picamera2: {error}; does another program use the camera?") from error
        self._newest = _Newest()
        try:
            self._start(size, fps, quality)
            ready = time.monotonic() + _WARM_UP_S
            while time.monotonic() < ready:
                self.read()
        except (RuntimeError, OSError) as error:
            self.__exit__()
            raise CameraError(f"picamera2: {error}") from error
        except CameraError:
            self.__exit__()
            raise

    def _start(self, size: tuple[int, int], fps: float, quality: int) -> None:
        configuration = self._camera.create_video_configuration(
            main={"size": size, "format": "YUV420"}, controls={"FrameRate": fps}
        )
        self._camera.configure(configuration)
        if MJPEGEncoder is LibavMjpegEncoder:
            self._encoder: Any = JpegEncoder(num_threads=2, q=quality)
        else:
            self._encoder = MJPEGEncoder(bitrate=_bit_rate(size, fps, quality))
        self._camera.start_recording(self._encoder, self._newest)

    def read(self) -> tuple[bytes, int]:
        """Wait for the next picture and return (JPEG, wall clock in ns when the sensor was read).

        Raises:
            CameraError: the camera has stopped.
        """
        newest = self._newest.mailbox.take(_NO_FRAME_S)
        if newest is None:
            raise CameraError(f"picamera2: no picture for {_NO_FRAME_S:g} s")
        jpeg, timestamp_us = newest
        if not jpeg.endswith(_END_OF_IMAGE):  # the hardware may pad
            jpeg = jpeg[: jpeg.rfind(_END_OF_IMAGE) + 2]
        # The sensor's stamp counts from boot, picamera2's from its own first frame.
        booted_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return jpeg, booted_ns + ((self._encoder.firsttimestamp or 0) + timestamp_us) * 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Also when the camera never started: its encoder may have, and has threads.
        with contextlib.suppress(RuntimeError):  # an encoder that had failed to start
            self._camera.stop_recording()
        self._camera.close()


def _bit_rate(size: tuple[int, int], fps: float, quality: int) -> int:
    """Translate a JPEG quality to bits per second, between the points of the table in straight lines."""
    bits = _BITS_PER_PIXEL[50]
    for (low, low_bits), (high, high_bits) in itertools.pairwise(_BITS_PER_PIXEL.items()):
        if quality >= low:
            bits = low_bits + min(1.0, (quality - low) / (high - low)) * (high_bits - low_bits)
    return int(size[0] * size[1] * fps * bits)
