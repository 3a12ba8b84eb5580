"""Log in with exactly the user, the password and the vhost that the URL names.

The library would send `guest` for an empty password, and read a vhost's `%2F` as `/` twice.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

import aio_pika
import aiormq
import aiormq.abc
from aio_pika.abc import UnderlayConnection
from pamqp import commands as spec
from yarl import URL

GUEST = "guest"
"""User and password where the URL names no user: RabbitMQ's default, valid on its own machine only."""


def vhost_of(url: URL) -> str:
    """The vhost that a URL names (RabbitMQ URI specification): its path without the first `/`, decoded once."""
    return unquote(url.raw_path[1:]) or "/"


class _Plain:
    """SASL PLAIN (RFC 4616) with the credentials of the URL."""

    name = "PLAIN"

    def __init__(self, connection: aiormq.Connection) -> None:
        self._url = connection.url

    @classmethod
    def value(cls, connection: aiormq.Connection) -> _Plain:
        """What the library asks for; see `aiormq.auth`."""
        return cls(connection)

    def marshal(self) -> str:
        """The response to the broker's challenge."""
        user, password = self._url.user, self._url.password
        if user is None:
            user, password = GUEST, GUEST if password is None else password
        return f"\x00{user}\x00{password or ''}"


class _Connection(aiormq.Connection):
    def __init__(self, url: URL, **more: Any) -> None:
        super().__init__(url, **more)
        self.vhost = vhost_of(self.url)

    def _credentials_class(self, start_frame: spec.Connection.Start) -> Any:
        chosen = super()._credentials_class(start_frame)
        return _Plain if chosen.name == _Plain.name else chosen


class _Underlay(UnderlayConnection):
    @classmethod
    async def make_connection(
        cls,
        url: URL,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's own
        **more: Any,
    ) -> aiormq.abc.AbstractConnection:
        connection = _Connection(url, **more)
        async with asyncio.timeout(timeout):
            await connection.connect()
        return connection


class LoginConnection(aio_pika.Connection):
    """aio-pika's connection with the login of this module."""

    async def connect(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the library's own
        """Open it; see the library."""
        self.transport = await _Underlay.connect(
            self.url, self._on_connection_close, timeout=timeout, **self.kwargs
        )
        await self._on_connected()
