"""The browser's client library where a proxy lets no WebSocket through: it goes on with a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.browser.test_client import begin, kept, phase, pushes, scripted, told
from tests.support import bridges
from tests.support.browser import launched, opened
from tests.support.proxies import plain_proxy, silent_proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


async def test_after_two_websockets_that_did_not_open_a_stream_proves_all_the_same(
    browser: Browser, vhost: str, database: str
) -> None:
    async with (
        scripted() as script,
        bridges.bridge(vhost, database) as bridge,
        plain_proxy(bridge.ws_port) as proxy,
        opened(browser, f"http://{script.url}/") as page,
    ):
        token = bridges.token("alice", topics=["room.7"])
        # The page is of another origin than the bridge: the browser asks before it sends the header with the token.
        await begin(page, f"ws://127.0.0.1:{proxy.port}/ws", token=token, autoAck=True)
        await phase(page, "open")
        # Or more, where a try comes before the answer to the question whether plain HTTP gets through.
        assert proxy.refused >= 2
        await page.evaluate("told.length = 0")
        received = bridges.request("alice", "p0", data={"n": [1, "\u00fc\n"]})
        in_topic = {"id": "p3", "to": {"topic": "room.7"}, "data": "a"}
        await bridges.publish(vhost, received, *kept("p1", "p2"), in_topic)
        await told(page, *pushes("p0", "p1", "p2", "p3"))
        assert await page.evaluate("pushes.p0.data") == {"n": [1, "\u00fc\n"]}
        ends = bridges.endings(await bridges.final_rows(database, 4))
        assert ends == {
            ("p0", "alice"): ("received", "pong"),
            ("p1", "alice"): ("acked", "ack_frame"),
            ("p2", "alice"): ("acked", "ack_frame"),
            ("p3", "alice"): ("received", "pong"),
        }
        for promise in ("client.publish('a.b', 1)", "client.subscribe('room.8')"):
            code = await page.evaluate(f"{promise}.catch((error) => error.code)")
            assert code == "one_way"

        proxy.cut()
        await bridges.publish(vhost, *kept("p4"))
        await bridges.rows_when(database, lambda found: found[-1]["outcome"] == "stored")
        proxy.mend()
        # It may have told that several tries failed meanwhile.
        await page.wait_for_function("told.filter(([word]) => word === 'push').length === 1")
        ends = bridges.endings(await bridges.final_rows(database, 5))
        assert ends["p4", "alice"] == ("acked", "ack_frame")
        await page.evaluate("client.close()")


async def test_without_the_file_for_streams_it_goes_on_with_websockets(
    browser: Browser, vhost: str, database: str
) -> None:
    async with (
        scripted() as script,
        bridges.bridge(vhost, database) as bridge,
        plain_proxy(bridge.ws_port) as proxy,
        opened(browser, f"http://{script.url}/") as page,
    ):
        await page.route("**/bridge-client-stream.js", lambda route: route.abort())
        async with page.expect_request("**/bridge-client-stream.js"):
            await begin(page, f"ws://127.0.0.1:{proxy.port}/ws", token=bridges.token("alice"))
        before = proxy.refused
        await page.wait_for_function("told.length === 1")
        async with asyncio.timeout(bridges.SECONDS):
            while proxy.refused < before + 3:
                await asyncio.sleep(0.02)
        ((what, why),) = await page.evaluate("told")
        assert (what, why[:8]) == ("error", "3 tries "), "which is told as always, and nothing else"
        proxy.behind, proxy.passing = bridge.ws_port, True
        await phase(page, "open")
        await page.evaluate("client.close()")


async def test_after_an_outage_a_page_comes_back_by_a_websocket(
    browser: Browser, vhost: str, database: str
) -> None:
    async with (
        scripted() as script,
        bridges.bridge(vhost, database) as bridge,
        silent_proxy(bridge.ws_port) as proxy,
        opened(browser, f"http://{script.url}/") as page,
    ):
        token = bridges.token("alice", subscribe=["room.*"])
        proxy.cut()
        await begin(page, f"ws://127.0.0.1:{proxy.port}/ws", token=token)
        await page.wait_for_function(
            "told.filter(([word]) => word === 'error').length === 1"
        )  # several tries
        proxy.mend()
        await phase(page, "open")
        await page.evaluate("client.subscribe('room.7')")  # no stream could

        proxy.cut()
        await page.wait_for_function("told.filter(([word]) => word === 'error').length === 2")
        proxy.mend()
        await phase(page, "open")
        await page.evaluate("client.subscribe('room.8')")
        await bridges.publish(vhost, {"id": "p1", "to": {"topic": "room.7"}, "data": "a"})
        await page.wait_for_function("'p1' in pushes")
        await page.evaluate("client.close()")


async def test_a_plain_event_source_resumes_by_itself_and_rows_say_that_it_can_prove_nothing(
    browser: Browser, vhost: str, database: str
) -> None:
    async with (
        scripted() as script,
        bridges.bridge(vhost, database, confirm_timeout=0.5) as bridge,
        plain_proxy(bridge.ws_port) as proxy,
        opened(browser, f"http://{script.url}/") as page,
    ):
        address = f"http://127.0.0.1:{proxy.port}/sse?token={bridges.token('alice')}"
        await page.evaluate(
            """address => {
                window.seen = [];
                window.source = new EventSource(address);
                source.onmessage = ({ data }) => {
                    const { type, id } = JSON.parse(data);
                    if (type === "welcome" || type === "push") seen.push(id ?? type);
                };
            }""",
            address,
        )
        await page.wait_for_function("seen.length === 1")
        await bridges.publish(vhost, bridges.request("alice", "p1", ttl=60))
        await bridges.rows_when(database, lambda found: found and found[-1]["reason"] == "no_proof_possible")
        proxy.cut()
        proxy.mend()
        await bridges.publish(vhost, bridges.request("alice", "p2", ttl=60))
        await page.wait_for_function("seen.includes('p2')")
        assert await page.evaluate("seen") == ["welcome", "p1", "welcome", "p2"]
        await bridges.publish(vhost, bridges.request("alice", "p3"))
        ends = bridges.endings(await bridges.final_rows(database, 1))
        assert ends == {
            ("p1", "alice"): ("stored", "no_proof_possible"),
            ("p2", "alice"): ("stored", "no_proof_possible"),
            ("p3", "alice"): ("written", "no_proof_possible"),
        }
        await page.evaluate("source.close()")
