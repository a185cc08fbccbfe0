"""The doors of the hub, and what must hold at each whatever comes: a target takes bytes and fails an assertion.

A target says only by its errors what it found, so that hypothesis, atheris and the corpus can all drive it. Beside each
stands how to make inputs that get past the first check: bytes made at random seldom do.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import itertools
import json
import logging
import math
import re
import shutil
import socket
import struct
import tempfile
import unittest.mock
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import simplejpeg
from hypothesis import strategies as st

from streamer import codec, config, wire
from streamer.errors import CodecError, ConfigError, WireError
from streamer.hub import Hub
from streamer.presence import Presence
from streamer.wall import Wall
from streamer.wall.access import Access

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parents[1] / "data"
LINE_MAX = 800  # characters of an error that a person is to read
DECODED_MAX = 4_000_000  # pixels: larger pictures only take longer
WAIT_S = 30.0
QUIET_S = 0.01


@dataclass(frozen=True)
class Target:
    """One door.

    Attributes:
        check: fails when what must hold there does not.
        inputs: makes inputs for it.
        words: of its language, for atheris.
    """

    check: Callable[[bytes], None]
    inputs: st.SearchStrategy[bytes]
    words: tuple[bytes, ...]


# -- what several are made of

NAMES = st.one_of(
    st.sampled_from(["pi1", "..", "../../etc/passwd", "a" * 65, "pi\u0661", "<script>", "pi1\n", "\ud800", "con:", ""]),
    st.text(max_size=70),
)
NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400), 1e-320, 1e308]),
    st.floats(),
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


def as_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def edited(whole: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Make what is whole, or cut, or with some of its bytes changed."""

    @st.composite
    def edit(draw: st.DrawFn) -> bytes:
        out = bytearray(draw(whole))
        for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
            at = draw(st.integers(0, len(out)))
            out[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
        return bytes(out)

    return edit()


# -- a picture

PICTURES = [path.read_bytes() for path in sorted(DATA.glob("*.jpg"))]
MARKERS = [0x00, 0x01, 0xC0, 0xC1, 0xC2, 0xC4, 0xC9, 0xD0, 0xD7, 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xE1, 0xFE, 0xFF]
SIDES = st.sampled_from([0, 1, 8, 24, 8000, 65500, 65535])


def segments_of(jpeg: bytes) -> list[bytes]:
    """Cut a JPEG at its markers, up to the first scan."""
    segments, at = [], 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0]
        segments.append(jpeg[at:end])
        at = end
    return [*segments, jpeg[at:]]


@st.composite
def jpegs(draw: st.DrawFn) -> bytes:
    """Make a JPEG of the segments of real ones, some doubled, lost, out of order, or with another size or length."""
    segments = segments_of(draw(st.sampled_from(PICTURES)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(segments) - 1))
        match draw(st.sampled_from(["double", "lose", "size", "length", "marker", "borrow"])):
            case "double":
                segments.insert(at, segments[at])
            case "lose":
                segments[at] = b""
            case "size":
                frame = next((n for n, each in enumerate(segments) if each[1:2] in (b"\xc0", b"\xc2")), at)
                segments[frame] = (
                    segments[frame][:5] + struct.pack(">HH", draw(SIDES), draw(SIDES)) + segments[frame][9:]
                )
            case "length":
                length = draw(st.sampled_from([0, 1, 2, 8, 0xFFC0, 0xFFFF]))
                segments[at] = segments[at][:2] + struct.pack(">H", length) + segments[at][4:]
            case "marker":
                segments.insert(at, bytes([0xFF, draw(st.sampled_from(MARKERS))]) + draw(st.binary(max_size=4)))
            case "borrow":
                segments.insert(at, draw(st.sampled_from(segments_of(draw(st.sampled_from(PICTURES))))))
    return b"\xff\xd8" + b"".join(segments)


LIBRARIES = [kind() for kind in (codec._SimpleJpeg, codec._OpenCv, codec._Pillow)]


