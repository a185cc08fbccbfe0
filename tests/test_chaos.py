"""A try or two of what `make chaos` does at length, and that its instruments tell the truth."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import TYPE_CHECKING

import pytest

from tests.chaos.cases import CASES, Trial
from tests.chaos.fleet import Frames
from tests.chaos.line import Line
from tests.chaos.soak import Result, Sample
from tests.peers import WAIT_S, listener

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# -- the instruments


@pytest.fixture
def ends() -> Iterator[tuple[Line, socket.socket, socket.socket]]:
    """A line, and the two sockets that it connects."""
    with (
        listener() as (server, endpoint),
        Line(endpoint) as line,
        socket.create_connection(("127.0.0.1", int(line.endpoint.rpartition(":")[2]))) as near,
    ):
        far, _ = server.accept()
        for end in (near, far):
            end.settimeout(WAIT_S)
        with far:
            yield line, near, far


def test_line_carries_both_ways_and_passes_the_end_on(ends: tuple[Line, socket.socket, socket.socket]) -> None:
    _, near, far = ends
    near.sendall(b"there")
    assert far.recv(100) == b"there"
    far.sendall(b"back")
    assert near.recv(100) == b"back"
    far.close()
    assert near.recv(100) == b""


def test_line_that_is_stalled_passes_nothing_and_loses_nothing(
    ends: tuple[Line, socket.socket, socket.socket],
) -> None:
    line, near, far = ends
    line.stalled = True
    near.sendall(b"late")
    far.settimeout(0.2)
    with pytest.raises(TimeoutError):
        far.recv(100)
    line.stalled = False
    far.settimeout(WAIT_S)
    assert far.recv(100) == b"late"


def test_line_is_cut_in_the_middle(ends: tuple[Line, socket.socket, socket.socket]) -> None:
    line, near, far = ends
    near.sendall(b"there")
    assert far.recv(100) == b"there"
    line.cut()
    near.sendall(bytes(1000))
    assert len(far.recv(10_000)) == 500
    with contextlib.suppress(ConnectionResetError):
        assert far.recv(100) == b""


def test_frames_are_counted_over_starts_of_hub_and_senders(tmp_path: Path) -> None:
    frames = Frames(tmp_path / "frames")
    now_ns = frames._wall_ahead_ns
    lines = [(1, "a", 0), (2, "a", 1), (3, "a", 4), (4, "b", 0), (5, "b", 2)]
    text = "".join(f"{at}000000000 pi1 {start} {seq} {now_ns + (at - 1) * 10**9}\n" for at, start, seq in lines)
    frames.file.write_text(text + "6000000000 pi1 b")  # a line that is being written
    frames.read()
    assert (frames.lost, frames.starts["pi1"]) == (2 + 1, ["a", "b"])
    assert [(seen.at, seen.age_s) for seen in frames.seen["pi1"]] == [(at, 1.0) for at in range(1, 6)]
    assert frames.fresh("pi1", 3, 1.5) == [4, 5]
    assert frames.fresh("pi1", 0, 0.5) == []


@pytest.mark.parametrize(("leak_mb", "has_grown"), [(0.0, False), (0.1, True)])
def test_growth_is_told_from_a_first_step(leak_mb: float, has_grown: bool) -> None:
    samples = [Sample(at, at, 50 + min(at, 5) + leak_mb * at, 20, 40, 90) for at in range(100)]
    assert Result("", 100, 1.0, 100, 0, samples).has_grown == has_grown


# -- the cases


@pytest.mark.parametrize("name", ["hub-frozen", "line-cut", "two-ways"])
def test_fleet_recovers(name: str, tmp_path: Path) -> None:
    trial = Trial(random.Random(name), 1, tmp_path, print, is_timed=False)
    CASES[name].run(trial)
    assert [outcome.broken for outcome in trial.outcomes] == [[]]
