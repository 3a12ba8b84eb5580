"""The browser's library in bundles: under a strict policy, as the manual uses it with React and Vue, built by Vite, and
in Node."""

from __future__ import annotations

import asyncio
import http
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from tests.browser.test_client import Script, acked, jwt, kept, scripted
from tests.support import bridges
from tests.support.browser import launched, opened
from tests.support.npm import LIBRARY, built, bundle, modules

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENTS = (Path(__file__).parent.parent.parent / "docs" / "clients.md").read_text()
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types {types}"
)
PAGE = """<!doctype html><title>bundle</title><link rel="icon" href="data:,"><div id="app"></div>
<script src="/app.js" defer></script>"""

PLAIN = """
import { connect } from "bridge-client";

const bridge = connect({ url: "/ws", token: async () => (await fetch("/push-token")).text(), tabs: "shared",
  autoAck: true, storage: localStorage, onPush() {} });
bridge.on("order.created", ({ data }) => {
  document.querySelector("#app").append(Object.assign(document.createElement("li"), { textContent: data.title }));
});
"""
REACT = """
import { createRoot } from "react-dom/client";
import { Orders } from "./Orders.jsx";
createRoot(document.querySelector("#app")).render(<Orders />);
"""
VUE = """
import { createApp } from "vue";
import Orders from "./Orders.vue.js";
createApp(Orders).mount("#app");
"""
COMPILE = """
const { compileScript, parse } = require("vue/compiler-sfc");
const { readFileSync, writeFileSync } = require("node:fs");
const { descriptor } = parse(readFileSync("Orders.vue", "utf8"));
writeFileSync("Orders.vue.js", compileScript(descriptor, { id: "orders", inlineTemplate: true }).content);
"""


class Site(Script):
    """A site with a strict policy, whose page is one bundle."""

    def __init__(self, script: str, types: str = "'none'") -> None:
        super().__init__()
        self._script = script
        self._types = types

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path in ("/", "/app.js"):
            page = request.path == "/"
            response = connection.respond(http.HTTPStatus.OK, PAGE if page else self._script)
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = f"text/{'html' if page else 'javascript'}; charset=utf-8"
            response.headers["Content-Security-Policy"] = POLICY.format(types=self._types)
            return response
        return super().answer(connection, request)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


async def shows_orders(browser: Browser, site: Site) -> None:
    """Each order that is pushed is in the page, and acknowledged; and so after a break."""
    site.tokens = [(200, "text/plain", jwt("alice"))] * 3
    async with scripted(site), opened(browser, f"http://{site.url}/") as page:
        peer = await (await site.peer()).welcome()
        for n in (1, 2):
            title = f"order {n}"
            await peer.send(type="push", id=f"p{n}", event="order.created", data={"id": n, "title": title})
            await expect(page.locator("li")).to_have_count(n)
            await expect(page.locator("li").last).to_have_text(title)
            assert await peer.frame() == acked(f"p{n}")
            await peer.close()
            peer = await (await site.peer()).welcome()
            assert peer.last == f"p{n}"


def sample(language: str, containing: str) -> str:
    """A sample of the manual, of at most 20 lines."""
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", CLIENTS, re.S) if containing in text]
    (text,) = found
    assert text.count("\n") <= 20
    return str(text)


def made(directory: Path, main: str) -> str:
    """The bundle of a program as a page loads it."""
    (directory / "main.jsx").write_text(main)
    production = '--define:process.env.NODE_ENV="production"'
    features = [f"--define:__VUE_{name}__=false" for name in ("OPTIONS_API", "PROD_DEVTOOLS")]
    features.append("--define:__VUE_PROD_HYDRATION_MISMATCH_DETAILS__=false")
    return bundle(
        directory, "main.jsx", "--minify", "--format=iife", "--jsx=automatic", production, *features
    )


async def test_a_bundle_works_under_a_strict_policy(browser: Browser, tmp_path: Path) -> None:
    await shows_orders(browser, Site(made(tmp_path, PLAIN)))


async def test_the_sample_for_react_shows_what_is_pushed(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "orders.js").write_text(sample("js", "subscribe(tell)"))
    (tmp_path / "Orders.jsx").write_text(sample("jsx", "Orders"))
    await shows_orders(browser, Site(made(tmp_path, REACT)))


async def test_the_sample_for_vue_shows_what_is_pushed(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "orders.js").write_text(sample("js", "subscribe(tell)"))
    (tmp_path / "Orders.vue").write_text(sample("vue", "shallowRef"))
    (tmp_path / "compile.cjs").write_text(COMPILE)
    (tmp_path / "node_modules").symlink_to(modules())
    subprocess.run([node(), "compile.cjs"], cwd=tmp_path, check=True, timeout=60)
    await shows_orders(browser, Site(made(tmp_path, VUE), types="vue"))


# --- Vite ------------------------------------------------------------------------------------------------

