"""POST /v1/recall: take pushes back, by id or by user and collapse key; answers with what that ended."""

from __future__ import annotations

import msgspec
from aiohttp import web

from bridge.core.contract.control import BadControl, control_reply, decode_recall
from bridge.ops import requests
from bridge.ops.answers import bad_request, json_answer
from bridge.ops.context import OpsContext


class Recalling:
    """Recalls what it is asked to."""

    def __init__(self, context: OpsContext) -> None:
        self._node = context.node
        self._recall = context.recall
        self._clock = context.clock

    async def post(self, request: web.Request) -> web.Response:
        """The body is that of a recall on `push.control`; `type` may be left out."""
        recall = decode_recall(await requests.body(request))
        if isinstance(recall, BadControl):
            raise bad_request(recall.problem)
        started = self._clock.monotonic()
        done = await self._recall(recall)
        took_ms = round((self._clock.monotonic() - started) * 1000, 3)
        answer = control_reply("recall", self._node, done.sessions, took_ms, done.ended)
        return json_answer(msgspec.json.decode(answer))
