"""GET /livez, /readyz, /metrics and /status: how the bridge is."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from bridge.core.errors import StoreUnavailable
from bridge.ops.access import OpsAccess
from bridge.ops.answers import json_answer
from bridge.ops.context import OpsContext

SESSIONS_SHOWN: Final = 100
"""Sessions listed in `/status`."""


class Looking:
    """Probes, metrics and status."""

    def __init__(self, context: OpsContext, access: OpsAccess) -> None:
        self._context = context
        self._access = access

    async def livez(self, request: web.Request) -> web.Response:
        """200 while the process serves."""
        return json_answer({"alive": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """200, or 503 with the causes; only their names for a request without a credential that may read."""
        ready, causes = self._context.readiness()
        if not await self._access.may_see_all(request):
            # A load balancer needs no more.
            causes = [cause.partition(":")[0] for cause in causes]
        return json_answer({"ready": ready, "causes": list(causes)}, 200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """Prometheus' text format."""
        return web.Response(
            body=self._context.metrics_page(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8", "Cache-Control": "no-store"},
        )

    async def status(self, request: web.Request) -> web.Response:
        """Who this is, whether it is ready, its gauges, and the first sessions."""
        context = self._context
        ready, causes = context.readiness()
        return json_answer(
            {
                "node": context.node,
                "boot": context.boot,
                "version": context.version,
                "core": context.core,
                "started_at": context.started_at,
                "now": context.clock.time(),
                "ready": ready,
                "causes": list(causes),
                "role": context.role(),
                "ws_port": context.ws_port(),
                "dev": context.dev_token is not None,
                "gauges": dict(context.gauges()),
                "nodes": await self._nodes(),
                "sessions": [session._asdict() for session in context.sessions(SESSIONS_SHOWN)],
            }
        )

    async def _nodes(self) -> object:
        """The nodes that there are; None where that can't be known now."""
        if self._context.nodes is None:
            return None
        try:
            return msgspec.to_builtins(await self._context.nodes())
        except StoreUnavailable:
            # `causes` says that the database is down.
            return None
