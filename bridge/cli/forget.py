"""`bridge forget`: erase what was pushed to a user, and give them another name wherever they are named."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from bridge.adapters.actions import Action
from bridge.cli.record import actor, on_record
from bridge.config import CommonSettings
from bridge.core.errors import SettingsError
from bridge.core.ports.clock import Clock
from bridge.operator import dead_letters
from bridge.operator.forgetting import Forgetting, Left, Places, StillOnline, checked_name, new_name
from bridge.operator.naming import letter_names
from bridge.operator.story import printable

PROGRESS_EVERY = 5.0
"""Seconds between two lines of progress."""
LETTERS_SHOWN = 20
"""Dead letters that are named; more are only counted."""

_PLACES: Mapping[str, str] = {
    "rows": "delivery_log: rows renamed, their data, meta and detail erased",
    "bodies": "delivery_log: bodies of rejected requests erased",
    "sessions": "session: renamed; address, device and token ids erased",
    "subscriptions": "subscription: deleted",
    "revocations": "revocation: renamed",
    "actions": "ops_action: renamed",
    "withdrawn": "kept and scheduled pushes recalled",
}
_LEFT: Mapping[str, str] = {
    "in_flight": "delivery_log: rows of pushes that are not at rest yet",
    "open_sessions": "session: open, or not noticed to be dead yet",
    "subscriptions": "subscription: of those sessions",
    "scheduled": "scheduled: no bridge has published them yet",
    "revocations": "revocation: they keep the user's tokens out, until BRIDGE_TOKEN_DAYS have passed",
}
_OUT_OF_REACH: Mapping[str, str] = {
    "scheduled_for_more": "scheduled: messages to others as well that contain the id; they go at their time",
    "names": "delivery_log: push ids, batch ids or topics that contain the id",
    "topics": "retained: last values whose topic or meta contains the id",
    "shared": "push_content: data that the user had in common with others; it goes with its day",
    "actions": "ops_action: texts that contain the id among other words",
}


class Letters(msgspec.Struct):
    """The dead letters that name the user."""

    ids: list[str] = []
    looked_at: int = 0
    total: int = 0


async def forget(
    settings: CommonSettings,
    user: str,
    *,
    name: str | None,
    disconnect: bool,
    dead: bool,
    keep_revocations: bool,
    yes: bool,
    clock: Clock | None = None,
) -> int:
    """Forget a user and print every place; 1 if something is left that another run could change.

    `name`: the one that an earlier run gave. Without `yes` it only counts, and raises SettingsError.
    """
    if clock is None:
        from bridge.app.clock import SystemClock

        clock = SystemClock()
    if not user:
        raise SettingsError("USER", "it is empty")
    given = new_name() if name is None else checked_name(name)
    work = Forgetting(settings.postgres_dsn, user, given, clock, _Progress(given, clock))
    try:
        if not yes:
            print("\n".join(_lines(await work.count(), _PLACES)))
            _tell_letters(await _letters(settings, user, purge=False), purged=False)
            raise SettingsError("forget", "nothing changed; --yes does it, and it can't be undone")
        online = await work.open_sessions()
        if online and not disconnect:
            raise StillOnline(online)
        print(f"from now on the user is {given}")
        done = await _carry_out(
            settings, user, given, work, disconnect=disconnect, dead=dead, keep_revocations=keep_revocations
        )
    finally:
        await work.close()
    print("\n".join(_lines(work.done, _PLACES)))
    _tell_letters(done.letters, purged=dead)
    return _tell_left(done.left, done.letters, given, kept_revocations=keep_revocations, purged=dead)


class _Done(NamedTuple):
    left: Left
    letters: Letters


async def _carry_out(
    settings: CommonSettings,
    user: str,
    given: str,
    work: Forgetting,
    *,
    disconnect: bool,
    dead: bool,
    keep_revocations: bool,
) -> _Done:
    """Do it on record, under the new name only."""

    async def forgotten() -> _Done:
        if disconnect:
            await work.revoke()
        left = await work.run(keep_revocations=keep_revocations)
        return _Done(left, await _letters(settings, user, purge=dead))

    def facts(done: _Done) -> Mapping[str, object]:
        counts = msgspec.structs.asdict(work.done)
        return {**counts, "left": msgspec.structs.asdict(done.left), "letters": len(done.letters.ids)}

    target: dict[str, object] = {"as": given, "disconnect": disconnect, "dead": dead}
    async with on_record(settings) as record:
        try:
            return await record.carry_out(Action(actor(), "forget", target), forgotten, facts)
        except BaseException:
            print(f"stopped: the same command with --as {given} continues", file=sys.stderr)
            raise


class _Progress:
    """Says now and then that it goes on."""

    def __init__(self, name: str, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._said = clock.monotonic()
        self._pages = 0

    def __call__(self) -> None:
        self._pages += 1
        if self._clock.monotonic() - self._said >= PROGRESS_EVERY:
            self._said = self._clock.monotonic()
            print(f"{self._pages} pages changed so far, as {self._name}", file=sys.stderr)


async def _letters(settings: CommonSettings, user: str, *, purge: bool) -> Letters:
    found = Letters()
    try:
        async with dead_letters.held(settings.amqp_url, dead_letters.LOOK_MAX) as pile:
            found.total = pile.total
            async for letter in pile.letters():
                found.looked_at += 1
                if letter_names(user, letter):
                    found.ids.append(letter.id)
                    if purge:
                        await pile.discard([letter])
    except dead_letters.NoSuchQueue:
        return found
    return found


def _lines(places: Places | Left, words: Mapping[str, str]) -> Iterator[str]:
    for field, text in words.items():
        yield f"  {getattr(places, field):>7}  {text}"


def _tell_letters(letters: Letters, *, purged: bool) -> None:
    print(f"  {len(letters.ids):>7}  push.dead: letters that name the user{' deleted' if purged else ''}")
    if not purged:
        for push_id in letters.ids[:LETTERS_SHOWN]:
            print(f"           {printable(push_id) or '-'}")
    if letters.looked_at < letters.total:
        print(f"  {letters.total - letters.looked_at:>7}  push.dead: letters that were not looked at")


def _tell_left(left: Left, letters: Letters, name: str, *, kept_revocations: bool, purged: bool) -> int:
    """Print what still has the id; returns the exit code."""
    for words, title in (
        (_LEFT, "left"),
        (_OUT_OF_REACH, "out of reach, and told for you to judge"),
    ):
        lines = [f"  {count:>7}  {text}" for field, text in words.items() if (count := getattr(left, field))]
        if lines:
            print(f"{title}:", *lines, sep="\n")
    unread = letters.looked_at < letters.total
    if not left.unfinished(kept_revocations=kept_revocations) and not unread and (purged or not letters.ids):
        return 0
    if letters.ids and not purged:
        print("letters in push.dead still name the user: --dead deletes them", file=sys.stderr)
    print(f"run it again with --as {name}: it continues under the same name", file=sys.stderr)
    return 1
