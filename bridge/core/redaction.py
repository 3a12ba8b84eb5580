"""Remove secrets from everything that leaves the process: log lines, errors, answers, metrics.

It always does both: the secrets of this process are known from the settings (`learn`) and are removed wherever they
occur; other secrets are recognised by their shape (a JWT, the password of a URL, `token=...`). Payloads can't be
recognised: log ids and counts instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final
from urllib.parse import quote

MASK: Final = "***"
SHORTEST: Final = 4
"""Characters. A shorter secret is easily guessed, and occurs in ordinary words."""
WHOLE_WORD: Final = 8
"""Characters. A shorter secret is removed only where it is a word of its own: it may occur in ordinary words."""
COMMON: Final = frozenset(
    (
        *(
            "admin",
            "bridge",
            "broker",
            "database",
            "guest",
            "localhost",
            "password",
            "postgres",
            "postgresql",
        ),
        *("public", "rabbit", "rabbitmq", "root", "secret", "test", "token", "user"),
    )
)
"""Ordinary words. A password that is one of them can't be hidden."""

_QUOTED: Final = r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\""

_SHAPES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # A subprotocol entry, before the bare JWT inside it.
        (r"(bridge\.token\.)[^\s,;&\"'\\]+", r"\1***"),
        # A header, as `Authorization: Bearer x`, `('Authorization', 'Bearer x')`, `"authorization": "x"`.
        (
            r"(authorization[\"']?\s*[:=,]\s*(?:b?[\"'])?)(?:(?:bearer|basic)\s+)?[^\s,;\"')]+",
            r"\1***",
        ),
        (r"\b(bearer\s+)[A-Za-z0-9._~+/-]{8,}=*", r"\1***"),
        # A query, a conninfo, a line of JSON: the value is quoted, or ends where the next word begins.
        (
            rf"((?:token|password|passwd|pwd|secret|api_?key)[\"']?\s*[=:]\s*)(?:{_QUOTED}|(?<=[=\s])(?<!:\s)[^\s&;,\"']+)",
            r"\1***",
        ),
        (r"(://[^\s:/@\"']*:)[^\s\"']+(@)", r"\1***\2"),
        # A JWT on its own: three base64url parts, the first a JSON object.
        (r"\beyJ[\w-]{5,}\.[\w-]+\.[\w-]*", "***"),
    )
)

_TEXT_OF_ERRORS: Final = ("strerror", "filename", "filename2", "msg", "text", "doc", "object")
"""Attributes in which the interpreter's own exceptions keep text."""

_known: set[str] = set()
_pattern: re.Pattern[str] | None = None


def learn(secrets: Iterable[str], public: Iterable[str] = ()) -> None:
    """Remove these secrets from every text from now on, in each spelling that a text may have. Idempotent.

    `public`: words to keep although a secret is the same, such as the user or the host of an address.
    """
    global _pattern
    spared = frozenset(public)
    for secret in secrets:
        if len(secret) < SHORTEST or secret.lower() in COMMON or secret in spared:
            continue
        _known.update((secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]))
    if _known:
        longest_first = sorted(_known, key=len, reverse=True)
        _pattern = re.compile("|".join(map(_found_by, longest_first)))


def _found_by(spelling: str) -> str:
    found = re.escape(spelling)
    return found if len(spelling) >= WHOLE_WORD else rf"(?<!\w){found}(?!\w)"


def without_known(text: str) -> str:
    """The text without the secrets of this process."""
    return text if _pattern is None else _pattern.sub(MASK, text)


def redact(text: str) -> str:
    """The text without the secrets of this process, and without anything that looks like a secret."""
    text = without_known(text)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def clean_error(error: BaseException) -> None:
    """Remove secrets from an error, its notes and its causes, in place, before plug-ins see it.

    Covers the arguments and plain attributes of an exception. Text that it keeps elsewhere is cleaned where it is
    logged.
    """
    for part in _chain(error):
        if part.args:
            part.args = tuple(redact(arg) if isinstance(arg, str) else arg for arg in part.args)
        if hasattr(part, "__notes__"):
            part.__notes__ = [redact(note) for note in part.__notes__]
        for name in (*_TEXT_OF_ERRORS, *vars(part)):
            text = getattr(part, name, None)
            if isinstance(text, str) and (cleaned := redact(text)) != text:
                with suppress(AttributeError, TypeError):
                    setattr(part, name, cleaned)


def _chain(error: BaseException) -> Iterator[BaseException]:
    waiting, seen = [error], set[int]()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        waiting += [other for other in (part.__cause__, part.__context__) if other is not None]
        if isinstance(part, BaseExceptionGroup):
            waiting += part.exceptions
