"""The grammar of AMQP 0-9-1 frames: the numbers that reading and writing share, and the error for a breach of it.

Section 4.2 of the standard, and RabbitMQ's errata for the types of table fields. The layouts (`struct.Struct`) are
not here: each file makes its own, since decoding with imported ones took 6 % longer.
"""

from __future__ import annotations

from bridge.core.errors import BridgeError

METHOD, HEADER, BODY, END = 1, 2, 3, 0xCE
"""Types of frames, and the octet that ends each."""
SHORT_BYTES_MAX = 255
"""Bytes of a short string: a property, a routing key, a header's name (4.2.5.3)."""

# Class and method in one number.
CONNECTION_CLOSE = 10 << 16 | 50
CONNECTION_BLOCKED = 10 << 16 | 60
CONNECTION_UNBLOCKED = 10 << 16 | 61
CHANNEL_CLOSE = 20 << 16 | 40
BASIC_CONSUME = 60 << 16 | 20
BASIC_CANCEL = 60 << 16 | 30
BASIC_PUBLISH = 60 << 16 | 40
BASIC_RETURN = 60 << 16 | 50
BASIC_DELIVER = 60 << 16 | 60
BASIC_ACK = 60 << 16 | 80
BASIC_REJECT = 60 << 16 | 90
BASIC_NACK = 60 << 16 | 120

# Flags of the properties that a content header has (4.2.6.1), in the order of their values.
FLAG_CONTENT_TYPE, FLAG_CONTENT_ENCODING = 1 << 15, 1 << 14
FLAG_HEADERS, FLAG_DELIVERY_MODE, FLAG_PRIORITY = 1 << 13, 1 << 12, 1 << 11
FLAG_CORRELATION_ID, FLAG_REPLY_TO, FLAG_EXPIRATION = 1 << 10, 1 << 9, 1 << 8
FLAG_MESSAGE_ID, FLAG_TIMESTAMP, FLAG_TYPE = 1 << 7, 1 << 6, 1 << 5
FLAG_USER_ID, FLAG_APP_ID = 1 << 4, 1 << 3


class NotAmqp(BridgeError):
    """The stream broke the grammar of frames; the connection is unusable."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"not AMQP 0-9-1: {problem}")
