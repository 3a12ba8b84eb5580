"""The limits of the decoder, and its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from bridge.core.model.pushes import PushRequest, Rejected


class Limits(NamedTuple):
    """Limits of the contract that an operator may change."""

    max_data_bytes: int = 65536
    """Bytes of `data` as received: the JSON text, or the body in payload-only mode."""
    max_ttl: float = 30 * 86400.0
    """Seconds that a push may be kept: as long as its row. 0: nothing is kept, and every other ttl is refused."""


class Decoded(NamedTuple):
    """The requests of one message, in its order; never empty."""

    requests: Sequence[PushRequest | Rejected]
    published_at: float
    """Wall-clock seconds."""
    traceparent: str
    """W3C Trace Context, or empty. A malformed one is ignored, as the standard asks (section 3.2)."""
    batch_id: str = ""
    """The id that all requests of a batch share: the message_id where that is an id, else one made of the message.
    Empty where the message is no batch."""


DEFAULT_LIMITS: Final = Limits()
