"""What the app gives the ops port: everything that its routes show and do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from bridge.adapters.actions import OnRecord
from bridge.core.contract.requests import Limits
from bridge.core.mailbox.recalls import Recalled
from bridge.core.model.pushes import Recall
from bridge.core.model.revocations import Revocation, RevocationAnswer
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler, SessionInfo
from bridge.operator.dead_letters import Purge, Replayed
from bridge.operator.letters import Shown
from bridge.operator.lookup import Found
from bridge.operator.nodes import KnownNode
from bridge.operator.people import Disconnected, Person
from bridge.operator.record import Acts
from bridge.operator.replay import Where
from bridge.operator.search import Page, Place
from bridge.operator.topics import Topic, Topics
from bridge.ops.history import Sample
from bridge.ops.outcome_feed import OutcomeFeed


class LookUp(Protocol):
    """Asks the delivery log."""

    async def __call__(self, push_id: str, user: str | None, tenant: str | None) -> Found:
        """Return what the log has of a push: for one user or all (None), of one tenant or any (None).

        Raises StoreUnavailable.
        """
        ...


class RecallPushes(Protocol):
    """Recalls pushes."""

    async def __call__(self, recall: Recall) -> Recalled:
        """Return once it is carried out. Raises StoreUnavailable."""
        ...


class RevokeTokens(Protocol):
    """Revokes tokens."""

    async def __call__(self, revocation: Revocation) -> RevocationAnswer:
        """Return once the live nodes have carried it out, or after two seconds. Raises StoreUnavailable."""
        ...


class People(Protocol):
    """Knows users. Both methods raise StoreUnavailable."""

    async def look_up(self, user: str) -> Person:
        """What is known of a user."""
        ...

    async def disconnect(self, user: str, session: str | None) -> Disconnected:
        """Close the sessions of a user, or one of them. Returns once the nodes have, or after two seconds."""
        ...


class Desk(Protocol):
    """What operators ask of log and queues. What asks the log raises StoreUnavailable, what asks the broker
    BrokerUnavailable and NoSuchQueue."""

    async def search(self, field: str, text: str, after: Place | None) -> Page:
        """A page of the pushes where a field of `bridge.operator.search.FIELDS` is this text; with no text, of all."""
        ...

    async def topics(self) -> Topics:
        """The topics that there are."""
        ...

    async def topic(self, name: str) -> Topic:
        """One topic and its last values."""
        ...

    async def actions(self, before: datetime | None) -> Acts:
        """What people did by hand before this moment."""
        ...

    async def dead(self) -> Shown:
        """The oldest letters of push.dead."""
        ...

    async def dead_replay(self, ids: Sequence[str], *, new_ids: bool, dry_run: bool) -> Replayed:
        """Publish the letters with these ids again, of those that `dead` tells. Also raises NotTaken."""
        ...

    async def dead_purge(self, ids: Sequence[str], *, dry_run: bool) -> Purge:
        """Delete the letters with these ids, of those that `dead` tells."""
        ...

    async def replay_count(self, chosen: Where, mark: str) -> Mapping[str, int]:
        """How many rows each verdict of `bridge.operator.replay.VERDICTS` has."""
        ...

    async def replay(self, chosen: Where, mark: str, ttl: float | None) -> int:
        """Publish what can be replayed, and return how many that were. Also raises BrokerUnavailable and NotTaken."""
        ...


class PushPublisher(Protocol):
    """Publishes to the exchange `push`; a request without an id gets `push_id`.

    Both methods raise BrokerUnavailable if the broker did not confirm.
    """

    async def publish(
        self, body: bytes, *, push_id: str, headers: Mapping[str, object], app_id: str = ""
    ) -> None:
        """Return once the broker has confirmed. `app_id` names the publisher."""
        ...

    async def request(
        self,
        body: bytes,
        *,
        push_id: str,
        headers: Mapping[str, object],
        expected: int | None,
        wait: float,
        app_id: str = "",
    ) -> Sequence[Mapping[str, object]]:
        """Publish and collect receipts.

        Returns once `expected` receipts are there, or after `wait` seconds those that have come. None: nobody knows
        how many will come.
        """
        ...


@dataclass(frozen=True)
class OpsContext:
    """What the ops port shows and does, as the composition root gives it."""

    node: str
    boot: str
    version: str
    core: str
    """Whether the core is `compiled` or `interpreted`."""
    started_at: float
    ws_port: Callable[[], int]
    readiness: Callable[[], tuple[bool, Sequence[str]]]
    """Whether the bridge takes pushes, and if not, one sentence for each cause: its name, a colon, and why."""
    role: Callable[[], str | None]
    """`active`, `standby` or `unknown`; None while there is no connection to the broker."""
    gauges: Callable[[], Mapping[str, float]]
    """The gauges of the metrics page, by name."""
    sessions: Callable[[int], Sequence[SessionInfo]]
    """Open sessions, at most as many as the argument says."""
    metrics_page: Callable[[], bytes]
    publisher: PushPublisher
    on_record: OnRecord
    """Carries out what is to have a line and a row that say who asked for it."""
    recall: RecallPushes
    revoke: RevokeTokens
    feed: OutcomeFeed
    limits: Limits
    errors: ErrorHandler
    clock: Clock
    history: Callable[[float], Sequence[Sample]] = lambda moment: ()
    """The samples after a moment, seconds since the epoch."""
    drift: Callable[[], tuple[Mapping[str, int], float]] = lambda: ({}, 0.0)
    """What the last audit found, by check, and when it was made; 0: never."""
    dev_token: Callable[[str, float], str] | None = None
    """Makes a token for a user that is valid for so many seconds; None outside of development."""
    look_up: LookUp | None = None
    """None if the delivery log can't be asked."""
    people: People | None = None
    """None without a ledger."""
    desk: Desk | None = None
    """None if the delivery log can't be asked."""
    nodes: Callable[[], Awaitable[Sequence[KnownNode]]] | None = None
    """The nodes that there are. It raises StoreUnavailable. None where they do not know of one another."""
