"""Draws a camera for the windows: its picture, and its state in words and shape. Drawing only, no screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamer.errors import CodecError, MissingExtraError
from streamer.pictures import decoded
from streamer.presence import State

try:
    import cv2
    import numpy as np
except ImportError as error:
    raise MissingExtraError("a display of windows", "opencv", "python3-opencv", error) from error

if TYPE_CHECKING:
    from streamer.codec import Image
    from streamer.frame import Frame
    from streamer.presence import Status

    Colour = tuple[int, int, int]

# The wall's colours, in BGR. Each state has a shape as well, for those who cannot tell the colours apart.
GROUND: Colour = (18, 15, 12)
_PLATE: Colour = (33, 28, 23)
_INK: Colour = (242, 239, 236)
_SOFT: Colour = (174, 164, 154)
_WHITE: Colour = (255, 255, 255)
_COLOURS: dict[str, Colour] = {
    State.WAITING: _SOFT,
    State.LIVE: (107, 194, 74),
    State.STALE: (27, 162, 217),
    State.GONE: (114, 123, 255),
}
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LETTERS_MIN = 0.3  # the smallest legible scale of the font
_GREYED_WIDTH = 1280


class Tile:
    """One camera in its part of a canvas: the picture, and under it a caption with name and state.

    Args:
        canvas: uint8 of shape (height, width, 3), BGR; usually a view of a larger one.
        caption_height: in pixels.
    """

    def __init__(self, canvas: Image, caption_height: int) -> None:
        self._area, self._caption = canvas[:-caption_height], canvas[-caption_height:]
        self.box = self._area.shape[1], self._area.shape[0]  # (width, height) in pixels for the picture
        self._frame: Frame | None = None
        self._why = ""  # the frame is not shown
        self._picture: Image | None = None  # fitted into the area
        self._drawn: tuple[Image | None, str, str] | None = None
        self._captioned: tuple[str, str] | None = None

    def draw(self, status: Status, frame: Frame | None, picture: Image | None) -> bool:
        """Draw what has changed since the last call.

        Args:
            status: of the camera.
            frame: its newest frame, if any.
            picture: of the frame, as `picture_for` makes it; None if it is damaged.

        Returns:
            Whether anything was drawn.
        """
        width, height = self.box
        if frame is not self._frame:
            self._frame = frame
            self._why = unshown(frame) if frame is not None and picture is None else ""
            if picture is not None:
                self._picture = fitted(picture, width, height)
        is_shown = status.state in {State.LIVE, State.STALE}
        picture = self._picture if is_shown else None
        words = silence(status) or self._why or oddity(status)
        drawn, captioned = (picture, status.state, words), (status.state, _numbers(status))
        is_new = self._drawn is None or picture is not self._drawn[0] or drawn[1:] != self._drawn[1:]
        if is_new:
            self._drawn = drawn
            if picture is None:
                self._area[:] = placard(width, height, words)
            else:
                self._put(marked(picture, words) if status.state == State.LIVE else greyed(picture, words))
        if captioned != self._captioned:
            self._captioned = captioned
            draw_caption(self._caption, status)
            is_new = True
        return is_new

    def _put(self, picture: Image) -> None:
        """Put a picture in the middle of the area."""
        width, height = self.box
        picture = fitted(picture, width, height)
        top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
        bottom, right = top + picture.shape[0], left + picture.shape[1]
        for bar in (self._area[:top], self._area[bottom:], self._area[:, :left], self._area[:, right:]):
            bar[:] = GROUND
        self._area[top:bottom, left:right] = picture


def unshown(frame: Frame) -> str:
    """Return why a frame of which there is no picture is not shown."""
    return "damaged picture" if frame.is_jpeg else "no picture that can be shown"


def silence(status: Status) -> str:
    """Return how long a camera has been silent, in the words of the wall's wall.js; empty if it is LIVE."""
    if status.state == State.LIVE:
        return ""
    if status.state == State.WAITING or status.age_s is None:
        return "waiting for its first picture"
    span = _span(status.age_s)
    return f"gone, last seen {span} ago" if status.state == State.GONE else f"no picture for {span}"


