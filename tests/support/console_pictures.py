"""Pictures of the console's views: `python -m tests.support.console_pictures` writes docs/console/*.png."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from playwright.async_api import Browser

from bridge.devservers import Servers, private_servers
from tests.conftest import DEV, TEMPLATE, Databases, _fresh_vhost
from tests.support import bridges
from tests.support.browser import launched, opened
from tests.support.console_scene import Scene, scene

FOLDER = Path(__file__).parent.parent.parent / "docs" / "console"
VIEWS = {
    "overview": "#/",
    "search": "#/search",
    "push": "#/push/to-many",
    "story": "#/push/order-7-shipped?user=u1",
    "user": "#/user/u1",
    "live": "#/live",
    "send": "#/send",
    "dead": "#/dead",
    "replay": "#/replay?user=u9",
    "topics": "#/topics/news.local",
    "record": "#/record",
}
"""By the name of its picture, the address of each view."""
SECONDS_OF_TRAFFIC = 15
"""One push, then two, and so on in each second: something to draw."""
SIZES = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


async def take(servers: Servers, folder: Path, *, phone_too: bool = False, dark: bool = False) -> None:
    """Take one of each view; with `phone_too` also as a phone shows it."""
    databases = Databases(servers.postgres_dsn)
    with _fresh_vhost(servers) as vhost, databases.fresh(TEMPLATE) as dsn:
        async with scene(vhost, dsn) as played, launched() as browser:
            for second in range(SECONDS_OF_TRAFFIC):
                users = ("u1", "u2", "u3", "u9")
                await bridges.publish(
                    vhost,
                    *(bridges.request(users[n % 4], f"drawn-{second}-{n}") for n in range(second % 5 + 1)),
                )
                await asyncio.sleep(1.0)
            for size in ("wide", "phone") if phone_too else ("wide",):
                for name in VIEWS:
                    suffix = "" if size == "wide" else f"-{size}"
                    await picture(browser, played, name, folder / f"{name}{suffix}.png", size, dark=dark)


async def picture(
    browser: Browser, played: Scene, name: str, path: Path, size: str, *, dark: bool = False
) -> None:
    """One picture, once nothing is asked any more."""
    scheme = "dark" if dark else "light"
    async with opened(browser, played.url + VIEWS[name], viewport=SIZES[size], color_scheme=scheme) as page:
        await page.wait_for_selector("main > *")
        if name == "replay":
            await page.get_by_role("button", name="Dry run").click()
        await page.wait_for_timeout(700)
        await page.screenshot(path=path, full_page=size == "phone")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    target.mkdir(parents=True, exist_ok=True)
    with private_servers(DEV / "pictures-1", say=print, usual_ports=False) as running:
        asyncio.run(take(running, target, phone_too="--phone" in sys.argv, dark="--dark" in sys.argv))
