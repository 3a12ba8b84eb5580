"""The ops port of several workers: sums, what is passed on, and what is said of workers that are not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from io import BytesIO

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.listening import listening
from bridge.adapters.metrics import PrometheusMetrics, gauge_families
from bridge.core.model.pushes import MESSAGE_BYTES_MAX
from bridge.core.ports.plugins import SessionInfo
from bridge.ops.history import Sample
from bridge.ops.outcome_feed import BACKLOG_ROWS
from bridge.workers import stream
from bridge.workers.asking import Answer, Asking
from bridge.workers.link import State
from bridge.workers.merging import About, merged_metrics
from tests.support.group import Group, group
from tests.support.metrics_page import samples
from tests.support.ops import GAUGES, Parts
from tests.support.rows import timed_row
from tests.support.waiting import until

PUSH = {"id": "p1", "to": {"user": "u1"}, "data": {"hi": 1}}
TOKEN = "a token of the ops port for tests: 0123456789"


@pytest.fixture
async def pair() -> AsyncIterator[Group]:
    async with group(Parts(), Parts()) as made:
        yield made


# --- sums ------------------------------------------------------------------------------------------------


def test_pages_are_merged_with_a_label_and_each_family_is_told_once() -> None:
    pages = {}
    for k in (1, 2):
        metrics = PrometheusMetrics()
        metrics.handed(k)
        metrics.handshake("opened", 0.001)
        metrics.add_source(lambda k=k: gauge_families(GAUGES._replace(sessions=10 * k)))  # type: ignore[misc]
        pages[k] = metrics.page()
    workers = [About(1, "n1-1", 77, 0), About(2, "n1-2", None, 3)]
    text = merged_metrics(pages, workers).decode()
    found = samples(text)
    assert [found[("bridge_handed_frames_total", str(k))] for k in (1, 2)] == [1, 2]
    assert [found[("bridge_sessions", str(k))] for k in (1, 2)] == [10, 20]
    assert [found[("bridge_worker_up", str(k))] for k in (1, 2)] == [1, 0]
    assert [found[("bridge_worker_restarts_total", str(k))] for k in (1, 2)] == [0, 3]
    lines = text.splitlines()
    heads = [tuple(line.split()[1:3]) for line in lines if line.startswith("# ")]
    assert len(heads) == len(set(heads))
    assert all('{worker="' in line for line in lines if not line.startswith("#"))
    for k in (1, 2):
        assert of_worker(text, str(k)) == every_sample(pages[k].decode())


def every_sample(page: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def of_worker(page: str, number: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples with this label, without it; those that only the supervisor has are left out."""
    own = ("worker", number)
    return {
        (name, tuple(label for label in labels if label != own)): value
        for (name, labels), value in every_sample(page).items()
        if own in labels and not name.startswith("bridge_worker_")
    }


@pytest.mark.parametrize(
    ("sample", "wanted"),
    [
        (b"a 1.0", b'a{worker="1"} 1.0'),
        (b'a{b="c d}"} 1.0 123', b'a{worker="1",b="c d}"} 1.0 123'),
        (b"a{} 1.0", b'a{worker="1"} 1.0'),
    ],
)
def test_a_sample_gets_its_label(sample: bytes, wanted: bytes) -> None:
    assert merged_metrics({1: b"# TYPE a gauge\n" + sample + b"\n"}, []).splitlines()[1] == wanted


async def test_a_group_is_ready_while_one_worker_is_and_names_the_causes_of_the_others(pair: Group) -> None:
    first, second = pair.workers
    first.parts.causes.append("broker: away")
    async with pair.client.get("/readyz") as answer:
        assert answer.status == 200
        assert await answer.json() == {
            "ready": True,
            "causes": [],
            "workers": [
                {"worker": 1, "ready": False, "causes": ["broker: away"]},
                {"worker": 2, "ready": True, "causes": []},
            ],
        }
    second.pid = None
    async with pair.client.get("/readyz") as answer:
        assert answer.status == 503
        assert (await answer.json())["causes"] == ["broker: away", "down"]


