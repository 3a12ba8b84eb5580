"""POST /v1/dev/token: a token for a user, in development only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import web

from bridge.adapters.actions import Action
from bridge.core.contract.jsontext import BAD_JSON
from bridge.ops import requests
from bridge.ops.access import actor
from bridge.ops.answers import bad_request, json_answer
from bridge.ops.context import OpsContext

TOKEN_SECONDS: Final = 3600
"""Seconds that a development token is valid."""


class _TokenRequest(msgspec.Struct, forbid_unknown_fields=True):
    user: str


class DevTokens:
    """Gives out tokens."""

    def __init__(self, context: OpsContext, make: Callable[[str, float], str]) -> None:
        """`make` signs a token for a user that is valid for so many seconds."""
        self._on_record = context.on_record
        self._make = make

    async def post(self, request: web.Request) -> web.Response:
        """A token for the user that the body names."""
        try:
            wanted = msgspec.json.decode(await requests.body(request), type=_TokenRequest)
        except BAD_JSON as error:
            raise bad_request(str(error)) from error
        requests.require_id("user", wanted.user)
        token = self._make(wanted.user, TOKEN_SECONDS)
        # It changes nothing, and only development has it: a line is enough.
        self._on_record.tell(Action(actor(request), "dev token", {"user": wanted.user}), "done", {})
        return json_answer({"token": token, "expires_in": TOKEN_SECONDS})
