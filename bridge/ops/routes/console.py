"""GET /v1/pushes, /v1/topics, /v1/actions, /v1/audit, /v1/history and /v1/me: what only the console shows.

Every answer is a page: the bounds are those of `bridge.operator`.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Final

import msgspec
from aiohttp import web

from bridge.adapters.credentials import Scope
from bridge.adapters.metrics import SECONDS
from bridge.operator.auditor import CHECKS
from bridge.operator.search import FIELDS, place_of
from bridge.ops import requests
from bridge.ops.access import actor, allows
from bridge.ops.answers import bad_request, json_answer
from bridge.ops.context import Desk, OpsContext
from bridge.ops.history import EVERY
from bridge.ops.routes.why import responsible

TEXT_MAX: Final = 256
"""Characters of what is searched for."""


class Figures:
    """What this process knows by itself."""

    def __init__(self, context: OpsContext) -> None:
        self._context = context

    async def me(self, request: web.Request) -> web.Response:
        """The name of whoever asks, and what they may do."""
        requests.query(request)
        scopes = [scope for scope in Scope if allows(request, scope)]
        return json_answer({"name": actor(request), "scopes": scopes})

    async def history(self, request: web.Request) -> web.Response:
        """The samples of the last hour, or those after `?since=`, seconds since the epoch."""
        since = _seconds(requests.query(request, "since").get("since", "0"))
        samples = msgspec.to_builtins(self._context.history(since))
        return json_answer({"every": EVERY, "bounds": SECONDS, "samples": samples})

    async def audit(self, request: web.Request) -> web.Response:
        """What the last audit of this process found."""
        requests.query(request)
        drift, audited_at = self._context.drift()
        checks = [{"check": check, "found": drift[check], "counts": CHECKS.get(check, "")} for check in drift]
        return json_answer({"node": self._context.node, "audited_at": audited_at or None, "checks": checks})


class Lists:
    """What the log has."""

    def __init__(self, desk: Desk, free: asyncio.Semaphore) -> None:
        """`free`: as many as may look into the log at once."""
        self._desk = desk
        self._free = free

    async def pushes(self, request: web.Request) -> web.Response:
        """A page of pushes: those where `?field=` is `?q=`, or all. `?after=` is the `next` of the page before."""
        query = requests.query(request, "field", "q", "after")
        field, text = query.get("field", "any"), query.get("q", "")
        if field not in FIELDS:
            raise bad_request(f"field: one of {', '.join(FIELDS)} expected.")
        if len(text) > TEXT_MAX or "\0" in text:
            raise bad_request(f"q: at most {TEXT_MAX} characters expected, and no U+0000.")
        try:
            after = place_of(query["after"]) if "after" in query else None
        except ValueError as error:
            raise bad_request(str(error)) from error
        async with self._free:
            page = await self._desk.search(field, text, after)
        found = msgspec.to_builtins(page, builtin_types=(datetime,))
        for push in found["pushes"]:
            push["party"] = responsible(push["reason"])
        return json_answer(found)

    async def topics(self, request: web.Request) -> web.Response:
        """The topics that have subscribers or last values."""
        requests.query(request)
        async with self._free:
            found = await self._desk.topics()
        return json_answer(msgspec.to_builtins(found, builtin_types=(datetime,)))

    async def topic(self, request: web.Request) -> web.Response:
        """One topic. Its data is shown to who may do everything: who reads metrics need not see it."""
        requests.query(request)
        name = request.match_info["topic"]
        requests.require_id("topic", name)
        async with self._free:
            found = await self._desk.topic(name)
        told = msgspec.to_builtins(found, builtin_types=(datetime,))
        if not allows(request, Scope.ADMIN):
            for value in told["values"]:
                value["text"] = None
        return json_answer(told)

    async def actions(self, request: web.Request) -> web.Response:
        """What people did by hand, the newest first; `?before=` is the `begun_at` of the last one so far."""
        text = requests.query(request, "before").get("before")
        try:
            before = None if text is None else datetime.fromisoformat(text)
            if before is not None and before.tzinfo is None:
                raise ValueError
        except ValueError as error:
            raise bad_request(
                "before: a time with its zone expected, such as 2026-11-22T18:30:00Z."
            ) from error
        async with self._free:
            found = await self._desk.actions(before)
        return json_answer(msgspec.to_builtins(found, builtin_types=(datetime,)))


def _seconds(text: str) -> float:
    try:
        return msgspec.json.decode(text, type=float)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise bad_request("since: seconds since the epoch expected.") from error
