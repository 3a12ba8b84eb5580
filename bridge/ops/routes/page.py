"""GET / and the files of the demo page, and /endings.json: what each outcome and reason mean, for the page."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import msgspec
from aiohttp import web

from bridge.core.model.outcomes import ENDINGS

FILES: Final = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/bridge-client.js": ("bridge-client.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The files of bridge/web by their path here, with their content type."""
ENDINGS_PATH: Final = "/endings.json"


class Page:
    """The demo page, read once."""

    def __init__(self) -> None:
        folder = files("bridge") / "web"
        meanings = {f"{e.outcome}/{e.reason}": e.meaning for e in ENDINGS}
        self._static = {
            **{path: (kind, (folder / name).read_bytes()) for path, (name, kind) in FILES.items()},
            ENDINGS_PATH: ("application/json", msgspec.json.encode(meanings)),
        }

    async def get(self, request: web.Request) -> web.Response:
        """The file of this path."""
        kind, body = self._static[request.path]
        return web.Response(
            body=body, content_type=kind, charset="utf-8", headers={"Cache-Control": "no-cache"}
        )
