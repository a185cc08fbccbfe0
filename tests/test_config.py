from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import streamer.config
from streamer.config import Address, Given, HubConfig, Layout, SenderConfig, Size, load, manual, read_password
from streamer.errors import ConfigError, TransportError

Kind = type[SenderConfig] | type[HubConfig]

NUMBERS = ["fast", "", True, None, [1], {"a": 1}, "nan", float("inf")]
ENDPOINTS_GOOD = [
    ("tcp://hub:5555", ("tcp://hub:5555",)),
    (["tcp://192.0.2.1:1", "tcp://[fe80::1%eth0]:65535"], ("tcp://192.0.2.1:1", "tcp://[fe80::1%eth0]:65535")),
    (["ipc:///run/hub"], ("ipc:///run/hub",)),
    ([], ()),
    (None, ()),
]
ENDPOINTS_BAD = [
    "hub:5555",
    "tcp://hub",
    "tcp://hub:0",
    "tcp://hub:65536",
    "tcp://*:5555",
    "tcp://:5555",
    "tcp://a b:1",
    "tcp://hub:5555/",
    "udp://hub:5555",
    "ipc://",
    5555,
    [None],
    {"tcp://hub:5555": 1},
    ["tcp://hub:5555", "hub"],
]
LISTENERS_GOOD = [
    ("tcp://*:5555", "tcp://*:5555"),
    ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
    ("tcp://eth0:1", "tcp://eth0:1"),
    ("tcp://[::]:65535", "tcp://[::]:65535"),
    ("ipc:///run/hub", "ipc:///run/hub"),
]
LISTENERS_BAD = ["*:5555", "tcp://*", "tcp://*:65536", "tcp://*:-1", "tcp://:5555", "tcp://*:*", 5555, ["tcp://*:5555"]]
KEY = f"curve-public:{'0123456789abcdef' * 4}"
PATHS_GOOD = [("/etc/streamer/a b", Path("/etc/streamer/a b")), ("a", Path("a")), (None, None)]
PATHS_BAD = ["", "a\0b", 1, True, ["/a"], {"a": "b"}]
NAMES_BAD = ["pi 1", "pi/1", "", "a" * 65, "é", 1, True, {"a": "b"}]

