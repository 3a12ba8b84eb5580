"""Build the body of a push request, for producers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge.core.contract import jsontext
from bridge.core.contract.requests.careful import check_body
from bridge.core.contract.requests.terms import DEFAULT_LIMITS, Limits
from bridge.core.contract.stepping import finish
from bridge.core.errors import InvalidRequest
from bridge.core.model.outcomes import Reason


def request_body(
    data: object,
    *,
    user: str | None = None,
    users: Sequence[str] | None = None,
    session: str | None = None,
    topic: str | None = None,
    everyone: bool = False,
    excluded: Sequence[str] = (),
    push_id: str | None = None,
    event: str | None = None,
    confirm: str | None = None,
    tenant: str | None = None,
    meta: Mapping[str, str] | None = None,
    ttl: float | None = None,
    collapse_key: str | None = None,
    ack_within: float | None = None,
    devices: str | None = None,
    retain: bool = False,
    fallback: Mapping[str, object] | None = None,
    deliver_at: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> bytes:
    """Build the body of a push request. A `msgspec.Raw` as `data` is JSON text, used as it is.

    Raises InvalidRequest where `decode` would reject it; `limits` are those of the bridge that will take it.
    """
    to = {
        "user": user,
        "users": users,
        "session": session,
        "topic": topic,
        "all": True if everyone else None,
        "except": excluded or None,
    }
    optional = {
        "id": push_id,
        "event": event,
        "confirm": confirm,
        "tenant": tenant,
        "meta": meta,
        "ttl": ttl,
        "collapse_key": collapse_key,
        "ack_within": ack_within,
        "devices": devices,
        "retain": retain or None,
        "fallback": fallback,
        "deliver_at": deliver_at,
    }
    try:
        given = {name: value for name, value in optional.items() if value is not None}
        target = {name: value for name, value in to.items() if value is not None}
        body = jsontext.encode({**given, "to": target, "data": data})
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(Reason.INVALID, "", f"this cannot be said in JSON: {error}") from error
    finish(check_body(body, limits))
    return body
