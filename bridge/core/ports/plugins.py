"""What others can plug in: logs, hooks, error handlers, token verifiers, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from bridge.core.model.outcomes import Outcome
from bridge.core.model.rows import Row
from bridge.core.model.sessions import Claims


class DeliveryLog(Protocol):
    """Told of every committed transition; more than one may be configured."""

    async def record(self, rows: Sequence[Row]) -> None:
        """Keep these rows. Must be durable when it returns: the ack follows. Called again after a raise."""
        ...


class TokenVerifier(Protocol):
    """Checks a bearer token."""

    def verify(self, token: str) -> Claims:
        """Return what the token says; raises TokenRefused for every token that opens no session."""
        ...


class SessionInfo(NamedTuple):
    """What a hook is told about a session."""

    session: str
    user: str
    mode: str
    opened_at: float


class Hooks(Protocol):
    """Called in the event loop after the fact; must return quickly. What one raises goes to the
    ErrorHandler and changes nothing else."""

    def on_open(self, session: SessionInfo) -> None:
        """A session opened."""
        ...

    def on_close(self, session: SessionInfo, code: int, reason: str) -> None:
        """A session ended, with the close code that was seen or sent."""
        ...

    def on_outcome(self, row: Row) -> None:
        """A row was committed: `pending`, or how a push ended for a user."""
        ...

    def on_error(self, error: BaseException, where: str) -> None:
        """Something failed that the service survived."""
        ...


class ErrorHandler(Protocol):
    """Where every error goes that the service survives: nothing is swallowed."""

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        """Report it. `where` names the step (`store.record`), `facts` hold ids and counts, never payloads
        or tokens. Must not raise."""
        ...


class Metrics(Protocol):
    """Counts and durations; user ids are never given to it."""

    def taken(self, messages: int, requests: int) -> None:
        """Messages were taken from the broker in one batch, holding so many requests."""
        ...

    def outcome(self, row: Row) -> None:
        """A row was committed."""
        ...

    def repeat(self, outcome: Outcome) -> None:
        """A request came again whose row was already there."""
        ...

    def repeat_differs(self) -> None:
        """A request came with the id of a push and other content."""
        ...

    def looked_up(self, rows: int) -> None:
        """So many keys were looked for before their pushes were sent."""
        ...

    def proof_late(self, count: int) -> None:
        """Proof came after the end of so many pushes."""
        ...

    def recorded(self, rows: int, seconds: float) -> None:
        """One batch of rows was committed."""
        ...

    def receipts(self, sent: int, owed: int, seconds: float) -> None:
        """One batch of receipts was published; so many became debts."""
        ...

    def handed(self, pushes: int) -> None:
        """So many pushes were handed to a socket, each counted once for each session."""
        ...

    def handshake(self, result: str, seconds: float) -> None:
        """A WebSocket handshake ended: `opened`, or the word for why it was refused."""
        ...

    def closed(self, reason: str) -> None:
        """A session ended; `reason` is a CloseReason's word, or `client`."""
        ...
