"""A publisher for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bridge.adapters.amqp.publish import ReceiptPublisher
from tests.support.amqp import (
    CLOCK,
)
from tests.support.core import RecordingErrors, until


@asynccontextmanager
async def publisher(
    url: str, errors: RecordingErrors | None = None, **options: object
) -> AsyncIterator[ReceiptPublisher]:
    made = ReceiptPublisher(url, clock=CLOCK, errors=errors or RecordingErrors(), **options)  # type: ignore[arg-type]
    async with made:
        await until(lambda: not made.blocked)
        yield made
