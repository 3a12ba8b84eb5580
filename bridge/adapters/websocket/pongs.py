"""Read the pongs that prove pushes without the library's parser, which takes seven times as long: each proof is one.

Only a read that holds nothing but whole pongs to our pings is taken here, and only where a frame begins. The library
gets everything else, and `follow` tells where its parser stands.
"""

from __future__ import annotations

from typing import Final

PING_BYTES: Final = 4
"""Bytes of the payload of our pings, so of every pong that answers one."""
_END_OF_REQUEST: Final = b"\r\n\r\n"
_PONG: Final = 0x8A
"""FIN and the opcode (RFC 6455 5.2)."""
_MASKED: Final = 0x80 | PING_BYTES
_FRAME_BYTES: Final = 2 + 4 + PING_BYTES


def only_pongs(data: bytes) -> list[bytes]:
    """The payloads of the pongs that `data` consists of; empty where it holds anything else, or part of a frame."""
    payloads: list[bytes] = []
    if len(data) % _FRAME_BYTES:
        return payloads
    for at in range(0, len(data), _FRAME_BYTES):
        if data[at] != _PONG or data[at + 1] != _MASKED:
            return []
        mask = int.from_bytes(data[at + 2 : at + 6], "big")
        payloads.append((int.from_bytes(data[at + 6 : at + 10], "big") ^ mask).to_bytes(PING_BYTES, "big"))
    return payloads


def follow(head: bytes, missing: int, data: bytes) -> tuple[bytes, int]:
    """Where the parser stands after `data`: the beginning of a frame whose length is not known yet, and how many bytes
    of a frame are missing. `head` and `missing` are what this returned before; empty and 0 where a frame begins."""
    if missing >= len(data):
        return b"", missing - len(data)
    text = head + data[missing:]
    at, end = 0, len(text)
    while at < end:
        if end - at < 2:
            return text[at:], 0
        size = text[at + 1] & 0x7F
        body = at + 2 + (2 if size == 126 else 8 if size == 127 else 0)
        if body > end:
            return text[at:], 0
        if size > 125:
            size = int.from_bytes(text[at + 2 : body], "big")
        after = body + size + (4 if text[at + 1] & 0x80 else 0)
        if after > end:
            return b"", after - end
        at = after
    return b"", 0


def follow_request(tail: bytes, data: bytes) -> tuple[bytes, int]:
    """As `follow`, while the opening request is read; `tail` is what this returned before.

    A peer may send the beginning of a frame with its request, though it must wait for the answer (RFC 6455 4.1).
    """
    text = tail + data
    end = text.find(_END_OF_REQUEST)
    if end < 0:
        return text[1 - len(_END_OF_REQUEST) :], 0
    return follow(b"", 0, text[end + len(_END_OF_REQUEST) :])
