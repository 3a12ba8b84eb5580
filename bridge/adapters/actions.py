"""What somebody does to the bridge by hand, on record: who, what, to whom, when, and what came of it.

Each action is a line of the log once it has ended, and a row of table `ops_action`, which is committed before the
action begins. So nothing is done that has no row, and an action whose row can't be written is not done. A row that says
`begun` belongs to an action that is under way, or whose end nobody could tell: its process was killed, or its caller
left.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple, Protocol, TypeVar

from bridge.core.errors import StoreUnavailable
from bridge.core.redaction import redact

LOGGER: Final = "bridge.actions"
"""The name of the logger of their lines."""
ERROR_CHARS: Final = 500
"""Characters that are kept of an error."""

log = logging.getLogger(LOGGER)

T = TypeVar("T")


class Action(NamedTuple):
    """What somebody asked for."""

    actor: str
    """The name of a credential of the ops port, `local`, or `cli:` and the user of the operating system."""
    name: str
    """What is done, in a word or two: `recall`, `dead purge`."""
    target: Mapping[str, object]
    """To whom or what, as it was asked for."""


class ActionLog(Protocol):
    """Keeps the rows. Each method may run twice."""

    async def begin(self, action_id: str, action: Action, node: str) -> None:
        """Return once the row is committed. Raises StoreUnavailable."""
        ...

    async def end(self, action_id: str, result: str, facts: Mapping[str, object]) -> None:
        """Note what came of it, once. Raises StoreUnavailable."""
        ...


class OnRecord:
    """Carries actions out."""

    def __init__(self, rows: ActionLog | None, node: str) -> None:
        """`rows`: None if there is no database; then there are only lines of the log. `node`: where this runs."""
        self._rows = rows
        self._node = node

    async def carry_out(
        self,
        action: Action,
        work: Callable[[], Awaitable[T]],
        facts: Callable[[T], Mapping[str, object]],
        so_far: Mapping[str, object] | None = None,
    ) -> T:
        """Do the work, and keep the `facts` of what it returned, or its error and what it had done `so_far`.

        Raises what the work raises, and StoreUnavailable if it was not begun since its row can't be written.
        """
        action = action._replace(target=_clean(action.target))
        action_id = str(uuid.uuid4())
        if self._rows is not None:
            await self._rows.begin(action_id, action, self._node)
        try:
            done = await work()
        except Exception as error:
            await self._end(
                action_id, action, "failed", {**(so_far or {}), "error": str(error)[:ERROR_CHARS]}
            )
            raise
        except BaseException:
            # Cancelled: nothing may be awaited any more.
            self.tell(action, "cut off", _clean(so_far or {}))
            raise
        await self._end(action_id, action, "done", facts(done))
        return done

    async def _end(self, action_id: str, action: Action, result: str, facts: Mapping[str, object]) -> None:
        facts = _clean(facts)
        self.tell(action, result, facts)
        if self._rows is not None:
            try:
                await asyncio.shield(self._rows.end(action_id, result, facts))
            except StoreUnavailable as error:
                log.warning("the row of this action still says begun: %s", error, extra={"id": action_id})

    def tell(self, action: Action, result: str, facts: Mapping[str, object]) -> None:
        """Write the line alone, for what has its row elsewhere."""
        told = {"actor": action.actor, "action": action.name, "target": dict(action.target), **facts}
        log.info(
            "%s by %s: %s",
            action.name,
            action.actor,
            result,
            extra={**told, "result": result, "node": self._node},
        )


def _clean(values: Mapping[str, object]) -> dict[str, object]:
    """Without secrets that somebody gave by mistake, and as text that a database takes."""
    return {name: _clean_value(value) for name, value in values.items()}


def _clean_value(value: object) -> object:
    match value:
        case str():
            return redact(value).encode("utf-8", "backslashreplace").decode()
        case Mapping():
            return _clean(value)
        case list() | tuple():
            return [_clean_value(part) for part in value]
        case _:
            return value
