"""The ops port: metrics, status, probes, pushing over HTTP, outcomes as they happen, and the demo page.

| route               | answers                                                                             |
|---------------------|-------------------------------------------------------------------------------------|
| GET /livez          | 200 while the process serves                                                        |
| GET /readyz         | 200, or 503 with the causes; without a token that is asked for, with their names    |
| GET /metrics        | Prometheus' text format                                                             |
| GET /status         | a JSON object, `OpsServer.status`                                                   |
| POST /v1/push       | publishes a push request v1, or an array of them, through the broker                |
| GET /v1/outcomes    | server-sent events, one for each committed row; `?user=` and `?push_id=` choose     |
| GET /v1/pushes/{id} | what became of a push, as `bridge why` tells it; `?user=` and `?tenant=` choose.     |
|                     | Only where the delivery log is in Postgres, 404 otherwise                           |
| POST /v1/recall     | withdraws pushes, by id or by user and collapse key; says what ended by it          |
| POST /v1/dev/token  | a token for a user; only in development, 404 otherwise                              |
| GET /               | the demo page                                                                       |
| GET /endings.json   | what each outcome and reason mean, for the page                                     |

Who may ask. With a token (BRIDGE_OPS_TOKEN), whoever sends it as `Authorization: Bearer`. Without one the
port listens on loopback only, and whoever reaches it may ask, but a web page of somebody else's must not be
able to make the browser of whoever sits at this machine ask for it: the Host must be a loopback name (DNS
rebinding), and a POST must carry JSON (which no cross-origin form can, without our leave) and no foreign
Origin. Probes are free, and so are the page's own files: the page asks for the token.

Errors are `{"error": word, "problem": sentence}`:

| status | word               | when                                                                      |
|--------|--------------------|---------------------------------------------------------------------------|
| 400    | `bad_request`      | a wrong query, or a body that can't be read                               |
| 401    | `token`            | no bearer token, or a wrong one                                           |
| 403    | `host`, `origin`   | see above                                                                 |
| 404    | `not_found`        | no such route                                                             |
| 404    | `unknown`          | the delivery log has no row of that push (for this user, of this tenant)  |
| 405    | `not_allowed`      | a route, but not for this method                                          |
| 408    | `too_slow`         | the body did not arrive in `BODY_SECONDS`                                 |
| 413    | `too_large`        | a body over 1 MiB                                                         |
| 415    | `not_json`         | a POST without `Content-Type: application/json`, or with a coded body     |
| 429    | `too_many`         | more than `SUBSCRIBERS_MAX` readers of outcomes                           |
| 500    | `failed`           | a defect of ours; the error handler has it                                |
| 503    | `broker`           | the broker did not take the push; it may be sent again with the same id   |
| 503    | `database`         | the database did not answer, or its schema is too old                     |

What is not even HTTP gets 400 as text. schemas/openapi.json describes each route and every status it has.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Final, Protocol

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from bridge.adapters.http_malformed import Runner
from bridge.addresses import is_loopback
from bridge.core.contract.control import BadControl, control_reply, decode_recall
from bridge.core.contract.fields import is_id
from bridge.core.contract.jsontext import BAD_JSON
from bridge.core.contract.receipts import receipt_body
from bridge.core.contract.requests import Limits, decode_in_steps
from bridge.core.contract.stepping import in_turns
from bridge.core.errors import BrokerUnavailable, SettingsError, StoreUnavailable
from bridge.core.mailbox.recalls import Recalled
from bridge.core.model.outcomes import ENDINGS, Outcome, Proof
from bridge.core.model.pushes import (
    ID_MAX,
    MESSAGE_BYTES_MAX,
    NO_USER,
    Properties,
    PushRequest,
    Recall,
    Rejected,
    ToAll,
    ToSession,
    ToUser,
)
from bridge.core.model.rows import Row
from bridge.core.ports.broker import AckToken, Arrival, Source
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler, SessionInfo
from bridge.core.redaction import without_known
from bridge.operator import story
from bridge.operator.inquiry import Found, Told
from bridge.ops.outcome_feed import Missed, OutcomeFeed

WAIT_MAX: Final = 30.0
"""Seconds that `?wait=` may ask for."""
WAIT_REJECTED: Final = 5.0
"""Seconds to wait at least for the receipts of a request that is known to be wrong before it is published."""
BODY_SECONDS: Final = 10.0
"""Seconds in which a request's body has to arrive."""
STOP_SECONDS: Final = 2.0
"""Seconds that requests under way get at a stop."""
SUBSCRIBERS_MAX: Final = 64
HEARTBEAT: Final = 15.0
"""Seconds after which a quiet stream of outcomes shows that it is still there."""
LOOK_UPS_AT_ONCE: Final = 4
"""Each has a connection to the database of its own; those over it wait."""
SESSIONS_SHOWN: Final = 100
"""Sessions listed in `/status`."""
TOKEN_SECONDS: Final = 3600
"""Life of a development token, in seconds."""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::\d+)?")
_STATIC: Final = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/bridge-client.js": ("bridge-client.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_ENDINGS_PATH: Final = "/endings.json"
_FREE: Final = frozenset({"/livez", "/readyz", _ENDINGS_PATH, *_STATIC})
_HEADERS: Final = {
    # The page talks to the WebSocket port, which is another origin, and may be told to use a third.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "bridge",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


# --- What the app gives ----------------------------------------------------------------------------------


class LookUp(Protocol):
    """Asks the delivery log."""

    async def __call__(self, push_id: str, user: str | None, tenant: str | None) -> Found:
        """What it holds of a push: for a user or for all, of a tenant or of any.

        Raises StoreUnavailable.
        """
        ...


class RecallPushes(Protocol):
    """Withdraws pushes."""

    async def __call__(self, recall: Recall) -> Recalled:
        """Return once it is carried out. Raises StoreUnavailable."""
        ...


class Publisher(Protocol):
    """Publishes to the exchange `push`; a request without an id gets `push_id`.

    Both raise BrokerUnavailable where the broker did not confirm.
    """

    async def publish(self, body: bytes, *, push_id: str, headers: Mapping[str, object]) -> None:
        """Return once the broker has confirmed."""
        ...

    async def request(
        self,
        body: bytes,
        *,
        push_id: str,
        headers: Mapping[str, object],
        expected: int | None,
        wait: float,
    ) -> Sequence[Mapping[str, object]]:
        """Publish, and return the receipts once there are `expected` of them, or after `wait` seconds
        those that came (None: it is not known how many there will be)."""
        ...


@dataclass(frozen=True)
class OpsContext:
    """What the ops port shows and does, as the composition root gives it."""

    node: str
    boot: str
    version: str
    started_at: float
    ws_port: Callable[[], int]
    readiness: Callable[[], tuple[bool, Sequence[str]]]
    """Whether the bridge takes pushes, and if not, one sentence for each cause: its name, a colon, and why."""
    role: Callable[[], str | None]
    """`active`, `standby` or `unknown`; None while there is no connection to the broker."""
    gauges: Callable[[], Mapping[str, float]]
    """How much there is of everything now, as on the metrics page."""
    sessions: Callable[[int], Sequence[SessionInfo]]
    """At most so many open sessions."""
    metrics_page: Callable[[], bytes]
    publisher: Publisher
    recall: RecallPushes
    feed: OutcomeFeed
    limits: Limits
    errors: ErrorHandler
    clock: Clock
    dev_token: Callable[[str, float], str] | None = None
    """Makes a token for a user, good for so many seconds; None outside of development."""
    look_up: LookUp | None = None
    """None where the delivery log can't be asked."""


# --- The server ------------------------------------------------------------------------------------------


class _Defects(logging.Filter):
    """Keeps aiohttp from logging a traceback for each client that speaks bad HTTP, which its answer tells it, or
    that leaves before its answer."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (HttpProcessingError, ConnectionResetError))


_aiohttp_logger = logging.getLogger("bridge.ops")
_aiohttp_logger.addFilter(_Defects())


class _Answer(Exception):
    """An error answer of the module's table."""

    def __init__(
        self, status: int, word: str, problem: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self.word = word
        self.problem = problem
        self.headers = headers
        super().__init__(f"{status} {word}: {problem}")

    def response(self) -> web.Response:
        return _json({"error": self.word, "problem": self.problem}, self.status, self.headers)


@asynccontextmanager
async def listen(context: OpsContext, *, host: str, port: int, token: str = "") -> AsyncIterator[OpsServer]:
    """Serve until the block ends; then streams are ended and open requests get `STOP_SECONDS`.

    Raises SettingsError for a host that is not loopback without a token, and for an address that is taken.
    """
    if not token and not is_loopback(host):
        raise SettingsError(
            "BRIDGE_OPS_TOKEN", f"required since BRIDGE_OPS_HOST is {host!r}, which others can reach"
        )
    server = OpsServer(context, token)
    runner = Runner(
        server.app(),
        access_log=None,
        logger=_aiohttp_logger,
        auto_decompress=False,
        handler_cancellation=True,
        shutdown_timeout=STOP_SECONDS,
        keepalive_timeout=30.0,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            setting = "BRIDGE_OPS_PORT" if error.errno == errno.EADDRINUSE else "BRIDGE_OPS_HOST"
            raise SettingsError(setting, f"cannot listen on {host}:{port}: {error.strerror}") from error
        server.port = runner.addresses[0][1]
        yield server
    finally:
        context.feed.close()
        await runner.cleanup()


class OpsServer:
    """The routes of the module's table."""

    def __init__(self, context: OpsContext, token: str = "") -> None:
        self._context = context
        self._token = token.encode()
        self._look_ups = asyncio.Semaphore(LOOK_UPS_AT_ONCE)
        self.port = 0
        """Where it listens."""
        web_files = files("bridge") / "web"
        self._static = {
            path: (kind, (web_files / name).read_bytes()) for path, (name, kind) in _STATIC.items()
        }
        meanings = {f"{e.outcome}/{e.reason}": e.meaning for e in ENDINGS}
        self._static[_ENDINGS_PATH] = ("application/json", msgspec.json.encode(meanings))

    def app(self) -> web.Application:
        """The aiohttp application."""
        around = [self._without_secrets, self._errors, self._guard]
        app = web.Application(middlewares=around, client_max_size=MESSAGE_BYTES_MAX)
        app.on_response_prepare.append(_add_headers)
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/status", self._status)
        app.router.add_post("/v1/push", self._push)
        app.router.add_get("/v1/outcomes", self._outcomes, allow_head=False)
        if self._context.look_up is not None:
            # An id may hold slashes: those of batches and replays do.
            app.router.add_get("/v1/pushes/{id:.+}", self._pushed)
        app.router.add_post("/v1/recall", self._recall)
        if self._context.dev_token is not None:
            app.router.add_post("/v1/dev/token", self._dev_token)
        for path in self._static:
            app.router.add_get(path, self._page)
        return app

    # --- around every request ---

    @web.middleware
    async def _errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            return await handler(request)
        except _Answer as answer:
            return answer.response()
        except web.HTTPException as error:
            word = {404: "not_found", 405: "not_allowed", 413: "too_large"}.get(error.status, "bad_request")
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return _Answer(error.status, word, error.reason, allow).response()
        except BrokerUnavailable as away:
            return _Answer(503, "broker", str(away), {"Retry-After": "1"}).response()
        except StoreUnavailable as away:
            return _Answer(503, "database", str(away), {"Retry-After": "1"}).response()
        except ConnectionResetError:
            # The client left while it was answered: nobody is there to be told.
            raise
        except Exception as error:  # a defect in one route must not end the port that shows defects
            self._context.errors.handle(error, "ops", {"method": request.method, "path": request.path})
            return _Answer(500, "failed", "This should not happen; the log has the details.").response()

    @web.middleware
    async def _without_secrets(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """An answer may hold the text of any error."""
        answer = await handler(request)
        if (
            isinstance(answer, web.Response)
            and isinstance(answer.body, bytes)
            and request.path not in _STATIC
        ):
            text = answer.body.decode()
            cleaned = without_known(text)
            if cleaned != text:
                answer.body = cleaned.encode()
        return answer

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path not in _FREE:
            if self._token:
                self._require_token(request)
            else:
                self._require_local(request)
            if request.method == "POST" and request.match_info.http_exception is None:
                _require_json(request)
        return await handler(request)

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # Both sides as bytes: the comparison refuses text beyond ASCII.
        given_bytes = given.strip().encode("utf-8", "surrogateescape")
        return scheme.lower() == "bearer" and hmac.compare_digest(given_bytes, self._token)

    def _require_token(self, request: web.Request) -> None:
        if not self._has_token(request):
            raise _Answer(
                401,
                "token",
                "Authorization: Bearer with BRIDGE_OPS_TOKEN is required.",
                {"WWW-Authenticate": 'Bearer realm="bridge ops"'},
            )

    @staticmethod
    def _require_local(request: web.Request) -> None:
        host = _HOST.fullmatch(request.host)
        if host is None or not is_loopback(host[1]):
            raise _Answer(403, "host", "Without BRIDGE_OPS_TOKEN only loopback names are served here.")
        origin = request.headers.get("Origin")
        if origin is not None and origin != f"http://{request.host}":
            raise _Answer(403, "origin", "Pages of another origin may not ask here.")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise _Answer(403, "origin", "Pages of another origin may not ask here.")

    # --- looking ---

    async def _livez(self, request: web.Request) -> web.Response:
        return _json({"alive": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        ready, causes = self._context.readiness()
        if self._token and not self._has_token(request):
            # Anybody may ask here: which part is not ready is enough for a balancer.
            causes = [cause.partition(":")[0] for cause in causes]
        return _json({"ready": ready, "causes": list(causes)}, 200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._context.metrics_page(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8", "Cache-Control": "no-store"},
        )

    async def _status(self, request: web.Request) -> web.Response:
        return _json(self.status())

    def status(self) -> dict[str, object]:
        """What `/status` shows: who this is, whether it is ready, how much there is, the first sessions."""
        context = self._context
        ready, causes = context.readiness()
        return {
            "node": context.node,
            "boot": context.boot,
            "version": context.version,
            "started_at": context.started_at,
            "now": context.clock.time(),
            "ready": ready,
            "causes": list(causes),
            "role": context.role(),
            "ws_port": context.ws_port(),
            "dev": context.dev_token is not None,
            "gauges": dict(context.gauges()),
            "sessions": [session._asdict() for session in context.sessions(SESSIONS_SHOWN)],
        }

    async def _page(self, request: web.Request) -> web.Response:
        kind, body = self._static[request.path]
        return web.Response(
            body=body, content_type=kind, charset="utf-8", headers={"Cache-Control": "no-cache"}
        )

    # --- pushing ---

    async def _push(self, request: web.Request) -> web.Response:
        """202 with the ids; with `?wait=` 200 with the final receipts, or 202 with what there is of them.

        A push that is kept for a user who is away ends the wait: its end may be days off. It counts in `stored`.

        What is wrong in every part goes through the broker as well, so that its row tells of it, but is
        always waited for and answered with 422 and its receipts, or those that came in `WAIT_REJECTED`.
        """
        _require_no_amqp_headers(request)
        wait = _wait(request)
        body = await _body(request)
        # What has no id of its own gets this one, so that the answer can name it.
        push_id = uuid.uuid4().hex
        now = self._context.clock.time()
        # Whole milliseconds: no fraction is taken, since some libraries write floats with 32 bits.
        headers: dict[str, object] = {"x-push-published-ms": int(now * 1000)}
        traceparent = request.headers.get("traceparent", "")
        if traceparent and traceparent.isascii():  # a wrong one is to be ignored (W3C Trace Context 3.2.2.3)
            headers["traceparent"] = traceparent
        properties = Properties(content_type="application/json", headers={**headers, "x-push-id": push_id})
        arrival = Arrival(AckToken(0, 0), Source.REQUESTS, body, len(body), properties, now)
        decoded = await in_turns(decode_in_steps(arrival, self._context.limits), self._context.clock)
        requests = decoded.requests
        push_ids = list(dict.fromkeys(r.id for r in requests if isinstance(r, PushRequest)))
        if wait is None and push_ids:
            await self._context.publisher.publish(body, push_id=push_id, headers=headers)
            return _json({"push_ids": push_ids, "complete": False, "stored": 0, "receipts": []}, 202)
        expected = _expected(requests)
        receipts = await self._context.publisher.request(
            body,
            push_id=push_id,
            headers=headers,
            expected=expected,
            wait=max(wait or 0.0, 0.0 if push_ids else WAIT_REJECTED),
        )
        ended, stored = _counted(receipts)
        complete = expected is not None and ended >= expected
        if not push_ids or (receipts and all(r.get("outcome") == Outcome.REJECTED for r in receipts)):
            status = 422
        else:
            status = 200 if complete or (expected is None and receipts) else 202
        answer = {"push_ids": push_ids, "complete": complete, "stored": stored, "receipts": list(receipts)}
        return _json(answer, status)

    # --- what became of a push ---

    async def _pushed(self, request: web.Request) -> web.Response:
        """Its rows, step by step; those of 20 users at most, and counts of all. As text where that is asked for."""
        look_up = self._context.look_up
        assert look_up is not None, "the route is only there where the log can be asked"
        push_id = request.match_info["id"]
        query = _query(request, "user", "tenant")
        user, tenant = query.get("user"), query.get("tenant")
        if "\0" in "".join((push_id, user or "", tenant or "")):
            raise _Answer(400, "bad_request", "U+0000 is in no id.")
        async with self._look_ups:
            found = await look_up(push_id, user, tenant)
        status = 200 if found.rows else 404
        if _wants_text(request):
            lines = (
                story.told(push_id, user, found) if found.endings else story.never_seen(push_id, found, None)
            )
            text = "".join(f"{line}\n" for line in lines)
            return web.Response(text=text, status=status, headers={"Cache-Control": "no-store"})
        answer: dict[str, object] = {
            "push_id": push_id,
            "endings": [ending._asdict() for ending in found.endings],
            "rows": [_told(row) for row in found.rows],
            "asked_at": found.asked_at,
            "log_since": found.kept_since,
        }
        if not found.rows:
            for_others = "for this user, but for others" if found.endings else "of this push"
            answer = {"error": "unknown", "problem": f"The delivery log has no row {for_others}.", **answer}
        return _json(answer, status)

    # --- recall ---

    async def _recall(self, request: web.Request) -> web.Response:
        """As a message on `push.control`, without the `type` that this route says already."""
        recall = decode_recall(await _body(request))
        if isinstance(recall, BadControl):
            raise _Answer(400, "bad_request", recall.problem)
        started = self._context.clock.monotonic()
        done = await self._context.recall(recall)
        took_ms = round((self._context.clock.monotonic() - started) * 1000, 3)
        answer = control_reply("recall", self._context.node, done.sessions, took_ms, done.ended)
        return _json(msgspec.json.decode(answer))

    # --- outcomes ---

    async def _outcomes(self, request: web.Request) -> web.StreamResponse:
        """`event: outcome` with a receipt as its data; `event: missed` with a count for a slow reader."""
        if self._context.feed.readers >= SUBSCRIBERS_MAX:
            raise _Answer(429, "too_many", f"{SUBSCRIBERS_MAX} others read outcomes already.")
        query = _query(request, "user", "push_id")
        for name, value in query.items():
            _require_id(name, value)
        user, push_id = query.get("user"), query.get("push_id")
        with self._context.feed.subscribe(user, push_id) as subscription:
            response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream; charset=utf-8",
                    "Cache-Control": "no-store",
                    "X-Accel-Buffering": "no",
                }
            )
            await response.prepare(request)
            await response.write(b": outcomes from now on\n\n")
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        batch = await subscription.next()
                except TimeoutError:
                    await response.write(b": still here\n\n")
                    continue
                if not batch:
                    break
                await response.write(b"".join(map(_event, batch)))
            await response.write_eof()
            return response

    # --- development ---

    async def _dev_token(self, request: web.Request) -> web.Response:
        make = self._context.dev_token
        assert make is not None, "the route is only there in development"
        try:
            wanted = msgspec.json.decode(await _body(request), type=_TokenWanted)
        except BAD_JSON as error:
            raise _Answer(400, "bad_request", str(error)) from error
        _require_id("user", wanted.user)
        return _json({"token": make(wanted.user, TOKEN_SECONDS), "expires_in": TOKEN_SECONDS})


class _TokenWanted(msgspec.Struct, forbid_unknown_fields=True):
    user: str


# --- small parts -----------------------------------------------------------------------------------------


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers[name] = value


def _json(
    body: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body) + b"\n",
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def _require_json(request: web.Request) -> None:
    # A coded body could unpack to anything, and nothing of a MiB needs it (RFC 9110 15.5.16).
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise _Answer(
            415, "not_json", "Content-Type: application/json without a Content-Encoding is required."
        )


def _require_no_amqp_headers(request: web.Request) -> None:
    """What would be ignored is refused: a push to the wrong users, or to nobody, helps no one."""
    for name in request.headers:
        if name.lower().startswith("x-push-"):
            raise _Answer(
                400,
                "bad_request",
                f"{name} is a header of AMQP messages. Over HTTP the whole request is in the body:"
                ' {"to": {"user": "u42"}, "data": {}}.',
            )


def _require_id(name: str, value: str) -> None:
    if not is_id(value):
        raise _Answer(400, "bad_request", f"{name}: 1 to {ID_MAX} characters without controls expected.")


def _query(request: web.Request, *known: str) -> dict[str, str]:
    """The parameters of the query by name. One that is not known, or there twice, would be ignored: refused."""
    query = request.query
    for name in query:
        if name not in known:
            raise _Answer(
                400, "bad_request", f"The query takes {', '.join(known)} here, and no other parameter."
            )
        if len(query.getall(name)) > 1:
            raise _Answer(400, "bad_request", f"{name}: expected once.")
    return dict(query)


def _told(row: Told) -> dict[str, object]:
    """A row of the log and its story; the steps that have no time say that something never happened."""
    facts: dict[str, object] = msgspec.to_builtins(row, builtin_types=(datetime,))
    steps = [{"step": step, "at": at, "how": how} for step, at, how in story.steps(row)]
    return {**facts, "confirm": Proof(row.confirm).name.lower(), "steps": steps}


def _wants_text(request: web.Request) -> bool:
    """Whether plain text is named before JSON, or anything, in `Accept`."""
    for part in request.headers.get("Accept", "").lower().split(","):
        match part.partition(";")[0].strip():
            case "text/plain" | "text/*":
                return True
            case "application/json" | "application/*" | "*/*":
                return False
    return False


def _wait(request: web.Request) -> float | None:
    text = _query(request, "wait").get("wait")
    if text is None:
        return None
    try:
        seconds = msgspec.json.decode(text, type=float)
    except BAD_JSON:
        seconds = -1.0
    if not 0 < seconds <= WAIT_MAX:
        raise _Answer(400, "bad_request", f"wait: seconds above 0 and up to {WAIT_MAX:g} expected.")
    return seconds


async def _body(request: web.Request) -> bytes:
    if (request.content_length or 0) > MESSAGE_BYTES_MAX:
        raise _Answer(413, "too_large", f"The body is over {MESSAGE_BYTES_MAX} bytes.")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError as error:
        raise _Answer(408, "too_slow", f"The body did not arrive in {BODY_SECONDS:g} seconds.") from error


def _expected(requests: Sequence[PushRequest | Rejected]) -> int | None:
    """How many receipts there will be: one for each push and user. None where the bridge alone knows."""
    keys: set[tuple[str, str, str]] = set()
    for request in requests:
        if isinstance(request, Rejected):
            keys.add((request.tenant, request.id, NO_USER))
            continue
        target = request.target
        if isinstance(target, ToAll):
            return None
        if isinstance(target, ToUser):
            users: Sequence[str] = (target.user,)
        elif isinstance(target, ToSession):
            users = (NO_USER,)
        else:
            users = target.users
        keys.update((request.tenant, request.id, user) for user in users)
    return len(keys)


def _counted(receipts: Sequence[Mapping[str, object]]) -> tuple[int, int]:
    """Of how many pushes and users the final receipt is here, and how many are kept and have none yet."""
    ended: set[tuple[object, ...]] = set()
    stored: set[tuple[object, ...]] = set()
    for receipt in receipts:
        key = receipt["tenant"], receipt["push_id"], receipt["user_id"]
        if receipt["final"]:
            ended.add(key)
        elif receipt["outcome"] == Outcome.STORED:
            stored.add(key)
    return len(ended), len(stored - ended)


def _event(item: Row | Missed) -> bytes:
    if isinstance(item, Missed):
        return b'event: missed\ndata: {"count": %d}\n\n' % item.rows
    # A receipt is one line: JSON escapes every line break.
    return b"event: outcome\ndata: " + receipt_body(item) + b"\n\n"
