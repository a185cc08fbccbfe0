from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from streamer import tiles
from streamer.codec import encode_jpeg
from streamer.errors import CodecError
from streamer.frame import Frame
from streamer.presence import State, Status
from streamer.tiles import Tile, picture_for

if TYPE_CHECKING:
    from streamer.codec import Image

WIDTH, HEIGHT, CAPTION = 240, 200, 20
RED = (0, 0, 250)
LIVE = Status("pi1", "LIVE", fps=29.97, age_s=0.02, frames=9, width=64, height=48)
STALE = dataclasses.replace(LIVE, state="STALE", fps=0.0, age_s=6.4)
GONE = dataclasses.replace(LIVE, state="GONE", fps=0.0, age_s=45.0)
WAITING = Status("pi1", "WAITING")


def framed(width: int, height: int, colour: tuple[int, int, int] = RED) -> Frame:
    return Frame("pi1", encode_jpeg(np.full((height, width, 3), colour, np.uint8), 95), width, height, 0)


@pytest.fixture
def canvas() -> Image:
    return np.full((HEIGHT, WIDTH, 3), 77, np.uint8)


@pytest.fixture
def tile(canvas: Image) -> Tile:
    return Tile(canvas, CAPTION)


def is_red(pixels: Image) -> bool:
    return bool(np.abs(pixels.astype(int) - RED).max() < 6)


def is_dark(pixels: Image) -> bool:
    return bool((pixels == tiles.GROUND).all())


# -- words


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (LIVE, ""),
        (STALE, "no picture for 6 s"),
        (GONE, "gone, last seen 45 s ago"),
        (dataclasses.replace(GONE, age_s=99.9), "gone, last seen 99 s ago"),
        (dataclasses.replace(GONE, age_s=100), "gone, last seen 1 min ago"),
        (dataclasses.replace(GONE, age_s=5999), "gone, last seen 99 min ago"),
        (dataclasses.replace(GONE, age_s=86400), "gone, last seen 24 h ago"),
        (dataclasses.replace(GONE, age_s=172800), "gone, last seen 2 days ago"),
        (WAITING, "waiting for its first picture"),
    ],
)
def test_silence(status: Status, words: str) -> None:
    assert tiles.silence(status) == words


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (LIVE, ""),
        (dataclasses.replace(LIVE, rival="192.0.2.7"), "192.0.2.7 has this name too"),
        (dataclasses.replace(LIVE, rival="192.0.2.7", still_s=12.0), "192.0.2.7 has this name too"),
        (dataclasses.replace(LIVE, still_s=12.3), "the same picture for 12 s"),
    ],
)
def test_oddity(status: Status, words: str) -> None:
    assert tiles.oddity(status) == words


def test_words_are_those_of_the_wall() -> None:
    static = Path(tiles.__file__).with_name("wall") / "static"
    wall = re.sub(r"\${.*?}", "…", "".join((static / name).read_text("utf-8") for name in ("wall.js", "states.js")))
    for state in (STALE, GONE, WAITING):
        assert re.sub("[0-9]+ s", "…", tiles.silence(state)) in wall
    for odd in (dataclasses.replace(LIVE, rival="192.0.2.7"), dataclasses.replace(LIVE, still_s=12.3)):
        assert re.sub(r"192\.0\.2\.7|12 s", "…", tiles.oddity(odd)) in wall


@pytest.mark.parametrize(
    ("state", "shown", "has"),
    [
        (State.LIVE, "●", {"middle"}),
        (State.STALE, "▲", {"middle", "bottom left"}),
        (State.GONE, "■", {"middle", "bottom left", "top left"}),
        (State.WAITING, "○", set()),
    ],
)
def test_shapes_are_those_of_the_wall(state: State, shown: str, has: set[str]) -> None:
    wall = (Path(tiles.__file__).with_name("wall") / "static/states.js").read_text("utf-8")
    assert f'{state}: "{shown}"' in wall
    square = np.zeros((40, 40, 3), np.uint8)
    tiles._draw_shape(square, state)
    places = {"middle": (20, 20), "bottom left": (28, 12), "top left": (12, 12)}  # row, column
    assert {place for place, at in places.items() if square[at].any()} == has


