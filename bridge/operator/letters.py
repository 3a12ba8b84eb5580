"""Letters of push.dead as JSON for people and programs, and the choice of some of them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from bridge.adapters.amqp.encoding import legible
from bridge.operator.dead_letters import Letter, held, unfit

LETTERS_SHOWN: Final = 100
"""Letters of a list, the oldest ones."""
TEXT_CHARS: Final = 2_000
"""Characters of a letter's body that a list has."""


def chooser(ids: Sequence[str], reasons: Sequence[str]) -> Callable[[Letter], bool]:
    """Chooses letters by id or by reason; without either, all."""
    if not ids and not reasons:
        return lambda letter: True
    return lambda letter: letter.id in ids or letter.reason in reasons


def summary(letter: Letter) -> dict[str, object]:
    """The facts of a line."""
    return {
        "id": legible(letter.id),
        "reason": letter.reason,
        "detail": letter.detail,
        "buried_at": letter.buried_at.isoformat() if letter.buried_at else None,
        "replayed_at": letter.replayed_at or None,
        "bytes": letter.size,
        "tenant": letter.tenant,
        "app_id": letter.app_id,
    }


def properties(letter: Letter) -> dict[str, object]:
    """The AMQP properties that it has."""
    given = {
        "app_id": letter.app_id,
        "message_id": letter.message_id,
        "correlation_id": letter.correlation_id,
        "reply_to": letter.reply_to,
        "content_type": letter.content_type,
        "content_encoding": letter.content_encoding,
        "timestamp": letter.timestamp.isoformat() if letter.timestamp else "",
    }
    return {name: legible(value) for name, value in given.items() if value}


def whole(letter: Letter) -> dict[str, object]:
    """Everything about it."""
    body: dict[str, object]
    try:
        body = {"body": letter.body.decode()}
    except UnicodeDecodeError:
        body = {"body": base64.b64encode(letter.body).decode(), "encoding": "base64"}
    headers = {legible(name): header(value) for name, value in letter.headers.items()}
    return {**summary(letter), "properties": properties(letter), "headers": headers, **body}


def header(value: object) -> Any:
    """The value of a header."""
    match value:
        case dict():
            return {legible(name): header(inner) for name, inner in value.items()}
        case list():
            return [header(inner) for inner in value]
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case _:
            return value


class Shown(msgspec.Struct, frozen=True):
    """The letters of a list."""

    letters: Sequence[dict[str, object]]
    """The oldest, each as `whole` tells it, with the beginning of its body, and why it can't be replayed (`unfit`)."""
    total: int
    """Letters in the queue that nobody else holds."""


async def shown(url: str) -> Shown:
    """At most `LETTERS_SHOWN` letters. Nobody else sees them while they are read. Raises NoSuchQueue and
    BrokerUnavailable."""
    found: list[dict[str, object]] = []
    async with held(url, LETTERS_SHOWN) as pile:
        async for letter in pile.letters():
            told = whole(letter)
            told["body"] = str(told["body"])[:TEXT_CHARS]
            found.append(
                {**told, "unfit": unfit(letter, new_ids=False), "unfit_as_new": unfit(letter, new_ids=True)}
            )
        return Shown(found, pile.total)