def picture_for(frame: Frame, width: int, height: int) -> Image:
    """Decode a frame for the box that it is shown in, without work for pixels that nobody sees.

    Args:
        frame: the frame.
        width: of the box, in pixels.
        height: of the box, in pixels.

    Returns:
        uint8 of shape (height, width, 3), BGR, or (height, width), greyscale; less than twice as large as the box.

    Raises:
        CodecError: the frame is damaged or no picture.
    """
    image = _viewable(decoded(frame, _fitted_size(frame.width, frame.height, width, height)))
    is_large = image.shape[1] >= 2 * width or image.shape[0] >= 2 * height
    return fitted(image, width, height) if is_large else image


def fitted(image: Image, width: int, height: int) -> Image:
    """Scale a picture to fit a box, keeping its proportions.

    Args:
        image: uint8 of shape (height, width, 3), BGR, or (height, width).
        width: of the box, in pixels.
        height: of the box, in pixels.

    Returns:
        uint8 of shape (height, width, 3), BGR, as wide or as high as the box; `image` itself if it is that already.
    """
    size = _fitted_size(image.shape[1], image.shape[0], width, height)
    if size != (image.shape[1], image.shape[0]):
        # Down to a half, linear interpolation shows no loss, and takes a tenth of the time.
        how = cv2.INTER_AREA if 2 * size[0] < image.shape[1] else cv2.INTER_LINEAR
        image = cv2.resize(image, size, interpolation=how)  # type: ignore[assignment]
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image  # type: ignore[return-value]


def oddity(status: Status) -> str:
    """Return what is odd about a camera that sends, like `oddity` in the wall's states.js, but shorter."""
    if status.rival:
        return f"{status.rival} has this name too"
    return f"the same picture for {_span(status.still_s)}" if status.still_s else ""


def marked(image: Image, words: str) -> Image:
    """Return a copy of the picture with words across it, or the picture itself without words."""
    if not words:
        return image
    image = image.copy()
    _write_in_the_middle(image, words)
    return image


