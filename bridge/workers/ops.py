"""The ops port of a group: sums of what the workers say, and a worker's own answer for everything else.

| route            | answers                                                                                     |
|------------------|---------------------------------------------------------------------------------------------|
| GET /livez       | 200 while the supervisor lives                                                              |
| GET /readyz      | 200 if a worker is ready, or 503; `workers` has the causes of each                          |
| GET /metrics     | the pages of all, with the label `worker`, and what the supervisor counts                   |
| GET /status      | the sum of all, and in `workers` the state of each                                          |
| GET /v1/outcomes | those of all                                                                                |
| GET /v1/history  | the sums of all                                                                             |
| all others       | passed on to the worker that takes the pushes, or to one that is ready                      |

Who may ask is decided by the workers: each gets the request's headers. Errors are those of `bridge.ops.answers`, and

| status | word      | when                                                              |
|--------|-----------|-------------------------------------------------------------------|
| 502    | `worker`  | the worker that had the request ended before it answered          |
| 503    | `workers` | no worker answers                                                 |
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from bridge.core.model.pushes import MESSAGE_BYTES_MAX
from bridge.core.ports.clock import Clock
from bridge.ops.answers import answer_to_error, json_answer
from bridge.ops.server import add_headers, runner_of, serve_port
from bridge.workers import merging
from bridge.workers.asking import NOBODY, PROBE_SECONDS, Answer, Asking, Worker, asking
from bridge.workers.merging import About
from bridge.workers.stream import Stream

log = logging.getLogger("bridge.ops")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def listening(
    host: str, port: int, workers: Sequence[Worker], *, node: str, ws_port: int, clock: Clock
) -> AsyncIterator[int]:
    """Serve the ops port (0: any free one), which is yielded. Raises SettingsError if it is taken."""
    own = {"node": node, "boot": uuid.uuid4().hex, "started_at": clock.time(), "ws_port": ws_port}
    async with asking(workers) as asked:
        group = GroupOps(asked, own, clock)
        runner = runner_of(group.app())
        await runner.setup()
        try:
            yield await serve_port(runner, host, port)
        finally:
            group.stopping.set()
            await runner.cleanup()


class GroupOps:
    """The routes."""

    def __init__(self, workers: Asking, own: Mapping[str, Any], clock: Clock) -> None:
        self._workers = workers
        self._own = own
        self._clock = clock
        self.stopping = asyncio.Event()
        """Streams end once it is set."""

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[_answer_errors], client_max_size=MESSAGE_BYTES_MAX)
        app.on_response_prepare.append(add_headers)
        router = app.router
        router.add_get("/livez", self._livez)
        router.add_get("/readyz", self._readyz)
        router.add_get("/metrics", self._metrics)
        router.add_get("/status", self._status)
        router.add_get("/v1/history", self._history)
        router.add_get("/v1/outcomes", self._outcomes, allow_head=False)
        router.add_route("*", "/{path:.*}", self._workers.pass_on)
        return app

    def _about(self) -> list[About]:
        return [About(w.number, w.node, w.pid, w.restarts) for w in self._workers.workers]

    async def _livez(self, request: web.Request) -> web.Response:
        return json_answer({"alive": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        answers = await self._workers.each(request, PROBE_SECONDS)
        said = {
            number: msgspec.json.decode(a.body) for number, a in answers.items() if a.status in (200, 503)
        }
        readiness = merging.merged_readiness(said, self._about())
        return json_answer(readiness, 200 if readiness["ready"] else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        good, refused = _sorted(await self._workers.each(request))
        if refused is not None:
            return refused.response()
        page = merging.merged_metrics({number: answer.body for number, answer in good.items()}, self._about())
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8", "Cache-Control": "no-store"}
        return web.Response(body=page, headers=headers)

    async def _status(self, request: web.Request) -> web.Response:
        good, refused = _sorted(await self._workers.each(request))
        if refused is not None:
            return refused.response()
        said = {number: msgspec.json.decode(answer.body) for number, answer in good.items()}
        return json_answer(
            merging.merged_status(said, self._about(), {**self._own, "now": self._clock.time()})
        )

    async def _history(self, request: web.Request) -> web.Response:
        good, refused = _sorted(await self._workers.each(request))
        if refused is not None:
            return refused.response()
        return json_answer(
            merging.merged_history([msgspec.json.decode(answer.body) for answer in good.values()])
        )

    async def _outcomes(self, request: web.Request) -> web.StreamResponse:
        return await Stream(self._workers, request, self.stopping).answer()


def _sorted(answers: Mapping[int, Answer]) -> tuple[dict[int, Answer], Answer | None]:
    """The answers that count, or one that says why there is none, or that this asker gets none."""
    good = {number: answer for number, answer in answers.items() if answer.status == 200}
    others = [answer for answer in answers.values() if answer.status != 200]
    refusal = next((answer for answer in others if answer.status in (401, 403)), None)
    if not answers:
        raise NOBODY
    return good, refusal if good or refusal else others[0]


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ConnectionResetError:
        # The client left during the answer.
        raise
    except Exception as error:  # a bug in one route must not end the port that shows bugs
        return answer_to_error(error, request, _Logged())


class _Logged:
    """Fills the ErrorHandler port: the supervisor has no plug-ins."""

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        """Log it."""
        log.error("%s failed", where, exc_info=error, extra=dict(facts))