async def test_many_probes_at_once_ask_each_worker_once(pair: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ask = list[int](), Asking._ask_each
    go = asyncio.Event()

    async def counted(self: Asking, request: web.Request, seconds: float) -> dict[int, Answer]:
        asked.append(len(asked))
        await go.wait()
        return await ask(self, request, seconds)

    monkeypatch.setattr(Asking, "_ask_each", counted)

    async def probe(agent: str = "a") -> int:
        async with pair.client.get("/readyz", headers={"User-Agent": agent}) as answer:
            return answer.status

    first = asyncio.create_task(probe())
    await until(lambda: len(asked) == 1)
    others = [asyncio.create_task(probe()) for _ in range(20)]
    another = asyncio.create_task(probe("another"))
    await until(lambda: len(asked) == 2)
    first.cancel()  # whoever waits with it has an answer all the same
    go.set()
    assert await asyncio.gather(*others, another) == [200] * 21
    assert len(asked) <= 3
    assert await probe() == 200
    assert len(asked) <= 4


async def test_a_header_that_is_not_utf_8_costs_no_answer(pair: Group) -> None:
    url = pair.client._base_url
    assert url is not None
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nUser-Agent: caf\xe9\r\nConnection: close\r\n\r\n"
    )
    try:
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    finally:
        writer.close()


async def test_strangers_hear_a_word_for_each_cause_and_no_sums() -> None:
    async with group(Parts(causes=["broker: away"]), Parts(causes=["broker: away"]), token=TOKEN) as made:
        async with made.client.get("/readyz") as answer:
            assert (await answer.json())["causes"] == ["broker"]
        for path in ("/metrics", "/status", "/v1/outcomes"):
            async with made.client.get(path) as answer:
                assert (answer.status, (await answer.json())["error"]) == (401, "token")
                assert answer.headers["WWW-Authenticate"] == 'Bearer realm="bridge ops"'
        async with made.client.get("/readyz", headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
            assert (await answer.json())["causes"] == ["broker: away"]


async def test_the_state_is_the_sum_and_says_which_worker_does_not_answer() -> None:
    one, two = Parts(), Parts()
    one.sessions.append(SessionInfo("s1", "u1", "bridge.bare", 1.0))
    two.sessions.append(SessionInfo("s2", "u2", "bridge.bare", 1.0))
    async with group(one, two, silent=1) as made:
        async with made.client.get("/status") as answer:
            said = await answer.json()
    assert (said["node"], said["ready"], said["ws_port"]) == ("n1", True, 8181)
    assert said["gauges"]["sessions"] == 2
    assert [session["user"] for session in said["sessions"]] == ["u1", "u2"]
    assert [worker["node"] for worker in said["workers"]] == ["n1-1", "n1-2", "n1-3"]
    assert [worker["status"] is None for worker in said["workers"]] == [False, False, True]


async def test_the_histories_of_all_are_added_up() -> None:
    one, two = Parts(), Parts()
    for parts, received in ((one, 2), (two, 3)):
        parts.samples.append(
            Sample(10.0, 10.0, {"received": received}, (1,), (1,), (1,), {"sessions": 1.0}, 5)
        )
    async with group(one, two, silent=1) as made, made.client.get("/v1/history?since=5") as answer:
        (sample,) = (await answer.json())["samples"]
    assert (sample["outcomes"], sample["gauges"], sample["queue"]) == ({"received": 5}, {"sessions": 2.0}, 5)


async def test_livez_is_that_of_the_supervisor_and_sums_without_a_worker_are_503() -> None:
    async with group(silent=2) as made:
        for path, status in (
            ("/livez", 200),
            ("/readyz", 503),
            ("/metrics", 503),
            ("/status", 503),
            ("/", 503),
        ):
            async with made.client.get(path) as answer:
                assert answer.status == status, path
        async with made.client.post("/v1/push", json=PUSH) as answer:
            assert (answer.status, (await answer.json())["error"]) == (503, "workers")
            assert answer.headers["Retry-After"] == "1"


# --- what is passed on -----------------------------------------------------------------------------------


async def test_a_change_is_made_by_the_worker_that_takes_the_pushes_in_the_name_of_who_asked() -> None:
    async with group(Parts(), Parts(), token=TOKEN) as made:
        _, second = made.workers
        second.state = State(ready=True, active=True)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with made.client.post("/v1/recall", json={"push_id": "p1"}, headers=headers) as answer:
            assert answer.status == 200
    ((name, actor, target, result, _),) = second.parts.actions.rows.values()
    assert (name, actor, result) == ("recall", "ops", "done")
    assert target == {"push_id": "p1", "tenant": ""}
    assert made.workers[0].parts.actions.rows == {}


async def test_bodies_and_answers_pass_as_they_are(pair: Group) -> None:
    first = pair.workers[0]

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"id": "p1", "to": {"user": "u1"}, ', b'"data": {"hi": 1}}'):
            yield piece

    json_type = {"Content-Type": "application/json"}
    async with pair.client.post("/v1/push", data=pieces(), headers=json_type) as answer:
        assert answer.status == 202
    assert json.loads(first.parts.publisher.calls[0].body) == PUSH
    large = BytesIO(b"x" * (MESSAGE_BYTES_MAX + 1))
    async with pair.client.post("/v1/push", data=large, headers=json_type) as answer:
        assert (answer.status, (await answer.json())["error"]) == (413, "too_large")
    async with pair.client.post("/v1/push", json=PUSH, headers={"X-Push-Id": "p1"}) as answer:
        assert answer.status == 400
    async with pair.client.get("/") as page, pair.client.head("/") as head:
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(await page.read())))
        assert head.headers["Content-Type"] == page.headers["Content-Type"]
    async with pair.client.post("/metrics", json={}) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET,HEAD")


