"""The ops port in tests: a server whose every part a test can change while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiohttp
import msgspec

from bridge.adapters.actions import Action, OnRecord
from bridge.adapters.credentials import Credentials
from bridge.adapters.gauges import Gauges
from bridge.adapters.metrics import PrometheusMetrics
from bridge.core.contract.receipts import receipt_body
from bridge.core.contract.requests import Limits
from bridge.core.mailbox.recalls import Recalled
from bridge.core.model.pushes import Recall
from bridge.core.model.revocations import Revocation, RevocationAnswer
from bridge.core.model.rows import Row
from bridge.core.ports.plugins import SessionInfo
from bridge.operator.dead_letters import Purge, Replayed
from bridge.operator.letters import Shown
from bridge.operator.lookup import Found
from bridge.operator.people import Disconnected, Kept, Person
from bridge.operator.record import Acts
from bridge.operator.replay import Where
from bridge.operator.search import FoundPush, Page, Place
from bridge.operator.topics import KeptValue, Topic, Topics
from bridge.ops.context import LookUp, OpsContext, People
from bridge.ops.history import Sample
from bridge.ops.outcome_feed import OutcomeFeed
from bridge.ops.server import OpsServer, listen
from tests.support.ports import ManualClock, RecordingErrors

GAUGES = Gauges(
    2,
    1,
    0,
    0,
    0,
    None,
    0,
    0,
    0,
    0,
    0,
    True,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    True,
    True,
    True,
    True,
    None,
    None,
)


def receipt(row: Row) -> dict[str, object]:
    """What a producer gets to read of a row."""
    made: dict[str, object] = msgspec.json.decode(receipt_body(row))
    return made


@dataclass
class Published:
    """One call of the publisher."""

    body: bytes
    push_id: str
    headers: Mapping[str, object]
    expected: int | None = None
    wait: float | None = None
    app_id: str = ""


@dataclass
class FakePublisher:
    """Fills the Publisher port: notes what was published, answers `request` with `receipts`."""

    calls: list[Published] = field(default_factory=list)
    receipts: Sequence[Mapping[str, object]] = ()
    error: Exception | None = None

    async def publish(
        self, body: bytes, *, push_id: str, headers: Mapping[str, object], app_id: str = ""
    ) -> None:
        self.calls.append(Published(body, push_id, headers, app_id=app_id))
        if self.error is not None:
            raise self.error

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
        self.calls.append(Published(body, push_id, headers, expected, wait, app_id))
        if self.error is not None:
            raise self.error
        return self.receipts


@dataclass
class FakeRecall:
    """Fills the RecallPushes port: notes what was recalled."""

    calls: list[Recall] = field(default_factory=list)
    error: Exception | None = None

    async def __call__(self, recall: Recall) -> Recalled:
        self.calls.append(recall)
        if self.error is not None:
            raise self.error
        return Recalled(ended=2, sessions=1)


@dataclass
class FakeRevoke:
    """Fills the RevokeTokens port: notes what was revoked."""

    calls: list[Revocation] = field(default_factory=list)
    error: Exception | None = None

    async def __call__(self, revocation: Revocation) -> RevocationAnswer:
        self.calls.append(revocation)
        if self.error is not None:
            raise self.error
        return RevocationAnswer(2, ("n1",), ("n2",))


@dataclass
class FakeActions:
    """Fills the ActionLog port: each action is a list of what, by whom, to whom and with which result."""

    rows: dict[str, list[object]] = field(default_factory=dict)
    error: Exception | None = None

    async def begin(self, action_id: str, action: Action, node: str) -> None:
        if self.error is not None:
            raise self.error
        self.rows[action_id] = [action.name, action.actor, dict(action.target), "begun"]

    async def end(self, action_id: str, result: str, facts: Mapping[str, object]) -> None:
        if self.error is not None:
            raise self.error
        self.rows[action_id][3:] = [result, dict(facts)]


async def nothing_known(push_id: str, user: str | None, tenant: str | None) -> Found:
    """Fills the LookUp port with an empty log."""
    return Found((), (), datetime.now(UTC), None)


class Nobody:
    """Fills the port People with an empty ledger."""

    async def look_up(self, user: str) -> Person:
        return Person(user, False, (), (), Kept(0, None), (), datetime.now(UTC))

    async def disconnect(self, user: str, session: str | None) -> Disconnected:
        return Disconnected(0, (), ())


@dataclass
class FakeDesk:
    """Fills the Desk port: what a test puts into it, and notes what was asked."""

    pushes: Sequence[FoundPush] = ()
    letters: Sequence[dict[str, object]] = ()
    verdicts: Mapping[str, int] = field(default_factory=dict)
    kept_value: KeptValue | None = None
    asked: list[tuple[object, ...]] = field(default_factory=list)
    error: Exception | None = None

    def _ask(self, *what: object) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    async def search(self, field: str, text: str, after: Place | None) -> Page:
        self._ask("search", field, text, after)
        return Page(self.pushes, None, None, datetime.now(UTC))

    async def topics(self) -> Topics:
        self._ask("topics")
        return Topics((), False, datetime.now(UTC))

    async def topic(self, name: str) -> Topic:
        self._ask("topic", name)
        values = () if self.kept_value is None else (self.kept_value,)
        return Topic(name, 0, 0, values, datetime.now(UTC))

    async def actions(self, before: datetime | None) -> Acts:
        self._ask("actions", before)
        return Acts((), False, datetime.now(UTC))

    async def dead(self) -> Shown:
        self._ask("dead")
        return Shown(self.letters, len(self.letters))

    async def dead_replay(self, ids: Sequence[str], *, new_ids: bool, dry_run: bool) -> Replayed:
        self._ask("dead replay", list(ids), new_ids, dry_run)
        return Replayed(1, 1, [(ids[0], ids[0])], [])

    async def dead_purge(self, ids: Sequence[str], *, dry_run: bool) -> Purge:
        self._ask("dead purge", list(ids), dry_run)
        return Purge(1, 1, len(ids))

    async def replay_count(self, chosen: Where, mark: str) -> Mapping[str, int]:
        self._ask("replay count", chosen, mark)
        return self.verdicts

    async def replay(self, chosen: Where, mark: str, ttl: float | None) -> int:
        self._ask("replay", chosen, mark, ttl)
        return 1


@dataclass
class Parts:
    """Everything that the ops port is given, to be changed by a test while it runs."""

    publisher: FakePublisher = field(default_factory=FakePublisher)
    feed: OutcomeFeed = field(default_factory=OutcomeFeed)
    errors: RecordingErrors = field(default_factory=RecordingErrors)
    clock: ManualClock = field(default_factory=ManualClock)
    metrics: PrometheusMetrics = field(default_factory=lambda: PrometheusMetrics(process=False))
    causes: list[str] = field(default_factory=list)
    sessions: list[SessionInfo] = field(default_factory=list)
    ws_port: int = 8181
    dev: bool = True
    metrics_error: Exception | None = None
    look_up: LookUp | None = None
    people: People | None = None
    desk: FakeDesk | None = None
    samples: list[Sample] = field(default_factory=list)
    drift: dict[str, int] = field(default_factory=dict)
    audited_at: float = 0.0
    recall: FakeRecall = field(default_factory=FakeRecall)
    revoke: FakeRevoke = field(default_factory=FakeRevoke)
    actions: FakeActions = field(default_factory=FakeActions)

    def credentials(self, token: str = "", path: str = "") -> Credentials:
        """What the port asks for."""
        return Credentials(path, token, clock=self.clock, errors=self.errors)

    def context(self) -> OpsContext:
        """What `listen` wants."""

        def metrics_page() -> bytes:
            if self.metrics_error is not None:
                raise self.metrics_error
            return self.metrics.page()

        return OpsContext(
            node="n1",
            boot="b1",
            version="1.2.3",
            core="interpreted",
            started_at=self.clock.time(),
            ws_port=lambda: self.ws_port,
            readiness=lambda: (not self.causes, self.causes),
            role=lambda: "active",
            gauges=lambda: GAUGES._replace(sessions=len(self.sessions)).known(),
            sessions=lambda most: self.sessions[:most],
            metrics_page=metrics_page,
            publisher=self.publisher,
            on_record=OnRecord(self.actions, "n1"),
            recall=self.recall,
            revoke=self.revoke,
            feed=self.feed,
            limits=Limits(),
            errors=self.errors,
            clock=self.clock,
            dev_token=(lambda user, seconds: f"token-of.{user}.x") if self.dev else None,
            look_up=self.look_up,
            people=self.people,
            desk=self.desk,
            drift=lambda: (self.drift, self.audited_at),
            history=lambda moment: [sample for sample in self.samples if sample.at > moment],
        )


@dataclass
class Running:
    """A server on a port of its own, and a client of it."""

    server: OpsServer
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server.port}"


@asynccontextmanager
async def ops(
    parts: Parts, *, host: str = "127.0.0.1", token: str = "", path: str = ""
) -> AsyncIterator[Running]:
    """Serve `parts` to whoever has the token, or a credential of the path."""
    async with (
        listen(parts.context(), host=host, port=0, credentials=parts.credentials(token, path)) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client,
    ):
        yield Running(server, client)