# Every key: the values that it takes, each with what becomes of it, and those that it refuses.
SENDER_KEYS: dict[str, tuple[list[tuple[Any, Any]], list[Any]]] = {
    "name": ([("pi1", "pi1"), (None, None), ("a" * 64, "a" * 64)], [*NAMES_BAD, ["pi1"]]),
    "hubs": (ENDPOINTS_GOOD, ENDPOINTS_BAD),
    "curve_key_file": (PATHS_GOOD, PATHS_BAD),
    "curve_hub_keys": (
        [(KEY, (KEY,)), ([KEY, KEY], (KEY, KEY)), (None, ()), ([], ())],
        ["", KEY[:-1], KEY.upper(), KEY.replace("public", "secret"), 5, [None], [KEY, "curve-public:"], {KEY: 1}],
    ),
    "publish": ([*LISTENERS_GOOD, (None, None)], LISTENERS_BAD),
    "camera": (
        [
            (word, word)
            for word in (
                "picamera2",
                "pattern",
                "usb:0",
                "usb:12",
                "usb:/dev/v4l/by-id/usb-046d_C270-video-index0",
                "file:a.mp4",
                "file:/x/a b:c.mp4",
            )
        ],
        [
            "webcam",
            "usb",
            "usb:",
            "usb:a",
            "usb:-1",
            "usb:/dev/",
            "usb:door",
            "file:",
            "file",
            "pattern:1",
            "Pattern",
            0,
            None,
            ["pattern"],
        ],
    ),
    "size": (
        [("640x480", Size(640, 480)), ("16x8192", Size(16, 8192)), (Size(320, 240), Size(320, 240))],
        [
            "640",
            "640x",
            "640 x 480",
            "640X480",
            "641x480",
            "640x481",
            "14x16",
            "16x14",
            "8194x480",
            "8192x8192",
            "-640x480",
            640,
            None,
        ],
    ),
    "fps": ([(30, 30.0), (0.1, 0.1), (240, 240.0), ("12.5", 12.5)], [0.09, 240.1, -30, 0, *NUMBERS]),
    "quality": ([(1, 1), (100, 100), ("85", 85)], [0, 101, 85.5, "85.0", "-1", *NUMBERS]),
    "hflip": ([(True, True), (False, False)], ["true", "", 1, 0, None, [True]]),
    "vflip": ([(True, True), (False, False)], ["true", "", 1, 0, None, [True]]),
    "rotate": ([(0, 0), (180, 180), ("180", 180)], [90, 270, 360, -180, "90", 180.5, False, *NUMBERS]),
    "controls": (
        [
            (None, ()),
            ({}, ()),
            (
                {"AeEnable": False, "AfMode": "Continuous", "ExposureTime": 10000, "LensPosition": 2.5},
                (("AeEnable", False), ("AfMode", "Continuous"), ("ExposureTime", 10000), ("LensPosition", 2.5)),
            ),
            ({"ColourGains": [1.5, 2]}, (("ColourGains", (1.5, 2)),)),
            ({"AfWindows": [[0, 0, 9, 9]]}, (("AfWindows", ((0, 0, 9, 9),)),)),
        ],
        [
            "AfMode",
            1,
            True,
            ["AfMode"],
            [],
            {1: 2},
            {"Af Mode": 1},
            {"AfMode\n": None},
            {"": 1},
            {"A" * 65: 1},
            {"AfMode": None},
            {"Sharpness": []},
            {"Sharpness": float("nan")},
            {"Sharpness": {"a": 1}},
            {"Sharpness": [float("inf")]},
            {"AfWindows": [[[0]]]},
        ],
    ),
    "encoder": (
        [(word, word) for word in ("auto", "hardware", "software")],
        ["gpu", "Auto", "", None, True, 0, ["auto"], {}],
    ),
    "in_flight_limit": ([(1, 1), (16, 16)], [0, 17, 2.0, *NUMBERS]),
    "reply_timeout_s": ([(0.1, 0.1), (60, 60.0), (1, 1.0)], [0, 61, *NUMBERS]),
}
HUB_KEYS: dict[str, tuple[list[tuple[Any, Any]], list[Any]]] = {
    "bind": (LISTENERS_GOOD, [*LISTENERS_BAD, None]),
    "curve_key_file": (PATHS_GOOD, PATHS_BAD),
    "curve_allowed_file": (PATHS_GOOD, PATHS_BAD),
    "plain_bind": ([*LISTENERS_GOOD, (None, None)], LISTENERS_BAD),
    "subscribe": (ENDPOINTS_GOOD, ENDPOINTS_BAD),
    "http": (
        [
            ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
            ("0.0.0.0:80", Address("0.0.0.0", 80)),
            ("[::1]:65535", Address("::1", 65535)),
            ("localhost:0", Address("localhost", 0)),
        ],
        ["8080", ":8080", "*:8080", "hub:8080", "::1:8080", "127.0.0.1", "127.0.0.1:65536", "1.2.3:80", 8080, None, []],
    ),
    "http_password_file": (PATHS_GOOD, PATHS_BAD),
    "http_open": ([(True, True), (False, False)], ["true", "", 1, 0, None, [True]]),
    "http_socket": (PATHS_GOOD, PATHS_BAD),
    "tls_certificate": (PATHS_GOOD, PATHS_BAD),
    "tls_key": (PATHS_GOOD, PATHS_BAD),
    "display": ([("none", "none"), ("windows", "windows")], ["window", "None", "", None, True, 0, ["none"], {}]),
    "cameras": (
        [(["pi2", "pi1"], ("pi2", "pi1")), ("pi1", ("pi1",)), (None, ()), ([], ())],
        [*NAMES_BAD, ["pi1", "pi 2"], [["pi1"]], [None]],
    ),
    "stale_after_s": ([(0.5, 0.5), (29.9, 29.9)], [0.4, 3601, *NUMBERS]),
    "gone_after_s": ([(3.1, 3.1), (86400, 86400.0)], [0.9, 86401, *NUMBERS]),
    "layout": (
        [("2x4", Layout(2, 4)), ("1x1", Layout(1, 1)), ("16x16", Layout(16, 16)), (None, None)],
        ["", "2", "2x", "x4", "0x4", "2x17", "2x4x1", "2 x 4", "2X4", "-2x4", "2x4.0", "\u0662x4", 8, [2, 4], True],
    ),
    "full_screen": ([(True, True), (False, False)], ["true", "", 1, 0, None, [True]]),
    "window_rows": ([(1, 1), (16, 16)], [0, 17, 1.5, *NUMBERS]),
    "window_width": ([(64, 64), (8192, 8192)], [63, 8193, *NUMBERS]),
}
KEYS: dict[Kind, dict[str, tuple[list[tuple[Any, Any]], list[Any]]]] = {SenderConfig: SENDER_KEYS, HubConfig: HUB_KEYS}
GOOD = [(kind, key, *pair) for kind, keys in KEYS.items() for key, (good, _) in keys.items() for pair in good]
# What a key needs beside it.
BESIDE: dict[str, dict[str, Any]] = {
    "http": {"http_open": True},
    "layout": {"display": "windows"},
    "full_screen": {"display": "windows", "layout": "2x4"},
    "tls_certificate": {"tls_key": "/etc/key.pem"},
    "tls_key": {"tls_certificate": "/etc/cert.pem"},
}
BAD = [(kind, key, value) for kind, keys in KEYS.items() for key, (_, bad) in keys.items() for value in bad]


