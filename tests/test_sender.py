"""The sender's window, its way through outages, and the feed; against raw hubs, real ones and stopped ones."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zmq

from streamer import sender as module
from streamer.errors import CameraError, ConfigError, TransportError, WireError
from streamer.hub import Hub
from streamer.sender import Feed, Sender
from streamer.transport import Poller, Requester
from streamer.wall import Wall
from tests.chaos.line import Line
from tests.conftest import Keys, SlowNames, at_each_line, until
from tests.peers import (
    JPEG,
    LOCAL,
    WAIT_S,
    Program,
    RawHub,
    held_by_another_thread,
    interrupt,
    listener,
    open_descriptors,
    picture,
    raw,
    said_after_fork,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamer.cameras import Camera

PATIENT_S = 60.0  # a reply time-out that plays no part in the test


@pytest.fixture
def hub() -> Iterator[RawHub]:
    with RawHub() as hub:
        yield hub


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the back-off."""
    monkeypatch.setattr(module, "_BACKOFF_FIRST_S", 0.05)
    monkeypatch.setattr(module, "_BACKOFF_MAX_S", 0.2)


@pytest.fixture
def reopened(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When sockets were reopened."""
    times: list[float] = []
    reopen: Callable[[Requester], None] = Requester.reopen

    def note(requester: Requester) -> None:
        times.append(time.monotonic())
        reopen(requester)

    monkeypatch.setattr(Requester, "reopen", note)
    return times


def send_until(sender: Sender, condition: Callable[[], object]) -> int:
    """Send pictures, each with the next number, until a condition holds; return the last number."""
    numbers = itertools.count()

    def step() -> int:
        if condition():
            return next(numbers) or 1
        sender.send(picture(next(numbers)))
        return 0

    return until(step, WAIT_S) - 1


def answer_all(hub: RawHub) -> bool:
    """Reply to all that waits; False, to be followed by a condition."""
    while hub.waits():
        hub.answer()
    return False


def until_sent(sender: Sender, frames: int) -> None:
    until(lambda: sender.statistics.frames == frames)


def fill_window(sender: Sender, limit: int) -> None:
    """Have `limit` pictures sent, numbered from 0."""
    before = sender.statistics.frames
    for number in range(limit):
        sender.send(picture(number))
        until_sent(sender, before + number + 1)


# -- the window


@pytest.mark.parametrize("limit", [1, 2])
def test_at_most_the_window_is_in_flight_the_newest_wins_and_drops_are_counted(hub: RawHub, limit: int) -> None:
    with Sender(hub.endpoint, "pi1", in_flight_limit=limit, reply_timeout_s=PATIENT_S) as sender:
        fill_window(sender, limit)
        for number in range(limit, 50):
            sender.send(picture(number))
        assert sender.statistics.dropped == 49 - limit
        taken = [hub.take() for _ in range(limit)]
        assert [payload[0] for _, _, payload in taken] == list(range(limit))
        hub.reply(taken[0][0])
        _, fields, payload = hub.take()
        assert (payload[0], fields["seq"], fields["dropped"]) == (49, limit, 49 - limit)
        until_sent(sender, limit + 1)
        assert sender.statistics.answered == 1
        assert not hub.waits()


def test_each_reply_is_the_credit_for_one_frame(hub: RawHub) -> None:
    with Sender(hub.endpoint, "pi1", in_flight_limit=2, reply_timeout_s=PATIENT_S) as sender:
        fill_window(sender, 2)
        for number in range(2, 30):
            sender.send(picture(number))
            assert hub.answer() == number - 2
            until_sent(sender, number + 1)
        assert sender.statistics.dropped == 0


def test_a_frame_lost_in_a_short_absence_of_the_hub_gives_its_credit_back(hub: RawHub) -> None:
    with Sender(hub.endpoint, "pi1", in_flight_limit=2, reply_timeout_s=PATIENT_S) as sender:
        sender.send(picture(1))
        hub.take()
        hub.close()
        (link,) = sender._links
        with RawHub(hub.endpoint) as again:
            until(lambda: link.end._opened == 2)  # until it has noticed, a picture is still sent to the old hub
            for number in (2, 3):
                sender.send(picture(number))
                assert again.take()[2][0] == number
            sender.send(picture(4))
            assert not again.waits(0.3)


@pytest.mark.parametrize("limit", [5, 8])
def test_over_a_long_round_trip_more_are_in_flight_up_to_the_limit(hub: RawHub, limit: int) -> None:
    in_flight: deque[tuple[bytes, float]] = deque()  # each with when it will be replied to
    most, deadline = 0, time.monotonic() + WAIT_S
    with Sender(hub.endpoint, "pi1", in_flight_limit=limit, reply_timeout_s=PATIENT_S) as sender:
        replied_after_full = 0
        while replied_after_full < limit and time.monotonic() < deadline:
            sender.send(picture(0))
            if hub.waits(0.005):
                in_flight.append((hub.take()[0], time.monotonic() + 0.1))
                most = max(most, len(in_flight))
            elif in_flight and in_flight[0][1] <= time.monotonic():
                hub.reply(in_flight.popleft()[0])
                replied_after_full += most == limit
    assert most == limit


def test_a_source_is_asked_whenever_there_is_room_and_what_was_given_goes_first(hub: RawHub) -> None:
    made = itertools.count()
    with Sender(hub.endpoint, "pi1", source=lambda: picture(next(made)), in_flight_limit=1) as sender:
        for number in range(20):
            assert hub.answer() == number
        sender.send(picture(200))
        assert 200 in [hub.answer() for _ in range(3)]
        assert sender.statistics.dropped == 0


def test_a_source_that_has_nothing_is_asked_again(hub: RawHub) -> None:
    pictures = iter([None, picture(1), None, picture(2)])
    with Sender(hub.endpoint, "pi1", source=lambda: next(pictures, None)):
        assert [hub.answer(), hub.answer()] == [1, 2]


def test_what_a_source_raises_ends_the_sender(hub: RawHub) -> None:
    def fail() -> bytes:
        raise ValueError("the recording is damaged")

    with Sender(hub.endpoint, "pi1", source=fail) as sender:
        until(lambda: sender.failure, WAIT_S)
        with pytest.raises(TransportError, match="the recording is damaged"):
            sender.send(JPEG)


def test_header_says_what_the_hub_wants_to_know(hub: RawHub) -> None:
    before = time.time_ns()
    with Sender(hub.endpoint, "pi1", every_s=0.04, release="0.1.0+abc") as sender:
        sender.send(JPEG)
        route, first, payload = hub.take()
        hub.reply(route)
        sender.send(picture(1), captured_ns=7)
        _, second, _ = hub.take()
    assert payload == JPEG
    assert before <= first.pop("captured") <= time.time_ns()
    told = {"start": second["start"], "dropped": 0, "every": 0.04, "release": "0.1.0+abc", "clock": True}
    assert first == {"msg": "pi1", "seq": 0, **told}
    assert (second["seq"], second["captured"], second["dtype"], second["shape"]) == (1, 7, "uint8", [2, 2])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6 * 8 * 3).reshape(6, 8, 3).astype(">u2")[::2, ::-1],
        np.zeros((300, 300, 3), np.uint16),  # past the size that is copied
    ],
    ids=lambda array: f"{array.dtype.str}{list(array.shape)}{'' if array.flags.c_contiguous else ' not contiguous'}",
)
def test_arrays_arrive_bit_for_bit(hub: RawHub, array: np.ndarray[Any, Any]) -> None:
    with Sender(hub.endpoint, "pi1") as sender:
        sender.send(array)
        _, fields, payload = hub.take()
    came = np.frombuffer(payload, fields["dtype"]).reshape(fields["shape"])
    assert came.dtype == array.dtype
    np.testing.assert_array_equal(came, array)


def test_what_opencv_encodes_is_sent_as_the_jpeg_that_it_is(hub: RawHub) -> None:
    every_s: Any = np.float32(0.5)  # programs that compute have such numbers
    with Sender(hub.endpoint, "pi1", every_s=every_s) as sender:
        sender.send(np.frombuffer(JPEG, np.uint8))
        _, fields, payload = hub.take()
    assert (payload, fields["every"]) == (JPEG, 0.5)
    assert "dtype" not in fields


# -- the hub's clock

HOUR_NS = 3600 * 10**9


def exchange(sender: Sender, hub: RawHub, reply: bytes | None = None, ahead_ns: int = 0) -> dict[str, Any]:
    """Have a frame sent and replied to, by a hub whose clock is so much ahead; return its header."""
    answered = sender.statistics.answered
    sender.send(JPEG)
    route, fields, _ = hub.take()
    hub.reply(route, b"OK %d" % (time.time_ns() + ahead_ns) if reply is None else reply)
    until(lambda: sender.statistics.answered == answered + 1)
    return fields


def is_off_by(fields: dict[str, Any], ahead_ns: int) -> bool:
    offset_ns: int = fields["offset"]
    error_ns: int = fields["offset_error"]
    return abs(offset_ns - ahead_ns) <= error_ns < 0.1 * HOUR_NS


@pytest.mark.parametrize("ahead_ns", [0, 5 * HOUR_NS, -5 * HOUR_NS])
def test_hub_is_told_how_far_its_clock_is_ahead(hub: RawHub, ahead_ns: int) -> None:
    with Sender(hub.endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        headers = [exchange(sender, hub, ahead_ns=ahead_ns) for _ in range(10)]
    assert not {"offset", "offset_error"} & set(headers[0])
    assert all(is_off_by(fields, ahead_ns) for fields in headers[1:])


def test_hub_that_sets_its_clock_is_told_so_after_its_next_reply(hub: RawHub) -> None:
    with Sender(hub.endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        headers = [exchange(sender, hub, ahead_ns=ahead_ns) for ahead_ns in [0] * 3 + [HOUR_NS] * 3]
    assert [is_off_by(fields, 0) for fields in headers[1:]] == [True] * 3 + [False] * 2
    assert [is_off_by(fields, HOUR_NS) for fields in headers[1:]] == [False] * 3 + [True] * 2


def test_sender_that_is_told_the_time_after_it_has_begun(hub: RawHub, monkeypatch: pytest.MonkeyPatch) -> None:
    behind_ns = 5 * HOUR_NS
    clocks = SimpleNamespace(**vars(time))
    clocks.time_ns = lambda: time.time_ns() - behind_ns
    monkeypatch.setattr(module, "time", clocks)
    with Sender(hub.endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        headers = [exchange(sender, hub) for _ in range(3)]
        assert all(is_off_by(fields, behind_ns) for fields in headers[1:])
        # A picture that waits while the clock is set is still told by the clock that it was captured by.
        fill_window(sender, 2)
        sender.send(picture(2))
        behind_ns = 0
        taken = [hub.take() for _ in range(2)]
        for route, _, _ in taken:
            hub.reply(route, b"OK")
        route, waited, _ = hub.take()
        hub.reply(route, b"OK")
        assert is_off_by(waited, 5 * HOUR_NS)
        until(lambda: sender.statistics.answered == 6)
        # Nothing has been learnt since, and nothing had to be.
        after = exchange(sender, hub)
    assert is_off_by(after, 0)
    assert after["captured"] - waited["captured"] > 4 * HOUR_NS


@pytest.mark.parametrize("reply", [b"OK", b"ERR no", b"", b"OK ", b"OK soon", b"OK 1.5", b"\xff" * 1000])
def test_hub_that_does_not_tell_its_clock_is_told_no_offset(hub: RawHub, reply: bytes) -> None:
    with Sender(hub.endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        headers = [exchange(sender, hub, reply) for _ in range(3)]
        assert not any("offset" in fields for fields in headers)
        # It may be another one tomorrow.
        exchange(sender, hub)
        assert is_off_by(exchange(sender, hub), 0)


def test_each_reply_is_measured_from_its_own_request(hub: RawHub) -> None:
    with Sender(hub.endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        taken: list[tuple[bytes, int]] = []
        for number in range(2):
            sender.send(picture(number))
            taken.append((hub.take()[0], time.time_ns()))
            time.sleep(0.05)  # what a mistaken request would put the clock off by
        errors = []
        for number, (route, stamp_ns) in enumerate(taken):
            hub.reply(route, b"OK %d" % stamp_ns)
            sender.send(picture(number))
            _, fields, _ = hub.take()
            assert is_off_by(fields, 0)
            errors.append(fields["offset_error"])
    assert errors == sorted(errors, reverse=True)  # each waited for its reply less than the one before


def test_a_fresh_socket_knows_nothing_of_the_old_one_s_requests_and_clock(hub: RawHub, quick: None) -> None:
    with Sender(hub.endpoint, "pi1", in_flight_limit=2, reply_timeout_s=PATIENT_S) as sender:
        for _ in range(3):
            exchange(sender, hub, ahead_ns=HOUR_NS)
        fill_window(sender, 2)
        hub.close()
        until(lambda: sender.statistics.hub is None)
        with RawHub(hub.endpoint) as again:
            first = exchange(sender, again)
            assert "offset" not in first
            second = exchange(sender, again)
    assert is_off_by(second, 0)
    # Measured from the requests that were lost, the error would be the whole outage.
    assert second["offset_error"] < 0.5 * (second["captured"] - first["captured"]) + 10**9


def test_every_hub_is_told_of_its_own_clock(quick: None) -> None:
    with (
        RawHub() as first,
        RawHub() as second,
        Sender([first.endpoint, second.endpoint], "pi1", reply_timeout_s=PATIENT_S) as sender,
    ):
        until(lambda: sender.statistics.hub == first.endpoint)  # the second may have been there before it
        for _ in range(3):
            fields = exchange(sender, first, ahead_ns=HOUR_NS)
        assert is_off_by(fields, HOUR_NS)
        first.close()
        until(lambda: sender.statistics.hub == second.endpoint)
        headers = [exchange(sender, second, ahead_ns=-HOUR_NS) for _ in range(3)]
    assert "offset" not in headers[0]
    assert all(is_off_by(fields, -HOUR_NS) for fields in headers[1:])


# -- outages


def test_a_silent_hub_is_tried_for_ever_with_back_off_and_never_flooded(
    hub: RawHub, quick: None, reopened: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE_MAX_S", 0.1)
    with Sender(hub.endpoint, "pi1", in_flight_limit=2, reply_timeout_s=0.1) as sender:
        send_until(sender, lambda: len(reopened) >= 8)
        assert sender.statistics.hub is None
        gaps = [after - before for before, after in itertools.pairwise(reopened)]
        assert min(gaps) >= 0.1
        # The rests are 0, 1, 2, 4, 4 … times 0.05 s, of which the jitter leaves at least half.
        assert all(gap >= 0.1 + rest for gap, rest in zip(gaps, [0, 0.025, 0.05, 0.1, 0.1, 0.1, 0.1], strict=True))
        routes: dict[bytes, int] = {}
        while hub.waits():
            route, _, _ = hub.take()
            routes[route] = routes.get(route, 0) + 1
        assert len(routes) >= 7
        assert max(routes.values()) == 2

        send_until(sender, lambda: answer_all(hub) or sender.statistics.answered)
        until(lambda: sender.statistics.hub == hub.endpoint)


def test_a_hub_or_line_that_takes_longer_over_a_frame_than_the_time_out_is_waited_for(
    hub: RawHub, quick: None, reopened: list[float]
) -> None:
    takes_s = 0.5
    asked: deque[tuple[float, bytes]] = deque()

    def answer_late() -> int:
        while hub.waits():
            asked.append((time.monotonic(), hub.take()[0]))
        while asked and time.monotonic() - asked[0][0] >= takes_s:
            hub.reply(asked.popleft()[1])
        return late.statistics.answered

    with Sender(hub.endpoint, "pi1", in_flight_limit=1, reply_timeout_s=0.1) as late:
        send_until(late, answer_late)
        before = len(reopened)
        send_until(late, lambda: answer_late() >= 4)
        assert len(reopened) == before


OUTAGES = [
    "no hub",
    "silent hub",
    "silent hub and pictures without end",
    "no ZMQ",
    "line without a hub",
    "hub that left",
    "two silent hubs",
    "idle",
]


@pytest.mark.parametrize("situation", OUTAGES)
def test_an_outage_costs_no_busy_loop(situation: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0
    wait = Poller.wait

    def count(poller: Poller, timeout_s: float, for_hubs: list[Requester]) -> bool:
        nonlocal rounds
        rounds += 1
        return wait(poller, timeout_s, for_hubs)

    with ExitStack() as stack:
        hubs = [stack.enter_context(RawHub()) for _ in range(2)]
        endpoints = [hub.endpoint for hub in hubs[: 2 if situation == "two silent hubs" else 1]]
        if situation == "no hub":
            hubs[0].close()
        elif situation == "no ZMQ":
            endpoints = [stack.enter_context(listener())[1]]
        elif situation == "line without a hub":
            endpoints = [stack.enter_context(Line("tcp://127.0.0.1:9")).endpoint]
        source = (lambda: picture(0)) if situation == "silent hub and pictures without end" else None
        sender = stack.enter_context(Sender(endpoints, "pi1", reply_timeout_s=0.2, source=source))
        if situation == "hub that left":
            sender.send(picture(0))
            hubs[0].take()
            hubs[0].close()
        if situation != "idle":
            for number in range(3):  # one more than is taken, so that the mailbox is not empty
                sender.send(picture(number))
        monkeypatch.setattr(Poller, "wait", count)
        time.sleep(0.6)  # what is measured
        # A busy loop makes tens of thousands. Behind a line connections come and go, each with some rounds: 12 to 78.
        assert rounds <= (200 if situation == "line without a hub" else 50)


def test_after_an_outage_the_newest_comes_first_and_nothing_is_replayed(hub: RawHub) -> None:
    with Sender(hub.endpoint, "pi1", in_flight_limit=2, reply_timeout_s=0.2) as sender:
        fill_window(sender, 2)
        hub.close()
        until(lambda: sender.statistics.hub is None)
        for number in range(2, 100):
            sender.send(picture(number))
        with RawHub(hub.endpoint) as again:
            assert again.answer() == 99
            assert not again.waits(0.3)
            sender.send(picture(100))
            assert again.answer() == 100


# Prints each frame's number, and replies.
HUB_PROGRAM = """
from tests.peers import RawHub
hub = RawHub()
print(hub.endpoint, flush=True)
while True:
    if hub.waits(1):
        print(hub.answer(), flush=True)
"""


BUSY_SENDER = """
import sys, time
from streamer import Sender
from tests.peers import JPEG, compute

with Sender(sys.argv[1], "pi1", source=lambda: JPEG) as sender:
    while not sender.statistics.answered:
        time.sleep(0.01)
    for work in (time.sleep, compute):
        before = sender.statistics.answered
        work(1)
        print(sender.statistics.answered - before, flush=True)
"""


def test_a_program_that_computes_does_not_hold_its_camera_up() -> None:
    # In a process of its own: it must be the sender that sees to that. The interpreter's default is a frame in 35 ms.
    with Hub(LOCAL) as hub, Program("-c", BUSY_SENDER, str(hub.endpoint)) as program:
        waiting, computing = int(program.line(0)), int(program.line(1))
    assert computing > waiting / 25


def test_a_hub_process_that_was_stopped_gets_at_most_the_window_of_stale_frames() -> None:
    with Program("-c", HUB_PROGRAM) as program, Sender(program.line(0), "pi1", reply_timeout_s=0.3) as sender:
        sender.send(picture(1))
        assert program.line(1) == "1"
        program.signal(signal.SIGSTOP)
        fill_from = sender.statistics.frames
        last = send_until(sender, lambda: sender.statistics.hub is None)
        assert sender.statistics.frames - fill_from <= 2
        for number in range(last, last + 100):
            sender.send(picture(number % 100 + 100))
        newest = 250
        sender.send(picture(newest))
        program.signal(signal.SIGCONT)
        until(lambda: str(newest) in program.lines[2:], WAIT_S)
        assert program.lines[2:].index(str(newest)) <= 2
        sender.send(picture(251))
        until(lambda: program.lines[-1] == "251", WAIT_S)


@pytest.mark.parametrize("rubbish", [b"\xff" * 200, b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_a_stranger_on_the_hubs_port_does_not_put_the_sender_off_for_good(quick: None, rubbish: bytes) -> None:
    with listener() as (server, endpoint):
        sender = Sender(endpoint, "pi1")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(10)  # the greeting
            connection.sendall(rubbish)
    with sender, RawHub(endpoint) as hub:
        # One picture may still go the stranger's way: HTTP looks like a ZMTP peer of old.
        send_until(sender, lambda: answer_all(hub) or sender.statistics.answered)


def test_reply_that_is_too_large_does_not_put_the_sender_off(hub: RawHub, quick: None) -> None:
    with Sender(hub.endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        sender.send(picture(1))
        route, _, _ = hub.take()
        hub.reply(route, bytes(100_000))
        send_until(sender, lambda: answer_all(hub) or sender.statistics.answered)


def test_want_of_a_hub_is_told_once(hub: RawHub, quick: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Sender(hub.endpoint, "pi1", reply_timeout_s=0.1) as sender:
        send_until(sender, lambda: "no hub answers" in caplog.text)
        rounds = sender.turned
        send_until(sender, lambda: sender.turned > rounds + 2)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert caplog.messages[0] == f"pi1: sending to {hub.endpoint}"
    assert caplog.messages[1] == f"pi1: no hub answers at {hub.endpoint}; waiting for one"


@pytest.mark.parametrize("happens", ["a hub answers", "closed"])
def test_want_of_a_hub_is_not_told_if_it_ends_while_a_name_is_looked_up(
    happens: str,
    quick: None,
    hub: RawHub,
    slow_names: SlowNames,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Sender(hub.endpoint, "pi1", reply_timeout_s=0.1) as sender:
        send_until(sender, slow_names.asked.is_set)
        if happens == "a hub answers":
            send_until(sender, lambda: answer_all(hub) or sender.statistics.hub)
            slow_names.answer()
    slow_names.answer()
    assert "no hub" not in caplog.text


def test_want_of_a_hub_is_told_again_each_minute(
    quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "REMIND_S", 0.1)
    hubs = ["tcp://127.0.0.1:1", "tcp://127.0.0.1:9"]
    began = time.monotonic()
    with Sender(hubs, "pi1", reply_timeout_s=0.1):
        until(lambda: len(caplog.messages) == 3)
    assert time.monotonic() - began >= 0.3
    assert caplog.messages == [f"pi1: no hub answers at {', and at '.join(hubs)}; waiting for one"] * 3


@pytest.mark.parametrize("host", ["hubb.invalid", "a..b"])
def test_want_of_a_hub_is_told_with_a_name_that_does_not_resolve(
    host: str, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Sender([f"tcp://{host}:5555", "tcp://[::1]:1"], "pi1", reply_timeout_s=0.1):
        until(lambda: caplog.messages)
    name = re.escape(f"tcp://{host}:5555")
    why = r"which has a name that does not resolve \(.+\)"
    assert re.fullmatch(
        rf"pi1: no hub answers at {name}, {why}, and at tcp://\[::1\]:1; waiting for one", caplog.messages[0]
    )


def test_want_of_a_hub_is_told_and_the_hub_found_while_the_system_allows_no_more_threads(
    quick: None, no_more_threads: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    with listener() as (_, address):
        pass
    with Sender([address, "tcp://nosuch.invalid:5555"], "pi1", reply_timeout_s=0.1) as sender:
        no_more_threads()
        until(lambda: caplog.messages)
        # Not looked up, which could take long.
        want = f"pi1: no hub answers at {address}, and at tcp://nosuch.invalid:5555; waiting for one"
        assert (caplog.messages[0], sender.failure) == (want, None)
        with RawHub(address) as hub:
            send_until(sender, lambda: answer_all(hub) or sender.statistics.answered)


def test_want_of_a_hub_is_told_with_why_none_takes_the_frames(
    curve: Keys, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Hub(LOCAL, **curve.hub) as hub,
        Sender(hub.endpoint or "", "pi1", reply_timeout_s=0.2, **curve.sender("stranger")),
    ):
        until(lambda: any("waiting for one" in message for message in caplog.messages))
    why = "refuses this sender's key: the hub's list of allowed keys has not got it"
    assert f"pi1: {hub.endpoint} {why}" in caplog.messages
    assert f"pi1: no hub takes the frames at {hub.endpoint}, which {why}; waiting for one" in caplog.messages
    assert "no hub answers" not in caplog.text


def test_refusal_is_told_once_and_is_a_credit(hub: RawHub, caplog: pytest.LogCaptureFixture) -> None:
    with Sender(hub.endpoint, "pi1") as sender:
        for number in range(10):
            sender.send(picture(number))
            route, _, _ = hub.take()
            hub.reply(route, b"ERR camera \xff is not wanted")
            until_sent(sender, number + 1)
    assert caplog.messages == [f"pi1: {hub.endpoint} refuses the frames: camera \ufffd is not wanted"]


def test_refusal_is_told_in_one_short_line_whatever_is_in_it(hub: RawHub, caplog: pytest.LogCaptureFixture) -> None:
    with Sender(hub.endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        exchange(sender, hub, b"ERR \x1b[2J\nERROR: all is well" + b"x" * 60_000)
    (told,) = caplog.messages
    assert told.startswith(rf"pi1: {hub.endpoint} refuses the frames: \x1b[2J\nERROR: all is wellxxx")
    assert len(told) < 400


def test_refusal_that_comes_again_after_a_frame_was_taken_is_told_again(
    hub: RawHub, caplog: pytest.LogCaptureFixture
) -> None:
    with Sender(hub.endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        for reply in (b"ERR no", b"OK", b"ERR no"):
            exchange(sender, hub, reply)
    assert (sender.statistics.answered, sender.statistics.refused) == (3, 2)
    assert caplog.messages == [f"pi1: {hub.endpoint} refuses the frames: no"] * 2


def test_a_frame_that_a_leaving_hub_did_not_take_is_counted_as_dropped(
    hub: RawHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sender(hub.endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        with monkeypatch.context() as leaving:
            leaving.setattr(Requester, "send", lambda *_: False)
            sender.send(picture(1))
            until(lambda: sender.statistics.dropped)
        sender.send(picture(2))
        _, fields, payload = hub.take()
    assert (payload[0], fields["seq"], fields["dropped"]) == (2, 0, 1)


def test_rests_grow_to_four_seconds_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    end: Any = SimpleNamespace(left=lambda: True, reopen=lambda: None, packet_times=lambda: None)
    link = module._Link(end, module._Headers("pi1", {}), 8, PATIENT_S)
    rests, now = [], 1000.0
    for _ in range(9):
        link.due(now)
        assert link.deadline
        rests.append(link.deadline - now)
        now = link.deadline
        assert link.due(now)
        link.reopen()
    assert rests == [0, 0.25, 0.5, 1, 2, 4, 4, 4, 4]


# -- several hubs


def frames(hub: Hub) -> int:
    return sum(status.frames for status in hub.cameras())


def test_frames_go_to_the_second_hub_while_the_first_is_away(quick: None) -> None:
    with ExitStack() as stack:
        first, second = Hub(LOCAL), stack.enter_context(Hub(LOCAL))
        stack.callback(first.close)
        assert first.endpoint
        assert second.endpoint
        # The first is left because it has closed; no time-out, which a busy machine might bring about, plays a part.
        hubs = [first.endpoint, second.endpoint]
        sender = stack.enter_context(Sender(hubs, "pi1", reply_timeout_s=PATIENT_S))
        send_until(sender, lambda: sender.statistics.hub == first.endpoint and frames(first))
        first.close()
        began = frames(second)
        send_until(sender, lambda: frames(second) > began + 10)
        assert sender.statistics.hub == second.endpoint
        first = stack.enter_context(Hub(first.endpoint))
        send_until(sender, lambda: frames(first) > 10 and sender.statistics.hub == first.endpoint)
        until(lambda: sender.statistics.answered >= sender.statistics.frames - 2)
        began = frames(second)
        expected = frames(first) + 20
        send_until(sender, lambda: frames(first) >= expected)
        assert frames(second) == began
        assert all(status.lost <= 3 for hub in (first, second) for status in hub.cameras())


def test_each_way_of_a_sender_has_a_start_of_one_origin(quick: None) -> None:
    with RawHub() as first, RawHub() as second, Sender([first.endpoint, second.endpoint], "pi1") as sender:
        send_until(sender, lambda: sender.statistics.hub == first.endpoint and first.waits())
        start = first.take()[1]["start"]
        first.close()
        send_until(sender, second.waits)
        assert second.take()[1]["start"] == f"{start}.1"


def test_a_first_hub_that_accepts_and_never_replies_holds_nothing_up(
    hub: RawHub, quick: None, reopened: list[float]
) -> None:
    with Hub(LOCAL) as second:
        assert second.endpoint
        with Sender([hub.endpoint, second.endpoint], "pi1", reply_timeout_s=0.2) as sender:
            send_until(sender, lambda: sender.statistics.hub == second.endpoint)
            missing = 0
            for number in range(150):
                sender.send(picture(number))
                try:
                    until(lambda: (frame := second.latest("pi1")) and frame.payload[0] == number, 1.0)  # noqa: B023
                except AssertionError:
                    missing += 1
            # Whatever the first hub is tried with meanwhile. A few, since a busy machine may be late with a reply.
            assert missing <= 3
            began = len(reopened)
            send_until(sender, lambda: len(reopened) >= began + 3)  # it is still tried
            send_until(sender, lambda: answer_all(hub) or sender.statistics.hub == hub.endpoint)


def test_a_page_is_no_hub_and_that_is_told_once(
    quick: None, reopened: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with Hub(LOCAL) as hub, Wall(hub, "127.0.0.1", 0) as wall:
        endpoint = f"tcp://127.0.0.1:{wall.port}"
        with Sender(endpoint, "pi1", reply_timeout_s=0.5) as sender:
            send_until(sender, lambda: "waiting for one" in caplog.text and f"{endpoint} is not a hub" in caplog.text)
            began = len(reopened)
            send_until(sender, lambda: len(reopened) > began + 10)
            assert sender.statistics.answered == 0
    said = [message for message in caplog.messages if "no HTTP request" not in message]
    assert f"pi1: {endpoint} is not a hub (is this the port of a page?)" in said
    assert len(said) == len(set(said)) <= 3, "before it answers it looks like a hub"


# -- forked, and closed from within


def test_a_sender_of_another_process_says_so(hub: RawHub) -> None:
    with Sender(hub.endpoint, "pi1") as sender:
        said = said_after_fork(lambda: sender.send(JPEG), sender.close)
        assert said == ["the sender was made before this process was forked: make one in each"]
        sender.send(JPEG)
        hub.take()


def test_closing_a_sender_of_another_process_waits_for_none_of_its_threads(hub: RawHub) -> None:
    with Sender(hub.endpoint, "pi1") as sender:
        with held_by_another_thread(sender._mailbox._lock, sender._waker._lock):
            assert said_after_fork(sender.close, sender._leave) == []
        sender.send(JPEG)
        hub.take()


def test_a_closed_sender_is_not_kept_until_the_program_ends(hub: RawHub) -> None:
    with Sender(hub.endpoint, "pi1") as sender:
        kept = weakref.ref(sender)
    del sender
    gc.collect()
    assert kept() is None


def send_and_exit(endpoint: str, large: np.ndarray[Any, Any]) -> None:
    """Be a child that was forked: send a picture of its own, and end with whether it was taken."""
    with Sender(endpoint, f"child{os.getpid()}") as own:
        own.send(large)
        with suppress(AssertionError):
            until(lambda: own.statistics.answered)
        os._exit(not own.statistics.answered)


@pytest.mark.parametrize("attempt", range(3))
def test_a_program_that_leaves_its_senders_amid_large_frames_ends_well(attempt: int) -> None:
    program = """
import numpy
import streamer
array = numpy.zeros((1000, 2000), "uint8")
hub = streamer.Hub("tcp://127.0.0.1:*")
senders = [streamer.Sender(hub.endpoint, name, source=lambda: array) for name in ("one", "two")]
for _, frame in zip(range(20), hub):
    pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, ""), attempt


