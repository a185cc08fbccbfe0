from __future__ import annotations

import secrets
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from streamer.systemd import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where systemd would listen, as $NOTIFY_SOCKET says it."""
    if request.param == "path":
        return str(tmp_path / "notify")
    if sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    return f"@streamer-{secrets.token_hex(8)}"


@pytest.fixture
def systemd(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0", 1))
        listener.settimeout(5)
        yield listener


def test_states(systemd: socket.socket, address: str) -> None:
    notifier = Notifier(address)
    notifier.ready()
    notifier.status("7 pictures; tcp://hub:5555 läuft")
    notifier.watchdog()
    notifier.stopping()
    notifier.close()
    assert [systemd.recv(4096).decode() for _ in range(4)] == [
        "READY=1",
        "STATUS=7 pictures; tcp://hub:5555 läuft",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_a_systemd_that_reads_nothing_holds_nobody_up(systemd: socket.socket, address: str) -> None:
    notifier = Notifier(address)

    def notify() -> None:
        for _ in range(5000):  # the kernel keeps some ten, or some hundred
            notifier.watchdog()

    notifying = threading.Thread(target=notify, daemon=True)  # should it block, it would do so for ever
    notifying.start()
    notifying.join(5)
    assert not notifying.is_alive()
    notifier.close()


def test_nobody_listens(address: str) -> None:
    notifier = Notifier(address)
    notifier.ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0", 1))
        listener.settimeout(5)
        notifier.watchdog()
        assert listener.recv(4096) == b"WATCHDOG=1"
    notifier.watchdog()
    notifier.close()


@pytest.mark.parametrize("address", [None, ""])
def test_without_systemd(address: str | None) -> None:
    notifier = Notifier(address)
    notifier.ready()
    notifier.watchdog()
    notifier.status("alone")
    notifier.stopping()
    notifier.close()


def test_after_closing(systemd: socket.socket, address: str) -> None:
    notifier = Notifier(address)
    notifier.close()
    notifier.watchdog()
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)
