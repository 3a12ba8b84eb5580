"""The grammar of AMQP 0-9-1 frames: the numbers that reading and writing share, and the error for a breach of it.

Section 4.2 of the standard, and RabbitMQ's errata for the types of table fields. The layouts (`struct.Struct`) are
not here: each file makes its own, since decoding with imported ones took 6 % longer.
"""

from __future__ import annotations

from typing import Final

from bridge.core.errors import BridgeError

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
END: Final = 0xCE
"""Types of frames, and the octet that ends each."""
SHORT_BYTES_MAX: Final = 255
"""Bytes of a short string: a property, a routing key, a header's name (4.2.5.3)."""

# Class and method in one number.
CONNECTION_CLOSE: Final = 10 << 16 | 50
CONNECTION_BLOCKED: Final = 10 << 16 | 60
CONNECTION_UNBLOCKED: Final = 10 << 16 | 61
CHANNEL_CLOSE: Final = 20 << 16 | 40
BASIC_CONSUME: Final = 60 << 16 | 20
BASIC_CANCEL: Final = 60 << 16 | 30
BASIC_PUBLISH: Final = 60 << 16 | 40
BASIC_RETURN: Final = 60 << 16 | 50
BASIC_DELIVER: Final = 60 << 16 | 60
BASIC_ACK: Final = 60 << 16 | 80
BASIC_REJECT: Final = 60 << 16 | 90
BASIC_NACK: Final = 60 << 16 | 120

# Flags of the properties that a content header has (4.2.6.1), in the order of their values.
FLAG_CONTENT_TYPE: Final = 1 << 15
FLAG_CONTENT_ENCODING: Final = 1 << 14
FLAG_HEADERS: Final = 1 << 13
FLAG_DELIVERY_MODE: Final = 1 << 12
FLAG_PRIORITY: Final = 1 << 11
FLAG_CORRELATION_ID: Final = 1 << 10
FLAG_REPLY_TO: Final = 1 << 9
FLAG_EXPIRATION: Final = 1 << 8
FLAG_MESSAGE_ID: Final = 1 << 7
FLAG_TIMESTAMP: Final = 1 << 6
FLAG_TYPE: Final = 1 << 5
FLAG_USER_ID: Final = 1 << 4
FLAG_APP_ID: Final = 1 << 3


class NotAmqp(BridgeError):
    """The stream broke the grammar of frames; the connection is unusable."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"not AMQP 0-9-1: {problem}")
