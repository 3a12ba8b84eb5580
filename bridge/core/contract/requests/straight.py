"""Read one right JSON request in one pass. For a wrong one the result is None, and `careful` finds out why."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType

from bridge.core.contract import fields, jsontext, lists
from bridge.core.contract.fields import Id, has_no_controls, is_id, is_topic
from bridge.core.contract.jsontext import BAD_JSON
from bridge.core.contract.requests.terms import Limits
from bridge.core.contract.stepping import AT_ONCE, PARTS_AT_ONCE, Steps, finish
from bridge.core.model.outcomes import CONFIRM, Proof
from bridge.core.model.pushes import (
    USERS_MAX,
    Encoding,
    Fallback,
    PushRequest,
    Target,
    ToAll,
    ToSession,
    ToTopic,
    ToUser,
    ToUsers,
)

_Users: TypeAlias = Annotated[list[Id], msgspec.Meta(min_length=1, max_length=USERS_MAX)]
_Sessions: TypeAlias = Annotated[list[Id], msgspec.Meta(max_length=USERS_MAX)]
_Ttl: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
_After: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
_AckWithin: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=fields.ACK_WITHIN_MAX)]
_DeliverAt: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]


class _To(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    user: Id = ""
    session: Id = ""
    topic: Id = ""
    users: _Users | UnsetType = UNSET
    all: bool | UnsetType = UNSET
    excluded: _Sessions | UnsetType = msgspec.field(default=UNSET, name="except")


class _Fallback(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    after: _After
    routing_key: str


class _Request(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """Nearly every request has this form; an empty string, or zero, stands for an absent field."""

    to: _To
    data: Raw
    id: Id = ""
    event: Id = "message"
    confirm: str = "received"
    tenant: Id = ""
    meta: Raw | UnsetType = UNSET
    ttl: _Ttl = 0.0
    collapse_key: Id = ""
    ack_within: _AckWithin = 0.0
    devices: str = "all"
    retain: bool = False
    fallback: _Fallback | UnsetType = UNSET
    deliver_at: _DeliverAt = 0.0


class _Data(msgspec.Struct, gc=False):
    """Only the data of a request: it may be large, and costs little to skip."""

    data: Raw = Raw(b"")


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_data = msgspec.json.Decoder(_Data).decode
_NOBODY: frozenset[str] = frozenset()
_JSON = Encoding.JSON
_SHALLOW = 2 * jsontext.DEPTH_MAX


def _target(to: _To) -> Target | None:
    """The one target that is named, None where that is wrong."""
    user, session, users, everyone, topic = to.user, to.session, to.users, to.all, to.topic
    if user:
        if session or topic or users is not UNSET or everyone is not UNSET:
            return None
        return ToUser(user)
    if users is not UNSET:
        if session or topic or everyone is not UNSET or not has_no_controls("".join(users)):
            return None
        return ToUsers(tuple(dict.fromkeys(users)))
    if session:
        if topic or everyone is not UNSET:
            return None
        return ToSession(session)
    if topic:
        if everyone is not UNSET or not is_topic(topic):
            return None
        return ToTopic(topic)
    if everyone is True:
        return ToAll()
    return None


def straight(raw: bytes | Raw, fallback_id: str, limits: Limits, published_at: float) -> PushRequest | None:
    """Read a request of at most `AT_ONCE` bytes in one pass; None: the careful pass must read it."""
    try:
        request = _decode_request(raw)
    except BAD_JSON:
        return None
    to = request.to
    target = _target(to)
    if target is None:
        return None
    excluded = _NOBODY
    if to.excluded is not UNSET:
        if not has_no_controls("".join(to.excluded)):
            return None
        excluded = frozenset(to.excluded)
    data = bytes(request.data)
    confirm = CONFIRM.get(request.confirm)
    if confirm is None or request.ttl > limits.max_ttl or len(data) > limits.max_data_bytes:
        return None
    first_device = request.devices == "first"
    if (request.ack_within or first_device) and confirm is not Proof.ACKED:
        return None
    if not first_device and request.devices != "all":
        return None
    if request.retain and (not to.topic or limits.max_ttl <= 0):
        return None
    if request.deliver_at and (limits.max_ttl <= 0 or request.deliver_at > published_at + limits.max_ttl):
        return None
    if not (data.isascii() or jsontext.is_utf8(data)):
        return None
    # Data over AT_ONCE is left to `straight_in_steps`.
    is_wide = _SHALLOW < len(data) <= AT_ONCE and not jsontext.has_few_brackets(data)
    if is_wide and finish(jsontext.too_deep(data)):
        return None
    push_id, event, tenant, collapse_key = request.id, request.event, request.tenant, request.collapse_key
    # Their lengths have been checked, so joining them loses nothing.
    if not has_no_controls(f"{to.user}{to.session}{to.topic}{push_id}{event}{tenant}{collapse_key}"):
        return None
    if not push_id and fallback_id:
        push_id = fallback_id
        if not is_id(push_id):
            return None
    meta = b""
    if request.meta is not UNSET:
        compact = lists.compact_meta(bytes(request.meta))
        if compact is None:
            return None
        meta = compact
    fallback: Fallback | None = None
    if request.fallback is not UNSET:
        after, routing_key = request.fallback.after, request.fallback.routing_key
        if after > limits.max_ttl or not fields.is_routing_key(routing_key):
            return None
        fallback = Fallback(after, routing_key)
    return PushRequest(
        push_id or fields.uuid7(published_at), target, data, event, _JSON, confirm, excluded, tenant,
        meta, not push_id, request.ttl, collapse_key, request.ack_within, first_device,
        request.retain, fallback, request.deliver_at,
    )  # fmt: skip


def straight_in_steps(
    raw: bytes | Raw, fallback_id: str, limits: Limits, published_at: float
) -> Steps[PushRequest | None]:
    """As `straight`, for a request of any size."""
    if len(raw) > AT_ONCE:
        try:
            data = bytes(_decode_data(raw).data)
        except BAD_JSON:
            return None
        # Everything but data becomes objects.
        if bytes(raw).count(b",") - data.count(b",") > PARTS_AT_ONCE:
            return None
        yield
    request = straight(raw, fallback_id, limits, published_at)
    if request is not None and len(request.data) > AT_ONCE:
        yield
        if (yield from jsontext.too_deep(request.data)):
            return None
    return request