def check_jpeg(data: bytes) -> None:
    """What the hub takes has, for every decoder, the size that the hub saw; or no decoder takes it."""
    try:
        width, height = wire.check_jpeg(data)
    except WireError as error:
        assert_line(str(error))
        return
    assert 0 < width * height <= wire.PIXELS_MAX
    for before in PICTURES:
        sizes = codec.JpegSizes()
        with contextlib.suppress(CodecError):
            sizes.read(before)
        assert sizes.read(data) == (width, height)
    with contextlib.suppress(ValueError, KeyError):  # the latter: of a sampling that the library has no name for
        assert simplejpeg.decode_jpeg_header(data, strict=False)[:2] == (height, width)
    if width * height > DECODED_MAX:
        return
    for library, at_least in itertools.product(LIBRARIES, (None, (width // 2, height // 2))):
        with unittest.mock.patch.object(codec, "library", lambda library=library: library):
            try:
                image = codec.decode_jpeg(data, at_least)
            except CodecError as error:
                assert_line(str(error))
                continue
        assert image.dtype == "uint8"
        assert image.shape[0] <= height
        assert image.shape[1] <= width
        assert at_least or image.shape == (height, width, 3)


# -- a message


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    good: dict[str, st.SearchStrategy[Any]] = {
        "msg": NAMES,
        "dtype": st.sampled_from(["uint8", "float32", ">u2", "object", "|O8", "<U9", "x" * 3000]),
        "shape": st.lists(st.integers(-1, 8) | NUMBERS, max_size=4) | JSON,
        "seq": NUMBERS,
        "start": NAMES,
        "captured": NUMBERS,
        "dropped": NUMBERS,
        "every": NUMBERS,
        "release": NAMES,
        "clock": st.booleans() | JSON,
        "offset": NUMBERS,
        "offset_error": NUMBERS,
    }
    keys = draw(st.sets(st.sampled_from(sorted(good)), max_size=5)) | {"msg"}
    header = {key: draw(good[key] if draw(st.integers(0, 3)) else JSON) for key in sorted(keys)}
    packed = as_json(header)
    if draw(st.booleans()):  # as our senders write it
        offset = draw(st.none() | st.tuples(st.integers(), st.integers()))
        packed = wire.add_counts(packed, draw(st.integers()), draw(st.integers()), draw(st.integers()), offset)
    payload = draw(st.sampled_from(PICTURES[:2]) | jpegs() | st.integers(0, 600).map(bytes))
    return packed + b"\0" + payload


def attributes_of(header: bytes, read: Callable[[bytes], Any]) -> object:
    try:
        return read(header)
    except WireError as error:
        return str(error)


def check_message(data: bytes) -> None:
    """A message is refused by a line that can be sent, or becomes a frame whose row is JSON and of true numbers."""
    header, _, payload = data.partition(b"\0")  # JSON has no NUL
    assert attributes_of(header, lambda whole: wire._read_attributes(whole)[0]) == attributes_of(
        header, wire._read_whole
    )
    try:
        frame = wire.parse(header, memoryview(payload), 1_793_500_000_000_000_000)
    except WireError as error:
        assert_line(wire.error_reply(error).decode())
        return
    assert wire.is_camera_name(frame.camera)
    assert 0 < frame.width * frame.height <= wire.PIXELS_MAX
    assert frame.is_jpeg or frame.image.nbytes == len(payload)
    assert wire.reply_to(frame).startswith(b"OK")
    presence = Presence(stale_after_s=3, gone_after_s=30)
    for now in (1.0, 1.0, 5.0):
        presence.add(frame, "192.0.2.1", now)
        (row,) = presence.statuses(now + 1)
        numbers = [value for value in dataclasses.asdict(row).values() if isinstance(value, float)]
        assert all(math.isfinite(value) for value in numbers), row
        json.dumps(dataclasses.asdict(row), allow_nan=False)


# -- the configuration files

YAML_WORDS = [
    "&a ",
    "*a",
    "!!int ",
    "!!binary ",
    "!!set ",
    "!!python/object:os.system ",
    "- ",
    "? ",
    ": ",
    "[",
    "]",
    "{",
    "}",
    "<<: ",
    "---\n",
    "...\n",
    "\n",
    "  ",
    "|\n",
    ">\n",
    "'",
    '"',
    "#",
    "%YAML 9.9\n",
    "\t",
    "0x" + "f" * 5000,
    "1:" * 2000,
    "2026-99-99",
    ".inf",
    "~",
    "\u2028",
    "9" * 5000,
    '"\\ud800"',
    '"\\0"',
    "[" * 600,
]


@st.composite
def yaml_files(draw: st.DrawFn, kind: type[config.SenderConfig | config.HubConfig]) -> bytes:
    keys = st.sampled_from([field.name for field in dataclasses.fields(kind)])
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        words = st.lists(st.sampled_from(YAML_WORDS) | NAMES, max_size=5).map("".join)
        value = draw(words | JSON.map(json.dumps))
        rows.append(f"{draw(keys)}: {value}")
    return "\n".join(rows).encode("utf-8", "surrogatepass")


_FOLDER = tempfile.mkdtemp(prefix="fuzz-")
atexit.register(shutil.rmtree, _FOLDER)
_FILE = Path(_FOLDER) / "streamer.yml"


def check_config(kind: type[config.SenderConfig | config.HubConfig], data: bytes) -> None:
    """A file is refused by one line that names it, or becomes a configuration not much larger than it."""
    _FILE.write_bytes(data)
    try:
        loaded = config.load(kind, _FILE, {})
    except ConfigError as error:
        assert_line(str(error).removeprefix(str(_FILE)))
        return
    assert len(repr(loaded)) < 2000 + 100 * len(data)


# -- HTTP

PATHS = [
    "/",
    "/numbers",
    "/static/..%2f..%2fetc%2fpasswd",
    "/static/wall.js",
    "/ws",
    "/api/cameras",
    "/api/viewers",
    "/api/history",
    "/healthz",
    "/metrics",
    "/snapshot/pi1.jpg",
    "/stream/pi1.mjpg",
    "/login",
    "/logout",
    "*",
    "//",
    "http://x/",
    "/snapshot/%ff%00.jpg",
    "/%",
    "/.%2e/",
]
KEYS = [
    "Host",
    "Cookie",
    "Authorization",
    "Origin",
    "Upgrade",
    "Connection",
    "Accept",
    "If-None-Match",
    "User-Agent",
    "Content-Length",
    "Transfer-Encoding",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Content-Type",
    "Expect",
    "Range",
    "X",
]
VALUES = [
    "127.0.0.1",
    "[::1",
    "a:99999",
    "streamer=1.2",
    "Basic OmNhbWVyYXMh",
    "Basic \xff",
    "Basic OnhYeA==",
    "bearer",
    "null",
    "http://[",
    "websocket",
    "Upgrade",
    "text/html",
    "*",
    '"1"',
    'W/"' + "a" * 99,
    "-1",
    "9" * 30,
    "chunked",
    "dGhlIHNhbXBsZSBub25jZQ==",
    "13",
    "100-continue",
    "application/openmetrics-text;version=x;q=,",
    "a" * 9000,
    "multipart/form-data; boundary=",
    "",
]


PASSWORDS = b"OmNhbWVyYXMh", b"cameras!"  # as basic authentication has it, and a form
OPEN = b"healthz", b"login", b"logout", b"static"  # what is for everybody
SUCCESS = re.compile(rb"^HTTP/1\.[01] (?:2|101)", re.MULTILINE)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    query = st.sampled_from(["", "?fps=", "?max_age=", "?next=", "?"])
    value = st.sampled_from(["1", "-1", "1e999", "nan", "\u0661", "9" * 400, "//x", "%ff%fe", "%ed%a0%80", "1_0"])
    path = draw(st.sampled_from(PATHS)) + draw(query) + draw(value)
    method = draw(st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "OPTIONS", "G\xc9T", ""]))
    # Two thirds come with the password, so that what is behind it is reached.
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    if draw(st.integers(0, 2)):
        lines.append("Authorization: Basic OmNhbWVyYXMh")
    fields = st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES) | st.text(max_size=9)).map(": ".join)
    lines += draw(st.lists(fields, max_size=3))
    body = draw(st.sampled_from([b"", b"password=x&next=//x", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n"]))
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


class Log(logging.Handler):
    """Keeps what the libraries log as errors: an exception that nobody caught."""

    NAMES = ("aiohttp", "asyncio", "streamer")

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        for name in self.NAMES:
            logging.getLogger(name).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))

    def close(self) -> None:
        for name in self.NAMES:
            logging.getLogger(name).removeHandler(self)
        super().close()


class Page:
    """A wall behind a password, and one client of it after the other."""

    def __init__(self) -> None:
        self.log = Log()
        self.hub = Hub(None, cameras=["pi1"])
        self.wall = Wall(self.hub, "127.0.0.1", 0, access=Access("127.0.0.1", "cameras!"))

    def ask(self, data: bytes) -> bytes:
        """Send bytes, and the end when no more comes back; return all that did."""
        with socket.create_connection(("127.0.0.1", self.wall.port), QUIET_S) as client:
            answer = b""
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
                with contextlib.suppress(TimeoutError):
                    while got := client.recv(65536):
                        answer += got
                client.settimeout(WAIT_S)
                client.shutdown(socket.SHUT_WR)
                while got := client.recv(65536):
                    answer += got
        if self.log.found:
            raise AssertionError(self.log.found.pop())
        return answer

    def close(self) -> None:
        self.wall.close()
        self.hub.close()
        self.log.close()


_page: list[Page] = []


def page() -> Page:
    if not _page:
        _page.append(Page())
    return _page[0]


def close_page() -> None:
    """Close the wall that the checks have opened, if any."""
    while _page:
        _page.pop().close()


def check_request(data: bytes) -> None:
    """No request ends in an error of the server's own, or is never ended, or gets past the password."""
    answer = page().ask(data)
    assert b"root:x:0" not in answer
    if not any(word in urllib.parse.unquote_to_bytes(data) for word in (*PASSWORDS, *OPEN)):
        assert not SUCCESS.search(answer)


# -- the wall's WebSocket

HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nAuthorization: Basic OmNhbWVyYXMh\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def framed(payload: bytes, first: int = 0x81) -> bytes:
    """Write a WebSocket frame as a client does, masked with zeros."""
    size = len(payload)
    if size < 126:
        return bytes([first, 0x80 | size]) + bytes(4) + payload
    return (
        bytes([first])
        + (struct.pack(">BH", 0xFE, size) if size < 1 << 16 else struct.pack(">BQ", 0xFF, size))
        + bytes(4)
        + payload
    )


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    rates = st.dictionaries(NAMES, NUMBERS | JSON, max_size=3)
    commands = st.one_of(
        rates.map(lambda rates: {"want": rates}),
        st.lists(NAMES | JSON, max_size=3).map(lambda names: {"shown": names}),
        JSON,
    )
    frames = b""
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.sampled_from([0x81] * 6 + [0x01, 0x80, 0x82, 0x88, 0x89, 0x8A, 0xC1, 0xF1, 0x83, 0x00]))
        frames += framed(draw(commands.map(as_json) | st.binary(max_size=130)), first)
    return frames


