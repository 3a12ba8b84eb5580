"""GET /v1/dead, POST /v1/dead/replay, /v1/dead/purge and /v1/replay: dead letters, and publishing again.

What changes something is on record; with `"dry_run": true` it only says what it would do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, NoReturn, TypeVar

import msgspec
from aiohttp import web

from bridge.adapters.actions import Action
from bridge.adapters.amqp.producer import NotTaken
from bridge.adapters.credentials import Scope
from bridge.core.contract.jsontext import BAD_JSON
from bridge.core.errors import SettingsError
from bridge.core.model.pushes import ID_MAX
from bridge.operator import replay as replaying
from bridge.operator.dead_letters import NoSuchQueue, Purge, Replayed
from bridge.operator.letters import LETTERS_SHOWN
from bridge.ops import requests
from bridge.ops.access import actor, allows
from bridge.ops.answers import ErrorAnswer, bad_request, json_answer
from bridge.ops.context import Desk, OpsContext

REPLAY_MAX: Final = 1_000
"""Pushes that a replay over HTTP may publish; `bridge replay` has no bound."""
CONDITIONS_MAX: Final = 50
TTL_MAX: Final = 366 * 86400.0

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_MAX)]
_Ids = Annotated[list[_Id], msgspec.Meta(min_length=1, max_length=LETTERS_SHOWN)]
_Condition = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]


class _Letters(msgspec.Struct, forbid_unknown_fields=True):
    ids: _Ids
    dry_run: bool = False
    new_ids: bool = False

    @property
    def texts(self) -> Sequence[str]:
        """What goes to the database."""
        return self.ids


class _Purged(msgspec.Struct, forbid_unknown_fields=True):
    ids: _Ids
    dry_run: bool = False

    @property
    def texts(self) -> Sequence[str]:
        """What goes to the database."""
        return self.ids


class _Replay(msgspec.Struct, forbid_unknown_fields=True):
    where: Annotated[list[_Condition], msgspec.Meta(min_length=1, max_length=CONDITIONS_MAX)]
    mark: str
    ttl: Annotated[float, msgspec.Meta(ge=0, le=TTL_MAX)] | None = None
    dry_run: bool = False

    @property
    def texts(self) -> Sequence[str]:
        """What goes to the database."""
        return self.where


T = TypeVar("T")
Body = TypeVar("Body", _Letters, _Purged, _Replay)


class Mending:
    """Does what it is asked to."""

    def __init__(self, context: OpsContext, desk: Desk, free: asyncio.Semaphore) -> None:
        """`free`: as many as may look into the log at once."""
        self._desk = desk
        self._free = free
        self._clock = context.clock
        self._on_record = context.on_record

    async def dead(self, request: web.Request) -> web.Response:
        """The oldest letters. Their bodies and headers are shown to who may do everything."""
        requests.query(request)
        try:
            found = await self._desk.dead()
        except NoSuchQueue:
            return json_answer({"letters": [], "total": 0})
        letters = list(found.letters)
        if not allows(request, Scope.ADMIN):
            letters = [{**letter, "body": None, "headers": {}} for letter in letters]
        return json_answer({"letters": letters, "total": found.total})

    async def dead_replay(self, request: web.Request) -> web.Response:
        """Publish letters again."""
        asked = await _asked(request, _Letters)

        async def work() -> Replayed:
            try:
                return await self._desk.dead_replay(asked.ids, new_ids=asked.new_ids, dry_run=asked.dry_run)
            except NoSuchQueue:
                return Replayed()

        if asked.dry_run:
            done = await work()
        else:
            action = Action(actor(request), "dead replay", {"ids": asked.ids, "new_ids": asked.new_ids})
            done = await _taken(
                lambda: self._on_record.carry_out(
                    action, work, lambda done: {"replayed": len(done.replayed), "kept": len(done.refused)}
                )
            )
        return json_answer(
            {
                "dry_run": asked.dry_run,
                "replayed": [{"id": old, "as": new} for old, new in done.replayed],
                "kept": [{"id": letter, "why": why} for letter, why in done.refused],
            }
        )

    async def dead_purge(self, request: web.Request) -> web.Response:
        """Delete letters; their rows stay."""
        asked = await _asked(request, _Purged)

        async def work() -> Purge:
            try:
                return await self._desk.dead_purge(asked.ids, dry_run=asked.dry_run)
            except NoSuchQueue:
                return Purge()

        if asked.dry_run:
            done = await work()
        else:
            action = Action(actor(request), "dead purge", {"ids": asked.ids})
            done = await self._on_record.carry_out(action, work, lambda done: {"deleted": done.found})
        return json_answer({"dry_run": asked.dry_run, "deleted": done.found})

    async def replay(self, request: web.Request) -> web.Response:
        """Publish logged pushes again, at most `REPLAY_MAX`."""
        asked = await _asked(request, _Replay)
        try:
            chosen = replaying.where(asked.where, datetime.fromtimestamp(self._clock.time(), UTC))
            mark = replaying.checked_mark(asked.mark)
        except SettingsError as error:
            _refuse(error.problem)
        async with self._free:
            counts = await self._desk.replay_count(chosen, mark)
            wanted, replayed = counts.get(replaying.REPLAYABLE, 0), 0
            if not asked.dry_run:
                if wanted > REPLAY_MAX:
                    _refuse(
                        f"{wanted} pushes fit; at most {REPLAY_MAX} are replayed here. `bridge replay` has no bound."
                    )
                target: dict[str, object] = {"where": asked.where, "mark": mark, "ttl": asked.ttl}
                replayed = await _taken(
                    lambda: self._on_record.carry_out(
                        Action(actor(request), "replay", target),
                        lambda: self._desk.replay(chosen, mark, asked.ttl),
                        lambda done: {"wanted": wanted, "replayed": done},
                    )
                )
        return json_answer(
            {"dry_run": asked.dry_run, "replayed": replayed, "most": REPLAY_MAX, "rows": _verdicts(counts)}
        )


def _verdicts(counts: Mapping[str, int]) -> Sequence[dict[str, object]]:
    return [
        {"verdict": verdict, "rows": counts[verdict], "meaning": words}
        for verdict, words in replaying.VERDICTS.items()
        if verdict in counts
    ]


async def _taken(publish: Callable[[], Awaitable[T]]) -> T:
    try:
        return await publish()
    except NotTaken as error:
        raise ErrorAnswer(503, "broker", str(error), {"Retry-After": "1"}) from error


async def _asked(request: web.Request, kind: type[Body]) -> Body:
    requests.query(request)
    try:
        asked = msgspec.json.decode(await requests.body(request), type=kind)
    except BAD_JSON as error:
        raise bad_request(str(error)) from error
    if any("\0" in text for text in asked.texts):
        _refuse("U+0000 is in no id.")
    return asked


def _refuse(problem: str) -> NoReturn:
    raise bad_request(problem)