async def test_pages_of_other_origins_and_other_hosts_are_refused_as_ever(pair: Group) -> None:
    for headers, word in (({"Origin": "https://evil.example"}, "origin"), ({"Host": "evil.example"}, "host")):
        for path in ("/status", "/v1/pushes/p1"):
            async with pair.client.get(path, headers=headers) as answer:
                assert (answer.status, (await answer.json())["error"]) == (403, word)


async def test_a_worker_that_has_just_ended_is_passed_over() -> None:
    async with group(Parts(), silent=1) as made:
        made.workers[1].state = State(ready=True, active=True)
        async with made.client.post("/v1/push", json=PUSH) as answer:
            assert answer.status == 202


async def test_a_worker_that_ends_with_a_request_is_told_and_the_request_is_not_made_again() -> None:
    async with group(Parts(), silent=1) as made:
        dying = made.workers[1]
        dying.state = State(ready=True, active=True)

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with listening(take, path=dying.ops_path):
            async with made.client.post("/v1/push", json=PUSH) as answer:
                assert (answer.status, (await answer.json())["error"]) == (502, "worker")
        assert made.workers[0].parts.publisher.calls == []


# --- outcomes --------------------------------------------------------------------------------------------


async def events(answer: aiohttp.ClientResponse, count: int) -> list[str]:
    """The data of so many events."""
    found: list[str] = []
    async with asyncio.timeout(15):
        async for line in answer.content:
            if line.startswith(b"data: "):
                found.append(line.removeprefix(b"data: ").decode())
                if len(found) == count:
                    break
    return found


async def test_outcomes_of_all_workers_are_one_stream(pair: Group) -> None:
    async with pair.client.get("/v1/outcomes?user=u1") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        for k, worker in enumerate(pair.workers):
            worker.parts.feed.on_outcome(timed_row(f"p{k}", "u1"))
            worker.parts.feed.on_outcome(timed_row(f"q{k}", "u2"))
        got = await events(answer, 2)
        assert sorted(json.loads(data)["push_id"] for data in got) == ["p0", "p1"]
    await until(lambda: all(worker.parts.feed.readers == 0 for worker in pair.workers))


async def test_a_stream_goes_on_without_a_worker_and_with_it_once_it_is_back(
    pair: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "AGAIN_SECONDS", 0.01)
    first, second = pair.workers
    second.pid = None
    async with pair.client.get("/v1/outcomes") as answer:
        first.parts.feed.on_outcome(timed_row("p1"))
        assert len(await events(answer, 1)) == 1
        second.pid = 2
        await until(lambda: second.parts.feed.readers == 1)
        second.parts.feed.on_outcome(timed_row("p2"))
        (data,) = await events(answer, 1)
        assert json.loads(data)["push_id"] == "p2"


async def test_a_quiet_stream_shows_that_it_is_still_there(
    pair: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "COMMENT_AFTER", 0.01)
    async with pair.client.get("/v1/outcomes") as answer, asyncio.timeout(15):
        async for line in answer.content:
            if line == b": still here\n":
                return
    raise AssertionError("no comment")


async def test_a_reader_that_is_behind_hears_how_much_it_missed(pair: Group) -> None:
    async with pair.client.get("/v1/outcomes") as answer:
        for n in range(BACKLOG_ROWS + 7):
            pair.workers[1].parts.feed.on_outcome(timed_row(f"p{n}"))
        assert (await events(answer, BACKLOG_ROWS + 1))[-1] == '{"count": 7}\n'