def greyed(image: Image, words: str) -> Image:
    """Return the picture of a silent camera: grey and dark, with words across it.

    Args:
        image: uint8 of shape (height, width, 3), BGR, or (height, width).
        words: the words.

    Returns:
        uint8 of shape (height, width, 3), BGR; never wider than `_GREYED_WIDTH`.
    """
    if image.shape[1] > _GREYED_WIDTH:  # letters in proportion to a larger picture would take seconds to draw
        height = max(1, image.shape[0] * _GREYED_WIDTH // image.shape[1])
        image = cv2.resize(image, (_GREYED_WIDTH, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    dark: Image = cv2.cvtColor(cv2.convertScaleAbs(grey, alpha=0.5), cv2.COLOR_GRAY2BGR)  # type: ignore[assignment]
    _write_in_the_middle(dark, words)
    return dark


def placard(width: int, height: int, words: str) -> Image:
    """Return a dark card with words, for a camera without a picture: uint8 of shape (height, width, 3)."""
    card = np.full((height, width, 3), GROUND, np.uint8)
    _write_in_the_middle(card, words)
    return card


def draw_caption(strip: Image, status: Status) -> None:
    """Draw the state's shape, the camera's name, the state in words, and at the right its rate or age.

    Args:
        strip: where to draw, uint8 of shape (height, width, 3). A narrow one has no room for the rate, then the name.
        status: of the camera.
    """
    height, width = strip.shape[:2]
    gap = max(4, height // 3)
    colour = _COLOURS[status.state]
    strip[:] = _PLATE
    _draw_shape(strip[:, :height], status.state)
    numbers = _numbers(status)
    name_width, state_width, numbers_width = (text_width(text, height) for text in (status.name, status.state, numbers))
    if height + name_width + gap + state_width + gap + numbers_width + gap <= width:
        write(strip[:, width - gap - numbers_width :], numbers, _SOFT)
    state_at = height + max(0, min(name_width, width - height - gap - state_width - gap)) + gap
    write(strip[:, height : state_at - gap], status.name, _INK)
    write(strip[:, state_at:], status.state, colour)


def text_width(text: str, line_height: int) -> int:
    """Return the width in pixels of a text drawn by `write`."""
    return cv2.getTextSize(text, _FONT, _letters(line_height), 1)[0][0]


def write(line: Image, text: str, colour: Colour = _SOFT) -> None:
    """Write a text as high as a line, uint8 of shape (height, width, 3), from its left; cut off at its right."""
    if not line.size:
        return
    height = line.shape[0]
    scale = _letters(height)
    capital = cv2.getTextSize("X", _FONT, scale, 1)[0][1]
    cv2.putText(line, text, (0, (height + capital) // 2), _FONT, scale, colour, 1, cv2.LINE_AA)


def _letters(line_height: int) -> float:
    """Return the font's scale for a line's height."""
    return max(_LETTERS_MIN, line_height / 46)


def _write_in_the_middle(image: Image, text: str) -> None:
    """Write a text across a picture, on a dark plate; nothing if it would be illegible."""
    height, width = image.shape[:2]
    scale = max(0.4, width / 640)
    wide = cv2.getTextSize(text, _FONT, scale, 1)[0][0]
    if wide > 0.9 * width:
        scale = scale * 0.9 * width / wide
    if scale < _LETTERS_MIN:
        return
    thickness = max(1, round(1.3 * scale))
    (wide, high), _ = cv2.getTextSize(text, _FONT, scale, thickness)
    left, bottom = (width - wide) // 2, (height + high) // 2
    plate = image[max(0, bottom - 2 * high) : bottom + high, max(0, left - high) : left + wide + high]
    plate[:] = plate // 4
    cv2.putText(image, text, (left, bottom), _FONT, scale, _WHITE, thickness, cv2.LINE_AA)


def _draw_shape(square: Image, state: str) -> None:
    """Draw a state's shape, which is that of the page: a disc, a triangle, a square or a ring."""
    middle = square.shape[0] // 2
    radius = max(3, square.shape[0] // 4)
    colour, low, high = _COLOURS[state], middle - radius, middle + radius
    if state == State.LIVE:
        cv2.circle(square, (middle, middle), radius, colour, cv2.FILLED, cv2.LINE_AA)
    elif state == State.STALE:
        corners = np.array([[middle, low], [high + 1, high], [low - 1, high]], np.int32)
        cv2.fillPoly(square, [corners], colour, cv2.LINE_AA)
    elif state == State.GONE:
        cv2.rectangle(square, (low + 1, low + 1), (high - 1, high - 1), colour, cv2.FILLED)
    else:
        cv2.circle(square, (middle, middle), radius, colour, 1, cv2.LINE_AA)


def _numbers(status: Status) -> str:
    if status.state == State.LIVE:
        return f"{status.fps:.1f} fps"
    return "" if status.age_s is None else _span(status.age_s)


def _span(seconds: float) -> str:
    """Format a duration like `span` in the wall's states.js."""
    whole = max(0, int(seconds))
    if whole < 100:
        return f"{whole} s"
    if whole < 100 * 60:
        return f"{whole // 60} min"
    return f"{whole // 3600} h" if whole < 48 * 3600 else f"{whole // 86400} days"


def _fitted_size(width: int, height: int, box_width: int, box_height: int) -> tuple[int, int]:
    """Return the (width, height) of a picture scaled to fit a box."""
    scale = min(box_width / width, box_height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _viewable(image: Image) -> Image:
    """Return an image that OpenCV can show; a raw array may be anything.

    Raises:
        CodecError: it cannot be shown.
    """
    if str(image.dtype) != "uint8" or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise CodecError(f"an array of {image.dtype} with shape {image.shape} is not a picture that a window can show")
    if image.ndim == 3 and image.shape[2] == 4:
        return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)  # type: ignore[return-value]
    return image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image
