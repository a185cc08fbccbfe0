"""Every class of the transport on real sockets, with raw peers at the other end."""

from __future__ import annotations

import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from zmq.utils.garbage import gc as collector

from streamer import wire
from streamer.errors import TransportError
from streamer.transport import Poller, Publisher, Replier, Requester, Subscriber, Waker
from tests.conftest import Keys, until
from tests.peers import JPEG, LOCAL, WAIT_S, Program, RawHub, header, interrupt, listener, open_descriptors, raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future, ThreadPoolExecutor

    from typing_extensions import Buffer

End = Requester | Replier | Publisher | Subscriber
HEADER = header()
ALL_OPTIONS = {
    zmq.LINGER: 0,
    zmq.IPV6: 1,
    zmq.HEARTBEAT_IVL: 1000,
    zmq.HEARTBEAT_TIMEOUT: 30_000,
    zmq.HEARTBEAT_TTL: 30_000,
    zmq.HANDSHAKE_IVL: 5000,
    zmq.CONNECT_TIMEOUT: 3000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 200,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
REQUESTER_OPTIONS = {
    zmq.HEARTBEAT_TIMEOUT: 3000,
    zmq.IMMEDIATE: 1,
    zmq.SNDHWM: 64,
    zmq.RCVHWM: 64,
    zmq.MAXMSGSIZE: 65536,
}


@pytest.fixture
def hub() -> Iterator[RawHub]:
    with RawHub() as hub:
        yield hub


@pytest.fixture
def requester(hub: RawHub) -> Iterator[Requester]:
    requester = Requester(hub.endpoint)
    until(requester.connected)
    yield requester
    requester.close()


@pytest.fixture
def asker(hub: RawHub) -> Iterator[Requester]:
    asker = Requester(hub.endpoint, queues=True)
    yield asker
    asker.close()


@pytest.fixture
def replier() -> Iterator[Replier]:
    replier = Replier(LOCAL)
    replier.socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
    yield replier
    replier.close()


def options(end: End, expected: Mapping[Any, int]) -> dict[int, Any]:
    return {option: end.socket.getsockopt(option) for option in expected}


def ask(pool: ThreadPoolExecutor, requester: Requester, payload: bytes = JPEG) -> Future[bytes]:
    return pool.submit(requester.ask, HEADER, payload)


# -- options


@pytest.mark.parametrize(
    ("make", "own"),
    [
        (lambda: Requester("tcp://127.0.0.1:1"), REQUESTER_OPTIONS),
        (lambda: Replier(LOCAL), {zmq.RCVHWM: 16, zmq.SNDHWM: 64, zmq.MAXMSGSIZE: 256 * 1024 * 1024}),
        (lambda: Publisher(LOCAL), {zmq.SNDHWM: 2}),
        (Subscriber, {zmq.RCVHWM: 4, zmq.MAXMSGSIZE: 256 * 1024 * 1024}),
    ],
    ids=["Requester", "Replier", "Publisher", "Subscriber"],
)
def test_every_socket_has_the_options(make: Callable[[], End], own: Mapping[Any, int]) -> None:
    end = make()
    expected = {**ALL_OPTIONS, **own}
    assert options(end, expected) == expected
    end.close()
    assert end.socket.closed
    assert end.context.closed


def test_a_reopened_socket_has_the_options_of_the_first(requester: Requester) -> None:
    first = requester.socket
    requester.reopen()
    assert first.closed
    assert requester.socket is not first
    assert options(requester, ALL_OPTIONS | REQUESTER_OPTIONS) == ALL_OPTIONS | REQUESTER_OPTIONS


def test_a_socket_that_ask_reopened_has_the_options_and_the_programs_own(
    hub: RawHub, asker: Requester, pool: ThreadPoolExecutor
) -> None:
    own = {zmq.RCVTIMEO: 12_345, zmq.SNDTIMEO: 12_346}
    for option, value in own.items():
        asker.socket.setsockopt(option, value)
    first = asker.socket
    reply = ask(pool, asker)
    hub.take()
    hub.close()
    with RawHub(hub.endpoint) as again:
        again.answer()
        assert reply.result(WAIT_S) == b"OK"
    own |= {zmq.IMMEDIATE: 0, zmq.MAXMSGSIZE: wire.PAYLOAD_MAX_BYTES}
    expected = {**ALL_OPTIONS, **REQUESTER_OPTIONS, **own}
    assert asker.socket is not first
    assert options(asker, expected) == expected


@pytest.mark.parametrize(
    "make", [lambda: Requester("tcp://127.0.0.1:1"), lambda: Replier(LOCAL), lambda: Publisher(LOCAL), Subscriber]
)
def test_closing_does_not_wait_for_libzmq(make: Callable[[], End]) -> None:
    end = make()
    # As does a name server that is silent: libzmq cannot end the context while somebody else's socket is open.
    with closing(zmq.Context.shadow(end.context.underlying).socket(zmq.PUB)):
        began = time.monotonic()
        end.close()
        assert time.monotonic() - began < 2
        assert not end.context.closed
    until(lambda: end.context.closed)


# -- addresses


@pytest.mark.parametrize("make", [Replier, Publisher])
@pytest.mark.parametrize(
    ("endpoint", "becomes"),
    [
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:{}"),
        ("tcp://127.0.0.2:0", "tcp://127.0.0.2:{}"),
        ("tcp://*:0", "tcp://*:{}"),
        ("tcp://0.0.0.0:*", "tcp://*:{}"),
    ],
)
def test_bound_address_is_what_a_person_would_write(
    make: Callable[[str], Replier | Publisher], endpoint: str, becomes: str
) -> None:
    end = make(endpoint)
    port = end.endpoint.rpartition(":")[2]
    assert 0 < int(port) < 65536
    assert end.endpoint == becomes.format(port)
    end.close()


@pytest.mark.parametrize("make", [Replier, Publisher])
def test_port_in_use_is_told_in_one_line_and_leaks_nothing(
    make: Callable[[str], Replier | Publisher], hub: RawHub
) -> None:
    before = open_descriptors()
    with pytest.raises(TransportError) as caught:
        make(hub.endpoint)
    assert str(caught.value) == f"cannot listen on {hub.endpoint}: Address already in use"
    until(lambda: open_descriptors() <= before)


@pytest.mark.parametrize("kind", [Requester, Replier, Publisher, Subscriber])
@pytest.mark.parametrize(
    "endpoint",
    ["rubbish", "tcp://", "tcp://127.0.0.1", "http://a:1"]
    + [f"tcp://127.0.0.1:{port}" for port in ("x", "-1", "65536", "99999", "9" * 5000)],
)
def test_malformed_address_is_an_error_that_names_it(kind: type[End], endpoint: str, subscriber: Subscriber) -> None:
    binds = kind in (Replier, Publisher)
    what, example = ("listen on", r"tcp://\*:5555") if binds else ("connect to", "tcp://hub:5555")
    right = f"an address is tcp://HOST:PORT, as in {example}"
    with pytest.raises(TransportError, match=f"^cannot {what} {endpoint}: .*: {right}$"):
        subscriber.connect(endpoint) if kind is Subscriber else kind(endpoint)  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize("kind", [Requester, Replier, Publisher, Subscriber])
@pytest.mark.parametrize("endpoint", ["", " tcp://127.0.0.1:1", "rub\nbish", b"tcp://127.0.0.1:1", 5555, None])
def test_an_address_that_is_none_or_hides_something_is_written_as_python_does(
    kind: type[End], endpoint: Any, subscriber: Subscriber
) -> None:
    before = open_descriptors()
    with pytest.raises(
        TransportError, match=rf"^cannot [^\n]* {re.escape(repr(endpoint))}: [^\n]*: an address is [^\n]*$"
    ):
        subscriber.connect(endpoint) if kind is Subscriber else kind(endpoint)  # type: ignore[call-arg]
    until(lambda: open_descriptors() <= before)


def test_ipc_peers_have_no_address(tmp_path: Path) -> None:
    replier = Replier(f"ipc://{tmp_path}/hub")
    with raw(zmq.REQ, connect=replier.endpoint) as stranger:
        stranger.send_multipart([HEADER, JPEG])
        received = replier.wait()
    replier.close()
    assert received.parts
    assert received.address is None


# -- waker and poller


@pytest.fixture
def waker() -> Iterator[Waker]:
    waker = Waker()
    yield waker
    waker.close()


def test_a_wake_from_another_thread_ends_a_wait(waker: Waker) -> None:
    poller = Poller(waker)
    began = time.monotonic()
    timer = threading.Timer(0.1, waker.wake)
    timer.start()
    poller.wait(WAIT_S)
    assert time.monotonic() - began < WAIT_S
    timer.join()


def test_a_wake_before_the_wait_is_kept_and_answered_once(waker: Waker) -> None:
    poller = Poller(waker)
    began = time.monotonic()
    waker.wake()
    waker.wake()
    poller.wait(WAIT_S)
    assert time.monotonic() - began < WAIT_S
    began = time.monotonic()
    poller.wait(0.2)
    assert time.monotonic() - began >= 0.19


def test_any_number_of_wakes_never_block(waker: Waker) -> None:
    for _ in range(100_000):  # a pipe holds 65,536
        waker.wake()
    for _ in range(100):
        waker.clear()
    poller = Poller(waker)
    began = time.monotonic()
    poller.wait(0.2)
    assert time.monotonic() - began >= 0.19


def test_a_wake_after_closing_writes_into_nobody_elses_file(waker: Waker) -> None:
    waker.close()
    reader, writer = os.pipe()  # gets the numbers that were given up
    os.set_blocking(reader, False)
    waker.wake()
    waker.close()
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)