def test_a_process_that_was_forked_amid_large_frames_sends_its_own() -> None:
    large = np.zeros((1000, 1000, 3), np.uint8)
    with Hub(LOCAL) as hub, ExitStack() as stack:
        endpoint = hub.endpoint or ""
        senders = [stack.enter_context(Sender(endpoint, f"pi{at}", source=lambda: large)) for at in range(3)]
        until(lambda: all(sender.statistics.answered for sender in senders))
        for _ in range(40):
            if not (child := os.fork()):
                send_and_exit(endpoint, large)
            assert os.waitpid(child, 0)[1] == 0


def test_source_that_closes_its_sender_ends_it(hub: RawHub) -> None:
    before = open_descriptors()
    made: list[Sender] = []

    def end() -> None:
        until(lambda: made)
        made[0].close()

    made.append(Sender(hub.endpoint, "pi1", source=end))
    made[0]._thread.join(WAIT_S)
    assert made[0].failure is None
    until(lambda: open_descriptors() <= before)


# -- publishing


def test_published_frames_reach_subscribers() -> None:
    with listener() as (_, endpoint):
        pass  # a free port
    with raw(zmq.SUB, connect=endpoint) as subscriber, Sender(publish=endpoint, name="pi1", release="0.1.0") as sender:
        subscriber.subscribe(b"")
        send_until(sender, lambda: subscriber.poll(0))
        header, payload = subscriber.recv_multipart()
        fields = json.loads(header)
        assert (fields["msg"], fields["release"]) == ("pi1", "0.1.0")
        assert not {"clock", "offset", "offset_error"} & set(fields)  # nobody replies
        assert len(payload) == 4
        assert sender.statistics.hub == endpoint
        assert sender.statistics.answered == 0
        assert sender.statistics.bytes == 4 * sender.statistics.frames


