"""A real Chromium for tests, and pages in it that must not complain."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, CDPSession, Page, async_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """Debian's Chromium, until the block ends."""
    chromium = shutil.which("chromium")
    assert chromium, "Debian's package chromium is needed"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def opened(browser: Browser, url: str, **options: object) -> AsyncIterator[Page]:
    """The page; at the end it must have logged no error and asked nobody but its own host."""
    context = await browser.new_context(**options)  # type: ignore[arg-type]
    page = await context.new_page()
    page.set_default_timeout(15_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(url)
    yield page
    # A browser notes every answer that says no, and every try to connect to what is away; the page shows both.
    said_no = (
        "the server responded with a status of",
        "Failed to load resource: net::ERR_",
        "HTTP Authentication failed",
        "Unexpected response code",
        "failed: Error during WebSocket handshake: net::ERR_CONNECTION",
        "failed: Error in connection establishment: net::ERR_",
        "failed: WebSocket is closed before the connection is established",
        "failed: Connection closed before receiving a handshake response",
    )
    left = [p for p in problems if not any(words in p for words in said_no)]
    assert not left, left
    assert [a for a in asked if "//127.0.0.1:" not in a] == []
    await context.close()


class BareTab:
    """A tab that Playwright does not know, since its pages are always visible, and no browser freezes such a page."""

    def __init__(self, chrome: CDPSession, target: str, beside: str, session: str) -> None:
        self._chrome = chrome
        self._target = target
        self._beside = beside
        self._session = session
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        chrome.on("Target.receivedMessageFromTarget", self._heard)

    def _heard(self, event: dict[str, str]) -> None:
        said = json.loads(event["message"])
        if "id" in said:
            self._waiting.pop(said["id"]).set_result(said)

    async def _send(self, method: str, **parameters: object) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        message = json.dumps({"id": number, "method": method, "params": parameters})
        await self._chrome.send(
            "Target.sendMessageToTarget", {"sessionId": self._session, "message": message}
        )
        async with asyncio.timeout(15):
            said = await answer
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        said = await self._send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, expression: str, seconds: float = 15) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(seconds):
            while not await self.evaluate(expression):
                await asyncio.sleep(0.02)

    async def freeze(self) -> None:
        """Hide it behind another tab, and freeze it: none of its timers and events runs any more."""
        await self._chrome.send("Target.activateTarget", {"targetId": self._beside})
        await self.until("document.visibilityState === 'hidden'")
        await self._send("Page.setWebLifecycleState", state="frozen")

    async def thaw(self) -> None:
        """Let it go on, and show it."""
        await self._send("Page.setWebLifecycleState", state="active")
        await self._chrome.send("Target.activateTarget", {"targetId": self._target})


@asynccontextmanager
async def bare_tab(browser: Browser, url: str) -> AsyncIterator[BareTab]:
    """Such a tab with this page."""
    chrome = await browser.new_browser_cdp_session()
    context = (await chrome.send("Target.createBrowserContext"))["browserContextId"]

    async def target(url: str) -> str:
        made = await chrome.send("Target.createTarget", {"url": url, "browserContextId": context})
        return str(made["targetId"])

    beside, shown = await target("about:blank"), await target(url)
    session = await chrome.send("Target.attachToTarget", {"targetId": shown, "flatten": False})
    tab = BareTab(chrome, shown, beside, session["sessionId"])
    await tab.until("document.readyState === 'complete' && document.visibilityState === 'visible'")
    yield tab
    await chrome.send("Target.disposeBrowserContext", {"browserContextId": context})
    await chrome.detach()
