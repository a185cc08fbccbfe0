from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamer import tiles
from streamer.codec import encode_jpeg
from streamer.config import Layout
from streamer.frame import Frame
from streamer.grid import Grid
from streamer.presence import Status

if TYPE_CHECKING:
    from streamer.codec import Image

BLUE, GREEN, RED = (250, 0, 0), (0, 200, 0), (0, 0, 250)
COLOURS = {"a": RED, "b": GREEN, "c": BLUE}
SIZE = 640, 400


def row(name: str, state: str = "LIVE") -> Status:
    if state == "WAITING":
        return Status(name, state)
    return Status(name, state, fps=30.0, age_s=5.0, frames=9, width=64, height=48)


def framed(name: str) -> Frame:
    image = np.full((48, 64, 3), COLOURS[name[0]], np.uint8)
    return Frame(name, encode_jpeg(image, 95), 64, 48, 0)


def filled(layout: Layout, *names: str, cameras: tuple[str, ...] = ()) -> Grid:
    """A grid of live cameras, named after their colours, and drawn."""
    grid = Grid(layout, cameras)
    grid.resize(*SIZE)
    grid.update([row(name) for name in names])
    for name in names:
        put(grid, name)
    grid.draw()
    return grid


def put(grid: Grid, name: str) -> None:
    """Decode a frame, and put it."""
    frame = framed(name)
    grid.put(frame, grid.decode(frame))


def shown(grid: Grid, rows: int, columns: int) -> list[str]:
    """The colours in the middles of the cells, as names; "." for none."""
    height, width = grid.canvas.shape[:2]
    pixels = [
        grid.canvas[int((row + 0.3) * height / rows), int((column + 0.5) * width / columns)]
        for row in range(rows)
        for column in range(columns)
    ]
    return [named(pixel) for pixel in pixels]


def named(pixel: Image) -> str:
    return next((name for name, colour in COLOURS.items() if np.abs(pixel.astype(int) - colour).max() < 8), ".")


# -- places


def test_named_cameras_come_first_then_the_others() -> None:
    grid = filled(Layout(2, 2), "a", "b", "c", cameras=("c", "b", "c"))
    assert shown(grid, 2, 2) == ["c", "b", "a", "."]


def test_place_is_kept_while_the_camera_is_known() -> None:
    grid = filled(Layout(2, 2), "a", "b", "c")
    grid.update([row("a", "GONE"), row("b"), row("c")])
    assert grid.draw()
    assert shown(grid, 2, 2) == [".", "b", "c", "."]
    grid.update([row("b"), row("c")])  # forgotten by the hub
    grid.draw()
    assert shown(grid, 2, 2) == [".", "b", "c", "."]
    grid.update([row("a2"), row("b"), row("c")])
    put(grid, "a2")
    grid.draw()
    assert shown(grid, 2, 2) == ["a", "b", "c", "."]


def test_cameras_without_a_place_are_named_below_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        grid = filled(Layout(1, 2), "a", "b")
        canvas = grid.canvas
        grid.update([row("a"), row("b"), row("c")])
        grid.update([row("a"), row("b"), row("c"), row("c2", "WAITING")])
    assert caplog.messages == [f"{name}: has no place among the 1x2 tiles and is not shown" for name in ("c", "c2")]
    grid.draw()
    assert shown(grid, 1, 2) == ["a", "b"]
    assert (grid.canvas[-10:] != canvas[-10:]).any()
    grid.press(5, SIZE[1] - 2)
    grid.draw()
    assert shown(grid, 1, 2) == ["a", "b"], "the names below are no camera"

    grid.update([row("b"), row("c"), row("c2", "WAITING")])
    put(grid, "c")
    grid.draw()
    assert shown(grid, 1, 2) == ["c", "b"], "a place that becomes free is taken"


def test_no_cameras() -> None:
    grid = filled(Layout(16, 16))
    assert (grid.canvas == tiles.GROUND).all()
    assert not grid.draw()


