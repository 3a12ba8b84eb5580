"""GET / and the files of the console, GET /demo and those of the demo page, and /endings.json, for both."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import msgspec
from aiohttp import web

from bridge.core.model.outcomes import ENDINGS
from bridge.core.model.parties import PARTIES
from bridge.ops.answers import ErrorAnswer

LIBRARY: Final = tuple(f"/bridge-client{part}.js" for part in ("", "-tabs", "-stream", "-words"))
"""The client library for browsers: its first file, which loads the others from beside it when it needs them."""
FILES: Final = {
    "/": ("console/index.html", "text/html"),
    "/demo": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    **{path: (path[1:], "text/javascript") for path in LIBRARY},
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Files of bridge/web by their path here, with their content type."""
ENDINGS_PATH: Final = "/endings.json"
CONSOLE_PATH: Final = "/console/{file}"
_OF_DEMO: Final = frozenset(("/demo", "/app.js", "/style.css", *LIBRARY))
_KINDS: Final = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".html": "text/html",
}
DEMO_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' ws: wss:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The demo page talks to the WebSocket port, which is another origin, and may be told to use a third."""


class Page:
    """The files, read once."""

    def __init__(self) -> None:
        folder = files("bridge") / "web"
        meanings = {f"{e.outcome}/{e.reason}": e.meaning for e in ENDINGS}
        self._static = {
            **{path: (kind, (folder / name).read_bytes()) for path, (name, kind) in FILES.items()},
            ENDINGS_PATH: ("application/json", msgspec.json.encode(meanings)),
        }
        console = folder / "console"
        for place in (console, console / "uplot"):
            for file in place.iterdir():
                kind = next((kind for end, kind in _KINDS.items() if file.name.endswith(end)), None)
                if kind is not None:
                    self._static[f"/console/{file.name}"] = kind, file.read_bytes()
        parties = {f"{e.outcome}/{e.reason}": PARTIES[e.reason] for e in ENDINGS}
        self._static["/console/parties.json"] = "application/json", msgspec.json.encode(parties)

    async def get(self, request: web.Request) -> web.Response:
        """The file of this path."""
        found = self._static.get(request.path)
        if found is None:
            raise ErrorAnswer(404, "not_found", "There is no such file.")
        kind, body = found
        headers = {"Cache-Control": "no-cache"}
        if request.path in _OF_DEMO:
            headers["Content-Security-Policy"] = DEMO_POLICY
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)


def is_file(path: str) -> bool:
    """Whether this is the path of a file, which never has a secret."""
    return path in FILES or path.startswith("/console/")
