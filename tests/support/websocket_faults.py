"""What a peer may do wrong on a WebSocket."""

from __future__ import annotations

from tests.support.clients import masked

FAULTS = {
    "too big": (masked(0x1, bytes(65_537)), 1009),
    "too big by its header alone": (b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff", 1009),
    "too big in fragments": (
        masked(0x1, bytes(40_000), fin=False) + masked(0x0, bytes(40_000), fin=False),
        1009,
    ),
    "text that is not UTF-8": (masked(0x1, b"\xff\xfe"), 1007),
    "a lone surrogate": (masked(0x1, b"\xed\xa0\x80"), 1007),
    "a cut character in fragments": (masked(0x1, b"\xe2", fin=False) + masked(0x0, b"\x82"), 1007),
    "not masked": (b"\x81\x01x", 1002),
    "reserved opcode": (masked(0x3, b""), 1002),
    "reserved bit": (b"\xc1\x80" + bytes(4), 1002),
    "a fragmented ping": (masked(0x9, b"", fin=False), 1002),
    "a long ping": (masked(0x9, bytes(126)), 1002),
    "a continuation of nothing": (masked(0x0, b"x"), 1002),
    "a message inside another": (masked(0x1, b"x", fin=False) + masked(0x1, b"y"), 1002),
    "a close frame of one byte": (masked(0x8, b"\x03"), 1002),
    "a close code that is reserved": (masked(0x8, b"\x03\xed"), 1002),
}
