"""Requests to the WebSocket port and the HTTP answers to them.

| request                                 | answer                                                             |
|-----------------------------------------|--------------------------------------------------------------------|
| GET or HEAD /livez                      | 200                                                                |
| GET or HEAD /readyz                     | 200, or 503 with the causes, as JSON                               |
| /sse, /v1/ack                           | see `plain`; what /ws below says of the service is true of /sse too|
| any other path but /ws                  | 404                                                                |
| /ws, not a valid opening handshake      | 400, 405, 426 or 505 (RFC 6455 4.2.1)                              |
| /ws, the service is stopping            | 503, Retry-After                                                   |
| /ws, too many are being decided on      | 503, Retry-After                                                   |
| /ws, refused by the host                | the refusal's status; 401: WWW-Authenticate, 503: Retry-After      |
| /ws, not decided on in time             | 503, Retry-After                                                   |
| /ws, granted                            | 101, with the grant's subprotocol echoed, or none                  |
| not HTTP, or frames before the answer   | 400                                                                |
| a request that is not complete in time  | 408                                                                |
| too long                                | 414, 431                                                           |
| the oldest of too many unanswered ones  | 503, Retry-After                                                   |

The path may be a whole URL (absolute-form, RFC 9112 3.2.2); scheme and authority are ignored.

Every answer but that of /livez is JSON. That to a request which opens nothing says why, as in `answers`.

No answer repeats anything that the client sent: a token may be in the query, a header or a subprotocol. The host
is told of every handshake that is refused here, with a word of `HANDSHAKE_REFUSALS`.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import parse_qs

from msgspec import structs
from websockets.exceptions import InvalidHeader
from websockets.frames import CLOSE, Frame
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.streams import StreamReader

from bridge.adapters.websocket.answers import JSON, RETRY_AFTER, STOPPING, TooLong, refused
from bridge.adapters.websocket.devices import device_of
from bridge.adapters.websocket.headers import chosen
from bridge.adapters.websocket.limits import SocketLimits
from bridge.adapters.websocket.plain import PATHS, SHARED, Plain, resumed
from bridge.core.model.sessions import SSE_PATH, Grant, Handshake, Refusal
from bridge.core.ports.sockets import SessionHost

Readiness = Callable[[], tuple[bool, Sequence[str]]]
"""Returns whether the service is ready, and a sentence for each cause why it is not."""

QUERY_FIELDS_MAX: Final = 64

HANDSHAKE_REFUSALS: Final = (
    "path",
    "method",
    "no_upgrade",
    "http_version",
    "bad_header",
    "bad_query",
    "not_http",
    "too_early",
    "too_late",
    "too_long",
    "crowded",
    "full",
    "busy",
    "draining",
    "undecided",
    "gone",
)
"""Why a handshake is refused without a decision of the host, in metrics and logs."""


class _LibraryLogger(logging.LoggerAdapter[logging.Logger]):
    """Keeps websockets' debug and info lines out of every log, at any level: they hold request lines and
    headers, so tokens, and payloads."""

    def isEnabledFor(self, level: int) -> bool:
        return level >= logging.WARNING and super().isEnabledFor(level)


LIBRARY_LOGGER = _LibraryLogger(logging.getLogger("bridge.websocket"), {})


GONE: Final = Refusal(400, "gone", "The client left before its handshake was decided on.")
"""It is only counted: nobody is there to read an answer."""
BUSY: Final = Refusal(503, "busy", "Too many handshakes wait for a decision, try again in a moment.")


_HEAD: Final = b"HEAD "


class _LongLines(StreamReader):
    """The library's reader with our bound for a line. Its own is 8 KiB, for the whole process."""

    def __init__(self, line_bytes: int) -> None:
        super().__init__()
        self._line_bytes = line_bytes
        self._begin: bytes | None = None
        """What the request line began with, once that was read or dropped."""

    def read_line(
        self, m: int, too_long_exc_type: type[Exception] = RuntimeError
    ) -> Generator[None, None, bytearray]:
        line = yield from super().read_line(self._line_bytes, too_long_exc_type)
        if self._begin is None:
            self._begin = bytes(line[: len(_HEAD)])
        return line

    def discard(self) -> None:
        """The library drops what is not read: after a fault, or when the connection is failed."""
        if self._begin is None:
            self._begin = bytes(self.buffer[: len(_HEAD)])
        super().discard()

    @property
    def by_head(self) -> bool:
        """The request has the method HEAD, as far as it has come. Known once it is refused."""
        return self._begin == _HEAD


