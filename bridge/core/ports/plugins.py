"""The ports that plug-ins fill: logs, hooks, error handlers, token verifiers, metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import NamedTuple, Protocol

from bridge.core.model.outcomes import Outcome
from bridge.core.model.rows import Row
from bridge.core.model.sessions import Claims


class DeliveryLog(Protocol):
    """Gets every committed transition; more than one may be configured."""

    async def record(self, rows: Sequence[Row]) -> None:
        """Record these rows. They must be durable when it returns: the ack follows. Called again if it raises."""
        ...


class TokenVerifier(Protocol):
    """Checks a bearer token."""

    def verify(self, token: str) -> Claims | Awaitable[Claims]:
        """Return what the token says; raises TokenRefused for every token that opens no session, and KeysUnavailable
        where that can't be told now.

        A check that has to wait for something is an awaitable with the same result. It is awaited once, and may be
        cancelled then, or not at all: so it is no coroutine, which would complain. Few may wait at once (see
        SessionHost).
        """
        ...


class SessionInfo(NamedTuple):
    """What hooks are told about a session."""

    session: str
    user: str
    mode: str
    opened_at: float


class Hooks(Protocol):
    """Called in the event loop after the fact; must return quickly. An exception of a hook goes to the ErrorHandler and
    changes nothing else."""

    def on_open(self, session: SessionInfo) -> None:
        """A session opened."""
        ...

    def on_close(self, session: SessionInfo, code: int, reason: str) -> None:
        """A session was closed, with the close code that was received or sent."""
        ...

    def on_outcome(self, row: Row) -> None:
        """A row was committed: `pending`, `stored`, or the final outcome of a push for a user."""
        ...

    def on_error(self, error: BaseException, where: str) -> None:
        """Something failed that the service survived."""
        ...


class ErrorHandler(Protocol):
    """Gets every error that the service survives: none is swallowed."""

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        """Report an error. `where` names the step (`store.record`); `facts` are ids and counts, never payloads or
        tokens. Must not raise."""
        ...


class Metrics(Protocol):
    """Gets counts and durations, never user ids."""

    def taken(self, messages: int, requests: int) -> None:
        """This many messages were taken from the broker in one batch, with this many requests."""
        ...

    def outcomes(self, rows: Sequence[Row]) -> None:
        """These rows were committed."""
        ...

    def repeat(self, outcome: Outcome) -> None:
        """A request came again and already had a row with this outcome."""
        ...

    def repeat_differs(self) -> None:
        """A request came with the id of a push and other content."""
        ...

    def looked_up(self, rows: int) -> None:
        """This many keys were looked up before their pushes were sent."""
        ...

    def holders_asked(self, pushes: int) -> None:
        """One statement asked which other nodes have sessions of the users of this many pushes."""
        ...

    def letter(self, items: int) -> None:
        """One letter with this many pushes, reports and rings was sent to another node."""
        ...

    def proof_late(self, count: int) -> None:
        """Proof of this many pushes came after their outcome."""
        ...

    def recorded(self, rows: int, seconds: float) -> None:
        """One batch of rows was committed."""
        ...

    def receipts(self, sent: int, owed: int, seconds: float) -> None:
        """One batch of receipts was published; `owed` of them were not confirmed and became debts."""
        ...

    def fallbacks(self, published: int, unroutable: int, unsent: int) -> None:
        """So many fallbacks were published, of which no queue wanted `unroutable`; `unsent` others stay owed."""
        ...

    def handed(self, pushes: int) -> None:
        """This many pushes were handed to a socket, each counted once for each session."""
        ...

    def handshake(self, result: str, seconds: float) -> None:
        """A WebSocket handshake ended: `opened`, or the word for why it was refused."""
        ...

    def hook_asked(self, result: str, seconds: float) -> None:
        """The connect hook was asked: `allowed`, `refused`, `wrong`, `failed` or `given_up`."""
        ...

    def closed(self, reason: str) -> None:
        """A session was closed; `reason` is a CloseReason's word, or `client`."""
        ...
