"""The bounds of a connection: its handshake, its messages, its rate."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

BURST_SECONDS: Final = 1.0
"""Frames of so many seconds may come at once."""
MINUTE: Final = 60.0


class SocketLimits(NamedTuple):
    """The bounds of a connection."""

    handshake_seconds: float = 10.0
    """For a whole opening request, and the decision on it."""
    header_bytes: int = 40 * 1024
    """Of an opening request with its headers, give or take one read: enough for a long token and as much in cookies."""
    message_bytes: int = 64 * 1024
    """Of one message from a client. A larger one closes the connection with 1009."""
    frames_per_second: float = 2000.0
    """Frames that a client may send on average. One that sends more is not read for a while."""
    frames_per_minute: float = 60_000.0
    """The same over a minute. One that sends more is closed with 4429."""
    connections: int = 1 << 30
    """Connections in any state. More are turned away with 503."""
    proxies: Sequence[IPv4Network | IPv6Network] = ()
    """Networks whose X-Forwarded-For is believed."""

    @property
    def line_bytes(self) -> int:
        """Of the request line, and of each header line; of a first message with a token, too. By default enough for a
        token of 16 KiB, as single sign-on makes them."""
        return self.header_bytes // 2
