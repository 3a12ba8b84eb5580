"""The connect hook over HTTP: one POST of JSON for each question, on a connection of its own.

| what comes back                                        | what it is                          |
|--------------------------------------------------------|-------------------------------------|
| any status, with at most `ANSWER_BYTES_MAX` in its body| the answer; redirects are not followed |
| a longer body, or a compressed one                     | a failure                           |
| nothing whole within the time                          | a failure, and the hook is down     |
| no connection, or one that is closed before the answer | a failure, and the hook is down     |

Whose cookies are in a question is nobody else's business: what the hook wants to set is not kept. And an answer is as
good as a token, so it must be the one to this question: no connection is used twice. Bytes that come on a kept one
between two questions would be read as the answer to the second (HTTP/1.1 pairs them by their order, RFC 9112 9.3).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from bridge.adapters.http_causes import cause_of
from bridge.core.errors import ConnectHookFailed
from bridge.core.ports.connecting import HookAnswer

ANSWER_BYTES_MAX: Final = 64 * 1024
"""Bytes of the body of an answer."""
_HEADERS: Final = {
    "Accept": "application/json",
    # Compressed answers are not asked for: a small one can become a very large text.
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": "bridge",
}


class HttpConnectHook:
    """Fills the ConnectHook port."""

    def __init__(self, http: aiohttp.ClientSession, url: str, seconds: float) -> None:
        """`seconds`: for the whole answer, connecting included."""
        self._http = http
        self._url = url
        self._seconds = seconds

    async def ask(self, question: bytes) -> HookAnswer:
        """See the port."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._post(question)
        except TimeoutError:
            raise ConnectHookFailed(f"no answer within {self._seconds:g} s", down=True) from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise ConnectHookFailed(cause_of(error), down=True) from None

    async def _post(self, question: bytes) -> HookAnswer:
        async with self._http.post(self._url, data=question, allow_redirects=False) as answer:
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise ConnectHookFailed("the answer is compressed, which was not asked for")
            body = bytearray()
            async for part in answer.content.iter_any():
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise ConnectHookFailed(f"the answer has more than {ANSWER_BYTES_MAX} bytes")
            return HookAnswer(answer.status, bytes(body))


@asynccontextmanager
async def connect_hook(url: str, *, seconds: float, at_once: int) -> AsyncIterator[HttpConnectHook]:
    """The hook at this address, with at most `at_once` connections, for the length of the block."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=at_once, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=_HEADERS,
        trust_env=False,
    ) as http:
        yield HttpConnectHook(http, url, seconds)
