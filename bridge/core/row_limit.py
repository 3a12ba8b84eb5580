"""How many rows a statement asks for: fewer after it took too long, more again once it did not."""

from __future__ import annotations


class RowLimit:
    """The rows of one kind of statement.

    The rule: one part in `parts` after a failure, twice as many after each success, never under `least` or over `most`.
    Each failure costs a time limit, so it shrinks in large steps: halving 500 rows down to one would cost nine of
    them. It grows in small steps and not at once: what still takes too long is then not asked for again each time. One
    limit serves all statements of its kind, so that the next one does not begin too large again. They must run one
    after another.
    """

    __slots__ = ("_least", "_most", "_parts", "rows")

    def __init__(self, most: int, parts: int, least: int = 1) -> None:
        self.rows = most
        """What to ask for now."""
        self._most = most
        self._parts = parts
        self._least = min(least, most)

    def shrink(self) -> bool:
        """The statement failed. False where it asked for the least already: asking for less is no way out."""
        if self.rows <= self._least:
            return False
        self.rows = max(self._least, self.rows // self._parts)
        return True

    def grow(self) -> None:
        """The statement succeeded."""
        self.rows = min(self._most, self.rows * 2)
