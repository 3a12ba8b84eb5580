"""What publishers ask for: push requests, their targets, recalls, and the properties of AMQP messages."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

import msgspec

from bridge.core.model.outcomes import Proof, Reason

ID_MAX = 128
"""Characters in an id, user, session, topic, tenant, event or collapse key."""
META_KEYS_MAX, META_KEY_CHARS, META_VALUE_CHARS = 16, 64, 256
USERS_MAX = 10_000
"""Users that one `to.users` may name, and (request, user) pairs that one message may name."""
BATCH_MAX = 1_000
"""Requests in one JSON array."""
MESSAGE_BYTES_MAX: Final = 1024 * 1024
"""Bytes of one AMQP message's body."""
ROUTING_KEY_BYTES = 255
"""Bytes of an AMQP routing key."""
NO_USER: Final = ""
"""The user part of a key when no user was known; the `delivery` view shows it as null."""


class PushKey(NamedTuple):
    """The idempotency key of a request."""

    tenant: str
    push_id: str


class ToUser(msgspec.Struct, frozen=True, gc=False):
    """Every session of one user."""

    user: str


class ToUsers(msgspec.Struct, frozen=True, gc=False):
    """Every session of several users; no user is named twice."""

    users: tuple[str, ...]


class ToSession(msgspec.Struct, frozen=True, gc=False):
    """One session."""

    session: str


class ToAll(msgspec.Struct, frozen=True, gc=False):
    """Every session that is open when the push is taken."""


class ToTopic(msgspec.Struct, frozen=True, gc=False):
    """Every session that is subscribed to a topic when the push is taken."""

    topic: str


Target: TypeAlias = ToUser | ToUsers | ToSession | ToAll | ToTopic


class Encoding(enum.Enum):
    """What `PushRequest.data` is."""

    JSON = "json"
    """UTF-8 JSON text, checked, exactly as it came."""
    TEXT = "text"
    """UTF-8 text, checked: a JSON string in the envelope, itself in bare mode."""
    BYTES = "bytes"
    """Any bytes: base64 with `"encoding": "base64"` in the envelope, a binary frame in bare mode."""

    # The library's hashes the name, in Python.
    __hash__ = object.__hash__


class Timestamp(int):
    """A header of AMQP's type timestamp: whole seconds since 1970. An integer of any other type is a plain int."""


class Properties(msgspec.Struct, frozen=True, gc=False):
    """The AMQP properties of a message that the bridge uses, and its headers as the broker gave them.

    Header values are what AMQP tables hold: str, int, Timestamp, float, bool, bytes, None, lists and dicts of
    these. Bytes that are not UTF-8 are lone surrogates in the text (PEP 383), so that a correlation id goes back as it
    came. `app_id` has none: rows have it.
    """

    message_id: str = ""
    correlation_id: str = ""
    reply_to: str = ""
    app_id: str = ""
    user_id: str = ""
    content_type: str = ""
    content_encoding: str = ""
    expiration: str = ""
    timestamp: float | None = None
    """Wall-clock seconds; AMQP timestamps have no fraction."""
    headers: Mapping[str, object] = {}
    redelivered: bool = False
    delivery_count: int = 0
    """How often the broker has delivered this message before (`x-delivery-count` of a quorum queue)."""
    priority: int | None = None


class Fallback(msgspec.Struct, frozen=True, gc=False):
    """What is published for a push that is still unproven some time after its publication."""

    after: float
    """Seconds after the publication of the push."""
    routing_key: str
    """Of the message on the exchange `push.fallback`: 1 to `ROUTING_KEY_BYTES` bytes."""


class PushRequest(msgspec.Struct, frozen=True, gc=False):
    """A checked push request v1. Whoever makes one has checked every field against the contract."""

    id: str
    target: Target
    data: bytes
    event: str = "message"
    encoding: Encoding = Encoding.JSON
    confirm: Proof = Proof.RECEIVED
    excluded: frozenset[str] = frozenset()
    """Session ids that do not get it."""
    tenant: str = ""
    meta: bytes = b""
    """The JSON object `meta`, compact and without a key that occurs twice, or empty."""
    generated_id: bool = False
    """The producer gave no id. Repeats can't be recognized: the push is at-least-once, and I1 does not cover it."""
    ttl: float = 0.0
    """Seconds after its publication for which it is kept for a user who is absent or gives no proof."""
    collapse_key: str = ""
    """While it is unproven, a newer push to the same user with this key replaces it; empty: no key."""
    ack_within: float = 0.0
    """Seconds that an `acked` push waits for its ack; 0: BRIDGE_CONFIRM_TIMEOUT."""
    first_device: bool = False
    """The first ack takes it back from the user's other sessions."""
    retain: bool = False
    """It is the last value of its topic and event: who subscribes later gets it first."""
    fallback: Fallback | None = None
    """What is published for each of its users who has not got it by then."""
    deliver_at: float = 0.0
    """Wall-clock seconds before which it is not delivered; 0: at once."""

    @property
    def key(self) -> PushKey:
        """The idempotency key."""
        return PushKey(self.tenant, self.id)


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A request, or one element of a batch, that ends as a `rejected` row and a message in `push.dead`."""

    id: str
    """The request's own id if it had a usable one, otherwise `sha256-<hex>` of body and properties."""
    reason: Reason
    detail: str
    body: bytes
    """The bytes of the element or the message; they are published to `push.dead`."""
    tenant: str = ""
    event: str = ""


class Recall(msgspec.Struct, frozen=True, gc=False):
    """A request to withdraw pushes: those of one id, or those of one user with one collapse key."""

    tenant: str = ""
    push_id: str = ""
    """The push to withdraw, for every user; empty where `user` and `collapse_key` name the pushes."""
    user: str = ""
    collapse_key: str = ""
