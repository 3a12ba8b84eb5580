"""Names of topics and events, the patterns that permit them, and the claims that hold both.

A name is an id of words with dots between them: `room.7.typing`. A pattern is such words, too; of them

| `*`      | is any one word                                                                          |
| `#`      | is the rest, however many words and also none; only at the end                            |
| `{user}` | is the id of the user who has the pattern, as one word                                   |

`{user}` is compared, never expanded: whatever is in a user's id, it means that word and no other. An id with a dot in
it is no word, so there `{user}` permits nothing. Otherwise `{user}.#` would let `ann` have what is `ann.smith`'s.
Whoever makes the claims knows the user, and may write a whole name instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from bridge.core.contract.fields import is_id, kind
from bridge.core.errors import InvalidClaim
from bridge.core.model.pushes import ID_MAX

CLAIMED_MAX: Final = 100
"""Names in the claim `topics`, and patterns in each of the others."""
USER: Final = "{user}"
EVERYTHING: Final[Mapping[str, Sequence[str]]] = {"subscribe": ["#"], "publish": ["#"]}
"""The claims of tokens for development."""
_SPECIAL: Final = frozenset("*#{}")
_WORDS: Final = "words with dots between them"
_NAME: Final = f"a name of at most {ID_MAX} characters: {_WORDS}"
_PATTERN: Final = f"a pattern of at most {ID_MAX} characters: {_WORDS}"


class Claimed(NamedTuple):
    """What somebody's claims say of topics. The patterns are checked."""

    topics: tuple[str, ...] = ()
    """Subscribed at once."""
    subscribe: tuple[str, ...] = ()
    """Patterns of the topics that may be subscribed."""
    publish: tuple[str, ...] = ()
    """Patterns of the events and topics that may be published."""


NOTHING_CLAIMED: Final = Claimed()


def name_problem(value: object) -> str:
    """What is wrong with this as the name of a topic or an event, for people; empty where nothing is."""
    return id_problem(value, _NAME) or _words_problem(str(value).split("."), _NAME)


def pattern_problem(value: object) -> str:
    """What is wrong with this as a pattern, for people; empty where nothing is."""
    problem = id_problem(value, _PATTERN)
    if problem:
        return problem
    *before, last = str(value).split(".")
    if "#" in before:
        return f"expected {_PATTERN}, # only as the last one, got # before the end"
    return _words_problem([word for word in (*before, last) if word not in ("*", "#", USER)], _PATTERN)


def permits(patterns: Iterable[str], name: str, user: str) -> bool:
    """Whether one of this user's patterns permits the name. Both are without problems."""
    words = name.split(".")
    return any(_permits(pattern.split("."), words, user) for pattern in patterns)


def _permits(pattern: list[str], words: list[str], user: str) -> bool:
    if pattern[-1] == "#":
        pattern = pattern[:-1]
        if len(words) < len(pattern):
            return False
    elif len(words) != len(pattern):
        return False
    for allowed, word in zip(pattern, words, strict=False):
        if allowed != "*" and word != (user if allowed == USER else allowed):
            return False
    return True


def claimed(said: Mapping[str, object]) -> Claimed:
    """The claims `topics`, `subscribe` and `publish`, of which each may be missing; raises InvalidClaim.

    `said`: the claims of a token whose signature is good, or what the connect hook has answered.
    """
    if all(said.get(claim) is None for claim in Claimed._fields):
        return NOTHING_CLAIMED
    return Claimed(
        _listed(said, "topics", patterns=False),
        _listed(said, "subscribe", patterns=True),
        _listed(said, "publish", patterns=True),
    )


def _listed(said: Mapping[str, object], claim: str, *, patterns: bool) -> tuple[str, ...]:
    given = said.get(claim)
    if given is None:
        return ()
    if not isinstance(given, list):
        raise InvalidClaim(claim, f"expected a list of strings, got {kind(given)}")
    if len(given) > CLAIMED_MAX:
        raise InvalidClaim(claim, f"expected at most {CLAIMED_MAX} entries, got {len(given)}")
    for place, value in enumerate(given):
        problem = pattern_problem(value) if patterns else name_problem(value)
        if problem:
            raise InvalidClaim(f"{claim}[{place}]", problem)
    return tuple(dict.fromkeys(given))


def id_problem(value: object, expected: str) -> str:
    """What is wrong with this as an id, for people; empty where nothing is."""
    if not isinstance(value, str):
        return f"expected {expected}, got {kind(value)}"
    if is_id(value):
        return ""
    got = "a control character" if 0 < len(value) <= ID_MAX else f"{len(value)} characters"
    return f"expected {expected}, got {got}"


def _words_problem(words: Iterable[str], expected: str) -> str:
    for word in words:
        if not word:
            return f"expected {expected}, got an empty word"
        if not _SPECIAL.isdisjoint(word):
            return f"expected {expected}, got a word with *, #, {{ or }} in it"
    return ""
