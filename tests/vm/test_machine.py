"""What was found in the machine: real picamera2 on vimc, real V4L2 on vivid and a loopback, our sender and hub."""

from __future__ import annotations

import inspect
import os
import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pytest

from tests import test_cameras
from tests.lab.shell import RefusedError
from tests.vm import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The sensor's test picture: its bars at three quarters of full, as (red, green, blue).
BARS = [(191, 191, 191), (191, 191, 0), (0, 191, 191), (0, 191, 0), (191, 0, 191), (191, 0, 0), (0, 0, 191), (0, 0, 0)]
CONFIG = "/run/sender.yml"
pytestmark = pytest.mark.timeout(machine.TIMEOUT_S + 600)


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Everything that the machine found, by the name of the check."""
    try:
        machine.need_tools()
    except RefusedError as refused:
        if os.environ.get("CI"):
            pytest.fail(str(refused))
        pytest.skip(str(refused))
    results = machine.boot(machine.image(), tmp_path_factory.mktemp("machine"))

    def of(check: str) -> dict[str, Any]:
        result = results.get(check, {"error": "the machine did not come to it"})
        assert "found" in result, result["error"]
        return dict(result["found"])

    return of


def near(bars: list[list[int]], wanted: Sequence[Sequence[int]], by: int) -> bool:
    return len(bars) == len(wanted) and all(
        abs(got - want) <= by
        for bar, colour in zip(bars, wanted, strict=True)
        for got, want in zip(bar, colour, strict=True)
    )


def ours(said: list[str], source: str) -> list[str]:
    """The warnings about a camera, without their time."""
    mark = re.compile(rf"^\S+ WARNING: (?:pi\d: )?({re.escape(source)}: .*)")
    return [match[1] for line in said if (match := mark.match(line))]


def test_picamera2_s_frames_reach_the_hub_in_the_right_colours(found: Callable[[str], dict[str, Any]]) -> None:
    colours = found("pi_colours")
    assert near(colours["bars"], BARS, 6)
    assert colours["sizes"] == [[640, 480]]
    assert colours["status"] == 0


def test_a_pi_5_is_given_its_own_encoder(found: Callable[[str], dict[str, Any]]) -> None:
    encoder = found("pi_encoder")
    assert encoder["encoder"] == "JpegEncoder"
    # Why the planes have a test of their own: libcamera makes no others of vimc's pictures, whatever is asked for.
    assert encoder["offered"] == ["BGR888", "RGB888"]


def test_the_setting_encoder_is_obeyed_and_told(found: Callable[[str], dict[str, Any]]) -> None:
    encoder = found("pi_encoder_set")
    for wish in ("auto", "software"):
        (told,) = (line for line in encoder[wish] if " INFO: picamera2: " in line)
        assert told.endswith("picamera2: no Raspberry Pi, JPEG in software")
    why = "encoder is 'hardware': picamera2 finds none here: it must be auto or software"
    assert encoder["refused"] == why
    assert encoder["hardware"]["status"] == 2
    assert encoder["hardware"]["said"][-1] == f"streamer: {CONFIG}: {why}"


def test_a_camera_that_cannot_turn_its_picture_says_so(found: Callable[[str], dict[str, Any]]) -> None:
    turned = found("pi_turned")
    assert near(turned["unturned"], BARS, 6)
    # Why no turned picture is to be had here: the sensor could, libcamera takes back whatever is asked of it.
    assert near(turned["mirrored"], BARS[::-1], 6)
    assert turned["libcamera"] == ["Status.Adjusted", "Orientation.Rotate0"]
    why = "hflip, vflip or rotate is set, but the camera Sensor B cannot turn its picture"
    assert turned["refused"] == [why, why]
    assert turned["status"] == 2
    assert turned["said"][-1] == "streamer: --hflip, --vflip or --rotate is set, but" + why.partition("but")[2]


def test_controls_are_seen_in_the_picture(found: Callable[[str], dict[str, Any]]) -> None:
    controls = found("pi_controls")
    # Saturation 0: grey. Contrast 0.5: half of it, from 16 on. Brightness 0.25: a quarter of 128 more.
    grey = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in BARS]
    assert near(controls["set"], [[round(16 + (level - 16) / 2 + 32)] * 3 for level in grey], 6)
    assert near(controls["neutral"], BARS, 6)


def test_controls_that_the_camera_does_not_have(found: Callable[[str], dict[str, Any]]) -> None:
    controls = found("pi_controls")
    none = "controls: the camera Sensor B has no control"
    has = "it has: Brightness, Contrast, Saturation"
    assert controls["refused"] == {
        "AfMode": f"{none} AfMode; {has}",
        "Brigthness": f"{none} Brigthness; did you mean Brightness?",
        "ExposureTime": f"{none} ExposureTime; {has}",
        "Contrast": "controls: Contrast is 2.5: it must be a number from 0 to 2",
    }
    assert controls["status"] == 2
    assert controls["said"][-1] == f"streamer: {CONFIG}: {controls['refused']['AfMode']}"


def test_a_pi_s_controls_reach_libcamera(found: Callable[[str], dict[str, Any]]) -> None:
    values = found("pi_values")
    assert values == {
        "AeEnable": "False",
        "AfMode": "AfModeEnum.Continuous",
        "AwbEnable": "False",
        "AwbMode": "AwbModeEnum.Indoor",
        "ColourGains": "(1.5, 2)",
        "LensPosition": "2.5",
        # Why no exposure time is set here: Debian's libcamera is older than that.
        "ExposureTimeMode": False,
        "refused": [
            "controls: AfMode is 'Macro': it must be Manual, Auto or Continuous",
            "controls: ExposureTime is 200000: it must be a whole number from 14 to 66666",
        ],
    }


def test_the_stand_ins_have_picamera2_s_parameters(found: Callable[[str], dict[str, Any]]) -> None:
    for name, real in found("pi_interface").items():
        parameters = list(inspect.signature(attrgetter(name)(test_cameras)).parameters)
        # They may lack some: those that are not used.
        assert parameters == [each for each in real if each in parameters], name


def test_planes_are_encoded_in_the_right_colours(found: Callable[[str], dict[str, Any]]) -> None:
    planes = found("pi_planes")
    assert near(planes["bars"], planes["wanted"], 32)
    assert planes["sampling"] == "420"


@pytest.mark.parametrize("size", ["320x240", "640x480", "160x120"])
def test_picamera2_gives_the_size_that_is_asked_for(size: str, found: Callable[[str], dict[str, Any]]) -> None:
    given = found("pi_sizes")[size]
    assert given["sizes"] == [[int(side) for side in size.split("x")]]
    assert near(given["bars"], BARS, 6)


def test_captured_is_when_the_sensor_was_read(found: Callable[[str], dict[str, Any]]) -> None:
    stamps = found("pi_stamps")
    assert len(stamps["off_ms"]) == 20
    assert max(map(abs, stamps["off_ms"])) < 1
    assert all(0 < age < 2000 for age in stamps["age_ms"])


def test_a_pi_camera_that_another_program_has(found: Callable[[str], dict[str, Any]]) -> None:
    taken = found("pi_taken")
    assert len(ours(taken["said"], "picamera2")) == 1
    # At every look libcamera finds vimc's links in use, and says so; a Pi's camera it finds, as in the next test.
    rest = [line for line in taken["said"] if "Failed to setup link" not in line]
    assert len(rest) == 2, rest  # where it sends to, and the warning, however often it is tried
    assert taken["undisturbed"]
    assert taken["then"], "it goes on when the other has ended"


def test_a_pi_camera_that_another_program_takes_first(found: Callable[[str], dict[str, Any]]) -> None:
    taken = found("pi_taken_later")
    assert taken["seen"] == 1
    assert "does another program use the camera?" in taken["said"]
    assert "\n" not in taken["said"]
    assert taken["undisturbed"]
    assert taken["then"]


def test_fifty_starts_leave_nothing_behind(found: Callable[[str], dict[str, Any]]) -> None:
    starts = found("pi_starts")
    assert starts["frames"] == 50
    assert max(starts["threads"]) <= starts["threads"][0] + 2
    assert starts["files_after"] <= starts["files"][0]
    assert starts["megabytes"][-1] <= starts["megabytes"][9] + 5


@pytest.mark.parametrize(("asked", "rate"), [("640x480@15", 15), ("320x180@30", 30), ("640x360@5", 5)])
def test_a_usb_camera_s_size_and_rate_are_set(asked: str, rate: int, found: Callable[[str], dict[str, Any]]) -> None:
    given = found("usb_sizes")[asked]
    width, height = map(int, asked.split("@")[0].split("x"))
    assert given["sizes"] == [[width, height]]
    assert re.search(rf"Width/Height\s+: {width}/{height}\n", given["device"])
    assert re.search(rf"Frames per second: {rate}\.000", given["device"])
    assert near(given["bars"], BARS, 6)
    assert not any("WARNING" in line for line in given["said"])


def test_mjpg_is_passed_on_byte_for_byte(found: Callable[[str], dict[str, Any]]) -> None:
    mjpeg = found("usb_mjpeg")
    assert mjpeg["same"] == mjpeg["different"] == 20
    assert "'MJPG'" in mjpeg["device"]


def test_yuyv_is_encoded_in_the_right_colours(found: Callable[[str], dict[str, Any]]) -> None:
    yuyv = found("usb_yuyv")
    assert "'YUYV'" in yuyv["device"]
    assert near(yuyv["bars"], yuyv["wanted"], 32)
    assert yuyv["sizes"] == [[320, 240]]
    assert ours(yuyv["said"], "usb:50") == ["usb:50: gives 320x240 at 10 frames/s, 640x480 at 10 was asked for"]


def test_a_usb_camera_that_cannot_be_had(found: Callable[[str], dict[str, Any]]) -> None:
    refused = found("usb_refused")
    assert refused["absent"] == "usb:97: there is no /dev/video97 (is the camera plugged in?)"
    assert re.match(r"usb:41: /dev/video41 of '.+' gives no pictures: ", refused["no camera"])
    assert refused["no device"] == "usb:96: /dev/video96 is not a camera: it is not a video device at all"
    (denied,) = ours(refused["denied"], "usb:40")
    assert denied.startswith("usb:40: /dev/video40 is not open to this user: put it into the group 'video'")
    assert refused["then"] == [[320, 180]], "it was tried again"


def test_a_usb_camera_that_another_program_has(found: Callable[[str], dict[str, Any]]) -> None:
    taken = found("usb_taken")
    (said,) = ours(taken["said"], "usb:40")
    assert said.startswith("usb:40: /dev/video40 is in use: another program has this camera")
    assert taken["undisturbed"] == [[320, 180]]
    assert taken["then"] == [[640, 360]]


def test_a_usb_camera_that_is_unplugged_and_plugged_in_again(found: Callable[[str], dict[str, Any]]) -> None:
    unplugged = found("usb_unplugged")
    assert unplugged["starts"] == 1, "the same sender, without a restart"
    assert unplugged["status"] == 0
    for each in unplugged["rounds"]:
        assert each["frames"] == 3
    assert len([line for line in ours(unplugged["said"], "usb:40") if "no /dev/video40" in line]) == 2
    assert not any("VIDIOC" in line for line in unplugged["said"]), "OpenCV's own words"