def test_poller_notices_replies_hubs_that_come_and_hubs_that_leave(waker: Waker, hub: RawHub) -> None:
    requester, poller = Requester(hub.endpoint), Poller(waker)
    began = time.monotonic()

    def wait(*for_hubs: Requester) -> None:
        poller.watch(requester)
        poller.wait(WAIT_S, for_hubs)
        poller.forget(requester)
        assert time.monotonic() - began < WAIT_S

    wait(requester)
    assert requester.send(HEADER, JPEG)
    hub.answer()
    wait()
    assert requester.receive() == b"OK"
    hub.close()
    wait()
    assert requester.left()
    requester.reopen()
    with RawHub(hub.endpoint):
        wait(requester)
        assert requester.connected()
    requester.close()


def test_poller_notices_a_hub_that_has_left_before_anybody_asked(waker: Waker, hub: RawHub) -> None:
    requester, poller = Requester(hub.endpoint), Poller(waker)
    until(requester.connected)
    hub.close()
    until(lambda: not requester.connected())
    poller.watch(requester)
    began = time.monotonic()
    assert poller.wait(WAIT_S)
    assert time.monotonic() - began < WAIT_S
    requester.close()


# -- requester


def test_requests_are_sent_in_reqs_format_many_at_a_time(hub: RawHub, requester: Requester) -> None:
    payloads: list[Buffer] = [b"small", bytes(200_000), memoryview(JPEG)]
    for payload in payloads:
        assert requester.send(HEADER, payload)
    assert requester.receive() is None
    for number, payload in enumerate(payloads):
        route, fields, came = hub.take()
        assert (fields, came) == ({"msg": "pi1"}, payload)
        hub.reply(route, b"%d" % number)
    assert [until(requester.receive) for _ in payloads] == [b"0", b"1", b"2"]


