"""How to tell whether a host has a secret, without telling the secret."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from ansible.parsing.vault import VaultLib, VaultSecretsContext, is_encrypted


def as_placed(files: dict[str, str]) -> dict[str, str]:
    """Say as what role node's survey.sh finds files that are in place; those without a source are left out.

    Its digest is slow, so that nobody finds a password that a person chose by trying: it gets into logs and onto hosts.

    Args:
        files: the path on the control machine of each, by its name. A path may not be there yet, in check mode.
    """
    return {
        name: f"{_slow_digest(Path(source).expanduser())} 640 root streamer" for name, source in files.items() if source
    }


# Kept, since variables ask anew whenever they are used. No longer than a task, which has a process of its own.
@functools.cache
def _slow_digest(path: Path) -> str:
    if not path.is_file():
        return ""
    content = path.read_bytes()
    # What is brought to the host is decrypted too.
    if is_encrypted(content):
        content = VaultLib(VaultSecretsContext.current().secrets).decrypt(content)
    return hashlib.scrypt(content, salt=b"streamer", n=16384, r=8, p=1).hex()


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, object]:
        """The filters by name."""
        return {"as_placed": as_placed}
