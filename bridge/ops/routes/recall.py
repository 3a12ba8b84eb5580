"""POST /v1/recall: take pushes back, by id or by user and collapse key; answers with what that ended."""

from __future__ import annotations

import msgspec
from aiohttp import web

from bridge.adapters.actions import Action
from bridge.core.contract.control import BadControl, control_reply, decode_recall
from bridge.core.mailbox.recalls import Recalled
from bridge.core.model.pushes import Recall
from bridge.ops import requests
from bridge.ops.access import actor
from bridge.ops.answers import bad_request, json_answer
from bridge.ops.context import OpsContext


class Recalling:
    """Recalls what it is asked to."""

    def __init__(self, context: OpsContext) -> None:
        self._node = context.node
        self._recall = context.recall
        self._clock = context.clock
        self._on_record = context.on_record

    async def post(self, request: web.Request) -> web.Response:
        """The body is that of a recall on `push.control`; `type` may be left out."""
        recall = decode_recall(await requests.body(request))
        if isinstance(recall, BadControl):
            raise bad_request(recall.problem)
        started = self._clock.monotonic()
        action = Action(actor(request), "recall", _target(recall))
        done = await self._on_record.carry_out(action, lambda: self._recall(recall), Recalled._asdict)
        took_ms = round((self._clock.monotonic() - started) * 1000, 3)
        answer = control_reply("recall", self._node, done.sessions, took_ms, done.ended)
        return json_answer(msgspec.json.decode(answer))


def _target(recall: Recall) -> dict[str, object]:
    named = (
        {"push_id": recall.push_id}
        if recall.push_id
        else {"user": recall.user, "collapse_key": recall.collapse_key}
    )
    return {**named, "tenant": recall.tenant}
