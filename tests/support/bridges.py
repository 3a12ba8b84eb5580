"""A whole bridge for tests: in this process, or as a process of its own that may be killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.ports import reserved_port
from bridge.adapters.amqp.producer import Producer, PushMessage
from bridge.adapters.tokens import make_token
from bridge.app import build as app
from bridge.config import Settings

SECRET = "a secret for tests only: 0123456789"
SECONDS = 20.0
"""How long anything may take before a test fails."""


def settings(amqp_url: str, postgres_dsn: str, **more: object) -> Settings:
    """Settings for a bridge on these servers, on free ports, without the grace of a start."""
    values: dict[str, object] = {
        "amqp_url": amqp_url,
        "postgres_dsn": postgres_dsn,
        "node": "n1",
        "ws_host": "127.0.0.1",
        "ws_port": 0,
        "ops_port": 0,
        "jwt_secret": SECRET,
        "start_grace": 0.0,
        "_env_file": None,
    }
    return Settings(**{**values, **more})


@asynccontextmanager
async def bridge(amqp_url: str, postgres_dsn: str, **more: object) -> AsyncIterator[app.Running]:
    """A bridge in this process, ready to take pushes."""
    async with app.running(settings(amqp_url, postgres_dsn, **more)) as made:
        async with asyncio.timeout(SECONDS):
            await made.ready()
        yield made


def token(user: str, ttl: float = 3600, **claims: object) -> str:
    """A token that every bridge of the tests accepts."""
    return make_token(SECRET, user, ttl, **claims)  # type: ignore[arg-type]


def request(user: str, push_id: str, **more: object) -> dict[str, object]:
    """A push request to one user."""
    return {"id": push_id, "to": {"user": user}, "data": {"n": push_id}, **more}


async def publish(amqp_url: str, *requests: object, **properties: Any) -> None:
    """Publish requests, one message each, with confirms."""
    async with Producer.connect(amqp_url) as producer:
        await producer.publish_all([PushMessage(json.dumps(r).encode(), **properties) for r in requests])


async def rows(dsn: str) -> list[dict[str, Any]]:
    """The view `delivery`, as an analyst sees it."""
    return await rows_when(dsn, lambda found: True)


async def rows_when(
    dsn: str, condition: Callable[[list[dict[str, Any]]], object], seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """The rows of the view, once they are as wanted.

    All looks share a connection: to open one costs Postgres far more than to look.
    """
    async with asyncio.timeout(seconds), await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = conn.cursor(row_factory=psycopg.rows.dict_row)
        while True:
            await cursor.execute("select * from delivery order by push_id, user_id")
            if condition(found := await cursor.fetchall()):
                return found
            await asyncio.sleep(0.02)


async def counted(dsn: str, where: str, rows: int, seconds: float = 120.0) -> None:
    """Wait until so many rows of the view fit."""
    async with asyncio.timeout(seconds), await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        while True:
            found = await (
                await conn.execute(f"select count(*) from delivery where {where}".encode())
            ).fetchone()
            if found is not None and found[0] == rows:
                return
            await asyncio.sleep(0.05)


async def final_rows(dsn: str, count: int, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """Wait until there are so many final rows, and return them all."""
    return await rows_when(dsn, lambda found: sum(row["final"] for row in found) >= count, seconds)


def endings(found: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str | None], tuple[str, str]]:
    """(push, user) to (outcome, reason); fails where a key has two rows."""
    made: dict[tuple[str, str | None], tuple[str, str]] = {}
    for row in found:
        key = (row["push_id"], row["user_id"])
        assert key not in made, f"two rows for {key}"
        made[key] = (row["outcome"], row["reason"])
    return made


class Process:
    """`bridge serve` as a user runs it."""

    def __init__(
        self,
        amqp_url: str,
        postgres_dsn: str,
        *,
        log: Path | None = None,
        variables: Mapping[str, str] | None = None,
        files: int = 0,
        **more: object,
    ) -> None:
        """`log`: the file that its log goes to; it goes nowhere without one. `variables`: of its environment. `files`:
        how many it may have open; as many as this process if 0."""
        self._files = files
        self._log = log
        self.ws_port = int(str(more.pop("ws_port", 0))) or reserved_port()
        self.ops_port = reserved_port()
        values = {
            "amqp_url": amqp_url,
            "postgres_dsn": postgres_dsn,
            "node": "n1",
            "ws_host": "127.0.0.1",
            "ws_port": self.ws_port,
            "ops_port": self.ops_port,
            "jwt_secret": SECRET,
            "start_grace": 0,
            "log_format": "json",
            **more,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BRIDGE_")}
        inherited.update(variables or {})
        self._environment = {**inherited, **{f"BRIDGE_{k.upper()}": str(v) for k, v in values.items()}}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; returns at once."""
        with open(self._log or os.devnull, "ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                f"{self._bounds()}import sys; from bridge.cli import main; sys.exit(main(['serve']))",
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def _bounds(self) -> str:
        """Code that it runs first."""
        if not self._files:
            return ""
        return f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({self._files},) * 2); "

    def logged(self) -> list[str]:
        """The messages of its log so far."""
        assert self._log is not None
        return [json.loads(line)["message"] for line in self._log.read_text().splitlines()]

    async def says(self, words: str) -> str:
        """Wait until a message begins with these words, and return it."""
        async with asyncio.timeout(SECONDS):
            while True:
                for message in self.logged():
                    if message.startswith(words):
                        return message
                await asyncio.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ready(self, wanted: int = 200) -> list[str]:
        """Wait until /readyz answers with this status; returns the causes that it names."""
        async with asyncio.timeout(SECONDS * 2):
            while True:
                assert self._process is not None
                assert self._process.returncode is None, f"it exited with {self._process.returncode}"
                try:
                    status, body = await get(self.ops_port, "/readyz")
                except OSError:
                    status, body = 0, b"{}"
                if status == wanted:
                    causes = json.loads(body)["causes"]
                    assert isinstance(causes, list)
                    return causes
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM, and return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            return await self._process.wait()

    async def exited(self) -> int:
        """Wait until it ends by itself; returns the exit code."""
        assert self._process is not None
        async with asyncio.timeout(SECONDS):
            return await self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.returncode is None


@asynccontextmanager
async def process(amqp_url: str, postgres_dsn: str, **more: Any) -> AsyncIterator[Process]:
    """A bridge of its own, ready; killed at the end if it still runs."""
    made = Process(amqp_url, postgres_dsn, **more)
    await made.start()
    try:
        await made.ready()
        yield made
    finally:
        if made.alive:
            await made.kill()


async def get(port: int, path: str) -> tuple[int, bytes]:
    """GET over HTTP/1.1; status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(SECONDS):
            answer = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body
