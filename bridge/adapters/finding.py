"""What a check has found, for people: `bridge check` prints it."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Level: TypeAlias = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """One line. `level`: `fail` for what keeps `bridge serve` from doing its work, `warn` for what somebody should
    know. `what`: the part, in a word. `words`: what is so, and where it is wrong the command that mends it."""

    level: Level
    what: str
    words: str
