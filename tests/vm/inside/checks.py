"""Tries the cameras inside the machine and prints what it found: a line of JSON a check.

It judges nothing; test_machine.py does. Each check is a process of its own, so that none stands in another's way.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import inspect
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import simplejpeg

from streamer.hub import Hub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Buffer

    from streamer.frame import Frame

Found = dict[str, Any]
VIVID, ONLY_TAKES, LOOPBACK, NOWHERE = 40, 41, 50, 97
NOBODY = 65534
BARS = 8
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)], np.uint8)
CONFIG = Path("/run/sender.yml")
WITHIN_S = 120.0
CHECK_WITHIN_S = 400


class Program:
    """A streamer as its user runs it; its words are kept line by line."""

    all: ClassVar[list[Program]] = []

    def __init__(self, *arguments: str, module: str = "streamer", user: int = 0) -> None:
        self.lines: list[str] = []
        Program.all.append(self)
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=user,
            group=user,
            extra_groups=[],
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._child.stdout
        for line in self._child.stdout:
            self.lines.append(line.rstrip("\n"))

    def said(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    def end(self) -> int:
        """Ctrl-C, and the exit status."""
        self._child.send_signal(signal.SIGINT)
        return self.wait(10)

    def wait(self, within_s: float = WITHIN_S) -> int:
        """The exit status, once it has ended."""
        try:
            return self._child.wait(within_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()
        finally:
            self._reader.join()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child.poll() is None:
            self.end()


def sender(
    hub: Hub, camera: str, size: str = "640x480", fps: int = 10, *more: str, name: str = "pi1", user: int = 0
) -> Program:
    assert hub.endpoint
    module = "tests.vm.inside.shim" if camera == "picamera2" else "streamer"
    flags = ("--hub", hub.endpoint, "--name", name, "--camera", camera, "--size", size, "--fps", str(fps))
    return Program("send", *flags, *more, module=module, user=user)


def set_up(hub: Hub, *more: str, **settings: object) -> Program:
    """A sender of picamera2's pictures with a configuration file of these settings."""
    CONFIG.write_text(json.dumps(settings))  # which YAML takes
    return sender(hub, "picamera2", "320x240", 10, "--config", str(CONFIG), *more)


def new_hub() -> Hub:
    return Hub("tcp://127.0.0.1:*")


