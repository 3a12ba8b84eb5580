"""Tell a broker that refuses from one that is down, by the codes of AMQP 0-9-1 (section "constants")."""

from __future__ import annotations

import re
from typing import Final

from bridge.core.errors import BrokerRefused, BrokerUnavailable

_CODES: Final = {
    "CONTENT_TOO_LARGE": 311,
    "NO_ROUTE": 312,
    "NO_CONSUMERS": 313,
    "CONNECTION_FORCED": 320,
    "INVALID_PATH": 402,
    "ACCESS_REFUSED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_LOCKED": 405,
    "PRECONDITION_FAILED": 406,
    "FRAME_ERROR": 501,
    "SYNTAX_ERROR": 502,
    "COMMAND_INVALID": 503,
    "CHANNEL_ERROR": 504,
    "UNEXPECTED_FRAME": 505,
    "RESOURCE_ERROR": 506,
    "NOT_ALLOWED": 530,
    "NOT_IMPLEMENTED": 540,
    "INTERNAL_ERROR": 541,
}
_NAMED: Final = re.compile(r"(?P<name>[A-Z]+_[A-Z_]+) - ")
_REFUSALS: Final = tuple(f"({code})" for code in (403, 404, 405, 406, 530))
"""Codes of a broker that works and refuses, until somebody changes something."""


def with_code(text: str) -> str:
    """A broker's text with the code of its name, `NOT_FOUND - no queue 'x' (404)`; any other text as it is."""
    found = _NAMED.match(text)
    code = _CODES.get(found["name"]) if found else None
    return text if code is None or text.endswith(f"({code})") else f"{text} ({code})"


def outage(cause: str) -> BrokerUnavailable:
    """The error for a cause: BrokerRefused where it ends with such a code, else BrokerUnavailable."""
    return BrokerRefused(cause) if cause.endswith(_REFUSALS) else BrokerUnavailable(cause)
