"""HTTP answers of the WebSocket port that refuse something: their bytes, and those that need no request.

All have the body `{"error": word, "problem": sentence}`, as those of the ops port. A HEAD request gets the same headers
and no body (RFC 9110 9.3.2).
"""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from websockets.exceptions import HeaderLineTooLong, RequestLineTooLong, TooManyHeaders
from websockets.http11 import Response
from websockets.server import ServerProtocol

from bridge.adapters.websocket.limits import SocketLimits
from bridge.core.model.sessions import CloseReason, Refusal

RETRY_AFTER: Final = f"{CloseReason.RESTART.retry_after:.0f}"
"""Seconds in the Retry-After of every 503 (RFC 9110 10.2.3)."""
JSON: Final = "application/json"


def _body(refusal: Refusal) -> bytes:
    return msgspec.json.encode({"error": refusal.word, "problem": refusal.text}) + b"\n"


def refused(protocol: ServerProtocol, refusal: Refusal, *, by_head: bool = False) -> Response:
    """The answer to a request that was read, not sent yet. `by_head`: to one with the method HEAD."""
    body = _body(refusal)
    response = protocol.reject(refusal.status, body.decode())
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = JSON
    if refusal.status == http.HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    elif refusal.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = RETRY_AFTER
    if by_head:
        response.body = b""
    return response


class Early(NamedTuple):
    """An answer for which the library has none, or only one that quotes the request."""

    refusal: Refusal
    head: bytes
    body: bytes

    def answer(self, *, by_head: bool) -> bytes:
        """Its bytes."""
        return self.head if by_head else self.head + self.body


def _early(status: http.HTTPStatus, why: str, text: str, *headers: str) -> Early:
    refusal = Refusal(status.value, why, text)
    body = _body(refusal)
    lines = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Connection: close",
        f"Content-Type: {JSON}",
        f"Content-Length: {len(body)}",
        *headers,
    )
    return Early(refusal, ("\r\n".join(lines) + "\r\n\r\n").encode(), body)


_BAD, _LARGE = http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
MALFORMED: Final = _early(_BAD, "not_http", "This is not a valid HTTP request.")
TOO_EARLY: Final = _early(_BAD, "too_early", "Wait for the answer before you go on (RFC 6455 4.1).")
TOO_LATE: Final = _early(
    http.HTTPStatus.REQUEST_TIMEOUT, "too_late", "The opening request did not arrive in time."
)
_UNAVAILABLE, _RETRY = http.HTTPStatus.SERVICE_UNAVAILABLE, f"Retry-After: {RETRY_AFTER}"
CROWDED: Final = _early(_UNAVAILABLE, "crowded", "Too many are opening at once.", _RETRY)
STOPPING: Final = _early(_UNAVAILABLE, "draining", "The service is stopping, come back in a moment.", _RETRY)
UNDECIDED: Final = _early(_UNAVAILABLE, "undecided", "The decision on this handshake took too long.", _RETRY)
FULL: Final = _early(_UNAVAILABLE, "full", "Too many connections are open, try again soon.", _RETRY)


class TooLong:
    """The answers to requests that are too long."""

    def __init__(self, limits: SocketLimits) -> None:
        line = f"{limits.line_bytes} bytes are allowed."
        self.request = _early(
            _LARGE, "too_long", f"The opening request is too long: {limits.header_bytes} bytes are allowed."
        )
        self._lines: Mapping[type[object], Early] = {
            RequestLineTooLong: _early(
                http.HTTPStatus.REQUEST_URI_TOO_LONG, "too_long", f"The request line is too long: {line}"
            ),
            HeaderLineTooLong: _early(_LARGE, "too_long", f"A header line is too long: {line}"),
            TooManyHeaders: _early(_LARGE, "too_long", "The request has too many header lines."),
        }

    def refused_by_library(self, protocol: ServerProtocol) -> Early:
        """The answer to a request that the library's parser refused."""
        return self._lines.get(type(protocol.handshake_exc), MALFORMED)
