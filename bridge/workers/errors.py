"""What ends the supervisor, and with it all workers."""

from __future__ import annotations

from bridge.core.errors import BridgeError


class WorkerRefused(BridgeError):
    """A worker can't start, for a reason that will not go away; `code` is what the program should exit with."""

    def __init__(self, problem: str, code: int) -> None:
        self.code = code
        super().__init__(problem)