def test_tcp_tells_how_long_packets_take(hub: RawHub, requester: Requester) -> None:
    assert requester.packet_times() is None, "nothing has come yet"
    requester.send(HEADER, JPEG)
    hub.reply(hub.take()[0], b"OK")
    until(requester.receive)
    times = requester.packet_times()
    assert times
    of_late_ns, best_ns = times
    assert 0 < best_ns <= of_late_ns < 1_000_000_000
    requester.reopen()
    assert requester.packet_times() is None


def test_without_a_hub_nothing_is_taken() -> None:
    requester = Requester("tcp://127.0.0.1:1")
    assert not requester.connected()
    assert not requester.send(HEADER, JPEG)
    assert not requester.left()
    requester.close()


def test_a_listener_that_says_nothing_is_no_hub() -> None:
    with listener() as (server, endpoint):
        requester = Requester(endpoint)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(10)  # the greeting: libzmq is connected, and waits
            assert not requester.connected()
            assert not requester.send(HEADER, JPEG)
            requester.close()


@pytest.mark.parametrize("parts", [[b""], [b"OK"], [b"x", b"OK"]], ids=str)
def test_a_reply_in_another_format_is_none_of_a_hub_s(hub: RawHub, requester: Requester, parts: list[bytes]) -> None:
    requester.send(HEADER, JPEG)
    hub.socket.send_multipart([hub.take()[0], *parts])
    assert requester.socket.poll(round(1000 * WAIT_S))
    assert requester.receive() is None
    assert requester.refusal == "is not a hub (is this the port of a page?)"


def test_nothing_stale_is_replayed_after_a_reopen(hub: RawHub, requester: Requester) -> None:
    stale = bytes(4_000_000)
    for _ in range(10):  # more than the kernel holds for a hub that does not read
        assert requester.send(HEADER, stale)
    hub.close()
    until(requester.left)
    requester.reopen()
    with RawHub(hub.endpoint) as again:
        until(requester.connected)
        assert requester.send(HEADER, b"fresh")
        assert again.take()[2] == b"fresh"
        assert not again.waits(0.3)


def test_a_full_window_of_large_frames_does_not_look_like_a_missing_hub(hub: RawHub, requester: Requester) -> None:
    for _ in range(16):
        assert requester.send(HEADER, bytes(4_000_000))
    assert requester.connected()


def test_a_late_reply_to_the_old_socket_does_not_reach_the_new(hub: RawHub, requester: Requester) -> None:
    assert requester.send(HEADER, b"old")
    old_route, _, _ = hub.take()
    requester.reopen()
    until(requester.connected)
    hub.reply(old_route, b"late")
    assert requester.send(HEADER, b"new")
    new_route, _, payload = hub.take()
    hub.reply(new_route, b"in time")
    assert payload == b"new"
    assert until(requester.receive) == b"in time"


def test_a_hub_that_left_and_is_back_is_told_once(hub: RawHub, requester: Requester) -> None:
    assert not requester.left()
    hub.close()
    with RawHub(hub.endpoint):
        until(lambda: not requester.connected())
        until(requester.connected)
        assert requester.left()
        assert not requester.left()


CURVE_GREETING = b"\xff" + bytes(7) + b"\1\x7f\3\0CURVE" + bytes(15) + b"\1" + bytes(31)


