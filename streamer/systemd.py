"""Reports a service's state to systemd, by the protocol of sd_notify(3): datagrams to $NOTIFY_SOCKET."""

from __future__ import annotations

import contextlib
import socket


class Notifier:
    """Sends notifications to systemd; without a notify socket it does nothing.

    Args:
        address: the value of $NOTIFY_SOCKET, if set; a leading @ means an abstract socket.
    """

    def __init__(self, address: str | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        if self._socket:
            self._socket.settimeout(0)  # a busy systemd must not block the service

    def ready(self) -> None:
        """Report that the service has started."""
        self._notify("READY=1")

    def watchdog(self) -> None:
        """Feed the watchdog."""
        self._notify("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._notify(f"STATUS={text}")

    def stopping(self) -> None:
        """Report that the service is stopping."""
        self._notify("STOPPING=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket:
            self._socket.close()

    def _notify(self, state: str) -> None:
        if self._socket and self._address:
            with contextlib.suppress(OSError):  # systemd may be restarting: no reason to fail
                self._socket.sendto(state.encode(), self._address)
