"""The bytes of a session's frames on the wire (RFC 6455 5.2): a server's frames are not masked."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from bridge.core.ports.sockets import Frame

_FIN: Final = 0x80
_TEXT, _BINARY, _PING = _FIN | 0x1, _FIN | 0x2, _FIN | 0x9


def frame_header(first_byte: int, size: int) -> bytes:
    """The header of an unmasked frame of a server with so many bytes of payload."""
    if size < 126:
        return bytes((first_byte, size))
    if size < 1 << 16:
        return struct.pack("!BBH", first_byte, 126, size)
    return struct.pack("!BBQ", first_byte, 127, size)


class Wire:
    """Makes those bytes. A push to many sessions is the same frame for all that are in one mode: it remembers the last
    two frames, so that the bytes of such a push are made, and are in memory, once."""

    __slots__ = ("_bytes", "_earlier", "_earlier_bytes", "_last")

    def __init__(self) -> None:
        self._last = self._earlier = Frame(b"")
        self._bytes = self._earlier_bytes = b"\x81\x00"

    def bytes_of(self, frames: Sequence[Frame], ping: bytes | None) -> bytes:
        """The bytes of these frames, then of a ping with this payload of at most 125 bytes (RFC 6455 5.5)."""
        data = self._of_one(frames[0]) if len(frames) == 1 else b"".join([_made(frame) for frame in frames])
        return data if ping is None else b"%b%c%c%b" % (data, _PING, len(ping), ping)

    def _of_one(self, frame: Frame) -> bytes:
        if frame is self._last:
            return self._bytes
        if frame is self._earlier:
            return self._earlier_bytes
        self._earlier, self._earlier_bytes = self._last, self._bytes
        self._last, self._bytes = frame, _made(frame)
        return self._bytes


def _made(frame: Frame) -> bytes:
    payload = frame.payload
    return frame_header(_BINARY if frame.binary else _TEXT, len(payload)) + payload
