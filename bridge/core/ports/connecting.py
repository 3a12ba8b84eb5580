"""The port to the connect hook: a business system that says who a client is."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class HookAnswer(NamedTuple):
    """What it has answered, as it came."""

    status: int
    """The status of HTTP."""
    body: bytes


class ConnectHook(Protocol):
    """Asks a business system. Whoever calls it sees to it that not too many ask at a time."""

    async def ask(self, question: bytes) -> HookAnswer:
        """Send this JSON, and return the whole answer, which is bounded in time and size.

        Asking is safe to repeat, and may be cancelled. Raises ConnectHookFailed where no whole answer came.
        """
        ...
