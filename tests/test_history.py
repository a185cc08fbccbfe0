"""The last minutes of the cameras, without a second of waiting."""

from __future__ import annotations

from streamer.presence import Status
from streamer.wall.history import POINTS, History


def test_so_many_samples_are_kept_and_the_oldest_goes() -> None:
    history = History()
    for number in range(POINTS + 3):
        history.add([Status("pi1", "LIVE", fps=number, bytes_per_s=10 * number)])
    numbers = list(range(3, POINTS + 3))
    assert history.table()["cameras"] == {
        "pi1": {"fps": numbers, "latency_ms": [None] * POINTS, "bytes_per_s": [10 * number for number in numbers]}
    }


def test_camera_that_is_no_longer_there_is_forgotten() -> None:
    history = History()
    history.add([Status("pi1", "LIVE", fps=1), Status("pi2", "LIVE", fps=2)])
    history.add([Status("pi2", "LIVE", fps=3)])
    history.add([Status("pi1", "LIVE", fps=4), Status("pi2", "LIVE", fps=5)])
    rates = {name: fields["fps"] for name, fields in history.table()["cameras"].items()}
    assert rates == {"pi1": [4], "pi2": [2, 3, 5]}
