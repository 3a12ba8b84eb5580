"""Read the first message of a client whose token did not come with its handshake: `{"type":"auth","token":...}`."""

from __future__ import annotations

from typing import Literal

import msgspec

from bridge.core.contract.jsontext import BAD_JSON


class _Auth(msgspec.Struct, gc=False):
    # Not a tag, which may be missing.
    type: Literal["auth"]
    token: str


_decode = msgspec.json.Decoder(_Auth).decode


def token_of(data: str | bytes) -> str | None:
    """The token in this message, from a text or a binary frame; None for any other message. Never raises."""
    try:
        return _decode(data).token.strip()
    except BAD_JSON:
        return None
