"""`bridge revoke`: close sessions on all nodes and refuse their tokens."""

from __future__ import annotations

import json
import sys
import time

import msgspec

from bridge.adapters.actions import Action
from bridge.adapters.postgres.revocations import PostgresRevocations
from bridge.app.clock import SystemClock
from bridge.cli.record import actor, on_record
from bridge.config import CommonSettings
from bridge.core.contract.control import BadControl, decode_revocation, revoke_reply
from bridge.core.delivery.revoking import answered
from bridge.core.errors import SettingsError
from bridge.core.model.revocations import Revocation, RevocationAnswer


def revocation_of(
    user: str | None, before: float | None, token_id: str | None, session: str | None
) -> Revocation:
    """The revocation that the options name; `before` is by default now. Raises SettingsError for wrong ones."""
    asked: dict[str, object] = {}
    if user is not None:
        asked = {"user": user, "before": time.time() if before is None else before}
    elif before is not None:
        raise SettingsError("--before", "goes with --user")
    elif token_id is not None:
        asked = {"jti": token_id}
    elif session is not None:
        asked = {"session": session}
    read = decode_revocation(json.dumps(asked).encode())
    if isinstance(read, BadControl):
        raise SettingsError("the revocation", read.problem)
    return read


async def revoke(settings: CommonSettings, revocation: Revocation, *, as_json: bool) -> int:
    """Commit a revocation and print what came of it; 1 if a live node did not confirm it in time."""
    clock = SystemClock()
    log = PostgresRevocations(settings.postgres_dsn, "command")
    started = clock.monotonic()

    async def work() -> RevocationAnswer:
        return await answered(log, await log.revoke(revocation), clock)

    try:
        async with on_record(settings) as record:
            action = Action(actor(), "revoke", revocation.named())
            answer = await record.carry_out(action, work, msgspec.structs.asdict)
    finally:
        await log.close()
    took_ms = round((clock.monotonic() - started) * 1000, 1)
    if as_json:
        print(revoke_reply("", answer, took_ms).decode())
    else:
        where = ", ".join(answer.nodes) or "no node"
        print(f"revoked; sessions closed: {answer.sessions}; confirmed by {where} in {took_ms:.0f} ms")
    for node in answer.gone:
        print(
            f"{node} is gone, or cut off; what it had handed over by then may still be read", file=sys.stderr
        )
    for node in answer.silent:
        print(f"{node} has not confirmed it; it will as soon as it reaches the database", file=sys.stderr)
    return 1 if answer.silent else 0
