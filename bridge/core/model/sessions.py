"""What is known of a client: its handshake, its token, and why its session was closed."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from bridge.core.model.ledger import NO_DEVICE, Device

SSE_PATH: Final = "/sse"
"""Where a session is a stream of events; everywhere else it is a WebSocket."""


class CloseReason(enum.Enum):
    """Why a session is closed: (code, word, may the client reconnect, seconds it should wait at least).

    Codes 1000-2999 are those of RFC 6455 7.4.1 and its registry. Codes 4400-4499 are ours, for private use.
    """

    GOING_AWAY = (1001, "going_away", True, 1.0)
    DISCONNECTED = (1001, "disconnected", True, 1.0)
    RESTART = (1012, "restart", True, 1.0)
    MOVE_ON = (1012, "move_on", True, 0.0)
    TRY_LATER = (1013, "try_later", True, 10.0)
    TOKEN_EXPIRED = (4401, "token_expired", False, 0.0)
    TOKEN_REFUSED = (4401, "token_refused", False, 0.0)
    AUTH_TIMEOUT = (4401, "auth_timeout", True, 1.0)
    REVOKED = (4403, "revoked", False, 0.0)
    TOO_SLOW = (4408, "too_slow", True, 5.0)
    REPLACED = (4409, "replaced", False, 0.0)
    OVER_LIMIT = (4429, "over_limit", False, 0.0)
    VANISHED = (1006, "vanished", True, 0.0)
    CUT_OFF = (1006, "cut_off", True, 1.0)

    def __init__(self, code: int, word: str, reconnect: bool, retry_after: float) -> None:
        self.code = code
        self.word = word
        self.reconnect = reconnect
        """Whether the same client with the same token may come back."""
        self.retry_after = retry_after
        """Seconds; the bridge spreads them out where many sessions close at once."""


class Claims(msgspec.Struct, frozen=True):
    """Who a client is and until when: what a checked token says, or what the connect hook has answered."""

    user: str
    expires_at: float
    token_id: str = ""
    """The token's `jti`, empty where it has none. What the hook has let in has an id of its own."""
    issued_at: float | None = None
    """When the token was made, or the hook asked."""
    asked: bytes | None = None
    """What the hook was asked, word for word, so that it can be asked again; None for a token. It holds cookies."""
    topics: tuple[str, ...] = ()
    """Names of topics that are subscribed at once."""
    subscribe: tuple[str, ...] = ()
    """Patterns of the topics that may be subscribed (`bridge.core.contract.patterns`)."""
    publish: tuple[str, ...] = ()
    """Patterns of the events and topics that may be published."""

    def __repr__(self) -> str:
        return f"Claims({self.user!r}, expires_at={self.expires_at})"


class Mode(enum.StrEnum):
    """How a session's frames look."""

    ENVELOPE = "bridge.v1.json"
    """The subprotocol with typed JSON frames, acks and a welcome."""
    BARE = "bridge.bare"
    """Each frame is the data of one push. Clients that offer no subprotocol get this mode, too."""
    SSE = "sse"
    """The frames of the envelope as server-sent events, for clients whose network lets no WebSocket through. Such a
    client has a request for each thing that it says."""


class Handshake(msgspec.Struct, frozen=True):
    """What a client asked for in its opening handshake (RFC 6455 4.2.1), as the adapter read it."""

    path: str
    query: Mapping[str, Sequence[str]]
    origin: str | None
    authorization: str | None
    subprotocols: tuple[str, ...]
    cookie: str | None = None
    """The header Cookie."""
    device: Device = NO_DEVICE
    """Where it comes from."""
    headers: Mapping[str, str] = {}
    """Those that the connect hook gets, by their names in lower case; several lines of one are joined."""


class Said(msgspec.Struct, frozen=True):
    """What the client of a session in the mode `sse` has said with a request of its own."""

    key: str
    """Of its session: what the welcome has told nobody else."""
    pong: bytes | None = None
    """The payload of the ping that it answers."""
    ack: str | None = None
    """The id of the push that its application has."""
    tenant: str | None = None
    """Of that push."""

    def __repr__(self) -> str:
        return f"Said(pong={self.pong!r}, ack={self.ack!r})"


class Grant(msgspec.Struct, frozen=True):
    """A handshake that opens a session."""

    claims: Claims | None
    """None: nobody has opened a session yet, the token is to come as the first message."""
    mode: Mode
    subprotocol: str | None
    """The subprotocol in the answer; None where the client offered none."""
    last: str | None = None
    """The id of the last push the client has seen; None unless it asks to resume."""
    device: Device = NO_DEVICE
    granted_at: float = 0.0
    """Unix seconds. Taken before the client hears of it: of two sessions that it opens one after the other, at whatever
    nodes, the first is the older one."""


class Refusal(msgspec.Struct, frozen=True):
    """A handshake that is refused with an HTTP status."""

    status: int
    why: str
    """A fixed word for metrics and logs."""
    text: str
    """A sentence for people, in the answer and in the log. It quotes nothing that the client sent."""
    told: str = ""
    """The word for the client where `why` says more of the bridge than `text` does."""

    @property
    def word(self) -> str:
        """The word in the answer."""
        return self.told or self.why
