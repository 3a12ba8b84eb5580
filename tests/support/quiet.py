"""An event loop that reports nothing."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.ports import until


@pytest.fixture(autouse=True)
async def quiet_loop() -> AsyncIterator[None]:
    """No test may leave a task behind, or an exception that nobody retrieved."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    before = asyncio.all_tasks()
    yield
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})
    gc.collect()
    await asyncio.sleep(0)
    assert told == []