@pytest.mark.parametrize("rubbish", [b"\xff" * 200, CURVE_GREETING, b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_after_a_peer_that_is_no_hub_the_next_hub_is_found(rubbish: bytes, pool: ThreadPoolExecutor) -> None:
    with listener() as (server, endpoint):
        requester = Requester(endpoint, queues=True)
        reply = ask(pool, requester)
        connection, _ = server.accept()
        with connection:
            assert connection.recv(10)  # the greeting
            connection.sendall(rubbish)
    with RawHub(endpoint) as hub:
        hub.answer()
        assert reply.result(WAIT_S) == b"OK"
    requester.close()


def test_handshakes_that_end_without_a_word_mean_something_from_the_fifth_on(
    curve: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    with listener() as (server, endpoint):
        requester = Requester(endpoint, curve.pairs["pi1"], curve.pairs["hub"].public)
        for cuts in range(1, 6):
            connection, _ = server.accept()
            with connection:
                assert connection.recv(10)  # the greeting
            until(requester.left)
            requester.reopen()
            assert len(caplog.messages) == (cuts == 5)
        requester.close()
    assert caplog.messages[0].startswith(f"{endpoint} ends every handshake: it has another key than")


def test_reopening_for_ever_leaks_no_descriptors(requester: Requester) -> None:
    def reopened() -> int:
        for _ in range(50):
            requester.reopen()
        until(requester.connected)
        return open_descriptors()

    first = reopened()
    until(lambda: open_descriptors() <= first)
    reopened()
    until(lambda: open_descriptors() <= first + 10)


OF_BOTH_KINDS = """
import sys, time
from streamer import ImageSender, Sender
from tests.peers import JPEG

if sys.argv[1] == "ImageSender":
    with ImageSender(sys.argv[2]) as sender:
        sender.send_jpg("pi1", JPEG)
else:
    with Sender(sys.argv[2], "pi1") as sender:
        sender.send(JPEG)
        while not sender.statistics.answered:
            time.sleep(0.01)
print("answered", flush=True)
"""
# With a file of its own mounted over /etc/hosts, which nobody else sees.
MOUNTED = ("unshare", "-rm", "sh", "-ec", 'mount --bind "$0" /etc/hosts; exec "$@"')


@pytest.mark.skipif(
    subprocess.call([*MOUNTED, "/dev/null", "true"], stderr=subprocess.DEVNULL) != 0,
    reason="this user may not mount, or this is no Linux",
)
@pytest.mark.parametrize("sender", ["ImageSender", "Sender"])
def test_a_hub_of_one_kind_of_address_is_found_by_a_name_that_has_both(
    sender: str, hub: RawHub, tmp_path: Path
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("::1 both\n127.0.0.1 both\n")
    endpoint = hub.endpoint.replace("127.0.0.1", "both")
    program = [*MOUNTED, str(hosts), sys.executable, "-c", OF_BOTH_KINDS, sender, endpoint]
    with subprocess.Popen(program, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE) as process:
        try:
            hub.answer()
            assert process.communicate(timeout=WAIT_S)[0] == b"answered\n"
        finally:
            process.kill()


def test_the_other_kind_of_address_is_tried_in_turn_and_never_in_place_of_a_hub_that_is_there() -> None:
    with listener() as (_, endpoint):
        pass  # nobody listens there now
    requester = Requester(endpoint.replace("127.0.0.1", "localhost"))

    def kind() -> object:
        assert not requester.left()
        return requester.socket.getsockopt(zmq.IPV6)

    for other in (0, 1, 0):
        until(lambda: kind() == other)  # noqa: B023 - called here
        assert kind() == other, "not yet the next"
    time.sleep(0.5)  # misses that nobody has read when there is a hub
    with RawHub(endpoint):
        until(requester.connected)
        assert kind() == 0
        assert requester.connected()
    requester.close()


# -- ask


def test_ask_waits_for_a_hub_and_returns_its_reply(pool: ThreadPoolExecutor) -> None:
    with listener() as (_, endpoint):
        pass  # a free port
    asker = Requester(endpoint, queues=True)
    reply = ask(pool, asker)
    with RawHub(endpoint) as hub:
        route, fields, payload = hub.take()
        hub.reply(route, b"any bytes \0\xff")
        assert reply.result(WAIT_S) == b"any bytes \0\xff"
    assert (fields, payload) == ({"msg": "pi1"}, JPEG)
    asker.close()


def test_ask_gives_a_slow_hub_its_time(hub: RawHub, asker: Requester, pool: ThreadPoolExecutor) -> None:
    reply = ask(pool, asker)
    route, _, _ = hub.take()
    assert not hub.waits(0.6), "it asked again while the connection lived"
    hub.reply(route)
    assert reply.result(WAIT_S) == b"OK"


def test_the_last_words_of_a_hub_are_heard(hub: RawHub, asker: Requester, pool: ThreadPoolExecutor) -> None:
    asker.send(HEADER, JPEG)
    hub.reply(hub.take()[0], b"the last")
    hub.close()
    until(lambda: asker.monitor.poll(0) and asker.socket.poll(0))  # both have come before either is looked at
    until(lambda: asker.left() and asker.receive() == b"the last")
    # And the next hub is asked afresh.
    reply = ask(pool, asker)
    with RawHub(hub.endpoint) as following:
        following.answer()
        assert reply.result(WAIT_S) == b"OK"


def test_ask_asks_again_when_the_hub_leaves_in_between_however_soon_it_is_back(
    hub: RawHub, asker: Requester, pool: ThreadPoolExecutor
) -> None:
    for number in range(3):
        reply = ask(pool, asker, b"%d" % number)
        assert hub.take()[2] == b"%d" % number
        hub.close()
        hub = RawHub(hub.endpoint)  # within the time in which libzmq does not yet connect again
        route, _, payload = hub.take()
        assert payload == b"%d" % number
        hub.reply(route, b"from the new one")
        assert reply.result(WAIT_S) == b"from the new one"
        assert not hub.waits()
    hub.close()


@pytest.mark.parametrize(
    ("option", "stage"),
    [
        (zmq.RCVTIMEO, "no hub"),
        (zmq.RCVTIMEO, "silent hub"),
        (zmq.RCVTIMEO, "hub that leaves"),
        (zmq.SNDTIMEO, "no hub"),
        (zmq.SNDTIMEO, "hub that leaves"),
    ],
)
def test_ask_keeps_to_the_programs_time_outs(
    option: int, stage: str, hub: RawHub, asker: Requester, pool: ThreadPoolExecutor
) -> None:
    if stage == "no hub":
        hub.close()
    asker.socket.setsockopt(option, 400)
    began = time.monotonic()
    reply = ask(pool, asker)
    if stage == "hub that leaves":
        hub.take()
        hub.close()
    with pytest.raises(zmq.Again):
        reply.result(WAIT_S)
    assert 0.39 <= time.monotonic() - began < 5
    assert asker.socket.getsockopt(option) == 400


def test_a_time_out_of_sending_does_not_limit_how_long_a_hub_takes_to_reply(
    hub: RawHub, asker: Requester, pool: ThreadPoolExecutor
) -> None:
    asker.socket.setsockopt(zmq.SNDTIMEO, 200)
    reply = ask(pool, asker)
    route, _, _ = hub.take()
    with pytest.raises(TimeoutError):
        reply.result(0.4)
    hub.reply(route)
    assert reply.result(WAIT_S) == b"OK"


def test_after_a_time_out_the_late_reply_is_not_taken_for_the_next(
    hub: RawHub, asker: Requester, pool: ThreadPoolExecutor
) -> None:
    asker.socket.setsockopt(zmq.RCVTIMEO, 200)
    with pytest.raises(zmq.Again):
        asker.ask(HEADER, b"1")
    route, _, _ = hub.take()
    hub.reply(route, b"late")
    until(lambda: asker.socket.poll(0))  # it has arrived
    asker.socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
    reply = ask(pool, asker, b"2")
    route, _, payload = hub.take()
    hub.reply(route, b"in time")
    assert payload == b"2"
    assert reply.result(WAIT_S) == b"in time"
    assert asker.socket.getsockopt(zmq.RCVTIMEO) == round(WAIT_S * 1000)


def test_who_ends_every_connection_is_not_asked_without_a_pause(pool: ThreadPoolExecutor) -> None:
    with listener() as (server, endpoint), closing(Requester(endpoint, queues=True)) as asker:
        asker.socket.wait_at_most(0.5)
        server.settimeout(0.1)
        done = threading.Event()

        def end_all() -> int:
            ended = 0
            while not done.is_set():
                with suppress(TimeoutError):
                    server.accept()[0].close()
                    ended += 1
            return ended

        ended = pool.submit(end_all)
        with pytest.raises(zmq.Again):
            asker.ask(HEADER, JPEG)
        done.set()
        assert 1 <= ended.result(WAIT_S) <= 50, "without, hundreds"


def test_ctrl_c_ends_ask() -> None:
    asker = Requester("tcp://127.0.0.1:1", queues=True)
    timer = threading.Timer(0.2, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        asker.ask(HEADER, JPEG)
    timer.join()
    asker.close()


FULL = """
import zmq
from streamer.transport import Requester
from tests.peers import listener

with listener() as (server, endpoint):
    asker = Requester(endpoint, queues=True)
    asker.socket.disconnect(endpoint)
    asker.socket.setsockopt(zmq.RECONNECT_IVL, 1)  # for minutes of a program that sends seldom
    asker.socket.connect(endpoint)
    server.settimeout(1)
    try:
        while True:
            server.accept()[0].close()
    except TimeoutError:  # libzmq waits for room
        asker.close()
"""


def test_closing_does_not_hang_after_more_events_than_a_monitor_holds() -> None:
    program = [sys.executable, "-c", FULL]
    assert subprocess.run(program, cwd=Path(__file__).parents[1], timeout=4 * WAIT_S, check=False).returncode == 0


# -- replier


NUMBER_OF_THE_FIRST_PEER = """
import zmq
from streamer.transport import Replier
from tests.peers import LOCAL, raw
replier = Replier(LOCAL)
with raw(zmq.DEALER, connect=replier.endpoint) as peer:
    peer.send(b"")
    print(replier.wait().route.hex(), flush=True)
"""


def test_nobody_knows_by_which_number_the_next_peer_goes() -> None:
    with Program("-c", NUMBER_OF_THE_FIRST_PEER) as one, Program("-c", NUMBER_OF_THE_FIRST_PEER) as other:
        assert one.line(0) != other.line(0)


@pytest.mark.parametrize(
    "message",
    [
        [b""],
        [b"x"],
        [b"", b""],
        [b"", HEADER],
        [HEADER, JPEG],  # without REQ's delimiter
        [b"x", HEADER, JPEG],
        [b"", HEADER, JPEG, b"x"],
        [b""] * 100,
        [b"", HEADER, *[JPEG] * 1000],
    ],
    ids=lambda message: f"{len(message)} parts from {message[0][:1]!r}",
)
def test_what_is_no_request_has_no_parts_and_can_be_replied_to(replier: Replier, message: list[bytes]) -> None:
    with raw(zmq.DEALER, connect=replier.endpoint) as stranger:
        stranger.send_multipart(message)
        received = replier.wait()
        assert (received.parts, received.address) == (None, "127.0.0.1")
        replier.reply(received.route, b"ERR")
        assert stranger.recv_multipart() == [b"", b"ERR"]
        stranger.send_multipart([b"", HEADER, JPEG])
        parts = replier.wait().parts
    assert parts
    assert (parts[0], bytes(parts[1])) == (HEADER, JPEG)


def test_stock_requesters_and_ours_are_served_side_by_side(replier: Replier) -> None:
    requester = Requester(replier.endpoint)
    until(requester.connected)
    requester.send(HEADER, b"ours")
    ours = replier.wait()
    with raw(zmq.REQ, connect=replier.endpoint) as stock:
        stock.send_multipart([HEADER, b"stock"])
        theirs = replier.wait()
        replier.reply(theirs.route, b"to stock")
        replier.reply(ours.route, b"to ours")
        assert stock.recv_multipart() == [b"to stock"]
    assert until(requester.receive) == b"to ours"
    assert [received.parts[1].tobytes() for received in (ours, theirs) if received.parts] == [b"ours", b"stock"]
    requester.close()


def test_a_route_that_another_takes_over_has_the_other_s_address() -> None:
    with closing(Replier(LOCAL, guarded=True)) as replier:
        port, door = replier.endpoint.rpartition(":")[2], replier.door
        assert door
        for address in ("127.0.0.2", "127.0.0.3"):
            with zmq.Context() as context, context.socket(zmq.REQ) as peer:
                peer.setsockopt(zmq.ROUTING_ID, b"pi1")
                peer.connect(f"tcp://{address}:0;127.0.0.1:{port}")
                for _ in range(2):
                    peer.send_multipart([HEADER, JPEG])
                    received = replier.wait()
                    assert (received.route, received.address) == (b"pi1", address)
                    replier.reply(received.route, wire.OK)
                    peer.recv()
            replier.weigh()
            until(lambda: not replier.admit() and not door.connections._open)


def test_a_message_that_is_quicker_than_the_news_of_its_connection_is_followed_by_one_that_counts() -> None:
    with closing(Replier(LOCAL, guarded=True)) as replier, raw(zmq.REQ, connect=replier.endpoint) as peer:
        assert replier.door
        known = replier.door.connections._open
        for _ in range(2):
            peer.send_multipart([HEADER, JPEG])
            received = replier.wait()  # without a look at the door before
            replier.reply(received.route, wire.OK)
            peer.recv()
            until(lambda: replier.admit() or known)
        (connection,) = known.values()
        assert connection.has_sent


def test_who_ends_every_message_is_never_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.transport.connections.UNFINISHED_MAX_BYTES", 100_000)
    with closing(Replier(LOCAL, guarded=True)) as replier, raw(zmq.REQ, connect=replier.endpoint) as peer:
        door = replier.door
        assert door
        for _ in range(6):
            peer.send_multipart([HEADER, bytes(60_000)])
            replier.reply(replier.wait().route, wire.OK)
            assert peer.recv() == wire.OK
            until(lambda: replier.admit() or door.connections._open)
            for _ in range(2):
                replier.weigh()
                while replier.crowded:
                    assert replier.admit() == []


def test_a_crowd_at_the_door_is_answered_a_few_at_a_time_and_more_when_some_are_left() -> None:
    with closing(Replier(LOCAL, guarded=True)) as replier, ExitStack() as stack:
        assert replier.door
        known, port = replier.door.connections._open, int(replier.endpoint.rpartition(":")[2])
        answered: list[int] = []
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT_S))
        with raw(zmq.REQ, connect=replier.endpoint) as last:
            last.send_multipart([HEADER, JPEG])
            replier.wait()  # libzmq has told of all
            while replier.crowded or not answered:
                before = len(known)
                replier.admit()
                answered.append(len(known) - before)
    assert answered == [8, 16, 24, 32, 21]


def test_a_connection_too_many_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.transport.connections.CONNECTIONS_MAX", 2)
    with closing(Replier(LOCAL, guarded=True)) as replier, ExitStack() as stack:
        assert replier.door
        ended = replier.door.connections._cut
        port = int(replier.endpoint.rpartition(":")[2])
        for _ in range(7):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT_S))
        refused: list[tuple[str | None, str]] = []

        def has_refused(most: int) -> bool:
            refused.extend(replier.admit())
            return len(refused) >= most

        until(lambda: has_refused(5))
        until(lambda: has_refused(5) and not ended)  # libzmq tells of their ends, too
    assert refused == [("127.0.0.1", "of 2 connections it has most")] * 5


def test_replies_that_nobody_reads_or_can_get_do_not_block(replier: Replier) -> None:
    with raw(zmq.DEALER, connect=replier.endpoint) as stranger:
        stranger.setsockopt(zmq.RCVHWM, 1)
        stranger.send_multipart([b"", HEADER, JPEG])
        route = replier.wait().route
        began = time.monotonic()
        for _ in range(2000):
            replier.reply(route, bytes(10_000))
            replier.reply(b"nobody", b"OK")
        assert time.monotonic() - began < WAIT_S
    with raw(zmq.REQ, connect=replier.endpoint) as other:
        other.send_multipart([HEADER, JPEG])
        replier.reply(replier.wait().route, b"OK")
        assert other.recv() == b"OK"


@pytest.mark.parametrize("rubbish", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, bytes(4096), CURVE_GREETING])
def test_strangers_who_speak_no_zmq_disturb_nobody(replier: Replier, rubbish: bytes) -> None:
    port = int(replier.endpoint.rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(5):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), WAIT_S))
            stranger.sendall(rubbish)
        peer = stack.enter_context(raw(zmq.REQ, connect=replier.endpoint))
        peer.send_multipart([HEADER, JPEG])
        while (received := replier.wait()).parts is None:
            replier.reply(received.route, b"ERR")
        replier.reply(received.route, b"OK")
        assert peer.recv() == b"OK"


