"""A push that nobody has proven, as the message that another channel gets."""

from __future__ import annotations

import base64

from bridge.core.contract.jsontext import encode
from bridge.core.contract.receipts import rfc3339
from bridge.core.model.pushes import Encoding
from bridge.core.model.rows import Row


def fallback_body(row: Row) -> bytes:
    """The push of a row with its data, as JSON: data as in frames, times in RFC 3339, null for what it lacks."""
    tenant, push_id, user = row.key
    return b"".join(
        (
            b'{"id":%b,"user":%b,"tenant":%b,"event":%b,"data":'
            % (encode(push_id), encode(user), encode(tenant or None), encode(row.event)),
            _data(row),
            b',"meta":' + (row.meta or b"null"),
            b',"topic":%b,"published_at":%b,"outcome":%b,"reason":%b}'
            % (
                encode(row.topic or None),
                rfc3339(row.published_at),
                encode(row.outcome),
                encode(row.reason),
            ),
        )
    )


def _data(row: Row) -> bytes:
    data = row.payload or b""
    if row.encoding is Encoding.TEXT:
        return encode(data.decode())
    if row.encoding is Encoding.BYTES:
        return b'"%b","encoding":"base64"' % base64.b64encode(data)
    return data or b"null"
