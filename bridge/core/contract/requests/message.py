"""Read a whole message: one request, a batch, data with headers, or something that is rejected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias, cast

import msgspec

from bridge.core.contract import jsonparts
from bridge.core.contract.jsontext import SPACE
from bridge.core.contract.requests import headers as of_headers
from bridge.core.contract.requests.batch import batch
from bridge.core.contract.requests.careful import careful
from bridge.core.contract.requests.cloud_event import cloud_event, cloud_event_values, is_cloud_event
from bridge.core.contract.requests.coding import check_coding
from bridge.core.contract.requests.headers import CLOCK_SKEW_MAX
from bridge.core.contract.requests.rejecting import LastResort, strings, usable
from bridge.core.contract.requests.straight import straight, straight_in_steps
from bridge.core.contract.requests.strangers import stranger
from bridge.core.contract.requests.terms import Decoded, Limits
from bridge.core.contract.stepping import AT_ONCE, Steps, finish
from bridge.core.errors import InvalidRequest
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import MESSAGE_BYTES_MAX, PushRequest, Rejected
from bridge.core.model.tuples import new_tuple
from bridge.core.ports.broker import Arrival

_USUAL_TYPE: Final = "application/json"
_ReadAs: TypeAlias = Callable[[Arrival, str, Limits, float], Steps[PushRequest]]


def decode(arrival: Arrival, limits: Limits) -> Decoded:
    """Read a message. Never raises; the same message gives the same result, but for generated UUIDs.

    Only the wrong elements of a batch are rejected; `Rejected.body` has the bytes of the element. It may take a second:
    use `decode_in_steps` where others wait.
    """
    decoded = begin(arrival, limits)
    return decoded if isinstance(decoded, Decoded) else finish(decoded)


def decode_in_steps(arrival: Arrival, limits: Limits) -> Steps[Decoded]:
    """As `decode`, and with the same result, in steps of a few milliseconds at most."""
    decoded = begin(arrival, limits)
    return decoded if isinstance(decoded, Decoded) else (yield from decoded)


def begin(arrival: Arrival, limits: Limits) -> Decoded | Steps[Decoded]:
    """Read an ordinary message at once; for any other return the steps that read it."""
    properties = arrival.properties
    headers = properties.headers
    if headers and None in headers.values():
        headers = of_headers.without_nulls(headers)
        properties = msgspec.structs.replace(properties, headers=headers)
        arrival = msgspec.structs.replace(arrival, properties=properties)
    body = arrival.body
    size = len(body)
    published_at = arrived_at = arrival.arrived_at
    timestamp, content_type = properties.timestamp, properties.content_type
    if timestamp is not None and 0 < timestamp <= arrived_at + CLOCK_SKEW_MAX:
        published_at = timestamp
    traceparent = ""
    fallback_id = properties.message_id
    read_as: _ReadAs | None = None
    try:
        if headers:
            traceparent = of_headers.traceparent(headers)
            fallback_id = of_headers.push_id(headers, fallback_id)
            published_at = of_headers.published_at(headers, published_at, arrived_at)
            if of_headers.is_payload_only(headers):
                read_as = of_headers.payload_only
        if content_type and content_type != _USUAL_TYPE and is_cloud_event(content_type):
            read_as = cloud_event
        if arrival.body_size > size or size > MESSAGE_BYTES_MAX:
            raise InvalidRequest(
                Reason.TOO_LARGE,
                "",
                f"the message has {arrival.body_size} bytes, {MESSAGE_BYTES_MAX} are allowed",
            )
        if properties.content_encoding or headers:
            check_coding(properties.content_encoding, headers)
        if arrival.reordered:
            raise InvalidRequest(
                Reason.UNSUPPORTED,
                "property priority",
                "this broker, RabbitMQ 4.0 or newer, gives out messages by their priority, which breaks the order of a"
                " user's pushes: publish without a priority, or with 4",
            )
    except InvalidRequest as wrong:
        return _rejected(arrival, wrong, fallback_id, published_at, traceparent)
    if read_as is not None or body[:1] != b"{" or size > AT_ONCE:
        steps = _rest(arrival, limits, read_as, fallback_id, published_at, traceparent)
    elif request := straight(body, fallback_id, limits, published_at):
        return cast(Decoded, new_tuple(Decoded, ((request,), published_at, traceparent, "")))
    else:
        steps = _one(arrival, limits, fallback_id, published_at, traceparent)
    return _hinted(steps, arrival) if read_as is None else steps


def _hinted(steps: Steps[Decoded], arrival: Arrival) -> Steps[Decoded]:
    """Begin the detail of rejected requests with a hint about the whole message: it may be all that is wrong."""
    decoded = yield from steps
    wrong = [request for request in decoded.requests if isinstance(request, Rejected)]
    if not wrong:
        return decoded
    headers = arrival.properties.headers
    hint = of_headers.misspelt_headers(headers) if headers else ""
    # Where one request of a batch was right, the others are meant as requests, too.
    if not hint and len(wrong) == len(decoded.requests):
        hint = yield from stranger(arrival)
    if not hint:
        return decoded
    requests = tuple(
        msgspec.structs.replace(request, detail=f"{hint}; {request.detail}")
        if isinstance(request, Rejected)
        else request
        for request in decoded.requests
    )
    return decoded._replace(requests=requests)


def _rest(
    arrival: Arrival,
    limits: Limits,
    read_as: _ReadAs | None,
    fallback_id: str,
    published_at: float,
    traceparent: str,
) -> Steps[Decoded]:
    """Read anything but a small request. `read_as`: of what this one request is made, if it is not the body."""
    body = arrival.body
    requests: Sequence[PushRequest | Rejected]
    batch_id = ""
    yield
    try:
        if read_as is not None:
            requests = ((yield from read_as(arrival, fallback_id, limits, published_at)),)
        elif body[:1] != b"{" and body.lstrip(SPACE)[:1] == b"[":
            requests = yield from batch(arrival, fallback_id, limits, published_at)
            batch_id = yield from LastResort(arrival).id(body, None, fallback_id)
        else:
            request = yield from straight_in_steps(body, fallback_id, limits, published_at)
            if request is None:
                return (yield from _one(arrival, limits, fallback_id, published_at, traceparent))
            requests = (request,)
    except InvalidRequest as wrong:
        return (yield from _rejected(arrival, wrong, fallback_id, published_at, traceparent))
    return Decoded(requests, published_at, traceparent, batch_id)


def _one(
    arrival: Arrival, limits: Limits, fallback_id: str, published_at: float, traceparent: str
) -> Steps[Decoded]:
    """Read the one request of a message with the careful pass."""
    yield
    request = yield from careful(arrival.body, None, fallback_id, limits, published_at, LastResort(arrival))
    return Decoded((request,), published_at, traceparent)


def _rejected(
    arrival: Arrival, wrong: InvalidRequest, fallback_id: str, published_at: float, traceparent: str
) -> Steps[Decoded]:
    """Reject a whole message, under the best id that can be found in it."""
    yield
    members = yield from jsonparts.last_members(arrival.body)
    values = strings(members)
    headers = arrival.properties.headers
    if is_cloud_event(arrival.properties.content_type):
        values = cloud_event_values(members, fallback_id if "x-push-id" in headers else "")
    request = Rejected(
        usable(values, "id") or (yield from LastResort(arrival).id(arrival.body, None, fallback_id)),
        Reason(wrong.reason),
        wrong.detail,
        arrival.body,
        usable(headers, "x-push-tenant") or usable(values, "tenant"),
        usable(headers, "x-push-event") or usable(values, "event"),
    )
    return Decoded((request,), published_at, traceparent)
