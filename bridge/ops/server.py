"""The ops port: where it listens, what happens around every request, and how it stops.

Routes are in `bridge.ops.routes`, errors in `bridge.ops.answers`, who may ask in `bridge.ops.access`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from bridge.adapters.credentials import Credentials
from bridge.adapters.http_malformed import Runner
from bridge.addresses import is_loopback
from bridge.core.errors import SettingsError
from bridge.core.model.pushes import MESSAGE_BYTES_MAX
from bridge.core.redaction import without_known
from bridge.ops.access import OpsAccess
from bridge.ops.answers import answer_to_error
from bridge.ops.context import OpsContext
from bridge.ops.routes import page, routes

STOP_SECONDS: Final = 2.0
"""Seconds that requests under way get at a stop."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "bridge",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _Defects(logging.Filter):
    """Keeps aiohttp from logging a traceback for a client that speaks bad HTTP, whose answer says so, or that leaves
    before its answer."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (HttpProcessingError, ConnectionResetError))


_aiohttp_logger = logging.getLogger("bridge.ops")
_aiohttp_logger.addFilter(_Defects())


@asynccontextmanager
async def listen(
    context: OpsContext, *, host: str, port: int, credentials: Credentials, path: str = ""
) -> AsyncIterator[OpsServer]:
    """Serve until the block ends; then streams are ended and open requests get `STOP_SECONDS`.

    `path`: a unix socket to serve on instead of the port, for this user only; it is removed at the end. Raises
    SettingsError for a host that is not loopback without credentials, and for an address that is taken.
    """
    if not credentials and not is_loopback(host):
        raise SettingsError(
            "BRIDGE_OPS_TOKEN", f"required since BRIDGE_OPS_HOST is {host!r}, which others can reach"
        )
    server = OpsServer(context, credentials)
    runner = runner_of(server.app())
    await runner.setup()
    try:
        if not path:
            server.port = await serve_port(runner, host, port)
        else:
            try:
                await web.UnixSite(runner, path).start()
                os.chmod(path, 0o600)
            except OSError as error:
                problem = f"cannot listen on the unix socket {path}: {error.strerror or error}"
                raise SettingsError("TMPDIR", problem) from error
        yield server
    finally:
        context.feed.close()
        await runner.cleanup()
        if path:
            with suppress(FileNotFoundError):
                os.unlink(path)


def runner_of(app: web.Application) -> Runner:
    """What serves an ops port's application."""
    return Runner(
        app,
        access_log=None,
        logger=_aiohttp_logger,
        auto_decompress=False,
        handler_cancellation=True,
        shutdown_timeout=STOP_SECONDS,
        keepalive_timeout=30.0,
    )


async def serve_port(runner: Runner, host: str, port: int) -> int:
    """Begin to listen, and return the port. Raises SettingsError if that can't be."""
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        setting = "BRIDGE_OPS_PORT" if error.errno == errno.EADDRINUSE else "BRIDGE_OPS_HOST"
        raise SettingsError(setting, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return int(runner.addresses[0][1])


class OpsServer:
    """The routes, and what happens around each request."""

    def __init__(self, context: OpsContext, credentials: Credentials) -> None:
        self._errors = context.errors
        self._access = OpsAccess(credentials)
        self.routes = tuple(routes(context, self._access))
        self._free = frozenset(route.path for route in self.routes if route.free)
        self._free_handlers = frozenset(route.handler for route in self.routes if route.free)
        self._scopes = {route.handler: route.scope for route in self.routes}
        self.port = 0
        """Where it listens."""

    def app(self) -> web.Application:
        """The aiohttp application."""
        around = [self._hide_secrets, self._answer_errors, self._guard]
        app = web.Application(middlewares=around, client_max_size=MESSAGE_BYTES_MAX)
        app.on_response_prepare.append(add_headers)
        for route in self.routes:
            route.add_to(app.router)
        return app

    @web.middleware
    async def _hide_secrets(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Replace known secrets in the answer, which may quote any error."""
        answer = await handler(request)
        if (
            isinstance(answer, web.Response)
            and isinstance(answer.body, bytes)
            and not page.is_file(request.path)
        ):
            text = answer.body.decode()
            cleaned = without_known(text)
            if cleaned != text:
                answer.body = cleaned.encode()
        return answer

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ConnectionResetError:
            # The client left during the answer.
            raise
        except Exception as error:  # a bug in one route must not end the port that shows bugs
            return answer_to_error(error, request, self._errors)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        known = request.match_info.http_exception is None
        if request.path not in self._free and not (
            known and request.match_info.handler in self._free_handlers
        ):
            # No such route, or not this method: whoever has any credential may hear so.
            scope = self._scopes[request.match_info.handler] if known else None
            await self._access.require(request, scope)
        return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer the headers that the pages need to be safe. The demo page has a policy of its own."""
    policy = response.headers.get("Content-Security-Policy")
    for name, value in _HEADERS.items():
        response.headers[name] = value
    if policy is not None:
        response.headers["Content-Security-Policy"] = policy
