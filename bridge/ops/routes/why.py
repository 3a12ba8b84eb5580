"""GET /v1/pushes/{id}: what became of a push, as `bridge why` tells it."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Final

import msgspec
from aiohttp import web

from bridge.adapters.postgres.pool import CONNECTIONS
from bridge.core.model.outcomes import Proof
from bridge.core.model.parties import PARTIES, Party
from bridge.operator import story
from bridge.operator.lookup import LoggedPush
from bridge.ops import requests
from bridge.ops.answers import bad_request, json_answer
from bridge.ops.context import LookUp

LOOK_UPS_AT_ONCE: Final = CONNECTIONS["look-ups"]
"""Each opens a connection to the database, so others wait: pushes must not go without."""
_PARTIES: Final = {reason.value: party for reason, party in PARTIES.items()}


class Why:
    """Asks the delivery log for a push."""

    def __init__(self, look_up: LookUp, free: asyncio.Semaphore) -> None:
        """`free`: as many as may look into the log at once."""
        self._look_up = look_up
        self._free = free

    async def get(self, request: web.Request) -> web.Response:
        """The rows of at most 20 users, step by step, and counts of all; as text if `Accept` prefers it."""
        push_id = request.match_info["id"]
        query = requests.query(request, "user", "tenant")
        user, tenant = query.get("user"), query.get("tenant")
        if "\0" in "".join((push_id, user or "", tenant or "")):
            raise bad_request("U+0000 is in no id.")
        async with self._free:
            found = await self._look_up(push_id, user, tenant)
        status = 200 if found.rows or found.scheduled else 404
        if _wants_text(request):
            lines = (
                story.tell(push_id, user, found)
                if found.endings or found.scheduled
                else story.never_seen(push_id, found, None)
            )
            text = "".join(f"{line}\n" for line in lines)
            return web.Response(text=text, status=status, headers={"Cache-Control": "no-store"})
        answer: dict[str, object] = {
            "push_id": push_id,
            "endings": [
                {**ending._asdict(), "party": responsible(ending.reason)} for ending in found.endings
            ],
            "rows": [_with_steps(row) for row in found.rows],
            "scheduled": [one._asdict() for one in found.scheduled],
            "asked_at": found.asked_at,
            "log_since": found.kept_since,
        }
        if status == 404:
            for_others = "for this user, but for others" if found.endings else "of this push"
            answer = {"error": "unknown", "problem": f"The delivery log has no row {for_others}.", **answer}
        return json_answer(answer, status)


def _with_steps(row: LoggedPush) -> dict[str, object]:
    """A row of the log and its steps; a step without a time never happened."""
    facts: dict[str, object] = msgspec.to_builtins(row, builtin_types=(datetime,))
    steps = [{"step": step, "at": at, "how": how} for step, at, how in story.steps(row)]
    return {
        **facts,
        "confirm": Proof(row.confirm).name.lower(),
        "party": responsible(row.reason),
        "steps": steps,
    }


def responsible(reason: str) -> Party | None:
    """Who is responsible for an end with this reason; None also for a reason of a newer bridge."""
    return _PARTIES.get(reason)


def _wants_text(request: web.Request) -> bool:
    """Whether `Accept` names plain text before JSON or anything."""
    for part in request.headers.get("Accept", "").lower().split(","):
        match part.partition(";")[0].strip():
            case "text/plain" | "text/*":
                return True
            case "application/json" | "application/*" | "*/*":
                return False
    return False
