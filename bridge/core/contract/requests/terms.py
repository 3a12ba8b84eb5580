"""What goes into the decoder beside a message, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from bridge.core.model.pushes import PushRequest, Rejected


class Limits(NamedTuple):
    """What an operator may change about the contract."""

    max_data_bytes: int = 65536
    """Bytes of `data` as it came: the JSON text, or the body in payload-only mode."""
    max_ttl: float = 30 * 86400.0
    """Seconds that a push may be kept: as long as its row. 0: nothing is kept here, every other ttl is refused."""


class Decoded(NamedTuple):
    """What one message holds: never empty, in the message's order."""

    requests: Sequence[PushRequest | Rejected]
    published_at: float
    """Wall-clock seconds."""
    traceparent: str
    """W3C Trace Context, or empty: a malformed one is ignored, as that standard asks (section 3.2)."""


DEFAULT_LIMITS: Final = Limits()
