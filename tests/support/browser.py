"""A real Chromium for tests, and pages in it that must not complain."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, Page, async_playwright

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
    )
    left = [p for p in problems if not any(words in p for words in said_no)]
    assert not left, left
    assert [a for a in asked if "//127.0.0.1:" not in a] == []
    await context.close()