def written(path: Path, text: str) -> Path:
    file = path / "streamer.yml"
    file.write_text(text, encoding="utf-8")
    return file


# -- every key


@pytest.mark.parametrize("kind", KEYS)
def test_every_key_is_in_the_tables(kind: Kind) -> None:
    assert list(KEYS[kind]) == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("kind", "key", "value", "expected"), GOOD)
def test_good_value(kind: Kind, key: str, value: Any, expected: Any, tmp_path: Path) -> None:
    beside = BESIDE.get(key, {}) if value is not None else {}
    others = (
        load(kind, None, beside | {key: {"http": "127.0.0.1:1", "layout": "1x1", "full_screen": False}.get(key, "x")})
        if beside
        else kind()
    )
    values = {key: value, **beside}
    loaded = [load(kind, None, values)]
    if not isinstance(value, Size):
        loaded.append(load(kind, written(tmp_path, yaml.safe_dump(values, allow_unicode=True)), {}))
    for config in loaded:
        got = getattr(config, key)
        assert (got, type(got)) == (expected, type(expected))
        assert config == dataclasses.replace(others, **{key: expected})


@pytest.mark.parametrize(("kind", "key", "value"), BAD)
def test_bad_value(kind: Kind, key: str, value: Any, tmp_path: Path) -> None:
    file = written(tmp_path, "# a comment\n\n" + yaml.safe_dump({key: value}, allow_unicode=True))
    with pytest.raises(ConfigError) as refused:
        load(kind, file, {})
    assert str(refused.value).startswith(f"{file}:3: {key} is ")
    assert ": it must be " in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "text", "error"),
    [
        (SenderConfig, "fps:", "fps is empty: it must be a number"),
        (SenderConfig, "rotate: yes", "rotate is true: it must be 0 or 180"),
        (HubConfig, "display: off", "display is false: it must be none or windows"),
        (
            HubConfig,
            "cameras: [~]",
            "cameras is empty: it must be 1 to 64 letters, digits, dots, underscores or hyphens$",
        ),
        (
            HubConfig,
            "cameras: [7]",
            "cameras is 7: it must be 1 to 64 letters, .*, in quotes where YAML takes them for",
        ),
        (SenderConfig, "name: 010", "name is 8: it must be 1 to 64 letters, .*, in quotes where YAML takes them for"),
        (SenderConfig, "name: [[1], {a: 1}]", r"name is \[\[\.\.\.\], \{\.\.\.\}\]: it must be "),
        (SenderConfig, f"quality: {10**100}", "quality is an integer of 333 bits: it must be a whole number from 1"),
        (SenderConfig, f"quality: '{'9' * 5000}'", "it must be a whole number from 1 to 100$"),
        (SenderConfig, "name: 2026-11-27", "name is datetime.*, in quotes where YAML takes them for something else$"),
    ],
)
def test_bad_value_is_told_as_yaml_has_it(kind: Kind, text: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=error):
        load(kind, written(tmp_path, text), {})


