"""Sessions that share the library's protocol are read as if each had one of its own, and hold none at rest."""

from __future__ import annotations

import gc
from contextlib import AsyncExitStack
from typing import Final

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.protocol import CLOSED, CONNECTING, OPEN

from bridge.adapters.websocket.handshake import Protocol
from bridge.adapters.websocket.limits import SocketLimits
from bridge.adapters.websocket.listening import listen
from bridge.adapters.websocket.parsers import Parsers, at_rest
from bridge.adapters.websocket.pongs import follow
from tests.support.clients import client, masked, opening, raw_client
from tests.support.loops import on_both_loops
from tests.support.websocket_host import Host

Event = tuple[int, bytes, bool]
LIMITS: Final = SocketLimits()

PIECES: Final = st.one_of(
    st.builds(
        lambda opcode, payload, fin: masked(opcode, payload, fin=fin),
        st.sampled_from((0, 1, 2, 3, 8, 9, 10)),
        st.one_of(st.binary(max_size=8), st.integers(126, 200).map(bytes)),
        st.booleans(),
    ),
    st.just(masked(1, b"hello")),
    st.just(masked(9, b"ping")),
    st.just(masked(1, b"be", fin=False) + masked(10, b"") + masked(0, b"gun")),
    st.just(b"\x81\x05hello"),
    st.just(masked(2, bytes(65_537))),
    st.binary(max_size=3),
)


def read(protocol: Protocol, data: bytes) -> tuple[list[Event], list[bytes]]:
    """What comes of these bytes: the events, and what is to be sent."""
    protocol.receive_data(data)
    events = [
        (int(e.opcode), bytes(e.data), e.fin) for e in protocol.events_received() if isinstance(e, Frame)
    ]
    return events, protocol.data_to_send()


@given(st.lists(st.tuples(st.integers(0, 2), PIECES, st.integers(1, 300)), max_size=20))
def test_each_session_is_read_as_if_it_had_a_protocol_of_its_own(sent: list[tuple[int, bytes, int]]) -> None:
    parsers = Parsers(LIMITS)
    own = [Protocol(OPEN, LIMITS) for _ in range(3)]
    lent: list[Protocol | None] = [None] * 3
    place: list[tuple[bytes, int]] = [(b"", 0)] * 3
    for who, piece, cut in sent:
        size = cut if len(piece) < 1000 else 40_000
        for at in range(0, len(piece), size):
            part = piece[at : at + size]
            place[who] = follow(*place[who], part)
            protocol = lent[who] or parsers.take()
            assert read(protocol, part) == read(own[who], part)
            assert protocol.state is own[who].state
            lent[who] = protocol
            if place[who] == (b"", 0) and at_rest(protocol):
                parsers.give_back(protocol)
                lent[who] = None


def test_one_that_was_given_back_is_taken_again_and_never_by_two() -> None:
    parsers = Parsers(LIMITS)
    first, second = parsers.take(), parsers.take()
    assert first is not second
    parsers.give_back(first)
    parsers.give_back(second)
    assert parsers.take() is first
    assert parsers.take() not in (first, second)


def test_what_is_not_done_is_not_at_rest() -> None:
    assert not at_rest(Protocol(CONNECTING, LIMITS))
    for data in (masked(1, b"", fin=False), masked(8, b""), b"\x81\x05hello", masked(1, b"unread")):
        protocol = Protocol(OPEN, LIMITS)
        assert at_rest(protocol)
        protocol.receive_data(data)
        assert not at_rest(protocol)
    unsent = Protocol(OPEN, LIMITS)
    unsent.send_ping(b"")
    assert not at_rest(unsent)
    left = Protocol(OPEN, LIMITS)
    left.receive_eof()
    assert left.state is CLOSED
    assert not at_rest(left)


@on_both_loops
async def test_sessions_at_rest_hold_no_protocol_and_none_has_read_a_token() -> None:
    host = Host()
    gc.collect()
    before = {id(one) for one in gc.get_objects()}
    async with (
        listen("127.0.0.1", 0, host, readiness=host.readiness) as server,
        AsyncExitStack() as stack,
        raw_client(server.port) as hasty,
    ):
        for number in range(5):
            peer = await stack.enter_async_context(client(server.port, f"secret-{number}"))
            await peer.send("hello")
        # The beginning of a frame comes with the request: its protocol is kept until the frame is whole.
        hello = masked(1, b"hello")
        hasty.send(opening("/ws?token=secret-5") + hello[:3])
        await hasty.read_until(b"\r\n\r\n")
        hasty.send(hello[3:])
        await host.until(lambda: sum(len(seen.messages) for seen in host.sessions) == 6)
        ours = [one for one in gc.get_objects() if isinstance(one, Protocol) and id(one) not in before]
        assert len(ours) == 1
        assert not ours[0].accept_called
