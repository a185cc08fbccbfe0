"""The drop-in API in one process, where it can be compared with stock imagezmq's; `interop/` has the rest."""

from __future__ import annotations

import inspect
import json
import math
import signal
import threading
import time
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import imagezmq as stock
import numpy as np
import pytest
import zmq

import streamer
from streamer import codec, imagezmq, wire
from streamer.codec import encode_jpeg
from streamer.errors import MissingExtraError, TransportError, WireError
from streamer.imagezmq import ImageHub, ImageSender
from streamer.sender import Sender
from streamer.transport import sending
from tests.conftest import SlowNames, until, until_all_is_told
from tests.peers import (
    JPEG,
    LOCAL,
    WAIT_S,
    Program,
    RawHub,
    header,
    listener,
    open_descriptors,
    picture,
    raw,
    said_after_fork,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

both = pytest.mark.parametrize("library", [stock, streamer], ids=["stock", "ours"])


@pytest.fixture
def address() -> str:
    """Return an address that nobody listens on."""
    with listener() as (_, endpoint):
        return endpoint


@pytest.fixture
def hub(address: str) -> Iterator[ImageHub]:
    with ImageHub(address) as hub:
        hub.zmq_socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
        yield hub


@pytest.fixture
def sender(address: str) -> Iterator[ImageSender]:
    with ImageSender(address) as sender:
        sender.zmq_socket.setsockopt(zmq.SNDTIMEO, round(WAIT_S * 1000))
        sender.zmq_socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
        yield sender


# -- the same API


@pytest.mark.parametrize("name", ["ImageSender", "ImageHub"])
def test_signatures_are_stocks(name: str) -> None:
    ours, theirs = getattr(streamer, name), getattr(stock, name)
    for method in ["__init__", *(method for method in vars(theirs) if not method.startswith(("_", "init_")))]:
        expected = inspect.signature(getattr(theirs, method)).parameters.values()
        actual = inspect.signature(getattr(ours, method)).parameters.values()
        assert [(each.name, each.default) for each in actual] == [(each.name, each.default) for each in expected]


def test_zmq_is_to_be_had_from_it_as_from_stock() -> None:
    assert streamer.zmq is stock.zmq


@both
def test_receiving_and_replying_take_turns(library: Any, address: str) -> None:
    with library.ImageHub(address) as hub, raw(zmq.REQ, connect=address) as peer:

        def assert_out_of_step(call: Callable[[], object]) -> None:
            with pytest.raises(zmq.ZMQError) as caught:
                call()
            assert caught.value.errno == zmq.EFSM

        assert_out_of_step(hub.send_reply)
        for reply in (b"OK", b"anything"):
            peer.send_multipart([header("pi1"), JPEG])
            assert hub.recv_jpg()[0] == "pi1"
            assert_out_of_step(hub.recv_jpg)
            assert_out_of_step(hub.recv_image)
            hub.send_reply(reply)
            assert_out_of_step(hub.send_reply)
            assert peer.recv_multipart() == [reply]


def test_a_program_that_replies_through_the_socket_is_told_what_to_call(hub: ImageHub, address: str) -> None:
    with raw(zmq.REQ, connect=address) as peer:
        peer.send_multipart([header("pi1"), JPEG])
        hub.recv_jpg()
        hub.zmq_socket.send(b"OK")
        with pytest.raises(zmq.ZMQError, match=r"call send_reply, zmq_socket\.send does not reply"):
            hub.recv_jpg()


@both
@pytest.mark.parametrize("copy", [False, True])
def test_what_is_received_can_be_used_as_with_stock(library: Any, copy: bool, address: str) -> None:
    with library.ImageHub(address) as hub, raw(zmq.REQ, connect=address) as peer:
        peer.send_multipart([header("pi1", dtype="uint8", shape=[2, 2]), picture(7).tobytes()])
        _, image = hub.recv_image(copy=copy)
        image[0, 0] = 8  # programs draw on what they get
        assert image.tolist() == [[8, 7], [7, 7]]
        hub.send_reply()
        peer.recv()
        peer.send_multipart([header("pi1"), JPEG])
        _, jpeg = hub.recv_jpg(copy=copy)
        assert np.frombuffer(jpeg, dtype="uint8").tobytes() == JPEG
        assert library is stock or type(jpeg) is (bytes if copy else zmq.Frame)
        hub.send_reply()


LABELS: list[object] = [
    "pi1",
    "",
    "a label\nof two lines ✓",
    7,
    1.5,
    None,
    True,
    ["pi1", 2],
    {"name": "pi1", "at": [1, 2]},
]


@pytest.mark.parametrize("label", LABELS, ids=repr)
@pytest.mark.parametrize("pattern", ["req", "pub"])
def test_any_json_value_may_be_the_label(label: object, pattern: str, address: str, pool: ThreadPoolExecutor) -> None:
    req_rep = pattern == "req"
    with ImageSender(address, REQ_REP=req_rep) as sender, ImageHub(address, REQ_REP=req_rep) as hub:
        done = threading.Event()

        def receive() -> tuple[object, object]:
            try:
                jpeg, _ = hub.recv_jpg()
                if req_rep:
                    hub.send_reply(b"one")
                image, _ = hub.recv_image()
                if req_rep:
                    hub.send_reply("two")
                return jpeg, image
            finally:
                done.set()

        hub.zmq_socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
        received = pool.submit(receive)
        if req_rep:
            assert sender.send_jpg(label, JPEG) == b"one"
            assert sender.send_image(label, picture(1)) == b"two"
        while not done.wait(0.02) and not req_rep:
            assert sender.send_jpg(label, JPEG) is None
            assert sender.send_image(label, picture(1)) is None
        assert received.result(WAIT_S) == (label, label)


@pytest.mark.parametrize("label", [object(), {1, 2}, b"bytes", "x" * 5000], ids=["object", "set", "bytes", "long"])
def test_a_label_that_cannot_be_sent_is_told(label: object, sender: ImageSender) -> None:
    with pytest.raises(WireError):
        sender.send_jpg(label, JPEG)


@pytest.mark.parametrize("picture", [None, JPEG, [[1, 2], [3, 4]]], ids=["nothing", "bytes", "list"])
def test_what_is_no_array_is_told(picture: Any, sender: ImageSender) -> None:
    with pytest.raises(WireError, match=f"no array: {type(picture).__name__}"):
        sender.send_image("pi1", picture)


def test_sockets_and_contexts_are_there_to_be_used(sender: ImageSender, hub: ImageHub) -> None:
    for end in (sender, hub):
        assert isinstance(end.zmq_socket, zmq.Socket)
        assert isinstance(end.zmq_context, zmq.Context)
        assert end.zmq_socket.context is end.zmq_context
        assert not end.zmq_socket.closed
        end.zmq_socket.setsockopt(zmq.LINGER, 5)
        assert end.zmq_socket.getsockopt(zmq.LINGER) == 5


def test_a_hub_is_told_which_picture_of_which_start_it_is_and_when_it_was_sent(
    address: str, pool: ThreadPoolExecutor
) -> None:
    with ImageSender(address) as sender, RawHub(address) as hub:
        before, headers = time.time_ns(), []
        for _ in range(3):
            reply = pool.submit(sender.send_jpg, "pi1", JPEG)
            route, fields, _ = hub.take()
            hub.reply(route)
            reply.result(WAIT_S)
            headers.append(fields)
    assert [fields["seq"] for fields in headers] == [0, 1, 2]
    assert len({fields["start"] for fields in headers}) == 1
    captured = [before, *(fields["captured"] for fields in headers), time.time_ns()]
    assert captured == sorted(captured)


def test_every_camera_of_one_program_is_counted_on_its_own(pool: ThreadPoolExecutor) -> None:
    with streamer.Hub(LOCAL) as hub, ImageSender(hub.endpoint or "") as sender:
        for name in ["pi1", "pi2", "pi2", "pi1", "pi2"]:
            pool.submit(sender.send_jpg, name, JPEG).result(WAIT_S)
        assert [(status.name, status.frames, status.lost) for status in hub.cameras()] == [("pi1", 2, 0), ("pi2", 3, 0)]


def test_what_a_hub_does_not_take_is_told_once(pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    with streamer.Hub(LOCAL) as hub, ImageSender(hub.endpoint or "") as sender:
        replies = [
            pool.submit(sender.send_jpg, label, JPEG).result(WAIT_S)
            for label in ("front door", "front door", "pi1", "front door")
        ]
        assert [reply and reply[:3] for reply in replies] == [b"ERR", b"ERR", b"OK", b"ERR"]
        told = [line for line in caplog.messages if "refuses" in line]
        assert told == [f"{hub.endpoint} refuses the frames: camera name must be {wire.NAME_RULE}"]


def test_of_labels_without_end_the_oldest_are_forgotten(address: str, pool: ThreadPoolExecutor) -> None:
    with ImageSender(address) as sender, RawHub(address) as hub:
        counts = []
        for number in [*range(1024), 0, 1024, 0, 1]:
            reply = pool.submit(sender.send_jpg, f"pi1-{number}", JPEG)
            route, fields, _ = hub.take()
            hub.reply(route)
            reply.result(WAIT_S)
            counts.append(fields["seq"])
    assert counts == [*[0] * 1024, 1, 0, 2, 0]


@pytest.mark.parametrize("pattern", ["req", "pub"])
def test_threads_that_share_a_sender_take_turns(pattern: str, address: str) -> None:
    """In a process of its own: without turns libzmq aborts it."""
    program = f"""
import threading, numpy, streamer
sender = streamer.ImageSender({address!r}, REQ_REP={pattern == "req"})
def send(name):
    for number in range(300):
        sender.send_image(name, numpy.full((8, 8), number % 256, "uint8"))
threads = [threading.Thread(target=send, args=(f"pi{{number}}",)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("sent")
"""
    with Program("-c", program) as senders:
        if pattern == "req":
            with ImageHub(address) as hub:
                hub.zmq_socket.RCVTIMEO = round(WAIT_S * 1000)
                came: dict[str, list[int]] = {}
                for _ in range(1200):
                    name, image = hub.recv_image()
                    came.setdefault(name, []).append(int(image[0, 0]))
                    hub.send_reply()
                assert came == {f"pi{number}": [at % 256 for at in range(300)] for number in range(4)}
                assert senders.end() == 0
        assert senders.end() == 0


# -- rubbish


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ([b"x"], "a message must have two parts"),
        ([b"no JSON", JPEG], "header is not JSON"),
        ([header("pi1"), b"no JPEG"], "payload is not a whole JPEG"),
        ([header("pi1", dtype="uint8", shape=[2, 2]), b"abcd"], "recv_jpg was called, and this is an array"),
    ],
)
def test_rubbish_is_refused_and_not_raised(
    hub: ImageHub, address: str, message: list[bytes], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with raw(zmq.DEALER, connect=address) as peer:
        for each in (message, message, message, [header("pi1"), JPEG]):
            peer.send_multipart([b"", *each])
        assert hub.recv_jpg()[0] == "pi1"
        hub.send_reply()
        replies = [peer.recv_multipart()[1].decode() for _ in range(4)]
    assert all(reply.startswith(f"ERR {why}") for reply in replies[:3])
    assert replies[3] == "OK"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"refused from 127.0.0.1: {why}")


