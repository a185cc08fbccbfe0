"""CURVE keys in files: a host's key pair, whose secret never leaves it, and the hub's list of who may send as whom.

Not in the format of `zmq.auth`: that writes secrets with the umask's mode, usually readable by all, and as Z85, with
characters that are special to YAML and shells. Here a key is one word that says what it is, `curve-public:` or
`curve-secret:` and 64 hexadecimal digits. It can be pasted anywhere, and a secret in place of a public key is noticed,
and not repeated in the error.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from streamer.errors import ConfigError, WireError
from streamer.wire import is_camera_name

_PUBLIC, _SECRET = "curve-public:", "curve-secret:"
_KEY = re.compile(rf"(?:{_PUBLIC}|{_SECRET})[0-9a-f]{{64}}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyPair:
    """A host's key pair, as text.

    Attributes:
        public: the public key.
        secret: the secret key; not in the `repr`.
    """

    public: str
    secret: str = field(repr=False)


def public_key(text: object) -> str:
    """Check a public key, and return it.

    Raises:
        ConfigError: it is none; the text is to follow the place where it was given, and does not repeat the value.
    """
    if isinstance(text, str) and text.startswith(_SECRET):
        raise ConfigError(
            "is a secret key, which must never leave its host: it must be the public half, which "
            "'streamer keys show FILE' prints there"
        )
    if not isinstance(text, str) or not _KEY.fullmatch(text):
        raise ConfigError(
            f"is not a public key: it must be {_PUBLIC} and 64 hexadecimal digits, as 'streamer keys show FILE' prints"
        )
    return text


def to_bytes(key: str) -> bytes:
    """Return the 32 bytes of a key, public or secret."""
    return bytes.fromhex(key.partition(":")[2])


def to_public(key: bytes) -> str:
    """Return the text of a public key of 32 bytes."""
    return _PUBLIC + key.hex()


def make_pair(path: Path) -> KeyPair:
    """Make a key pair and write it atomically to a new file that only its owner can read.

    Raises:
        ConfigError: the file exists already, or cannot be written.
    """
    from zmq import curve_keypair  # here, since reading a configuration does not need it
    from zmq.utils import z85

    secret = z85.decode(curve_keypair()[1])
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(f"{_SECRET}{secret.hex()}\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, this replaces nothing
    except FileExistsError:
        raise ConfigError(
            f"{path}: already exists, and an overwritten key would be lost: remove the file first to replace it"
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{path}: there is no directory {path.parent}: make it first, or name another file") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    finally:
        if temporary:
            Path(temporary).unlink()
    return read_pair(path)


def read_pair(path: Path) -> KeyPair:
    """Read a key pair that `make_pair` has written.

    Raises:
        ConfigError: the file is missing, has no secret key, or is readable by others than its owner.
    """
    from zmq import curve_public
    from zmq.utils import z85

    try:
        with path.open(encoding="ascii") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.read(1000).rstrip("\n")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such key: 'streamer keys make {path}' makes it") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        secret = ""
    if secret.startswith(_PUBLIC):
        raise ConfigError(f"{path}: is a public key: it must be a secret one, as 'streamer keys make FILE' writes it")
    if not _KEY.fullmatch(secret):
        raise ConfigError(f"{path}: is not a key: it must be one line, as 'streamer keys make FILE' writes it")
    if mode & 0o077:
        raise ConfigError(f"{path}: others can read this secret key, its mode is {mode:04o}: it must be 0600")
    public = curve_public(z85.encode(to_bytes(secret)))
    return KeyPair(to_public(z85.decode(public)), secret)


class AllowList:
    """Which key may send as which camera: a file of lines `NAME curve-public:…`. Not thread-safe.

    Args:
        path: the file. A camera may have several keys, but a key only one camera; lines that begin with `#` are
            comments.

    Raises:
        ConfigError: the file cannot be read, or has a malformed line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = _stamp(path)
        self._names = _read_names(path)
        self._unread = ""  # why the file could not be read at the last look

    def __contains__(self, key: str) -> bool:
        return key in self._names

    @property
    def count(self) -> int:
        """How many keys may send."""
        return len(self._names)

    def check(self, key: str | None, camera: str) -> None:
        """Check that a frame may be of a camera.

        Args:
            key: the public key of the peer that sent it; None without encryption.
            camera: the camera's name in its header.

        Raises:
            WireError: it may not.
        """
        if key is None:
            if camera in self._names.values():
                raise WireError(f"{camera} has a key, so its frames must come encrypted")
        elif key not in self._names:
            raise WireError("its key is no longer allowed")
        elif self._names[key] != camera:
            raise WireError(f"its key is that of {self._names[key]}, so it may not send as {camera}")

    def refresh(self) -> None:
        """Read the file again if it has changed; if it is missing or wrong, log that and change nothing."""
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            self._unread = ""
            return
        try:
            names = _read_names(self.path)
        except ConfigError as error:
            if str(error) != self._unread:
                _log.error("%s; who may send stays as it was", error)
            self._unread = str(error)
            # What could not be read is read once it can be, though it does not change: who was struck off must go.
            if not isinstance(error.__cause__, OSError):
                self._stamp = stamp
            return
        self._stamp, self._unread = stamp, ""
        added, removed = names.keys() - self._names.keys(), self._names.keys() - names.keys()
        for verb, keys, table in (("may send now", added, names), ("may no longer send", removed, self._names)):
            for key in sorted(keys, key=table.__getitem__):
                _log.info("%s %s by the key %s", table[key], verb, key)
        self._names = names


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return a value that changes when a file does; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _read_names(path: Path) -> dict[str, str]:
    """Read an allow-list: camera names by key."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: it must have lines 'NAME {_PUBLIC}…'") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        place = f"{path}:{number}"
        name, key = [*line.split(maxsplit=1), ""][:2]
        if not is_camera_name(name):
            raise ConfigError(f"{place}: does not begin with a camera's name: it must be a line 'NAME {_PUBLIC}…'")
        try:
            key = public_key(key.strip())
        except ConfigError as error:
            raise ConfigError(f"{place}: what follows {name} {error}") from None
        if names.setdefault(key, name) != name:
            raise ConfigError(f"{place}: the key of {name} is that of {names[key]} too: each camera has its own")
    return names
