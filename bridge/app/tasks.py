"""The tasks of a running bridge: each is named, owned by one group, and watched.

A task that fails stops the bridge: the group cancels the others and raises the error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from bridge.adapters import loop_watch
from bridge.adapters.amqp.partitions import Partitions
from bridge.adapters.postgres.counting import Counting
from bridge.adapters.postgres.erasing import Erasing
from bridge.adapters.postgres.upkeep import Upkeep
from bridge.app.limits import ServiceLimits
from bridge.app.node import Node
from bridge.app.readiness import TakingLog
from bridge.app.reports import Reports
from bridge.app.rows import Rows
from bridge.config import Settings
from bridge.core.backoff import BackOff
from bridge.core.errors import BridgeError, DatabaseUnsuitable, StatementFailed, StoreUnavailable
from bridge.core.row_limit import RowLimit
from bridge.ops.history import History
from bridge.ops.surroundings import Surroundings

log = logging.getLogger("bridge")

Run = Callable[[], Coroutine[Any, Any, None]]


class Task(NamedTuple):
    """One task. It ends when it is cancelled; few end by themselves."""

    name: str
    run: Run
    after_start: bool = False
    """It waits until the start is done: the node's name is claimed, and the log can be read and written."""
    settles: bool = False
    """Once it has ended, nothing can be settled any more."""


