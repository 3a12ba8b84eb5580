"""What routes read of a request: its query, its body, its ids. A wrong one raises ErrorAnswer."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from bridge.core.contract.fields import is_id
from bridge.core.model.pushes import ID_MAX, MESSAGE_BYTES_MAX
from bridge.ops.answers import ErrorAnswer, bad_request

BODY_SECONDS: Final = 10.0
"""Seconds in which a request's body has to arrive."""


def query(request: web.Request, *known: str) -> dict[str, str]:
    """The parameters of the query by name. An unknown or repeated one would be ignored, so it is an error."""
    given = request.query
    for name in given:
        if name not in known:
            raise bad_request(f"The query takes {', '.join(known)} here, and no other parameter.")
        if len(given.getall(name)) > 1:
            raise bad_request(f"{name}: expected once.")
    return dict(given)


def require_id(name: str, value: str) -> None:
    """Raise for what can be no id of a user or a push."""
    if not is_id(value):
        raise bad_request(f"{name}: 1 to {ID_MAX} characters without controls expected.")


async def body(request: web.Request) -> bytes:
    """The whole body, at most 1 MiB within `BODY_SECONDS`."""
    if (request.content_length or 0) > MESSAGE_BYTES_MAX:
        raise ErrorAnswer(413, "too_large", f"The body is over {MESSAGE_BYTES_MAX} bytes.")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError as error:
        raise ErrorAnswer(408, "too_slow", f"The body did not arrive in {BODY_SECONDS:g} seconds.") from error