def test_a_message_over_the_limit_is_never_received(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.transport.receiving.UNFINISHED_MAX_BYTES", 1_000_000)
    with ExitStack() as stack:
        replier = stack.enter_context(closing(Replier(LOCAL)))
        glutton = stack.enter_context(raw(zmq.DEALER, connect=replier.endpoint))
        peer = stack.enter_context(raw(zmq.REQ, connect=replier.endpoint))
        with glutton.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            glutton.send_multipart([b"", HEADER, bytes(1_000_001)])
            assert monitor.poll(round(WAIT_S * 1000))
        peer.send_multipart([HEADER, JPEG])
        received = replier.wait()
        assert received.parts
        assert bytes(received.parts[1]) == JPEG


# -- publisher and subscriber


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    publisher = Publisher(LOCAL)
    yield publisher
    publisher.close()


@pytest.fixture
def subscriber() -> Iterator[Subscriber]:
    subscriber = Subscriber()
    yield subscriber
    subscriber.close()


def test_a_subscriber_gets_what_every_publisher_sends(subscriber: Subscriber) -> None:
    publishers = [Publisher(LOCAL) for _ in range(3)]
    for publisher in publishers:
        subscriber.connect(publisher.endpoint)
    came: set[bytes] = set()

    def all_came() -> bool:
        for number, publisher in enumerate(publishers):
            publisher.send(HEADER, b"%d" % number)
        while (received := subscriber.receive()) is not None:
            assert (received.route, received.address) == (b"", "127.0.0.1")
            assert received.parts
            assert received.parts[0] == HEADER
            came.add(bytes(received.parts[1]))
        return came == {b"0", b"1", b"2"}

    until(all_came)
    for publisher in publishers:
        publisher.close()


@pytest.mark.parametrize("message", [[b"x"], [HEADER, JPEG, b"x"], [b"x"] * 20], ids=len)
def test_what_is_no_message_has_no_parts(subscriber: Subscriber, message: list[bytes]) -> None:
    with raw(zmq.XPUB) as stranger:
        stranger.bind(LOCAL)
        subscriber.connect(stranger.getsockopt_string(zmq.LAST_ENDPOINT))
        stranger.recv()  # the subscription
        stranger.send_multipart(message)
        stranger.send_multipart([HEADER, JPEG])
        subscriber.socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
        assert subscriber.wait().parts is None
        parts = subscriber.wait().parts
    assert parts
    assert bytes(parts[1]) == JPEG


def test_publishing_never_waits_for_a_subscriber_that_does_not_read(
    publisher: Publisher, subscriber: Subscriber
) -> None:
    subscriber.connect(publisher.endpoint)

    def connected() -> bool:
        publisher.send(HEADER, b"first")
        return bool(subscriber.socket.poll(0))

    until(connected)
    began = time.monotonic()
    for _ in range(500):
        publisher.send(HEADER, bytes(1_000_000))
    assert time.monotonic() - began < WAIT_S


# -- waiting and closing


@pytest.mark.parametrize("make", [lambda: Replier(LOCAL), Subscriber])
def test_wait_keeps_to_the_programs_time_out(make: Callable[[], Replier | Subscriber]) -> None:
    end = make()
    end.socket.setsockopt(zmq.RCVTIMEO, 200)
    began = time.monotonic()
    with pytest.raises(zmq.Again):
        end.wait()
    assert 0.19 <= time.monotonic() - began < 5
    end.close()


def test_first_large_frames_of_several_threads_are_lent_to_one_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    collector.stop()  # as where nothing has been lent yet
    make, made, both = zmq.Context.socket, [], threading.Barrier(2)

    def slowly(context: zmq.Context[Any], kind: int, *rest: Any, **options: Any) -> zmq.Socket[Any]:
        if kind == zmq.PUSH:  # pyzmq's own: nothing here has one
            made.append(kind)
            with suppress(threading.BrokenBarrierError):
                both.wait(0.3)  # for a second one, which must not be made
        return make(context, kind, *rest, **options)

    with ExitStack() as stack:
        publishers = [stack.enter_context(closing(Publisher(LOCAL))) for _ in range(2)]
        monkeypatch.setattr(zmq.Context, "socket", slowly)
        threads = [threading.Thread(target=each.send, args=(HEADER, bytes(1 << 20))) for each in publishers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 1


def test_a_signal_handler_may_lend_a_large_frame_while_its_thread_does() -> None:
    large = bytes(1_000_000)
    with closing(Publisher(LOCAL)) as one, closing(Publisher(LOCAL)) as other:
        assert interrupt(lambda: one.send(HEADER, large), lambda: other.send(HEADER, large))


def test_closing_waits_for_nobody(hub: RawHub) -> None:
    requester, replier, publisher, subscriber = Requester(hub.endpoint), Replier(LOCAL), Publisher(LOCAL), Subscriber()
    subscriber.connect(publisher.endpoint)
    subscriber.connect("tcp://127.0.0.1:1")
    until(requester.connected)
    with raw(zmq.DEALER, connect=replier.endpoint) as peer:
        peer.send_multipart([b"", HEADER, JPEG])
        route = replier.wait().route
        for _ in range(10):  # none of which is read
            replier.reply(route, bytes(1_000_000))
            requester.send(HEADER, bytes(4_000_000))
            publisher.send(HEADER, bytes(4_000_000))
        began = time.monotonic()
        for end in (requester, replier, publisher, subscriber):
            end.close()
            end.close()
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("end", [Requester.reopen, Requester.close])
def test_no_event_can_come_for_a_monitor_that_is_closed(
    end: Callable[[Requester], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else libzmq's thread waits for ever: of eight requesters on a line without a hub five hung within a minute."""
    requester = Requester("tcp://127.0.0.1:9")
    names = {id(requester.socket): "socket", id(requester.monitor): "monitor"}
    done: list[tuple[str, str | None]] = []

    def note(method: str) -> None:
        original = getattr(zmq.Socket, method)

        def noting(socket: zmq.Socket[bytes], *arguments: Any, **options: Any) -> None:
            if not socket.closed:
                done.append((method, names.get(id(socket))))
            original(socket, *arguments, **options)

        monkeypatch.setattr(zmq.Socket, method, noting)

    note("close")
    note("disable_monitor")
    end(requester)
    assert done[:3] == [("disable_monitor", "socket"), ("close", "socket"), ("close", "monitor")]
    monkeypatch.undo()
    requester.close()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back so soon")
def test_the_memory_of_a_frame_is_used_again_for_the_next() -> None:
    # Each page that is given back to the kernel and taken again is a fault; a frame of 126 kB has 31. In a process of
    # its own, since what others have freed before changes what is given back.
    script = """
import resource
from streamer.hub import Hub
from streamer.sender import Sender
from tests.conftest import until
from tests.peers import JPEG

picture = JPEG[:-2] + bytes(126_000) + JPEG[-2:]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

with Hub("tcp://127.0.0.1:*") as hub, Sender(hub.endpoint, name="pi1", source=lambda: picture):
    def frames():
        return sum(row.frames for row in hub.cameras())
    until(lambda: frames() >= 200)
    began, before = frames(), faults()
    until(lambda: frames() >= began + 2000)
    print((faults() - before) / (frames() - began))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=WAIT_S)
    assert float(ran.stdout) < 3
