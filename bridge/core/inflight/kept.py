"""What only the flight of a push with a ttl has."""

from __future__ import annotations

from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import Encoding


class Kept:
    """What only the flight of a push with a ttl has."""

    __slots__ = (
        "collapsed",
        "data",
        "encoding",
        "excluded",
        "expires_at",
        "from_log",
        "look_at",
        "reason",
        "resent",
        "size",
        "stored_announced",
    )

    def __init__(
        self,
        expires_at: float,
        data: bytes | None,
        encoding: Encoding,
        excluded: frozenset[str],
    ) -> None:
        self.expires_at = expires_at
        self.data = data
        """None once the row has it."""
        self.encoding = encoding
        self.excluded = excluded
        self.size = len(data or b"")
        """Bytes of the data."""
        self.reason: Reason | None = None
        """Why it was kept; None until it is kept."""
        self.collapsed = False
        """A newer push with its collapse key was taken: without proof this one ends as superseded."""
        self.resent = 0
        """How often it was resent to a session that had it and did not prove it."""
        self.look_at = 0.0
        """Monotonic seconds of the next check for its proof."""
        self.from_log = False
        """Its row was read from the log: whether it has a fallback, and who publishes that, is not known here."""
        self.stored_announced = False
        """The `stored` receipt was sent."""
