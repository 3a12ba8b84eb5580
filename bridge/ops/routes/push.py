"""POST /v1/push: publish a push request, or an array of them, through the broker, and wait for receipts if asked."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from aiohttp import web

from bridge.adapters.actions import Action
from bridge.core.contract.jsontext import BAD_JSON
from bridge.core.contract.requests import decode_in_steps
from bridge.core.contract.stepping import in_turns
from bridge.core.model.outcomes import Outcome
from bridge.core.model.pushes import (
    NO_USER,
    Properties,
    PushRequest,
    Rejected,
    ToAll,
    ToSession,
    ToTopic,
    ToUser,
)
from bridge.core.ports.broker import AckToken, Arrival, Source
from bridge.ops import requests
from bridge.ops.access import ASKER, actor
from bridge.ops.answers import bad_request, json_answer
from bridge.ops.context import OpsContext

WAIT_MAX: Final = 30.0
"""Seconds that `?wait=` may ask for."""
IDS_TOLD: Final = 10
"""Ids of a batch that its line of the log has."""
WAIT_REJECTED: Final = 5.0
"""Seconds to wait at least for the receipts of a request that is known to be wrong before it is published."""


class Pushing:
    """Publishes what it is sent."""

    def __init__(self, context: OpsContext) -> None:
        self._publisher = context.publisher
        self._limits = context.limits
        self._clock = context.clock
        self._on_record = context.on_record

    async def push(self, request: web.Request) -> web.Response:
        """202 with the ids; with `?wait=` 200 with the final receipts, or 202 with those that have come.

        A push that is kept for an absent user ends the wait, since its outcome may come days later. It counts in
        `stored`.

        A request that is wrong in every part goes through the broker as well, so that it gets its row. It is always
        waited for, and answered with 422 and the receipts that come within `WAIT_REJECTED`.

        Its rows name the credential as `app_id`. So there is no other row of who pushed, and a push needs no database.
        """
        _require_no_amqp_headers(request)
        wait = _wait(request)
        body = await requests.body(request)
        # A push without an id of its own gets this one, so that the answer can name it.
        push_id = uuid.uuid4().hex
        headers = self._headers(request)
        decoded = await self._decoded(body, {**headers, "x-push-id": push_id})
        push_ids = list(dict.fromkeys(r.id for r in decoded if isinstance(r, PushRequest)))
        if wait is None and push_ids:
            await self._publisher.publish(body, push_id=push_id, headers=headers, app_id=_app_id(request))
            self._tell(request, push_ids)
            return json_answer({"push_ids": push_ids, "complete": False, "stored": 0, "receipts": []}, 202)
        expected = _expected_receipts(decoded)
        receipts = await self._publisher.request(
            body,
            push_id=push_id,
            headers=headers,
            expected=expected,
            wait=max(wait or 0.0, 0.0 if push_ids else WAIT_REJECTED),
            app_id=_app_id(request),
        )
        self._tell(request, push_ids)
        ended, stored = _counted(receipts)
        complete = expected is not None and ended >= expected
        if not push_ids or (receipts and all(r.get("outcome") == Outcome.REJECTED for r in receipts)):
            status = 422
        else:
            status = 200 if complete or (expected is None and receipts) else 202
        answer = {"push_ids": push_ids, "complete": complete, "stored": stored, "receipts": list(receipts)}
        return json_answer(answer, status)

    def _tell(self, request: web.Request, push_ids: Sequence[str]) -> None:
        target = {"push_ids": push_ids[:IDS_TOLD], "pushes": len(push_ids)}
        self._on_record.tell(Action(actor(request), "push", target), "published", {})

    def _headers(self, request: web.Request) -> dict[str, object]:
        # Whole milliseconds: the bridge takes no fraction, since some libraries write floats with 32 bits.
        headers: dict[str, object] = {"x-push-published-ms": int(self._clock.time() * 1000)}
        traceparent = request.headers.get("traceparent", "")
        if traceparent and traceparent.isascii():  # a wrong one is to be ignored (W3C Trace Context 3.2.2.3)
            headers["traceparent"] = traceparent
        return headers

    async def _decoded(self, body: bytes, headers: Mapping[str, object]) -> Sequence[PushRequest | Rejected]:
        """What the consumer will make of this body."""
        properties = Properties(content_type="application/json", headers=headers)
        arrival = Arrival(AckToken(0, 0), Source.REQUESTS, body, len(body), properties, self._clock.time())
        return (await in_turns(decode_in_steps(arrival, self._limits), self._clock)).requests


def _app_id(request: web.Request) -> str:
    """The publisher as the rows name it; empty if it needed no credential."""
    asker = request.get(ASKER)
    return "" if asker is None else asker.name


def _require_no_amqp_headers(request: web.Request) -> None:
    """A header that would be ignored is an error: the push would go to the wrong users, or to nobody."""
    for name in request.headers:
        if name.lower().startswith("x-push-"):
            raise bad_request(
                f"{name} is a header of AMQP messages. Over HTTP the whole request is in the body:"
                ' {"to": {"user": "u42"}, "data": {}}.'
            )


def _wait(request: web.Request) -> float | None:
    text = requests.query(request, "wait").get("wait")
    if text is None:
        return None
    try:
        seconds = msgspec.json.decode(text, type=float)
    except BAD_JSON:
        seconds = -1.0
    if not 0 < seconds <= WAIT_MAX:
        raise bad_request(f"wait: seconds above 0 and up to {WAIT_MAX:g} expected.")
    return seconds


def _expected_receipts(decoded: Sequence[PushRequest | Rejected]) -> int | None:
    """How many receipts there will be: one for each push and user. None if only the bridge can know."""
    keys: set[tuple[str, str, str]] = set()
    for request in decoded:
        if isinstance(request, Rejected):
            keys.add((request.tenant, request.id, NO_USER))
            continue
        target = request.target
        if isinstance(target, ToAll | ToTopic):
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
    """How many pushes to a user have their final receipt, and how many are kept and have none yet."""
    ended: set[tuple[object, ...]] = set()
    stored: set[tuple[object, ...]] = set()
    for receipt in receipts:
        key = receipt["tenant"], receipt["push_id"], receipt["user_id"]
        if receipt["final"]:
            ended.add(key)
        elif receipt["outcome"] == Outcome.STORED:
            stored.add(key)
    return len(ended), len(stored - ended)