class Protocol(ServerProtocol):
    """The library's server protocol with our bounds."""

    def __init__(self, state: State, limits: SocketLimits) -> None:
        # The library's constructor begins to parse.
        self.limits = limits
        super().__init__(state=state, max_size=limits.message_bytes, logger=LIBRARY_LOGGER)

    def parse(self) -> Generator[None]:
        """Parse input; the constructor starts this."""
        self.reader: _LongLines = _LongLines(self.limits.line_bytes)
        yield from super().parse()

    def recv_frame(self, frame: Frame) -> None:
        """Process an incoming frame. The library takes a close frame in the middle of a fragmented message for a fault;
        RFC 6455 5.4 allows control frames there."""
        if frame.opcode is CLOSE:
            self.current_size = None
        super().recv_frame(frame)


_NO_HANDSHAKE: Final = "This is not a valid WebSocket opening handshake (RFC 6455 4.2.1)"
_FAULTS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("bad_header", f"{_NO_HANDSHAKE}."),
    405: ("method", "A WebSocket opening handshake is a GET request."),
    426: (
        "no_upgrade",
        "This is the address of a WebSocket: open it with a WebSocket client. (If you did, a proxy on the way has"
        " dropped the headers Connection and Upgrade.)",
    ),
    505: ("http_version", "A WebSocket opening handshake needs HTTP/1.1."),
}
_NO_SUBPROTOCOLS: Final = (
    f"{_NO_HANDSHAKE}: the header Sec-WebSocket-Protocol must list names with commas between, and names have no"
    " spaces, quotes, / or = (a token in standard base64 can't be one). Offer bridge.v1.json or bridge.bare, or"
    " leave the header out."
)
_EMPTY_SUBPROTOCOLS: Final = (
    f"{_NO_HANDSHAKE}: the header Sec-WebSocket-Protocol is empty. Offer bridge.v1.json or bridge.bare, or leave"
    " the header out."
)


_NO_PAGE: Final = Refusal(405, "method", "Only GET and HEAD are possible here.")


class Asked(NamedTuple):
    """A well-formed handshake, for the host to decide on."""

    handshake: Handshake
    accepted: Response
    """The answer if it is granted; the subprotocol is added then. With status 200 a stream of events follows."""


class Doorway:
    """Answers opening requests: the pages of the service, malformed handshakes, and what the host decided."""

    def __init__(
        self,
        host: SessionHost,
        readiness: Readiness,
        limits: SocketLimits,
        headers: Collection[str] = (),
        origins: Collection[str] = (),
    ) -> None:
        """`headers`: further ones that the host gets of each handshake, in lower case. `origins`: see `Plain`."""
        self._host = host
        self._plain = Plain(host, origins)
        self._readiness = readiness
        self._headers = tuple(headers)
        self._proxies = limits.proxies
        self.too_long = TooLong(limits)
        self.accepting = True
        """False: opening handshakes get 503, and so does /readyz."""

    def read(
        self, protocol: ServerProtocol, request: Request, peer: asyncio.BaseTransport
    ) -> Response | Asked:
        """Return the answer to what the host need not decide on, else the handshake to ask it about. Sends nothing.

        `peer`: the connection that it came by.
        """
        path, _, query = _origin_form(request.path).partition("?")
        by_head = request.method == "HEAD"
        if path in ("/livez", "/readyz"):
            return self._page(protocol, request, path)
        if path in PATHS:
            answer = self._plain.answer(protocol, request, path, query)
            return self._stream(protocol, request, query, peer) if answer is None else answer
        if path != "/ws":
            elsewhere = Refusal(404, "path", "There is nothing here; the WebSocket is at /ws.")
            if request.headers.get_all("Upgrade"):
                self._host.refused(elsewhere)
            return refused(protocol, elsewhere, by_head=by_head)
        accepted = protocol.accept(request)
        if accepted.status_code != http.HTTPStatus.SWITCHING_PROTOCOLS:
            return self._unacceptable(protocol, accepted, by_head)
        asked = _read(path, query, request) if self.accepting else STOPPING.refusal
        if isinstance(asked, Refusal):
            self._host.refused(asked)
            return refused(protocol, asked)
        return Asked(self._told(asked, request, peer), accepted)

    def _told(self, asked: Handshake, request: Request, peer: asyncio.BaseTransport) -> Handshake:
        return structs.replace(
            asked,
            device=device_of(request, peer, self._proxies),
            headers=chosen(request.headers, self._headers),
        )

    def _stream(
        self, protocol: ServerProtocol, request: Request, query: str, peer: asyncio.BaseTransport
    ) -> Response | Asked:
        asked = _read(SSE_PATH, query, request) if self.accepting else STOPPING.refusal
        if isinstance(asked, Refusal):
            self._host.refused(asked)
            response = refused(protocol, asked)
            self._plain.shared(request, response)
            return response
        asked = structs.replace(
            asked,
            origin=self._plain.origin_of(request),
            query=resumed(asked.query, request),
            subprotocols=(),
        )
        return Asked(self._told(asked, request, peer), self._plain.stream(request))

    def decided(
        self, protocol: ServerProtocol, asked: Asked, decision: Grant | Refusal
    ) -> tuple[Response, Grant | None]:
        """The answer to a handshake that the host has decided on, not sent yet; with status 101 the grant, too."""
        if isinstance(decision, Refusal):
            response = refused(protocol, decision)
            for name in SHARED:
                if name in asked.accepted.headers:
                    response.headers[name] = asked.accepted.headers[name]
            return response, None
        if decision.subprotocol is not None:
            asked.accepted.headers["Sec-WebSocket-Protocol"] = decision.subprotocol
        return asked.accepted, decision

    def _unacceptable(self, protocol: ServerProtocol, theirs: Response, by_head: bool) -> Response:
        # The library's own sentence quotes the header that is wrong, which may hold the token.
        refusal = _fault(theirs.status_code, protocol.handshake_exc)
        self._host.refused(refusal)
        response = refused(protocol, refusal, by_head=by_head)
        for name in ("Allow", "Upgrade"):
            if name in theirs.headers:
                response.headers[name] = theirs.headers[name]
        return response

    def _page(self, protocol: ServerProtocol, request: Request, path: str) -> Response:
        if request.method not in ("GET", "HEAD"):
            response = refused(protocol, _NO_PAGE)
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
            response.headers["Content-Type"] = JSON
            if not ready:
                response.headers["Retry-After"] = RETRY_AFTER
        response.headers["Cache-Control"] = "no-store"
        if request.method == "HEAD":
            response.body = b""
        return response


