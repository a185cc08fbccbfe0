"""What several test files need."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import pytest

from streamer import codec, hub, keys
from streamer.transport import sending

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType, ModuleType

Result = TypeVar("Result")


def until(condition: Callable[[], Result], within_s: float = 10.0) -> Result:
    """Ask again and again until the answer is true, and return it; fail when that takes longer than `within_s`."""
    deadline = time.monotonic() + within_s
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not true within {within_s:g} s"
        time.sleep(0.01)
    return result


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@contextmanager
def at_each_line(module: ModuleType, look: Callable[[], object]) -> Iterator[None]:
    """Call `look` before each line of a module that this thread runs meanwhile: what another thread does just then."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != module.__file__:
            return None
        if event in ("line", "return"):
            look()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def until_all_is_told() -> None:
    """Wait until nobody looks up names any more, to log that there is no peer."""
    until(lambda: not any(thread.name == "telling" for thread in threading.enumerate()))


class SlowNames:
    """A name server that takes its time."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.may_answer = threading.Event()

    def look_up(self, *_: object) -> None:
        self.asked.set()
        self.may_answer.wait()

    def answer(self) -> None:
        """Answer; wait until what comes of it has been logged."""
        self.may_answer.set()
        until_all_is_told()


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowNames]:
    names = SlowNames()
    monkeypatch.setattr(sending, "getaddrinfo", names.look_up)
    yield names
    names.may_answer.set()


JPEG_LIBRARIES = ("simplejpeg", "cv2", "PIL")


@pytest.fixture
def no_jpeg_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in JPEG_LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None)
    codec.library.cache_clear()
    yield
    codec.library.cache_clear()


@pytest.fixture
def no_more_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and the system allows no more threads."""

    def refuse(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    return lambda: monkeypatch.setattr(threading.Thread, "start", refuse)


class HubClock:
    """Stands in for the module `time` in every hub: a test moves it on, so that a camera falls silent at once.

    Hubs then need no time-outs so short that a busy machine makes silent cameras of its own.
    """

    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def hub_clock(monkeypatch: pytest.MonkeyPatch) -> HubClock:
    clock = HubClock()
    monkeypatch.setattr(hub, "time", clock)
    return clock


class Keys:
    """Key files of a hub that knows the camera pi1, of that camera and of a stranger."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.allowed = place / "allowed"
        self.pairs = {name: keys.make_pair(place / f"{name}.key") for name in ("hub", "pi1", "stranger")}
        self.allowed.write_text(f"pi1 {self.pairs['pi1'].public}\n")

    @property
    def hub(self) -> dict[str, Any]:
        """What a Hub is told."""
        return {"curve_key_file": self.place / "hub.key", "curve_allowed_file": self.allowed}

    def sender(self, name: str = "pi1", hub: str = "hub") -> dict[str, Any]:
        """What a Sender is told that has the keys of `name`, and takes the public key of `hub` for the hub's."""
        return {"curve_key_file": self.place / f"{name}.key", "curve_hub_keys": self.pairs[hub].public}

    def no_secret_in(self, text: str) -> None:
        for pair in self.pairs.values():
            assert pair.secret.partition(":")[2] not in text


@pytest.fixture
def curve(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


class Certificate(NamedTuple):
    certificate: Path
    key: Path


def make_certificate(place: Path, *options: str) -> Certificate:
    made = Certificate(place / "cert.pem", place / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    command += ["-subj", "/CN=wall", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", *options]
    subprocess.run([*command, "-out", made.certificate, "-keyout", made.key], check=True, capture_output=True)
    return made


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"), "-nodes")
