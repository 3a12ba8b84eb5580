"""Requests that open no WebSocket: the one for a stream of events, and those with which its client says something.

| request                                   | answer                                                              |
|-------------------------------------------|---------------------------------------------------------------------|
| GET /sse, granted                         | 200 `text/event-stream`, see `stream`                               |
| GET /sse, refused                         | as /ws: the refusal's status                                        |
| POST /v1/ack?pong=<hex>, or ?id=<push id> | 204; 400, 401 or 404 where it counts for nothing                    |
| OPTIONS of either                         | 204, with what a page of an allowed origin may send (CORS preflight)|
| any other method                          | 405, Allow                                                          |

Both POST parameters may be in one request; `tenant` belongs to `id`. The request has no body, and the key of the
session stands in `Authorization: Bearer <key>`: a query is written to the logs of proxies.

Pages of an origin that may open sessions may read the answers (Access-Control-Allow-Origin); others can't.
"""

from __future__ import annotations

import binascii
import http
from collections.abc import Collection, Mapping, Sequence
from email.utils import formatdate
from typing import Final
from urllib.parse import parse_qs

from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from bridge.adapters.websocket.answers import refused
from bridge.adapters.websocket.headers import text_of
from bridge.core.model.sessions import SSE_PATH, Refusal, Said
from bridge.core.ports.sockets import SessionHost

ACK_PATH: Final = "/v1/ack"
PATHS: Final = (SSE_PATH, ACK_PATH)
METHODS: Final[Mapping[str, str]] = {SSE_PATH: "GET, OPTIONS", ACK_PATH: "POST, OPTIONS"}
PREFLIGHT_SECONDS: Final = 7200
"""For so long a browser may remember what a page may send; no browser remembers it for longer than a day."""
SHARED: Final = ("Vary", "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials")
"""Headers that let a page read an answer, also where the request is refused."""
_FIELDS_MAX: Final = 8
_NO_METHOD: Final = Refusal(405, "method", "This method is not possible here.")
_NO_KEY: Final = Refusal(
    401,
    "key",
    "The key of the session is needed, as its welcome said it: in Authorization, with the scheme Bearer.",
)
_NOTHING: Final = Refusal(
    400,
    "bad_query",
    "Say `pong`, the payload of a ping in hexadecimal digits, or `id`, the id of a push, once each.",
)


class Plain:
    """Answers those requests, but for the decision on a stream, which is the host's."""

    def __init__(self, host: SessionHost, origins: Collection[str]) -> None:
        """`origins`: those whose pages may open sessions; empty: of all."""
        self._host = host
        self._origins = frozenset(origins)

    def origin_of(self, request: Request) -> str | None:
        """The Origin of a request for a stream. A browser leaves it out where the page is of the same origin, and says
        so (Fetch Metadata); a page can write neither. Then it is our own address, with the scheme that is allowed."""
        origin: str | None = request.headers.get("Origin")
        hosts = request.headers.get_all("Host")
        if (
            origin is not None
            or len(hosts) != 1
            or request.headers.get_all("Sec-Fetch-Site") != ["same-origin"]
        ):
            return origin
        ours = [f"{scheme}://{hosts[0]}" for scheme in ("https", "http")]
        return next((one for one in ours if one in self._origins), None)

    def answer(self, protocol: ServerProtocol, request: Request, path: str, query: str) -> Response | None:
        """The answer; None to what asks for a stream."""
        if request.method == "OPTIONS":
            response = _empty(204)
            response.headers["Allow"] = METHODS[path]
            if self.shared(request, response):
                response.headers["Access-Control-Allow-Methods"] = METHODS[path]
                response.headers["Access-Control-Allow-Headers"] = "Authorization, Last-Event-ID"
                response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
            return response
        if request.method != METHODS[path].partition(",")[0]:
            return self.no_method(protocol, request, path)
        if path == SSE_PATH:
            return None
        refusal = self._said(request, query)
        response = _empty(204) if refusal is None else refused(protocol, refusal)
        self.shared(request, response)
        return response

    def no_method(self, protocol: ServerProtocol, request: Request, path: str) -> Response:
        """The answer to another method."""
        if path == SSE_PATH:
            self._host.refused(_NO_METHOD)
        response = refused(protocol, _NO_METHOD, by_head=request.method == "HEAD")
        response.headers["Allow"] = METHODS[path]
        return response

    def stream(self, request: Request) -> Response:
        """The head of a stream."""
        response = _empty(200)
        response.headers["Content-Type"] = "text/event-stream"
        # nginx would else collect the events until its buffer is full.
        response.headers["X-Accel-Buffering"] = "no"
        self.shared(request, response)
        return response

    def shared(self, request: Request, response: Response) -> bool:
        """Let a page of an allowed origin read this answer. Returns whether it is one."""
        response.headers["Vary"] = "Origin"
        if not self._origins:
            # Whoever has a token may come in from any page; without one none does.
            response.headers["Access-Control-Allow-Origin"] = "*"
            return True
        origins = request.headers.get_all("Origin")
        if len(origins) != 1 or origins[0] not in self._origins:
            return False
        response.headers["Access-Control-Allow-Origin"] = origins[0]
        # The browser's cookies may count for such a page, as with a WebSocket.
        response.headers["Access-Control-Allow-Credentials"] = "true"
        return True

    def _said(self, request: Request, query: str) -> Refusal | None:
        authorizations = request.headers.get_all("Authorization")
        scheme, _, key = (authorizations[0] if len(authorizations) == 1 else "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return _NO_KEY
        try:
            fields = parse_qs(query, keep_blank_values=True, max_num_fields=_FIELDS_MAX)
            pongs, ids, tenants = (fields.get(name, []) for name in ("pong", "id", "tenant"))
            pong = binascii.unhexlify(pongs[0]) if pongs else None
        except ValueError:
            return _NOTHING
        if max(len(pongs), len(ids), len(tenants)) > 1 or not (pongs or ids):
            return _NOTHING
        said = Said(key.strip(), pong, ids[0] if ids else None, tenants[0] if tenants else None)
        return self._host.said(said)


def resumed(query: Mapping[str, Sequence[str]], request: Request) -> dict[str, Sequence[str]]:
    """The query of a request for a stream, with the id of the last event in `last`: a browser that connects again by
    itself has the query of the first time, and says in a header what it has had since."""
    last = text_of(request.headers.get("Last-Event-ID") or "")
    return {**query, "last": [last]} if last else dict(query)


def _empty(status: int) -> Response:
    headers = Headers(
        [("Date", formatdate(usegmt=True)), ("Connection", "close"), ("Cache-Control", "no-store")]
    )
    return Response(status, http.HTTPStatus(status).phrase, headers)