# -- encryption


def test_after_the_twentieth_outage_all_is_as_encrypted_as_at_first(
    curve: Keys, quick: None, reopened: list[float]
) -> None:
    with Hub(LOCAL, **curve.hub) as hub:
        endpoint = hub.endpoint or ""

    def streams_and_keeps_out_who_has_no_key(sender: Sender) -> None:
        with Hub(endpoint, **curve.hub) as hub, raw(zmq.REQ, connect=endpoint) as stranger:
            stranger.send_multipart([json.dumps({"msg": "stock"}).encode(), JPEG], zmq.NOBLOCK)
            send_until(sender, lambda: frames(hub) > 1)
            until(lambda: hub.refused)
            assert not stranger.poll(0)
            assert [status.name for status in hub.cameras()] == ["pi1"]

    with Sender(endpoint, "pi1", **curve.sender()) as sender:
        for _ in range(20):
            with Hub(endpoint, **curve.hub) as hub:
                send_until(sender, partial(frames, hub))
        streams_and_keeps_out_who_has_no_key(sender)
        sent = sender.statistics.frames
        with Hub(endpoint) as plain:  # it would take everything
            with raw(zmq.REQ, connect=endpoint) as stock:
                stock.send_multipart([json.dumps({"msg": "stock"}).encode(), JPEG])
                stock.recv_multipart()
            outages = len(reopened)
            send_until(sender, lambda: len(reopened) > outages + 2)
            assert [status.name for status in plain.cameras()] == ["stock"]
        assert sender.statistics.frames == sent
        streams_and_keeps_out_who_has_no_key(sender)


