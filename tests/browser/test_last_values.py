"""Last values in a browser: a page gets each once, also when it was cut off and subscribes again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.browser.test_client import begin, phase, pushes, scripted, told
from tests.support import bridges
from tests.support.browser import launched, opened
from tests.support.proxies import silent_proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


def value(push_id: str, event: str) -> dict[str, object]:
    return {"id": push_id, "to": {"topic": "match.7"}, "event": event, "data": push_id, "retain": True}


async def test_a_page_gets_a_last_value_once_also_over_a_cut(
    browser: Browser, vhost: str, database: str
) -> None:
    async with (
        scripted() as script,
        bridges.bridge(vhost, database) as bridge,
        silent_proxy(bridge.ws_port) as proxy,
        opened(browser, f"http://{script.url}/") as page,
    ):
        await bridges.publish(vhost, value("s1", "score"), value("c1", "clock"), value("s2", "score"))
        await bridges.final_rows(database, 3)
        token = bridges.token("ann", subscribe=["match.*"])
        await begin(page, f"ws://127.0.0.1:{proxy.port}/ws", token=token)
        await phase(page, "open")
        await page.evaluate("client.subscribe('match.7')")
        await told(page, *pushes("c1", "s2"))
        proxy.cut()
        await bridges.publish(vhost, value("s3", "score"))
        proxy.mend()
        # It may have told that several tries failed meanwhile. By a stream it could not subscribe.
        await page.wait_for_function("told.filter(([word]) => word === 'push').length === 1")
        assert await page.evaluate("pushes.s3.data") == "s3"
        await page.wait_for_function("client.duplicates === 1")
        assert await page.evaluate("told.filter(([word]) => word === 'push').length") == 1
        await page.evaluate("client.close()")
