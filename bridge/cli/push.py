"""`bridge push`: publish a push request, and print what became of it."""

from __future__ import annotations

import json
import math
import sys
import time
import uuid
from argparse import Namespace
from typing import Final

from bridge.cli.receipts import receipt_line
from bridge.config import CommonSettings
from bridge.core.errors import InvalidRequest, SettingsError
from bridge.core.model.outcomes import DELIVERED, Outcome

CARED_FOR: Final = DELIVERED | {Outcome.STORED}
"""Outcomes that claim delivery, and `stored`: kept until the user comes."""

_PARTS: Final = {
    "user": "--user",
    "session": "--session",
    "topic": "--topic",
    "all": "--all",
    "excluded": "--except",
    "data": "--data",
    "text": "--text",
    "event": "--event",
    "confirm": "--confirm",
    "ttl": "--ttl",
    "ack_within": "--ack-within",
    "collapse_key": "--collapse-key",
    "devices": "--devices",
    "retain": "--retain",
    "fallback_after": "--fallback-after",
    "fallback_key": "--fallback-key",
    "deliver_at": "--deliver-at",
    "id": "--id",
    "tenant": "--tenant",
    "meta": "--meta",
}
"""The parts of a request on the command line, by their names in its arguments."""


def push_body(args: Namespace) -> bytes:
    """The body of a push request from the options; raises SettingsError for wrong ones."""
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
            topic=args.topic,
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
            devices=args.devices,
            retain=args.retain,
            fallback=_fallback(args),
            deliver_at=args.deliver_at,
            # Only the bridge knows how long its log keeps rows.
            limits=Limits(max_ttl=math.inf),
        )
    except InvalidRequest as error:
        raise SettingsError("the request", error.detail) from error


def _fallback(args: Namespace) -> dict[str, object] | None:
    """What is given of it: the check of the request says what is missing."""
    parts = {"after": args.fallback_after, "routing_key": args.fallback_key}
    return {name: value for name, value in parts.items() if value is not None} or None


def _json(text: bytes, where: str) -> bytes:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = (
            "; a string needs quotes inside the quotes: '\"hello\"', or use --text"
            if where == "--data"
            else ""
        )
        raise SettingsError(where, f"JSON expected ({error}){hint}") from error
    return text


def _stdin() -> bytes:
    return sys.stdin.buffer.read()


def _ahead(body: bytes) -> float:
    """The seconds until the last of these requests is to be delivered; not more than 0 where it is now."""
    requests = json.loads(body)
    times = [
        request.get("deliver_at")
        for request in (requests if isinstance(requests, list) else [requests])
        if isinstance(request, dict)
    ]
    return max((at for at in times if isinstance(at, int | float)), default=0.0) - time.time()


async def push(settings: CommonSettings, body: bytes, wait: float, *, as_json: bool) -> int:
    """Publish, wait at most `wait` seconds for the outcomes and print them; with 0 only wait for the confirm."""
    from bridge.adapters.amqp.producer import Producer

    async with Producer.connect(settings.amqp_url) as producer:
        if wait == 0:
            await producer.publish(body)
            return 0
        receipts = await producer.request(body, timeout=wait)
    for receipt in receipts:
        print(json.dumps(receipt, ensure_ascii=False) if as_json else receipt_line(receipt))
    # For each push and user the final receipt counts, or else the last: an earlier one may be `stored` or `pending`.
    ends = {
        (r["tenant"], r["push_id"], r["user_id"]): r for r in sorted(receipts, key=lambda r: bool(r["final"]))
    }.values()
    if not any(r["final"] or r["outcome"] == "stored" for r in ends):
        if (seconds := _ahead(body)) > 0:
            print(f"published; it is for later, in {seconds:,.0f} s (bridge why)", file=sys.stderr)
            return 0
        print(
            f"no outcome within {wait:g} s; the push is in the queue: is a bridge running? (bridge check)",
            file=sys.stderr,
        )
        return 1
    return 0 if all(r["outcome"] in CARED_FOR for r in ends) else 1