# -- pictures


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((480, 640, 3), (120, 90)),
        ((480, 640), (120, 90)),
        ((90, 30, 3), (33, 100)),
        ((10, 12, 3), (120, 100)),
        ((1, 90_000), (120, 1)),
        ((90_000, 1, 3), (1, 100)),
    ],
)
def test_fitted_keeps_the_proportions(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    assert tiles.fitted(np.zeros(shape, np.uint8), 120, 100).shape == (size[1], size[0], 3)


def test_picture_that_fits_is_not_copied() -> None:
    image = np.zeros((90, 120, 3), np.uint8)
    assert tiles.fitted(image, 120, 100) is image


def test_greyed_says_why_and_keeps_the_size() -> None:
    for shape in ((48, 160, 3), (48, 160)):
        image = np.full(shape, 200, np.uint8)
        dark = tiles.greyed(image, "no picture for 12 s")
        assert dark.shape == (48, 160, 3)
        assert dark[0, 0].tolist() == [100, 100, 100]
        assert dark.max() > 230
        assert image.min() == 200
    assert tiles.greyed(np.zeros((1, 90_000), np.uint8), "old").shape == (1, tiles._GREYED_WIDTH, 3)


@pytest.mark.parametrize("size", [(1, 1), (8, 200), (30, 30)])
def test_words_that_have_no_room_are_left_out(size: tuple[int, int]) -> None:
    assert is_dark(tiles.placard(*size, "no picture for 12 s"))


def test_placard_says_why() -> None:
    card = tiles.placard(WIDTH, HEIGHT, "waiting for pi1")
    assert card.max() > 230
    assert is_dark(card[: HEIGHT // 3])


# -- decoding


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((640, 480), (640, 480)),
        ((480, 360), (640, 480)),
        ((320, 240), (320, 240)),
        ((400, 120), (160, 120)),
        ((20, 20), (20, 15)),
        ((2000, 2000), (640, 480)),
    ],
)
@pytest.mark.parametrize("is_jpeg", [True, False])
def test_picture_is_less_than_twice_as_large_as_its_box(
    box: tuple[int, int], size: tuple[int, int], is_jpeg: bool
) -> None:
    raw = Frame("pi1", bytes(640 * 480 * 3), 640, 480, 0, "uint8", (480, 640, 3))
    assert picture_for(framed(640, 480) if is_jpeg else raw, *box).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
def test_arrays_are_shown_as_they_are(shape: tuple[int, ...]) -> None:
    frame = Frame("pi1", bytes(range(np.prod(shape))), 6, 4, 0, "uint8", shape)
    image = picture_for(frame, 6, 4)
    assert image.tobytes() == frame.payload
    assert image.shape in {(4, 6), (4, 6, 3)}


def test_of_four_channels_the_last_is_not_shown() -> None:
    frame = Frame("pi1", bytes(range(96)), 6, 4, 0, "uint8", (4, 6, 4))
    np.testing.assert_array_equal(picture_for(frame, 6, 4), frame.image[:, :, :3])


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (Frame("pi1", bytes(64), 4, 2, 0, "complex64", (2, 4)), "an array of complex64 with shape"),
        (Frame("pi1", bytes(16), 4, 2, 0, "uint8", (2, 4, 2)), "an array of uint8 with shape"),
        (Frame("pi1", b"\xff\xd8\xff\xd9", 4, 2, 0), "JPEG"),
    ],
)
def test_what_cannot_be_shown_is_an_error(frame: Frame, why: str) -> None:
    with pytest.raises(CodecError, match=why):
        picture_for(frame, 4, 4)


# -- tiles


def draw(tile: Tile, status: Status, frame: Frame | None) -> bool:
    """Draw a frame and its picture; a damaged one has none."""
    picture = None
    if frame is not None:
        with contextlib.suppress(CodecError):
            picture = picture_for(frame, *tile.box)
    return tile.draw(status, frame, picture)


