"""Each kind of host on arm64, as a deploy makes it: its packages, the wheel, the units, and frames.

What only the Raspberry Pi archive has, picamera2 and simplejpeg, is not here.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from streamer.hub import Hub
from tests.arm64 import userland
from tests.conftest import until
from tests.lab.images import SUITES
from tests.lab.shell import RefusedError
from tests.test_roles import ROOT, plan, write_units

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.arm64.userland import Host

RELEASE = "/opt/streamer/releases/test"
PROGRAM = "/opt/streamer/current/bin/streamer"
FIRST_FRAME_WITHIN_S = 90.0  # Python starts slowly there
# What each kind of host sends, or that it is the hub.
KINDS = {"pattern": "pattern", "video": "file:/srv/video.avi", "usb": "usb:0", "hub": ""}
pytestmark = pytest.mark.timeout(5400)  # the first test on a host has to make it, and perhaps its image


@pytest.fixture(scope="module", autouse=True)
def emulation() -> Iterator[None]:
    try:
        userland.need_tools()
    except RefusedError as refused:
        if os.environ.get("CI"):
            pytest.fail(str(refused))
        pytest.skip(str(refused))
    with userland.emulation():
        yield


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def wheel() -> Path:
    script = ROOT / "roles/streamer/files/build_wheel.py"
    built = subprocess.run([sys.executable, str(script), str(ROOT)], check=True, capture_output=True, text=True)
    return Path(json.loads(built.stdout)["wheel"])


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def planned(kind: str) -> dict[str, Any]:
    debian = {"streamer_pi_archive": False}
    camera = {"streamer_camera": KINDS[kind] or "pattern"}
    hosts = plan({"cameras": ["pi1"], "hubs": ["hub"]}, pi1=debian | camera, hub=debian)["hosts"]
    return dict(hosts["hub" if kind == "hub" else "pi1"])


def succeed(host: Host, *argv: str, stdin: str = "") -> str:
    done = host.run(*argv, stdin=stdin)
    assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def host(suite: str, kind: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A blank host of the suite, on which the roles' work is done."""
    made = userland.image(suite)
    wanted = planned(kind)
    with userland.host(made, tmp_path_factory.mktemp("arm64") / "root") as host:
        succeed(host, "apt-get", "-q", "update")
        succeed(host, "apt-get", "-q", "--yes", "--no-install-recommends", "install", *wanted["packages"])
        succeed(host, "useradd", "--system", "--groups", "video", "streamer")
        install = (ROOT / "roles/streamer/files/install.sh").read_text()
        arguments = (RELEASE, wheel.name, "streamer", *wanted["imports"])
        succeed(host, "sh", "-c", install, "install", *arguments, stdin=base64.b64encode(wheel.read_bytes()).decode())
        (host.root / "opt/streamer/current").symlink_to(RELEASE)
        yield host


@contextmanager
def running(host: Host, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the program as its unit's user."""
    command = host.wrap("runuser", "-u", "streamer", "--", PROGRAM, *arguments)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.kill()  # all that it started goes with it


def test_the_processor_is_a_pi_s(host: Host) -> None:
    assert (
        succeed(host, "/opt/streamer/current/bin/python", "-c", "import os; print(os.uname().machine)") == "aarch64\n"
    )
    assert succeed(host, "dpkg", "--print-architecture") == "arm64\n"


def test_systemd_knows_every_line_of_the_units(host: Host, kind: str, suite: str, tmp_path: Path) -> None:
    systemd = succeed(host, "systemctl", "--version").split()[1]
    assert systemd == {"trixie": "257", "bookworm": "252"}[suite]
    role = "hub" if kind == "hub" else "sender"
    unit = write_units(tmp_path, systemd)[role]
    shutil.copy(unit, host.root / "etc/systemd/system")
    checked = succeed(host, "systemd-analyze", "verify", "--man=no", f"/etc/systemd/system/{unit.name}")
    assert unit.name not in checked


def write_video(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
    assert writer.isOpened()
    for level in range(20):
        writer.write(np.full((240, 320, 3), 10 * level, np.uint8))
    writer.release()


def test_it_sends_frames(host: Host, kind: str) -> None:
    camera = KINDS[kind]
    if camera.startswith("file:"):
        write_video(host.root / camera.removeprefix("file:/"))
    elif camera != "pattern":
        pytest.skip("there is no camera to send from")
    with Hub("tcp://127.0.0.1:*") as hub:
        assert hub.endpoint
        flags = ("--hub", hub.endpoint, "--name", "pi1", "--camera", camera, "--size", "320x240", "--fps", "5")
        with running(host, "send", *flags):
            until(lambda: (frame := hub.latest("pi1")) and frame.seq and frame.seq >= 10, FIRST_FRAME_WITHIN_S)
        frame = hub.latest("pi1")
        assert frame
        assert (frame.width, frame.height) == (320, 240)
        assert frame.image.shape == (240, 320, 3)


def test_it_receives_frames(host: Host, kind: str) -> None:
    if kind != "hub":
        pytest.skip("it is no hub")
    with running(host, "hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0") as hub:
        assert hub.stdout
        endpoint, page = (hub.stdout.readline().split()[1] for _ in range(2))
        with running(host, "send", "--hub", endpoint, "--name", "pi1", "--camera", "pattern", "--fps", "5"):
            told = succeed(host, PROGRAM, "status", "--hub", page.rstrip("/"), "--wait", "90", "pi1")
        assert "LIVE" in told