def _origin_form(target: str) -> str:
    """A request target without scheme and authority (RFC 9112 3.2.2: servers must accept a target with them)."""
    absolute = _ABSOLUTE.match(target)
    if absolute is None:
        return target
    rest = target[absolute.end() :]
    return rest if rest.startswith("/") else f"/{rest}"


_ABSOLUTE: Final = re.compile(r"(?:https?|wss?)://[^/?#]+", re.IGNORECASE)


def _fault(status: int, error: Exception | None) -> Refusal:
    """What is wrong with a request that the library refuses as a handshake, in words that quote nothing of it."""
    why, text = _FAULTS.get(status, ("bad_header", "The handshake failed."))
    if status == http.HTTPStatus.BAD_REQUEST and isinstance(error, InvalidHeader):
        value = error.value or ""
        if error.name == "Sec-WebSocket-Protocol":
            # The library says where in the value the fault is, and then the value.
            text = _EMPTY_SUBPROTOCOLS if value.endswith(" in ") else _NO_SUBPROTOCOLS
        else:
            state = (
                "occurs more than once"
                if value == "multiple values"
                else "is wrong"
                if value
                else "is missing"
            )
            text = f"{_NO_HANDSHAKE}: the header {error.name} {state}."
    return Refusal(status, why, text)


def _read(path: str, query: str, request: Request) -> Handshake | Refusal:
    # Only repeated fields are left to refuse: the library has checked the rest.
    headers = request.headers
    authorizations = headers.get_all("Authorization")
    for name in ("Authorization", "Origin", "Last-Event-ID"):
        if len(headers.get_all(name)) > 1:
            begin = _NO_HANDSHAKE if path == "/ws" else "This is no valid request"
            text = f"{begin}: the header {name} occurs more than once."
            return Refusal(400, "bad_header", text)
    try:
        fields = parse_qs(query, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX)
    except ValueError:
        text = f"The query has too many fields: {QUERY_FIELDS_MAX} are allowed."
        return Refusal(400, "bad_query", text)
    offered = [
        entry.strip() for value in headers.get_all("Sec-WebSocket-Protocol") for entry in value.split(",")
    ]
    return Handshake(
        path=path,
        query=fields,
        origin=headers.get("Origin"),
        authorization=authorizations[0] if authorizations else None,
        subprotocols=tuple(entry for entry in offered if entry),
        cookie="; ".join(headers.get_all("Cookie")) or None,
    )
