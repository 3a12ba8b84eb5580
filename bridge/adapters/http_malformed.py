"""What aiohttp answers to what is not HTTP: a sentence of ours. Its own quotes the bytes, which may hold a token."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

MALFORMED: Final = "This is not a valid HTTP request\n"


class Runner(web.AppRunner):
    """An AppRunner whose server answers in our words."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # The application makes its server itself; this is the one place that decides what handles a connection.
        server.__class__ = _Server
        return server


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class _Handler(RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See the library."""
        return super().handle_error(request, status, exc, MALFORMED if status < 500 else message)
