"""Find the tenant of a message without reading all of it: messages are sorted by it before they are taken."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from bridge.core.contract.jsonparts import pieces
from bridge.core.contract.jsontext import BAD_JSON, SPACE, decode_str
from bridge.core.contract.requests.headers import is_payload_only, without_nulls
from bridge.core.ports.broker import Arrival


class _Right(msgspec.Struct, gc=False):
    """Only the tenant of a request; the rest costs little to skip."""

    tenant: str = ""


class _Named(msgspec.Struct, gc=False):
    """The same, whatever its tenant is."""

    tenant: Raw = Raw(b"")


class _Batch(msgspec.Struct, array_like=True, gc=False):
    """Only the first request of a batch."""

    first: _Named = msgspec.field(default_factory=_Named)


_decode_right = msgspec.json.Decoder(_Right).decode
_decode_one = msgspec.json.Decoder(_Named).decode
_decode_batch = msgspec.json.Decoder(_Batch).decode


def tenant_of(arrival: Arrival) -> str:
    """The tenant of a message's requests, as `decode` reads it; of a batch that of its first request.

    Empty where it names none, and where it can't be read, since it is rejected then. Never raises; a message of the
    largest size takes about a millisecond.
    """
    headers = arrival.properties.headers
    if headers:
        tenant = headers.get("x-push-tenant")
        if isinstance(tenant, str):
            return tenant
        if is_payload_only(without_nulls(headers)):
            return ""
    body = arrival.body
    try:
        return _decode_right(body).tenant
    except BAD_JSON:
        return _of_another(body)


def _of_another(body: bytes) -> str:
    """The tenant of a batch, or of a request that is not right."""
    if body[:1] != b"{" and body.lstrip(SPACE)[:1] == b"[":
        return _of_batch(body)
    try:
        return _text(_decode_one(body))
    except BAD_JSON:
        return ""


def _of_batch(body: bytes) -> str:
    try:
        return _text(_decode_batch(body).first)
    except BAD_JSON:
        pass
    # One element may be at fault, and the others are pushes: their order must not change for it.
    for piece in pieces(body, 1):
        if piece is not None:
            try:
                return _text(_decode_one(piece))
            except BAD_JSON:
                return ""
    return ""


def _text(named: _Named) -> str:
    tenant = bytes(named.tenant)
    return decode_str(tenant) if tenant[:1] == b'"' else ""
