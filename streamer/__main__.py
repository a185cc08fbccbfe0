"""`python -m streamer`."""

from streamer.cli import entry_point

entry_point()