def test_a_hub_without_encryption_gets_nothing_and_the_sender_says_why(
    curve: Keys, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Hub(LOCAL) as plain, Sender(plain.endpoint or "", "pi1", **curve.sender()) as sender:
        sender.send(JPEG)
        does = "has no encryption, and this sender sends with encryption only (give the hub keys, or this sender none)"
        until(lambda: f"pi1: {plain.endpoint} {does}" in caplog.messages)
        asks = "it ended the handshake, as senders that encrypt do: give this hub keys (--key, --allowed), or them none"
        until(lambda: re.search(rf"refused \d+ from .*: {re.escape(asks)}", caplog.text))
        assert plain.cameras() == []
    curve.no_secret_in(caplog.text)


def test_a_handshake_that_fails_again_after_a_hub_that_took_the_frames_is_told_again(
    curve: Keys, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    with Hub(LOCAL, **curve.hub) as encrypting:
        endpoint = encrypting.endpoint or ""
    told = f"pi1: {endpoint} takes encrypted frames only: this sender has no keys"
    with Sender(endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        for times in (1, 2):
            with Hub(endpoint, **curve.hub):
                send_until(sender, lambda: caplog.messages.count(told) == times)  # noqa: B023 - it is asked at once
            with Hub(endpoint) as plain:
                send_until(sender, partial(frames, plain))


def test_a_hub_that_refuses_is_asked_less_and_less_often(curve: Keys, reopened: list[float]) -> None:
    with Hub(LOCAL, **curve.hub) as hub, Sender(hub.endpoint or "", "pi1", **curve.sender("stranger")) as sender:
        sender.send(JPEG)
        until(lambda: len(reopened) == 4)
    pauses = [later - earlier for earlier, later in itertools.pairwise(reopened)]
    assert pauses[1] >= 0.125  # half of 0.25 s; the first is none
    assert pauses[2] >= 0.25


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"curve_hub_keys": ()}, "curve_key_file is set and curve_hub_keys is not: set both, or neither"),
        (
            {"hubs": ["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"]},
            "curve_hub_keys has 1 and hubs 2: each hub needs its public key, in the same order",
        ),
        ({"curve_key_file": None}, "curve_hub_keys is set and curve_key_file is not: set both, or neither"),
        (
            {"hubs": (), "publish": LOCAL},
            "curve_key_file is set, but what is published is not encrypted: it needs hubs",
        ),
        ({"curve_hub_keys": "curve-secret:" + "5" * 64}, "curve_hub_keys: number 1 is a secret key, which must never"),
    ],
)
def test_keys_that_do_not_go_together_are_told(curve: Keys, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        Sender(**{"hubs": "tcp://127.0.0.1:1", "name": "pi1", **curve.sender(), **arguments})
    assert "5555" not in str(caught.value)


# -- what never happens


@pytest.mark.parametrize("make", ["no hub", "silent hub", "publish"])
def test_send_never_blocks(make: str, hub: RawHub) -> None:
    big = np.zeros((1000, 1000), np.uint8)
    arguments: dict[str, Any] = {"hubs": hub.endpoint}
    if make == "no hub":
        arguments = {"hubs": "tcp://127.0.0.1:1"}
    elif make == "publish":
        arguments = {"publish": LOCAL}
    with Sender(name="pi1", reply_timeout_s=PATIENT_S, **arguments) as sender:
        slowest = 0.0
        for _ in range(2000):
            began = time.monotonic()
            sender.send(big)
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 5  # a busy machine may take a while, but far less than a reply that never comes
        assert sender.statistics.dropped >= 1900 or make == "publish"


NO_PICTURES = [
    b"",
    b"no JPEG",
    JPEG[:-1],
    memoryview(JPEG)[::-1],
    "text",
    None,
    np.zeros(0, np.uint8),
    np.zeros(9, np.uint8),
    np.zeros((), np.uint8),
    np.zeros((2, 2, 2, 2), np.uint8),
    np.array([["text"]]),
]


@pytest.mark.parametrize("picture", NO_PICTURES, ids=lambda picture: repr(picture)[:20])
def test_what_is_no_picture_is_refused_at_once(picture: Any) -> None:
    with Sender("tcp://127.0.0.1:1", "pi1") as sender, pytest.raises(WireError):
        sender.send(picture)


@pytest.mark.parametrize("captured_ns", [-1, 2**63, float("nan"), "soon", [1]])
def test_a_time_that_is_none_is_refused_at_once_and_the_sender_goes_on(captured_ns: Any, hub: RawHub) -> None:
    with Sender(hub.endpoint, "pi1") as sender:
        with pytest.raises(WireError, match=rf"^captured_ns is {re.escape(repr(captured_ns))}: it must be wall clock"):
            sender.send(JPEG, captured_ns=captured_ns)
        sender.send(JPEG, captured_ns=np.int64(5))  # type: ignore[arg-type]
        assert hub.take()[1]["captured"] == 5


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 8), (6, 8, 0)])
def test_a_picture_without_pixels_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with Sender("tcp://127.0.0.1:1", "pi1") as sender, pytest.raises(WireError, match="an empty array") as refused:
        sender.send(np.zeros(shape, np.uint8))
    assert str(shape) in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, ConfigError),
        ({"hubs": []}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "publish": LOCAL}, ConfigError),
        ({"publish": LOCAL, "source": lambda: JPEG}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "name": "a/b"}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "in_flight_limit": 0}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "in_flight_limit": 17}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "in_flight_limit": 2.5}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "reply_timeout_s": 0}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "reply_timeout_s": float("nan")}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "every_s": 0}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "every_s": -1}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "every_s": float("inf")}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "release": "a/b"}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "release": ""}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "reply_timeout_s": None}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "every_s": "1/30"}, ConfigError),
        ({"hubs": "tcp://127.0.0.1:1", "every_s": [1]}, ConfigError),
        ({"hubs": "rubbish"}, TransportError),
        ({"hubs": None}, TransportError),
        ({"hubs": b"tcp://127.0.0.1:1"}, TransportError),
        ({"hubs": Path("tcp://127.0.0.1:1")}, TransportError),
        ({"hubs": ["tcp://127.0.0.1:1", "rubbish"]}, TransportError),
        ({"publish": "rubbish"}, TransportError),
    ],
)
def test_wrong_arguments_are_told_and_leave_nothing_open(arguments: dict[str, Any], error: type[Exception]) -> None:
    before = open_descriptors()
    with pytest.raises(error):
        Sender(**{"name": "pi1", **arguments})
    until(lambda: open_descriptors() <= before)


