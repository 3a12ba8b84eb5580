"""Begin the host's decision on a handshake: at once, and as a task only where it has to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, TypeAlias

from bridge.core.model.sessions import Grant, Refusal

Deciding: TypeAlias = Coroutine[Any, Any, Grant | Refusal]


def begun(
    deciding: Deciding, loop: asyncio.AbstractEventLoop
) -> Grant | Refusal | asyncio.Task[Grant | Refusal]:
    """Take the first step of a decision: its result where it has nothing to wait for, else a task that goes on."""
    try:
        awaited = deciding.send(None)
    except StopIteration as decided:
        answer: Grant | Refusal = decided.value
        return answer
    return loop.create_task(_Begun(deciding, awaited), name="handshake")


class _Begun(Deciding):
    """A coroutine whose first step was taken outside of a task, for the task that goes on with it."""

    def __init__(self, coroutine: Deciding, awaited: Any) -> None:
        self._coroutine = coroutine
        self._awaited = awaited
        """What the coroutine waits for, until the task knows."""

    def send(self, value: object) -> Any:
        awaited, self._awaited = self._awaited, None
        return self._coroutine.send(value) if awaited is None else awaited

    def throw(self, *thrown: Any) -> Any:
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            # The task was cancelled before its first turn: it does not know yet what it waits for, and would cancel.
            awaited.cancel()
        return self._coroutine.throw(*thrown)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Grant | Refusal]:
        return self._coroutine.__await__()
