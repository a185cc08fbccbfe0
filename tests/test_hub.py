"""The hub on real sockets: it stores, always replies, and stays calm whatever comes."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import re
import threading
import time
from collections import Counter
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zmq

from streamer import hub as module
from streamer import presence as presence_module
from streamer import sender as sender_module
from streamer import wire
from streamer.errors import ConfigError, TransportError
from streamer.hub import Hub
from streamer.presence import CAMERAS_MAX, ONCE_MAX
from streamer.refusals import Refusals
from streamer.sender import Sender
from streamer.transport import Received, Replier
from tests.conftest import HubClock, Keys, SlowNames, at_each_line, until
from tests.peers import (
    JPEG,
    LOCAL,
    WAIT_S,
    Program,
    header,
    held_by_another_thread,
    open_descriptors,
    picture,
    raw,
    said_after_fork,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ThreadPoolExecutor

    from streamer.frame import Frame
    from streamer.mailbox import Mailbox


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(LOCAL) as hub:
        yield hub


@pytest.fixture
def peer(hub: Hub) -> Iterator[zmq.Socket[bytes]]:
    """A stock sender's socket."""
    assert hub.endpoint
    with raw(zmq.REQ, connect=hub.endpoint) as peer:
        yield peer


def send(peer: zmq.Socket[bytes], name: str, value: int | None = None) -> None:
    """Send a picture, numbered or a JPEG, and take the hub's reply."""
    fields = {} if value is None else {"dtype": "uint8", "shape": [2, 2]}
    peer.send_multipart([header(name, **fields), JPEG if value is None else picture(value).tobytes()])
    assert peer.recv_multipart() == [b"OK"]


BUSY_HUB = """
import sys, time
from streamer import Hub
from tests.peers import compute

with Hub("tcp://127.0.0.1:*") as hub:
    print(hub.endpoint, flush=True)
    while not hub.cameras():
        time.sleep(0.01)
    for work in (time.sleep, compute):
        before = hub.cameras()[0].frames
        work(1)
        print(hub.cameras()[0].frames - before, flush=True)
    sys.stdin.read()
"""


def frames(hub: Hub) -> int:
    return sum(status.frames for status in hub.cameras())


def states(hub: Hub) -> dict[str, str]:
    return {status.name: status.state for status in hub.cameras()}


def take_all(mailbox: Mailbox[Frame]) -> list[tuple[str, int]]:
    frames: list[tuple[str, int]] = []
    while (frame := mailbox.take()) is not None:
        frames.append((frame.camera, frame.payload[0]))
    return frames


# -- storing and replying


