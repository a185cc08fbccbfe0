"""Key files and the allow-list: what is written, what is refused, and that no secret is shown."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
import zmq
from zmq.utils import z85

from streamer.errors import ConfigError, WireError
from streamer.keys import AllowList, make_pair, public_key, read_pair, to_bytes, to_public

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B = f"curve-public:{'a' * 64}", f"curve-public:{'b' * 64}"
SECRET = f"curve-secret:{'5' * 64}"


@pytest.fixture(params=[0o000, 0o022], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_pair_is_made_for_its_owner_alone_and_fits_together(tmp_path: Path, umask: None) -> None:
    pair = make_pair(tmp_path / "pi1.key")
    assert (tmp_path / "pi1.key").stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [tmp_path / "pi1.key"]
    assert read_pair(tmp_path / "pi1.key") == pair
    assert zmq.curve_public(z85.encode(to_bytes(pair.secret))) == z85.encode(to_bytes(pair.public))
    assert to_public(to_bytes(pair.public)) == public_key(pair.public) == pair.public
    assert pair.secret not in repr(pair)
    assert make_pair(tmp_path / "pi2.key") != pair


def test_no_key_is_ever_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "pi1.key"
    pair = make_pair(path)
    with pytest.raises(ConfigError, match=rf"^{path}: already exists, and an overwritten key would be lost: "):
        make_pair(path)
    assert read_pair(path) == pair
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ConfigError, match=rf"^{place}/pi1.key: there is no directory {place}: make it first"):
            make_pair(place / "pi1.key")
    long = tmp_path / ("a" * 300)
    with pytest.raises(ConfigError, match=rf"^{long}: File name too long$"):
        make_pair(long)


def test_a_place_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{tmp_path}: Is a directory$"):
        read_pair(tmp_path)


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (None, 0, "there is no such key: 'streamer keys make {}' makes it"),
        (A, 0o600, "is a public key: it must be a secret one, as 'streamer keys make FILE' writes it"),
        ("", 0o600, "is not a key: it must be one line, as 'streamer keys make FILE' writes it"),
        (SECRET[:-1], 0o600, "is not a key: it must be one line"),
        (f"{SECRET}\n{SECRET}", 0o600, "is not a key: it must be one line"),
        (f"{SECRET[:-1]}ä", 0o600, "is not a key: it must be one line"),
        (SECRET, 0o640, "others can read this secret key, its mode is 0640: it must be 0600"),
        (SECRET, 0o604, "others can read this secret key, its mode is 0604: it must be 0600"),
        (SECRET, 0o620, "others can read this secret key, its mode is 0620: it must be 0600"),
    ],
)
def test_what_is_no_pair_is_one_line_without_the_secret(
    tmp_path: Path, content: str | None, mode: int, complaint: str
) -> None:
    path = tmp_path / "pi1.key"
    if content is not None:
        path.write_text(content, encoding="utf-8")
        path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        read_pair(path)
    assert str(caught.value).startswith(f"{path}: {complaint.format(path)}")
    assert "5555" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [SECRET, SECRET[:-1], "", A[:-1], A.upper(), A[:-1] + "A", A + "\n", None, 5])
def test_what_is_no_public_key_is_not_repeated(text: object) -> None:
    with pytest.raises(ConfigError, match=r"^is (not a public|a secret) key[:,] ") as caught:
        public_key(text)
    assert "5555" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (f"pi1 {A}\npi2 {A}\n", ":2: the key of pi2 is that of pi1 too: each camera has its own"),
        (f"pi1 {SECRET}\n", ":1: what follows pi1 is a secret key, which must never leave its host: "),
        (f"pi1 {A} {B}\n", ":1: what follows pi1 is not a public key: "),
        ("# none\n\npi1\n", ":3: what follows pi1 is not a public key: "),
        (f"{A}\n", ":1: does not begin with a camera's name: it must be a line 'NAME curve-public:…'"),
        ("pi1 \udcff", ": is not UTF-8 text: "),
        (None, ": No such file or directory"),
    ],
)
def test_wrong_allow_list_names_the_line(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "allowed"
    if content is not None:
        path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        AllowList(path)
    assert str(caught.value).startswith(f"{path}{complaint}")
    assert "5555" not in str(caught.value)


def test_a_key_sends_as_its_camera_and_no_key_as_no_camera_that_has_one(tmp_path: Path) -> None:
    path = tmp_path / "allowed"
    path.write_text(f"\ufeff# a camera may have two\n  # as editors write\npi1 {A}\npi1\t{B} \n", encoding="utf-8")
    allowed = AllowList(path)
    assert allowed.count == 2
    for key in (A, B):
        assert key in allowed
        allowed.check(key, "pi1")
        with pytest.raises(WireError, match=r"^its key is that of pi1, so it may not send as pi2$"):
            allowed.check(key, "pi2")
    allowed.check(None, "pi2")
    with pytest.raises(WireError, match=r"^pi1 has a key, so its frames must come encrypted$"):
        allowed.check(None, "pi1")
    with pytest.raises(WireError, match=r"^its key is no longer allowed$"):
        allowed.check(A.replace("a", "c"), "pi1")


@pytest.mark.parametrize("change", ["in place", "another file"])
def test_a_list_that_is_changed_within_a_tick_of_the_clock_is_read_again(tmp_path: Path, change: str) -> None:
    path = tmp_path / "allowed"
    path.write_text(f"pi1 {A}\n")
    allowed, stamp = AllowList(path), path.stat()
    if change == "in place":
        path.write_text(f"pi1 {A}\npi1 {B}\n")
    else:
        path.with_suffix(".new").write_text(f"pi1 {B}\n")  # as large as before
        path.with_suffix(".new").replace(path)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    allowed.refresh()
    assert B in allowed


def test_a_changed_list_is_read_again_and_a_wrong_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "allowed"
    path.write_text(f"pi1 {A}\n")
    allowed = AllowList(path)
    allowed.refresh()
    assert caplog.messages == []

    path.write_text(f"pi2 {B}\n")
    allowed.refresh()
    assert (A in allowed, B in allowed) == (False, True)
    assert caplog.messages == [f"pi2 may send now by the key {B}", f"pi1 may no longer send by the key {A}"]

    caplog.clear()
    path.write_text(f"pi2 {B}\n" + "".join(f"pi{number} {A[:-1]}{number}\n" for number in (7, 4, 9, 3, 8)))
    allowed.refresh()
    assert [message.partition(" ")[0] for message in caplog.messages] == ["pi3", "pi4", "pi7", "pi8", "pi9"]

    caplog.clear()
    path.write_text("rubbish\n")
    allowed.refresh()
    path.unlink()
    allowed.refresh()
    allowed.refresh()
    assert B in allowed
    assert [message.rpartition("; ")[2] for message in caplog.messages] == ["who may send stays as it was"] * 2
    assert {record.levelname for record in caplog.records} == {"ERROR"}


def test_a_changed_list_that_cannot_be_read_is_read_once_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "allowed"
    path.write_text(f"pi1 {A}\n")
    allowed = AllowList(path)
    for content, known in ((f"pi1 {A}\npi2 {B}\n", True), (f"pi1 {A}\n", False)):
        path.write_text(content)
        with monkeypatch.context() as full:
            full.setattr(Path, "read_text", mock.Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
            for _ in range(3):
                allowed.refresh()
        allowed.refresh()
        assert (A in allowed, B in allowed) == (True, known)
    assert caplog.messages == [f"{path}: Too many open files; who may send stays as it was"] * 2
