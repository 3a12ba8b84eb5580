"""Tenants that take turns, on real servers: a small one passes a large one, and the order of each user holds."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.bridges import bridge, counted, publish, request, token
from tests.support.clients import client

pytestmark = pytest.mark.timeout(240)

LARGE, SMALL = 4000, 10


async def test_a_small_tenant_passes_a_large_one_and_the_order_of_each_user_holds(
    vhost: str, database: str
) -> None:
    read: list[str] = []

    async def reading(user: str, port: int, count: int, ready: asyncio.Event) -> list[str]:
        async with client(port, token(user), subprotocols=["bridge.v1.json"]) as connection:
            await connection.read_json()
            ready.set()
            its_own: list[str] = []
            while len(its_own) < count:
                frame = await connection.read_json()
                if frame["type"] == "push":
                    its_own.append(str(frame["id"]))
                    read.append(str(frame["id"]))
            return its_own

    # The queue has them all before the bridge comes: first those of the large tenant.
    async with bridge(vhost, database, tenant_share="fair"):
        pass
    large = [request(f"u{n % 2}", f"l{n}", tenant="large", ttl=600) for n in range(LARGE)]
    small = [request("u2", f"s{n}", tenant="small", ttl=600) for n in range(SMALL)]
    await publish(vhost, *large, *small)
    async with bridge(vhost, database, tenant_share="fair", prefetch=50) as made:
        readys = [asyncio.Event() for _ in range(3)]
        counts = (LARGE // 2, LARGE // 2, SMALL)
        readers = [
            asyncio.create_task(reading(f"u{n}", made.ws_port, counts[n], readys[n]), name=f"u{n}")
            for n in range(3)
        ]
        for ready in readys:
            await ready.wait()
        orders = await asyncio.gather(*readers)
        for n in (0, 1):
            assert orders[n] == [f"l{k}" for k in range(n, LARGE, 2)]
        assert orders[2] == [f"s{k}" for k in range(SMALL)]
        await counted(database, "outcome = 'received'", LARGE + SMALL)
        before = read[: read.index(f"s{SMALL - 1}")]
        assert sum(push_id.startswith("l") for push_id in before) < LARGE // 2


async def test_a_bridge_that_shares_hands_over_what_it_has_read_ahead(vhost: str, database: str) -> None:
    async with bridge(vhost, database, tenant_share="fair", prefetch=5) as made:
        async with client(made.ws_port, token("u1"), subprotocols=["bridge.v1.json"]) as connection:
            await connection.read_json()
            connection.freeze()
            await publish(vhost, *(request("u1", f"p{n}", tenant="t") for n in range(200)))
            async with asyncio.timeout(20):
                while made._consumer.held < 150:
                    await asyncio.sleep(0.01)
    async with bridge(vhost, database, node="n2") as made:
        await counted(database, "final", 200)