def test_a_sender_for_which_there_is_no_thread_leaves_nothing_open(no_more_threads: Callable[[], None]) -> None:
    before = open_descriptors()
    no_more_threads()
    with pytest.raises(RuntimeError) as refused:  # its traceback keeps the sender
        Sender("tcp://127.0.0.1:1", "pi1")
    assert open_descriptors() <= before, refused


def test_the_thread_that_fails_says_so_to_whoever_sends(
    hub: RawHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Requester) -> bool:
        raise OSError("out of file descriptors")

    with Sender(hub.endpoint, "pi1") as sender:
        assert sender.failure is None
        monkeypatch.setattr(Requester, "connected", fail)
        failure = until(lambda: sender.failure)
        assert str(failure) == "out of file descriptors"
        with pytest.raises(TransportError, match="the sender has failed: out of file descriptors"):
            sender.send(JPEG)
    assert caplog.messages == ["pi1: the sender has failed"]


# -- closing


def test_a_signal_handler_may_do_what_its_thread_does() -> None:
    with Hub(LOCAL) as hub, Sender(hub.endpoint or "", "pi1") as sender:
        mailbox = hub.open_mailbox()
        assert interrupt(lambda: sender.send(JPEG), lambda: sender.send(JPEG))
        assert mailbox.take(WAIT_S)
        for handle in (hub.open_mailbox, hub.cameras, lambda: hub.latest("pi1")):
            assert interrupt(lambda: hub.close_mailbox(hub.open_mailbox()), handle)


