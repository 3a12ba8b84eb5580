"""GET /v1/users/{id}: what is known of a user. POST /v1/users/{id}/disconnect: close their sessions."""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

import msgspec
from aiohttp import web

from bridge.adapters.actions import Action
from bridge.adapters.postgres.pool import CONNECTIONS
from bridge.core.contract.fields import is_id
from bridge.ops import requests
from bridge.ops.access import actor
from bridge.ops.answers import bad_request, json_answer
from bridge.ops.context import OpsContext, People

AT_ONCE: Final = CONNECTIONS["people"]
"""Each opens a connection to the database, so others wait: pushes must not go without."""


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    session: str | None = None


class Users:
    """Asks ledger and log for a user."""

    def __init__(self, context: OpsContext, people: People) -> None:
        self._people = people
        self._on_record = context.on_record
        self._free = asyncio.Semaphore(AT_ONCE)

    async def get(self, request: web.Request) -> web.Response:
        """Their live sessions and the last ones, what is kept for them, and their last pushes. 200 for whatever id: a
        user is whoever a token or a push names."""
        user = _user(request)
        requests.query(request)
        async with self._free:
            person = await self._people.look_up(user)
        return json_answer(msgspec.to_builtins(person, builtin_types=(type(person.asked_at),)))

    async def disconnect(self, request: web.Request) -> web.Response:
        """Close all their sessions, or the one that the body names. Their clients may come back: see revoke."""
        user = _user(request)
        requests.query(request)
        try:
            asked = msgspec.json.decode(await requests.body(request) or b"{}", type=_Asked)
        except msgspec.DecodeError as error:
            _refuse(str(error))
        if asked.session is not None and not is_id(asked.session):
            _refuse("session: expected a string of 1 to 128 characters without controls")
        target = {"user": user} if asked.session is None else {"user": user, "session": asked.session}
        async with self._free:
            done = await self._on_record.carry_out(
                Action(actor(request), "disconnect", target),
                lambda: self._people.disconnect(user, asked.session),
                lambda done: done._asdict(),
            )
        return json_answer(
            {"user": user, "sessions": done.sessions, "nodes": done.nodes, "silent": done.silent}
        )


def _user(request: web.Request) -> str:
    user = request.match_info["id"]
    if not is_id(user):
        _refuse("a user's id has 1 to 128 characters without controls")
    return user


def _refuse(problem: str) -> NoReturn:
    raise bad_request(problem)
