"""The backend of examples/chat, as its page says that it is run."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.ports import reserved_port
from tests.support.bridges import SECONDS, SECRET

ROOT = Path(__file__).parent.parent.parent


@asynccontextmanager
async def chat(amqp_url: str, ws_port: int) -> AsyncIterator[str]:
    """The address of its page, which connects to the bridge at this port."""
    variables = {
        "BRIDGE_AMQP_URL": amqp_url,
        "BRIDGE_JWT_SECRET": SECRET,
        "BRIDGE_WS_PORT": str(ws_port),
        "CHAT_PORT": str(reserved_port()),
        "PYTHONPATH": str(ROOT),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "examples" / "chat" / "backend.py"),
        env={**os.environ, **variables},
        stdout=PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(SECONDS):
            said = (await process.stdout.readline()).decode()
        yield said.removeprefix("The chat is at ").strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