def test_live_picture_stands_in_the_middle(canvas: Image, tile: Tile) -> None:
    assert draw(tile, LIVE, framed(64, 32))
    bar = (HEIGHT - CAPTION - WIDTH // 2) // 2
    assert is_dark(canvas[:bar])
    assert is_red(canvas[bar : bar + WIDTH // 2])
    assert is_dark(canvas[bar + WIDTH // 2 : -CAPTION])


def test_stale_picture_is_grey_and_says_its_age(canvas: Image, tile: Tile) -> None:
    frame = framed(64, 48)
    draw(tile, LIVE, frame)
    draw(tile, STALE, frame)
    area = canvas[:-CAPTION]
    assert (area.max(2) == area.min(2)).all()
    assert area[10, WIDTH // 2, 0] < 60
    assert area.max() > 230
    draw(tile, LIVE, frame)
    assert is_red(area[:, WIDTH // 2])


def test_live_picture_that_is_odd_says_so_and_keeps_its_colours(canvas: Image, tile: Tile) -> None:
    odd = dataclasses.replace(LIVE, still_s=12.0)
    area, middle = canvas[:-CAPTION], slice(HEIGHT // 3, HEIGHT // 2)
    for frame in (framed(64, 48), framed(64, 48)):  # as long as it lasts
        draw(tile, odd, frame)
        assert area[middle].min(2).max() > 200, "white letters"
        assert is_red(area[: HEIGHT // 4])
    assert not draw(tile, odd, frame)
    assert draw(tile, LIVE, frame)
    assert is_red(area[:, WIDTH // 2])


def test_picture_without_words_is_not_copied() -> None:
    image = np.zeros((90, 120), np.uint8)
    assert tiles.marked(image, "") is image
    assert tiles.marked(image, "the same picture for 12 s").max() > 200
    assert image.max() == 0


@pytest.mark.parametrize("status", [WAITING, GONE])
def test_where_there_is_no_picture_the_tile_says_so(canvas: Image, tile: Tile, status: Status) -> None:
    draw(tile, LIVE, framed(64, 48))
    draw(tile, status, None)
    area = canvas[:-CAPTION]
    assert is_dark(area[: HEIGHT // 4])
    assert area.max() > 230


def test_only_what_is_new_is_drawn(tile: Tile) -> None:
    first, second = framed(64, 48), framed(64, 48)
    drawn = [
        draw(tile, status, frame)
        for status, frame in (
            (LIVE, first),
            (LIVE, first),
            (LIVE, second),
            (dataclasses.replace(LIVE, age_s=0.5), second),
            (dataclasses.replace(LIVE, fps=12.0), second),
            (STALE, second),
            (dataclasses.replace(STALE, age_s=6.45), second),
            (dataclasses.replace(STALE, age_s=7.0), second),
        )
    ]
    assert drawn == [True, False, True, False, True, True, False, True]


def test_damaged_picture_leaves_the_one_before_and_says_so(canvas: Image, tile: Tile) -> None:
    draw(tile, LIVE, framed(64, 48))
    before = canvas.copy()
    draw(tile, LIVE, Frame("pi1", b"\xff\xd8\xff\xd9", 64, 48, 0))
    area = canvas[:-CAPTION]
    assert area[HEIGHT // 3 : HEIGHT // 2].min(2).max() > 200, "white letters"
    assert is_red(area[: HEIGHT // 4])
    draw(tile, LIVE, framed(64, 48))
    assert (canvas == before).all()


def test_camera_whose_pictures_are_all_damaged_is_not_just_dark(canvas: Image, tile: Tile) -> None:
    draw(tile, LIVE, Frame("pi1", b"\xff\xd8\xff\xd9", 64, 48, 0))
    assert canvas[:-CAPTION].max() > 230


def test_camera_whose_first_picture_is_on_its_way_has_no_words(canvas: Image, tile: Tile) -> None:
    draw(tile, LIVE, None)
    assert (canvas[:-CAPTION] == tiles.GROUND).all()


# -- captions


def captioned(status: Status, width: int = WIDTH, height: int = CAPTION) -> Image:
    strip = np.zeros((height, width, 3), np.uint8)
    tiles.draw_caption(strip, status)
    return strip


def test_states_differ_in_shape_and_not_in_colour_alone() -> None:
    shapes = [captioned(status)[:, :CAPTION].max(2) > 80 for status in (WAITING, LIVE, STALE, GONE)]
    for one, shape in enumerate(shapes):
        assert shape.any()
        for other in shapes[:one]:
            assert (shape != other).sum() > 20


def test_caption_has_name_state_and_rate() -> None:
    full = captioned(LIVE)
    for other in (
        dataclasses.replace(LIVE, name="pi2"),
        dataclasses.replace(LIVE, fps=12.0),
        STALE,
        dataclasses.replace(STALE, age_s=7.0),
    ):
        assert (captioned(other) != full).any()


@pytest.mark.parametrize("status", [WAITING, LIVE, STALE, GONE])
def test_narrow_caption_keeps_the_state_and_cuts_the_rest(status: Status) -> None:
    long = dataclasses.replace(status, name=64 * "m")
    colour = tiles._COLOURS[status.state]
    words = tiles.text_width(status.state, CAPTION)
    end = captioned(long, 140)[:, -words - CAPTION // 3 :]
    assert (np.abs(end.astype(int) - colour).max(2) < 40).any()
    assert (captioned(long, 140) == captioned(dataclasses.replace(long, fps=1.0, age_s=status.age_s), 140)).all()


@pytest.mark.parametrize("size", [(1, 12), (5, 12), (13, 12), (4000, 32)])
@pytest.mark.parametrize("state", [state.value for state in State])
def test_caption_of_any_width(state: str, size: tuple[int, int]) -> None:
    captioned(dataclasses.replace(LIVE, state=state), *size)
