"""Stock imagezmq 1.2.0 at the other end, in processes of their own: both directions, both patterns, both formats."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import streamer
from tests.conftest import until
from tests.interop.pictures import ARRAYS, JPEGS, describe, describe_jpeg
from tests.peers import WAIT_S, Program, listener

if TYPE_CHECKING:
    from collections.abc import Iterator

RECEIVE, SEND = "tests.interop.receive_pictures", "tests.interop.send_pictures"
EXPECTED = {"image": [describe(array) for array in ARRAYS], "jpg": [describe_jpeg(memoryview(jpeg)) for jpeg in JPEGS]}

modes = pytest.mark.parametrize("kind", ["image", "jpg"])
patterns = pytest.mark.parametrize("pattern", ["req", "pub"])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def free_endpoints(count: int = 1) -> list[str]:
    with ExitStack() as stack:
        return [stack.enter_context(listener())[1] for _ in range(count)]


def receiver(stack: ExitStack, whose: str, pattern: str, kind: str, *addresses: str) -> Program:
    program = stack.enter_context(Program("-m", RECEIVE, whose, pattern, kind, *addresses))
    assert program.line(0) == "ready"
    return program


def sender(stack: ExitStack, whose: str, address: str, pattern: str, kind: str, *name_and_frames: str) -> Program:
    return stack.enter_context(Program("-m", SEND, whose, address, pattern, kind, *name_and_frames))


@patterns
@modes
@pytest.mark.parametrize(("from_", "to"), [("stock", "ours"), ("ours", "stock"), ("ours", "ours")])
def test_the_examples_programs_understand_each_other(
    stack: ExitStack, from_: str, to: str, pattern: str, kind: str
) -> None:
    (address,) = free_endpoints()
    # With req a sender without end, since a stock one may hang at exit; with pub too, until the subscriber is there.
    sending = sender(stack, from_, address, pattern, kind, "pi1")
    receiving = receiver(stack, to, pattern, kind, address)
    expected = [f"pi1 {text}" for text in EXPECTED[kind]]
    if pattern == "req":
        receiving.line(len(expected))
        assert receiving.lines[1 : len(expected) + 1] == expected
        assert sending.line(1) == "0 b'OK'"
    else:
        until(lambda: set(receiving.lines[1:]) >= set(expected), WAIT_S)
        assert set(receiving.lines[1:]) == set(expected)
        assert sending.line(1) == "0 None"


@pytest.mark.parametrize(("from_", "to", "kind"), [("stock", "ours", "jpg"), ("ours", "stock", "image")])
def test_eight_senders_and_one_hub(stack: ExitStack, from_: str, to: str, kind: str) -> None:
    names = [f"pi{number}" for number in range(1, 9)]
    (address,) = free_endpoints()
    receiving = receiver(stack, to, "req", kind, address)
    for name in names:
        sender(stack, from_, address, "req", kind, name)

    def all_came() -> bool:
        came = set(receiving.lines[1:])
        return all(f"{name} {text}" in came for name in names for text in EXPECTED[kind])

    until(all_came, 30)


@patterns
@modes
def test_our_hub_receives_from_stock_senders(stack: ExitStack, pattern: str, kind: str) -> None:
    addresses = free_endpoints(2)
    if pattern == "req":
        hub = stack.enter_context(streamer.Hub(addresses[0]))
        sending = [sender(stack, "stock", addresses[0], pattern, kind, name) for name in ("pi1", "pi2")]
    else:
        hub = stack.enter_context(streamer.Hub(None, subscribe=addresses))
        sending = [
            sender(stack, "stock", address, pattern, kind, name)
            for address, name in zip(addresses, ("pi1", "pi2"), strict=True)
        ]
    came = {"pi1": set[str](), "pi2": set[str]()}
    for frame in hub:
        came[frame.camera].add(describe_jpeg(memoryview(frame.jpeg)) if frame.is_jpeg else describe(frame.image))
        if all(texts >= set(EXPECTED[kind]) for texts in came.values()):
            break
    assert all(texts == set(EXPECTED[kind]) for texts in came.values())
    replies = {line.partition(" ")[2] for program in sending for line in program.lines[1:]}
    assert replies == {"b'OK'" if pattern == "req" else "None"}


@patterns
@modes
def test_our_sender_is_understood_by_a_stock_hub(stack: ExitStack, pattern: str, kind: str) -> None:
    (address,) = free_endpoints()
    receiving = receiver(stack, "stock", pattern, kind, address)
    arguments = {"hubs": address} if pattern == "req" else {"publish": address}
    ours = stack.enter_context(streamer.Sender(name="pi1", **arguments))  # type: ignore[arg-type]
    for array, jpeg, text in zip(ARRAYS, JPEGS, EXPECTED[kind], strict=True):

        def arrived(picture: object = jpeg if kind == "jpg" else array, expected: str = f"pi1 {text}") -> bool:
            ours.send(picture)  # type: ignore[arg-type]
            return receiving.lines[-1] == expected

        until(arrived, WAIT_S)
    if pattern == "req":
        until(lambda: ours.statistics.answered == ours.statistics.frames)


@pytest.mark.parametrize("whose", ["stock", "ours"])
def test_our_image_sender_survives_hubs_that_are_killed(stack: ExitStack, whose: str) -> None:
    (address,) = free_endpoints()
    sending = sender(stack, "ours", address, "req", "image", "pi1")
    for _ in range(2):
        hub = receiver(stack, whose, "req", "image", address)
        hub.line(10)
        hub.signal(signal.SIGKILL)  # at any point, as often as not between request and reply
        hub.end()
    assert sending.process.poll() is None
    replied = [int(line.partition(" ")[0]) for line in sending.lines[1:]]
    assert replied == list(range(len(replied)))


# Takes one picture and never replies.
HALF_A_HUB = """
import sys, imagezmq
hub = imagezmq.ImageHub(sys.argv[1])
print(hub.recv_jpg()[0], flush=True)
sys.stdin.read()
"""


def test_our_image_sender_goes_on_when_the_hub_is_killed_between_request_and_reply(stack: ExitStack) -> None:
    (address,) = free_endpoints()
    sending = sender(stack, "ours", address, "req", "jpg", "pi1", "3")
    for _ in range(2):
        half = stack.enter_context(Program("-c", HALF_A_HUB, address))
        assert half.line(0) == "pi1"
        half.signal(signal.SIGKILL)
        half.end()
    assert sending.lines == ["ready"]
    hub = receiver(stack, "stock", "req", "jpg", address)
    assert sending.end() == 0
    assert sending.lines == ["ready", "0 b'OK'", "1 b'OK'", "2 b'OK'"]
    assert hub.lines[1:] == [f"pi1 {text}" for text in EXPECTED["jpg"][:3]]


def test_our_publishers_and_a_stock_hub_find_each_other_again(stack: ExitStack) -> None:
    addresses = free_endpoints(2)
    receiving = receiver(stack, "stock", "pub", "jpg", *addresses)
    for address, name in zip(addresses, ("pi1", "pi2"), strict=True):
        for _ in range(2):
            publishing = sender(stack, "ours", address, "pub", "jpg", name)
            before = len(receiving.lines)
            until(lambda: any(line.startswith(name) for line in receiving.lines[before:]), WAIT_S)  # noqa: B023
            publishing.signal(signal.SIGKILL)
            publishing.end()


@pytest.mark.parametrize("situation", ["no hub", "hub has gone", "hub is stopped"])
def test_ctrl_c_ends_our_image_sender(stack: ExitStack, situation: str) -> None:
    (address,) = free_endpoints()
    hub = None if situation == "no hub" else receiver(stack, "stock", "req", "image", address)
    sending = sender(stack, "ours", address, "req", "image", "pi1")
    assert sending.line(0) == "ready"
    if hub:
        assert sending.line(3)
        hub.signal(signal.SIGSTOP if situation == "hub is stopped" else signal.SIGKILL)
        if situation == "hub has gone":
            hub.end()
    time.sleep(0.2)  # it shall be waiting, whatever for
    began = time.monotonic()
    sending.signal(signal.SIGINT)
    sending.end()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("pattern", ["req", "pub"])
def test_ctrl_c_ends_our_image_hub(stack: ExitStack, pattern: str) -> None:
    receiving = receiver(stack, "ours", pattern, "image", *free_endpoints())
    began = time.monotonic()
    receiving.signal(signal.SIGINT)
    receiving.end()
    assert time.monotonic() - began < 2
