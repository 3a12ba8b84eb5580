"""Who may ask the ops port.

With a token (BRIDGE_OPS_TOKEN): whoever sends it as `Authorization: Bearer`.

Without a token the port listens on loopback only, and every program of this machine may ask. A web page of another
origin may not, though the browser of a person at this machine would send its requests. So the Host must be a loopback
name (against DNS rebinding), an Origin must be this port, and a POST must carry JSON, which a form of another origin
can't send: its preflight fails here.

Probes and the files of the demo page need no token: the page asks for it.
"""

from __future__ import annotations

import hmac
import re

from aiohttp import web

from bridge.addresses import is_loopback
from bridge.ops.answers import ErrorAnswer

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::\d+)?")


class OpsAccess:
    """The check of one port."""

    def __init__(self, token: str) -> None:
        """`token`: empty where none is asked for."""
        self._token = token.encode()

    def require(self, request: web.Request) -> None:
        """Raise ErrorAnswer unless this request may be answered."""
        if self._token:
            if not self._has_token(request):
                raise ErrorAnswer(
                    401,
                    "token",
                    "Authorization: Bearer with BRIDGE_OPS_TOKEN is required.",
                    {"WWW-Authenticate": 'Bearer realm="bridge ops"'},
                )
        else:
            _require_local(request)
        if request.method == "POST" and request.match_info.http_exception is None:
            _require_json(request)

    def may_see_all(self, request: web.Request) -> bool:
        """Whether an answer that anybody gets may go into detail here."""
        return not self._token or self._has_token(request)

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # `compare_digest` refuses text beyond ASCII, so both sides are bytes.
        given_bytes = given.strip().encode("utf-8", "surrogateescape")
        return scheme.lower() == "bearer" and hmac.compare_digest(given_bytes, self._token)


def _require_local(request: web.Request) -> None:
    host = _HOST.fullmatch(request.host)
    if host is None or not is_loopback(host[1]):
        raise ErrorAnswer(403, "host", "Without BRIDGE_OPS_TOKEN only loopback names are served here.")
    origin = request.headers.get("Origin")
    other_origin = origin is not None and origin != f"http://{request.host}"
    if other_origin or request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        raise ErrorAnswer(403, "origin", "Pages of another origin may not ask here.")


def _require_json(request: web.Request) -> None:
    # A coded body could unpack to any size, and a body of at most 1 MiB needs no coding (RFC 9110 15.5.16).
    if request.content_type != "application/json" or "Content-Encoding" in request.headers:
        raise ErrorAnswer(
            415, "not_json", "Content-Type: application/json without a Content-Encoding is required."
        )
