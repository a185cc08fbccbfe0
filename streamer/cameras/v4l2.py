"""Finds out from the kernel why a V4L2 device cannot be used: OpenCV only says that it could not open it.

It makes two requests of <linux/videodev2.h>, VIDIOC_QUERYCAP and VIDIOC_REQBUFS; neither changes anything.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from streamer.errors import CameraError

# struct v4l2_capability: driver, card, bus_info, version, capabilities, device_caps, reserved
_CAPABILITY = struct.Struct("16s32s32sIII12x")
# struct v4l2_requestbuffers: count, type, memory, capabilities, flags, reserved
_REQUEST = struct.Struct("IIIIB3x")
# The kernel's _IOR and _IOWR: direction, size of the argument, letter, number.
_QUERYCAP = 2 << 30 | _CAPABILITY.size << 16 | ord("V") << 8 | 0
_REQBUFS = 3 << 30 | _REQUEST.size << 16 | ord("V") << 8 | 8
_CAN_CAPTURE = 0x0000_0001
_HAS_DEVICE_CAPS = 0x8000_0000
_BUFFERS_OF_CAPTURE = 1
_MEMORY_MAPPED = 1
_MANY = "a camera often has several devices; ls /dev/v4l/by-id shows those ending in index0"


def check(source: str, path: str) -> None:
    """Check that this process can use a device as a camera now.

    Args:
        source: the camera's name for the error, as in `usb:0`.
        path: of the device, as in `/dev/video0`.

    Raises:
        CameraError: it does not exist, is denied, no camera, or in use.
    """
    try:
        device = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CameraError(f"{source}: {_why_closed(path, error)}") from error
    try:
        _check_capture(source, path, device)
        # If another program uses the camera, opening succeeds but requesting buffers fails. A request for none only
        # frees those of this descriptor, which has none.
        fcntl.ioctl(device, _REQBUFS, _REQUEST.pack(0, _BUFFERS_OF_CAPTURE, _MEMORY_MAPPED, 0, 0))
    except OSError as error:
        if error.errno in {errno.EBUSY, errno.ENODEV}:
            raise CameraError(f"{source}: {_why_closed(path, error)}") from error
        # Anything else is left to OpenCV.
    finally:
        os.close(device)


def _check_capture(source: str, path: str, device: int) -> None:
    try:
        answer = fcntl.ioctl(device, _QUERYCAP, bytes(_CAPABILITY.size))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise
        raise CameraError(f"{source}: {path} is not a camera: it is not a video device at all") from error
    _, card, _, _, capabilities, device_capabilities = _CAPABILITY.unpack(answer)
    if not (device_capabilities if capabilities & _HAS_DEVICE_CAPS else capabilities) & _CAN_CAPTURE:
        name = card.partition(b"\0")[0].decode(errors="replace")
        raise CameraError(f"{source}: {path} of '{name}' gives no pictures: {_MANY}")


def _why_closed(path: str, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO | errno.ENOTDIR:
            return f"there is no {path} (is the camera plugged in?)"
        case errno.EACCES | errno.EPERM:
            return f"{path} is not open to this user: put it into the group '{_group(path)}', and log in again"
        case errno.EBUSY:
            return f"{path} is in use: another program has this camera"
        case _:
            return f"{path}: {error.strerror}"


def _group(path: str) -> str:
    try:
        return Path(path).group()
    except (OSError, KeyError):
        return "video"  # as udev's rules have it