def test_a_jpeg_is_stored_as_it_came(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    before = time.time_ns()
    peer.send_multipart([header("pi1", seq=7, start="a1", captured=5, dropped=3, every=0.1), JPEG])
    assert peer.recv_multipart() == [b"OK"]
    frame = hub.latest("pi1")
    assert frame
    assert bytes(frame.jpeg) == JPEG
    assert (frame.width, frame.height, frame.image.shape) == (24, 16, (16, 24, 3))
    assert (frame.seq, frame.start, frame.captured_ns, frame.dropped, frame.every_s) == (7, "a1", 5, 3, 0.1)
    assert before <= frame.received_ns <= time.time_ns()
    (status,) = hub.cameras()
    assert (status.name, status.state, status.frames, status.address) == ("pi1", "LIVE", 1, "127.0.0.1")


def test_an_array_is_stored_bit_for_bit(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    array = np.arange(6 * 8).reshape(6, 8).astype(">u2")
    peer.send_multipart([header("pi1", dtype=str(array.dtype), shape=array.shape), array.tobytes()])
    assert peer.recv_multipart() == [b"OK"]
    frame = hub.latest("pi1")
    assert frame
    assert (frame.height, frame.width) == (6, 8)
    assert frame.image.dtype == array.dtype
    np.testing.assert_array_equal(frame.image, array)


def test_latest_is_the_newest_of_each_camera(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    for value in range(5):
        send(peer, "pi1", value)
        send(peer, "pi2", value + 100)
    for name, value in (("pi1", 4), ("pi2", 104)):
        frame = hub.latest(name)
        assert frame
        assert frame.payload[0] == value
    assert hub.latest("pi3") is None


# -- clocks

EXTRAS = {"seq": 1, "start": "a", "captured": 5, "dropped": 0, "every": 0.1, "release": "0.1.0"}
NOT_ASKING = {"stock": {}, "ours": EXTRAS, "no": {"clock": False}, "told": EXTRAS | {"offset": -5, "offset_error": 5}}


@pytest.mark.parametrize("fields", NOT_ASKING.values(), ids=NOT_ASKING)
def test_who_does_not_ask_for_the_clock_gets_ok_and_no_more(
    hub: Hub, peer: zmq.Socket[bytes], fields: dict[str, Any]
) -> None:
    peer.send_multipart([header("pi1", **fields), JPEG])
    assert peer.recv_multipart() == [b"OK"]


def test_who_asks_for_the_clock_gets_the_time_at_which_the_frame_came(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    peer.send_multipart([header("pi1", clock=True), JPEG])
    reply = peer.recv_multipart()
    frame = hub.latest("pi1")
    assert frame
    assert reply == [b"OK %d" % frame.received_ns]


def test_who_asks_and_is_refused_is_told_why(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    peer.send_multipart([header("pi1", clock=True, offset=1), JPEG])
    assert peer.recv_multipart() == [b"ERR header has only one of 'offset' and 'offset_error'"]


@pytest.fixture(params=[0, 5, -5], ids="{:+} h".format)
def set_wrong(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """By how many ns the hub's wall clock is ahead of the true time."""
    ahead_ns: int = request.param * 3600 * 10**9
    clocks = SimpleNamespace(monotonic=time.monotonic, time_ns=lambda: time.time_ns() + ahead_ns)
    monkeypatch.setattr(module, "time", clocks)
    return ahead_ns


def test_latency_is_right_however_wrong_the_hubs_clock_is(set_wrong: int, hub: Hub) -> None:
    assert hub.endpoint
    with Sender(hub.endpoint, "pi1", every_s=0.1, release="0.1.0+abc") as sender:
        for number in range(1, 20):
            captured_ns = time.time_ns() - 70_000_000
            sender.send(JPEG, captured_ns=captured_ns)
            until(lambda: sender.statistics.answered == number)  # noqa: B023
            frame = hub.latest("pi1")
            assert frame
            latency_ns = frame.received_ns - set_wrong - captured_ns
            (status,) = hub.cameras()
            if number == 1:
                assert (status.latency_ms, status.latency_error_ms) == (None, None)
            else:
                assert frame.latency_ns
                assert frame.offset_error_ns
                assert abs(frame.latency_ns - latency_ns) <= frame.offset_error_ns
                assert status.latency_ms is not None
                assert status.latency_error_ms is not None
                assert abs(status.latency_ms - latency_ns / 1e6) <= status.latency_error_ms
    assert (status.wanted_fps, status.release, status.reconnects) == (10.0, "0.1.0+abc", 0)


def test_latency_of_who_never_asked_is_unknown(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    peer.send_multipart([header("pi1", captured=time.time_ns()), JPEG])
    peer.recv_multipart()
    send(peer, "pi2")
    assert [(row.latency_ms, row.latency_error_ms, row.wanted_fps, row.release) for row in hub.cameras()] == [
        (None, None, None, None)
    ] * 2


def test_a_camera_that_comes_back_on_another_connection_is_counted(hub: Hub) -> None:
    assert hub.endpoint
    for reconnects in range(3):
        with raw(zmq.REQ, connect=hub.endpoint) as peer:
            for _ in range(2):
                send(peer, "pi1")
                assert [row.reconnects for row in hub.cameras()] == [reconnects]


def test_what_comes_late_by_a_connection_that_was_given_up_is_shown_to_nobody(
    hub: Hub, peer: zmq.Socket[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    mailbox, shown = hub.open_mailbox(), []
    with raw(zmq.REQ, connect=hub.endpoint or "") as fresh:
        for end, seq in ((peer, 4), (fresh, 6), (peer, 5), (fresh, 7)):
            end.send_multipart([header("pi1", start="a", seq=seq), JPEG])
            end.recv_multipart()
            if seq != 5 and (frame := mailbox.take(WAIT_S)):
                shown.append(frame.seq)
    assert (shown, mailbox.dropped) == ([4, 6, 7], 0)
    assert (frames(hub), hub.cameras()[0].lost, hub.refused, caplog.messages) == (3, 1, 0, [])


# -- rubbish

GOOD_HEADER = header("pi1")
RUBBISH: dict[str, list[bytes]] = {
    "one part": [b""],
    "header only": [GOOD_HEADER],
    "three parts": [GOOD_HEADER, JPEG, b""],
    "a thousand parts": [b"x"] * 1000,
    "no JSON": [b"\xff\xfe", JPEG],
    "JSON, no object": [b"[1]", JPEG],
    "deep JSON": [b"[" * 4000, JPEG],
    "huge header": [header("pi1", x="x" * wire.HEADER_MAX_BYTES), JPEG],
    "header of a megabyte": [b" " * 1_000_000, JPEG],
    "no label": [b"{}", JPEG],
    "path as label": [header("../../etc/passwd"), JPEG],
    "label no text": [header(["pi1"]), JPEG],
    "no payload": [GOOD_HEADER, b""],
    "no JPEG": [GOOD_HEADER, b"x" * 100],
    "cut JPEG": [GOOD_HEADER, JPEG[:-2]],
    "shape a lie": [header("pi1", dtype="uint8", shape=[1000, 1000]), b"xx"],
    "shape of one": [header("pi1", dtype="uint8", shape=[4]), b"xxxx"],
    "dtype of objects": [header("pi1", dtype="object", shape=[2, 2]), bytes(32)],
    "lone surrogate": [b'{"msg": "pi1", "dtype": "\\ud800", "shape": [1, 1]}', b"x"],
    "seq no number": [header("pi1", seq="1"), JPEG],
}


@pytest.mark.parametrize("message", RUBBISH.values(), ids=RUBBISH)
def test_rubbish_gets_its_reply_and_the_peer_can_go_on(hub: Hub, peer: zmq.Socket[bytes], message: list[bytes]) -> None:
    for _ in range(2):
        peer.send_multipart(message)
        (reply,) = peer.recv_multipart()
        assert reply.startswith(b"ERR ")
        assert len(reply) < 200
    assert hub.cameras() == []
    send(peer, "pi1")
    assert states(hub) == {"pi1": "LIVE"}


def test_a_dealer_without_the_delimiter_is_refused_and_disturbs_nobody(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    assert hub.endpoint
    with raw(zmq.DEALER, connect=hub.endpoint) as stranger:
        stranger.send_multipart([GOOD_HEADER, JPEG])
        assert stranger.recv_multipart()[-1].startswith(b"ERR ")
    send(peer, "pi1")


def test_what_is_refused_is_told_with_its_count(
    hub: Hub, peer: zmq.Socket[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for rubbish in ("no JSON", "no JSON", "no label"):
        peer.send_multipart(RUBBISH[rubbish])
        assert peer.recv().startswith(b"ERR ")
    until(lambda: len(caplog.records) == 2)
    assert caplog.messages[0] == "refused 2 from 127.0.0.1: header is not JSON"
    assert hub.refused == 3


def test_a_stranger_who_varies_his_rubbish_fills_neither_memory_nor_journal(
    hub: Hub, peer: zmq.Socket[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    for size in range(300):
        peer.send_multipart([header("pi1", dtype="uint8", shape=[2, size + 1]), b"x"])
        assert peer.recv().startswith(b"ERR ")
    until(lambda: caplog.records)
    with raw(zmq.REQ, connect=str(hub.endpoint).replace("tcp://", "tcp://127.0.0.2:0;")) as other:
        other.send_multipart(RUBBISH["no JSON"])
        other.recv()
        until(lambda: "from 127.0.0.2: header is not JSON" in caplog.text)
    assert len(caplog.records) <= 12


def test_refusals_are_told_at_once_then_each_minute(caplog: pytest.LogCaptureFixture) -> None:
    refusals, began = Refusals(logging.getLogger(__name__)), time.monotonic()
    for _ in range(3):
        refusals.add("192.0.2.1", "rubbish")
    refusals.tell(began + 0.9)
    assert caplog.messages == []
    refusals.tell(began + 1.5)
    assert caplog.messages == ["refused 3 from 192.0.2.1: rubbish"]
    caplog.clear()
    for second in range(2, 61):
        refusals.add("192.0.2.1", "rubbish")
        refusals.tell(began + second)
    assert caplog.messages == []
    refusals.tell(began + 61.5)
    assert caplog.messages == ["refused 59 from 192.0.2.1: rubbish"]
    caplog.clear()
    refusals.tell(began + 121.5)
    assert caplog.messages == []
    refusals.add("192.0.2.1", "rubbish")  # the first after a minute without
    refusals.tell(began + 122.5)
    assert caplog.messages == ["refused 1 from 192.0.2.1: rubbish"]
    assert refusals.total == 63


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("Images from Sender", "'Images from Sender'"),
        ("two\nlines\x1b[31m", r"'two\nlines\x1b[31m'"),
        ("é" * 65, f"'{'é' * 64}…'"),
        ({"camera": "pi1"}, "no text but of type dict"),
        (json.loads("[" * 500 + "]" * 500), "no text but of type list"),
    ],
    ids=["spaces", "control characters", "long", "object", "deep"],
)
def test_which_label_is_refused_is_told(
    label: object, told: str, peer: zmq.Socket[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    why = f"camera name must be {wire.NAME_RULE}"
    peer.send_multipart([header(label), JPEG])
    assert peer.recv() == f"ERR {why}".encode()
    until(lambda: caplog.records)
    assert caplog.messages == [f"refused 1 from 127.0.0.1: {why}; last label: {told}"]


def test_labels_that_change_are_one_reason(caplog: pytest.LogCaptureFixture) -> None:
    refusals, began = Refusals(logging.getLogger(__name__)), time.monotonic()
    for number in range(30):
        refusals.add("192.0.2.1", "rubbish", f"'view|{number}'")
    refusals.tell(began + 1)
    assert caplog.messages == ["refused 30 from 192.0.2.1: rubbish; last label: 'view|29'"]


def test_a_label_is_told_with_its_own_reason_only(caplog: pytest.LogCaptureFixture) -> None:
    refusals, began = Refusals(logging.getLogger(__name__)), time.monotonic()
    for number in range(11):
        refusals.add("192.0.2.1", f"rubbish {number}", "'a'")
    refusals.tell(began + 1)
    assert caplog.messages[9] == "refused 1 from 192.0.2.1: rubbish 9; last label: 'a'"
    assert caplog.messages[10] == "refused 1 from 192.0.2.1: other reasons"


def test_beyond_some_reasons_of_an_address_and_some_addresses_only_the_number_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusals, began = Refusals(logging.getLogger(__name__)), time.monotonic()
    for number in range(13):
        refusals.add("192.0.2.1", f"rubbish {number}")
    for number in range(100):
        refusals.add(f"198.51.100.{number}", "rubbish")
    refusals.add(None, "rubbish")
    refusals.tell(began + 1)
    assert len(caplog.messages) == 101
    assert caplog.messages[9:12] == [
        "refused 1 from 192.0.2.1: rubbish 9",
        "refused 3 from 192.0.2.1: other reasons",
        "refused 1 from 198.51.100.0: rubbish",
    ]
    assert caplog.messages[-1] == "refused 12 from other addresses: various reasons"


def test_while_frames_pour_in_those_at_the_door_are_let_in_after_each(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.endpoint
    with Sender(hub.endpoint, "pi1", source=lambda: JPEG):
        until(lambda: frames(hub) > 100)
        monkeypatch.setattr(Replier, "crowded", True)
        monkeypatch.setattr(Replier, "admit", lambda _: [("192.0.2.1", "of 40 connections it has most")])
        until(lambda: hub.refused)
        began, before = frames(hub), hub.refused
        until(lambda: frames(hub) >= began + 1000)
        assert hub.refused - before > 500  # looked at twenty times a second only, it would be some ten


def test_a_peer_that_never_reads_its_replies_holds_nobody_up(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    assert hub.endpoint
    with raw(zmq.DEALER, connect=hub.endpoint) as stranger:
        stranger.setsockopt(zmq.RCVHWM, 1)
        for _ in range(5000):
            stranger.send_multipart([b"", header("pi1", dtype="uint8", shape=[2, 2]), b"abcd"])
        until(lambda: hub.cameras() and hub.cameras()[0].frames == 5000, WAIT_S)
        send(peer, "pi2")


def test_the_table_of_cameras_has_a_limit(peer: zmq.Socket[bytes], hub: Hub) -> None:
    for number in range(CAMERAS_MAX):
        send(peer, f"pi{number}", 1)
        send(peer, f"pi{number}", 1)  # one picture each would be a counter, no names
    peer.send_multipart([header("one-more"), JPEG])
    assert peer.recv() == b"ERR the hub already has 1024 cameras"
    send(peer, "pi7", 2)
    assert len(hub.cameras()) == CAMERAS_MAX


def test_labels_that_count_the_pictures_are_refused_and_told(
    peer: zmq.Socket[bytes], hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(ONCE_MAX):
        send(peer, f"{number}", 1)
    peer.send_multipart([header(f"{ONCE_MAX}"), JPEG])
    why = "64 labels came with one picture each: a label must be the camera's name, always the same"
    assert peer.recv() == f"ERR {why}".encode()
    until(lambda: f"refused 1 from 127.0.0.1: {why}; last label: '64'" in caplog.messages)
    assert len(hub.cameras()) == ONCE_MAX


# -- looking


def test_iteration_gives_the_newest_of_each_camera_and_is_fair(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    looking = iter(hub)
    send(peer, "pi1", 0)
    assert next(looking).payload[0] == 0
    last = hub.open_mailbox(["last"])
    for value in range(1, 50):
        send(peer, "busy", value)
        if value in (10, 20):
            send(peer, f"slow{value}", value)
    send(peer, "last", 50)
    assert last.take(WAIT_S)  # by now all has been handed out
    came = [(frame.camera, frame.payload[0]) for frame in itertools.islice(looking, 4)]
    assert came == [("busy", 49), ("slow10", 10), ("slow20", 20), ("last", 50)]


def test_who_looks_no_more_gets_no_more_frames(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    send(peer, "pi1")
    for frame in hub:
        assert frame.camera == "pi1"
        break
    assert hub._mailboxes == []


def test_who_begins_to_look_gets_the_newest_of_each_live_camera(
    hub_clock: HubClock, hub: Hub, peer: zmq.Socket[bytes]
) -> None:
    send(peer, "stale", 1)
    hub_clock.ahead_s += 5
    until(lambda: states(hub) == {"stale": "STALE"})
    send(peer, "live", 2)
    assert take_all(hub.open_mailbox()) == [("live", 2)]


def test_a_mailbox_gets_only_the_cameras_that_it_wants(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    for name in ("pi1", "pi2"):
        send(peer, name, 1)
    every, some, none = hub.open_mailbox(), hub.open_mailbox(["pi2", "pi3"]), hub.open_mailbox([])
    for mailbox, expected in ((every, [("pi1", 1), ("pi2", 1)]), (some, [("pi2", 1)]), (none, [])):
        assert take_all(mailbox) == expected
    for name in ("pi1", "pi2", "pi3"):
        send(peer, name, 2)
    until(lambda: every.take(0) and some)
    send(peer, "pi4", 3)
    until(lambda: ("pi4", 3) in take_all(every))
    assert take_all(some) == [("pi2", 2), ("pi3", 2)]
    assert take_all(none) == []


def test_a_closed_mailbox_gets_nothing_more(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    closed, other = hub.open_mailbox(), hub.open_mailbox()
    hub.close_mailbox(closed)
    hub.close_mailbox(closed)
    send(peer, "pi1", 1)
    until(lambda: other)
    assert closed.closed
    assert not closed


def test_a_mailbox_opened_while_a_frame_is_handed_out_gets_it_once(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    opened: list[Mailbox[Frame]] = []
    # Called in the receiving thread: between storing the frame and the end of handing it out.
    hub.open_mailbox(on_ready=lambda: opened.append(hub.open_mailbox()))
    after = hub.open_mailbox()
    send(peer, "pi1", 1)
    assert after.take(WAIT_S)
    send(peer, "pi2", 2)
    until(lambda: after)
    (mailbox,) = opened
    assert take_all(mailbox) == [("pi1", 1), ("pi2", 2)]
    assert mailbox.dropped == 0


def test_mailboxes_opened_and_closed_while_frames_pour_in(hub: Hub) -> None:
    assert hub.endpoint
    stop = threading.Event()
    seen: Counter[str] = Counter()
    backwards: list[tuple[int, int]] = []

    def look() -> None:
        while not stop.is_set():
            mailbox = hub.open_mailbox(["pi1"])
            newest = -1
            for _ in range(5):
                frame = mailbox.take(0.05)
                if frame is not None and frame.seq is not None:
                    seen[frame.camera] += 1
                    if frame.seq <= newest:
                        backwards.append((newest, frame.seq))
                    newest = frame.seq
            hub.close_mailbox(mailbox)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    with Sender(hub.endpoint, "pi1", in_flight_limit=8) as sender, Sender(hub.endpoint, "pi2") as other:
        for looker in lookers:
            looker.start()
        deadline = time.monotonic() + WAIT_S
        while seen["pi1"] <= 100 and time.monotonic() < deadline:
            sender.send(JPEG)
            other.send(JPEG)
            time.sleep(0.001)
        stop.set()
        for looker in lookers:
            looker.join(WAIT_S)
    assert seen["pi1"] > 100
    assert backwards == []
    assert set(seen) == {"pi1"}


# -- states


def test_a_camera_goes_through_its_states_and_each_change_is_told(
    hub_clock: HubClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with ExitStack() as stack:
        hub = stack.enter_context(Hub(LOCAL, cameras=["pi1"], stale_after_s=3, gone_after_s=30))
        assert hub.endpoint
        peer = stack.enter_context(raw(zmq.REQ, connect=hub.endpoint))
        assert states(hub) == {"pi1": "WAITING"}
        send(peer, "pi1")
        assert states(hub) == {"pi1": "LIVE"}
        for state, later_s in (("STALE", 5), ("GONE", 30)):
            hub_clock.ahead_s += later_s
            until(lambda state=state: f"pi1: {state}" in caplog.text)  # type: ignore[misc]
            assert states(hub) == {"pi1": state}
        send(peer, "pi1")
        assert states(hub) == {"pi1": "LIVE"}
        until(lambda: len(caplog.records) >= 4)
    assert [(record.levelname, record.message) for record in caplog.records[:4]] == [
        ("INFO", "pi1: LIVE, was WAITING"),
        ("WARNING", "pi1: STALE, was LIVE"),
        ("WARNING", "pi1: GONE, was STALE"),
        ("INFO", "pi1: LIVE, was GONE"),
    ]


# -- two senders of one name


def test_two_senders_of_one_name_are_told_and_neither_flaps_the_other(
    hub: Hub, peer: zmq.Socket[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert hub.endpoint
    mailbox = hub.open_mailbox()
    with Sender(hub.endpoint, "pi1", reply_timeout_s=60) as first, Sender(hub.endpoint, "pi1") as second:
        came = []
        deadline = time.monotonic() + WAIT_S
        while not hub.cameras() or hub.cameras()[0].rival is None:
            assert time.monotonic() < deadline
            for sender, value in ((first, 1), (second, 2)):
                sender.send(picture(value))
            came += take_all(mailbox)
            time.sleep(0.02)
        # A stock sender is refused as well, and goes on.
        peer.send_multipart([header("pi1"), JPEG])
        assert peer.recv_multipart() == [b"ERR another sender at 127.0.0.1 has this name"]
        send(peer, "pi2")
    values = [value for name, value in came if name == "pi1"]
    changes = sum(one != other for one, other in itertools.pairwise(values))
    assert len(values) > 20
    assert changes <= 3  # each had its first frame shown at most, whoever came first
    assert hub.refused == 0
    refusal = f"pi1: {hub.endpoint} refuses the frames: another sender at 127.0.0.1 has this name"
    assert caplog.messages.count(refusal) == 2  # of the first, for a second, and of the other from then on
    assert sum("has this name too" in message for message in caplog.messages) == 1
    assert len(caplog.messages) == 3


def test_frames_come_while_the_table_is_written(
    hub: Hub, peer: zmq.Socket[bytes], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        send(peer, f"pi{number}")
    written, goes_on = threading.Event(), threading.Event()

    def status(camera: Any, now: float) -> Any:
        written.set()
        assert goes_on.wait(WAIT_S)
        return row(camera, now)

    row = presence_module._Camera.status
    monkeypatch.setattr(presence_module._Camera, "status", status)
    rows = pool.submit(hub.cameras)
    assert written.wait(WAIT_S)
    send(peer, "pi0")
    send(peer, "pi9")
    goes_on.set()
    assert [each.name for each in rows.result(WAIT_S)] == ["pi0", "pi1", "pi2"]


# -- subscribing


@pytest.mark.parametrize("bind", [LOCAL, None])
def test_published_frames_are_stored_beside_those_that_are_sent(bind: str | None) -> None:
    with ExitStack() as stack:
        publisher = stack.enter_context(raw(zmq.XPUB))
        publisher.bind(LOCAL)
        address = publisher.getsockopt_string(zmq.LAST_ENDPOINT)
        hub = stack.enter_context(Hub(bind, subscribe=[address, "tcp://127.0.0.1:1"]))
        assert (hub.endpoint is None) == (bind is None)
        assert len({end.context for end in hub._ends[-2:]}) == 2, "one whose name does not resolve would stop both"
        publisher.recv()  # the subscription
        for number, message in enumerate(RUBBISH.values(), 1):
            publisher.send_multipart(message)
            until(lambda: hub.refused == number)  # noqa: B023 - it is asked at once
        publisher.send_multipart([header("pi9"), bytes(wire.PAYLOAD_MAX_BYTES + 1)])
        until(lambda: publisher.send_multipart([header("pi1"), JPEG]) or states(hub) == {"pi1": "LIVE"})
        assert hub.refused == len(RUBBISH) + 1
        if hub.endpoint:
            send(stack.enter_context(raw(zmq.REQ, connect=hub.endpoint)), "pi2")
            assert states(hub) == {"pi1": "LIVE", "pi2": "LIVE"}


def test_published_frames_do_not_wait_for_a_pause_of_those_that_are_sent() -> None:
    with raw(zmq.XPUB) as publisher:
        publisher.bind(LOCAL)
        with (
            Hub(LOCAL, subscribe=[publisher.getsockopt_string(zmq.LAST_ENDPOINT)]) as hub,
            Sender(hub.endpoint or "", "pi2", source=lambda: JPEG),
        ):
            publisher.recv()  # the subscription
            until(lambda: "pi2" in states(hub))
            publisher.send_multipart([header("pi1"), JPEG])
            until(lambda: "pi1" in states(hub), 2)


def test_publishers_of_whom_nothing_comes_are_told_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_SILENT_S", 1.5)
    monkeypatch.setattr(module, "REMIND_S", 0.6)
    with ExitStack() as stack:
        publisher = stack.enter_context(raw(zmq.XPUB))
        publisher.bind(LOCAL)
        address = publisher.getsockopt_string(zmq.LAST_ENDPOINT)
        hub = stack.enter_context(Hub(None, subscribe=["tcp://127.0.0.1:1", address, "tcp://nosuch.invalid:5556"]))
        publisher.recv()
        until(lambda: publisher.send_multipart([header("pi1"), JPEG]) or states(hub))
        until(lambda: caplog.text.count("nothing comes") >= 4)
    first, second, *_ = (record.created for record in caplog.records if "127.0.0.1:1;" in record.message)
    assert second - first > 0.5
    nobody, unknown = sorted({message for message in caplog.messages if not message.startswith("pi1: ")})
    assert nobody == "nothing comes from tcp://127.0.0.1:1; waiting for it"
    why = r"which has a name that does not resolve \(.+\)"
    assert re.fullmatch(rf"nothing comes from tcp://nosuch\.invalid:5556, {why}; waiting for it", unknown)


@pytest.mark.parametrize("happens", ["a frame comes", "closed"])
def test_a_publisher_that_is_no_longer_silent_is_not_told(
    happens: str,
    slow_names: SlowNames,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "_SILENT_S", 0.1)
    with raw(zmq.XPUB) as publisher:
        publisher.bind(LOCAL)
        with Hub(None, subscribe=[publisher.getsockopt_string(zmq.LAST_ENDPOINT)]) as hub:
            assert slow_names.asked.wait(WAIT_S)
            if happens == "a frame comes":
                publisher.recv()
                publisher.send_multipart([header("pi1"), JPEG])
                until(lambda: states(hub))
                slow_names.answer()
        slow_names.answer()
    assert "nothing comes" not in caplog.text


def test_a_silent_publisher_is_told_and_cameras_received_while_the_system_allows_no_more_threads(
    monkeypatch: pytest.MonkeyPatch, no_more_threads: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_SILENT_S", 0.1)
    with Hub(LOCAL, subscribe=["tcp://nosuch.invalid:5556"]) as hub, Sender(hub.endpoint or "", "pi1") as sender:
        no_more_threads()
        until(lambda: "nothing comes from tcp://nosuch.invalid:5556; waiting for it" in caplog.messages)
        sender.send(JPEG)
        until(lambda: states(hub))
        assert hub.failure is None
    assert hub._replier
    assert hub._replier.context.closed


def test_a_hub_for_which_there_is_no_thread_leaves_nothing_open(no_more_threads: Callable[[], None]) -> None:
    before = open_descriptors()
    no_more_threads()
    with pytest.raises(RuntimeError) as refused:  # its traceback keeps the hub
        Hub(LOCAL)
    assert open_descriptors() <= before, refused


# -- opening, closing, failing


@pytest.mark.parametrize(
    "open_again",
    [lambda hub: Hub(hub.endpoint), lambda hub: Hub(LOCAL, subscribe=["rubbish"]), lambda hub: Hub("rubbish")],
    ids=["port in use", "no address to subscribe to", "no address to bind"],
)
def test_a_hub_that_cannot_be_opened_says_so_and_leaves_nothing_open(
    hub: Hub, open_again: Callable[[Hub], Hub]
) -> None:
    before = open_descriptors()
    with pytest.raises(TransportError, match=r"cannot (listen on|connect to)"):
        open_again(hub)
    until(lambda: open_descriptors() <= before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"cameras": ["pi1", "a b"]},
        {"cameras": "a b"},
        {"stale_after_s": -1},
        {"stale_after_s": 5, "gone_after_s": 5},
        {"gone_after_s": float("nan")},
        {"stale_after_s": "soon"},
        {"gone_after_s": None},
        {"cameras": None},
    ],
)
def test_arguments_that_make_no_sense_are_told(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Hub(LOCAL, **arguments)


def test_one_name_and_one_address_need_no_list(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    with Hub(None, cameras="door", subscribe="tcp://127.0.0.1:1") as other:
        assert states(other) == {"door": "WAITING"}
    mailbox = hub.open_mailbox("door")
    send(peer, "door", 1)
    assert mailbox.take(WAIT_S)


def test_a_port_that_a_stock_hub_holds_is_in_use() -> None:
    with raw(zmq.REP) as stock:
        stock.bind("tcp://0.0.0.0:*")
        port = stock.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
        with pytest.raises(TransportError, match="Address already in use"):
            Hub(f"tcp://*:{port}")


def test_close_ends_every_iteration_within_two_seconds() -> None:
    with ExitStack() as stack:
        hub = Hub(LOCAL)
        stack.callback(hub.close)
        assert hub.endpoint
        sender = stack.enter_context(Sender(hub.endpoint, "pi1"))
        counts = [0, 0]

        def look(number: int) -> None:
            for _ in hub:
                counts[number] += 1

        lookers = [threading.Thread(target=look, args=[number]) for number in range(2)]
        for looker in lookers:
            looker.start()
        for count in range(1, 5):
            sender.send(JPEG)
            until(lambda count=count: min(counts) >= count)  # type: ignore[misc]
        began = time.monotonic()
        hub.close()
        hub.close()
        for looker in lookers:
            looker.join(2)
        assert time.monotonic() - began < 2
        assert not any(looker.is_alive() for looker in lookers)
        assert list(hub) == []
        assert hub.open_mailbox().closed
        assert hub.latest("pi1")
        assert hub.failure is None


def test_a_failure_is_told_to_whoever_looks(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert hub.endpoint

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    looking = hub.open_mailbox()
    monkeypatch.setattr(wire, "parse", fail)
    with Sender(hub.endpoint, "pi1") as sender:
        sender.send(JPEG)
        until(lambda: hub.failure)
        until(lambda: looking.closed)
    with pytest.raises(TransportError, match="the hub has failed: a bug"):
        next(iter(hub))
    assert caplog.messages == ["the hub has failed"]


def test_a_hub_of_another_process_says_so(hub: Hub) -> None:
    """Its receiving thread is not there: who waits for a frame would wait for ever, and the newest stay the same."""
    said = said_after_fork(lambda: next(iter(hub)), lambda: hub.latest("pi1"), hub.cameras, hub.open_mailbox, hub.close)
    assert said == 4 * ["the hub was made before this process was forked: make one in each"]
    assert hub.cameras() == []


def test_closing_a_hub_of_another_process_waits_for_none_of_its_threads(hub: Hub) -> None:
    mailbox = hub.open_mailbox()
    with held_by_another_thread(hub._lock, mailbox._lock, hub._waker._lock):
        assert said_after_fork(lambda: hub.close_mailbox(mailbox), hub.close) == []
    assert not mailbox.closed


# -- restart


def test_eight_senders_are_back_within_three_seconds_of_a_restart_and_lose_at_most_their_window() -> None:
    names = [f"pi{number}" for number in range(1, 9)]
    with ExitStack() as stack:
        hub = Hub(LOCAL)
        stack.callback(hub.close)
        endpoint = hub.endpoint
        assert endpoint
        senders = [stack.enter_context(Sender(endpoint, name)) for name in names]
        streaming = threading.Event()
        stack.callback(streaming.set)

        def stream() -> None:
            while not streaming.wait(0.03):
                for sender in senders:
                    sender.send(JPEG)

        thread = threading.Thread(target=stream)
        thread.start()
        stack.callback(thread.join)
        stack.callback(streaming.set)
        until(lambda: all(status.frames > 10 for status in hub.cameras()) and len(hub.cameras()) == 8, WAIT_S)
        for _ in range(2):
            hub.close()
            last = {name: hub.latest(name) for name in names}
            until(lambda: all(sender.statistics.hub is None for sender in senders))
            hub = Hub(endpoint)
            stack.callback(hub.close)
            began = time.monotonic()
            first: dict[str, Frame] = {}
            for frame in hub:
                first.setdefault(frame.camera, frame)
                if len(first) == len(names):
                    break
            assert time.monotonic() - began < 3
            for name in names:
                before = last[name]
                assert before
                assert before.seq is not None
                assert first[name].start == before.start
                lost = (first[name].seq or 0) - before.seq - 1
                assert 0 <= lost <= 2
            expected = {status.name: status.frames + 10 for status in hub.cameras()}
            until(lambda: all(status.frames >= expected[status.name] for status in hub.cameras()))  # noqa: B023


# -- who may send

STRANGERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "other key": (
        {"name": "stranger"},
        "refuses this sender's key: the hub's list of allowed keys has not got it",
        r"refused \d+ from 127\.0\.0\.1: curve-public:[0-9a-f]{64} is not in ",
    ),
    "other hub": (
        {"hub": "stranger"},
        "ends every handshake: it has another key than the one that this sender expects",
        r"refused \d+ from (127\.0\.0\.1|\?): it expects another key of this hub",
    ),
    "no key": (
        {},
        "takes encrypted frames only: this sender has no keys",
        r"refused \d+ from (127\.0\.0\.1|\?): it ended the handshake, as senders without encryption do",
    ),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_stranger_is_kept_out_and_both_ends_say_why(
    curve: Keys, stranger: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "_BACKOFF_MAX_S", 0.2)
    caplog.set_level(logging.INFO)
    whose, sender_says, hub_says = STRANGERS[stranger]
    told = curve.sender(**whose) if whose else {}
    with Hub(LOCAL, **curve.hub) as hub, Sender(hub.endpoint or "", "pi1", **told) as sender:
        sender.send(JPEG)
        until(lambda: f"pi1: {hub.endpoint} {sender_says}" in caplog.messages)
        until(lambda: any(re.match(hub_says, message) for message in caplog.messages))
        assert hub.refused > 0
        assert (sender.statistics.frames, hub.cameras()) == (0, [])
    curve.no_secret_in(caplog.text)


def test_a_key_sends_under_its_own_name_only(curve: Keys, caplog: pytest.LogCaptureFixture) -> None:
    with Hub(LOCAL, **curve.hub) as hub:
        with Sender(hub.endpoint or "", "pi1", **curve.sender()) as sender:
            sender.send(JPEG)
            until(lambda: states(hub) == {"pi1": "LIVE"})
        with Sender(hub.endpoint or "", "pi2", **curve.sender()) as sender:
            sender.send(JPEG)
            why = "its key is that of pi1, so it may not send as pi2"
            until(lambda: f"pi2: {hub.endpoint} refuses the frames: {why}" in caplog.messages)
            until(lambda: f"refused 1 from 127.0.0.1: {why}" in caplog.messages)
        assert (hub.refused, states(hub)) == (1, {"pi1": "LIVE"})


def test_a_key_that_is_revoked_is_refused_at_once_and_one_that_is_added_let_in(
    curve: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    with Hub(LOCAL, **curve.hub) as hub, ExitStack() as stack:
        senders = [
            stack.enter_context(Sender(hub.endpoint or "", name, **curve.sender(name))) for name in ("pi1", "stranger")
        ]

        def send_all_until(condition: Callable[[], bool]) -> None:
            def step() -> bool:
                for sender in senders:
                    sender.send(JPEG)
                return condition()

            until(step, WAIT_S)

        def streams(name: str) -> Callable[[], bool]:
            before = hub.latest(name)
            return lambda: hub.latest(name) is not before

        send_all_until(streams("pi1"))
        curve.allowed.write_text(curve.allowed.read_text() + f"stranger {curve.pairs['stranger'].public}\n")
        send_all_until(streams("stranger"))
        send_all_until(streams("pi1"))
        assert {status.name: status.reconnects for status in hub.cameras()} == {"pi1": 0, "stranger": 0}
        curve.allowed.write_text(f"stranger {curve.pairs['stranger'].public}\n")
        refused = f"pi1: {hub.endpoint} refuses the frames: its key is no longer allowed"
        send_all_until(lambda: refused in caplog.messages)
        send_all_until(streams("stranger"))


def test_a_listener_without_encryption_takes_stock_senders_but_no_name_that_has_a_key(curve: Keys) -> None:
    with Hub(LOCAL, plain_bind=LOCAL, **curve.hub) as hub:
        assert hub.plain_endpoint != hub.endpoint
        with raw(zmq.REQ, connect=hub.plain_endpoint or "") as stock:
            send(stock, "stock")
            stock.send_multipart([header("pi1"), JPEG])
            assert stock.recv_multipart() == [b"ERR pi1 has a key, so its frames must come encrypted"]
        with Sender(hub.endpoint or "", "pi1", **curve.sender()) as sender:
            sender.send(JPEG)
            until(lambda: states(hub) == {"pi1": "LIVE", "stock": "LIVE"})


def test_who_forges_the_doors_word_is_believed_nothing(curve: Keys) -> None:
    with Hub(LOCAL, plain_bind=LOCAL, **curve.hub) as hub, raw(zmq.REQ) as forger:
        forger.setsockopt(zmq.METADATA, f"X-User-Id:{curve.pairs['pi1'].public}".encode())
        forger.connect(hub.plain_endpoint or "")
        forger.send_multipart([header("pi1"), JPEG])
        assert forger.recv_multipart() == [b"ERR pi1 has a key, so its frames must come encrypted"]


@pytest.mark.parametrize(
    ("left_out", "more", "complaint"),
    [
        ("curve_allowed_file", {}, "curve_key_file is set and curve_allowed_file is not: set both, or neither"),
        ("curve_key_file", {}, "curve_allowed_file is set and curve_key_file is not: set both, or neither"),
        ("both", {"plain_bind": LOCAL}, "plain_bind is set and curve_key_file is not: without keys, senders need only"),
    ],
)
def test_half_of_the_keys_is_none(curve: Keys, left_out: str, more: dict[str, Any], complaint: str) -> None:
    given = {key: value for key, value in curve.hub.items() if left_out not in (key, "both")}
    with pytest.raises(ConfigError, match=complaint):
        Hub(LOCAL, **given, **more)


def test_replies_overtake_nobody_when_many_peers_send_at_once(hub: Hub) -> None:
    assert hub.endpoint
    with ExitStack() as stack:
        peers = [stack.enter_context(raw(zmq.DEALER, connect=hub.endpoint)) for _ in range(8)]
        for value, (number, peer) in itertools.product(range(20), enumerate(peers)):
            good = value % 2 == 0
            name = f"pi{number}" if good else "no name!"
            peer.send_multipart([b"", json.dumps({"msg": name}).encode(), JPEG])
        for peer in peers:
            replies = [peer.recv_multipart() for _ in range(20)]
            assert [reply[0] for reply in replies] == [b""] * 20
            assert [reply[1][:3] for reply in replies] == [b"OK", b"ERR"] * 10


def test_program_that_computes_does_not_hold_the_cameras_up() -> None:
    # In a process of its own: it must be the hub that sees to that. The interpreter's default is one frame in 35 ms.
    with Program("-c", BUSY_HUB) as program, raw(zmq.REQ, connect=program.line(0)) as peer:
        while len(program.lines) < 3:
            send(peer, "pi1")
        waiting, computing = map(int, program.lines[1:])
    assert computing > waiting / 25


def test_first_frame_takes_no_time_below_zero(hub: Hub) -> None:
    seen: list[float] = []
    received = Received(b"", (header("pi1"), memoryview(JPEG)), None)
    with at_each_line(module, lambda: seen.append(hub.elapsed_s)):
        hub._accept(received, time.monotonic())
    assert hub.latest("pi1")
    assert set(seen) == {0.0}


def test_hub_that_a_finaliser_closes_on_its_own_thread_ends(hub: Hub, peer: zmq.Socket[bytes]) -> None:
    class Program:
        def __init__(self) -> None:
            self.own = self  # so that only the garbage collector finds it

        def __del__(self) -> None:
            closed_by.append(threading.current_thread())
            hub.close()

    closed_by: list[threading.Thread] = []
    held = [Program()]

    def collect() -> None:
        held.clear()
        gc.collect()

    hub.open_mailbox(on_ready=collect)
    send(peer, "pi1")
    hub._thread.join(WAIT_S)
    assert not hub._thread.is_alive()
    assert closed_by == [hub._thread]
    assert hub.failure is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_mailbox_whose_on_ready_raises_does_not_keep_a_failed_hub_from_ending(
    hub: Hub, peer: zmq.Socket[bytes], pool: ThreadPoolExecutor
) -> None:
    def fail() -> None:
        raise RuntimeError("Event loop is closed")

    hub.open_mailbox(on_ready=fail)
    frames = pool.submit(list, hub)
    until(lambda: len(hub._mailboxes) == 2)
    send(peer, "pi1")
    try:
        with pytest.raises(TransportError, match="Event loop is closed"):
            frames.result(WAIT_S)
    finally:
        for mailbox, _ in hub._mailboxes[1:]:
            mailbox.close()
    hub._thread.join(WAIT_S)
    with Hub(hub.endpoint):
        pass