@pytest.mark.parametrize("kind", KEYS)
def test_configuration_cannot_be_changed(kind: Kind) -> None:
    config = kind()
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, None)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"stale_after_s": 30}, "streamer.yml: gone_after_s is 30: it must be greater than stale_after_s, which is 30"),
        ({"gone_after_s": 2.5}, "streamer.yml: gone_after_s is 2.5: it must be greater than stale_after_s, which is 3"),
    ],
)
def test_a_camera_is_stale_before_it_is_gone(values: dict[str, float], error: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        load(HubConfig, written(tmp_path, yaml.safe_dump(values)), {})
    load(HubConfig, written(tmp_path, yaml.safe_dump(values)), {"stale_after_s": 1, "gone_after_s": 60})


@pytest.mark.parametrize(
    ("key", "value"),
    [("hflip", True), ("vflip", True), ("rotate", 180), ("controls", {"AfMode": "Auto"}), ("encoder", "software")],
)
@pytest.mark.parametrize("camera", ["usb:0", "file:a.mp4", "pattern"])
def test_only_picamera2_has_what_the_sensor_does(key: str, value: Any, camera: str, tmp_path: Path) -> None:
    file = written(tmp_path, yaml.safe_dump({key: value, "camera": camera}))
    with pytest.raises(ConfigError) as refused:
        load(SenderConfig, file, {})
    assert str(refused.value) == (
        f"{file}: {key} is set, but only the camera picamera2 has it: pictures of {camera} are sent as they come"
    )
    load(SenderConfig, file, {"camera": "picamera2"})


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (
            {"http": "0.0.0.0:8080"},
            "streamer.yml: http is 0.0.0.0:8080, which others can reach: set http_password_file to a file with a "
            "password, or http_open to let everybody look",
        ),
        ({"http": "[::]:80"}, "streamer.yml: http is [::]:80, which others can reach: "),
        ({"http": "192.0.2.1:80", "http_open": False}, "streamer.yml: http is 192.0.2.1:80, which others can reach: "),
        (
            {"http": "[::]:80", "tls_certificate": "a", "tls_key": "b"},
            "streamer.yml: http is [::]:80, which others can reach: ",
        ),
        ({"http_password_file": "a", "http_open": True}, "http_open and http_password_file are both set: either"),
        ({"tls_key": "a"}, "streamer.yml: tls_key is set and tls_certificate is not: set both, or neither"),
        ({"tls_certificate": "a"}, "streamer.yml: tls_certificate is set and tls_key is not: set both, or neither"),
        ({"layout": "2x4"}, "streamer.yml: layout is 2x4 and display is none: set display to windows, or no layout"),
        ({"full_screen": True}, "streamer.yml: full_screen is true and there is no layout: set it to ROWSxCOLUMNS"),
    ],
)
def test_what_does_not_go_together(values: dict[str, Any], error: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        load(HubConfig, written(tmp_path, yaml.safe_dump(values)), {})


@pytest.mark.parametrize("http", ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "localhost:80"])
def test_loopback_asks_for_nothing(http: str) -> None:
    assert load(HubConfig, None, {"http": http}).http.is_loopback


