"""The bridge that one would write first: consume, send, INSERT, ack, one message at a time.

It does what the libraries' own pages show, with the cheap optimisations (uvloop, a prepared
INSERT, a prefetch, no compression, messages handled concurrently), and the real bridge is
compared with it. It solves none of the hard problems: no proof of receipt, no bounds for a slow peer, no recovery
when the broker or the database goes down, no receipts.

It takes its settings from the same variables as `bridge serve` and says `ready` when it consumes.
"""

from __future__ import annotations

import asyncio
import http
import json
import os
import signal
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aio_pika
import jwt
import uvloop
from psycopg_pool import AsyncConnectionPool
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

PREFETCH = 1000
CONNECTIONS = 10
"""Connections to the database. One is enough on an idle machine; on a busy one it would idle between commits."""

SCHEMA = """
    create table if not exists naive_log (
        push_id      text        not null,
        user_id      text        not null,
        outcome      text        not null,
        reason       text        not null,
        final        boolean     not null,
        sessions     integer     not null,
        attempts     integer     not null,
        published_at timestamptz not null,
        taken_at     timestamptz not null,
        written_at   timestamptz,
        finished_at  timestamptz not null,
        node         text        not null,
        event        text        not null,
        app_id       text        not null,
        primary key (push_id, user_id)
    )
    """
INSERT = """
    insert into naive_log (push_id, user_id, outcome, reason, final, sessions, attempts,
                           published_at, taken_at, written_at, finished_at, node, event, app_id)
    values (%s, %s, %s, %s, true, %s, 1, %s, %s, %s, %s, 'naive', %s, %s)
    on conflict do nothing
    """


class Naive:
    """Sessions by user, and the handling of each message."""

    def __init__(self, secret: str, database: AsyncConnectionPool[Any]) -> None:
        self._secret = secret
        self._database = database
        self._users: dict[str, set[ServerConnection]] = {}

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Check the token at the handshake; 401 without a good one."""
        url = urlsplit(request.path)
        token = parse_qs(url.query).get("token", [""])[0]
        if not token:
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            claims = jwt.decode(
                token, self._secret, algorithms=["HS256"], options={"require": ["exp", "sub"]}
            )
        except jwt.InvalidTokenError:
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "a valid token is needed\n")
        connection.user = claims["sub"]  # type: ignore[attr-defined]
        return None

    async def session(self, connection: ServerConnection) -> None:
        """One open WebSocket, until it closes."""
        user: str = connection.user  # type: ignore[attr-defined]
        sockets = self._users.setdefault(user, set())
        sockets.add(connection)
        try:
            await connection.wait_closed()
        finally:
            sockets.discard(connection)
            if not sockets:
                self._users.pop(user, None)

    async def handle(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """One message from the queue to its ack."""
        taken_at = _now()
        request = json.loads(message.body)
        user, data = request["to"]["user"], request["data"]
        text = data if isinstance(data, str) else json.dumps(data)
        sent = 0
        for socket in tuple(self._users.get(user, ())):
            try:
                await socket.send(text)
                sent += 1
            except ConnectionClosed:
                continue
        outcome, reason = ("written", "handed_over") if sent else ("offline", "no_session")
        now = _now()
        async with self._database.connection() as connection:
            await connection.execute(
                INSERT,
                (
                    request["id"],
                    user,
                    outcome,
                    reason,
                    sent,
                    message.timestamp or taken_at,
                    taken_at,
                    now if sent else None,
                    now,
                    request.get("event", "message"),
                    message.app_id or "",
                ),
            )
        await message.ack()


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


async def main() -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncConnectionPool(
        os.environ["BRIDGE_POSTGRES_DSN"],
        min_size=CONNECTIONS,
        kwargs={"autocommit": True},
        open=False,
    ) as database:
        async with database.connection() as first:
            await first.execute(SCHEMA)
        naive = Naive(os.environ["BRIDGE_JWT_SECRET"], database)
        connection = await aio_pika.connect_robust(os.environ["BRIDGE_AMQP_URL"])
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.declare_queue(
                "push.requests", durable=True, arguments={"x-queue-type": "quorum"}
            )
            exchange = await channel.declare_exchange("push", aio_pika.ExchangeType.TOPIC, durable=True)
            await queue.bind(exchange, "#")
            async with serve(
                naive.session,
                os.environ.get("BRIDGE_WS_HOST", "127.0.0.1"),
                int(os.environ.get("BRIDGE_WS_PORT", "8181")),
                process_request=naive.admit,
                compression=None,
                backlog=4096,
            ):
                await queue.consume(naive.handle)
                print("ready", flush=True)
                await stop.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