def check_conversation(data: bytes) -> None:
    """What a page says ends, at worst, in a close frame that says why, as text."""
    answer = page().ask(HANDSHAKE + data)
    while answer.startswith(b"HTTP"):
        answer = answer.partition(b"\r\n\r\n")[2]
    while len(answer) >= 2:
        size, start = answer[1] & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(answer[2:start], "big")
        payload = answer[start : start + size]
        if answer[0] == 0x88 and payload:
            code = int.from_bytes(payload[:2], "big")
            assert code in (1000, 1001, 1002, 1003, 1007, 1008, 1009), payload
            payload[2:].decode()
        answer = answer[start + size :]


def assert_line(text: str) -> None:
    assert len(text) <= LINE_MAX
    assert "\n" not in text
    text.encode("utf-8", "backslashreplace")


WORDS_OF_JSON = (b'{"', b'":', b"[", b"]", b"null", b"NaN", b"Infinity", b"1e999", b"\\ud800", b"\\u0000")
TARGETS = {
    "message": Target(
        check_message,
        edited(messages()),
        (*WORDS_OF_JSON, b'"msg"', b'"dtype"', b'"shape"', b'"every"', b'"clock"', b'"offset"', b"uint8", b"\xff\xd8"),
    ),
    "jpeg": Target(check_jpeg, edited(jpegs()), tuple(bytes([0xFF, marker]) for marker in MARKERS)),
    "sender_yml": Target(
        lambda data: check_config(config.SenderConfig, data),
        edited(yaml_files(config.SenderConfig)),
        tuple(word.encode() for word in YAML_WORDS if len(word) < 20)
        + tuple(f"{field.name}: ".encode() for field in dataclasses.fields(config.SenderConfig)),
    ),
    "hub_yml": Target(
        lambda data: check_config(config.HubConfig, data),
        edited(yaml_files(config.HubConfig)),
        tuple(word.encode() for word in YAML_WORDS if len(word) < 20)
        + tuple(f"{field.name}: ".encode() for field in dataclasses.fields(config.HubConfig)),
    ),
    "request": Target(
        check_request, edited(requests()), tuple(word.encode() for word in (*PATHS, *KEYS, "\r\n", "?fps=", "HTTP/1.1"))
    ),
    "conversation": Target(
        check_conversation, edited(conversations()), (*WORDS_OF_JSON, b'"want"', b'"shown"', b"pi1")
    ),
}
