"""The errors this package raises; the text of each is one line, fit to be shown to a person."""


class StreamerError(Exception):
    """The root: catch this to catch every error below."""


class ConfigError(StreamerError):
    """A configuration file, flag or argument is wrong; the text names the place and what would be right."""


class WireError(StreamerError):
    """A message breaks the wire format or one of its limits."""


class CodecError(StreamerError):
    """A picture cannot be encoded or decoded."""


class CameraError(StreamerError):
    """A camera gives no picture: it is missing, busy, denied, or has stopped."""


class TransportError(StreamerError):
    """An address cannot be bound or reached."""


class MissingExtraError(StreamerError):
    """A library of an optional extra is not installed."""

    def __init__(self, purpose: str, extra: str, debian: str) -> None:
        super().__init__(
            f"{purpose} needs the extra '{extra}': pip install '.[{extra}]' in this project's directory, "
            f"or on Debian: apt install {debian}"
        )
