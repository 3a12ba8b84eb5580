"""Asks workers over their unix sockets, and passes requests on to them as they came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Protocol

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from bridge.ops.answers import ErrorAnswer
from bridge.workers.link import State

SUM_SECONDS: Final = 3.0
"""Seconds that a worker has for its part of a sum; one that takes longer counts as down."""
PROBE_SECONDS: Final = 0.7
"""Seconds that it has to say whether it is ready: probes wait a second, as a rule."""
ANSWER_SECONDS: Final = 60.0
"""Seconds that it has for any other answer: a body may take ten, receipts thirty."""

_HOP_BY_HOP: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "expect",
    )
)
"""RFC 9110 7.6.1; they are of one connection. The `100 Continue` of an `Expect` has been sent already."""

_ASKED_FOR: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""Headers that the library would add."""

NOBODY: Final = ErrorAnswer(503, "workers", "No worker runs at this moment.", {"Retry-After": "1"})


class Worker(Protocol):
    """A worker, as far as it is asked."""

    @property
    def number(self) -> int:
        """From 1."""
        ...

    @property
    def node(self) -> str:
        """Its name among all nodes."""
        ...

    @property
    def ops_path(self) -> str:
        """The unix socket of its ops routes."""
        ...

    @property
    def pid(self) -> int | None:
        """Its process; None while none runs."""
        ...

    @property
    def restarts(self) -> int:
        """How often it was started again after it had ended by itself."""
        ...

    @property
    def state(self) -> State:
        """How it is, as far as it has told."""
        ...


class _Question(NamedTuple):
    """Requests with the same have the same answer."""

    path: str
    headers: frozenset[tuple[str, str]]
    seconds: float


class Answer(NamedTuple):
    """What a worker has answered."""

    status: int
    reason: str | None
    headers: CIMultiDict[str]
    body: bytes

    def response(self) -> web.Response:
        """The same for whoever asked."""
        return web.Response(status=self.status, reason=self.reason, headers=self.headers, body=self.body)


class Asking:
    """Has a client for each worker. Made by `asking`."""

    def __init__(self, workers: Sequence[Worker], clients: Sequence[aiohttp.ClientSession]) -> None:
        self.workers = workers
        self._clients = dict(zip(workers, clients, strict=True))
        self._under_way: dict[_Question, asyncio.Future[dict[int, Answer] | None]] = {}
        """None: whoever asked has left, so somebody else must ask."""

    @property
    def best(self) -> Sequence[Worker]:
        """The workers that run, those first that can do most: the one that takes the pushes, then who is ready."""
        running = [worker for worker in self.workers if worker.pid is not None]
        return sorted(running, key=lambda worker: (not worker.state.ready, not worker.state.active))

    async def each(self, request: web.Request, seconds: float = SUM_SECONDS) -> dict[int, Answer]:
        """What each worker answers to a GET of this path, by number. One that does not answer in time is left out.

        Whoever asks the same meanwhile gets the same: a thousand probes at once would make workers look as if they
        were down.
        """
        question = _Question(request.path_qs, frozenset(request.headers.items()), seconds)
        while (asked := self._under_way.get(question)) is not None:
            # Not cancelled with one of those who wait.
            answers = await asyncio.shield(asked)
            if answers is not None:
                return answers
        mine = self._under_way[question] = asyncio.get_running_loop().create_future()
        try:
            answers = await self._ask_each(request, seconds)
            mine.set_result(answers)
            return answers
        finally:
            del self._under_way[question]
            if not mine.done():
                mine.set_result(None)

    async def _ask_each(self, request: web.Request, seconds: float) -> dict[int, Answer]:
        async def ask(worker: Worker) -> Answer | None:
            if worker.pid is None:
                return None
            try:
                async with asyncio.timeout(seconds):
                    return await self._ask(worker, request, "GET", with_body=False)
            except (aiohttp.ClientError, OSError, TimeoutError):
                return None

        answers = await asyncio.gather(*(ask(worker) for worker in self.workers))
        return {
            worker.number: answer
            for worker, answer in zip(self.workers, answers, strict=True)
            if answer is not None
        }

    async def pass_on(self, request: web.Request) -> web.Response:
        """The answer of the worker that can do most."""
        for worker in self.best:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await self._ask(worker, request, request.method, with_body=True)
            except aiohttp.ClientConnectorError:
                # It has just ended, and has nothing of this request.
                continue
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise ErrorAnswer(
                    502,
                    "worker",
                    "The worker that had this request ended before it answered; nobody knows what it has done.",
                ) from error
            return answer.response()
        raise NOBODY

    async def _ask(self, worker: Worker, request: web.Request, method: str, *, with_body: bool) -> Answer:
        async with self.request(worker, request, method, with_body=with_body) as response:
            return await answer_of(response)

    @asynccontextmanager
    async def request(
        self, worker: Worker, request: web.Request, method: str, *, with_body: bool = False
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask one worker for the path of this request, with its headers. Raises aiohttp.ClientError."""
        headers = _end_to_end(request.headers)
        has_body = with_body and request.body_exists
        if not with_body:
            headers.popall("Content-Length", None)
        url = URL.build(
            scheme="http",
            host="localhost",
            path=request.rel_url.raw_path,
            query_string=request.rel_url.raw_query_string,
            encoded=True,
        )
        async with self._clients[worker].request(
            method,
            url,
            headers=headers,
            data=request.content if has_body else None,
            allow_redirects=False,
        ) as response:
            yield response


@asynccontextmanager
async def asking(workers: Sequence[Worker]) -> AsyncIterator[Asking]:
    """Workers can be asked for the length of the block."""
    clients = [_client(worker) for worker in workers]
    try:
        yield Asking(workers, clients)
    finally:
        for client in clients:
            await client.close()


async def answer_of(response: aiohttp.ClientResponse) -> Answer:
    """Read it to its end."""
    body = await response.read()
    headers = _end_to_end(response.headers)
    if response.method != "HEAD":
        # What is sent has a length of its own.
        headers.popall("Content-Length", None)
    return Answer(response.status, response.reason, headers, body)


def _client(worker: Worker) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # Connections are not kept: one that its worker has just closed would look like a worker that has died.
        connector=aiohttp.UnixConnector(path=worker.ops_path, limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_ASKED_FOR,
        timeout=aiohttp.ClientTimeout(total=None),
    )


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Those that are meant for the other end."""
    named = {name.strip().lower() for value in headers.getall("Connection", []) for name in value.split(",")}
    kept: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        if name.lower() not in _HOP_BY_HOP and name.lower() not in named:
            # What is not UTF-8 would not be sent; it can't be what anybody expects either.
            kept.add(name, value.encode("utf-8", "backslashreplace").decode())
    return kept
