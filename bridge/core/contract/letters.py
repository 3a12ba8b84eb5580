"""What one node sends to another: pushes for sessions there, reports of what became of them, and rings.

A letter is a MessagePack array: the version, who sent it, and its items in their order.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from bridge.core.errors import BridgeError

VERSION: Final = 1


class Word(enum.IntEnum):
    """What a node reports of a push that was forwarded to it."""

    HANDED = 0
    """A session has handed it to its socket."""
    RECEIVED = 1
    """A peer has answered a ping that was sent after it."""
    ACKED = 2
    """An application has sent the ack frame for it."""
    LOST = 3
    """No session will prove it any more, and one had handed it over."""
    UNSENT = 4
    """No session will prove it any more, and none had handed it over."""
    ABSENT = 5
    """No session of its user is here."""
    EXCLUDED = 6
    """Every session of its user that is here is excluded."""


class Forwarded(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """A push for the sessions of some users."""

    number: int
    """By which its sender knows it for the first of these users; the others have the numbers that follow."""
    users: Sequence[str]
    session: str
    """The only session that it is for; empty: it is for all of these users."""
    tenant: str
    push_id: str
    event: str
    encoding: str
    data: bytes
    confirm: int
    excluded: Sequence[str]
    collapse_key: str
    position: int
    expires_at: float | None
    """When its ttl is over, in unix seconds: it is not sent after that. None: it has none, and is in no mailbox."""
    topic: str = ""
    """The topic that it was published to; empty: it is for users. Bridges before topics do not send it, and skip it."""


class Report(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """What became of a push."""

    number: int
    word: Word
    why: str = ""
    """A `Reason`'s word, where the queue of a session was the cause that it was not sent."""
    session: str = ""
    """The session that proved it. Bridges of the version before do not say it, and skip it."""
    unprovable: bool = False
    """With HANDED: see `Offered.handed`. With LOST: nobody waits any more for a client that can't prove it. Bridges
    before streams of events do not say it, and skip it."""
    age: float = 0.0
    """Seconds for which it had waited when its letter was sent. Bridges before reports could wait do not say it, and
    skip it."""


EVERYBODY: Final = ""
"""The user of a ring that is for all of them."""


class Ring(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A push is stored in the mailbox of a user who has sessions there."""

    user: str
    position: int
    delivered: bool = False
    """Another session has proven it: it is not in the mailbox any more, and only for sessions that have resumed.
    Where it is taken back: whether it has a row that says so; if not, a recall names it in flight."""
    push_id: str = ""
    """The push, where it is taken back: it was recalled, or its first ack leaves it to one session. Empty: it is not.
    Bridges of the version before do not send it, and skip it."""
    tenant: str = ""
    """Its tenant."""
    session: str = ""
    """The session that keeps it; empty: none does."""


class Recalled(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """A recall, as `Recall`: every node ends what it owns, and tells its sessions."""

    until: int
    """Pushes that were taken after this position are not meant, however late this comes."""
    tenant: str
    push_id: str
    user: str
    collapse_key: str


class Posted(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """What a client has said with a request that came to another node than its session: see `Said`. Only bridges with
    streams of events have such sessions, so only they get it."""

    key: str
    pong: bytes | None
    ack: str | None
    tenant: str | None

    def __repr__(self) -> str:
        return f"Posted(pong={self.pong!r}, ack={self.ack!r})"


Item: TypeAlias = Forwarded | Report | Ring | Recalled | Posted


class Post(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A letter."""

    version: int
    boot: str
    """The process that sends it."""
    items: Sequence[Item]
    had: int = 0
    """The pushes of the one that it is for are here up to this number; 0: none, or it is from a bridge before this was
    said, which skips it."""
    number: int = 0
    """Of the letters with reports to the one that it is for; 0: it has none, or as above."""
    read: int = 0
    """The letters with reports of that one are read up to this number; 0: none, or as above."""


class _Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    version: int


class NotUnderstood(BridgeError):
    """A letter that this version can't read."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"a letter from another node can't be read: {why}")


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Post).decode
_version = msgspec.msgpack.Decoder(_Envelope).decode


def encode_letter(boot: str, items: Sequence[Item], had: int = 0, number: int = 0, read: int = 0) -> bytes:
    """A letter from this process; see `Post`."""
    return _encode(Post(VERSION, boot, items, had, number, read))


def decode_letter(body: bytes) -> Post:
    """The letter; raises NotUnderstood."""
    try:
        version = _version(body).version
        if version != VERSION:
            raise NotUnderstood(f"its version is {version}, and this bridge speaks version {VERSION}")
        return _decode(body)
    except msgspec.MsgspecError as error:
        raise NotUnderstood(str(error)) from error
