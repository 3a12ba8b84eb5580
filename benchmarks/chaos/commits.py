"""Cuts a connection to Postgres at the statement that writes rows: before, in the middle, or after it.

It parses the frontend's messages just far enough to recognise that statement: Parse names the prepared statement and
its text, Bind runs it. https://www.postgresql.org/docs/15/protocol-message-formats.html
"""

from __future__ import annotations

import asyncio
import enum
import re

from benchmarks.chaos.proxy import Link

_PARSE = re.compile(rb"P....([^\0]*)\0select ord, applied", re.DOTALL)
_BIND = re.compile(rb"B....[^\0]*\0([^\0]*)\0", re.DOTALL)


class Cut(enum.Enum):
    """Where the connection ends."""

    BEFORE = "before"
    """The statement never reaches the server."""
    HALF = "half"
    """Half of it does."""
    UNANSWERED = "unanswered"
    """All of it does, and the connection is reset at once: the server may commit or not."""
    ANSWER_LOST = "answer lost"
    """It is committed, and its answer is discarded."""


class CommitCutter:
    """Watches what goes through a proxy; once armed, it cuts the next write."""

    def __init__(self) -> None:
        self._how: Cut | None = None
        self._waiting: Link | None = None
        self.done = asyncio.Event()

    def arm(self, how: Cut) -> None:
        """Cut the next write in this way; `done` is set when it has happened."""
        self._how = how
        self._waiting = None
        self.done.clear()

    def look(self, link: Link, goes_up: bool, data: bytes) -> bytes | None:
        """See `proxy.Look`."""
        if not goes_up:
            if self._waiting is link and self._how is Cut.ANSWER_LOST:
                self._cut()
                return None
            return data
        names = link.notes.setdefault("statements", set())
        assert isinstance(names, set)
        names.update(_PARSE.findall(data))
        if self._how is None or self._waiting is not None or not names & set(_BIND.findall(data)):
            return data
        if self._how is Cut.BEFORE:
            self._cut()
            return None
        if self._how is Cut.ANSWER_LOST:
            self._waiting = link
            return data
        link.bytes_left = len(data) // 2 if self._how is Cut.HALF else len(data)
        self._cut()
        return data

    def _cut(self) -> None:
        self._how = None
        self._waiting = None
        self.done.set()
