"""Turns the Motion JPEG of USB cameras into JPEG that every decoder accepts, without decoding it.

A picture may lack its Huffman tables, as in AVI files ("AVI1"): the USB video class allows that for MJPEG payloads,
which then use the typical tables of ITU-T T.81, K.3. Its buffer may be longer than the picture, and data lost on the
bus may have truncated it.
"""

from __future__ import annotations

import re
import struct

from streamer.codec import START_OF_SCAN, find_segment
from streamer.errors import CodecError

_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = 0xD9
_HUFFMAN_TABLES = 0xC4
# T.81, B.1.1.2 and B.1.1.5: a scan ends at an FF followed by neither stuffing (00), a restart (D0 to D7) nor fill.
_AFTER_SCAN = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)


def _table(place: int, counts: str, values: bytes) -> bytes:
    """Encode a Huffman table, T.81, B.2.4.2: class and destination, number of codes of each length 1 to 16, values."""
    return bytes((place,)) + bytes.fromhex(counts) + values


_DC_VALUES = bytes(range(12))
_STANDARD_TABLES = b"".join(
    (
        # K.3 and K.4: DC differences of luminance and of chrominance.
        _table(0x00, "00010501010101010100000000000000", _DC_VALUES),
        _table(0x01, "00030101010101010101010000000000", _DC_VALUES),
        # K.5: AC coefficients of luminance.
        _table(
            0x10,
            "0002010303020403050504040000017d",
            bytes.fromhex(
                "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728"
                "292a3435363738393a434445464748494a535455565758595a636465666768696a737475767778797a83848586878889"
                "8a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2"
                "e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
            ),
        ),
        # K.6: AC coefficients of chrominance.
        _table(
            0x11,
            "00020102040403040705040400010277",
            bytes.fromhex(
                "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a26"
                "2728292a35363738393a434445464748494a535455565758595a636465666768696a737475767778797a828384858687"
                "88898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9da"
                "e2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa"
            ),
        ),
    )
)
_STANDARD_SEGMENT = struct.pack(">BBH", 0xFF, _HUFFMAN_TABLES, 2 + len(_STANDARD_TABLES)) + _STANDARD_TABLES


def to_jpeg(picture: bytes) -> bytes:
    """Return a camera's picture as a complete JPEG: with Huffman tables, and without what follows its end.

    Args:
        picture: a buffer in the format MJPG or JPEG, with a single scan.

    Raises:
        CodecError: it is no JPEG, or truncated.
    """
    if not picture.startswith(_START_OF_IMAGE):
        raise CodecError("does not start as a JPEG")
    scan = find_segment(picture, START_OF_SCAN)
    if scan is None:
        raise CodecError("JPEG ends within its head")
    following = _AFTER_SCAN.search(picture, scan + 2 + int.from_bytes(picture[scan + 2 : scan + 4], "big"))
    if following is None or following[1][0] != _END_OF_IMAGE:
        raise CodecError("JPEG ends within its picture")
    if find_segment(picture, frozenset({_HUFFMAN_TABLES})) is not None:
        return picture[: following.end()]
    return picture[:scan] + _STANDARD_SEGMENT + picture[scan : following.end()]
