"""GET /v1/outcomes: server-sent events, one for each committed row that the query wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from bridge.core.contract.receipts import receipt_body
from bridge.core.model.rows import Row
from bridge.operator.watching import EVERYTHING, Filter, WrongFilter, filter_of
from bridge.ops import requests
from bridge.ops.access import OpsAccess
from bridge.ops.answers import ErrorAnswer, bad_request
from bridge.ops.outcome_feed import Missed, OutcomeFeed, Subscription

SUBSCRIBERS_MAX: Final = 64
COMMENT_AFTER: Final = 15.0
"""Seconds after which a quiet stream sends a comment, so that its reader and the proxies between keep it open."""


class Outcomes:
    """Streams the feed."""

    def __init__(self, feed: OutcomeFeed, access: OpsAccess) -> None:
        self._feed = feed
        self._access = access

    async def get(self, request: web.Request) -> web.StreamResponse:
        """`event: outcome` with a receipt as its data; `event: missed` with a count for a slow reader.

        It ends when the credential of its reader no longer counts.
        """
        if self._feed.readers >= SUBSCRIBERS_MAX:
            raise ErrorAnswer(429, "too_many", f"{SUBSCRIBERS_MAX} others read outcomes already.")
        given = requests.query(request, *Filter._fields)
        try:
            wanted = filter_of(given) if given else EVERYTHING
        except WrongFilter as error:
            raise bad_request(str(error)) from error
        with self._feed.subscribe(wanted) as subscription:
            response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream; charset=utf-8",
                    "Cache-Control": "no-store",
                    "X-Accel-Buffering": "no",
                }
            )
            await response.prepare(request)
            await response.write(b": outcomes from now on\n\n")
            await _send_all(subscription, response, lambda: self._access.is_still_allowed(request))
            await response.write_eof()
            return response


async def _send_all(
    subscription: Subscription, response: web.StreamResponse, allowed: Callable[[], Awaitable[bool]]
) -> None:
    while await allowed():
        try:
            async with asyncio.timeout(COMMENT_AFTER):
                batch = await subscription.next()
        except TimeoutError:
            await response.write(b": still here\n\n")
            continue
        if not batch:
            return
        await response.write(b"".join(map(event, batch)))


def event(item: Row | Missed) -> bytes:
    """The server-sent event of a row, or of rows that were missed."""
    if isinstance(item, Missed):
        return b'event: missed\ndata: {"count": %d}\n\n' % item.rows
    # A receipt is one line: JSON escapes every line break.
    return b"event: outcome\ndata: " + receipt_body(item) + b"\n\n"