INDEX = """<!doctype html><html lang="en"><title>vite</title><link rel="icon" href="data:,">
<ul></ul><script type="module" src="/main.js"></script></html>"""
MAIN = """
import { connect } from "bridge-client";

const [url, token] = decodeURIComponent(location.hash.slice(1)).split(" ");
function show(text) {
  document.querySelector("ul").append(Object.assign(document.createElement("li"), { textContent: text }));
}
connect({ url, token, tabs: "shared", autoAck: true, storage: localStorage, onPush: ({ data }) => show(data.n),
  onState: ({ phase }) => { document.title = phase; }, onError: ({ message }) => show(message) });
"""


class Built(Script):
    """A site with a strict policy that serves the files of a folder."""

    def __init__(self, folder: Path, policy: str) -> None:
        super().__init__()
        self._folder = folder
        self._policy = policy
        self.served: list[str] = []

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        name = request.path.strip("/") or "index.html"
        self.served.append(name)
        response = connection.respond(http.HTTPStatus.OK, (self._folder / name).read_text())
        del response.headers["Content-Type"]
        kind = "javascript" if name.endswith(".js") else "html"
        response.headers["Content-Type"] = f"text/{kind}; charset=utf-8"
        response.headers["Content-Security-Policy"] = self._policy
        return response

    def loaded(self, part: str) -> int:
        """How many times a part of the library was loaded."""
        return sum(f"bridge-client-{part}-" in name for name in self.served)


async def test_a_site_that_vite_has_built_loads_what_it_needs_and_works_with_a_bridge(
    browser: Browser, tmp_path: Path, vhost: str, database: str
) -> None:
    (tmp_path / "index.html").write_text(INDEX)
    (tmp_path / "main.js").write_text(MAIN)
    async with bridges.bridge(vhost, database) as bridge:
        address = f"ws://127.0.0.1:{bridge.ws_port}/ws"
        policy = POLICY.format(types="'none'").replace("connect-src 'self'", f"connect-src 'self' {address}")
        site = Built(await asyncio.to_thread(built, tmp_path), policy)
        async with scripted(site), opened(browser, f"http://{site.url}/#{address} nonsense") as page:
            await expect(page.locator("li")).to_contain_text("The token is not a JWT")
            assert (site.loaded("tabs"), site.loaded("stream"), site.loaded("words")) == (1, 0, 1)
            tab = await page.context.new_page()
            for one in (page, tab):
                await one.goto("about:blank")
                await one.goto(f"http://{site.url}/#{address} {bridges.token('alice')}")
                await expect(one).to_have_title("open")
            await bridges.publish(vhost, *kept("p1", "p2"))
            for one in (page, tab):
                await expect(one.locator("li")).to_have_text(["p1", "p2"])
            ends = bridges.endings(await bridges.final_rows(database, 2))
            assert ends == {(name, "alice"): ("acked", "ack_frame") for name in ("p1", "p2")}
            assert site.loaded("words") == 1, "nothing went wrong any more"
            await tab.close()


# --- Node ------------------------------------------------------------------------------------------------


def node() -> str:
    """The program; skips the test where there is none, or one before version 20."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("there is no node on this machine")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60).stdout
    if int(version.removeprefix("v").partition(".")[0]) < 20:
        pytest.skip(f"the library needs Node 20, this is {version.strip()}")
    return program


async def test_with_the_websocket_of_a_package_it_runs_in_node_and_sharing_is_passed_over(
    tmp_path: Path,
) -> None:
    (tmp_path / "node_modules").symlink_to(modules())
    (tmp_path / "bridge-client.mjs").write_text(LIBRARY.read_text())
    (tmp_path / "main.mjs").write_text(
        """import WebSocket from "ws";
        import { connect } from "./bridge-client.mjs";
        const [url, token] = process.argv.slice(2);
        const bridge = connect({ url, token, WebSocket, tabs: "shared", timing: { min: 0.01 }, onPush() {} });
        bridge.on("order.created", async ({ id, ack }) => {
          console.log(id, await ack());
          if (id === "p2") bridge.close();
        });
        console.log((await bridge.ready()).user);"""
    )
    async with scripted() as script:
        process = await asyncio.create_subprocess_exec(
            node(),
            tmp_path / "main.mjs",
            f"ws://{script.url}/ws",
            jwt("alice"),
            stdout=asyncio.subprocess.PIPE,
        )
        for push_id in ("p1", "p2"):
            peer = await (await script.peer()).welcome()
            await peer.push(push_id, event="order.created")
            frame = await peer.whole_frame()
            assert (frame["type"], frame["id"]) == ("ack", push_id)
            await peer.send(type="ok", ref=frame["ref"])
            if push_id == "p1":
                await peer.close()
        async with asyncio.timeout(bridges.SECONDS):
            printed, _ = await process.communicate()
    assert (printed.decode().splitlines(), process.returncode) == (["alice", "p1 true", "p2 true"], 0)
