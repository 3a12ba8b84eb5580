"""`bridge drain`: stop a node from anywhere, and see its sessions move to other nodes."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from bridge.adapters.actions import Action
from bridge.adapters.postgres.reading import reading
from bridge.app.clock import SystemClock
from bridge.cli.parser import DONE, FAILED, USAGE
from bridge.cli.record import actor, on_record
from bridge.config import CommonSettings
from bridge.operator import draining
from bridge.operator.draining import LivingNode, Loss, NotDrained, Progress, Stop

LOOK_EVERY: Final = 1.0
"""Seconds between two looks."""
QUIET: Final = 10.0
"""Seconds without a further client that came back, after which nobody is waited for any more."""


class Drained(NamedTuple):
    """What came of it."""

    last: Progress
    losses: Sequence[Loss]
    seconds: float

    @property
    def lost(self) -> int:
        """Pushes that were lost."""
        return _lost(self.losses)

    @property
    def on_the_way(self) -> int:
        """Pushes without a ttl for users between two nodes."""
        return sum(loss.pushes for loss in self.losses if loss.on_the_way)

    @property
    def well(self) -> bool:
        """Whether the node has ended by itself, and nothing was lost."""
        return not (self.last.runs or self.last.cut_off or self.lost)


class _Screen:
    """Shows one line that changes, or on anything but a terminal, a line after the other."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._width = 0

    def show(self, line: str) -> None:
        if self._terminal:
            print(f"\r{line:<{self._width}}", end="", flush=True)
            self._width = len(line)
        else:
            print(line, flush=True)

    def done(self) -> None:
        if self._terminal and self._width:
            print()


async def drain(settings: CommonSettings, node: str | None, *, wait: float) -> int:
    """Stop a node; 0 if it has ended and no push was lost by it, 1 otherwise, 2 if a name is needed.

    `wait`: seconds for its end.
    """
    dsn = settings.postgres_dsn
    found = await draining.nodes(dsn)
    if node is None:
        alive = [one for one in found if one.alive]
        if len(alive) != 1:
            return _name_is_needed(alive)
        node = alive[0].name
    chosen = draining.chosen(found, node)

    async def work() -> Drained:
        return await _watch(dsn, await draining.ask_to_stop(dsn, chosen), wait)

    async with on_record(settings) as record:
        action = Action(actor(), "drain", {"node": chosen.name, "boot": chosen.boot})
        done = await record.carry_out(action, work, _facts)
    _tell(chosen, done, wait)
    return DONE if done.well else FAILED


def _name_is_needed(alive: Sequence[LivingNode]) -> int:
    if not alive:
        raise NotDrained("no node is alive")
    print("bridge drain: which one? Name it:", file=sys.stderr)
    for one in alive:
        stops = "" if one.stopping is None else "  (stops already)"
        print(f"  {one.name}  {one.sessions} sessions{stops}", file=sys.stderr)
    return USAGE


async def _watch(dsn: str, stop: Stop, wait: float) -> Drained:
    """Look until the node has ended and its clients are back, or will not come."""
    clock, screen = SystemClock(), _Screen()
    began = ran_at = moved_at = time.monotonic()
    most_moved = 0
    try:
        async with reading(dsn, "bridge drain", draining.QUESTION_SECONDS) as conn:
            observer = draining.Observer(conn, stop)
            while True:
                now, losses = await observer.progress(), await observer.losses()
                at = time.monotonic()
                screen.show(_line(stop.node, now, losses))
                if now.moved > most_moved:
                    most_moved, moved_at = now.moved, at
                if now.runs and not now.silent:
                    ran_at = at
                    if at - began >= wait:
                        break
                elif _is_over(now, at - max(ran_at, moved_at)):
                    break
                await clock.sleep(LOOK_EVERY)
    finally:
        screen.done()
    return Drained(now, losses, (moved_at if most_moved else ran_at) - began)


def _is_over(now: Progress, quiet: float) -> bool:
    """Whether nothing will change any more; the node has ended."""
    return quiet >= QUIET or (now.moved == now.closed and not now.open and not now.pending)


def _line(node: str, now: Progress, losses: Sequence[Loss]) -> str:
    state = "" if now.runs else ", it has ended"
    return (
        f"{node}: {now.open} sessions open, {now.closed} closed, {now.moved} at another node again, "
        f"{_pushes(_lost(losses))} lost{state}"
    )


def _tell(node: LivingNode, done: Drained, wait: float) -> None:
    last = done.last
    if done.on_the_way:
        print(
            f"{_pushes(done.on_the_way)} without a ttl came for users between two nodes (offline/no_session)"
        )
    print(
        f"moved {last.moved} of {last.sessions} sessions in {done.seconds:.0f} s, {_pushes(done.lost)} lost",
        flush=True,
    )
    for loss in done.losses:
        if not loss.on_the_way:
            print(f"  {loss.pushes} {loss.outcome}/{loss.reason}", file=sys.stderr)
    if last.cut_off or last.silent:
        print(f"{node.name} died before it had closed its sessions", file=sys.stderr)
    elif last.runs:
        print(
            f"{node.name} has not ended after {wait:.0f} s. A bridge of an earlier version does not hear of `bridge "
            "drain`: send it SIGTERM",
            file=sys.stderr,
        )
    elif last.moved < last.sessions:
        print(f"{last.sessions - last.moved} have not come back so far", file=sys.stderr)


def _lost(losses: Sequence[Loss]) -> int:
    return sum(loss.pushes for loss in losses if not loss.on_the_way)


def _pushes(count: int) -> str:
    return "1 push" if count == 1 else f"{count} pushes"


def _facts(done: Drained) -> dict[str, object]:
    return {
        "ended": not done.last.runs,
        "sessions": done.last.sessions,
        "moved": done.last.moved,
        "lost": done.lost,
        "on_the_way": done.on_the_way,
        "seconds": round(done.seconds, 1),
    }
