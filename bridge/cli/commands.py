"""What the short commands of the command line do; each returns its exit code."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import math
import os
import sys
import uuid
from argparse import Namespace
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final, cast

from bridge.config import CommonSettings, Settings, TokenSettings, misspelt
from bridge.core.errors import InvalidRequest, SettingsError
from bridge.core.model.outcomes import DELIVERED, Outcome

log = logging.getLogger("bridge")

CARED_FOR: Final = DELIVERED | {Outcome.STORED}
"""Outcomes that claim delivery, and the one that says that it is kept until its user comes."""


def run_loop(story: Coroutine[Any, Any, int], *, uvloop: bool = True) -> int:
    """Run a coroutine on uvloop where it is wanted and installed, else on asyncio's own loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if uvloop and importlib.util.find_spec("uvloop"):
        import uvloop as library

        factory = library.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(story)


async def serve(settings: Settings) -> int:
    """Run the bridge until it is told to stop; returns the exit code of `app.serve`."""
    from bridge.adapters import logs
    from bridge.app import build as app

    logs.setup(settings.log_level, settings.log_format)
    for name, meant in misspelt(os.environ).items():
        log.warning("%s is no setting; %s was probably meant", name, meant)
    return await app.serve(settings)


# --- db --------------------------------------------------------------------------------------------------


def db_upgrade(settings: CommonSettings) -> int:
    """Apply the missing migrations and name them."""
    from bridge.adapters.postgres import migrate

    applied = migrate.upgrade(settings.postgres_dsn)
    for name in applied:
        print(f"applied {name}")
    if not applied:
        version = max(line.version for line in migrate.status(settings.postgres_dsn))
        newer = version > migrate.WANTED_VERSION
        print(f"nothing to do: {migrate.ahead(version) if newer else f'the schema is at version {version}'}")
    return 0


def db_status(settings: CommonSettings) -> int:
    """Print every migration; 1 where one is still to be applied."""
    from bridge.adapters.postgres import migrate

    lines = migrate.status(settings.postgres_dsn)
    for line in lines:
        when = (
            "still to be applied"
            if line.applied_at is None
            else f"applied {line.applied_at:%Y-%m-%d %H:%M:%S %Z}"
        ) + ("" if line.known else ", by a newer program")
        print(f"{line.name:<40} {when}")
    return 1 if any(line.applied_at is None for line in lines) else 0


def db_sql(settings: CommonSettings, *, everything: bool) -> int:
    """Print the SQL of the missing migrations, or of all."""
    from bridge.adapters.postgres import migrate

    print(migrate.pending_sql(None if everything else settings.postgres_dsn), end="")
    return 0


def db_grant(settings: CommonSettings, role: str) -> int:
    """Give a role what `bridge serve` needs, and print the statements."""
    from bridge.adapters.postgres import rights as postgres_rights

    for statement in postgres_rights.grant(settings.postgres_dsn, role):
        print(f"{statement};")
    return 0


# --- token -----------------------------------------------------------------------------------------------


def token(settings: TokenSettings, user: str, ttl: float) -> int:
    """Print a token that the bridge with the same settings takes."""
    from bridge.adapters.tokens import make_token

    if "jwt_secret" not in settings.model_fields_set:
        # With `dev` one is made up at each start: a token signed with it would open nothing.
        raise SettingsError(
            "BRIDGE_JWT_SECRET", "the secret of the bridge that is to take the token is needed"
        )
    made = make_token(
        settings.jwt_secret.get_secret_value(),
        user,
        ttl,
        algorithm=settings.jwt_algorithms[0],
        iss=settings.jwt_issuer or None,
        aud=settings.jwt_audience or None,
    )
    print(made)
    return 0


# --- push ------------------------------------------------------------------------------------------------


_PARTS: Final = {
    "user": "--user",
    "session": "--session",
    "all": "--all",
    "excluded": "--except",
    "data": "--data",
    "text": "--text",
    "event": "--event",
    "confirm": "--confirm",
    "ttl": "--ttl",
    "ack_within": "--ack-within",
    "collapse_key": "--collapse-key",
    "id": "--id",
    "tenant": "--tenant",
    "meta": "--meta",
}
"""The parts of a request on the command line, by their names in its arguments."""


def push_body(args: Namespace) -> bytes:
    """The body of a push request from the command line's words; raises SettingsError for wrong ones."""
    if args.request is not None:
        given = [flag for name, flag in _PARTS.items() if not _is_absent(getattr(args, name))]
        if given:
            raise SettingsError("REQUEST", f"is a whole request: it can't be mixed with {given[0]}")
        return _json(_stdin() if args.request == "-" else args.request.encode(), "REQUEST")
    if (args.data is None) == (args.text is None):
        raise SettingsError("--data", "one of --data JSON and --text TEXT is needed, or a whole REQUEST")
    return _built(args)


