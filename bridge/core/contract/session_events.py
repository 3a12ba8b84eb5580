"""The events on push.sessions: a session has opened, or closed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from bridge.core.contract.jsontext import encode
from bridge.core.model.ledger import Closed, Opened

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def session_event_word(event: Opened | Closed) -> str:
    """The routing key of an event, which is its `type`, too."""
    return "opened" if isinstance(event, Opened) else "closed"


def session_event(event: Opened | Closed) -> bytes:
    """An event as JSON: times in RFC 3339, UTC; null for what is not known."""
    said: dict[str, object] = {
        "type": session_event_word(event),
        "session": event.session,
        "user": event.user,
        "node": event.node,
        "opened_at": _time(event.opened_at),
    }
    if isinstance(event, Opened):
        said |= {
            "mode": event.mode,
            "address": event.device.address or None,
            "user_agent": event.device.agent or None,
            "expires_at": _time(event.expires_at),
        }
    else:
        said |= {
            "closed_at": _time(event.closed_at),
            "code": event.code,
            "reason": event.reason,
        }
    return encode(said)


def _time(seconds: float) -> datetime:
    # To the microsecond that the row gets.
    return _EPOCH + timedelta(microseconds=round(seconds * 1_000_000))