def until(condition: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    deadline = time.monotonic() + within_s
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true within {within_s:g} s")
        time.sleep(0.02)
    return result


def first(hub: Hub, name: str = "pi1") -> Frame:
    """A camera's newest frame, as soon as there is one."""
    frame: Frame = until(lambda: hub.latest(name))
    return frame


def take(hub: Hub, count: int, name: str = "pi1", within_s: float = WITHIN_S) -> list[Frame]:
    """The next frames of a camera, each once; those that come faster than they are looked at are left out."""
    before = hub.latest(name)
    frames: list[Frame] = []
    seen = before.received_ns if before else 0
    deadline = time.monotonic() + within_s
    while len(frames) < count:
        frame = hub.latest(name)
        if frame and frame.received_ns != seen:
            seen = frame.received_ns
            frames.append(frame)
        elif time.monotonic() > deadline:
            raise TimeoutError(f"{len(frames)} of {count} frames within {within_s:g} s")
        else:
            time.sleep(0.002)
    return frames


def bars(jpeg: Buffer, count: int = BARS) -> list[list[int]]:
    """The colour in the middle of each of the test picture's bars, left to right, as (red, green, blue)."""
    image = simplejpeg.decode_jpeg(jpeg, "RGB")
    height, width = image.shape[:2]
    places = [round((bar + 0.5) * width / count) for bar in range(count)]
    row = height * 5 // 6  # below the words that vivid writes
    return [
        np.median(image[row - 4 : row + 4, at - 4 : at + 4].reshape(-1, 3), axis=0).astype(int).tolist()
        for at in places
    ]


@contextlib.contextmanager
def pi_camera(size: tuple[int, int] = (640, 480), fps: float = 10, **settings: Any) -> Iterator[Any]:
    """The sender's own camera, in this process."""
    from tests.vm.inside.shim import picamera2

    with picamera2.PiCamera(size, fps, 85, **settings) as camera:
        yield camera


def pi_refusal(**settings: Any) -> str:
    """Why the camera cannot be set so."""
    from streamer.errors import ConfigError

    try:
        with pi_camera((320, 240), **settings):
            return ""
    except ConfigError as error:
        return str(error)


def control(device: int | str, *options: str) -> str:
    return subprocess.run(
        ["v4l2-ctl", "-d", str(device), *options], capture_output=True, text=True, check=False
    ).stdout.strip()


def sizes_of(frames: list[Frame]) -> list[tuple[int, int]]:
    return sorted({(frame.width, frame.height) for frame in frames})


# -- picamera2


def pi_colours() -> Found:
    with new_hub() as hub, sender(hub, "picamera2") as program:
        first(hub)
        frames = take(hub, 10)
        status = program.end()
    return {
        "bars": bars(frames[-1].jpeg),
        "sizes": sizes_of(frames),
        "status": status,
        "said": program.lines,
    }


def pi_sizes() -> Found:
    found = {}
    for size in ("320x240", "640x480", "160x120"):
        with new_hub() as hub, sender(hub, "picamera2", size=size) as program:
            first(hub)
            frames = take(hub, 3)
        found[size] = {"sizes": sizes_of(frames), "bars": bars(frames[-1].jpeg), "said": program.lines}
    return found


def pi_encoder() -> Found:
    """What a Pi 5 is given, and what vimc makes of it."""
    import libcamera

    with pi_camera() as camera:
        device = camera._camera
        main = device.camera_configuration()["main"]
        offered = device.camera.generate_configuration([libcamera.StreamRole.VideoRecording])
        return {
            "encoder": type(camera._encoder).__name__,
            "format": main["format"],
            "offered": sorted(map(str, offered.at(0).formats.pixel_formats)),
        }


def pi_encoder_set() -> Found:
    """The setting `encoder`: what is told at start, and who cannot have what he wishes for."""
    found: Found = {"refused": pi_refusal(encoder="hardware")}
    for wish in ("auto", "software"):
        with new_hub() as hub, set_up(hub, encoder=wish) as program:
            first(hub)
            found[wish] = list(program.lines)
    with new_hub() as hub, set_up(hub, encoder="hardware") as program:
        found["hardware"] = {"status": program.wait(), "said": program.lines}
    return found


def pi_turned() -> Found:
    """Turned pictures: the sensor's driver has them, libcamera's part for vimc lets nobody have them."""
    import libcamera

    (sensor,) = (name.parent.name for name in Path("/sys/class/video4linux").glob("v4l-subdev*/name")
                 if name.read_text().strip() == "Sensor B")  # fmt: skip
    flags = ("--rotate", "180", "--hflip", "--vflip")  # all together they turn nothing
    with new_hub() as hub, sender(hub, "picamera2", "640x480", 10, *flags) as program:
        first(hub)
        unturned = bars(take(hub, 3)[-1].jpeg)

        def mirror() -> list[list[int]]:
            # vimc's own control, past libcamera, which puts it back whenever it configures the camera.
            control(f"/dev/{sensor}", "--set-ctrl", "horizontal_flip=1")
            return bars(take(hub, 5)[-1].jpeg)

        mirrored = until(lambda: (seen := mirror()) != unturned and seen)
        control(f"/dev/{sensor}", "--set-ctrl", "horizontal_flip=0")
        program.end()
    with new_hub() as hub, sender(hub, "picamera2", "320x240", 10, "--rotate", "180") as program:
        status = program.wait()
    with pi_camera((320, 240)) as camera:
        asked = camera._camera.camera.generate_configuration([libcamera.StreamRole.VideoRecording])
        asked.orientation = libcamera.Orientation.Rotate180
        validated = str(asked.validate())
    return {
        "unturned": unturned,
        "mirrored": mirrored,
        "libcamera": [validated, str(asked.orientation)],
        "refused": [pi_refusal(**{way: True}) for way in ("hflip", "vflip")],
        "status": status,
        "said": program.lines,
    }


def pi_controls() -> Found:
    """Those that vimc has: seen in the picture. Those that it lacks, and values out of range: what is said."""
    found: Found = {}
    # vimc's sensor keeps what it was set to: the second puts it back.
    for name, values in {"set": (0.25, 0.5, 0), "neutral": (0, 1, 1)}.items():
        controls = dict(zip(("Brightness", "Contrast", "Saturation"), values, strict=True))
        with new_hub() as hub, set_up(hub, controls=controls) as program:
            first(hub)
            found[name] = bars(take(hub, 3)[-1].jpeg)
            program.end()
    wrong = {"AfMode": "Continuous", "Brigthness": 0, "ExposureTime": 10000, "Contrast": 2.5}
    found["refused"] = {name: pi_refusal(controls=[(name, value)]) for name, value in wrong.items()}
    with new_hub() as hub, set_up(hub, controls={"AfMode": "Continuous"}) as program:
        found |= {"status": program.wait(), "said": program.lines}
    return found


def pi_values() -> Found:
    """Controls of a Pi's camera, which vimc only pretends to have: what of them reaches libcamera, and is taken."""
    import libcamera

    from tests.vm.inside import shim

    limits = {
        "AeEnable": (False, True),
        "AfMode": (0, 2),
        "AwbEnable": (False, True),
        "AwbMode": (0, 7),
        "ColourGains": (0.0, 32.0),
        "ExposureTime": (14, 66666),
        "LensPosition": (0.0, 32.0),
    }
    for name, (low, high) in limits.items():
        offered = SimpleNamespace(min=low, max=high, default=low)
        shim.OFFERED[name] = (getattr(libcamera.controls, name), offered)
    reached: list[dict[str, str]] = []
    start = libcamera.Camera.start

    def note(camera: Any, controls: dict[Any, Any]) -> None:
        reached.append({control.name: str(value) for control, value in controls.items()})
        start(camera, controls)

    libcamera.Camera.start = note
    # With an exposure time, picamera2 sets this too.
    found: Found = {"ExposureTimeMode": hasattr(libcamera.controls, "ExposureTimeMode")}
    for name, value in {
        "AeEnable": False,
        "AfMode": "Continuous",
        "AwbEnable": False,
        "AwbMode": "Indoor",
        "ColourGains": (1.5, 2),
        "LensPosition": 2.5,
    }.items():
        with pi_camera((320, 240), controls=[(name, value)]) as camera:
            camera.read()
        found[name] = reached[-1][name]
    found["refused"] = [pi_refusal(controls=[each]) for each in (("AfMode", "Macro"), ("ExposureTime", 200_000))]
    return found


def pi_interface() -> Found:
    """The parameters of what is used of picamera2."""
    from tests.vm.inside.shim import Picamera2

    # Only now, with what the shim has put in place, can these be imported.
    jpeg, mjpeg, outputs, sensor_format = (
        importlib.import_module(f"picamera2.{module}")
        for module in ("encoders.jpeg_encoder", "encoders.mjpeg_encoder", "outputs", "sensor_format")
    )
    used = [
        Picamera2, Picamera2.camera_configuration, Picamera2.close, Picamera2.configure,
        Picamera2.create_video_configuration, Picamera2.global_camera_info, Picamera2.set_controls,
        Picamera2.start_recording, Picamera2.stop_recording,
        jpeg.JpegEncoder, mjpeg.MJPEGEncoder, outputs.Output, outputs.Output.outputframe,
        sensor_format.SensorFormat,
    ]  # fmt: skip
    return {each.__qualname__: list(inspect.signature(each).parameters) for each in used}


def pi_planes() -> Found:
    """Planes of YUV420, padded as a Pi pads them, put into the camera's own buffers before they are encoded."""
    import cv2

    planes = cv2.cvtColor(np.repeat(COLOURS[None], 480, axis=0).repeat(160, axis=1), cv2.COLOR_RGB2YUV)
    y, v, u = planes[:, :, 0], planes[::2, ::2, 2], planes[::2, ::2, 1]

    def fill(request: Any) -> None:
        from picamera2 import MappedArray

        with MappedArray(request, "main", reshape=False) as mapped:
            flat = mapped.array
            flat.reshape(720, 1280)[:480, :640] = y
            halves = flat.reshape(1440, 640)
            halves[960:1200, :320] = u
            halves[1200:, :320] = v
        request.config["main"] = request.config["main"] | {"format": "YUV420", "stride": 1280}

    with pi_camera() as camera:
        camera._camera.pre_callback = fill
        for _ in range(6):
            jpeg, _ = camera.read()
    return {"bars": bars(jpeg, 4), "wanted": COLOURS.tolist(), "sampling": simplejpeg.decode_jpeg_header(jpeg)[3]}


def pi_starts() -> Found:
    """Opened and closed fifty times."""
    from tests.vm.inside.shim import picamera2

    picamera2._WARM_UP_S = 0.0  # the exposure of vimc needs no time
    counts, frames = [], 0
    began = time.monotonic()
    for _ in range(50):
        with picamera2.PiCamera((320, 240), 10, 85) as camera:
            frames += camera.read()[0].endswith(b"\xff\xd9")
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        counts.append((threading.active_count(), len(os.listdir("/proc/self/fd")), pages * 4 // 1024))  # noqa: PTH208
    keys = ("threads", "files", "megabytes")
    gc.collect()
    return {
        "files_after": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "frames": frames,
        "took_s": time.monotonic() - began,
        **{key: [count[at] for count in counts] for at, key in enumerate(keys)},
    }


def pi_stamps() -> Found:
    """When the sensor was read, as libcamera says it of each frame, against what the camera passes on."""
    sensor: list[int] = []

    def look() -> tuple[int, int]:
        """How long it took to read both clocks, since others run in between; and the wall clock at boot."""
        before_ns, wall_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - before_ns, wall_ns - before_ns

    def note(request: Any) -> None:
        _, booted_ns = min(look() for _ in range(5))
        sensor.append(request.get_metadata()["SensorTimestamp"] + booted_ns)

    with pi_camera((320, 240)) as camera:
        camera._camera.pre_callback = note
        for _ in range(3):
            camera.read()
        rows = []
        for _ in range(20):
            _, captured_ns = camera.read()
            now_ns = time.time_ns()
            nearest_ns = min(sensor, key=lambda stamp_ns: abs(stamp_ns - captured_ns))
            rows.append(((captured_ns - nearest_ns) / 1e6, (now_ns - captured_ns) / 1e6))
    return {
        "off_ms": [row[0] for row in rows],
        "age_ms": [row[1] for row in rows],
        "interval_ms": float(np.median(np.diff(sensor)) / 1e6),
    }


def pi_taken() -> Found:
    """Streamed from by one program while a second starts, which vimc does not even let look for cameras."""
    with new_hub() as hub, sender(hub, "picamera2", size="320x240") as holder:
        first(hub)
        with sender(hub, "picamera2", size="320x240", name="pi2") as second:
            until(lambda: second.said("picamera2:"))
            time.sleep(5)  # it tries again and again meanwhile
            said = list(second.lines)
            undisturbed = len(take(hub, 5))
            holder.end()
            first(hub, "pi2")
            return {"said": said, "undisturbed": undisturbed, "then": len(take(hub, 3, "pi2"))}


def pi_taken_later() -> Found:
    """Taken between a second program's look for cameras and its opening one, which is what happens on a Pi."""
    from streamer.errors import CameraError
    from tests.vm.inside.shim import Picamera2

    seen = len(Picamera2.global_camera_info())
    with new_hub() as hub, sender(hub, "picamera2", size="320x240") as holder:
        first(hub)
        try:
            with pi_camera((320, 240)):
                said = ""
        except CameraError as error:
            said = str(error)
        undisturbed = len(take(hub, 3))
        holder.end()
    with pi_camera((320, 240)) as camera:
        return {"seen": seen, "said": said, "undisturbed": undisturbed, "then": len(camera.read()[0])}


# -- USB


def usb_formats() -> Found:
    return {"vivid": control(VIVID, "--list-formats"), "loopback": control(LOOPBACK, "--list-formats")}


def usb_sizes() -> Found:
    """Size and rate are really set: asked of the device by another program."""
    found = {}
    for size, fps in (("640x480", 15), ("320x180", 30), ("640x360", 5)):
        with new_hub() as hub, sender(hub, f"usb:{VIVID}", size=size, fps=fps) as program:
            first(hub)
            frames = take(hub, 12)
            found[f"{size}@{fps}"] = {
                "device": control(VIVID, "--get-fmt-video", "--get-parm"),
                "sizes": sizes_of(frames),
                "bars": bars(frames[-1].jpeg),
                "said": program.lines,
            }
    return found


def usb_unplugged() -> Found:
    driver = Path("/sys/bus/platform/drivers/vivid")
    with new_hub() as hub, sender(hub, f"usb:{VIVID}", size="320x180") as program:
        first(hub)
        take(hub, 3)
        rounds = []
        for _ in range(2):
            (driver / "unbind").write_text("vivid.0")
            until(lambda: not Path(f"/dev/video{VIVID}").exists())
            time.sleep(4)
            (driver / "bind").write_text("vivid.0")
            began = time.monotonic()
            take(hub, 1)
            rounds.append({"back_after_s": time.monotonic() - began, "frames": len(take(hub, 3))})
        start = {frame.start for frame in take(hub, 2)}
        status = program.end()
    return {"rounds": rounds, "starts": len(start), "status": status, "said": program.lines}


def usb_taken() -> Found:
    with new_hub() as hub, sender(hub, f"usb:{VIVID}", size="320x180") as holder:
        first(hub)
        with sender(hub, f"usb:{VIVID}", size="640x360", name="pi2") as second:
            until(lambda: second.said("usb:"))
            time.sleep(4)
            said = list(second.lines)
            undisturbed = sizes_of(take(hub, 5))
            holder.end()
            first(hub, "pi2")
            return {"said": said, "undisturbed": undisturbed, "then": sizes_of(take(hub, 3, "pi2"))}


def usb_refused() -> Found:
    """A device that is not there, is no camera, is no device, or denies access: what is said, and then."""
    from streamer.cameras.opencv import UsbCamera
    from streamer.errors import CameraError

    def refusal(device: int) -> str:
        try:
            with UsbCamera(device, (320, 180), 10, 85):
                return ""
        except CameraError as error:
            return str(error)

    file, vivid = Path("/dev/video96"), Path(f"/dev/video{VIVID}")
    file.write_text("")
    found: Found = {"absent": refusal(NOWHERE), "no camera": refusal(ONLY_TAKES), "no device": refusal(96)}
    file.unlink()
    vivid.chmod(0o600)
    with new_hub() as hub, sender(hub, f"usb:{VIVID}", size="320x180", user=NOBODY) as program:
        until(lambda: program.said("usb:"))
        time.sleep(5)
        found["denied"] = list(program.lines)
        vivid.chmod(0o666)
        first(hub)
        found["then"] = sizes_of(take(hub, 2))
    vivid.chmod(0o660)
    return found


VIDIOC_S_FMT = 0xC0D05605
OUTPUT = 2


@contextlib.contextmanager
def loopback(fourcc: bytes, size: tuple[int, int], picture: Callable[[], bytes], fps: float) -> Iterator[None]:
    """Be the camera behind the loopback, which has one format and one size."""
    stop = threading.Event()
    width, height = size
    with open(f"/dev/video{LOOPBACK}", "wb", buffering=0) as device:  # noqa: PTH123 - a device
        # struct v4l2_format: its type, then what v4l2_pix_format has first.
        image = (width, height, int.from_bytes(fourcc, "little"), 1, 2 * width, 2 * width * height, 8, 0)
        fcntl.ioctl(device, VIDIOC_S_FMT, struct.pack("=I4x8I168x", OUTPUT, *image))

        def write() -> None:
            while not stop.wait(1 / fps):
                device.write(picture())

        writer = threading.Thread(target=write)
        writer.start()
        try:
            yield
        finally:
            stop.set()
            writer.join()


def usb_mjpeg() -> Found:
    """A camera that gives MJPG: its own pictures, byte for byte."""
    from streamer.cameras.pattern import Pattern

    card = Pattern("mjpg", (640, 480), 1000, 85)
    written: set[bytes] = set()

    def picture() -> bytes:
        jpeg, _ = card.read()
        written.add(jpeg)
        return jpeg

    with loopback(b"MJPG", (640, 480), picture, 10), new_hub() as hub, sender(hub, f"usb:{LOOPBACK}") as program:
        first(hub)
        frames = take(hub, 20)
        device = control(LOOPBACK, "--get-fmt-video")
    jpegs = [bytes(frame.jpeg) for frame in frames]
    return {
        "same": sum(jpeg in written for jpeg in jpegs),
        "different": len(set(jpegs)),
        "device": device,
        "said": program.lines,
    }


def usb_yuyv() -> Found:
    """A camera that gives YUYV and nothing else, in a size that was not asked for."""
    import cv2

    planes = cv2.cvtColor(np.repeat(COLOURS[None], 240, axis=0).repeat(80, axis=1), cv2.COLOR_RGB2YUV)
    yuyv = np.empty((240, 320, 2), np.uint8)
    yuyv[:, :, 0] = planes[:, :, 0]
    yuyv[:, ::2, 1] = planes[:, ::2, 1]
    yuyv[:, 1::2, 1] = planes[:, ::2, 2]
    with loopback(b"YUYV", (320, 240), yuyv.tobytes, 10), new_hub() as hub, sender(hub, f"usb:{LOOPBACK}") as program:
        first(hub)
        frames = take(hub, 5)
        device = control(LOOPBACK, "--get-fmt-video")
    return {
        "bars": bars(frames[-1].jpeg, 4),
        "wanted": COLOURS.tolist(),
        "sizes": sizes_of(frames),
        "device": device,
        "said": program.lines,
    }


CHECKS = (
    pi_colours,
    pi_encoder,
    pi_encoder_set,
    pi_turned,
    pi_controls,
    pi_values,
    pi_interface,
    pi_planes,
    pi_sizes,
    pi_stamps,
    pi_taken,
    pi_taken_later,
    pi_starts,
    usb_formats,
    usb_sizes,
    usb_mjpeg,
    usb_yuyv,
    usb_refused,
    usb_taken,
    usb_unplugged,
)


def tried(check: Callable[[], Found]) -> Found:
    began = time.monotonic()
    try:
        found: Found = {"found": check()}
    except Exception:  # noqa: BLE001 - it is told outside
        found = {
            "error": "\n".join([traceback.format_exc(), *(line for program in Program.all for line in program.lines)])
        }
    return {"check": check.__name__, **found, "took_s": round(time.monotonic() - began, 1)}


def main() -> None:
    only = sys.argv[1:]
    for check in CHECKS:
        if only and check.__name__ not in only:
            continue
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setsid()
            signal.alarm(CHECK_WITHIN_S)
            with open(writer, "w") as out:  # noqa: PTH123 - a pipe
                out.write(json.dumps(tried(check)))
            os._exit(0)
        os.close(writer)
        with open(reader) as answer:  # noqa: PTH123 - a pipe
            text = answer.read()
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(ProcessLookupError):  # what it started and left behind
            os.killpg(child, signal.SIGKILL)
        print(text or json.dumps({"check": check.__name__, "error": f"ended with status {status}"}), flush=True)


if __name__ == "__main__":
    main()
