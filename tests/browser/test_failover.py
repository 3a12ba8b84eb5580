"""The browser's library where a node is killed or the page is frozen: each push is on the screen once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from bridge.app import build as app
from tests.browser.test_client import kept, phase, scripted
from tests.support import bridges
from tests.support.browser import bare_tab, launched, opened
from tests.support.proxies import SilentProxy, silent_proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

START = """([url, token, tabs]) => import("./bridge-client.js").then(({ connect }) => {
    window.client = connect({ url, token, tabs, autoAck: true,
        onPush({ id }) { document.body.append(Object.assign(document.createElement("li"), { textContent: id })); },
        onGap: () => tell("gap"), onError: ({ message }) => tell("error", message) });
})"""
SECONDS = 20_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


async def shown(page: Page, count: int) -> list[str]:
    """What is on the screen once it is so much."""
    await expect(page.locator("li")).to_have_count(count, timeout=SECONDS)
    return await page.locator("li").all_inner_texts()


@asynccontextmanager
async def two_nodes(
    browser: Browser, vhost: str, database: str
) -> AsyncIterator[tuple[Page, bridges.Process, app.Running, SilentProxy]]:
    """A page, two nodes of which the first may be killed, and a proxy before that one."""
    async with (
        scripted() as script,
        bridges.process(vhost, database, node="a") as first,
        bridges.bridge(vhost, database, node="b") as second,
        silent_proxy(first.ws_port) as proxy,
        opened(browser, f"http://{script.url}/") as page,
    ):
        yield page, first, second, proxy


async def test_a_node_is_killed_while_pushes_come_and_the_page_goes_on_at_the_other(
    browser: Browser, vhost: str, database: str
) -> None:
    async with two_nodes(browser, vhost, database) as (page, first, second, proxy):
        await page.evaluate(START, [f"ws://127.0.0.1:{proxy.port}/ws", bridges.token("alice")])
        session = (await phase(page, "open"))["session"]
        ids: list[str] = []
        enough = asyncio.Event()

        async def come() -> None:
            while not enough.is_set():
                more = [f"p{n:04}" for n in range(len(ids), len(ids) + 25)]
                ids.extend(more)
                await bridges.publish(vhost, *kept(*more))

        coming = asyncio.create_task(come())
        await page.wait_for_function("document.querySelectorAll('li').length > 50")
        proxy.behind = second.ws_port
        await first.kill()
        shown_then = await page.locator("li").count()
        await page.wait_for_function(
            "session => client.state.session?.length && client.state.session !== session", arg=session
        )
        enough.set()
        await coming
        assert shown_then < len(ids)
        assert sorted(await shown(page, len(ids))) == ids
        ends = bridges.endings(await bridges.final_rows(database, len(ids)))
        assert ends.keys() == {(name, "alice") for name in ids}
        assert sorted(await shown(page, len(ids))) == ids, "nothing came again"
        # If the last push on the screen had no row yet when its node died, nobody can say what followed it.
        assert await page.evaluate("told") in ([], [["gap"]])
        await page.evaluate("client.close()")


async def test_a_thousand_pushes_that_come_during_a_reconnect_are_once_on_the_screen_of_each_of_four_tabs(
    browser: Browser, vhost: str, database: str
) -> None:
    async with two_nodes(browser, vhost, database) as (page, first, second, proxy):
        tabs = [page, *[await page.context.new_page() for _ in range(3)]]
        for tab in tabs[1:]:
            await tab.goto(page.url)
        for tab in tabs:
            url = f"ws://127.0.0.1:{proxy.port}/ws"
            await tab.evaluate(START, [url, bridges.token("alice"), "shared"])
        sessions = {(await phase(tab, "open"))["session"] for tab in tabs}
        assert len(sessions) == 1, "all tabs have one connection"
        await bridges.publish(vhost, *kept("p0"))
        for tab in tabs:
            await shown(tab, 1)
        await bridges.final_rows(database, 1)
        await first.kill()
        ids = [f"p{n:04}" for n in range(1, 1001)]
        await bridges.publish(vhost, *kept(*ids))
        proxy.behind = second.ws_port
        for tab in tabs:
            assert await shown(tab, 1001) == ["p0", *ids]
        ends = bridges.endings(await bridges.final_rows(database, 1001))
        assert set(ends.values()) == {("acked", "ack_frame")}
        for tab in tabs:
            assert len(await shown(tab, 1001)) == 1001, "nothing came again"
        await page.evaluate("client.close()")


async def test_what_is_pushed_while_the_browser_has_frozen_the_page_is_shown_once_when_it_goes_on(
    browser: Browser, vhost: str, database: str
) -> None:
    async with (
        scripted() as script,
        bridges.bridge(vhost, database) as bridge,
        bare_tab(browser, f"http://{script.url}/") as tab,
    ):
        await tab.evaluate(
            """(() => {
                window.ticks = 0;
                setInterval(() => { ticks += 1; }, 20);
                for (const event of ["freeze", "resume"]) document.addEventListener(event, () => tell(event));
            })()"""
        )
        arguments = json.dumps([f"ws://127.0.0.1:{bridge.ws_port}/ws", bridges.token("alice")])
        await tab.evaluate(f"({START})({arguments})")
        await tab.until("client.state.phase === 'open'")
        items = "[...document.querySelectorAll('li')].map(({ textContent }) => textContent)"
        await bridges.publish(vhost, *kept("p0"))
        await tab.until(f"{items}.length === 1")

        await tab.freeze()
        frozen_at = await tab.evaluate("ticks")
        ids = [f"p{n}" for n in range(1, 21)]
        await bridges.publish(vhost, *kept(*ids), bridges.request("alice", "p21"))
        await bridges.final_rows(database, 2)
        assert await tab.evaluate("[ticks, told]") == [frozen_at, [["freeze"]]], "it is frozen"
        assert await tab.evaluate(items) == ["p0"]

        await tab.thaw()
        await tab.until(f"{items}.includes('p20')")
        ends = bridges.endings(await bridges.final_rows(database, 22))
        assert {ends[name, "alice"] for name in ids} == {("acked", "ack_frame")}
        # Some browsers close the connection of a frozen page (Chromium 156). What they had proven by then, and no row
        # keeps for the page's ack, is not shown.
        assert await tab.evaluate(items) in (["p0", *ids], ["p0", *ids, "p21"])
        assert await tab.evaluate("told") == [["freeze"], ["resume"]], "no gap"
        await tab.evaluate("client.close()")


async def test_what_is_pushed_in_a_minute_without_a_network_is_shown_once_and_in_order_when_it_is_back(
    browser: Browser, vhost: str, database: str
) -> None:
    async with (
        scripted() as script,
        bridges.bridge(vhost, database, node="a", confirm_timeout=1) as first,
        bridges.bridge(vhost, database, node="b") as second,
        silent_proxy(first.ws_port) as proxy,
        opened(browser, f"http://{script.url}/") as page,
    ):
        await page.clock.install()
        await page.evaluate(START, [f"ws://127.0.0.1:{proxy.port}/ws", bridges.token("alice")])
        await phase(page, "open")
        await bridges.publish(vhost, *kept("p000"))
        await bridges.final_rows(database, 1)

        # No side is told: what is on its way is lost, and nobody proves it.
        proxy.fall_silent()
        ids = [f"p{n:03}" for n in range(1, 201)]
        await bridges.publish(vhost, *kept(*ids[:100]))
        await page.context.set_offline(True)
        assert (await phase(page, "waiting"))["reason"] == "offline"
        proxy.cut()
        await bridges.counted(database, "outcome = 'stored'", 100)
        await bridges.publish(vhost, *kept(*ids[100:]))
        await bridges.counted(database, "outcome = 'stored'", 200)
        taken = proxy.taken
        for _ in range(60):
            await page.clock.run_for(1_000)
        assert (await phase(page, "waiting"))["code"] == 1006
        assert proxy.taken == taken, "a browser that is offline reaches nobody"
        assert await shown(page, 1) == ["p000"]

        proxy.behind = second.ws_port
        proxy.mend()
        await page.context.set_offline(False)
        await phase(page, "open")
        assert await shown(page, 201) == ["p000", *ids]
        ends = bridges.endings(await bridges.final_rows(database, 201))
        assert set(ends.values()) == {("acked", "ack_frame")}
        assert len(await shown(page, 201)) == 201, "nothing came again"
        # How often it tries in a minute is drawn; after eight tries in a row it says what to check.
        assert [what for what, *_ in await page.evaluate("told") if what != "error"] == [], "no gap"
        await page.evaluate("client.close()")
