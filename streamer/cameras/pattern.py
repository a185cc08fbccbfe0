"""A moving test card, the camera that needs no hardware: its name, a running counter, the time of day.

A JPEG with a restart marker after every block of 16 x 16 pixels (ITU-T T.81, B.2.4.4: a DRI segment with the interval
1) is a plain sequence of blocks that do not depend on each other. So every block of the card, every digit and every
place of the ball is encoded once, and a frame is their bytes joined: some microseconds, however large the picture.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import time
import zlib
from typing import TYPE_CHECKING

from streamer.errors import ConfigError, MissingExtraError

try:
    from PIL import Image, ImageDraw, ImageFont
except ImportError as error:
    raise MissingExtraError("the camera 'pattern'", "pattern", "python3-pil", error) from error

if TYPE_CHECKING:
    from typing import Self

_BLOCK = 16
_DIGITS = "0123456789"
_COUNTER = "000000"
_CLOCK = "00:00:00.00"
_MINIMUM = (_BLOCK * len(_CLOCK), 9 * _BLOCK)
_BALL_STEPS = 4  # of 4 pixels: its places within a block
_BARS = ("#c0c0c0", "#c0c000", "#00c0c0", "#00c000", "#c000c0", "#c00000", "#0000c0")
_INK = "#f4f4f4"
_DARK = "#14181d"
_START_OF_FRAME = 0xC0
_START_OF_SCAN = 0xDA
_RESTART_EVERY_BLOCK = b"\xff\xdd\x00\x04\x00\x01"


class Pattern:
    """The test card.

    Args:
        name: in large letters.
        size: (width, height) in pixels, at least 176 x 144.
        fps: frames per second.
        quality: of the JPEG, 1 to 100.

    Raises:
        ConfigError: the size is too small to be read.
    """

    def __init__(self, name: str, size: tuple[int, int], fps: float, quality: int) -> None:
        if size[0] < _MINIMUM[0] or size[1] < _MINIMUM[1]:
            raise ConfigError(
                f"size is {size[0]}x{size[1]}: it must be {_MINIMUM[0]}x{_MINIMUM[1]} or more for the camera pattern"
            )
        self._columns, self._rows = -(-size[0] // _BLOCK), -(-size[1] // _BLOCK)
        self._interval_s = 1 / fps
        self._count = 0

        self._digit_columns = max(1, min(self._columns // 13, self._rows // 10))
        self._digit_rows = max(2, round(1.4 * self._digit_columns))
        self._ball_row = self._rows - 3
        self._clock_at = self._centred(_CLOCK), self._ball_row - self._digit_rows
        self._counter_at = self._centred(_COUNTER), self._clock_at[1] - self._digit_rows

        encoder = _BlockEncoder(quality)
        card = [encoder.encode(line) for line in _blocks(self._card(name, size[0]))]
        self._digits = {digit: [encoder.encode(line) for line in _blocks(self._digit(digit))] for digit in _DIGITS}
        self._balls = [[encoder.encode(line) for line in _blocks(_ball(step))] for step in range(_BALL_STEPS)]
        self._head = encoder.head(size)
        last = self._columns * self._rows - 1
        self._markers = [bytes((0xFF, 0xD0 + at % 8)) if at < last else b"\xff\xd9" for at in range(last + 1)]
        self._still = [block + marker for block, marker in zip(itertools.chain(*card), self._markers, strict=True)]
        self._next = time.monotonic()

    def read(self) -> tuple[bytes, int]:
        """Wait until the next frame is due, and return (JPEG, wall clock in ns)."""
        delay_s = self._next - time.monotonic()
        if delay_s > 0:
            time.sleep(delay_s)
        elif delay_s < -1.0:  # suspended, or short of CPU: no burst to catch up
            self._next = time.monotonic()
        self._next += self._interval_s
        captured_ns = time.time_ns()
        jpeg = self._compose(self._count, captured_ns)
        self._count += 1
        return jpeg, captured_ns

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _compose(self, count: int, now_ns: int) -> bytes:
        """Put what moves in its place, and join."""
        seconds, fraction_ns = divmod(now_ns, 1_000_000_000)
        clock = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{fraction_ns // 10_000_000:02d}"
        counter = f"{count % 10 ** len(_COUNTER):0{len(_COUNTER)}d}"
        blocks = self._still.copy()
        for text, (column, row) in ((counter, self._counter_at), (clock, self._clock_at)):
            for place, character in enumerate(text):
                if character in _DIGITS:
                    self._put(blocks, self._digits[character], column + place * self._digit_columns, row)
        travel = (self._columns - 3) * _BALL_STEPS
        step = travel - abs(count % (2 * travel) - travel)
        self._put(blocks, self._balls[step % _BALL_STEPS], step // _BALL_STEPS, self._ball_row)
        return b"".join((self._head, *blocks))

    def _put(self, blocks: list[bytes], stamp: list[list[bytes]], column: int, row: int) -> None:
        for line_row, line in enumerate(stamp, row):
            for at, block in enumerate(line, line_row * self._columns + column):
                blocks[at] = block + self._markers[at]

    def _centred(self, text: str) -> int:
        return (self._columns - len(text) * self._digit_columns) // 2

    def _card(self, name: str, width: int) -> Image.Image:
        """Draw all that stands still: colour bars, the name, the dots of the clock."""
        card = Image.new("RGB", (self._columns * _BLOCK, self._rows * _BLOCK), _DARK)
        draw = ImageDraw.Draw(card)
        bottom = self._counter_at[1] * _BLOCK
        edges = [width * bar // len(_BARS) for bar in range(len(_BARS) + 1)]
        edges[-1] = card.width
        for colour, left, right in zip(_BARS, edges, edges[1:], strict=False):
            draw.rectangle((left, 0, right, bottom - 1), fill=colour)
        box = (width * 3 // 4, bottom // 2)
        corner = ((width - box[0]) // 2, (bottom - box[1]) // 2)
        # A colour of its own, the same at each start, helps to tell eight cards apart.
        hue = zlib.crc32(name.encode()) % 360
        draw.rectangle((*corner, corner[0] + box[0] - 1, corner[1] + box[1] - 1), fill=f"hsl({hue}, 70%, 28%)")
        card.paste(_INK, corner, _lettering(name, box, like=name))
        column, row = self._clock_at
        for place, character in enumerate(_CLOCK):
            if character not in _DIGITS:
                at = (column + place * self._digit_columns) * _BLOCK, row * _BLOCK
                card.paste(self._digit(character), at)
        return card

    def _digit(self, character: str) -> Image.Image:
        cell = Image.new("RGB", (self._digit_columns * _BLOCK, self._digit_rows * _BLOCK), _DARK)
        cell.paste(_INK, (0, 0), _lettering(character, cell.size, like="0"))
        return cell


class _BlockEncoder:
    """Encodes blocks of 16 x 16 pixels, each as the whole content of a restart interval."""

    def __init__(self, quality: int) -> None:
        self._quality = quality
        self._known: dict[bytes, bytes] = {}
        self._segments: list[bytes] = []

    def encode(self, blocks: list[Image.Image]) -> list[bytes]:
        return [self._encode(block) for block in blocks]

    def head(self, size: tuple[int, int]) -> bytes:
        """Return all that goes before the first block of a picture of `size`, in pixels."""
        width, height = size
        parts = [b"\xff\xd8"]
        for segment in self._segments:
            if segment[1] == _START_OF_FRAME:
                parts.append(segment[:5] + struct.pack(">HH", height, width) + segment[9:])
            elif segment[1] == _START_OF_SCAN:
                parts += [_RESTART_EVERY_BLOCK, segment]
            else:
                parts.append(segment)
        return b"".join(parts)

    def _encode(self, block: Image.Image) -> bytes:
        pixels = block.tobytes()
        if pixels not in self._known:
            buffer = io.BytesIO()
            # 4:2:0, so that a block is one MCU; the tables are the encoder's standard ones, the same for all.
            block.save(buffer, "JPEG", quality=self._quality, subsampling=2)
            self._segments, self._known[pixels] = _split(buffer.getvalue())
        return self._known[pixels]


def _split(jpeg: bytes) -> tuple[list[bytes], bytes]:
    """Split a JPEG into the segments before the scan's data, and the data."""
    segments: list[bytes] = []
    at = 2
    while not segments or segments[-1][1] != _START_OF_SCAN:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        segments.append(jpeg[at:end])
        at = end
    return segments, jpeg[at:-2]


