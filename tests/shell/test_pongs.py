"""Pongs are read as the library reads them, wherever the peer's bytes are cut."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from bridge.adapters.websocket.pongs import follow, only_pongs

frames = st.tuples(
    st.sampled_from((Opcode.TEXT, Opcode.PONG, Opcode.PING, Opcode.BINARY)),
    st.one_of(
        st.binary(max_size=8),
        st.binary(min_size=4, max_size=4),
        st.integers(126, 300).map(bytes),
        st.integers(65_536, 65_600).map(bytes),
    ),
)


def frame(opcode: Opcode, payload: bytes) -> bytes:
    """A frame as a client sends it."""
    if opcode in (Opcode.PONG, Opcode.PING):
        payload = payload[:125]
    return Frame(opcode, payload).serialize(mask=True)


@given(st.lists(frames, max_size=5), st.lists(st.integers(1, 70_000), max_size=8))
def test_the_place_in_a_frame_is_known_after_any_read(
    sent: list[tuple[Opcode, bytes]], cuts: list[int]
) -> None:
    made = [frame(*one) for one in sent]
    text = b"".join(made)
    begins = {sum(map(len, made[:count])) for count in range(len(made) + 1)}
    head, missing, at = b"", 0, 0
    for cut in (*cuts, len(text)):
        head, missing = follow(head, missing, text[at : at + cut])
        at = min(len(text), at + cut)
        assert (not head and not missing) == (at in begins)


@given(st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=5))
def test_a_read_of_answers_to_our_pings_is_taken_whole(payloads: list[bytes]) -> None:
    assert only_pongs(b"".join(frame(Opcode.PONG, payload) for payload in payloads)) == payloads


def test_anything_else_is_left_to_the_library() -> None:
    pong = frame(Opcode.PONG, b"ping")
    assert only_pongs(pong) == [b"ping"]
    unmasked = Frame(Opcode.PONG, b"ping").serialize(mask=False)
    for other in (
        pong[:-1],
        pong + b"\x8a",
        pong + frame(Opcode.TEXT, b"ping"),
        frame(Opcode.PING, b"ping"),
        frame(Opcode.PONG, b"longer"),
        frame(Opcode.PONG, b""),
        unmasked + os.urandom(4),
        b"\x0a" + pong[1:],
        b"\xca" + pong[1:],
    ):
        assert only_pongs(other) == []
