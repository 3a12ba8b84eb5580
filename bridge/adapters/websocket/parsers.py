"""Lend the library's protocol to a connection while its peer is in the middle of something.

The library's protocol takes more memory than all the rest of a session: its parser's generators, its buffers, its
attributes. But between two messages of an open session it is in the same state for all: OPEN, and the next byte begins
a frame. So a session at rest has none. It takes one when bytes come or when it closes, and gives it back when it is at
rest again. That is so at the end of nearly every read, so one in reserve is enough.
"""

from __future__ import annotations

from websockets.frames import CloseCode
from websockets.protocol import OPEN, State

from bridge.adapters.websocket.handshake import Protocol
from bridge.adapters.websocket.limits import SocketLimits


def at_rest(protocol: Protocol) -> bool:
    """Whether a connection whose parser stands where a frame begins (see `pongs.follow`) is OPEN, between two messages,
    and has handed over all that it read and all that it has to send. One that waits for a first message with a token is
    not: its bound for a message is its own."""
    return (
        protocol.state is OPEN
        and protocol.current_size is None
        and protocol.max_message_size == protocol.limits.message_bytes
        and not protocol.reader.buffer
        and not protocol.events
        and not protocol.writes
    )


def forget(protocol: Protocol) -> None:
    """Nothing will be read with it: break the circle of a parser and its protocol, so that both are freed at once."""
    protocol.parser.close()


def ending(protocol: Protocol | None, asked_to_close: bool) -> tuple[int, str]:
    """The close code and reason of a connection that is gone: the peer's, else ours for a fault of the peer, else 1006.

    `asked_to_close`: what we sent was no answer to a fault.
    """
    if protocol is not None and protocol.close_rcvd is not None:
        return int(protocol.close_rcvd.code), protocol.close_rcvd.reason
    if protocol is not None and protocol.close_sent is not None and not asked_to_close:
        return int(protocol.close_sent.code), protocol.close_sent.reason
    return int(CloseCode.ABNORMAL_CLOSURE), ""


class Parsers:
    """The protocol in reserve."""

    __slots__ = ("_limits", "_spare")

    def __init__(self, limits: SocketLimits) -> None:
        self._limits = limits
        self._spare: Protocol | None = self.new(OPEN)

    def new(self, state: State) -> Protocol:
        """One that has read nothing yet: CONNECTING expects a request, OPEN a frame."""
        return Protocol(state, self._limits)

    def take(self) -> Protocol:
        """One that is at rest. It belongs to the caller."""
        spare, self._spare = self._spare, None
        return self.new(OPEN) if spare is None else spare

    def give_back(self, protocol: Protocol) -> None:
        """The caller needs it no more, and it is at rest."""
        if self._spare is None and not protocol.accept_called:
            self._spare = protocol
        else:
            # One that has read a request still holds it, with the token.
            forget(protocol)
