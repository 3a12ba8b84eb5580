"""Faults of the network between one of two nodes and its servers: packets are lost, one way or both, without a word."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.chaos.fault import fault
from benchmarks.chaos.faults_nodes import HEALED, recall_and_push, several
from benchmarks.chaos.network import Way
from benchmarks.chaos.stage import Stage

CUTS: Final = ((Way.OUT, 10.0), (Way.IN, 25.0), (Way.BOTH, 35.0))
"""What is lost, and for how many seconds: less than the broker needs to give a connection up, and more."""
PATIENCE: Final = 9
"""Times that the load goes on until there is a proof again; it is measured how long that takes."""


async def _lose(stage: Stage, *, takes: bool, broker: bool = False, postgres: bool = False) -> int:
    """Cut the node that takes, or the one that stands by, off from broker, Postgres or both, in each of the ways."""
    async with several(stage) as nodes:
        for number, (ways, seconds) in enumerate(CUTS):
            taker, (holder,) = await nodes.roles()
            hit = taker if takes else holder
            own = stage.networks[hit.node]
            links = [link for link, used in ((own.broker, broker), (own.postgres, postgres)) if used]
            nodes.measure(hit)
            began = time.monotonic()
            for link in links:
                link.cut(ways)
            try:
                # Who takes answers recalls, too.
                await asyncio.gather(
                    stage.load(seconds), *([] if takes else [recall_and_push(stage, number)])
                )
            finally:
                for link in links:
                    link.heal()
            if postgres:
                nodes.mute(hit, began)
            stage.now_healed()
            await hit.ready()
            await stage.load(HEALED)
            # What has waited comes first, and a slow machine takes a while for it.
            for _ in range(PATIENCE):
                if stage.all_proven:
                    break
                await stage.load(HEALED)
        stage.come_back_at_last = list(stage.clients)
    return len(CUTS)


@fault("lost packets: standing node and the broker", networked=True)
async def holder_broker(stage: Stage) -> int:
    """Packets between the standing node and the broker are lost, one way, the other way, then both ways."""
    return await _lose(stage, takes=False, broker=True)


@fault("lost packets: standing node and Postgres", networked=True)
async def holder_postgres(stage: Stage) -> int:
    """Packets between the standing node and Postgres are lost, one way, the other way, then both ways."""
    return await _lose(stage, takes=False, postgres=True)


@fault("lost packets: standing node and both", networked=True)
async def holder_both(stage: Stage) -> int:
    """Packets between the standing node and both servers are lost, one way, the other way, then both ways."""
    return await _lose(stage, takes=False, broker=True, postgres=True)


@fault("lost packets: node that takes and the broker", networked=True)
async def taker_broker(stage: Stage) -> int:
    """Packets between the node that takes and the broker are lost, one way, the other way, then both ways."""
    return await _lose(stage, takes=True, broker=True)


@fault("lost packets: node that takes and Postgres", networked=True)
async def taker_postgres(stage: Stage) -> int:
    """Packets between the node that takes and Postgres are lost, one way, the other way, then both ways."""
    return await _lose(stage, takes=True, postgres=True)


@fault("lost packets: node that takes and both", networked=True)
async def taker_both(stage: Stage) -> int:
    """Packets between the node that takes and both servers are lost, one way, the other way, then both ways."""
    return await _lose(stage, takes=True, broker=True, postgres=True)
