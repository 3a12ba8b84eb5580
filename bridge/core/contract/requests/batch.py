"""Read a batch: a JSON array of push requests. Only its wrong elements are rejected."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Raw, UnsetType

from bridge.core.contract import jsonparts, jsontext
from bridge.core.contract.jsontext import BAD_JSON
from bridge.core.contract.requests.careful import careful
from bridge.core.contract.requests.rejecting import LastResort
from bridge.core.contract.requests.straight import straight, straight_in_steps
from bridge.core.contract.requests.terms import Limits
from bridge.core.contract.stepping import AT_ONCE, Steps
from bridge.core.errors import InvalidRequest
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import BATCH_MAX, USERS_MAX, PushRequest, Rejected, ToUsers
from bridge.core.ports.broker import Arrival

_BYTES_AT_ONCE = AT_ONCE // 2
"""Bytes of requests for one step: they cost more per byte than other text."""

# An array may have half a million elements. Decoding into this stops at the first one that is too many.
_Elements = msgspec.defstruct(
    "_Elements",
    [(f"e{n}", Raw | UnsetType, UNSET) for n in range(BATCH_MAX)],
    array_like=True,
    forbid_unknown_fields=True,
    gc=False,
)
_decode_elements = msgspec.json.Decoder(_Elements).decode


def batch(
    arrival: Arrival, fallback_id: str, limits: Limits, published_at: float
) -> Steps[Sequence[PushRequest | Rejected]]:
    """Read each request of a batch; raises InvalidRequest where the whole batch is rejected."""
    elements = yield from _elements(arrival.body)
    if not elements:
        raise InvalidRequest(Reason.INVALID, "", "a batch holds at least one request, this one is empty")
    if len(elements) > BATCH_MAX:
        raise _too_many(str(len(elements)))
    requests: list[PushRequest | Rejected] = []
    ids = LastResort(arrival)
    pairs = work = 0
    for index, element in enumerate(elements):
        element_id = f"{fallback_id}/{index}" if fallback_id else ""
        size = len(element)
        work += size
        if work > _BYTES_AT_ONCE:
            work = size
            yield
        request: PushRequest | Rejected | None
        if size <= AT_ONCE:
            request = straight(element, element_id, limits, published_at)
        else:
            request = yield from straight_in_steps(element, element_id, limits, published_at)
        if request is None:
            yield
            request = yield from careful(bytes(element), index, element_id, limits, published_at, ids)
            work = _BYTES_AT_ONCE
        if isinstance(request, PushRequest):
            pairs += len(request.target.users) if isinstance(request.target, ToUsers) else 1
        requests.append(request)
    if pairs > USERS_MAX:
        raise InvalidRequest(
            Reason.TOO_MANY, "", f"a message names at most {USERS_MAX} users, this one names {pairs}"
        )
    return requests


def _elements(body: bytes) -> Steps[Sequence[bytes | Raw]]:
    """The elements of an array; raises InvalidRequest where there are too many, or they can't be told apart."""
    try:
        if len(body) <= AT_ONCE:
            return jsonparts.decode_elements(body)
        room = list(msgspec.structs.astuple(_decode_elements(body)))
        while room and room[-1] is UNSET:
            room.pop()
        return room
    except msgspec.ValidationError:
        # More than `_Elements` has room for. The rest has not been checked yet.
        yield
        yield from jsontext.check(body)
        raise _too_many("more") from None
    except BAD_JSON:
        yield
    # One element may be at fault. They are told apart by brackets alone, and each is read by itself.
    elements, whole = yield from jsonparts.all_pieces(body)
    if not whole or not all(elements):
        yield from jsontext.check(body)
        raise InvalidRequest(Reason.NOT_JSON, "", "not JSON: the array is broken")
    return elements


def _too_many(got: str) -> InvalidRequest:
    return InvalidRequest(
        Reason.TOO_MANY, "", f"a batch holds at most {BATCH_MAX} requests, this one has {got}"
    )
