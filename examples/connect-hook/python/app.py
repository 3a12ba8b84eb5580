"""A business system with a login. It tells the bridge who its cookies are: BRIDGE_CONNECT_URL=http://127.0.0.1:8300/connect."""

import os
import secrets
import time
from http.cookies import CookieError, SimpleCookie

from aiohttp import web

SESSION_SECONDS = 3600
sessions: dict[str, tuple[str, float]] = {}
"""By the value of the cookie: the user, and when the session ends."""


async def login(request: web.Request) -> web.Response:
    """A real one checks a password."""
    user = str((await request.post()).get("user", ""))
    if not user:
        return web.Response(status=400)
    key = secrets.token_urlsafe()
    sessions[key] = (user, time.time() + SESSION_SECONDS)
    answer = web.Response(text=f"hello {user}\n")
    answer.set_cookie("session", key, httponly=True, samesite="Strict", max_age=SESSION_SECONDS)
    return answer


async def logout(request: web.Request) -> web.Response:
    """The bridge hears of it when it asks again; to end open sessions at once, revoke the user there, too."""
    sessions.pop(request.cookies.get("session", ""), None)
    return web.Response()


async def connect(request: web.Request) -> web.Response:
    """What the bridge asks: whose handshake is this?"""
    asked = await request.json()
    try:
        cookies = SimpleCookie(asked["headers"].get("cookie", ""))
    except CookieError:
        return web.Response(status=401)
    user, ends = sessions.get(cookies["session"].value if "session" in cookies else "", ("", 0.0))
    if ends <= time.time():
        return web.Response(status=401)
    return web.json_response({"user": user, "expires_at": min(ends, time.time() + 600)})


app = web.Application()
app.add_routes([web.post("/login", login), web.post("/logout", logout), web.post("/connect", connect)])

if __name__ == "__main__":
    # Only this machine may ask /connect here. In your system let nobody but the bridge do so.
    web.run_app(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8300")))
