"""Who may ask the ops port, and for what.

With credentials (BRIDGE_OPS_TOKEN, BRIDGE_OPS_CREDENTIALS): whoever sends the secret of one as `Authorization: Bearer`,
if it has the scope that the route asks for.

Without any the port listens on loopback only, and every program of this machine may ask. A web page of another
origin may not, though the browser of a person at this machine would send its requests. So the Host must be a loopback
name (against DNS rebinding), an Origin must be this port, and a POST must carry JSON, which a form of another origin
can't send: its preflight fails here.

Probes and the files of the console and of the demo page need no credential: the pages ask for one.
"""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from bridge.adapters.credentials import LOCAL_NAME, Credential, Credentials, Scope
from bridge.addresses import is_loopback
from bridge.ops.answers import ErrorAnswer

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::\d+)?")


ASKER: Final = web.RequestKey("asker", Credential)
"""Whose request it is; absent from one without a credential."""


class OpsAccess:
    """The check of one port."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def require(self, request: web.Request, scope: Scope | None) -> None:
        """Raise ErrorAnswer unless this request may be answered. `scope`: None if any credential will do."""
        if self._credentials:
            asker = await self._asker(request)
            if asker is None:
                raise ErrorAnswer(
                    401,
                    "token",
                    "Authorization: Bearer with a secret is required, that of BRIDGE_OPS_TOKEN or one of"
                    " BRIDGE_OPS_CREDENTIALS.",
                    {"WWW-Authenticate": 'Bearer realm="bridge ops"'},
                )
            if scope is not None and not asker.allows(scope):
                raise _lacks(asker, scope)
            request[ASKER] = asker
        else:
            _require_local(request)
        if request.method == "POST" and request.match_info.http_exception is None:
            _require_json(request)

    async def may_see_all(self, request: web.Request) -> bool:
        """Whether an answer that anybody gets may go into detail here."""
        if not self._credentials:
            return True
        asker = await self._asker(request)
        return asker is not None and asker.allows(Scope.READ)

    async def is_still_allowed(self, request: web.Request) -> bool:
        """Whether the credential of a long request, which `require` has let in, still counts."""
        asker = request.get(ASKER)
        return asker is None or await self._credentials.is_good(asker)

    async def _asker(self, request: web.Request) -> Credential | None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        return await self._credentials.find(given.strip().encode("utf-8", "surrogateescape"))


def actor(request: web.Request) -> str:
    """The name of whoever asks."""
    asker = request.get(ASKER)
    return LOCAL_NAME if asker is None else asker.name


def allows(request: web.Request, scope: Scope) -> bool:
    """Whether whoever asks has this scope; who needs no credential has all."""
    asker = request.get(ASKER)
    return asker is None or asker.allows(scope)


def _lacks(asker: Credential, scope: Scope) -> ErrorAnswer:
    has = ", ".join(sorted(asker.scopes))
    return ErrorAnswer(
        403,
        "scope",
        f"This needs the scope {scope}, and the credential {asker.name} has {has}.",
        # RFC 6750 3.1
        {"WWW-Authenticate": f'Bearer realm="bridge ops", error="insufficient_scope", scope="{scope}"'},
        {"scope": str(scope)},
    )


def _require_local(request: web.Request) -> None:
    host = _HOST.fullmatch(request.host)
    if host is None or not is_loopback(host[1]):
        raise ErrorAnswer(
            403, "host", "Without credentials (BRIDGE_OPS_TOKEN) only loopback names are served here."
        )
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
