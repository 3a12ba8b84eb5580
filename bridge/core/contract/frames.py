"""Encode the frames that the bridge sends to a session. What a client sends is read by `client_frames`."""

from __future__ import annotations

import base64
from typing import Final, TypeAlias

from bridge.core.contract import jsontext
from bridge.core.contract.jsontext import encode
from bridge.core.model.pushes import Encoding, PushRequest, ToTopic
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.sockets import Frame

_JSON: Final = Encoding.JSON
_BYTES: Final = Encoding.BYTES
Ref: TypeAlias = str | int | None
"""The `ref` of a client's frame, repeated in the answer; None where there is no usable one."""


def push_frame(request: PushRequest) -> Frame:
    """A push in the envelope of `bridge.v1.json`; JSON data is copied byte for byte.

    The tenant is included where the push has one: ids are unique within their tenant. So is its topic.
    """
    of = b',"tenant":%b' % encode(request.tenant) if request.tenant else b""
    if isinstance(request.target, ToTopic):
        of += b',"topic":%b' % encode(request.target.topic)
    head = b'{"type":"push","id":%b%b,"event":%b,"data":' % (encode(request.id), of, encode(request.event))
    if request.encoding is _JSON:
        return Frame(b"%b%b}" % (head, request.data), False, request.id)
    if request.encoding is Encoding.TEXT:
        return Frame(b"%b%b}" % (head, encode(request.data.decode())), False, request.id)
    data = base64.b64encode(request.data)
    return Frame(b'%b"%b","encoding":"base64"}' % (head, data), False, request.id)


def bare_frame(request: PushRequest) -> Frame:
    """Only the data: a JSON string as the text it stands for, other JSON as its text, bytes as bytes."""
    data, encoding = request.data, request.encoding
    if encoding is _BYTES:
        return Frame(data, binary=True)
    if encoding is _JSON and data[:1] == b'"':
        return Frame(jsontext.decode_str(data).encode())
    return Frame(data)


HEARTBEAT_EVERY = 10
"""Seconds within which a session in envelope mode gets a frame: a heartbeat if nothing else is sent. Browsers hide
pings from pages, so a page could not tell a quiet connection from a dead one."""
HEARTBEAT = Frame(b'{"type":"heartbeat"}')
"""Only says that the connection is alive."""


def ping_frame(payload: bytes) -> Frame:
    """A ping, where the transport has none. Its client says the payload in a request of its own."""
    return Frame(b'{"type":"ping","payload":"%b"}' % payload.hex().encode())


def welcome_frame(session: str, user: str, complete: bool, key: str = "") -> Frame:
    """The first frame of a session.

    `complete`: nothing that was kept since the push to resume from is missing; true where the client does not resume.
    If that turns out to be wrong during the replay, a second welcome says false. `key`: what the client must show with
    each request that belongs to the session; empty where it needs none.
    """
    said = {"type": "welcome", "session": session, "user": user, "complete": complete}
    own = {"key": key} if key else {}
    return Frame(encode({**said, "heartbeat": HEARTBEAT_EVERY, **own}))


REFRESH = Frame(b'{"type":"refresh"}')
"""Asks the client for a new token: its own expires soon."""


def withdraw_frame(push_id: str, tenant: str = "") -> Frame:
    """The push with this id was recalled: a client that shows it should remove it."""
    of = {"tenant": tenant} if tenant else {}
    return Frame(encode({"type": "withdraw", "id": push_id, **of}))


def error_frame(code: str, message: str, ref: Ref = None) -> Frame:
    """The answer to a frame that was refused. `code` is a fixed word, `message` is for people."""
    return Frame(encode({"type": "error", "code": code, "message": message, **_with_ref(ref)}))


def ok_frame(ref: Ref = None) -> Frame:
    """The answer to a frame that was carried out."""
    return Frame(encode({"type": "ok", **_with_ref(ref)}))


def bye_frame(reason: CloseReason, retry_after: float) -> Frame:
    """The last frame before a close. `retry_after`: seconds to wait before coming back."""
    said = {"type": "bye", "code": reason.code, "reason": reason.word, "retry_after": retry_after}
    return Frame(encode(said), retry=retry_after)


def _with_ref(ref: Ref) -> dict[str, Ref]:
    return {} if ref is None else {"ref": ref}
