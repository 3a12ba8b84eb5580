"""What a client asks for when it comes to the WebSocket port, and the HTTP answer it gets.

| request                                 | answer                                                             |
|-----------------------------------------|--------------------------------------------------------------------|
| GET or HEAD /livez                      | 200                                                                |
| GET or HEAD /readyz                     | 200, or 503 with the causes, as JSON                               |
| any other path but /ws                  | 404                                                                |
| /ws, not a valid opening handshake      | 400, 405, 426 or 505 (RFC 6455 4.2.1)                              |
| /ws, not accepting any more             | 503, Retry-After                                                   |
| /ws, refused by the host                | the refusal's status; 401: WWW-Authenticate, 503: Retry-After      |
| /ws, granted                            | 101, with the grant's subprotocol echoed, or none                  |
| what is no HTTP, or goes on too early   | 400                                                                |
| a request that is not there in time     | 408                                                                |
| too long                                | 414, 431                                                           |
| the oldest of too many unanswered ones  | 503, Retry-After                                                   |

No answer repeats anything that the client sent: a token may be in the query, a header or a subprotocol.
"""

from __future__ import annotations

import http
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qs

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from bridge.model import CloseReason, Grant, Handshake, Refusal
from bridge.ports import SessionHost

Readiness = Callable[[], tuple[bool, Sequence[str]]]
"""Whether the service is ready, and one sentence for each cause why it is not."""

RETRY_AFTER: Final = f"{CloseReason.RESTART.retry_after:.0f}"
"""Seconds in the Retry-After of every 503 (RFC 9110 10.2.3)."""
QUERY_FIELDS_MAX: Final = 64

REQUEST_BYTES_MAX: Final = 16 * 1024
"""Bytes of an opening request with its headers, give or take one read."""


def _bare(status: str, text: str, *headers: str) -> bytes:
    # For what never became a request: the library has no answer to it.
    lines = (
        f"HTTP/1.1 {status}",
        "Connection: close",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(text)}",
        *headers,
    )
    return ("\r\n".join(lines) + "\r\n\r\n" + text).encode()


MALFORMED: Final = _bare("400 Bad Request", "This is not a valid HTTP request\n")
TOO_EARLY: Final = _bare("400 Bad Request", "Wait for the answer before you go on (RFC 6455 4.1)\n")
TOO_LATE: Final = _bare("408 Request Timeout", "The opening request was not there in time\n")
TOO_LONG: Final = _bare("431 Request Header Fields Too Large", "The opening request is too long\n")
CROWDED: Final = _bare(
    "503 Service Unavailable", "Too many are opening at once\n", f"Retry-After: {RETRY_AFTER}"
)

_HANDSHAKE_FAULTS: Final[Mapping[int, str]] = {
    400: "This is not a valid WebSocket opening handshake (RFC 6455 4.2.1).\n",
    405: "A WebSocket opening handshake is a GET request.\n",
    426: "This is the address of a WebSocket: open it with a WebSocket client.\n",
    505: "A WebSocket opening handshake needs HTTP/1.1.\n",
}


class Doorway:
    """Answers opening requests: the service's own pages, the handshake's form, the host's decision."""

    def __init__(self, host: SessionHost, readiness: Readiness) -> None:
        self._host = host
        self._readiness = readiness
        self.accepting = True
        """False: opening handshakes get 503, and so does /readyz."""

    def answer(self, protocol: ServerProtocol, request: Request) -> tuple[Response, Grant | None]:
        """Decide on a request; the response is not sent yet. The grant is there with status 101 only."""
        path, _, query = request.path.partition("?")
        if path in ("/livez", "/readyz"):
            return self._page(protocol, request, path), None
        if path != "/ws":
            return protocol.reject(404, "There is nothing here; the WebSocket is at /ws.\n"), None
        accepted = protocol.accept(request)
        if accepted.status_code != http.HTTPStatus.SWITCHING_PROTOCOLS:
            return _unacceptable(protocol, accepted), None
        if not self.accepting:
            return self._refused(protocol, _DRAINING), None
        handshake = _read(path, query, request)
        if handshake is None:
            return protocol.reject(400, _HANDSHAKE_FAULTS[400]), None
        decision = self._host.handshake(handshake)
        if isinstance(decision, Refusal):
            return self._refused(protocol, decision), None
        if decision.subprotocol is not None:
            accepted.headers["Sec-WebSocket-Protocol"] = decision.subprotocol
        return accepted, decision

    @staticmethod
    def _refused(protocol: ServerProtocol, refusal: Refusal) -> Response:
        response = protocol.reject(refusal.status, refusal.text)
        if refusal.status == http.HTTPStatus.UNAUTHORIZED:
            response.headers["WWW-Authenticate"] = "Bearer"
        elif refusal.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
            response.headers["Retry-After"] = RETRY_AFTER
        return response

    def _page(self, protocol: ServerProtocol, request: Request, path: str) -> Response:
        if request.method not in ("GET", "HEAD"):
            response = protocol.reject(405, "Only GET and HEAD are possible here.\n")
            response.headers["Allow"] = "GET, HEAD"
            return response
        if path == "/livez":
            response = protocol.reject(200, "alive\n")
        else:
            ready, causes = self._readiness()
            if not self.accepting:
                ready, causes = False, [*causes, "no new sessions are accepted: the service is stopping"]
            body = json.dumps({"ready": ready, "causes": list(causes)}) + "\n"
            response = protocol.reject(200 if ready else 503, body)
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "application/json"
            if not ready:
                response.headers["Retry-After"] = RETRY_AFTER
        response.headers["Cache-Control"] = "no-store"
        if request.method == "HEAD":
            response.body = b""
        return response


_DRAINING: Final = Refusal(503, "draining", "The service is stopping, come back in a moment.\n")


def _unacceptable(protocol: ServerProtocol, theirs: Response) -> Response:
    # The library's own sentence quotes the header that is wrong, which may hold the token.
    status = theirs.status_code
    response = protocol.reject(status, _HANDSHAKE_FAULTS.get(status, "The handshake failed.\n"))
    for name in ("Allow", "Upgrade"):
        if name in theirs.headers:
            response.headers[name] = theirs.headers[name]
    return response


def _read(path: str, query: str, request: Request) -> Handshake | None:
    # None: something is there more often than it may be. The library has checked all else it names.
    headers = request.headers
    authorizations = headers.get_all("Authorization")
    if len(authorizations) > 1:
        return None
    try:
        fields = parse_qs(query, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX)
    except ValueError:
        return None
    offered = [
        entry.strip() for value in headers.get_all("Sec-WebSocket-Protocol") for entry in value.split(",")
    ]
    return Handshake(
        path=path,
        query=fields,
        origin=headers.get("Origin"),
        authorization=authorizations[0] if authorizations else None,
        subprotocols=tuple(entry for entry in offered if entry),
    )
