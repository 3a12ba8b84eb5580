"""An error handler that reports each kind of error once a minute: BRIDGE_ERROR_HANDLER=rare_errors:make."""

import sys
import time
from collections.abc import Mapping

from bridge.plugins import ErrorHandler


class RareErrors:
    """For a channel that people read: a thousand lines about the same problem help nobody."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._told: dict[tuple[str, str], float] = {}

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        """Called in the event loop: quick, and it must not raise. `facts` are ids and counts."""
        kind = (type(error).__name__, where)
        now = time.monotonic()
        if now - self._told.get(kind, -self._every) >= self._every:
            self._told[kind] = now
            print(f"{kind[0]} in {where}: {error} {dict(facts)}", file=sys.stderr)


def make() -> ErrorHandler:
    """Called once at the start."""
    return RareErrors(every=60.0)
