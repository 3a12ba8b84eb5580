"""POST /v1/revoke: close sessions and refuse their tokens, by user and time, token id or session."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from aiohttp import web

from bridge.adapters.actions import Action
from bridge.core.contract.control import BadControl, decode_revocation, revoke_reply
from bridge.ops import requests
from bridge.ops.access import actor
from bridge.ops.answers import bad_request, json_answer
from bridge.ops.context import OpsContext

AT_ONCE: Final = 16
"""Revocations that are carried out at a time: each asks the database again and again until all nodes have confirmed it.
Others wait their turn."""


class RevokingTokens:
    """Revokes what it is asked to."""

    def __init__(self, context: OpsContext) -> None:
        self._node = context.node
        self._revoke = context.revoke
        self._clock = context.clock
        self._on_record = context.on_record
        self._free = asyncio.Semaphore(AT_ONCE)

    async def post(self, request: web.Request) -> web.Response:
        """The body is that of a revocation on `push.control`, without `type`."""
        revocation = decode_revocation(await requests.body(request))
        if isinstance(revocation, BadControl):
            raise bad_request(revocation.problem)
        started = self._clock.monotonic()
        action = Action(actor(request), "revoke", revocation.named())
        async with self._free:
            answer = await self._on_record.carry_out(
                action, lambda: self._revoke(revocation), msgspec.structs.asdict
            )
        took_ms = round((self._clock.monotonic() - started) * 1000, 3)
        return json_answer(msgspec.json.decode(revoke_reply(self._node, answer, took_ms)))
