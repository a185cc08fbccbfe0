"""The commands as real processes: what they print, how they end, what systemd hears from them."""

from __future__ import annotations

import errno
import fcntl
import gc
import itertools
import json
import logging
import os
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from unittest import mock

import pytest
import zmq

import streamer
from streamer import cameras, cli, screen
from streamer.config import SenderConfig
from streamer.errors import ConfigError, TransportError
from streamer.frame import Frame
from streamer.hub import Hub
from streamer.page import Page
from streamer.presence import Status
from streamer.sender import Sender, SenderStatistics
from tests.conftest import Keys, until
from tests.peers import JPEG, LOCAL, listener
from tests.test_readme import parsers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENDS_WITHIN_S = 2.0
NOWHERE = "tcp://127.0.0.1:9"  # the discard port: nobody listens
PATTERN = ("send", "--camera", "pattern", "--name", "pi1")
PUBLIC = f"curve-public:{'0' * 64}"


class Command:
    """A running `streamer …`, with its output in files, so that it can be read while it runs."""

    def __init__(self, place: Path, *arguments: str, **environment: str) -> None:
        place.mkdir(exist_ok=True)
        self._out, self._err = place / f"{time.monotonic_ns()}.out", place / f"{time.monotonic_ns()}.err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamer", *arguments],
                stdout=out,
                stderr=err,
                env={**os.environ, **environment},
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def command_line(self) -> str:
        """What a list of processes shows."""
        return Path(f"/proc/{self.process.pid}/cmdline").read_text()

    def said(self, pattern: str) -> str:
        """Wait until the output has a match, and return its first group."""

        def look() -> re.Match[str] | None:
            assert self.process.poll() is None or re.search(pattern, self.out + self.err), self.out + self.err
            return re.search(pattern, self.out + self.err)

        return until(look, 20)[1]  # type: ignore[index]

    def end(self, number: int = signal.SIGINT) -> float:
        """Send a signal, wait for the end, and return the seconds it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        assert self.process.wait(20) == 0, self.err
        return time.monotonic() - began


@contextmanager
def running(place: Path, *arguments: str, **environment: str) -> Iterator[Command]:
    command = Command(place, *arguments, **environment)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait()


@contextmanager
def running_hub(place: Path, *arguments: str) -> Iterator[tuple[Command, str, str]]:
    """Run a hub on free ports; yields it, its endpoint and its wall."""
    with running(place, "hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0", *arguments) as hub:
        yield hub, hub.said(r"hub: (\S+)"), hub.said(r"wall: (\S+)")


class Unread:
    """A full pipe: nobody reads what a process writes into it."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.fill()

    def fill(self) -> None:
        os.set_blocking(self.writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.writer, b"-" * 4096)
        os.set_blocking(self.writer, True)

    def read(self, of_bytes: int = 1 << 20) -> str:
        """Read what is there."""
        return os.read(self.reader, of_bytes).decode()


@pytest.fixture
def unread() -> Iterator[Unread]:
    unread = Unread()
    yield unread
    os.close(unread.reader)
    os.close(unread.writer)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamer", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, **environment}
    )


def sender_flags(endpoint: str, name: str = "pi1") -> list[str]:
    return ["send", "--hub", endpoint, "--name", name, "--camera", "pattern", "--size", "176x144"]


