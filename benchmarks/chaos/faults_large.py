"""Faults of size: ordinary work at its largest, which must not delay anybody else's pushes."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import psycopg

from benchmarks.chaos.broker import LONG, Envelope
from benchmarks.chaos.clients import Manner
from benchmarks.chaos.evidence import Fate, Recall, Request
from benchmarks.chaos.fault import fault
from benchmarks.chaos.stage import Stage

HELD_UP = 20.0
"""Seconds in which some client must have read a push, whatever else happens."""
HELD_LOOP = 0.25
"""Seconds of CPU for which one piece of work may block the event loop, pauses of the garbage collector included."""
MANY = 3000
"""Users of one large push."""


@asynccontextmanager
async def others_are_served(stage: Stage) -> AsyncIterator[None]:
    """Check that pushes are read all the time in the block and shortly after it."""
    quiet = asyncio.create_task(_longest_silence(stage), name="longest silence")
    try:
        yield
    finally:
        quiet.cancel()
        await asyncio.gather(quiet, return_exceptions=True)


async def _longest_silence(stage: Stage) -> None:
    while True:
        stage.witness.begin()
        began = time.monotonic()
        while stage.witness.first_read is None:
            if time.monotonic() - began > HELD_UP:
                stage.evidence.troubles.append(f"no client read a push for {HELD_UP:g} s beside a large one")
                return
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)


async def _loop_was_not_held(stage: Stage) -> None:
    """Check what the bridge reports about its event loop."""
    held = await stage.bridge.metric("bridge_loop_held_seconds")
    if held is None or held > HELD_LOOP:
        stage.evidence.troubles.append(f"the event loop was blocked for {held} s")


def _to_many(stage: Stage, users: int, padding: int, excluded: int = 0) -> Envelope:
    """A push to many users who never connect, kept for them."""
    envelope = stage.requests[0].to(*(f"absent{n}" for n in range(users)), padding=padding, ttl=LONG)
    if excluded:
        document = json.loads(envelope.body)
        document["to"]["except"] = [uuid.uuid4().hex for _ in range(excluded)]
        envelope.body = json.dumps(document).encode()
    return envelope


@fault("a message whose rows repeat a megabyte")
async def repeating_rows(stage: Stage) -> int:
    """Kept pushes to thousands of users, with data at the limit, and with thousands of sessions in `except`."""
    async with others_are_served(stage):
        for _ in range(2 * stage.scale.repeats):
            await stage.publish_now(
                [_to_many(stage, MANY, 60_000, excluded=7500), _to_many(stage, MANY, 40_000)]
            )
            await stage.load(2)
    stage.now_healed()
    await _loop_was_not_held(stage)
    return 4 * stage.scale.repeats


@fault("repeats of large kept pushes")
async def large_repeats(stage: Stage) -> int:
    """The pushes have thousands of rows each, and are published again and again, also after a kill -9."""
    large = [_to_many(stage, MANY, 40_000) for _ in range(3)]
    await stage.publish_now(large)
    async with others_are_served(stage):
        for _ in range(stage.scale.repeats):
            await stage.publish_now(large)
            await stage.load(2)
    await stage.bridge.kill()
    await stage.publish_now(large)
    await stage.starts_again()
    return 3 * (stage.scale.repeats + 1)


@fault("ids that came long ago come again", settings={"id_memory_bytes": 1 << 16})
async def forgotten_ids(stage: Stage) -> int:
    """Thousands of ids fill the smallest memory; a standby takes over, and all of them are published again."""
    users = [f"u{i}" for i in range(20)]
    makes = stage.requests[0]
    early = [makes.to(stage.rng.choice(users)) for _ in range(3000)]
    await stage.publish_now(early)
    await _all_have_ended(stage, early)
    # Sessions of one bridge get what the other takes only when they reconnect.
    stage.evidence.ordered = False
    first, _ = stage.bridge, await stage.start_bridge("n2", id_memory_bytes=1 << 16)
    before = _times_read(stage, early)
    await first.kill()
    stage.bridges.reverse()
    stage.now_healed()
    await stage.a_push_is_read()
    await stage.publish_now(early)
    await stage.load(5)
    again = _times_read(stage, early) - before
    if again:
        stage.evidence.troubles.append(f"{again} pushes were sent again to users who had proven them")
    await first.start()
    await first.ready()
    stage.come_back_at_last = list(stage.clients)
    return len(early)


def _times_read(stage: Stage, envelopes: Sequence[Envelope]) -> int:
    """How often these were read so far, by all clients together."""
    marks = {request.mark for envelope in envelopes for request in envelope.requests}
    return sum(sum(seen.times.values()) for (_, mark), seen in stage.witness.shown.items() if mark in marks)


async def _all_have_ended(stage: Stage, envelopes: Sequence[Envelope]) -> None:
    ids = [request.push_id for envelope in envelopes for request in envelope.requests]
    async with asyncio.timeout(120):
        while True:
            ((left,),) = await stage.execute(
                "select count(*) from unnest(%s::text[]) i (id)"
                " where not exists (select from delivery_log l where l.push_id = i.id and l.final)",
                ids,
            )
            if not left:
                return
            await asyncio.sleep(0.2)


@fault("sessions that resume from far back")
async def far_resumes(stage: Stage) -> int:
    """Sessions of one user reconnect, over and over, with thousands of pushes after the last one seen."""
    makes = stage.requests[0]
    await stage.publish_now([makes.to("hoarder", ttl=LONG) for _ in range(3000)])
    clients = [stage.new_client("hoarder", (Manner.READS, Manner.ACKS)[n % 2]) for n in range(8)]
    for client in clients:
        client.start()
    async with others_are_served(stage):
        for _ in range(2 * stage.scale.repeats):
            await stage.load(1.5)
            for client in clients:
                client.drop()
    stage.now_healed()
    return 2 * stage.scale.repeats * len(clients)


@fault("a recall of a push to thousands")
async def large_recall(stage: Stage) -> int:
    """A push is kept for thousands of users and recalled, and the bridge is killed in the middle of the recall."""
    times = stage.scale.repeats
    for turn in range(times):
        large = _to_many(stage, MANY, 200)
        await stage.publish_now([large])
        await _all_are_there(stage, large.requests[0])
        (request,) = large.requests
        async with others_are_served(stage):
            stage.publishers[0].also([_recall(stage, request)])
            await stage.sleep_some(0.0, 0.6)
            if turn % 2:
                await stage.bridge.kill()
                await stage.starts_again()
    stage.now_healed()
    return times


def _recall(stage: Stage, request: Request) -> Envelope:
    """The control message that withdraws a push."""
    return stage.requests[0].withdrawing(Recall(request.tenant, push_id=request.push_id))


async def _all_are_there(stage: Stage, request: Request) -> None:
    async with asyncio.timeout(60):
        while True:
            ((rows,),) = await stage.execute(
                "select count(*) from delivery_log where push_id = %s", request.push_id
            )
            if rows == len(request.users):
                return
            await asyncio.sleep(0.1)


@fault("one row held by an operator")
async def one_row_held(stage: Stage) -> int:
    """A forgotten transaction locks a few rows that are not final, for longer than any time limit."""
    makes = stage.requests[0]
    await stage.publish_now([makes.to(f"absent{n}", ttl=LONG) for n in range(5)])
    async with await psycopg.AsyncConnection.connect(stage.dsn) as operator, others_are_served(stage):
        await operator.execute("select 1 from delivery_log where not final limit 20 for update")
        await stage.load(15)
        status, why = await stage.bridge.status()
        if status != 200:
            stage.evidence.troubles.append(f"not ready beside a locked row: {why}")
        await operator.rollback()
    stage.now_healed()
    return 1


@fault("batches that take long to read")
async def long_batches(stage: Stage) -> int:
    """Batches of a thousand elements, each nested too deep or with a misspelt field, one after the other."""
    makes = stage.requests[0]
    times = 4 * stage.scale.repeats
    async with others_are_served(stage):
        for turn in range(times):
            await stage.publish_now([makes.rejected_batch(1000, _too_deep if turn % 2 else _misspelt)])
            await stage.load(0.5)
    stage.now_healed()
    await _loop_was_not_held(stage)
    return times


def _too_deep(request: Request) -> dict[str, object]:
    deep: object = request.mark
    for _ in range(400):
        deep = [deep]
    return {"id": request.push_id, "to": {"user": "u1"}, "data": deep}


def _misspelt(request: Request) -> dict[str, object]:
    assert request.fate is Fate.REJECTED
    return {"id": request.push_id, "to": {"user": "u1"}, "data": {"mark": request.mark}, "datta": 1}
