"""What is written of sessions: that they opened, that they have a new token, that they closed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

DEVICE_CHARS = 400
"""Characters that are kept of a client's User-Agent."""


class Device(msgspec.Struct, frozen=True):
    """Where a session came from, as its handshake says it."""

    address: str = ""
    """The address of the client, empty where it is not known."""
    agent: str = ""
    """Its User-Agent: printable, at most `DEVICE_CHARS` characters."""


NO_DEVICE = Device()


class Opened(NamedTuple):
    """A session that has opened. Times are unix seconds."""

    session: str
    user: str
    node: str
    opened_at: float
    mode: str
    device: Device
    token_id: str
    issued_at: float | None
    expires_at: float


class Refreshed(NamedTuple):
    """A session that has a new token."""

    session: str
    token_id: str
    expires_at: float
    former: Sequence[str] = ()
    """Ids of the tokens that it had before, and that may still be good."""


class Closed(NamedTuple):
    """A session that has closed."""

    session: str
    user: str
    node: str
    opened_at: float
    closed_at: float
    code: int | None
    """The close code (RFC 6455 7.4); None where its process died."""
    reason: str
    """A `CloseReason`'s word, `client` where the peer left by itself, `node_died` where its process died."""


class Subscribed(NamedTuple):
    """A session that is subscribed to a topic, or is not any more. The last word of a session on a topic counts; either
    of them replaces a subscription that an earlier session of the user has left behind."""

    session: str
    user: str
    topic: str
    on: bool


class Entries(NamedTuple):
    """What is to be written at once; it is carried out in this order."""

    opened: Sequence[Opened] = ()
    refreshed: Sequence[Refreshed] = ()
    subscribed: Sequence[Subscribed] = ()
    closed: Sequence[Closed] = ()


class Noted(NamedTuple):
    """What the ledger answers to entries that it has committed."""

    revoked: Sequence[str]
    """Sessions whose token is revoked: they are in the ledger, and must be closed."""
    over: Sequence[str]
    """Sessions that are one too many of their user: likewise."""
    unwanted: Sequence[tuple[str, str]]
    """Sessions of this process that must be closed, and a `CloseReason`'s word: somebody wants it, or others took this
    process for dead. Again each time until they are closed."""