@pytest.mark.parametrize(
    "text", ["correct horse\n", "correct horse", "correct horse\r\nnotes\n", "\ufeffcorrect horse\n"]
)
def test_password_is_the_first_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(text, encoding="utf-8", newline="")
    assert read_password(file) == "correct horse"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "the first line is empty: it must be a password of 8 characters or more"),
        (b"\ncorrect horse\n", "the first line is empty"),
        (b"7 chars\n", "the first line has 7 characters: it must be a password of 8 characters or more"),
        (b"\xff\xfe1234567", "is not UTF-8 text: its first line must be the password"),
        (None, "No such file or directory"),
    ],
)
def test_password_that_is_none(content: bytes | None, error: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_password(file)
    assert str(refused.value).startswith(f"{file}: {error}")
    assert "7 chars" not in str(refused.value)  # what is in the file is not for the journal


@pytest.mark.parametrize(
    ("address", "tls", "url"),
    [
        (Address("127.0.0.1", 8080), False, "http://127.0.0.1:8080/"),
        (Address("::1", 80), False, "http://[::1]:80/"),
        (Address("0.0.0.0", 8443), True, "https://0.0.0.0:8443/"),
    ],
)
def test_url(address: Address, tls: bool, url: str) -> None:
    assert address.url(tls=tls) == url


def test_size_and_layout_read_as_they_are_written() -> None:
    assert str(Size(640, 480)) == "640x480"
    assert str(Layout(2, 4)) == "2x4"


# -- files


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        pytest.param("fps: 30\nqualty: 85", 2, "unknown key 'qualty'; did you mean 'quality'?", id="a typing error"),
        pytest.param("hub: tcp://hub:5555", 1, "unknown key 'hub'; did you mean 'hubs'?", id="the flag's name"),
        pytest.param(
            "FPS: 30",
            1,
            "unknown key 'FPS'; the keys are: name, hubs, curve_key_file, curve_hub_keys,",
            id="nothing near",
        ),
        pytest.param("\n\nfps: 30\n# x\nfps: 30", 5, "the key 'fps' appears a second time", id="twice"),
        pytest.param("fps: 30\nname: a\nfps: 9", 3, "the key 'fps' appears a second time", id="twice, apart"),
        pytest.param("fps: 30\n7: 1", 2, "the key 7 must be a word", id="number as key"),
        pytest.param("? [a, b]\n: 1", 1, "the key ['a', 'b'] must be a word", id="list as key"),
        pytest.param("fps: 30\nname: [", 2, "is not YAML: expected the node content", id="open bracket"),
        pytest.param("fps: 30\n\tname: a", 2, "is not YAML: found character '\\t'", id="tab"),
        pytest.param("fps: 30\nname: 'a", 2, "is not YAML: found unexpected end of stream", id="open quote"),
        pytest.param("fps: 30\n  name: a", 2, "is not YAML: mapping values are not allowed here", id="indented"),
        pytest.param("fps: 1\n---\nfps: 2", 2, "is not YAML: but found another document", id="two documents"),
        pytest.param("name: !!python/name:os.system", 1, "is not YAML: could not determine", id="Python object"),
        pytest.param("fps: 1\nname: 2026-99-99", 2, "is not YAML: month must be in 1..12", id="no date"),
        pytest.param("fps: !!timestamp x", 1, "is not YAML: ", id="no timestamp"),
        pytest.param("fps: !!bool x", 1, "is not YAML: ", id="no boolean"),
        pytest.param("fps: !!int ''", 1, "is not YAML: ", id="no integer"),
        pytest.param("fps: " + 5000 * "9", 1, "is not YAML: ", id="too long a number"),
        pytest.param("fps: &a [*a]", 1, "is not YAML: found unconstructable recursive node", id="recursive"),
        pytest.param("fps: *a", 1, "is not YAML: found undefined alias", id="unknown alias"),
        pytest.param("fps: {[]: 1}", 1, "is not YAML: found unhashable key", id="unhashable key"),
        pytest.param("- fps: 30", None, "must be a list of 'key: value' lines", id="a list"),
        pytest.param("fps", None, "must be a list of 'key: value' lines", id="a word"),
        pytest.param("fps: " + 600 * "[", None, "is not YAML: maximum recursion depth exceeded", id="deep"),
        pytest.param("fps: \0", None, "is not YAML: unacceptable character #x0000", id="NUL"),
    ],
)
def test_file_errors(text: str, line: int | None, error: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load(SenderConfig, file, {})
    assert str(refused.value).startswith(f"{file}:{line}: {error}" if line else f"{file}: {error}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", KEYS)
def test_nearest_key_is_found_for_every_key(kind: Kind, tmp_path: Path) -> None:
    for field in dataclasses.fields(kind):
        right = re.sub("^[hv]flip$", "[hv]flip", field.name)  # one letter apart
        for near in (field.name[1:] + "x", field.name.replace("_", "-") + "e", f"{field.name}s"):
            with pytest.raises(ConfigError, match=f":1: unknown key '{near}'; did you mean '{right}'"):
                load(kind, written(tmp_path, f"{near}: 1"), {})


def test_not_text(tmp_path: Path) -> None:
    file = tmp_path / "streamer.yml"
    file.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=f"^{file}: is not UTF-8 text$"):
        load(SenderConfig, file, {})


