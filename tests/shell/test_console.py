"""What the console asks of the ops port: who may see what, bounds, what is on record, and the history."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge.adapters.amqp.producer import NotTaken
from bridge.adapters.metrics import SECONDS, PrometheusMetrics
from bridge.core.errors import BrokerUnavailable, StoreUnavailable
from bridge.core.model.outcomes import ENDINGS, Outcome, Reason
from bridge.core.model.parties import PARTIES
from bridge.operator.auditor import CHECKS
from bridge.operator.dead_letters import NoSuchQueue
from bridge.operator.replay import REPLAYABLE, Where
from bridge.operator.search import FoundPush
from bridge.operator.topics import KeptValue
from bridge.ops.history import EVERY, KEPT, History, Sample
from bridge.ops.routes.mending import REPLAY_MAX
from bridge.workers.merging import merged_history
from tests.support.ops import FakeDesk, Parts, Running, ops
from tests.support.ports import ManualClock
from tests.support.rows import timed_row

NOW = datetime(2026, 11, 30, 1, 2, 3, tzinfo=UTC)
FOUND = FoundPush(
    *("p1", "", "u1", "e", None, "", Outcome.UNKNOWN, Reason.CONNECTION_LOST, True, "handed over"),
    *(NOW, NOW, NOW, None, NOW),
)
SECRETS = {scope: f"{scope}-0123456789-abcdefghijklmnopqrst" for scope in ("read", "push", "admin")}


@pytest.fixture
def desk() -> FakeDesk:
    return FakeDesk()


@pytest.fixture
def parts(desk: FakeDesk) -> Parts:
    return Parts(desk=desk)


@pytest.fixture
async def running(parts: Parts) -> AsyncIterator[Running]:
    async with ops(parts) as running:
        yield running


@pytest.fixture
async def guarded(parts: Parts, tmp_path: Path) -> AsyncIterator[Running]:
    """The same, for credentials of each scope."""
    file = tmp_path / "credentials"
    file.write_text("".join(f"may-{scope} {scope} {secret}\n" for scope, secret in SECRETS.items()))
    async with ops(parts, path=str(file)) as running:
        yield running


def as_(scope: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[scope]}"}


# --- files -----------------------------------------------------------------------------------------------


async def test_the_console_may_ask_nobody_but_its_own_port_and_the_demo_page_may(running: Running) -> None:
    async with running.client.get("/") as answer:
        strict = answer.headers["Content-Security-Policy"]
    assert "connect-src 'self';" in strict
    assert "require-trusted-types-for 'script'" in strict
    assert "unsafe" not in strict
    async with running.client.get("/demo") as answer:
        assert "connect-src 'self' ws: wss:;" in answer.headers["Content-Security-Policy"]


async def test_a_file_that_is_not_of_the_console_is_not_served(running: Running) -> None:
    for name in ("LICENSE", "README.md", "nothing.js", "..%2Fapp.js", "%2e%2e%2fapp.js"):
        async with running.client.get(f"/console/{name}") as answer:
            assert answer.status == 404, name


async def test_the_console_knows_who_is_responsible_for_each_ending(running: Running) -> None:
    async with running.client.get("/console/parties.json") as answer:
        assert await answer.json() == {f"{e.outcome}/{e.reason}": PARTIES[e.reason] for e in ENDINGS}


# --- who one is, and what one may see --------------------------------------------------------------------


async def test_who_asks_is_told_its_name_and_scopes(running: Running, guarded: Running) -> None:
    async with running.client.get("/v1/me") as answer:
        assert await answer.json() == {"name": "local", "scopes": ["read", "push", "admin"]}
    async with guarded.client.get("/v1/me", headers=as_("read")) as answer:
        assert await answer.json() == {"name": "may-read", "scopes": ["read"]}
    async with guarded.client.get("/v1/me", headers=as_("push")) as answer:
        assert answer.status == 403


async def test_data_of_pushes_is_for_who_may_do_everything(guarded: Running, desk: FakeDesk) -> None:
    desk.letters = [{"id": "p1", "body": "a secret", "headers": {"x-push-user": "u1"}}]
    desk.kept_value = KeptValue("e", "p1", "", "", NOW, NOW, "json", 8, "a secret")
    for path in ("/v1/dead", "/v1/topics/news"):
        async with guarded.client.get(path, headers=as_("read")) as answer:
            assert answer.status == 200
            text = await answer.text()
        assert "p1" in text
        assert "secret" not in text
        assert "u1" not in text
        async with guarded.client.get(path, headers=as_("admin")) as answer:
            assert "a secret" in await answer.text()


# --- the audit ---


async def test_the_last_audit_is_told_with_what_each_check_counts(running: Running, parts: Parts) -> None:
    async with running.client.get("/v1/audit") as answer:
        assert await answer.json() == {"node": "n1", "audited_at": None, "checks": []}
    parts.drift, parts.audited_at = {"taken": 0, "receipts": 2}, 1_700_000_000.0
    async with running.client.get("/v1/audit") as answer:
        said = await answer.json()
    assert said["audited_at"] == 1_700_000_000
    assert said["checks"] == [
        {"check": check, "found": parts.drift[check], "counts": CHECKS[check]} for check in parts.drift
    ]


# --- search ----------------------------------------------------------------------------------------------


async def test_a_search_asks_for_a_field_and_says_who_was_responsible(
    running: Running, desk: FakeDesk
) -> None:
    desk.pushes = [FOUND]
    async with running.client.get("/v1/pushes?field=trace&q=abc") as answer:
        said = await answer.json()
    assert desk.asked == [("search", "trace", "abc", None)]
    (push,) = said["pushes"]
    assert (push["push_id"], push["party"], push["proven_at"]) == ("p1", "network", None)
    assert push["taken_at"] == "2026-11-30T01:02:03Z"


@pytest.mark.parametrize(
    "query",
    [
        "field=body",
        "q=" + "x" * 257,
        "q=%00",
        "after=nothing",
        "after=bm90aGluZw",
        "after=%C3%A9",
        "limit=5",
        "q=a&q=b",
    ],
)
async def test_a_search_that_makes_no_sense_is_refused(running: Running, desk: FakeDesk, query: str) -> None:
    async with running.client.get(f"/v1/pushes?{query}") as answer:
        assert answer.status == 400
    assert desk.asked == []


@pytest.mark.parametrize("before", ["yesterday", "2026-11-30", "2026-11-30T01:02:03", ""])
async def test_a_page_of_actions_begins_at_a_time_with_its_zone(
    running: Running, desk: FakeDesk, before: str
) -> None:
    async with running.client.get("/v1/actions", params={"before": before}) as answer:
        assert answer.status == 400
    async with running.client.get("/v1/actions", params={"before": "2026-11-30T01:02:03Z"}) as answer:
        assert answer.status == 200
    assert desk.asked == [("actions", NOW)]


# --- what changes something ------------------------------------------------------------------------------

CHANGES: dict[str, dict[str, object]] = {
    "/v1/dead/replay": {"ids": ["p1"]},
    "/v1/dead/purge": {"ids": ["p1"]},
    "/v1/replay": {"where": ["push=p1"], "mark": "m"},
}


@pytest.mark.parametrize("path", CHANGES)
async def test_a_change_needs_admin_and_is_on_record_and_a_dry_run_is_not(
    guarded: Running, parts: Parts, desk: FakeDesk, path: str
) -> None:
    desk.verdicts = {REPLAYABLE: 1}
    for scope in ("read", "push"):
        async with guarded.client.post(path, json=CHANGES[path], headers=as_(scope)) as answer:
            assert answer.status == 403
    assert desk.asked == []
    async with guarded.client.post(
        path, json={**CHANGES[path], "dry_run": True}, headers=as_("admin")
    ) as answer:
        assert answer.status == 200
    assert parts.actions.rows == {}
    async with guarded.client.post(path, json=CHANGES[path], headers=as_("admin")) as answer:
        assert answer.status == 200
    ((name, actor, _, result, _),) = parts.actions.rows.values()
    assert (name, actor, result) == (path.removeprefix("/v1/").replace("/", " "), "may-admin", "done")


@pytest.mark.parametrize("path", CHANGES)
async def test_a_change_that_can_have_no_row_is_not_made(
    running: Running, parts: Parts, desk: FakeDesk, path: str
) -> None:
    desk.verdicts = {REPLAYABLE: 1}
    parts.actions.error = StoreUnavailable("gone")
    async with running.client.post(path, json=CHANGES[path]) as answer:
        assert (answer.status, (await answer.json())["error"]) == (503, "database")
    assert [what for what, *_ in desk.asked if what != "replay count"] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/dead/replay", {}),
        ("/v1/dead/replay", {"ids": []}),
        ("/v1/dead/purge", {"ids": ["x"] * 101}),
        ("/v1/dead/purge", {"ids": ["p1"], "reasons": ["invalid"]}),
        ("/v1/dead/purge", {"ids": ["a\0b"]}),
        ("/v1/replay", {"where": ["push=\0"], "mark": "m"}),
        ("/v1/replay", {"where": [], "mark": "m"}),
        ("/v1/replay", {"where": ["body=x"], "mark": "m"}),
        ("/v1/replay", {"where": ["outcome=good"], "mark": "m"}),
        ("/v1/replay", {"where": ["push=p1"], "mark": "not a mark"}),
        ("/v1/replay", {"where": ["push=p1"], "mark": "m", "ttl": -1}),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused(
    running: Running, desk: FakeDesk, path: str, body: object
) -> None:
    async with running.client.post(path, json=body) as answer:
        assert (answer.status, (await answer.json())["error"]) == (400, "bad_request")
    assert desk.asked == []


async def test_a_replay_says_what_becomes_of_each_row_and_has_a_bound(
    running: Running, desk: FakeDesk, parts: Parts
) -> None:
    desk.verdicts = {REPLAYABLE: REPLAY_MAX + 1, "open": 2}
    body = {"where": ["user=u1", "user=u2"], "mark": "m"}
    async with running.client.post("/v1/replay", json={**body, "dry_run": True}) as answer:
        said = await answer.json()
    assert [(row["verdict"], row["rows"]) for row in said["rows"]] == [
        (REPLAYABLE, REPLAY_MAX + 1),
        ("open", 2),
    ]
    async with running.client.post("/v1/replay", json=body) as answer:
        assert answer.status == 400
        assert "at most 1000" in (await answer.json())["problem"]
    assert {what for what, *_ in desk.asked} == {"replay count"}
    assert desk.asked[0][1] == Where(user=("u1", "u2"))
    assert parts.actions.rows == {}


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), NotTaken("no queue is bound")])
async def test_a_broker_that_takes_nothing_is_told(
    running: Running, desk: FakeDesk, parts: Parts, error: Exception
) -> None:
    desk.error = error
    async with running.client.post("/v1/dead/replay", json={"ids": ["p1"]}) as answer:
        assert (answer.status, (await answer.json())["error"]) == (503, "broker")
    assert [row[3] for row in parts.actions.rows.values()] == ["failed"]


async def test_where_there_is_no_queue_there_are_no_letters(running: Running, desk: FakeDesk) -> None:
    desk.error = NoSuchQueue("push.dead")
    async with running.client.get("/v1/dead") as answer:
        assert await answer.json() == {"letters": [], "total": 0}
    async with running.client.post("/v1/dead/purge", json={"ids": ["p1"]}) as answer:
        assert await answer.json() == {"dry_run": False, "deleted": 0}


async def test_without_a_log_there_is_nothing_to_search() -> None:
    async with ops(Parts()) as running:
        for path in ("/v1/pushes", "/v1/topics", "/v1/actions", "/v1/dead"):
            async with running.client.get(path) as answer:
                assert answer.status == 404, path


# --- the history -----------------------------------------------------------------------------------------


class Hour:
    """A history that a test takes samples of."""

    def __init__(self) -> None:
        self.metrics = PrometheusMetrics(process=False)
        self.clock = ManualClock()
        self.ready: dict[str, int] = {}
        self.gauges: dict[str, float] = {"sessions": 2.0, "queued_bytes": 7.0}
        self.history = History(self.metrics.totals, lambda: self.gauges, lambda: self.ready, self.clock)

    def later(self, seconds: float = EVERY) -> Sample:
        """The sample after so many seconds."""
        self.clock.advance(seconds)
        self.history.look()
        return self.history.after(0.0)[-1]


def test_a_sample_counts_what_has_happened_since_the_one_before() -> None:
    hour = Hour()
    hour.metrics.outcomes([timed_row()])
    first = hour.later()
    assert first.outcomes == {"received": 1}
    assert sum(first.end_to_end) == sum(first.queued) == 1
    assert len(first.end_to_end) == len(SECONDS) + 1
    assert (first.seconds, first.gauges, first.queue) == (EVERY, {"sessions": 2.0}, None)
    hour.metrics.outcomes([timed_row(outcome=Outcome.OFFLINE, reason=Reason.NO_SESSION)])
    hour.ready = {"push.requests": 3, "push.requests.1": 4, "push.dead": 5}
    second = hour.later()
    assert (second.outcomes, second.queue) == ({"offline": 1}, 7)
    assert hour.later().outcomes == {}


def test_the_history_is_an_hour_and_not_more() -> None:
    hour = Hour()
    for _ in range(KEPT + 5):
        last = hour.later()
    assert len(hour.history.after(0.0)) == KEPT
    assert hour.history.after(last.at - 2 * EVERY)[-1] == last
    assert len(hour.history.after(last.at - 2 * EVERY)) == 2
    assert last.at % EVERY == 0


async def test_the_history_is_told_from_a_moment_on(running: Running, parts: Parts) -> None:
    parts.samples += [Sample(at, 10.0, {}, (), (), (), {}, None) for at in (10.0, 20.0, 30.0)]
    for query, told in (("", [10, 20, 30]), ("?since=20", [30]), ("?since=3e9", [])):
        async with running.client.get(f"/v1/history{query}") as answer:
            said = await answer.json()
        assert [sample["at"] for sample in said["samples"]] == told
        assert said["bounds"] == list(SECONDS)
    async with running.client.get("/v1/history?since=noon") as answer:
        assert answer.status == 400


def test_the_histories_of_workers_are_added_up_by_moment() -> None:
    def said(at: float, sessions: int, queue: int | None) -> dict[str, object]:
        sample = {
            "at": at,
            "seconds": 10.0,
            "outcomes": {"received": 1, f"only-{sessions}": 1},
            "end_to_end": [1, 2],
            "queued": [0, 1],
            "commits": [3, 0],
            "gauges": {"sessions": sessions},
            "queue": queue,
        }
        return {"every": 10.0, "bounds": [1.0], "samples": [sample]}

    merged = merged_history([said(10.0, 2, 5), said(10.0, 3, None), said(20.0, 1, 4)])
    first, second = merged["samples"]
    assert first["outcomes"] == {"received": 2, "only-2": 1, "only-3": 1}
    assert (first["end_to_end"], first["commits"], first["gauges"]) == ([2, 4], [6, 0], {"sessions": 5})
    assert (first["queue"], second["at"], second["queue"]) == (5, 20.0, 4)