# -- what goes wrong is said in one line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["send", "--camera", "pattern"], "--hub: give a hub to send to, tcp://HOST:5555, or else an address"),
        (["send", "--hub", "pi1"], "--hub is 'pi1': it must be tcp://HOST:PORT"),
        (["send", "--hub", "tcp://hub:99999"], "it must be tcp://HOST:PORT with a port from 1 to 65535"),
        (["send", "--hub", NOWHERE, "--size", "640"], "--size is '640': it must be WIDTHxHEIGHT"),
        (["send", "--hub", NOWHERE, "--fps", "fast"], "--fps is 'fast': it must be a number from 0.1 to 240"),
        (["send", "--hub", NOWHERE, "--quality", "101"], "--quality is '101': it must be a whole number from 1 to 100"),
        (["send", "--hub", NOWHERE, "--camera", "gopro"], "it must be picamera2, usb:N, usb:/dev/PATH, file:"),
        (
            ["send", "--hub", NOWHERE, "--rotate", "90"],
            "--rotate is '90': it must be 0 or 180: the camera cannot rotate",
        ),
        (
            ["send", "--hub", NOWHERE, "--camera", "usb:0", "--hflip"],
            "hflip is set, but only the camera picamera2 has it: pictures of usb:0 are sent as they come",
        ),
        (["send", "--hub", NOWHERE, "--name", "a b"], "--name is 'a b': it must be 1 to 64 letters"),
        (["send", "--config", "/nowhere/sender.yml"], "--config /nowhere/sender.yml: No such file or directory"),
        (["hub", "--bind", "5555"], "--bind is '5555': it must be tcp://ADDRESS:PORT"),
        (["hub", "--http", "8080"], "--http is '8080': it must be ADDRESS:PORT of this machine, as in 127.0.0.1:8080"),
        (["hub", "--password-file", ""], "--password-file is '': it must be the path of a file"),
        (["hub", "--display", "screen"], "--display is 'screen': it must be none or windows"),
        (["hub", "--layout", "2by4"], "--layout is '2by4': it must be ROWSxCOLUMNS, numbers from 1 to 16, as in 2x4"),
        (["hub", "--layout", "2x4"], "--layout is 2x4 and --display is none: set --display to windows, or no --layout"),
        (["hub", "--full-screen"], "--full-screen is true and there is no --layout: set it to ROWSxCOLUMNS, as in 2x4"),
        (["demo", "--cameras", "0"], "--cameras is '0': it must be a whole number from 1 to 64"),
        (["demo", "--cameras", "x"], "--cameras is 'x': it must be a whole number from 1 to 64"),
        (["demo", "--display", "screen"], "--display is 'screen': it must be none or windows"),
        (
            ["demo", "--layout", "2x4"],
            "--layout is 2x4 and --display is none: set --display to windows, or no --layout",
        ),
        (["status", "--hub", "hub:8080"], "--hub is 'hub:8080': it must be the hub's page, as in http://hub:8080"),
        (["status", "--hub", "http://hub:port"], "--hub is 'http://hub:port': it must be the hub's page"),
        (["status", "--hub", "unix:"], "--hub is 'unix:': it must be the hub's page, as in http://hub:8080, or unix:"),
        (["status", "--password-file", "/nowhere/password"], "--password-file /nowhere/password: No such file or dire"),
        (["status", "--hub", "https://hub", "--ca-file", "/nowhere/ca"], "--ca-file /nowhere/ca: No such file"),
        (
            ["hub", "--http", "0.0.0.0:8080"],
            "--http is 0.0.0.0:8080, which others can reach: set --password-file to a f",
        ),
        (["hub", "--open", "--password-file", "a"], "--open and --password-file are both set: either everybody may lo"),
        (["hub", "--key", "a"], "--key is set and --allowed is not: set both, or neither"),
        (["hub", "--plain-bind", "tcp://*:1"], "--plain-bind is set and --key is not: without keys, senders need only"),
        (["send", "--hub", NOWHERE, "--publish", "tcp://*:1"], "--hub and --publish are both set: either it sends, or"),
        ([*PATTERN, "--hub", NOWHERE, "--key", "a"], "--key is set and --hub-key is not: set both, or neither"),
        ([*PATTERN, "--hub", NOWHERE, "--hub-key", PUBLIC], "--hub-key is set and --key is not: set both, or neither"),
        ([*PATTERN, "--hub", NOWHERE, "--size", "16x16"], "--size is 16x16: it must be 176x144 or more for the camera"),
        (["send", "--config", ""], "--config is '': it must be the path of a file"),
        (["keys", "make", ""], "FILE is '': it must be the path of a file"),
        (["status", "--password-file", ""], "--password-file is '': it must be the path of a file"),
        (["status", "--ca-file", "a"], "--ca-file is for https://, and --hub is http://127.0.0.1:8080"),
        (["status", "--hub", ""], "--hub is '': it must be the hub's page, as in http://hub:8080, or unix:PATH"),
        (["status", "--hub", "http://a b:80"], "--hub is 'http://a b:80': it must be the hub's page"),
        (["status", "--hub", f"http://{'a' * 70}"], f"--hub is 'http://{'a' * 70}': it must be the hub's page"),
        (["status", "--wait", "nan"], "--wait is 'nan': it must be a number from 0 to 86400"),
        (["status", "--wait", "inf"], "--wait is 'inf': it must be a number from 0 to 86400"),
        (["status", "--wait", "-1"], "--wait is '-1': it must be a number from 0 to 86400"),
        # What has a line break in its name.
        (["send", "--config", "/nowhere/a\nb"], "--config /nowhere/a\\nb: No such file or directory"),
        (["keys", "show", "/nowhere/a\nb"], "/nowhere/a\\nb: there is no such key"),
        (["hub", "--password-file", "/nowhere/a\nb"], "--password-file /nowhere/a\\nb: No such file or directory"),
        (["status", "--password-file", "/nowhere/a\nb"], "--password-file /nowhere/a\\nb: No such file or directory"),
        (["status", "--hub", "http://a\nb"], "--hub is 'http://a\\nb': it must be the hub's page"),
        (["keys", "make", "/nowhere/key"], "/nowhere/key: there is no directory /nowhere: make it first, or name anot"),
        (["keys", "make", "/dev/null/key"], "/dev/null/key: there is no directory /dev/null: make it first, or name"),
        (["keys", "show", "/nowhere/key"], "/nowhere/key: there is no such key: 'streamer keys make /nowhere/key'"),
        (["send", "--hub", NOWHERE, "--hub-key", f"curve-secret:{'5' * 64}"], "--hub-key is a secret key, which must"),
        (
            ["send", "--hub", NOWHERE, "--hub-key", "curve-public:5"],
            "--hub-key is not a public key: it must be curve-public: and",
        ),
        (["hub", "--password-file", "/nowhere/password"], "--password-file /nowhere/password: No such file or directo"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("streamer: ")
    assert err.count("\n") == 1
    assert complaint in err
    assert "5" * 64 not in err, "a secret"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "streamer: send|hub|keys|demo|status is missing (streamer --help)"),
        (["keys"], "streamer keys: make|show is missing (streamer keys --help)"),
        (["--help-me"], "streamer: --help-me is not known; did you mean --help? (streamer --help)"),
        (["keys", "-x"], "streamer keys: -x is not known (streamer keys --help)"),
        (["--bogus", "send", "--print-config"], "streamer: --bogus is not known (streamer --help)"),
        (["sned"], "streamer: sned is not known; did you mean send? (streamer --help)"),
        (["keys", "mak", "a"], "streamer keys: mak is not known; did you mean make? (streamer keys --help)"),
        (["keys", "make"], "streamer keys make: FILE is missing (streamer keys make --help)"),
        (["send", "--bogus"], "streamer send: --bogus is not known (streamer send --help)"),
        (
            ["send", "--cam", "pattern"],
            "streamer send: --cam is not known; did you mean --camera? (streamer send --help)",
        ),
        (["hub", "--htpp=1"], "streamer hub: --htpp=1 is not known; did you mean --http? (streamer hub --help)"),
        (["hub", "a\nb"], "streamer hub: 'a\\nb' is not known (streamer hub --help)"),
        (["send", "--size", "--fps"], "streamer send: --size needs a value (streamer send --help)"),
        (["send", "--hflip=1"], "streamer send: --hflip takes no value (streamer send --help)"),
    ],
)
def test_arguments_that_are_none_get_one_line_and_status_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr() == ("", f"{complaint}\n")


@pytest.mark.parametrize("display", [None, ""])
@pytest.mark.parametrize("command", ["hub", "demo"])
def test_no_screen_is_said_before_anything_starts(
    command: str, display: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)
    assert cli.main([command, "--display", "windows"]) == 2
    error = "streamer: --display: windows needs a screen, but DISPLAY is not set; run it on the desktop\n"
    assert capfd.readouterr() == ("", error)


@pytest.mark.parametrize("command", ["hub", "demo"])
def test_windows_without_opencv_are_refused_before_anything_starts(command: str, tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError")
    done = run(command, "--display", "windows", DISPLAY=":0", PYTHONPATH=f"{tmp_path}:{Path(__file__).parent.parent}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("streamer: a display of windows needs the extra 'opencv': pip install")
    assert done.stderr.count("\n") == 1


def test_library_that_does_not_load_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1:\\n\\tcannot open shared object file')")
    done = run("hub", "--display", "windows", DISPLAY=":0", PYTHONPATH=f"{tmp_path}:{Path(__file__).parent.parent}")
    error = (
        "streamer: a display of windows needs the extra 'opencv', which is there but does not load: libGL.so.1: cannot "
        "open shared object file\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", error)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_cannot_be_printed_is_said_in_one_line(tmp_path: Path) -> None:
    for arguments in (
        ["--version"],
        ["send", "--help"],
        ["send", "--print-config"],
        ["hub", "--print-config"],
        ["keys", "make", str(tmp_path / "a.key")],
        ["keys", "show", str(tmp_path / "a.key")],
        ["demo", "--cameras", "1"],
    ):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "streamer", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=30,
                check=False,
            )
        assert (done.returncode, done.stderr) == (1, "streamer: cannot print: No space left on device\n"), arguments


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_errors_that_nobody_can_read_leave_the_exit_status(tmp_path: Path) -> None:
    for arguments, status in ((["--version"], 0), (["--no-such"], 2), (["keys", "show", str(tmp_path / "none")], 2)):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "streamer", *arguments]
            done = subprocess.run(
                command,
                stdout=subprocess.DEVNULL,
                stderr=full,
                env={**os.environ, "PYTHONUNBUFFERED": ""},
                timeout=30,
                check=False,
            )
        assert done.returncode == status, arguments
        closed = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], capture_output=True, check=False)
        assert closed.returncode == status, arguments


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_locale_has_no_sign_for_is_replaced(encoding: str) -> None:
    for arguments in (["send", "--help"], ["hub", "--help"], ["send", "--print-config"], ["hub", "--print-config"]):
        printed = run(*arguments, PYTHONIOENCODING=f"{encoding}:strict", COLUMNS="200")
        whole = run(*arguments, PYTHONIOENCODING="utf-8", COLUMNS="200").stdout
        assert (printed.returncode, printed.stderr) == (0, "")
        assert printed.stdout.encode(encoding) == whole.encode(encoding, errors="replace")


def test_who_reads_no_more_is_told_nothing(tmp_path: Path) -> None:
    for arguments in (["--help"], ["hub", "--print-config"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "streamer", *arguments],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, b""), arguments