def test_unreadable(tmp_path: Path) -> None:
    file = written(tmp_path, "")
    for path, why in (
        (tmp_path / "none.yml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (file / "below.yml", "Not a directory"),
    ):
        with pytest.raises(ConfigError) as refused:
            load(SenderConfig, path, {})
        assert str(refused.value) == f"--config {path}: {why}"


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n"])
def test_empty_file_is_the_defaults(text: str, tmp_path: Path) -> None:
    assert load(SenderConfig, written(tmp_path, text), {}) == SenderConfig()


def test_file_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    file = written(tmp_path, "camera: file:/videos/Zoë.mp4\n")
    assert load(SenderConfig, file, {}).camera == "file:/videos/Zoë.mp4"
    file.write_text("\ufefffps: 9\n", encoding="utf-8")
    assert load(SenderConfig, file, {}).fps == 9.0


# -- flags


def test_flags_override_the_file_key_by_key(tmp_path: Path) -> None:
    file = written(tmp_path, "fps: 10\nquality: 50\nhubs: [tcp://a:1, tcp://b:2]\n")
    config = load(SenderConfig, file, {"fps": "25", "hubs": ["tcp://c:3"], "quality": None, "name": None})
    assert config == SenderConfig(fps=25.0, quality=50, hubs=("tcp://c:3",))


def test_what_does_not_go_together_is_told_by_the_names_that_were_used(tmp_path: Path) -> None:
    file = written(tmp_path, "camera: pattern\nhflip: true\n")
    for path, flags, error in (
        (None, {"camera": "pattern", "hflip": True}, "--hflip is set, but only the camera picamera2 has it"),
        (file, {"hflip": None}, f"{file}: hflip is set, but only the camera picamera2 has it"),
        (file, {"hflip": True}, f"{file}: --hflip is set, but only the camera picamera2 has it"),
        (None, {"hubs": "tcp://a:1", "publish": "tcp://*:1"}, "--hub and --publish are both set: either it sends, or"),
        (file, {"hubs": "tcp://a:1", "publish": "tcp://*:1"}, f"{file}: --hub and --publish are both set: either it"),
    ):
        with pytest.raises(ConfigError) as refused:
            load(SenderConfig, path, flags)
        assert str(refused.value).startswith(error)


@pytest.mark.parametrize(
    ("flags", "error", "told"),
    [
        ({"bind": "tcp://*:1"}, "cannot listen on tcp://*:1: Permission denied", "--bind: {}; give one that this user"),
        (
            {},
            "cannot listen on tcp://*:5555: Address already in use",
            "a.yml: bind: {}; end what listens there, another",
        ),
        ({}, "cannot listen on http 127.0.0.1:8080: Address already in use", "a.yml: http: {}; end what listens there"),
        (
            {"plain_bind": "tcp://*:5555"},
            "cannot listen on tcp://*:5555: Address already in use",
            "--plain-bind: {}; end",
        ),
        (
            {"http": "127.0.0.2:1"},
            "cannot listen on http 127.0.0.2:1: Cannot assign requested address",
            "--http: {}; giv",
        ),
        ({"bind": "tcp://eth9:1"}, "cannot listen on tcp://eth9:1: No such device", "--bind: {}; give another"),
        ({"curve_key_file": "a.key"}, "a.key: is not a key", "--key {}"),
        ({}, "plain_bind is set and curve_key_file is not", "a.yml: {}"),
        (
            {"plain_bind": "tcp://*:1"},
            "plain_bind is set and curve_key_file is not",
            "a.yml: --plain-bind is set and curve",
        ),
        ({}, "/etc/bind/http: is not a key", "a.yml: {}"),
    ],
)
def test_what_a_configuration_makes_is_told_in_its_words(flags: dict[str, str], error: str, told: str) -> None:
    given = Given(Path("a.yml"), {"bind": None, "http": None, "plain_bind": None, "curve_key_file": None} | flags)
    config = load(HubConfig, None, flags)
    for kind in (ConfigError, TransportError):
        with pytest.raises(ConfigError) as refused, given.wording(config):
            raise kind(error)
        assert str(refused.value).startswith(told.format(error))


# -- the shipped files, which are the manual


SHIPPED = [(SenderConfig, "sender.yml"), (HubConfig, "hub.yml")]


@pytest.mark.parametrize(("kind", "file"), SHIPPED)
def test_shipped_file_is_the_defaults(kind: Kind, file: str) -> None:
    path = Path(streamer.config.__file__).with_name(file)
    assert manual(kind) == path.read_text(encoding="utf-8")
    assert load(kind, path, {}) == kind()


@pytest.mark.parametrize(("kind", "file"), SHIPPED)
def test_shipped_file_documents_every_key_and_no_other(kind: Kind, file: str) -> None:
    paragraphs = manual(kind).strip().split("\n\n")
    assert paragraphs[0].startswith(f"# `streamer {file.removesuffix('.yml').removesuffix('er')}")
    keys: list[str] = []
    for paragraph in paragraphs[1:]:
        assert re.match(r"# [^-].{10}", paragraph), "a key without a comment"
        keys += re.findall(r"^(\w+):", paragraph, re.MULTILINE)
    assert keys == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("kind", "file"), SHIPPED)
def test_examples_in_the_shipped_file_are_good(kind: Kind, file: str, tmp_path: Path) -> None:
    examples = re.findall(r"^(\w+):\n#  - (\S+)$", manual(kind), re.MULTILINE)
    assert examples
    config = load(kind, written(tmp_path, re.sub(r"^#(  - )", r"\1", manual(kind), flags=re.MULTILINE)), {})
    expected: dict[str, Any] = {key: (value,) for key, value in examples}
    assert config == dataclasses.replace(kind(), **expected)
