"""The ports to other nodes: who they are, which of them have a user's sessions, and how a message gets to one."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from bridge.core.model.nodes import Around


class Holder(NamedTuple):
    """Whose a session is."""

    user: str
    boot: str
    """The other process that has it; empty where it has closed, or was this one's."""


class Directory(Protocol):
    """What the database knows of other nodes. Raises StoreUnavailable as the methods of the store do."""

    async def look(self, queue: str, known_until: float | None, taking: Sequence[int] | None) -> Around:
        """Who else is there now. It notes for others where this process listens, that it has acted on an earlier
        answer whose `now` was `known_until` (None: on none yet), and which partitions it takes (None: it takes no
        part).

        Raises StoreUnavailable also where another process has this node's name.
        """
        ...

    async def holders(self, users: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """For each of these users that has open sessions at other processes: the boots of those, in no order."""
        ...

    async def session_holders(self, sessions: Sequence[str]) -> Mapping[str, Holder]:
        """Who has or had each of these sessions. Those that the ledger does not know are missing."""
        ...

    async def everyone(self, after: str, limit: int) -> Sequence[tuple[str, Sequence[str]]]:
        """Users with open sessions at other processes, in the order of their ids (bytewise), at most `limit` from the
        first one after `after` on; each with the boots of those."""
        ...

    async def subscribers(
        self, topic: str, after: str, limit: int, within: float
    ) -> Sequence[tuple[str, Sequence[str]]]:
        """Users with sessions at other processes that are subscribed to this topic, with the boots of those; and, with
        no boots, users whose last subscribed session closed within so many seconds without ending that. In the order of
        their ids (bytewise), at most `limit` from the first one after `after` on."""
        ...


class Letter(NamedTuple):
    """A message to another node."""

    queue: str
    body: bytes


class Sent(enum.Enum):
    """What became of a letter."""

    DELIVERED = "delivered"
    """It is in the queue of its node."""
    UNREACHABLE = "unreachable"
    """No node has it, and none will."""
    UNSURE = "unsure"
    """Nobody knows: the connection was lost, or no confirm came in time."""


class NodePost(Protocol):
    """Messages between nodes."""

    @property
    def queue(self) -> str:
        """The queue on which this process listens; empty while it has none."""
        ...

    def send(self, letters: Sequence[Letter], told: Callable[[int, Sent], None]) -> None:
        """Publish these in order, after those before. `told` gets the place of each and what became of it, within a few
        seconds; it is called from the event loop, perhaps before this returns, and must not raise. Never raises."""
        ...


class NodeListener(Protocol):
    """The core's side: called from the event loop, must not raise."""

    def came(self, body: bytes) -> None:
        """Another node sent this; letters of one node come in the order in which it sent them."""
        ...

    def listening(self) -> None:
        """This process listens on a new queue. What was sent to the one before may be lost."""
        ...
