"""A dump of the database, restored elsewhere, is a log that a bridge goes on with."""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path

from bridge.cli import main
from bridge.devservers import Servers
from bridge.devservers.postgres import PrivatePostgres
from tests.servers.test_scheduled import scheduled
from tests.support.bridges import bridge, counted, endings, final_rows, publish, request, token
from tests.support.clients import client
from tests.support.queues import ENVELOPE


def dump_and_restore(servers: Servers, source: str, target: str, file: Path) -> None:
    """As docs/operating.md says, with the programs of the server's own release."""
    assert isinstance(servers.postgres, PrivatePostgres)
    programs = servers.postgres._files.bin
    for program, *arguments in (
        ("pg_dump", "--format=custom", f"--file={file}", f"--dbname={source}"),
        ("pg_restore", "--exit-on-error", "--single-transaction", f"--dbname={target}", str(file)),
    ):
        command = [str(programs / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


async def test_a_restored_database_has_every_row_and_the_bridge_goes_on_without_a_second_one(
    servers: Servers, vhost: str, database: str, empty_database: str, tmp_path: Path
) -> None:
    at = time.time() + 5
    first = [
        request("u1", "delivered"),
        request("u2", "kept", ttl=600),
        request("u3", "later", ttl=600, deliver_at=at),
    ]
    async with bridge(vhost, database) as b:
        async with client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as opened:
            await opened.read_json()
            await publish(vhost, *first)
            assert (await opened.read_json())["id"] == "delivered"
            await final_rows(database, 1)
        await counted(database, "outcome = 'stored'", 1)
        await scheduled(database, 1)
    await asyncio.to_thread(dump_and_restore, servers, database, empty_database, tmp_path / "push.dump")

    async with bridge(vhost, empty_database) as b:
        await publish(vhost, *first, request("u1", "new", ttl=600))
        async with client(b.ws_port, token("u1"), subprotocols=ENVELOPE) as opened:
            await opened.read_json()
            assert (await opened.read_json())["id"] == "new", "what was delivered is not sent again"
        for user, push in (("u2", "kept"), ("u3", "later")):
            async with client(b.ws_port, token(user), subprotocols=ENVELOPE) as opened:
                await opened.read_json()
                assert (await opened.read_json())["id"] == push
        found = endings(await final_rows(empty_database, 4))
        assert set(found) == {("delivered", "u1"), ("kept", "u2"), ("later", "u3"), ("new", "u1")}
        assert set(found.values()) == {("received", "pong")}
        assert time.time() >= at
        servers_of_it = ["--amqp-url", vhost, "--postgres-dsn", empty_database]
        assert await asyncio.to_thread(main, ["audit", *servers_of_it]) == 0