def test_of_several_kinds_of_rubbish_in_turn_one_is_told_a_second(
    hub: ImageHub, address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with raw(zmq.DEALER, connect=address) as peer:
        for seconds, told in ((math.inf, ["header"]), (0.0, ["header", "payload", "header", "payload"])):
            monkeypatch.setattr(imagezmq, "_TELL_S", seconds)
            for each in ([b"no JSON", JPEG], [header("pi1"), b"no JPEG"]) * 2:
                peer.send_multipart([b"", *each])
            peer.send_multipart([b"", header("pi1"), JPEG])
            hub.recv_jpg()
            hub.send_reply()
            assert [message.split()[3] for message in caplog.messages] == told


def test_a_program_that_takes_arrays_gets_those_of_jpegs_too(address: str, pool: ThreadPoolExecutor) -> None:
    image = np.full((16, 24, 3), (200, 40, 40), np.uint8)  # blue
    with ImageHub(address) as hub, Sender(address, "pi1") as sender:
        sender.send(encode_jpeg(image, 95))
        for copy in (False, True):
            label, shown = hub.recv_image(copy=copy)
            assert (label, shown.shape, shown.dtype) == ("pi1", image.shape, image.dtype)
            assert np.abs(shown.astype(int) - image).max() < 10
            shown[0, 0] = 8  # programs draw on what they get
            hub.send_reply()
            sender.send(encode_jpeg(image, 95))


def test_a_jpeg_that_cannot_be_decoded_is_refused_where_arrays_are_wanted(
    hub: ImageHub, sender: ImageSender, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = pool.submit(hub.recv_image)
    refused = b"ERR recv_image was called, and this is a JPEG: "
    headless = b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00\xff\xd9"
    reply = sender.send_jpg("pi1", headless)
    assert reply is not None
    assert reply.startswith(refused + b"JPEG decoder: ")
    missing = MissingExtraError("to decode JPEGs", "hub", "python3-simplejpeg")
    monkeypatch.setattr(codec, "library", Mock(side_effect=missing))
    assert sender.send_jpg("pi1", JPEG) == refused + str(missing).encode()
    sent = pool.submit(sender.send_image, "pi1", picture(3))
    label, image = received.result(WAIT_S)
    hub.send_reply()
    assert sent.result(WAIT_S) == b"OK"
    assert (label, image.tolist()) == ("pi1", picture(3).tolist())


# -- time-outs


@both
@pytest.mark.parametrize("situation", ["no hub", "hub that never replies"])
def test_the_time_out_recipe_of_imagezmqs_documentation_works(
    library: Any, situation: str, address: str, pool: ThreadPoolExecutor
) -> None:
    def start() -> Any:
        sender = library.ImageSender(connect_to=address)
        sender.zmq_socket.setsockopt(zmq.LINGER, 0)
        sender.zmq_socket.setsockopt(zmq.RCVTIMEO, 400)
        sender.zmq_socket.setsockopt(zmq.SNDTIMEO, 400)
        return sender

    sender = start()
    silent = RawHub(address) if situation != "no hub" else None
    began = time.monotonic()
    with pytest.raises((zmq.ZMQError, zmq.ContextTerminated, zmq.Again)):
        sender.send_jpg("pi1", JPEG)
    assert 0.39 <= time.monotonic() - began < 5
    sender.close()
    if silent:
        silent.close()
    sender = start()
    sender.zmq_socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
    sender.zmq_socket.setsockopt(zmq.SNDTIMEO, round(WAIT_S * 1000))
    with ImageHub(address) as hub:
        reply: Future[bytes] = pool.submit(sender.send_jpg, "pi1", JPEG)
        assert hub.recv_jpg()[0] == "pi1"
        hub.send_reply()
        assert reply.result(WAIT_S) == b"OK"
    sender.close()
    sender.close()


def test_socket_is_closed_when_the_thread_that_waits_with_it_has_let_go(
    sender: ImageSender, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, waits, go_on = sender._end, threading.Event(), threading.Event()
    assert isinstance(end, sending.Requester)
    goes_on = sending.Requester._await

    def wait_for_me(*given: Any) -> None:
        waits.set()
        assert go_on.wait(WAIT_S)
        goes_on(*given)

    monkeypatch.setattr(sending.Requester, "_await", wait_for_me)
    sent = pool.submit(sender.send_jpg, "pi1", JPEG)
    assert waits.wait(WAIT_S)
    closed = pool.submit(sender.close)
    until(lambda: closed.done() or end._stopped)
    assert not end.socket.closed, "libzmq aborts the process"
    go_on.set()
    with pytest.raises(zmq.ZMQError, match="non-socket"):
        sent.result(WAIT_S)
    closed.result(WAIT_S)
    assert end.socket.closed


def test_options_that_let_req_ask_again_may_be_set(sender: ImageSender, address: str, pool: ThreadPoolExecutor) -> None:
    sender.zmq_socket.setsockopt(zmq.REQ_RELAXED, 1)
    sender.zmq_socket.REQ_CORRELATE = 1
    sender.zmq_socket.RCVTIMEO = 300
    with pytest.raises(zmq.Again):
        sender.send_jpg("pi1", JPEG)
    sender.zmq_socket.RCVTIMEO = round(WAIT_S * 1000)
    reply = pool.submit(sender.send_jpg, "pi2", JPEG)
    with ImageHub(address) as hub:
        assert hub.recv_jpg()[0] == "pi2"
        hub.send_reply()
        assert reply.result(WAIT_S) == b"OK"


@both
def test_a_receive_time_out_alone_ends_the_wait_for_a_hub(library: Any, address: str) -> None:
    with library.ImageSender(address) as sender:
        sender.zmq_socket.setsockopt(zmq.LINGER, 0)
        sender.zmq_socket.setsockopt(zmq.RCVTIMEO, 300)
        with pytest.raises(zmq.Again):
            sender.send_jpg("pi1", JPEG)


@pytest.mark.parametrize("req_rep", [True, False])
def test_a_hubs_time_out_is_kept(req_rep: bool, address: str) -> None:
    with ImageHub(address, REQ_REP=req_rep) as hub:
        hub.zmq_socket.setsockopt(zmq.RCVTIMEO, 200)
        for receive in (hub.recv_jpg, hub.recv_image):
            began = time.monotonic()
            with pytest.raises(zmq.Again):
                receive()
            assert 0.19 <= time.monotonic() - began < 5


def test_the_want_of_a_hub_is_told_once_it_has_lasted(
    address: str,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sending, "_SILENT_S", 0.1)
    monkeypatch.setattr(sending, "REMIND_S", 0.1)
    named = "tcp://nobody.invalid:5555"
    with ImageSender(address) as sender, ImageSender(named) as lost:
        lost.zmq_socket.RCVTIMEO = 1000
        with pytest.raises(zmq.Again):
            lost.send_jpg("pi1", JPEG)
        until(lambda: any(f"no hub answers at {named}, which has a name" in line for line in caplog.messages))
        reply = pool.submit(sender.send_jpg, "pi1", JPEG)
        want = f"no hub answers at {address}; waiting for one"
        until(lambda: caplog.messages.count(want) >= 2)
        with ImageHub(address) as hub:
            hub.recv_jpg()
            until(lambda: sender._end._met)  # type: ignore[union-attr]
            until_all_is_told()
            told = caplog.messages.count(want)
            assert not wait([reply], 0.3).done, "it may take its time to reply"
            hub.send_reply()
            assert reply.result(WAIT_S) == b"OK"
        assert caplog.messages.count(want) == told


def test_the_want_of_a_hub_is_not_told_once_closed(
    address: str,
    pool: ThreadPoolExecutor,
    slow_names: SlowNames,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sending, "_SILENT_S", 0.1)
    with ImageSender(address) as sender:
        reply = pool.submit(sender.send_jpg, "pi1", JPEG)
        assert slow_names.asked.wait(WAIT_S)
    assert isinstance(reply.exception(WAIT_S), zmq.ZMQError)
    slow_names.answer()
    assert "no hub" not in caplog.text


# -- what a hub says


@both
def test_a_reply_may_be_a_picture(library: Any, address: str, pool: ThreadPoolExecutor) -> None:
    with library.ImageSender(address) as sender, RawHub(address) as hub:
        sender.zmq_socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
        reply = pool.submit(sender.send_jpg, "pi1", JPEG)
        hub.reply(hub.take()[0], bytes(200_000))
        assert reply.result(WAIT_S) == bytes(200_000)
        assert not hub.waits()


@both
def test_a_hub_that_ends_after_its_last_reply_is_heard(library: Any, address: str, pool: ThreadPoolExecutor) -> None:
    for number in range(10):
        with library.ImageSender(address) as sender:
            sender.zmq_socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
            reply = pool.submit(sender.send_jpg, "pi1", JPEG)
            with ImageHub(address) as hub:
                assert hub.recv_jpg()[0] == "pi1"
                hub.send_reply(b"%d" % number)
            assert reply.result(WAIT_S) == b"%d" % number


# -- subscribing


@both
def test_several_cameras_that_publish_from_one_program_all_arrive(library: Any, address: str) -> None:
    names = {f"pi{number}" for number in range(1, 9)}
    with library.ImageSender(address, REQ_REP=False) as sender, ImageHub(address, REQ_REP=False) as hub:
        until(lambda: sender.send_image("pi0", picture(0)) or hub.zmq_socket.poll(10))  # the subscription is there
        for name in names:
            sender.send_image(name, picture(1, 100))
        seen: set[str] = set()
        hub.zmq_socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
        while not names <= seen:
            seen.add(hub.recv_image()[0])


@both
def test_however_many_cameras_a_program_publishes_each_has_room(library: Any, address: str) -> None:
    names = [f"pi{number}" for number in range(1, 65)]
    seen: set[str] = set()
    with library.ImageSender(address, REQ_REP=False) as sender, raw(zmq.SUB) as subscriber:
        subscriber.setsockopt(zmq.RCVHWM, 1)
        subscriber.subscribe(b"")
        subscriber.connect(address)

        def all_come() -> bool:
            for name in names:
                sender.send_image(name, picture(1, 1000))  # of all together the kernel takes few
            while subscriber.poll(200):
                seen.add(json.loads(subscriber.recv_multipart()[0])["msg"])
            return seen.issuperset(names)

        until(all_come, 60)


def test_labels_that_never_come_again_make_no_room_for_old_pictures(address: str) -> None:
    with ImageSender(address, REQ_REP=False) as sender:
        queue = sender.zmq_socket.getsockopt(zmq.SNDHWM)
        for number in range(100):
            sender.send_jpg(f"{number}.jpg", JPEG)
            sender.send_jpg("pi1", JPEG)
        assert sender.zmq_socket.getsockopt(zmq.SNDHWM) == queue


def test_a_hub_subscribes_to_more_senders_by_connect(pool: ThreadPoolExecutor) -> None:
    with (
        raw(zmq.XPUB) as first,
        raw(zmq.XPUB) as second,
    ):
        addresses = []
        for publisher in (first, second):
            publisher.bind(LOCAL)
            addresses.append(publisher.getsockopt_string(zmq.LAST_ENDPOINT))
        with ImageHub(addresses[0], REQ_REP=False) as hub:
            hub.connect(addresses[1])
            hub.zmq_socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000))
            for name, publisher in (("pi1", first), ("pi2", second)):
                publisher.recv()  # the subscription
                publisher.send_multipart([b"rubbish"])
                publisher.send_multipart([header(name), JPEG])
                assert hub.recv_jpg()[0] == name
            with pytest.raises(zmq.ZMQError):
                hub.send_reply()


def test_connect_of_a_replying_hub_says_that_it_does_nothing(hub: ImageHub, caplog: pytest.LogCaptureFixture) -> None:
    hub.connect("tcp://127.0.0.1:1")
    assert caplog.messages == ["connect('tcp://127.0.0.1:1') does nothing: this hub was not made with REQ_REP=False"]


def test_a_signal_handler_may_send_while_its_thread_waits_for_a_reply(
    address: str, sender: ImageSender, pool: ThreadPoolExecutor
) -> None:
    """Nothing of what it interrupts is lost, or sent twice."""
    replies: list[bytes | None] = []
    wanted = threading.Semaphore(0)

    def handle(*_: object) -> None:
        if wanted.acquire(blocking=False):
            replies.append(sender.send_jpg("handler", JPEG))

    def answer(hub: RawHub) -> list[str]:
        labels = []
        for number in range(3):
            waiting, fields, _ = hub.take()
            wanted.release()
            while not hub.waits(0.05):  # a signal just before a system call that waits does not end it
                signal.pthread_kill(main, signal.SIGUSR1)
            route, handlers, _ = hub.take()
            hub.reply(route, b"handler's")
            until(lambda number=number: len(replies) > number)  # type: ignore[misc]
            hub.reply(waiting, b"program's")
            labels += [fields["msg"], handlers["msg"]]
        return labels

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with RawHub(address) as hub:
            labels = pool.submit(answer, hub)
            assert [sender.send_jpg("program", JPEG) for _ in range(3)] == 3 * [b"program's"]
            assert labels.result(WAIT_S) == 3 * ["program", "handler"]
            assert not hub.waits()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert replies == 3 * [b"handler's"]


# -- opening and closing


@pytest.mark.parametrize("kind", [ImageHub, ImageSender])
@pytest.mark.parametrize("req_rep", [True, False])
def test_a_malformed_address_is_told_and_leaves_nothing_open(kind: type[Any], req_rep: bool) -> None:
    before = open_descriptors()
    with pytest.raises(TransportError, match="rubbish"):
        kind("rubbish", REQ_REP=req_rep)
    until(lambda: open_descriptors() <= before)


def test_a_port_in_use_is_told(hub: ImageHub, address: str) -> None:
    with pytest.raises(TransportError, match=f"cannot listen on {address}: Address already in use") as caught:
        ImageHub(address)
    assert isinstance(caught.value, zmq.ZMQError), "as old programs catch it"
    assert caught.value.errno == zmq.EADDRINUSE


def test_closing_waits_for_nobody(address: str) -> None:
    publisher = ImageSender(LOCAL, REQ_REP=False)
    subscriber = ImageHub(address, REQ_REP=False)
    sender, hub = ImageSender(address), ImageHub(address)
    publisher.send_image("pi1", picture(1, 1000))
    sender.zmq_socket.setsockopt(zmq.RCVTIMEO, 300)
    with pytest.raises(zmq.Again):
        sender.send_image("pi1", picture(1, 1000))
    began = time.monotonic()
    for end in (hub, sender, publisher, subscriber):
        end.close()
        end.close()
        assert end.zmq_socket.closed
    assert time.monotonic() - began < 2


@both
@pytest.mark.parametrize("answered", [True, False])
def test_what_closes_the_socket_and_ends_the_context_by_hand_does_not_hang(
    library: Any, answered: bool, address: str, pool: ThreadPoolExecutor
) -> None:
    sender, hub = library.ImageSender(address), library.ImageHub(address)
    sender.zmq_socket.setsockopt(zmq.LINGER, 0)
    sender.zmq_socket.setsockopt(zmq.RCVTIMEO, round(WAIT_S * 1000) if answered else 300)
    reply = pool.submit(sender.send_image, "pi1", picture(1))
    if answered:
        hub.recv_image()
        hub.send_reply()
        reply.result(WAIT_S)
    else:
        with pytest.raises(zmq.Again):
            reply.result(WAIT_S)
    for end in (sender, hub):
        end.zmq_socket.close(0)
        pool.submit(end.zmq_context.term).result(WAIT_S)
        assert end.zmq_context.closed
        end.close()


def test_after_a_fork_those_of_the_other_process_say_so(sender: ImageSender, hub: ImageHub) -> None:
    published = ImageSender(LOCAL, REQ_REP=False)
    calls = [lambda end=end: end.send_jpg("pi1", JPEG) for end in (sender, published)]
    said = said_after_fork(*calls, hub.recv_jpg, hub.recv_image, *(end.close for end in (sender, published, hub)))
    assert said == [
        f"the {what} was made before this process was forked: make one in each"
        for what in ("sender", "sender", "hub", "hub")
    ]
    published.close()


def test_hubs_that_come_and_go_are_asked_again(address: str, sender: ImageSender, pool: ThreadPoolExecutor) -> None:
    for number in range(4):
        reply = pool.submit(sender.send_image, "pi1", picture(number))
        if number % 2:  # this one leaves between request and reply
            with RawHub(address) as leaving:
                assert leaving.take()[2][0] == number
        with ImageHub(address) as hub:
            label, image = hub.recv_image()
            hub.send_reply(b"%d" % number)
            assert reply.result(WAIT_S) == b"%d" % number
        assert (label, image[0, 0]) == ("pi1", number)
