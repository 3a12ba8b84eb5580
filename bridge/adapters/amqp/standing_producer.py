"""A producer that stays connected and reconnects after a loss, for the ops port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Self, TypeVar

from bridge.adapters.amqp.producer import NotTaken, Producer
from bridge.core.errors import BrokerUnavailable

T = TypeVar("T")


class StandingProducer:
    """Fills the ops port's Publisher. Connects at the first call; a failed one drops the connection."""

    def __init__(self, url: str, *, name: str = "bridge ops") -> None:
        self._url = url
        self._name = name
        self._lock = asyncio.Lock()
        self._connection: AsyncExitStack | None = None
        self._producer: Producer | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._drop(self._producer)

    async def publish(
        self, body: bytes, *, push_id: str, headers: Mapping[str, object], app_id: str = ""
    ) -> None:
        """Publish and await the confirm; raises BrokerUnavailable where there is none."""
        await self._with(
            lambda producer: producer.publish(body, push_id=push_id, headers=headers, app_id=app_id)
        )

    async def request(
        self,
        body: bytes,
        *,
        push_id: str,
        headers: Mapping[str, object],
        expected: int | None,
        wait: float,
        app_id: str = "",
    ) -> Sequence[Mapping[str, object]]:
        """Publish and collect receipts, see `Producer.request`; raises BrokerUnavailable as `publish`."""
        return await self._with(
            lambda producer: producer.request(
                body, wait, expect=expected, headers=headers, push_id=push_id, app_id=app_id
            )
        )

    async def _with(self, call: Callable[[Producer], Awaitable[T]]) -> T:
        producer = await self._connected()
        try:
            return await call(producer)
        except BrokerUnavailable:
            # Not tried again here: the request may have been taken, so its publisher has to decide.
            await self._drop(producer)
            raise
        except NotTaken as refused:
            raise BrokerUnavailable(refused.why) from refused

    async def _connected(self) -> Producer:
        async with self._lock:
            if self._producer is None or self._producer.ended:
                await self._close()
                async with AsyncExitStack() as stack:
                    self._producer = await stack.enter_async_context(
                        Producer.connect(self._url, name=self._name)
                    )
                    self._connection = stack.pop_all()
            return self._producer

    async def _drop(self, producer: Producer | None) -> None:
        async with self._lock:
            if self._producer is producer:
                await self._close()

    async def _close(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            await connection.aclose()