# -- drawing


def test_only_what_changed_is_drawn() -> None:
    grid = filled(Layout(1, 2), "a", "b")
    assert not grid.draw()
    grid.update([row("a"), row("b")])
    assert not grid.draw()
    before = grid.canvas.copy()
    grid.update([row("a", "STALE"), row("b")])
    assert grid.draw()
    assert (grid.canvas[:, : SIZE[0] // 2] != before[:, : SIZE[0] // 2]).any()
    assert (grid.canvas[:, SIZE[0] // 2 :] == before[:, SIZE[0] // 2 :]).all()


def test_new_picture_is_live_before_the_table_says_so() -> None:
    grid = filled(Layout(1, 1), "a")
    grid.update([row("a", "GONE")])
    grid.draw()
    assert shown(grid, 1, 1) == ["."]
    put(grid, "a")
    grid.draw()
    assert shown(grid, 1, 1) == ["a"]


def test_resized_grid_is_laid_out_for_the_new_size() -> None:
    grid = filled(Layout(1, 2), "a", "b")
    grid.resize(300, 500)
    assert grid.draw()
    assert grid.canvas.shape == (500, 300, 3)
    assert named(grid.canvas[230, 75]) == "a"
    assert named(grid.canvas[230, 225]) == "b"
    assert (grid.canvas[:100] == tiles.GROUND).all(), "proportions are kept"
    grid.resize(300, 500)
    assert not grid.draw()


@pytest.mark.parametrize("layout", [Layout(1, 1), Layout(16, 16), Layout(1, 16)])
@pytest.mark.parametrize("size", [(1, 1), (100, 3000), (3000, 20)])
def test_window_of_any_size(layout: Layout, size: tuple[int, int]) -> None:
    grid = filled(layout, "a", "b", "c")
    for states in ("LIVE", "STALE", "GONE", "WAITING"):
        grid.resize(*size)
        grid.update([row(name, states) for name in ("a", "b", "c")])
        grid.draw()
    assert grid.canvas.shape[0] >= size[1]
    assert grid.canvas.shape[1] >= size[0]


# -- one alone


def test_a_press_shows_one_camera_alone_and_the_next_all() -> None:
    grid = filled(Layout(2, 2), "a", "b", "c")
    grid.press(SIZE[0] - 10, 10)
    grid.draw()
    assert shown(grid, 2, 2) == ["b"] * 4
    put(grid, "b")
    assert grid.draw()
    put(grid, "a")
    assert not grid.draw(), "nobody sees the others"
    grid.press(5, 5)
    grid.draw()
    assert shown(grid, 2, 2) == ["a", "b", "c", "."]


def test_a_press_where_no_camera_is_changes_nothing() -> None:
    grid = filled(Layout(2, 2), "a", "b", "c")
    for point in ((SIZE[0] - 5, SIZE[1] - 5), (SIZE[0] + 5, 5), (5, SIZE[1] + 5), (-5, 5)):
        grid.press(*point)
        grid.draw()
        assert shown(grid, 2, 2) == ["a", "b", "c", "."]


def test_damaged_picture_is_no_hindrance_to_another_size() -> None:
    grid = filled(Layout(1, 2), "a", "b")
    grid.put(Frame("a", b"\xff\xd8\xff\xd9", 64, 48, 0), None)
    grid.resize(2 * SIZE[0], 2 * SIZE[1])
    assert grid.draw()
    assert shown(grid, 1, 2) == [".", "b"]


def test_all_are_shown_again_when_the_one_is_forgotten() -> None:
    grid = filled(Layout(1, 2), "a", "b")
    grid.press(5, 5)
    grid.draw()
    assert shown(grid, 1, 2) == ["a", "a"]
    grid.update([row("b")])
    grid.draw()
    assert shown(grid, 1, 2) == [".", "b"]
