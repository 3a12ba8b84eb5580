"""One suite for every Socket: the real ones, on both event loops, and the recording one of the core tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

import pytest
import uvloop
from websockets.client import ClientProtocol
from websockets.frames import Frame as WireFrame
from websockets.frames import Opcode
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from bridge.adapters.websocket.listening import listen
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.sockets import Frame, Socket
from tests.support.clients import raw_client
from tests.support.loops import LoopFactory
from tests.support.ports import RecordingSocket
from tests.support.streams import asked
from tests.support.websocket_host import Host

Message = tuple[str, bytes]
"""What a peer saw: `text`, `binary` or `ping`, and the payload."""


class Subject(NamedTuple):
    """A socket, and a way to look at what its peer got: the next so many messages, frames before pings."""

    socket: Socket
    peer_saw: Callable[[int], Awaitable[list[Message]]]


Make = Callable[[], AbstractAsyncContextManager[Subject]]


@asynccontextmanager
async def recording() -> AsyncIterator[Subject]:
    socket = RecordingSocket()

    async def peer_saw(count: int) -> list[Message]:
        frames = [("binary" if f.binary else "text", f.payload) for f in socket.frames]
        seen = frames + [("ping", ping) for ping in socket.pings]
        assert len(seen) == count
        return seen

    yield Subject(socket, peer_saw)


@asynccontextmanager
async def real() -> AsyncIterator[Subject]:
    host = Host()
    async with (
        listen("127.0.0.1", 0, host, readiness=host.readiness, close_grace=0.1) as server,
        raw_client(server.port) as peer,
    ):
        await peer.upgrade()
        protocol = ClientProtocol(parse_uri("ws://test/"), state=OPEN)

        async def peer_saw(count: int) -> list[Message]:
            seen: list[Message] = []
            while len(seen) < count:
                protocol.receive_data(await peer.read_exactly(1))
                for event in protocol.events_received():
                    assert isinstance(event, WireFrame)
                    seen.append((Opcode(event.opcode).name.lower(), bytes(event.data)))
            return seen

        yield Subject((await host.session()).socket, peer_saw)


@asynccontextmanager
async def streaming() -> AsyncIterator[Subject]:
    host = Host()
    async with listen("127.0.0.1", 0, host, readiness=host.readiness, close_grace=0.1) as server:
        peer = await asked(server.port, "GET", "/sse")

        async def peer_saw(count: int) -> list[Message]:
            seen: list[Message] = []
            while len(seen) < count:
                message = await peer.message()
                assert message is not None
                if message.data.startswith('{"type":"ping"'):
                    seen.append(("ping", bytes.fromhex(json.loads(message.data)["payload"])))
                else:
                    seen.append(("text", message.data.encode()))
            return seen

        yield Subject((await host.session()).socket, peer_saw)
        await peer.leave()


SUBJECTS: list[tuple[str, Make, LoopFactory]] = [
    ("recording", recording, asyncio.new_event_loop),
    ("real-asyncio", real, asyncio.new_event_loop),
    ("real-uvloop", real, uvloop.new_event_loop),
    ("stream-asyncio", streaming, asyncio.new_event_loop),
    ("stream-uvloop", streaming, uvloop.new_event_loop),
]


@pytest.fixture(params=SUBJECTS, ids=[name for name, _, _ in SUBJECTS])
def check(request: pytest.FixtureRequest) -> Callable[[Callable[[Subject], Awaitable[None]]], None]:
    """Run a check against one kind of socket."""
    _, make, loop_factory = request.param

    def run(story: Callable[[Subject], Awaitable[None]]) -> None:
        async def told() -> None:
            async with make() as subject:
                await story(subject)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(told())

    return run


Check = Callable[[Callable[[Subject], Awaitable[None]]], None]


def test_frames_arrive_in_order_with_the_ping_behind_them(check: Check) -> None:
    async def story(subject: Subject) -> None:
        frames = [Frame(b"a"), Frame("\u00fc".encode()), Frame(b"")]
        assert subject.socket.write(frames, b"1234")
        assert await subject.peer_saw(4) == [
            ("text", b"a"),
            ("text", "\u00fc".encode()),
            ("text", b""),
            ("ping", b"1234"),
        ]

    check(story)


@pytest.mark.parametrize(
    "check", [one for one in SUBJECTS if one[1] is not streaming], indirect=True, ids=lambda one: one[0]
)
def test_a_binary_frame_is_one(check: Check) -> None:
    """Of streams there are none, and their mode makes none."""

    async def story(subject: Subject) -> None:
        assert subject.socket.write((Frame(b"\xff\x00", binary=True),), None)
        assert await subject.peer_saw(1) == [("binary", b"\xff\x00")]

    check(story)


def test_a_ping_can_go_alone(check: Check) -> None:
    async def story(subject: Subject) -> None:
        assert subject.socket.write((), b"abcd")
        assert await subject.peer_saw(1) == [("ping", b"abcd")]

    check(story)


def test_writing_nothing_is_allowed_and_tells_that_the_socket_is_open(check: Check) -> None:
    async def story(subject: Subject) -> None:
        assert subject.socket.write((), None)
        assert subject.socket.write((Frame(b"x"),), None)
        assert await subject.peer_saw(1) == [("text", b"x")]

    check(story)


def test_an_idle_socket_is_writable_and_buffers_nothing(check: Check) -> None:
    async def story(subject: Subject) -> None:
        assert subject.socket.writable
        assert subject.socket.buffered == 0

    check(story)


def test_after_close_nothing_is_taken_and_further_calls_are_ignored(check: Check) -> None:
    async def story(subject: Subject) -> None:
        socket = subject.socket
        socket.close(CloseReason.RESTART)
        assert not socket.writable
        assert not socket.write((Frame(b"late"),), b"1234")
        socket.close(CloseReason.TOO_SLOW)
        assert socket.buffered >= 0
        socket.abort()
        socket.abort()
        assert not socket.write((), None)

    check(story)


def test_after_abort_nothing_is_taken_and_further_calls_are_ignored(check: Check) -> None:
    async def story(subject: Subject) -> None:
        socket = subject.socket
        socket.abort()
        assert not socket.writable
        assert not socket.write((Frame(b"late"),), b"1234")
        assert socket.buffered == 0
        socket.close(CloseReason.RESTART)
        socket.abort()

    check(story)
