"""Decide which partitions of the requests this node takes. Every node decides for itself.

A partition has an owner: of the nodes that can take, the one with the highest score for it (rendezvous hashing,
doi:10.1109/90.663936) that has not got its share yet. So a node that joins or leaves moves few partitions, and all
nodes that know the same come to the same plan. Where they do not, for a moment, nothing breaks: the broker lets one
consume.

It also has a stand-in, which takes it when nobody has consumed it for a while: then its owner is dead, and the
others learn that only when its lease has run out.

| this node | and | then it |
|---|---|---|
| is the owner | | takes it |
| takes it as a stand-in | for less than `HOLD` | goes on |
| takes it | is not the owner | hands it over |
| is the stand-in | nobody has consumed it for `PATIENCE` | takes it |
| can't take, or leaves | another one can | hands over all |
| | another one takes a partition beyond the number that this one knows | takes no part, and says so |
| does not know the others | | stays with what it has |
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

from bridge.core.cluster.neighbours import Neighbours
from bridge.core.ports.clock import Clock

PATIENCE: Final = 2.0
"""Seconds for which nobody consumes a partition before its stand-in does. A handover is quicker."""
HOLD: Final = 10.0
"""Seconds for which a stand-in keeps it: longer than the lease of a dead owner."""
UNABLE: Final = 5.0
"""Seconds for which a node may be unable to take before others take what it has."""


class Aim(NamedTuple):
    """What a node is to do."""

    wanted: frozenset[int]
    """The partitions to take; all others are handed over."""
    watched: frozenset[int]
    """Those of which it wants to know whether anybody consumes them."""


class Plan(NamedTuple):
    """By partition."""

    owners: Sequence[str]
    stand_ins: Sequence[str]
    """Empty where there is only one node."""


def plan_of(partitions: int, nodes: Collection[str]) -> Plan:
    """Who takes what; the same for the same names, in every process. `nodes` must not be empty."""
    # So many each, and so many nodes one more.
    share, larger = divmod(partitions, len(nodes))
    load = dict.fromkeys(nodes, 0)
    owners, stand_ins = [], []
    for partition in range(partitions):
        ranked = sorted(nodes, key=lambda node: (_score(partition, node), node), reverse=True)
        owner = next(node for node in ranked if load[node] < share + (larger > 0))
        load[owner] += 1
        if load[owner] > share:
            larger -= 1
        owners.append(owner)
        stand_ins.append(next((node for node in ranked if node != owner), ""))
    return Plan(owners, stand_ins)


def _score(partition: int, node: str) -> bytes:
    return blake2b(f"{partition} {node}".encode(), digest_size=8).digest()


class Sharing:
    """Decides for one node."""

    def __init__(self, partitions: int, node: str, neighbours: Neighbours, clock: Clock) -> None:
        self._partitions = partitions
        self._node = node
        self._neighbours = neighbours
        self._clock = clock
        self._wanted: frozenset[int] = frozenset()
        self._able_at = -math.inf
        self._stands_in: dict[int, float] = {}
        """Since which monotonic second it takes another node's partition."""
        self._planned: tuple[frozenset[str], Plan] | None = None
        self.problem = ""
        """Why this node takes no part though it could, a sentence for people; else empty."""

    def aim(
        self, taken: Collection[int], untaken: Mapping[int, float], *, able: bool, leaving: bool = False
    ) -> Aim:
        """What to do now, when it takes `taken`. `untaken`: of those that are watched, the ones that nobody
        consumes, since which monotonic second. Others are told what this node takes, or that it takes no part."""
        now = self._clock.monotonic()
        if able:
            self._able_at = now
        self.problem = self._other_number()
        takes_part = not leaving and not self.problem and now - self._able_at < UNABLE
        self._neighbours.say(sorted(taken) if takes_part else None)
        if not self._neighbours.fresh:
            return Aim(self._wanted, frozenset())
        others = {one.node for one in self._neighbours.others if one.alive and one.taking is not None}
        if not takes_part:
            if others:
                self._wanted = frozenset()
            return Aim(self._wanted, frozenset())
        plan = self._plan(frozenset({self._node, *others}))
        self._wanted = frozenset(k for k in range(self._partitions) if self._takes(k, plan, untaken, now))
        watched = [k for k, node in enumerate(plan.stand_ins) if node == self._node and k not in self._wanted]
        return Aim(self._wanted, frozenset(watched))

    def _other_number(self) -> str:
        """Another node takes a partition that this one does not know: then this one must take nothing."""
        for one in self._neighbours.others:
            if one.alive and one.taking and max(one.taking) >= self._partitions:
                return (
                    f"node {one.node} takes partition {max(one.taking)}, so there are more than {self._partitions}: "
                    "set BRIDGE_PARTITIONS to their number"
                )
        return ""

    def _plan(self, nodes: frozenset[str]) -> Plan:
        if self._planned is None or self._planned[0] != nodes:
            self._planned = nodes, plan_of(self._partitions, nodes)
        return self._planned[1]

    def _takes(self, partition: int, plan: Plan, untaken: Mapping[int, float], now: float) -> bool:
        if plan.owners[partition] == self._node:
            self._stands_in.pop(partition, None)
            return True
        since = self._stands_in.get(partition)
        if since is None and plan.stand_ins[partition] == self._node:
            if partition in untaken and now - untaken[partition] >= PATIENCE:
                self._stands_in[partition] = now
                return True
            return False
        if since is not None and now - since < HOLD:
            return True
        self._stands_in.pop(partition, None)
        return False