@pytest.mark.parametrize("arguments", [sender_flags(NOWHERE), ["demo"]], ids=["send", "demo"])
def test_missing_library_names_its_extra(arguments: list[str]) -> None:
    hide = "import sys; sys.modules['PIL'] = None; from streamer.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", hide, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "streamer: the camera 'pattern' needs the extra 'pattern': pip install '.[pattern]' in this project's "
        "directory, or on Debian: apt install python3-pil (a virtual environment has it only with "
        "--system-site-packages)\n"
    )


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.EMFILE, "as Python says it"), "Too many open files"),
        (zmq.ZMQError(errno.EMFILE), "Too many open files"),
        (BlockingIOError(errno.EAGAIN, "as Python says it"), "Resource temporarily unavailable"),
        (MemoryError(), "out of memory"),
        (RuntimeError("can't start new thread"), "the system allows no more threads"),
    ],
)
def test_what_the_system_has_not_enough_of_is_told_in_one_line(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("streamer.sender.Sender", mock.Mock(side_effect=error))
    assert cli.main([*PATTERN, "--hub", NOWHERE]) == 1
    assert capsys.readouterr() == ("", f"streamer: it cannot go on: {why}\n")


def test_a_mistake_of_ours_is_not_told_as_want_of_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.sender.Sender", mock.Mock(side_effect=RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        cli.main([*PATTERN, "--hub", NOWHERE])


@pytest.mark.parametrize(
    ("broken", "part"),
    [
        ("hub.Hub._tick", "the hub has failed"),
        ("sender._Link.receive", "pi1: the sender has failed"),
        ("cameras.pattern.Pattern.read", "pi1: the camera's thread has failed"),
    ],
)
def test_a_part_that_fails_for_want_of_memory_says_so_in_one_line(
    broken: str,
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(f"streamer.{broken}", mock.Mock(side_effect=MemoryError))
    hub = ["hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]
    assert cli.main(hub if broken.startswith("hub") else sender_flags(NOWHERE)) == 1
    assert f"{part}: out of memory" in caplog.messages
    assert not any(record.exc_info for record in caplog.records)
    assert re.fullmatch("streamer: .*: out of memory\n", capsys.readouterr().err)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_numpy_starts_no_threads_of_its_own() -> None:
    script = (
        "import os\nfrom streamer import cli\n"
        "cli._hub = lambda _: __import__('numpy') and print(len(os.listdir('/proc/self/task')))\n"
        "cli.main(['hub'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "1\n", done.stderr


def test_a_demo_without_room_for_temporary_files_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "write_text", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
    assert cli.main(["demo"]) == 1
    why = "the demo needs a little room for temporary files: No space left on device"
    assert capsys.readouterr() == ("", f"streamer: {why}\n")


@pytest.mark.parametrize(
    ("broken", "part"),
    [
        ("from streamer.wall.history import History; History.add = None", "page"),
        ("from streamer.hub import Hub; Hub._tick = None", "hub"),
    ],
)
def test_hub_without_a_part_of_it_ends(broken: str, part: str) -> None:
    broken = f"import sys; from streamer.cli import main; {broken}; sys.exit(main(sys.argv[1:]))"
    arguments = ["hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]
    done = subprocess.run(
        [sys.executable, "-c", broken, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"streamer: the {part} has failed: 'NoneType' object is not callable"


def test_page_that_fails_at_once_is_no_setting_to_put_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("streamer.wall.FanOut", mock.Mock(side_effect=KeyError("no display")))
    assert cli.main(["hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]) == 1
    assert capsys.readouterr() == ("", "streamer: the page has failed: 'no display'\n")


def test_sender_without_its_camera_s_thread_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_camera() -> NoReturn:
        raise KeyError("a bug of the camera's library")

    monkeypatch.setattr(cameras, "opener", lambda *_, **__: open_camera)
    assert cli.main(["send", "--hub", NOWHERE, "--name", "pi1"]) == 1
    assert capsys.readouterr().err == 'streamer: pi1: KeyError: "a bug of the camera\'s library"\n'


@pytest.mark.parametrize(
    "arguments",
    [["hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"], [*PATTERN, "--hub", NOWHERE]],
    ids=["hub", "send"],
)
def test_command_leaves_nothing_behind(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, notify: NotifySocket
) -> None:
    def left() -> tuple[object, ...]:
        gc.collect()  # else what other tests have left may go in between
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        return wakeup, handlers, set(threading.enumerate()), len([*Path("/proc/self/fd").iterdir()])

    monkeypatch.setattr(cli.Signals, "wait", lambda *_: True)
    monkeypatch.setenv("NOTIFY_SOCKET", notify.path)
    assert cli.main(arguments) == 0  # what is kept for good is there from now on
    before = left()
    assert cli.main(arguments) == 0
    assert left() == before


def test_ctrl_c_ends_what_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Page) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(Page, "cameras", interrupted)
    assert cli.main(["status", "--wait", "60"]) == 128 + signal.SIGINT
    assert capsys.readouterr() == ("", "")


def test_libraries_of_cameras_are_quiet_unless_asked_not_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBCAMERA_LOG_LEVELS", raising=False)
    monkeypatch.setenv("OPENCV_LOG_LEVEL", "DEBUG")
    assert cli.main(["send", "--print-config"]) == 0
    assert (os.environ["LIBCAMERA_LOG_LEVELS"], os.environ["OPENCV_LOG_LEVEL"]) == ("*:ERROR", "DEBUG")
    monkeypatch.delenv("OPENCV_LOG_LEVEL")
    assert cli.main(["send", "--print-config"]) == 0
    assert os.environ["OPENCV_LOG_LEVEL"] == "SILENT"
    assert logging.getLogger("picamera2").level == logging.WARNING


def test_address_that_cannot_be_listened_on_is_named_and_what_would_be_right(tmp_path: Path) -> None:
    socket_file = tmp_path / "hub.yml"
    socket_file.write_text(f"http_socket: {tmp_path}\n")
    nowhere = ["--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]
    taken = "Address already in use; end what listens there, another hub perhaps, or give another"
    with running_hub(tmp_path) as (_, endpoint, wall):
        address = wall.removeprefix("http://").rstrip("/")
        for arguments, error in (
            (["hub", *nowhere, "--bind", endpoint], f"--bind: cannot listen on {endpoint}: {taken}"),
            (["hub", *nowhere, "--http", address], f"--http: cannot listen on http {address}: {taken}"),
            ([*PATTERN, "--publish", endpoint], f"--publish: cannot listen on {endpoint}: {taken}"),
            (
                ["hub", *nowhere, "--config", str(socket_file)],
                f"{socket_file}: http_socket: cannot listen on {tmp_path}: it exists already and is not a socket; "
                "give another",
            ),
        ):
            done = run(*arguments)
            assert (done.returncode, done.stdout, done.stderr) == (2, "", f"streamer: {error}\n")


def test_version_and_help_need_nothing_that_is_not_needed() -> None:
    assert run("--version").stdout == f"streamer {streamer.__version__}\n"
    script = "import sys, streamer.cli; print(sorted({'zmq', 'numpy', 'cv2', 'aiohttp', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_only_the_open_camera_can_refuse_ends_the_sender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def open_camera() -> NoReturn:
        raise ConfigError("controls: AfMode is 3: it must be Manual or Auto")

    asked: dict[str, Any] = {}

    def opener(source: str, **settings: Any) -> Callable[[], NoReturn]:
        asked.update(settings)
        return open_camera

    monkeypatch.setattr(cameras, "opener", opener)
    file = tmp_path / "sender.yml"
    file.write_text(f"hubs: {NOWHERE}\nhflip: true\nencoder: software\ncontrols: {{AfMode: 3}}\n")
    assert cli.main(["send", "--config", str(file), "--vflip", "--rotate", "180"]) == 2
    assert capsys.readouterr().err == f"streamer: {file}: controls: AfMode is 3: it must be Manual or Auto\n"
    wanted = {"hflip": True, "vflip": True, "rotate": 180, "encoder": "software", "controls": (("AfMode", 3),)}
    assert wanted.items() <= asked.items()


def test_sender_of_the_test_card_loads_neither_numpy_nor_opencv(tmp_path: Path) -> None:
    with running_hub(tmp_path) as (_, endpoint, wall), running(tmp_path, *sender_flags(endpoint)) as sender:
        assert run("status", "--hub", wall, "--wait", "20", "pi1").returncode == 0
        mapped = Path(f"/proc/{sender.process.pid}/maps").read_text()
        assert "zmq" in mapped
        assert not re.search(r"numpy|cv2|opencv", mapped)


def test_every_flag_says_what_it_is_for_and_what_it_is_without() -> None:
    helps = {
        (parser.prog, option): action.help or ""
        for parser in parsers(cli._parser())
        for action in parser._actions
        for option in action.option_strings
    }
    assert [flag for flag, said in helps.items() if not said] == []
    for key in ("camera", "size", "fps", "quality"):
        default = SenderConfig.__dataclass_fields__[key].default
        assert helps["streamer send", f"--{key}"].endswith(f"; {format(default, 'g' * (key == 'fps'))} by default")


@pytest.mark.parametrize("command", ["send", "hub"])
def test_print_config_prints_the_manual(command: str, tmp_path: Path) -> None:
    printed = run(command, "--print-config")
    assert printed.returncode == 0
    assert printed.stdout.startswith(f"# `streamer {command} --config")


# -- what is set reaches what it is for


def asked_for(
    monkeypatch: pytest.MonkeyPatch, part: str, *arguments: str
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Run a command until it makes a part; return with what."""
    made: list[tuple[tuple[object, ...], dict[str, object]]] = []

    def make(*positional: object, **keywords: object) -> NoReturn:
        made.append((positional, keywords))
        raise ConfigError("enough")

    monkeypatch.setattr(part, make)
    assert cli.main(arguments) == 2
    return made[0]


def test_what_a_sender_s_file_says_reaches_the_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sender.yml"
    file.write_text(
        f"{{name: door, hubs: ['{NOWHERE}'], curve_key_file: k, curve_hub_keys: ['{PUBLIC}'], camera: pattern, fps: 8, "
        "in_flight_limit: 3, reply_timeout_s: 4}"
    )
    assert asked_for(monkeypatch, "streamer.sender.Sender", "send", "--config", str(file)) == (
        ((NOWHERE,), "door"),
        {
            "publish": None,
            "in_flight_limit": 3,
            "reply_timeout_s": 4.0,
            "every_s": 0.125,
            "release": streamer.__version__,
            "curve_key_file": Path("k"),
            "curve_hub_keys": (PUBLIC,),
        },
    )
    publish = "tcp://127.0.0.1:0"
    asked = asked_for(monkeypatch, "streamer.sender.Sender", *PATTERN, "--publish", publish)
    assert (asked[0][0], asked[1]["publish"]) == ((), publish)


def test_what_a_hub_s_file_says_reaches_the_hub_and_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hub.yml"
    file.write_text(
        "{bind: 'tcp://127.0.0.1:0', curve_key_file: k, curve_allowed_file: a, plain_bind: 'tcp://127.0.0.1:1', "
        "cameras: [door], stale_after_s: 5, gone_after_s: 50}"
    )
    flags = ("--config", str(file), "--subscribe", NOWHERE, "--subscribe", "tcp://pi2:5555")
    assert asked_for(monkeypatch, "streamer.hub.Hub", "hub", *flags) == (
        ("tcp://127.0.0.1:0",),
        {
            "subscribe": (NOWHERE, "tcp://pi2:5555"),
            "cameras": ("door",),
            "stale_after_s": 5.0,
            "gone_after_s": 50.0,
            "curve_key_file": Path("k"),
            "curve_allowed_file": Path("a"),
            "plain_bind": "tcp://127.0.0.1:1",
        },
    )
    monkeypatch.undo()
    file.write_text("{bind: 'tcp://127.0.0.1:0', http: '127.0.0.1:8088', http_socket: /run/hub.sock}")
    (hub, *address), keywords = asked_for(monkeypatch, "streamer.wall.Wall", "hub", "--config", str(file))
    assert isinstance(hub, streamer.Hub)
    assert (address, keywords["socket"], keywords["tls"]) == (["127.0.0.1", 8088], Path("/run/hub.sock"), None)


@pytest.mark.parametrize(
    ("unencrypted", "allowed", "told"),
    [
        ("tcp://*:0", None, "WARNING not encrypted, anybody who reaches {} may send (README, Who may send)"),
        ("tcp://127.0.0.1:0", None, ""),
        (None, 2, "INFO encrypted, 2 keys of {} may send"),
        (None, 0, "WARNING encrypted, no keys of {} may send"),
        (
            "tcp://*:0",
            1,
            "INFO encrypted, 1 key of {} may send; "
            "not encrypted, anybody who reaches {} may send (README, Who may send)",
        ),
    ],
)
def test_a_hub_that_others_reach_says_who_may_send(
    unencrypted: str | None, allowed: int | None, told: str, curve: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    if allowed is None:
        settings: dict[str, Any] = {"bind": unencrypted}
    else:
        settings = {"bind": LOCAL, "plain_bind": unencrypted, **curve.hub}
        curve.allowed.write_text("".join(f"pi1 {pair.public}\n" for pair in [*curve.pairs.values()][:allowed]))
    with streamer.Hub(**settings) as hub:
        cli._say_who_may_send(hub, settings.get("curve_allowed_file"))
        names = [hub.endpoint] if allowed is None else [curve.allowed, hub.plain_endpoint]
    said = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    assert said == [told.format(*names)] * bool(told)


def test_ipv6_s_loopback_is_no_network(caplog: pytest.LogCaptureFixture) -> None:
    for host in ("[::1]", "[::]"):
        cli._say_who_may_send(mock.Mock(keys_allowed=None, endpoint=f"tcp://{host}:5555"), None)
    assert [re.sub(r".*(tcp://\S*).*", r"\1", message) for message in caplog.messages] == ["tcp://[::]:5555"]


def test_a_hub_may_have_more_descriptors_than_a_shell_gives(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        with running_hub(tmp_path) as (hub, _, _):
            limits = Path(f"/proc/{hub.process.pid}/limits").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = re.search(r"Max open files +(\S+)", limits)
    assert allowed
    assert allowed[1] == str(min(8192, hard))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 4096), [(4096, 4096)]),
        ((1024, resource.RLIM_INFINITY), [(8192, resource.RLIM_INFINITY)]),
        ((100_000, 1_000_000), [(100_000, 1_000_000)]),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), []),
    ],
)
def test_limit_of_descriptors_is_only_ever_raised(
    before: tuple[int, int], after: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    cli._allow_descriptors()
    assert limits == after


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a screen is always there")
def test_what_a_screen_is_waited_for_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = ["there is none", "there is none", "it lets nobody in", "it lets nobody in"]
    done = threading.Event()

    def find(_: object) -> screen.Screen:
        if answers:
            raise TransportError(answers.pop(0))
        assert done.wait(10)
        return screen.Screen(640, 480, is_managed=True)

    monkeypatch.setattr(screen, "_EVERY_S", 0.01)
    monkeypatch.setattr(screen, "find", find)
    assert screen.wait_for_screen({}, lambda _: not answers) is None, "it is time to end, and there is still none"
    done.set()
    assert screen.wait_for_screen({}, lambda _: False) == (640, 480)
    told = "the windows open when there is one, the page is there meanwhile"
    assert caplog.messages == [f"there is none: {told}", f"it lets nobody in: {told}"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a screen is always there")
def test_nobody_looks_for_a_screen_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(_: object) -> screen.Screen:
        raise TransportError("there is none")

    monkeypatch.setattr(screen, "find", find)
    assert screen.wait_for_screen({}, lambda _: True) is None
    until(lambda: not any(thread.name == "screen" for thread in threading.enumerate()), 4)


# -- starting and dying in every order


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sender_without_a_hub_ends_at_once(tmp_path: Path, number: int) -> None:
    with running(tmp_path, *sender_flags(NOWHERE)) as sender:
        sender.said("(no hub answers)")
        assert sender.end(number) < ENDS_WITHIN_S
        assert re.fullmatch(r"pi1: 0 frames sent, 0 answered, \d+ dropped\n", sender.out)


def test_sender_that_publishes_says_where_and_nothing_of_answers(tmp_path: Path) -> None:
    flags = ["--name", "pi1", "--camera", "pattern", "--size", "176x144"]
    flags += ["--publish", "tcp://127.0.0.1:0"]
    with running(tmp_path, "send", *flags, JOURNAL_STREAM="8:1") as sender:  # as under systemd, which has the time
        sender.said(r"(?m)^INFO: pi1: publishing on (tcp://127\.0\.0\.1:\d+)\n")
        sender.end()
        assert re.match(r"pi1: \d+ frames sent, \d+ dropped\n", sender.out)


def test_sender_that_was_refused_says_so_in_its_summary(tmp_path: Path) -> None:
    with running_hub(tmp_path) as (hub, endpoint, _), running(tmp_path / "first", *sender_flags(endpoint)):
        hub.said(r"(?m)^(\d\d:\d\d:\d\d) INFO: pi1: LIVE")
        with running(tmp_path / "second", *sender_flags(endpoint)) as second:
            second.said("(refuses the frames)")
            second.end()
        said = re.search(r"pi1: \d+ frames sent, (\d+) answered \((\d+) of them refused\), \d+ dropped", second.out)
        assert said
        assert 1 <= int(said[2]) <= int(said[1])


def test_summary_of_a_single_frame(capsys: pytest.CaptureFixture[str]) -> None:
    done = SenderStatistics(1, 0, 0, 0, bytes=len(JPEG), last=memoryview(JPEG), elapsed_s=0.0, hub=None)
    cli._summarise_sender(mock.Mock(statistics=done), publishes=False)
    assert capsys.readouterr().out.splitlines()[-1] == "Elapsed: 0.00 s; 0.00 frames/s"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", ["hub", "sender"])
def test_hub_and_sender_end_in_either_order(tmp_path: Path, number: int, first: str) -> None:
    with running_hub(tmp_path) as (hub, endpoint, wall), running(tmp_path, *sender_flags(endpoint)) as sender:
        assert run("status", "--hub", wall, "--wait", "20", "pi1").returncode == 0
        for command in (hub, sender) if first == "hub" else (sender, hub):
            assert command.end(number) < ENDS_WITHIN_S
        assert re.search(r"Frames received: [1-9]\d* from 1 camera in (?!0\.00)[\d.]+ s, [1-9][\d.]* frames/s", hub.out)
        row = hub.out.splitlines()[-1].split()
        assert row[0] == "pi1"
        frames, fps, size, image_size, ratio = int(row[1]), float(row[2]), int(row[5]), int(row[7]), float(row[9])
        assert frames > 0
        assert fps > 0
        assert image_size == 176 * 144 * 3
        assert ratio == pytest.approx(size / image_size, abs=0.001)
        assert re.search(r"pi1: [1-9]\d* frames sent, [1-9]\d* answered, \d+ dropped", sender.out)
        assert re.search(
            r"Last JPEG: \d+ bytes; last image: 76032 bytes \(176x144\), compression ratio 0\.\d+", sender.out
        )
        assert re.search(r"Elapsed: [\d.]+ s; [\d.]+ frames/s", sender.out)


def test_summary_of_a_hub_knows_an_array_from_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    frames = {
        "pi1": Frame("pi1", JPEG, 16, 8, 1),
        "pi2": Frame("pi2", bytes(128), 16, 8, 1, dtype="uint8", shape=(8, 16)),
    }
    statuses = [Status(name, "LIVE", frames=30, dropped=2, lost=1) for name in (*frames, "pi3")]
    cli._summarise_hub(mock.Mock(cameras=lambda: statuses, latest=frames.get, elapsed_s=4.0))
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head == "Frames received: 60 from 2 cameras in 4.00 s, 15.00 frames/s"
    assert [" ".join(row.split()) for row in rows] == [
        f"pi1 30 7.50 2 1 {len(JPEG)} bytes 384 bytes {len(JPEG) / 384:.3f}",
        "pi2 30 7.50 2 1 128 bytes 128 bytes 1.000",
    ]


def test_sender_of_a_frozen_hub_ends_at_once(tmp_path: Path) -> None:
    with running_hub(tmp_path) as (hub, endpoint, wall), running(tmp_path, *sender_flags(endpoint)) as sender:
        assert run("status", "--hub", wall, "--wait", "20", "pi1").returncode == 0
        hub.process.send_signal(signal.SIGSTOP)
        sender.said("(no hub answers)")
        assert sender.end() < ENDS_WITHIN_S


def test_hub_of_a_frozen_sender_ends_at_once(tmp_path: Path) -> None:
    with running_hub(tmp_path) as (hub, endpoint, wall), running(tmp_path, *sender_flags(endpoint)) as sender:
        assert run("status", "--hub", wall, "--wait", "20", "pi1").returncode == 0
        sender.process.send_signal(signal.SIGSTOP)
        hub.said("(STALE, was LIVE)")
        assert hub.end() < ENDS_WITHIN_S


# -- what systemd hears


class NotifySocket:
    """The socket that systemd listens on."""

    def __init__(self, place: Path) -> None:
        self.path = str(place / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(0.05)
        self.heard: list[str] = []

    def has(self, state: str) -> bool:
        try:
            while True:
                self.heard.append(self._socket.recv(4096).decode())
        except TimeoutError:
            return state in self.heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[NotifySocket]:
    notify = NotifySocket(tmp_path)
    yield notify
    notify.close()


def test_sender_is_ready_with_its_first_picture_whatever_the_hub_does(tmp_path: Path, notify: NotifySocket) -> None:
    with running(tmp_path, *sender_flags(NOWHERE), NOTIFY_SOCKET=notify.path) as sender:
        until(lambda: notify.has("READY=1"), 20)
        until(lambda: notify.has("WATCHDOG=1") and notify.heard.count("WATCHDOG=1") >= 3, 20)
        assert sender.end() < ENDS_WITHIN_S
        assert notify.has("STOPPING=1")


def test_sender_without_a_picture_is_never_ready(tmp_path: Path, notify: NotifySocket) -> None:
    flags = ["send", "--hub", NOWHERE, "--name", "pi1", "--camera", "file:/nowhere.mp4"]
    with running(tmp_path, *flags, NOTIFY_SOCKET=notify.path) as sender:
        sender.said("(file:/nowhere.mp4: there is no such file; trying again)")
        sender.said("(no hub answers)")
        assert not notify.has("READY=1")
        assert "WATCHDOG=1" not in notify.heard
        assert sender.end() < ENDS_WITHIN_S


def test_frozen_camera_starves_the_watchdog(tmp_path: Path, notify: NotifySocket) -> None:
    script = (
        "import sys, time\n"
        "from streamer.cameras.pattern import Pattern\n"
        "from streamer.cli import main\n"
        "read = Pattern.read\n"
        "Pattern.read = lambda self: time.sleep(3600) if self._count == 5 else read(self)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "NOTIFY_SOCKET": notify.path}
    with subprocess.Popen([sys.executable, "-c", script, *sender_flags(NOWHERE)], env=environment) as process:
        until(lambda: notify.has("READY=1"), 20)
        until(lambda: notify.has("STATUS=5 pictures; no hub answers"), 20)
        fed = notify.heard.count("WATCHDOG=1")
        notify.heard.clear()
        # Two more rounds of the supervising loop are seen by their status, and none of them feeds.
        until(lambda: notify.has("STATUS=5 pictures; no hub answers") and len(notify.heard) >= 2, 20)
        assert fed >= 1
        assert "WATCHDOG=1" not in notify.heard
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENDS_WITHIN_S + 1) == 0


def test_hub_is_ready_when_it_listens_and_feeds_the_watchdog_without_cameras(
    tmp_path: Path, notify: NotifySocket
) -> None:
    arguments = ["hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]
    with running(tmp_path, *arguments, NOTIFY_SOCKET=notify.path) as hub:
        until(lambda: notify.has("READY=1"), 20)
        assert "wall: " in hub.out
        until(lambda: notify.has("WATCHDOG=1"), 20)
        assert hub.end() < ENDS_WITHIN_S
        assert notify.has("STOPPING=1")
        assert hub.out.splitlines()[2:] == ["Frames received: 0"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_hub_of_which_the_output_goes_to_a_full_disk_serves(tmp_path: Path, notify: NotifySocket) -> None:
    arguments = ["hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen(
            [sys.executable, "-m", "streamer", *arguments],
            stdout=full,
            stderr=full,
            env={**os.environ, "NOTIFY_SOCKET": notify.path},
        ) as process,
    ):
        until(lambda: notify.has("READY=1") and notify.heard.count("WATCHDOG=1") >= 2, 20)
        process.send_signal(signal.SIGTERM)
        process.wait(ENDS_WITHIN_S + 1)


def test_hub_of_which_nobody_reads_the_output_receives_and_ends_and_says_later_what_is_left_out(unread: Unread) -> None:
    with listener() as (_, endpoint):
        pass
    command = [sys.executable, "-m", "streamer", "hub", "--bind", endpoint, "--http", "127.0.0.1:0"]
    with (
        subprocess.Popen(command, stdout=unread.writer, stderr=unread.writer) as hub,
        Sender(endpoint, "pi1") as one,
        Sender(endpoint, "pi2") as two,
    ):
        for sender in (one, two):
            while sender.statistics.answered < 20:
                sender.send(JPEG)
        unread.read()
        with Sender(endpoint, "pi3") as three:
            three.send(JPEG)
            until(lambda: select.select([unread.reader], [], [], 0)[0])
            assert "WARNING: nobody read this log for a while: 2 messages are left out\n" in unread.read()
        unread.fill()
        hub.send_signal(signal.SIGTERM)
        assert hub.wait(ENDS_WITHIN_S) == 0


def test_sender_of_which_nobody_reads_the_output_sends_and_ends(unread: Unread) -> None:
    with Hub(LOCAL) as hub:
        command = [sys.executable, "-m", "streamer", *sender_flags(hub.endpoint or "")]
        with subprocess.Popen(command, stdout=unread.writer, stderr=unread.writer) as sender:
            until(lambda: (newest := hub.latest("pi1")) and newest.seq and newest.seq >= 20, 20)
            sender.send_signal(signal.SIGTERM)
            assert sender.wait(ENDS_WITHIN_S) == 0


def test_a_long_message_is_logged_piece_by_piece_and_one_that_cannot_be_is_not_waited_for(
    unread: Unread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(unread.writer, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        log = cli._Log()
        unread.read(8192)
        log.handle(logging.LogRecord("x", logging.INFO, "", 0, "a" * 20_000, None, None))
        assert 0 < unread.read().count("a") <= 8192
        for text in ("b" * 20_000, "c"):
            log.handle(logging.LogRecord("x", logging.INFO, "", 0, text, None, None))
        assert unread.read() == f"nobody read this log for a while: 1 message is left out\n{'b' * 20_000}\nc\n"


@pytest.mark.parametrize(
    ("command", "part"),
    [
        pytest.param("hub", "hub:Hub._tick", id="the hub's receiving thread"),
        pytest.param("hub", "hub:Hub.cameras", id="the wall's event loop"),
        pytest.param("send", "sender:_Link.receive", id="the sender's thread"),
    ],
)
def test_part_that_is_stuck_starves_the_watchdog(command: str, part: str, tmp_path: Path, notify: NotifySocket) -> None:
    stuck = tmp_path / "stuck"
    module, _, method = part.partition(":")
    script = (
        "import pathlib, sys, time\n"
        f"from streamer.{module} import {method.partition('.')[0]}\n"
        "from streamer.cli import main\n"
        f"works = {method}\n"
        "def wedged(*arguments):\n"
        f"    while pathlib.Path({str(stuck)!r}).exists():\n"
        "        time.sleep(0.05)\n"
        "    return works(*arguments)\n"
        f"{method} = wedged\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    hub = ["hub", "--bind", "tcp://127.0.0.1:0", "--http", "127.0.0.1:0"]
    arguments = hub if command == "hub" else sender_flags(NOWHERE)
    environment = {**os.environ, "NOTIFY_SOCKET": notify.path}

    def fed_within(seconds: float) -> bool:
        notify.has("")
        notify.heard.clear()
        deadline = time.monotonic() + seconds
        while not notify.has("WATCHDOG=1") and time.monotonic() < deadline:
            pass
        return "WATCHDOG=1" in notify.heard

    with subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment) as process:
        assert fed_within(20)
        stuck.touch()
        fed_within(1.5)  # by a round that had begun
        assert not fed_within(2.5)
        stuck.unlink()
        assert fed_within(20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENDS_WITHIN_S + 1) == 0


# -- status and demo


def test_status_shows_what_the_hub_knows(tmp_path: Path) -> None:
    config = tmp_path / "hub.yml"
    config.write_text("cameras: [pi1, pi2]\n")
    with (
        running_hub(tmp_path, "--config", str(config)) as (_, endpoint, wall),
        running(tmp_path, *sender_flags(endpoint)),
    ):
        assert run("status", "--hub", wall, "--wait", "20", "pi1").returncode == 0
        table = run("status", "--hub", wall).stdout.splitlines()
        assert table[0].split()[:3] == ["camera", "state", "fps"]
        assert table[1].split()[:2] == ["pi1", "LIVE"]
        assert table[1].split()[-2:] == ["127.0.0.1", streamer.__version__]
        assert re.fullmatch(r"pi1 +LIVE +\d+\.\d/30 +\d\.\d\d +\d+\.\d ±\d+\.\d +\d+ .*", table[1])
        assert table[2].split() == ["pi2", "WAITING", "0.0", "-", "-", "0", "0", "0", "0", "-", "0", "-", "-"]
        not_all = run("status", "--hub", wall, "--wait", "0.1", "--json")
        assert not_all.returncode == 1
        assert {row["name"]: row["state"] for row in json.loads(not_all.stdout)} == {"pi1": "LIVE", "pi2": "WAITING"}
        assert not_all.stderr == "streamer: not LIVE and moving within 0.1 s: pi2 is WAITING\n"
        assert run("status", "--hub", wall, "pi2").returncode == 0
        for wait in ([], ["--wait", "0.1"]):
            stranger = run("status", "--hub", wall, *wait, "--json", "pi1", "pi7")
            assert stranger.returncode == 1
            assert [row["state"] for row in json.loads(stranger.stdout)] == ["LIVE", "UNKNOWN"]
            assert stranger.stderr == "streamer: the hub knows no camera pi7; its cameras are: pi1, pi2\n"


def test_status_where_the_output_is_closed_ends_well(tmp_path: Path) -> None:
    with running_hub(tmp_path) as (_, _, wall):
        closed = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        command = [sys.executable, "-c", closed, "-m", "streamer", "status", "--hub", wall]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_status_of_a_hub_without_cameras_says_so(tmp_path: Path) -> None:
    with running_hub(tmp_path) as (_, _, wall):
        done = run("status", "--hub", wall)
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["No camera has come yet."])


def test_status_waits_for_a_camera_that_the_hub_does_not_know_yet(tmp_path: Path) -> None:
    with (
        running_hub(tmp_path) as (_, endpoint, wall),
        running(tmp_path, "status", "--hub", wall, "--wait=20", "pi1") as it,
    ):
        time.sleep(1)
        assert it.process.poll() is None
        with running(tmp_path, *sender_flags(endpoint)):
            assert it.process.wait(20) == 0
            assert it.out.splitlines()[1].split()[:2] == ["pi1", "LIVE"]


ROW = {
    "name": "pi1",
    "state": "LIVE",
    "fps": 29.94,
    "age_s": 0.016,
    "latency_ms": 12.345,
    "frames": 100,
    "dropped": 2,
    "lost": 1,
    "width": 640,
    "height": 480,
    "bytes_per_s": 1_234_567,
    "address": "192.0.2.1",
}


@pytest.mark.parametrize(
    ("told", "line"),
    [
        pytest.param(
            {"latency_error_ms": 0.412, "wanted_fps": 30.0, "reconnects": 3, "release": "0.1.0+a968bc91298f.py313"},
            "pi1 LIVE 29.9/30 0.02 12.3 ±0.4 100 2 1 3 640x480 1235 192.0.2.1 0.1.0+a968bc91",
            id="all",
        ),
        pytest.param(
            {"latency_error_ms": 0.012, "wanted_fps": 29.97, "reconnects": 0, "release": "0.1.0"},
            "pi1 LIVE 29.9/29.97 0.02 12.3 ±0.1 100 2 1 0 640x480 1235 192.0.2.1 0.1.0",
            id="an error that the table's digits cannot show",
        ),
        pytest.param(
            {"latency_ms": None, "latency_error_ms": None, "wanted_fps": None, "reconnects": 0, "release": None},
            "pi1 LIVE 29.9 0.02 - 100 2 1 0 640x480 1235 192.0.2.1 -",
            id="stock sender",
        ),
        pytest.param(
            {"latency_ms": None, "rival": "192.0.2.2", "still_s": 12.3},
            "pi1 LIVE 29.9 0.02 - 100 2 1 - 640x480 1235 192.0.2.1 - "
            "pi1: another sender at 192.0.2.2 has this name too, and is refused "
            "pi1: its picture has been the same for 12 s",
            id="odd",
        ),
        pytest.param({}, "pi1 LIVE 29.9 0.02 - 100 2 1 - 640x480 1235 192.0.2.1 -", id="hub of an older release"),
    ],
)
def test_status_tells_what_is_known(
    told: dict[str, object], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Page, "cameras", lambda _: ([ROW | told], ""))
    assert cli.main(["status"]) == 0
    assert " ".join(" ".join(capsys.readouterr().out.splitlines()[1:]).split()) == line


def status_on_a_terminal(width: int, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of `streamer status` where standard output is a terminal of this width."""
    monkeypatch.setattr(Page, "cameras", lambda _: (rows, ""))
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    with os.fdopen(ours, "rb", buffering=0) as reader, os.fdopen(its, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert cli.main(["status"]) == 0
        monkeypatch.undo()
        said = b""
        while select.select([reader], [], [], 0)[0]:
            said += reader.read(65536)
    return said.decode().splitlines()


def fleet_of(count: int, name: str = "pi{}") -> list[dict[str, Any]]:
    """Rows of cameras in every state, after some time."""
    odd: dict[str, dict[str, Any]] = {
        "STALE": {"age_s": 7.4, "latency_ms": None},
        "GONE": {"age_s": 98213.5, "latency_ms": None, "still_s": 12.3},
        "WAITING": {"age_s": None, "latency_ms": None, "width": 0, "frames": 0, "address": None, "rival": "192.0.2.9"},
    }
    told: dict[str, Any] = {
        "latency_error_ms": 0.4,
        "wanted_fps": 30.0,
        "reconnects": 3,
        "release": "0.1.0+a968bc91298f.py313",
    }
    long: dict[str, Any] = {"frames": 12_345_678, "dropped": 12_345, "address": "192.168.100.100"}
    states = ["LIVE", *odd, "LIVE"]
    return [
        ROW | told | long | {"name": name.format(i), "state": states[i % 5]} | odd.get(states[i % 5], {})
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [8, 40])
@pytest.mark.parametrize("name", ["pi{}", "garden-{:02d}-gate"])
@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_status_fits_the_terminal(count: int, name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    head, *lines = status_on_a_terminal(width, fleet_of(count, name), monkeypatch)
    assert max(len(line) for line in (head, *lines[:count])) <= width
    assert re.match("camera +state +fps +age s +latency ms", head)
    assert len({line.split()[0] for line in lines[:count]}) == count, "each can be told from the others"
    assert re.fullmatch("Left out here: (.+, )?frames(, .+)?", lines[count])
    assert lines[count + 1] == f"{name.format(2)}: its picture has been the same for 12 s", "with its whole name"


def test_status_shows_all_that_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, *_ = status_on_a_terminal(200, fleet_of(8), monkeypatch)
    assert wide.endswith("reconnects     size  kB/s          address         release")
    narrow = status_on_a_terminal(80, fleet_of(8), monkeypatch)
    assert narrow[0] == "camera    state      fps  age s  latency ms  dropped  lost  reconnects     size"
    assert narrow[3] == "pi2        GONE  29.9/30  98214           -    12345     1           3  640x480"
    assert narrow[9] == "Left out here: frames, kB/s, address, release"
    unknown = status_on_a_terminal(0, fleet_of(8), monkeypatch)  # as a serial line says
    assert unknown == narrow


@pytest.mark.parametrize(
    ("prefix", "release"),
    [
        ("/opt/streamer/releases/{}+a968bc91298f.py313", "{}+a968bc91298f.py313"),
        ("/opt/streamer/releases/{}+a968bc91298f.py313/", "{}+a968bc91298f.py313"),
        ("/home/pi/.venv", "{}"),
        ("/home/pi/{}", "{}"),
        ("/home/pi/0.0.0+a968bc91298f", "{}"),
    ],
)
def test_the_release_that_runs_is_named_by_its_directory(
    prefix: str, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", prefix.format(streamer.__version__))
    assert cli._release() == release.format(streamer.__version__)


def test_status_waits_for_pictures_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Page, "cameras", lambda _: ([ROW], ""))
    assert cli.main(["status", "--wait", "0"]) == 1
    assert cli.main(["status", "--wait", "0.6"]) == 1
    later = itertools.count()
    monkeypatch.setattr(Page, "cameras", lambda _: ([ROW | {"frames": next(later)}], ""))
    assert cli.main(["status", "--wait", "10"]) == 0
    assert cli.main(["status", "--wait", "0"]) == 0
    monkeypatch.setattr(
        Page, "cameras", lambda _: ([ROW | {"frames": count}] if (count := next(later)) % 9 else [], "")
    )
    later = itertools.count()  # at first it knows no camera
    assert cli.main(["status", "--wait", "10"]) == 0


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (
            [ROW, ROW | {"name": "pi2", "state": "STALE"}, ROW | {"name": "pi3", "state": "GONE"}],
            "pi1 is LIVE without a new frame, pi2 is STALE, pi3 is GONE",
        ),
        ([], "the hub has no camera"),
    ],
)
def test_status_that_has_waited_in_vain_says_for_what(
    rows: list[dict[str, Any]], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Page, "cameras", lambda _: (rows, ""))
    assert cli.main(["status", "--wait", "0"]) == 1
    assert capsys.readouterr().err == f"streamer: not LIVE and moving within 0 s: {why}\n"
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().err == ""


def test_what_a_script_may_rely_on_is_in_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", "--help"]) == 0
    promised = " ".join(capsys.readouterr().out.split()).partition("Exit status: ")[2]
    assert promised.startswith("0, whatever the cameras' states; 1 if no hub answers or it knows no camera NAME")
    monkeypatch.setattr(Page, "cameras", lambda _: ([ROW | {"state": "GONE"}], ""))
    assert [cli.main(["status", *arguments]) for arguments in ([], ["pi2"], ["--wait=0"], ["--wat"])] == [0, 1, 1, 2]


def test_status_without_a_hub_says_so() -> None:
    done = run("status", "--hub", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "streamer: no hub answers at http://127.0.0.1:9/api/cameras: Connection refused\n"


def test_keys_are_made_shown_and_used_and_no_secret_is_told(tmp_path: Path, curve: Keys) -> None:
    made = run("keys", "make", str(tmp_path / "pi2.key"))
    shown = run("keys", "show", str(tmp_path / "pi2.key"))
    assert (made.returncode, shown.returncode) == (0, 0)
    assert made.stdout == shown.stdout
    assert re.fullmatch(r"curve-public:[0-9a-f]{64}\n", made.stdout)
    assert run("keys", "make", str(tmp_path / "pi2.key")).returncode == 2

    curve.allowed.write_text(f"pi2 {shown.stdout}")
    flags = ["--key", str(tmp_path / "hub.key"), "--allowed", str(curve.allowed), "--plain-bind", "tcp://127.0.0.1:0"]
    with running_hub(tmp_path / "hub", *flags) as (hub, endpoint, _):
        plain = hub.said(r"plain: (\S+)")
        hub.said(f"(INFO: encrypted, 1 key of {curve.allowed} may send\n)")
        own = ["--key", str(tmp_path / "pi2.key"), "--hub-key", curve.pairs["hub"].public]
        strange = ["--key", str(tmp_path / "stranger.key"), "--hub-key", curve.pairs["hub"].public]
        with (
            running(tmp_path / "pi2", *sender_flags(endpoint, "pi2"), *own) as sender,
            running(tmp_path / "pi3", *sender_flags(endpoint, "pi3"), *strange) as stranger,
            running(tmp_path / "stock", *sender_flags(plain, "stock")) as stock,
        ):
            hub.said("(pi2: LIVE)")
            hub.said("(stock: LIVE)")
            hub.said(r"(refused \d+ from 127.0.0.1: curve-public:)")
            stranger.said("(refuses this sender's key)")
            told = [each.out + each.err + each.command_line for each in (hub, sender, stranger, stock)]
    secret = (tmp_path / "pi2.key").read_text().strip().partition(":")[2]
    assert secret not in "".join(told)
    curve.no_secret_in("".join(told))


def children_of(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_takes_all_of_its_processes_down(tmp_path: Path, number: int) -> None:
    with running(tmp_path, "demo", "--cameras", "3") as demo:
        wall = demo.said(r"The wall: (\S+)")
        assert run("status", "--hub", wall, "--wait", "20").returncode == 0
        children = children_of(demo.process.pid)
        assert len(children) == 4
        # From a terminal, Ctrl-C reaches the demo alone, which ends them.
        assert not {os.getpgid(child) for child in children} & {os.getpgid(demo.process.pid)}
        if number == signal.SIGKILL:
            demo.process.kill()
        else:
            assert demo.end(number) < 2 * ENDS_WITHIN_S
            assert "Frames received: " in demo.out
        until(lambda: not any(alive(child) for child in children))


def test_port_of_a_demo_that_has_just_ended_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not cli._is_free(port)
        with socket.create_connection(("127.0.0.1", port)) as browser:
            server.accept()[0].close()  # the hub's side first, so that the kernel remembers the connection
            assert browser.recv(1) == b""
    assert cli._is_free(port)


def test_demo_goes_on_without_a_camera_that_dies(tmp_path: Path) -> None:
    with running(tmp_path, "demo", "--cameras", "2") as demo:
        wall = demo.said(r"The wall: (\S+)")
        assert run("status", "--hub", wall, "--wait", "20").returncode == 0
        _, *senders = children_of(demo.process.pid)
        os.kill(senders[0], signal.SIGKILL)
        demo.said(r"'(send .*--name pi1 .*)' has ended with status -9")
        assert run("status", "--hub", wall, "--wait", "20", "pi2").returncode == 0
        os.kill(senders[1], signal.SIGKILL)
        demo.said(r"'(send .*--name pi2 .*)' has ended with status -9")
        assert demo.end() < 2 * ENDS_WITHIN_S
        assert demo.out.count("has ended") == 2, "each is told once"


@pytest.mark.parametrize(
    ("number", "status", "error"),
    [
        (signal.SIGTERM, 0, ""),  # as if somebody had pressed q in its windows
        (signal.SIGKILL, 1, "streamer: the demo's hub ended with status -9; see above\n"),
    ],
)
def test_demo_ends_with_its_hub(tmp_path: Path, number: int, status: int, error: str) -> None:
    with running(tmp_path, "demo", "--cameras", "1") as demo:
        demo.said(r"The wall: (\S+)")
        children = children_of(demo.process.pid)
        os.kill(children[0], number)
        assert demo.process.wait(20) == status
        assert demo.err.endswith(error)
        assert "Traceback" not in demo.err
        until(lambda: not any(alive(child) for child in children))
