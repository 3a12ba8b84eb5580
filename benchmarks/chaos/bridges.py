"""A bridge as a process of its own, which may be killed, stopped and started again under its name."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.chaos.evidence import TOPIC, subscribes
from benchmarks.ports import reserved_port
from bridge.adapters.tokens import make_token
from bridge.app.readiness import STANDBY

SECRET: Final = "only for chaos runs: 0123456789abcdef"
READY_TIMEOUT: Final = 90.0
EXIT_TIMEOUT: Final = 45.0
ROOT: Final = Path(__file__).resolve().parent.parent.parent


class BridgeFailed(Exception):
    """A bridge did not start or stop as it must."""


def token(user: str, secret: str = SECRET) -> str:
    """A token that opens sessions for this user, for the length of a run."""
    return make_token(secret, user, 24 * 3600, topics=[TOPIC] if subscribes(user) else None)


class Bridge:
    """`bridge serve` with these servers; ports and node name stay the same over its restarts."""

    def __init__(self, node: str, amqp_url: str, dsn: str, log: Path, **settings: object) -> None:
        self.node = node
        self.ws_port = reserved_port()
        self.ops_port = reserved_port()
        self.log = log
        self.starts = 0
        self.turns: list[float] = []
        """Monotonic seconds at which it was started, or found to have ended."""
        self.within: Sequence[str] = ()
        """The command that runs it where it is to be, from its next start on."""
        self.tree = ROOT
        """The program that it runs, from its next start on."""
        self.clock: Path | None = None
        """A file that says how far its clock is off; used from its next start on."""
        self.pool = 0
        """Connections to the database that it may have, from its next start on; 0 sets no limit."""
        values = {
            "amqp_url": amqp_url,
            "postgres_dsn": dsn,
            "node": node,
            "ws_host": "127.0.0.1",
            "ws_port": self.ws_port,
            "ops_port": self.ops_port,
            "jwt_secret": SECRET,
            "confirm_timeout": 3,
            "start_grace": 1.5,
            "log_format": "text",
            **settings,
        }
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("BRIDGE_", "CHAOS_"))}
        self.killer = ""
        """A user whose pushes kill it, from its next start on."""
        self._environment = {**inherited, **{f"BRIDGE_{k.upper()}": str(v) for k, v in values.items()}}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *, point: str = "", count: int = 1) -> None:
        """Start it; returns at once. If a point is named, it kills itself there."""
        more = {"CHAOS_POINT": point, "CHAOS_COUNT": str(count)} if point else {}
        if self.clock is not None:
            more["CHAOS_CLOCK"] = str(self.clock)
        if self.pool:
            more["CHAOS_POOL"] = str(self.pool)
        if self.killer:
            more["CHAOS_KILLER"] = self.killer
        self.starts += 1
        self.turns.append(time.monotonic())
        with self.log.open("ab") as log:
            log.write(f"--- start {self.starts} {point} {count if point else ''}\n".encode())
            log.flush()
            self._process = await asyncio.create_subprocess_exec(
                *(*self.within, sys.executable, "-m", "benchmarks.chaos.serve"),
                env={**self._environment, "PYTHONPATH": str(self.tree), **more},
                cwd=self.tree,
                stdout=log,
                stderr=log,
            )

    @property
    def alive(self) -> bool:
        """Whether it is running."""
        return self._process is not None and self._process.returncode is None

    @property
    def ended_by_itself(self) -> int | None:
        """Its exit code, if it has ended."""
        return None if self._process is None else self._process.returncode

    async def ready(self, *, or_dead: bool = False) -> bool:
        """Wait until it takes pushes, or stands by to take them. Raises BridgeFailed when it ends or takes too
        long; with `or_dead` its end is an answer: False."""
        deadline = time.monotonic() + READY_TIMEOUT
        why = ""
        while time.monotonic() < deadline:
            if not self.alive:
                if or_dead:
                    return False
                raise BridgeFailed(f"{self.node} ended with {self.ended_by_itself}; see {self.log}")
            status, why = await self.status()
            if status == 200 or why == f"standby: {STANDBY}":
                return True
            await asyncio.sleep(0.05)
        raise BridgeFailed(f"{self.node} was not ready in {READY_TIMEOUT:g} s: {why}; see {self.log}")

    async def status(self) -> tuple[int, str]:
        """What /readyz says: HTTP status and body; 0 when nobody answers."""
        try:
            async with asyncio.timeout(3):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.ops_port)
                try:
                    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
                finally:
                    writer.close()
            return int(head.split()[1]), "; ".join(json.loads(body)["causes"])
        except (OSError, TimeoutError, ValueError, IndexError, KeyError):
            return 0, "no answer"

    async def metric(self, name: str) -> float | None:
        """The value of a metric without labels; None if it can't be read."""
        values = await self.metrics(name)
        return None if values is None else values.get("")

    async def metrics(self, name: str) -> dict[str, float] | None:
        """The values of a metric, by their labels as the page writes them; None if it can't be read."""
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.ops_port)
                try:
                    host = f"127.0.0.1:{self.ops_port}"
                    writer.write(
                        f"GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
                    )
                    page = (await reader.read()).decode()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None
        found = re.findall(rf"^{name}({{[^}}]*}})? (\S+)$", page, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    async def unready(self, seconds: float = 60.0) -> str:
        """Wait until it says that it takes no pushes; returns why. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while True:
                status, why = await self.status()
                if status == 503:
                    return why
                await asyncio.sleep(0.05)

    async def step_clock(self, offset: float) -> None:
        """Set its clock off by this many seconds, if it was started with a clock that can be set."""
        assert self.clock is not None
        self.clock.write_text(str(offset))
        if (await self.status())[0]:  # before it listens, it reads the file on its own
            self.signal(signal.SIGUSR1)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self._process is not None and self.alive:
            self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.signal(signal.SIGKILL)
        await self.exited()

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.signal(signal.SIGTERM)
        return await self.exited()

    async def exited(self, seconds: float = EXIT_TIMEOUT) -> int:
        """Wait for its end; its exit code. Raises BridgeFailed when it does not end."""
        if self._process is None:
            return 0
        try:
            async with asyncio.timeout(seconds):
                code = await self._process.wait()
        except TimeoutError:
            raise BridgeFailed(f"{self.node} has not ended after {seconds:g} s; see {self.log}") from None
        self.turns.append(time.monotonic())
        return code
