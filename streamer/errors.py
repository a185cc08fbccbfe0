"""The errors this package raises; the text of each is one line, fit to be shown to a person."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable

_WANTING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT}

_LABEL_SHOWN = 64  # characters


class StreamerError(Exception):
    """The root: catch this to catch every error below."""


class ConfigError(StreamerError):
    """A configuration file, flag or argument is wrong; the text names the place and what would be right."""


class WireError(StreamerError):
    """A message breaks the wire format or one of its limits.

    Attributes:
        label: the message's label as a log shows it, if that is what is wrong; else None.
    """

    def __init__(self, text: str, *, label: str | None = None) -> None:
        super().__init__(text)
        self.label = label


class CodecError(StreamerError):
    """A picture cannot be encoded or decoded."""


class CameraError(StreamerError):
    """A camera gives no picture: it is missing, busy, denied, or has stopped."""


class TransportError(StreamerError):
    """An address cannot be bound or reached."""


class MissingExtraError(StreamerError):
    """A library of an optional extra is not installed, or does not load.

    Args:
        purpose: what needs it.
        extra: the extra's name.
        debian: the package of Debian or of Raspberry Pi OS.
        error: what the import raised.
        by_pip: whether what pip installs works.
    """

    def __init__(
        self, purpose: str, extra: str, debian: str, error: ImportError | None = None, *, by_pip: bool = True
    ) -> None:
        pip = (
            f": pip install '.[{extra}]' in this project's directory, or on Debian"
            if by_pip
            else ", on Raspberry Pi OS"
        )
        remedy = f"{pip}: apt install {debian} (a virtual environment has it only with --system-site-packages)"
        if error and str(error) and not isinstance(error, ModuleNotFoundError):
            # OpenCV where the system has no libGL, say: to install it again would not help.
            remedy = f", which is there but does not load: {' '.join(str(error).split())}"
        super().__init__(f"{purpose} needs the extra '{extra}'{remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        return _with_text, (str(self),)  # a process pool pickles what its workers raise


def _with_text(text: str) -> MissingExtraError:
    return MissingExtraError.__new__(MissingExtraError, text)


def one_line(text: str) -> str:
    """Make a text one line that a terminal and a journal show as it is, whatever is in it."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def want(error: BaseException) -> str:
    """Return what the system has not enough of, if that is the error; else empty."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "the system allows no more threads"
    number = getattr(error, "errno", None)  # of an OSError, or ZMQ's
    return os.strerror(number) if number in _WANTING else ""


def reason(error: BaseException) -> str:
    """Return an error in words: what the system has not enough of, or else its own."""
    return want(error) or str(error)


def log_failure(log: logging.Logger, what: str, error: Exception) -> None:
    """Log what has failed: with a traceback, unless only the system has not enough of something."""
    if why := want(error):
        log.error("%s: %s", what, why)
    else:
        log.error("%s", what, exc_info=error)


def describe_label(label: object) -> str:
    """Return a label as a log shows it: one short line, whatever is in it."""
    if not isinstance(label, str):  # not written out: it may be too deep for that
        return f"no text but of type {type(label).__name__}"
    return repr(label if len(label) <= _LABEL_SHOWN else f"{label[:_LABEL_SHOWN]}…")


def listed(given: str | Iterable[str]) -> list[str]:
    """Make a list of one text or several; of whatever else was given too, for who reads it to refuse."""
    if hasattr(given, "__iter__") and not isinstance(given, str | bytes):
        return list(given)
    return [cast("str", given)]


def seconds(name: str, given: float) -> float:
    """Return a time in seconds that was given by this name.

    Raises:
        ConfigError: it is not a number.
    """
    try:
        return float(given)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {given!r}: it must be a number of seconds") from None


def half_set(**pair: object) -> str:
    """Return what is wrong if only one of two settings is set; empty if both or neither are."""
    given, missing = sorted(pair, key=lambda name: not pair[name])
    if bool(pair[given]) == bool(pair[missing]):
        return ""
    return f"{given} is set and {missing} is not: set both, or neither"
