"""The group chat of examples/chat in real browsers, on two bridges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.servers.test_inbound import able
from tests.support.bridges import bridge
from tests.support.browser import launched, opened
from tests.support.chat import chat
from tests.support.proxies import silent_proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINES = "#said li:not(.waiting)"
SECONDS = 30_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


async def come_in(page: Page, user: str) -> None:
    await page.get_by_label("Name").fill(user)
    await page.get_by_role("button", name="Come in").click()
    await state(page, "open")


async def state(page: Page, name: str) -> None:
    await expect(page.locator("#state")).to_have_text(name, timeout=SECONDS)


async def says(page: Page, *texts: str) -> None:
    for text in texts:
        await page.get_by_label("What do you say?").fill(text)
        await page.get_by_role("button", name="Say").click()


async def shown(page: Page, count: int) -> list[str]:
    """What has been said, once it is so much."""
    await expect(page.locator(LINES)).to_have_count(count, timeout=SECONDS)
    return await page.locator(LINES).all_inner_texts()


async def test_all_see_all_in_one_order_also_who_was_cut_off(
    browser: Browser, vhost: str, database: str
) -> None:
    async with (
        bridge(vhost, database, node="a") as a,
        bridge(vhost, database, node="b") as b,
        silent_proxy(b.ws_port) as proxy,
        chat(vhost, a.ws_port) as first,
        chat(vhost, proxy.port) as second,
        opened(browser, first) as ann,
        opened(browser, second) as bob,
    ):
        for node in (a, b):
            await able(node)
        await come_in(ann, "ann")
        await come_in(bob, "bob")
        await asyncio.gather(says(ann, "a1", "a2", "<b>a3</b>"), says(bob, "b1", "b2", "b3"))
        assert await shown(ann, 6) == await shown(bob, 6)

        await asyncio.gather(says(ann, "a4", "a5"), says(bob, "b4"))
        proxy.cut()
        await says(bob, "b5")
        await says(ann, "a6", "a7")
        await expect(ann.locator(LINES).get_by_text("ann: a7")).to_be_visible(timeout=SECONDS)
        await expect(ann.locator(LINES).get_by_text("bob: b5")).to_have_count(0)
        await expect(bob.locator(LINES).get_by_text("ann: a6")).to_have_count(0)
        await expect(bob.locator("#said .waiting").last).to_have_text("bob: b5")
        proxy.mend()
        await says(ann, "a8")

        seen = await shown(ann, 13)
        assert await shown(bob, 13) == seen
        await expect(bob.locator("#said .waiting")).to_have_count(0)
        for user, own in (("ann", "a1 a2 <b>a3</b> a4 a5 a6 a7 a8"), ("bob", "b1 b2 b3 b4 b5")):
            assert [line for line in seen if line.startswith(user)] == [f"{user}: {t}" for t in own.split()]
