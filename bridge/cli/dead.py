"""`bridge dead`: list, show, replay and purge the messages of push.dead."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from bridge.adapters.actions import Action
from bridge.adapters.amqp.encoding import legible
from bridge.cli.record import actor, on_record
from bridge.config import CommonSettings
from bridge.core.errors import SettingsError, StoreUnavailable
from bridge.operator import dead_letters, letters
from bridge.operator.dead_letters import Letter
from bridge.operator.letters import chooser
from bridge.operator.story import age, printable

Done = TypeVar("Done", dead_letters.Replayed, dead_letters.Purge)


async def dead_list(settings: CommonSettings, reasons: Sequence[str], *, limit: int, as_json: bool) -> int:
    """A line for each letter, oldest first, and how many there are of each reason."""
    chosen = chooser((), reasons)
    now = datetime.now(UTC)
    counts: dict[str, int] = {}
    looked_at = 0
    async with dead_letters.held(settings.amqp_url, limit) as pile:
        async for letter in pile.letters():
            looked_at += 1
            if not chosen(letter):
                continue
            if not counts and not as_json:
                print(f"{'id':<36}  {'reason':<16}  {'age':>6}  {'bytes':>7}  {'tenant/app':<20}  detail")
            counts[letter.reason] = counts.get(letter.reason, 0) + 1
            print(
                json.dumps(letters.summary(letter), ensure_ascii=False)
                if as_json
                else _letter_line(letter, now)
            )
        total = pile.total
    if not as_json:
        print(_count(counts))
        _say_what_was_not_seen(looked_at, total)
    return 0


def _letter_line(letter: Letter, now: datetime) -> str:
    owner = "/".join((letter.tenant or "-", letter.app_id or "-"))
    old = age((now - letter.buried_at).total_seconds()) if letter.buried_at else "-"
    detail = ("(replayed before) " if letter.replayed_at else "") + letter.detail
    return (
        f"{printable(letter.id) or '-':<36}  {printable(letter.reason, 16) or '-':<16}  {old:>6}  {letter.size:>7}  "
        f"{printable(owner, 20):<20}  {printable(detail, 120)}"
    ).rstrip()


def _count(counts: dict[str, int]) -> str:
    if not counts:
        return "no dead letters"
    total = sum(counts.values())
    parts = ", ".join(
        f"{number} {printable(reason) or 'of others'}" for reason, number in sorted(counts.items())
    )
    return f"{total} dead letter{'s' if total != 1 else ''}: {parts}"


def _say_what_was_not_seen(looked_at: int, total: int) -> None:
    if total > looked_at:
        print(
            f"{looked_at} of {total} letters were looked at, the oldest: --limit N looks at more",
            file=sys.stderr,
        )


async def dead_show(settings: CommonSettings, push_id: str, *, limit: int, as_json: bool) -> int:
    """Everything about the letters of one push; 1 if there is none."""
    found = looked_at = 0
    async with dead_letters.held(settings.amqp_url, limit) as pile:
        async for letter in pile.letters():
            looked_at += 1
            if letter.id != push_id:
                continue
            if found and not as_json:
                print()
            found += 1
            print(json.dumps(letters.whole(letter), ensure_ascii=False) if as_json else _page(letter))
        total = pile.total
    if not found:
        print(
            f"no letter {printable(push_id)} in push.dead; `bridge why` asks the delivery log",
            file=sys.stderr,
        )
        _say_what_was_not_seen(looked_at, total)
    return 0 if found else 1


def _page(letter: Letter) -> str:
    facts: dict[str, object] = {
        "id": letter.id,
        "reason": letter.reason or "none: the bridge did not put it there",
        "detail": letter.detail,
        "buried": letter.buried_at.astimezone().isoformat(" ") if letter.buried_at else "",
        "replayed": letter.replayed_at,
        "tenant": letter.tenant,
        **letters.properties(letter),
    }
    lines = [f"{name:<16} {printable(str(value))}" for name, value in facts.items() if value]
    ours = ("x-push-id", "x-push-reason", "x-push-detail", "x-push-buried-at", "x-push-replayed-at")
    for name, value in letter.headers.items():
        if name not in ours and not name.startswith(dead_letters.CHANGED_BY_BROKER):
            shown = json.dumps(letters.header(value), ensure_ascii=False)
            lines.append(f"{'header':<16} {printable(legible(name))}: {printable(shown)}")
    lines.append(f"{'body':<16} {letter.size} bytes")
    text = letter.body.decode("utf-8", "backslashreplace")
    lines += ["    " + printable(line) for line in text.split("\n")]
    return "\n".join(lines)


async def dead_replay(
    settings: CommonSettings,
    ids: Sequence[str],
    reasons: Sequence[str],
    *,
    limit: int,
    new_ids: bool,
    dry_run: bool,
    unrecorded: bool = False,
) -> int:
    """Publish letters again; 1 if one that was asked for was not. `unrecorded`: without a row of who did it."""

    async def work() -> dead_letters.Replayed:
        return await dead_letters.replay(
            settings.amqp_url,
            chooser(ids, reasons),
            limit=limit,
            now=time.time(),
            new_ids=new_ids,
            dry_run=dry_run,
        )

    if dry_run:
        done = await work()
    else:
        target = {**_target(ids, reasons, limit), "new_ids": new_ids}
        done = await _on_record(settings, Action(actor(), "dead replay", target), work, unrecorded=unrecorded)
    verb = "would be replayed" if dry_run else "replayed"
    for old, new in done.replayed:
        print(f"{verb}: {printable(old)}" + (f" as {printable(new)}" if new != old else ""))
    for push_id, why in done.refused:
        print(f"kept: {printable(push_id) or '-'}: {why}")
    seen = {push_id for push_id, _ in done.replayed} | {push_id for push_id, _ in done.refused}
    absent = [push_id for push_id in ids if push_id not in seen]
    for push_id in absent:
        print(
            f"no letter {printable(push_id)} among the {done.looked_at} that were looked at", file=sys.stderr
        )
    print(f"{len(done.replayed)} {verb}, {len(done.refused)} kept, {done.looked_at} looked at")
    _say_what_was_not_seen(done.looked_at, done.total)
    return 1 if absent or done.refused else 0


async def dead_purge(
    settings: CommonSettings,
    ids: Sequence[str],
    reasons: Sequence[str],
    *,
    limit: int,
    yes: bool,
    unrecorded: bool = False,
) -> int:
    """Delete letters; without `yes` only say how many it would be, and raise SettingsError. `unrecorded`: without a row
    of who did it."""

    async def work() -> dead_letters.Purge:
        return await dead_letters.purge(
            settings.amqp_url, chooser(ids, reasons), limit=limit, dry_run=not yes
        )

    if not yes:
        done = await work()
        problem = f"nothing deleted; add --yes to delete {done.found} of {done.total} letters"
        raise SettingsError("dead purge", problem)
    action = Action(actor(), "dead purge", _target(ids, reasons, limit))
    done = await _on_record(settings, action, work, unrecorded=unrecorded)
    print(f"{done.found} deleted, {done.total - done.found} kept")
    _say_what_was_not_seen(done.looked_at, done.total)
    return 0 if done.found or not ids else 1


# --- on record -------------------------------------------------------------------------------------------


def _target(ids: Sequence[str], reasons: Sequence[str], limit: int) -> dict[str, object]:
    chosen = {"ids": list(ids), "reasons": list(reasons)}
    return {**{name: value for name, value in chosen.items() if value}, "limit": limit}


def _facts(done: dead_letters.Replayed | dead_letters.Purge) -> Mapping[str, object]:
    if isinstance(done, dead_letters.Purge):
        return {"deleted": done.found, "looked_at": done.looked_at}
    return {"replayed": len(done.replayed), "kept": len(done.refused), "looked_at": done.looked_at}


async def _on_record(
    settings: CommonSettings, action: Action, work: Callable[[], Awaitable[Done]], *, unrecorded: bool
) -> Done:
    async with on_record(settings, rows=not unrecorded) as record:
        try:
            return await record.carry_out(action, work, _facts)
        except StoreUnavailable:
            # Only the row needs the database.
            print("nothing was done, since its row can't be written (--unrecorded does it)", file=sys.stderr)
            raise
