"""How to tell whether a host has a secret, without telling the secret."""

from __future__ import annotations

import hashlib
from pathlib import Path


def as_placed(files: dict[str, str]) -> dict[str, str]:
    """Say as what role node's survey.sh finds files that are in place; those without a source are left out.

    Its digest is slow, so that nobody finds a password that a person chose by trying: it gets into logs and onto hosts.

    Args:
        files: the path on the control machine of each, by its name. A path may not be there yet, in check mode.
    """
    return {
        name: f"{_slow_digest(Path(source).expanduser())} 640 root streamer" for name, source in files.items() if source
    }


def _slow_digest(path: Path) -> str:
    if not path.is_file():
        return ""
    return hashlib.scrypt(path.read_bytes(), salt=b"streamer", n=16384, r=8, p=1).hex()


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, object]:
        """The filters by name."""
        return {"as_placed": as_placed}
