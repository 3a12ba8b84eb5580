"""Serves the page of the chat, and lets in whoever says who they are: a toy in the place of your own login."""

import os
import time
from importlib.resources import files
from pathlib import Path

import jwt
from aiohttp import web

PORT = int(os.environ.get("CHAT_PORT", "8183"))
POLICY = (
    "default-src 'none'; img-src data:; script-src 'self'; style-src 'self'; connect-src 'self' ws: http:"
)
HERE = Path(__file__).parent / "page"
FILES = {
    "/": (HERE / "index.html", "text/html"),
    "/chat.js": (HERE / "chat.js", "text/javascript"),
    "/style.css": (HERE / "style.css", "text/css"),
    **{
        f"/{file.name}": (file, "text/javascript")
        for file in (files("bridge") / "web").iterdir()
        if file.name.startswith("bridge-client") and file.name.endswith(".js")
    },
}


async def file(request: web.Request) -> web.Response:
    """A file of the page."""
    source, kind = FILES[request.path]
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return web.Response(text=source.read_text(), content_type=kind, headers=headers)


async def token(request: web.Request) -> web.Response:
    """A token for this user, who may listen and speak in every room. Yours asks for a password first."""
    claims = {
        "sub": request.query["user"],
        "exp": int(time.time()) + 600,
        "subscribe": ["room.*"],
        "publish": ["chat.said", "room.*"],
    }
    return web.Response(text=jwt.encode(claims, os.environ["BRIDGE_JWT_SECRET"], algorithm="HS256"))


async def address(request: web.Request) -> web.Response:
    """Where the bridge is."""
    return web.Response(text=f"ws://{request.url.host}:{os.environ.get('BRIDGE_WS_PORT', '8181')}/ws")


async def serve() -> None:
    """Begin; it goes on in the background. For this machine only, since it lets everybody in."""
    app = web.Application()
    app.add_routes([web.get(path, file) for path in FILES])
    app.add_routes([web.get("/token", token), web.get("/address", address)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", PORT)
    await site.start()
    print(f"The chat is at {site.name}/", flush=True)