def _blocks(image: Image.Image) -> list[list[Image.Image]]:
    """Cut an image into rows of blocks."""
    return [
        [image.crop((x, y, x + _BLOCK, y + _BLOCK)) for x in range(0, image.width, _BLOCK)]
        for y in range(0, image.height, _BLOCK)
    ]


def _ball(step: int) -> Image.Image:
    """Draw the ball at one of its places within a block, on a strip that covers it wherever it was before."""
    strip = Image.new("RGB", (3 * _BLOCK, 2 * _BLOCK), _DARK)
    left = step * _BLOCK // _BALL_STEPS
    ImageDraw.Draw(strip).ellipse((left + 2, 2, left + 2 * _BLOCK - 3, 2 * _BLOCK - 3), fill="#ffb000")
    return strip


def _lettering(text: str, box: tuple[int, int], like: str) -> Image.Image:
    """Draw text in the middle of a box as a mask, as large as `like` may be in it."""
    try:
        font = ImageFont.load_default(100)
    except TypeError:  # Pillow before 10.1 has one small bitmap font, which is enlarged
        font = ImageFont.load_default()
    left, top, right, bottom = font.getbbox(like)
    scale = min(0.85 * box[0] / (right - left), 0.75 * box[1] / (bottom - top))
    mask = Image.new("L", (math.ceil(box[0] / scale), math.ceil(box[1] / scale)))
    text_left, _, text_right, _ = font.getbbox(text)
    at = ((mask.width - text_right - text_left) / 2, (mask.height - bottom - top) / 2)
    ImageDraw.Draw(mask).text(at, text, fill=255, font=font)
    return mask.resize(box, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)
