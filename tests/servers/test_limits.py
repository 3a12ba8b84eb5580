"""The bounds of who comes in and what they send, on real servers: one over each, and what the others notice of it."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.servers.test_kept import session
from tests.servers.test_revocations import standby
from tests.support.bridges import bridge, get, process, publish, request, token
from tests.support.clients import client, masked, opening, problem, raw_client, refusal
from tests.support.queries import until_asked
from tests.support.queues import ENVELOPE


async def answer(port: int, user: str, **headers: str) -> tuple[int, str, str]:
    """Status, word and sentence that a handshake is refused with."""
    with pytest.raises(InvalidStatus) as refused:
        async with client(port, token(user), headers=headers):
            pass
    response = refused.value.response
    return response.status_code, *problem(response.body)


@asynccontextmanager
async def held(port: int, *users: str, **headers: str) -> AsyncIterator[None]:
    """Sessions of these users, until the end of the block."""
    async with AsyncExitStack() as stack:
        for user in users:
            await stack.enter_async_context(client(port, token(user), headers=headers))
        yield


async def test_one_session_too_many_of_each_kind(vhost: str, database: str) -> None:
    limits = {
        "max_sessions": 6,
        "max_sessions_per_user": 2,
        "sessions_over": "refuse",
        "max_sessions_per_address": 3,
        "trusted_proxies": "127.0.0.0/8",
    }
    async with bridge(vhost, database, **limits) as made:
        async with held(made.ws_port, "u1", "u1", **{"X-Forwarded-For": "192.0.2.1"}):
            refused = await answer(made.ws_port, "u1")
            sentence = "As many sessions of this user are open as may be: close some first."
            assert refused == (429, "user_sessions", sentence)
            async with held(made.ws_port, "u2", **{"X-Forwarded-For": "192.0.2.1"}):
                spoofed = {"X-Forwarded-For": "6.6.6.6, 192.0.2.1"}
                status, word, text = await answer(made.ws_port, "u3", **spoofed)
                assert (status, word, "from this address" in text) == (429, "address_sessions", True)
                async with held(made.ws_port, "u3", "u4", "u5", **{"X-Forwarded-For": "192.0.2.2"}):
                    assert (await answer(made.ws_port, "u6"))[:2] == (503, "full")
        _, page = await get(made.ops_port, "/metrics")
        for word in ("user_sessions", "address_sessions", "full"):
            assert f'bridge_handshakes_total{{result="{word}"}} 1.0'.encode() in page


async def test_a_user_s_sessions_are_counted_over_all_nodes_and_the_oldest_is_closed(
    vhost: str, database: str
) -> None:
    bound = {"max_sessions_per_user": 2}
    async with (
        process(vhost, database, **bound) as first,
        standby(vhost, database, **bound) as second,
        client(first.ws_port, token("u1")) as oldest,
        client(second.ws_port, token("u1")) as middle,
        client(first.ws_port, token("u2")) as other,
    ):
        await until_asked(database, "select count(*) from who_is_online", [(3,)])
        async with client(second.ws_port, token("u1")):
            assert await oldest.ended() == (4409, "replaced")
            async with client(first.ws_port, token("u1")):
                assert await middle.ended() == (4409, "replaced")
                await until_asked(
                    database,
                    "select close_code, count(*) from session where closed_at is not null group by 1",
                    [(4409, 2)],
                )
                await publish(vhost, request("u2", "p1"))
                assert await other.read() == '{"n": "p1"}'


@pytest.mark.parametrize(
    ("limit", "code"), [({"max_sessions": 2}, 1013), ({"max_sessions_per_address": 2}, 4429)]
)
async def test_a_token_that_comes_as_the_first_message_passes_no_bound(
    vhost: str, database: str, limit: dict[str, int], code: int
) -> None:
    async with bridge(vhost, database, **limit) as made, AsyncExitStack() as stack:
        strangers = [
            await stack.enter_async_context(client(made.ws_port, subprotocols=ENVELOPE)) for _ in range(4)
        ]
        for number, stranger in enumerate(strangers):
            await stranger.send_json({"type": "auth", "token": token(f"u{number}")})
            if number < 2:
                assert (await stranger.read_json())["type"] == "welcome"
            else:
                assert (await stranger.ended())[0] == code


async def test_or_the_newest_is_refused_wherever_it_comes(vhost: str, database: str) -> None:
    bound = {"max_sessions_per_user": 1, "sessions_over": "refuse"}
    async with (
        process(vhost, database, **bound) as first,
        standby(vhost, database, **bound) as second,
        client(first.ws_port, token("u1")),
    ):
        await until_asked(database, "select count(*) from who_is_online", [(1,)])
        # The second node hears of the first one's session from the ledger only.
        async with client(second.ws_port, token("u1"), subprotocols=ENVELOPE) as late:
            assert (await late.read_json())["reason"] == "over_limit"
            assert await late.ended() == (4429, "over_limit")
        assert (await answer(first.ws_port, "u1"))[:2] == (429, "user_sessions")


async def test_what_a_client_sends_has_bounds_and_nobody_else_pays_for_it(vhost: str, database: str) -> None:
    limits = {
        "max_header_bytes": 8192,
        "max_frame_bytes": 2048,
        "handshake_timeout": 1,
        "frames_per_second": 200,
        "frames_per_minute": 300,
    }
    async with bridge(vhost, database, **limits) as made, session(made.ws_port, "well") as (well, _):
        async with raw_client(made.ws_port) as bomb:
            bomb.send(opening("/ws", *(f"X-{n}: {'x' * 1000}" for n in range(20))))
            assert refusal(await bomb.read_all())[:2] == (431, "too_long")
        async with raw_client(made.ws_port) as slow:
            slow.send(opening("/ws")[:-2])
            assert refusal(await slow.read_all())[:2] == (408, "too_late")
        async with client(made.ws_port, token("u1")) as large:
            await large.send("x" * 2049)
            assert (await large.ended())[0] == 1009
        async with session(made.ws_port, "u1") as (flooding, _):
            for _ in range(400):
                await flooding.send("{}")
            assert await flooding.ended() == (4429, "over_limit")
        await publish(vhost, request("well", "p1"))
        assert (await well.read_json())["id"] == "p1"
        _, page = await get(made.ops_port, "/metrics")
        assert b'bridge_sessions_closed_total{reason="over_limit"} 1.0' in page


async def test_a_million_tiny_fragments_end_with_their_sender(vhost: str, database: str) -> None:
    async with (
        bridge(vhost, database, frames_per_second=1e6) as made,
        session(made.ws_port, "well") as (well, _),
    ):
        async with raw_client(made.ws_port) as sender:
            await sender.upgrade(f"/ws?token={token('u1')}")
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            fragment = masked(0x0, b"", fin=False)

            async def send() -> None:
                sender.send(masked(0x1, b"x", fin=False))
                for _ in range(1000):
                    sender.send(fragment * 1000)
                    await sender.writer.drain()

            sending = asyncio.create_task(send(), name="fragments")
            await publish(vhost, request("well", "p1"))
            assert (await well.read_json())["id"] == "p1"
            await until_asked(
                database, "select close_reason from session where user_id = 'u1'", [("over_limit",)]
            )
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024  # KiB


async def answered(reader: asyncio.StreamReader) -> bytes:
    """All that the bridge said and ended with; empty where it dropped the connection, or waits."""
    try:
        async with asyncio.timeout(0.001):
            return await reader.read()
    except (TimeoutError, ConnectionResetError):
        return b""


async def test_half_open_sockets_never_take_the_last_descriptor(
    vhost: str, database: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    async with (
        process(vhost, database, log=log, files=300, max_sessions=1000) as made,
        AsyncExitStack() as stack,
    ):
        assert await made.says("this process may have")
        async with session(made.ws_port, "well") as (well, _):
            peers = []
            for _ in range(400):
                with suppress(ConnectionResetError):  # one of those that are dropped
                    peers.append(await asyncio.open_connection("127.0.0.1", made.ws_port))
                    stack.callback(peers[-1][1].close)
            told = [await answered(reader) for reader, _ in peers]
            assert any(one.startswith(b"HTTP/1.1 503 ") for one in told)
            assert await made.says("as many connections are open as may be")
            assert (await get(made.ops_port, "/status"))[0] == 200
            await publish(vhost, request("well", "p1"))
            assert (await well.read_json())["id"] == "p1"