def test_a_signal_handler_may_close_while_its_thread_sends(hub: RawHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender's thread waits for a lock of the one that is interrupted, and that one for the sender's thread."""
    write, closed = os.write, threading.Event()
    monkeypatch.setattr(module, "_CLOSE_S", 0.2)
    with Sender(hub.endpoint, "pi1") as sender:

        def handle(descriptor: int, data: bytes) -> int:
            if not closed.is_set():
                closed.set()
                sender.close()
            return write(descriptor, data)

        monkeypatch.setattr(os, "write", handle)
        sender.send(JPEG)
        assert closed.is_set()
        sender._thread.join(WAIT_S)
        assert not sender._thread.is_alive()


def test_close_does_not_wait_for_a_source_that_blocks(hub: RawHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLOSE_S", 0.2)
    asked, release = threading.Event(), threading.Event()

    def block() -> None:
        asked.set()
        release.wait(WAIT_S)

    with Sender(hub.endpoint, "pi1", source=block) as sender:
        assert asked.wait(WAIT_S)
        sender.close()
        assert sender._thread.is_alive()
        release.set()
    sender._thread.join(WAIT_S)
    assert not sender._thread.is_alive()


@pytest.mark.parametrize("situation", ["unused", "no hub", "silent hub", "hub closed first", "no ZMQ", "publish"])
def test_close_ends_within_two_seconds(situation: str, hub: RawHub) -> None:
    with ExitStack() as stack:
        arguments: dict[str, Any] = {"hubs": [hub.endpoint, "tcp://127.0.0.1:1"]}
        if situation == "publish":
            arguments = {"publish": LOCAL}
        elif situation == "no hub":
            arguments = {"hubs": "tcp://127.0.0.1:1"}
        elif situation == "no ZMQ":
            arguments = {"hubs": stack.enter_context(listener())[1]}
        sender = Sender(name="pi1", **arguments)
        if situation != "unused":
            for _ in range(5):
                sender.send(np.zeros((1000, 3000), np.uint8))
        if situation in ("silent hub", "hub closed first"):
            until(lambda: sender.statistics.frames)
        if situation == "hub closed first":
            hub.close()
        began = time.monotonic()
        sender.close()
        sender.close()
        assert time.monotonic() - began < 2
        with pytest.raises(TransportError, match="the sender is closed"):
            sender.send(JPEG)


def test_close_while_another_thread_sends(hub: RawHub) -> None:
    sender = Sender(hub.endpoint, "pi1")
    raised: list[Exception] = []

    def send() -> None:
        try:
            while True:
                sender.send(JPEG)
        except TransportError as error:
            raised.append(error)

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    hub.answer()
    sender.close()
    for thread in threads:
        thread.join(WAIT_S)
    assert [str(error) for error in raised] == ["the sender is closed"] * 2


# -- the feed


class FakeCamera:
    """Plays a list of pictures and errors, then waits for the end of the test."""

    def __init__(self, script: list[bytes | Exception]) -> None:
        self._script = script
        self.opened = 0
        self.closed = 0
        self.over = threading.Event()

    def open(self) -> Camera:
        self.opened += 1
        if self._script and isinstance(self._script[0], ConnectionError):
            self._script.pop(0)
            raise CameraError("fake: cannot be opened")
        return self

    def read(self) -> tuple[bytes, int]:
        if not self._script:
            self.over.wait(WAIT_S)
            return JPEG, 1
        step = self._script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step, 1

    def __enter__(self) -> FakeCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1


@pytest.fixture
def sender(hub: RawHub) -> Iterator[Sender]:
    with Sender(hub.endpoint, "pi1", reply_timeout_s=PATIENT_S) as sender:
        yield sender


def run(camera: FakeCamera, sender: Sender, condition: Callable[[Feed], object]) -> Feed:
    """Run a feed until a condition holds, then end it."""
    feed = Feed(camera.open, sender)
    try:
        until(lambda: condition(feed))
    finally:
        camera.over.set()
        feed.close(WAIT_S)
    return feed


def test_pictures_go_from_the_camera_to_the_hub(sender: Sender, hub: RawHub) -> None:
    camera = FakeCamera([JPEG])
    feed = run(camera, sender, lambda feed: feed.pictures and hub.waits())
    assert hub.take()[1]["captured"] == 1
    assert (feed.failure, camera.opened, camera.closed) == (None, 1, 1)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (ConnectionError, "fake: cannot be opened"),
        (lambda: CameraError("fake: gives no picture"), "fake: gives no picture"),
        (lambda: b"no JPEG", "payload is not a whole JPEG"),
    ],
    ids=["at opening", "at reading", "no picture"],
)
def test_a_camera_that_fails_is_told_of_once_and_retried_with_back_off(
    failure: Callable[[], bytes | Exception],
    text: str,
    sender: Sender,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "_RETRY_FIRST_S", 0.02)
    monkeypatch.setattr(module, "_RETRY_MAX_S", 0.05)
    camera = FakeCamera([failure() for _ in range(5)])
    began = time.monotonic()
    feed = run(camera, sender, lambda feed: camera.opened == 6)
    assert time.monotonic() - began >= 0.02 + 0.04 + 3 * 0.05
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith(f"pi1: {text}")
    assert feed.failure is None


def test_a_camera_that_works_again_and_fails_again_is_told_of_again(
    sender: Sender, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_RETRY_FIRST_S", 0.01)
    camera = FakeCamera([CameraError("fake"), CameraError("fake"), JPEG, CameraError("fake"), JPEG])
    feed = run(camera, sender, lambda feed: feed.pictures == 2)
    assert caplog.messages == ["pi1: fake; trying again"] * 2
    assert camera.closed == camera.opened == 4
    assert feed.failure is None


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a feed rests, each time; none takes any time, but for the feed's own clock."""
    rests: list[float] = []

    class Resting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            rests.append(timeout or 0.0)
            return self.is_set()

    monkeypatch.setattr(module, "threading", SimpleNamespace(**{**vars(threading), "Event": Resting}))
    clocks = SimpleNamespace(**vars(time))
    clocks.monotonic = lambda: sum(rests, 1000.0)
    monkeypatch.setattr(module, "time", clocks)
    return rests


def test_a_camera_is_retried_every_ten_seconds_at_last_and_soon_once_it_has_worked(
    rests: list[float], sender: Sender
) -> None:
    camera = FakeCamera([*[CameraError("fake")] * 8, JPEG, *[CameraError("fake")] * 2])
    run(camera, sender, lambda feed: camera.opened == 11)
    assert rests == [0.5, 1, 2, 4, 8, 10, 10, 10, 0.5, 1]


def test_a_camera_that_fails_on_and_on_is_told_of_once_a_minute(
    rests: list[float], sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    camera = FakeCamera([CameraError("fake") for _ in range(18)])
    run(camera, sender, lambda feed: camera.opened == 19)
    assert sum(rests[:-1]) == 135.5
    assert caplog.messages == ["pi1: fake; trying again"] * 3


def test_an_unexpected_error_of_the_camera_is_kept(sender: Sender, caplog: pytest.LogCaptureFixture) -> None:
    error = ZeroDivisionError("a bug")
    camera = FakeCamera([JPEG, error])
    feed = run(camera, sender, lambda feed: feed.failure)
    assert feed.failure is error
    assert feed.pictures == 1
    assert camera.closed == 1
    assert caplog.messages == ["pi1: the camera's thread has failed"]


def test_a_camera_that_cannot_do_what_is_set_is_not_tried_again(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    error = ConfigError("controls: AfMode is 3")
    camera = FakeCamera([error, JPEG])
    feed = run(camera, sender, lambda feed: feed.failure)
    assert feed.failure is error
    assert (camera.opened, camera.closed) == (1, 1)
    assert caplog.messages == [], "whoever asks says it"


def test_a_camera_that_hangs_does_not_hold_up_the_end(sender: Sender) -> None:
    camera = FakeCamera([JPEG])
    feed = Feed(camera.open, sender)
    until(lambda: feed.pictures)
    began = time.monotonic()
    feed.close(0.2)
    assert time.monotonic() - began < 2
    camera.over.set()
    feed.close(WAIT_S)
    assert camera.closed == 1


def test_a_camera_that_outlasts_its_sender_ends_without_a_word(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    camera = FakeCamera([JPEG])
    feed = Feed(camera.open, sender)
    until(lambda: feed.pictures)
    feed.close(0)
    sender.close()
    camera.over.set()
    feed.close(WAIT_S)
    assert (feed.failure, caplog.messages, camera.closed) == (None, [], 1)


# -- statistics, read while the sender's thread goes on


def test_statistics_have_no_reply_without_its_frame() -> None:
    with Sender("tcp://127.0.0.1:1", "pi1") as sender:
        (link,) = sender._links

        def go_on() -> None:
            sender._frames += 1
            link.answered += 1
            link.refused += 1

        with at_each_line(module, go_on):
            done = sender.statistics
    assert done.refused <= done.answered <= done.frames > 0


def test_statistics_of_the_first_frame_have_no_time_below_zero() -> None:
    seen: list[float] = []
    with Sender("tcp://127.0.0.1:1", "pi1") as sender:
        first = sender._outgoing(JPEG, None)
        with at_each_line(module, lambda: seen.append(sender.statistics.elapsed_s)):
            sender._count(first, time.monotonic())
    assert set(seen) == {0.0}
