"""All cameras in one picture: rows and columns of tiles on a canvas. Drawing only, no screen."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from typing import TYPE_CHECKING

import numpy as np

from streamer.errors import CodecError
from streamer.presence import State
from streamer.tiles import GROUND, Tile, fitted, picture_for, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamer.codec import Image
    from streamer.config import Layout
    from streamer.frame import Frame
    from streamer.presence import Status

_GAP = 2  # pixels between tiles
_TILE_MIN = (48, 36)  # (width, height) in pixels; in a smaller window the whole canvas is scaled
_log = logging.getLogger(__name__)


class Grid:
    """The tiles of a fleet. A camera keeps its place while the hub knows it.

    Args:
        layout: how many rows and columns.
        cameras: names of the cameras that get the first places, in this order.
    """

    def __init__(self, layout: Layout, cameras: Sequence[str] = ()) -> None:
        self._layout = layout
        self._cameras = list(dict.fromkeys(cameras))
        self._places: list[str | None] = [None] * (layout.rows * layout.columns)
        self._left_out: list[str] = []
        self._told: set[str] = set()  # cameras logged as left out
        self._statuses: dict[str, Status] = {}
        self._frames: dict[str, tuple[Frame, Image | None]] = {}  # the newest of each camera
        self._enlarged: str | None = None
        self._tiles: dict[str, Tile] = {}  # those on the canvas
        self._is_laid = False  # the canvas is up to date with size and places
        self._size = (layout.columns * _TILE_MIN[0], layout.rows * _TILE_MIN[1])
        self.canvas: Image = np.zeros((0, 0, 3), np.uint8)  # uint8 of shape (height, width, 3), BGR

    def resize(self, width: int, height: int) -> None:
        """Lay the tiles out for a window of another size, in pixels."""
        size = max(width, self._layout.columns * _TILE_MIN[0]), max(height, self._layout.rows * _TILE_MIN[1])
        if size != self._size:
            self._size = size
            self._is_laid = False

    def decode(self, frame: Frame) -> Image | None:
        """Make the picture for a camera's tile, or None if it has no tile. Any thread may call this.

        Raises:
            CodecError: the frame is damaged or no picture.
        """
        tile = self._tiles.get(frame.camera)
        return fitted(picture_for(frame, *tile.box), *tile.box) if tile else None

    def put(self, frame: Frame, picture: Image | None) -> None:
        """Set a camera's newest frame, and the picture that `decode` has made of it."""
        self._frames[frame.camera] = frame, picture
        status = self._statuses.get(frame.camera)
        if status is not None and status.state != State.LIVE:  # `update` comes less often
            self._statuses[frame.camera] = dataclasses.replace(status, state=State.LIVE)

    def update(self, statuses: list[Status]) -> None:
        """Set the hub's table, and give every camera a place if there is one."""
        self._statuses = {status.name: status for status in statuses}
        self._frames = {name: newest for name, newest in self._frames.items() if name in self._statuses}
        places = [name if name in self._statuses else None for name in self._places]
        newcomers = [name for name in dict.fromkeys([*self._cameras, *self._statuses]) if name in self._statuses]
        left_out = []
        for name in newcomers:
            if name in places:
                continue
            if None in places:
                places[places.index(None)] = name
            else:
                left_out.append(name)
        if (places, left_out) != (self._places, self._left_out):
            self._places, self._left_out = places, left_out
            self._is_laid = False
        if self._enlarged not in places:
            self.restore()
        for name in left_out:
            if name not in self._told:
                self._told.add(name)
                _log.warning("%s: has no place among the %s tiles and is not shown", name, self._layout)

    def draw(self) -> bool:
        """Draw what has changed; return whether anything has."""
        is_new = not self._is_laid
        if is_new:
            self._lay()
        for name, tile in self._tiles.items():
            if tile.draw(self._statuses[name], *self._frames.get(name, (None, None))):
                is_new = True
        return is_new

    def press(self, x: int, y: int) -> None:
        """Enlarge the camera at a point of the canvas, or show all again.

        Args:
            x: in pixels from the left.
            y: in pixels from the top.
        """
        if self._enlarged is not None:
            self.restore()
            return
        height, width = self.canvas.shape[:2]
        rows, columns = self._layout
        row, column = y * rows // max(1, height - self._footer_height), x * columns // max(1, width)
        if 0 <= row < rows and 0 <= column < columns:
            self._enlarged = self._places[row * columns + column]
            self._is_laid = False

    def restore(self) -> None:
        """Show all cameras again."""
        if self._enlarged is not None:
            self._enlarged = None
            self._is_laid = False

    @property
    def _caption_height(self) -> int:
        return min(32, max(12, self._size[1] // (1 if self._enlarged else self._layout.rows) // 11))

    @property
    def _footer_height(self) -> int:
        return self._caption_height + _GAP if self._left_out and not self._enlarged else 0

    def _lay(self) -> None:
        """Make a new canvas with a tile for each camera shown."""
        width, height = self._size
        self.canvas = np.full((height, width, 3), GROUND, np.uint8)
        if self._footer_height:
            line = self.canvas[height - self._caption_height :, self._caption_height // 2 :]
            write(line, f"+{len(self._left_out)} more: {', '.join(self._left_out)}")
        rows, columns, places = *self._layout, self._places
        if self._enlarged is not None:
            rows, columns, places = 1, 1, [self._enlarged]
        tops = [row * (height - self._footer_height) // rows for row in range(rows + 1)]
        lefts = [column * width // columns for column in range(columns + 1)]
        tiles = {}
        for place, name in enumerate(places):
            if name is not None:
                row, column = divmod(place, columns)
                down = slice(tops[row], tops[row + 1] - _GAP * (row + 1 < rows))
                across = slice(lefts[column], lefts[column + 1] - _GAP * (column + 1 < columns))
                tiles[name] = Tile(self.canvas[down, across], self._caption_height)
        self._tiles = tiles
        for name in tiles.keys() & self._frames.keys():
            frame, _ = self._frames[name]
            with contextlib.suppress(CodecError):  # logged when it was decoded first
                self._frames[name] = frame, self.decode(frame)
        self._is_laid = True