@dataclass(frozen=True)
class Workplace:
    """What the tasks work on."""

    settings: Settings
    limits: ServiceLimits
    node: Node
    rows: Rows
    reports: Reports
    surroundings: Surroundings
    history: History
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the start is done."""
    stop_asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when somebody has asked this process to stop by `bridge drain`, or when it does."""
    rare: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Upkeep, counting, erasing and audit have one connection between them."""


def tasks_of(at: Workplace) -> Sequence[Task]:
    """All tasks, in the order in which they are started."""
    node = at.node
    keys = [Task("keys", node.keys.run)] if node.keys else []
    recording = []
    if node.core.recording is not None:
        # The database takes entries only of a process that has its name.
        recording = [Task("ledger", node.core.recording.run, after_start=True)]
    scheduling = []
    if (releasing := node.core.scheduling.releasing) is not None:
        scheduling = [
            Task("scheduling", node.core.scheduling.later.run),
            Task("releasing", releasing.run, after_start=True),
        ]
    renewing = [Task("connect hook", node.core.renewing.run)] if node.core.renewing else []
    return (
        *keys,
        *renewing,
        Task("settlement", node.core.settlement.run, settles=True),
        Task("delivery", node.core.intake.run, settles=True),
        Task("crowds", node.core.crowds.run, settles=True),
        Task("mailbox", node.core.pages.run),
        Task("last values", node.core.last_values.run),
        Task("session events", node.core.announcing.run),
        Task("control", node.core.control.run),
        *recording,
        *scheduling,
        *_sharing(at),
        Task("ticker", partial(tick, at)),
        Task("start", partial(start, at)),
        Task("lease", partial(hold_lease, at), after_start=True),
        Task("revocations", node.core.revoking.run, after_start=True),
        Task("sweeper", partial(sweep_log, at), after_start=True),
        Task("mailbox sweeper", partial(sweep_mailboxes, at), after_start=True),
        Task("fallbacks", partial(publish_fallbacks, at), after_start=True),
        Task("recollection", node.core.recollection.run, after_start=True),
        Task("loop watch", partial(loop_watch.watch, at.reports.metrics.loop_lag)),
        Task("upkeep", partial(keep_partitions, at), after_start=True),
        Task("counting", partial(count_hours, at), after_start=True),
        Task("erasing", partial(erase_data, at), after_start=True),
        Task("auditor", partial(audit, at)),
        Task("history", at.history.run),
        Task("queues", at.surroundings.watch_queues),
        Task("figures", at.surroundings.watch_log, after_start=True),
    )


def _sharing(at: Workplace) -> Sequence[Task]:
    """What only a bridge does that may have neighbours."""
    core = at.node.core
    if core.ports.directory is None:
        return ()
    return (
        Task("nodes", core.cluster.neighbours.run, after_start=True),
        Task("letters", core.cluster.post.run),
        Task("forwards", core.router.run),
        Task("rings", core.cluster.ringing.run),
        Task("recalls", core.heard_recalls.run),
        Task("partitions", partial(share_partitions, at), after_start=True),
    )


@asynccontextmanager
async def at_work(at: Workplace) -> AsyncIterator[Callable[[], bool]]:
    """Run all tasks until the end of the block. Yields a function: whether those that settle still run.

    The error of a task ends the block, and is raised as itself.
    """

    async def run(task: Task) -> None:
        if task.after_start:
            await at.started.wait()
        await task.run()

    async with _first_error(), asyncio.TaskGroup() as group:
        running = [(task, group.create_task(run(task), name=task.name)) for task in tasks_of(at)]
        try:
            yield lambda: not any(job.done() for task, job in running if task.settles)
        finally:
            for _, job in running:
                job.cancel()


@asynccontextmanager
async def _first_error() -> AsyncIterator[None]:
    """Raise the first error of a task group as itself, with the others as its notes."""
    try:
        yield
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            for other in first.exceptions[1:]:
                group.exceptions[0].add_note(f"and then: {other!r}")
            first = first.exceptions[0]
        raise first from group


# --- The loops -------------------------------------------------------------------------------------------


async def start(at: Workplace) -> None:
    """Take away the gate's cause `starting`.

    The rule: no push is taken before the node's name is claimed, a row can be written, revocations have been read,
    and the highest position of the log is known; and nobody comes in before all other nodes know this one. A
    database that is down may come up, so all of it is tried again. An unsuitable database stays so, and a name that
    another node has is that node's: the start is refused.
    """
    node = at.node
    back_off = BackOff(node.clock, at.limits.start_retry)
    while not await _done(node, _claim(node, at.rows)):
        await back_off.wait()
    while not await _done(node, _become_known(node, at.rows)) or node.core.cluster.neighbours.unaware:
        await node.clock.sleep(at.limits.look_around)
    while not await _done(node, node.core.revoking.begin()):
        await back_off.wait()
    node.core.grace.begin()
    node.gate.clear("starting")
    at.started.set()


async def _done(node: Node, step: Coroutine[Any, Any, None]) -> bool:
    """Whether the database did all that a step of the start needs of it; else the gate says why not."""
    try:
        await step
    except DatabaseUnsuitable:
        raise
    except StoreUnavailable as down:
        node.gate.shut("starting", str(down), database=True)
        return False
    return True


async def _claim(node: Node, rows: Rows) -> None:
    await rows.lease.check()
    # Nobody comes in before it is known whose tokens are revoked. A million take seconds, and nobody renews the name
    # meanwhile: so it is claimed when nearly all are read.
    await node.core.revoking.read()
    await rows.lease.claim()
    # A log that takes no row could not say how a push ended.
    await rows.store.try_writing()
    node.core.begin(await rows.store.last_position())


async def _become_known(node: Node, rows: Rows) -> None:
    """Let other nodes know this one: until they do they would say that nobody is here."""
    await node.core.cluster.neighbours.look()
    await rows.lease.renew()
    unaware = node.core.cluster.neighbours.unaware
    if unaware:
        node.gate.shut("starting", f"other nodes do not know this one yet: {', '.join(unaware)}")


async def tick(at: Workplace) -> None:
    """Look at deadlines."""
    node = at.node
    second = node.clock.monotonic()
    taking = TakingLog(node.gate)
    while True:
        node.core.tick()
        node.gateway.strangers.tick()
        node.publishing.tick()
        now = node.clock.monotonic()
        if now - second >= 1.0:
            second = now
            node.core.every_second()
            taking.every_second(now)
        await node.clock.sleep(at.limits.tick)


async def hold_lease(at: Workplace) -> None:
    """Show that this node lives, hear whether it should stop, and decide whether the database is down while nothing is
    pushed.

    This loop does nothing else: a node whose lease is not renewed in time is dead to all others.
    """
    node = at.node
    while True:
        await node.clock.sleep(at.limits.renew_every)
        try:
            stops = await at.rows.lease.renew(node.core.inflight.account())
        except StoreUnavailable as down:
            node.gate.shut("database", str(down), database=True)
        else:
            node.gate.clear("database")
            if stops:
                at.stop_asked.set()


async def share_partitions(at: Workplace) -> None:
    """Tell others what this node takes, and take what is its share."""
    node, consumer = at.node, at.node.consumer
    # With one partition the consumers decide it between themselves, at the broker.
    several = consumer if isinstance(consumer, Partitions) else None
    while True:
        able = node.gate.is_open and consumer.role is not None
        aim = node.sharing.aim(
            consumer.taken, several.untaken if several else {}, able=able, leaving="draining" in node.gate
        )
        if node.sharing.problem:
            node.gate.shut("partitions", node.sharing.problem)
        else:
            node.gate.clear("partitions")
        if several:
            several.take(aim.wanted, aim.watched)
        await node.clock.sleep(at.limits.share_every)


async def sweep_log(at: Workplace) -> None:
    """Begin a new day, end the rows of dead nodes, and pay debts."""
    node, rows = at.node, at.rows
    bounds = node.core.bounds.statements
    limit = RowLimit(bounds.sweep_rows, bounds.parts)
    while True:
        await node.clock.sleep(at.limits.sweep_every)
        if "database" in node.gate:
            continue
        node.core.worklist.sweep()
        try:
            if rows.postgres is not None:
                await rows.postgres.roll_day()
            ended = await rows.lease.end_dead(limit.rows)
        except StatementFailed as failed:
            at.reports.errors.handle(failed, "sweep", {"rows": limit.rows})
            limit.shrink()
        except StoreUnavailable as down:
            # The lease task decides whether the database is down.
            at.reports.errors.handle(down, "sweep", {})
        else:
            limit.grow()
            if ended:
                node.core.worklist.ended_by_sweep(ended)


async def sweep_mailboxes(at: Workplace) -> None:
    """End kept pushes whose ttl is over, and those that are over the bounds of a mailbox."""
    node = at.node
    while True:
        await node.clock.sleep(at.limits.sweep_every)
        if "database" not in node.gate:
            try:
                await node.core.mailbox_sweep.sweep()
            except StoreUnavailable as down:
                at.reports.errors.handle(down, "mailbox.sweep", {})


async def publish_fallbacks(at: Workplace) -> None:
    """Publish what is due for pushes that nobody has proven."""
    node = at.node
    while True:
        await node.clock.sleep(at.limits.sweep_every)
        if "database" not in node.gate:
            await node.core.settlement.fallbacks.sweep()


async def keep_partitions(at: Workplace) -> None:
    """Make partitions ahead of time, and drop them after their retention."""
    if at.rows.postgres is None:
        return
    upkeep = Upkeep(at.settings.postgres_dsn, at.settings.topic_linger)
    while True:
        try:
            async with at.rare:
                done = await upkeep.run_once(at.settings.retention_days)
        except BridgeError as error:
            # Usually the database is down. Whatever it is, no push needs this today.
            at.reports.errors.handle(error, "upkeep", {})
            await at.node.clock.sleep(at.limits.upkeep_retry)
            continue
        for trouble in done.trouble:
            at.reports.errors.handle(trouble, "upkeep", {})
        if done.made or done.dropped:
            log.info("partitions made: %s, dropped: %s", done.made, done.dropped)
        await at.node.clock.sleep(at.limits.upkeep_every)


async def count_hours(at: Workplace) -> None:
    """Count the hours of the log in which something has changed, for the views of analysts."""
    if at.rows.postgres is None:
        return
    node = at.node
    counting = Counting(at.settings.postgres_dsn)
    looked_at = None
    while True:
        began = node.clock.monotonic()
        # Rows are added to older days only by hand, or while nobody has counted.
        everything = looked_at is None or began - looked_at >= at.limits.count_all_every
        try:
            async with at.rare:
                counted = await counting.run_once(everything=everything)
        except BridgeError as error:
            # Usually the database is down. No push needs this.
            at.reports.errors.handle(error, "counting", {})
            counted = None
        took = node.clock.monotonic() - began
        if counted is not None and not counted.left and everything:
            looked_at = began
        if counted is not None and counted.left:
            # The first time there may be months: half of the time is for others.
            await node.clock.sleep(took)
        else:
            await node.clock.sleep(max(at.limits.count_every, at.limits.count_rest * took))


async def erase_data(at: Workplace) -> None:
    """Erase data that no push needs any more, where the settings say so."""
    days = at.settings.erased_after
    if at.rows.postgres is None or days is None:
        return
    erasing = Erasing(at.settings.postgres_dsn)
    while True:
        try:
            async with at.rare:
                more = await erasing.run_once(days)
        except BridgeError as error:
            # Usually the database is down. No push needs this.
            at.reports.errors.handle(error, "erasing", {})
            more = False
        if not more:
            await at.node.clock.sleep(at.limits.erase_every)


async def audit(at: Workplace) -> None:
    """Compare what was taken with what was written."""
    node = at.node
    while True:
        await node.clock.sleep(at.limits.audit_every)
        try:
            async with at.rare:
                await at.reports.auditor.run(node.core.inflight.account(), gate_open=node.gate.is_open)
        except BridgeError as error:
            # Usually the database is down, or the log holds something that it should not.
            at.reports.errors.handle(error, "audit", {})