def _is_absent(value: object) -> bool:
    """Whether an option was left out; 0 and an empty string were given."""
    return value is None or value is False


def _built(args: Namespace) -> bytes:
    import msgspec

    from bridge.core.contract.requests import Limits, request_body

    data: object = args.text
    if args.data is not None:
        data = msgspec.Raw(_json(_stdin() if args.data == "-" else args.data.encode(), "--data"))
    users = args.user or []
    meta = dict(pair.partition("=")[::2] for pair in args.meta) if args.meta else None
    if meta and not all("=" in pair for pair in args.meta):
        raise SettingsError("--meta", "KEY=VALUE expected")
    try:
        return request_body(
            data,
            user=users[0] if len(users) == 1 else None,
            users=users if len(users) > 1 else None,
            session=args.session,
            everyone=args.all,
            excluded=args.excluded or (),
            push_id=args.id or str(uuid.uuid4()),
            event=args.event,
            confirm=args.confirm,
            tenant=args.tenant,
            meta=meta,
            ttl=args.ttl,
            ack_within=args.ack_within,
            collapse_key=args.collapse_key,
            # How long its log keeps rows is known to the bridge alone.
            limits=Limits(max_ttl=math.inf),
        )
    except InvalidRequest as error:
        raise SettingsError("the request", error.detail) from error


def _json(text: bytes, where: str) -> bytes:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = (
            "; a string wants quotes inside the quotes: '\"hello\"', or use --text"
            if where == "--data"
            else ""
        )
        raise SettingsError(where, f"JSON expected ({error}){hint}") from error
    return text


def _stdin() -> bytes:
    return sys.stdin.buffer.read()


async def push(settings: CommonSettings, body: bytes, wait: float, *, as_json: bool) -> int:
    """Publish, wait at most `wait` seconds for the outcomes and print them; 0: only for the confirm."""
    from bridge.adapters.amqp.producer import Producer

    async with Producer.connect(settings.amqp_url) as producer:
        if wait == 0:
            await producer.publish(body)
            return 0
        receipts = await producer.request(body, timeout=wait)
    for receipt in receipts:
        print(json.dumps(receipt, ensure_ascii=False) if as_json else receipt_line(receipt))
    # Of a push and user the final receipt counts, or else the last: the first may say that it is on its way.
    ends = {
        (r["tenant"], r["push_id"], r["user_id"]): r for r in sorted(receipts, key=lambda r: bool(r["final"]))
    }.values()
    if not any(r["final"] or r["outcome"] == "stored" for r in ends):
        print(
            f"no outcome within {wait:g} s; the push is in the queue: is a bridge running? (bridge check)",
            file=sys.stderr,
        )
        return 1
    return 0 if all(r["outcome"] in CARED_FOR for r in ends) else 1


def receipt_line(receipt: Mapping[str, Any]) -> str:
    """A receipt for people: user, outcome, reason, how long it took, what for, and the detail."""
    user = receipt.get("user_id") or "-"
    words = [f"{user:<16} {receipt['outcome']:<10} {receipt['reason']:<16} {_took(receipt):>9}"]
    words += [str(receipt[name]) for name in ("event", "push_id", "detail") if receipt.get(name)]
    return "  ".join(words)


def _took(receipt: Mapping[str, Any]) -> str:
    end = receipt.get("proven_at") or receipt.get("finished_at")
    start = receipt.get("taken_at")
    if not end or not start:
        return ""
    seconds = (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


# --- tail ------------------------------------------------------------------------------------------------


async def tail(settings: CommonSettings, binding_key: str, *, count: int | None, as_json: bool) -> int:
    """Print outcomes as they come, for ever or until `count` were printed."""
    from bridge.adapters.amqp.producer import outcomes

    seen = 0
    events = cast("AsyncGenerator[dict[str, Any]]", outcomes(settings.amqp_url, binding_key))
    async with aclosing(events) as receipts:
        async for receipt in receipts:
            line = json.dumps(receipt, ensure_ascii=False) if as_json else _tail_line(receipt)
            print(line, flush=True)
            seen += 1
            if seen == count:
                break
    return 0


def _tail_line(receipt: Mapping[str, Any]) -> str:
    when = receipt.get("finished_at") or receipt.get("taken_at")
    clock = datetime.fromisoformat(when).astimezone().strftime("%H:%M:%S") if when else "--:--:--"
    return f"{clock}  {receipt_line(receipt)}"
