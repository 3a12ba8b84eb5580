"""Put together what takes messages: a lane for pushes to crowds, and one for all others.

Each lane has a taker, look-ups and turns of its own, so neither waits for the other. Everything else is shared.
"""

from __future__ import annotations

from collections.abc import Callable

from bridge.core.bounds import Bounds
from bridge.core.cluster.cluster import Cluster
from bridge.core.delivery.crowds import Crowds
from bridge.core.delivery.dispatch import Dispatcher
from bridge.core.delivery.elsewhere import Elsewhere
from bridge.core.delivery.everywhere import Everywhere
from bridge.core.delivery.fan_out import FanOut
from bridge.core.delivery.grace import Grace
from bridge.core.delivery.intake import PushIntake
from bridge.core.delivery.known import KnownRows
from bridge.core.delivery.later import Later
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.delivery.load import Load
from bridge.core.delivery.lookups import Lookups
from bridge.core.delivery.parts import TakeParts
from bridge.core.delivery.presence import Presence
from bridge.core.delivery.reading import Reader
from bridge.core.delivery.remembered import Recollection, Remembered
from bridge.core.delivery.repeats import Repeats
from bridge.core.delivery.retaining import Retaining
from bridge.core.delivery.routing import Router
from bridge.core.delivery.sharing_out import inbox_of
from bridge.core.delivery.take import Taker
from bridge.core.delivery.takeover import Takeover
from bridge.core.delivery.turns import Turns
from bridge.core.given import Ports
from bridge.core.inflight.inflight import InFlight
from bridge.core.inflight.shares import Shares
from bridge.core.mailbox.pages import Pages
from bridge.core.model.pushes import PushRequest, Rejected
from bridge.core.sessions.freshness import Freshness
from bridge.core.sessions.hub import Hub
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence
from bridge.core.settlement.worklist import Worklist


class Lanes:
    """Makes `intake`, `crowds`, and the parts that others use, too."""

    def __init__(
        self,
        ports: Ports,
        limits: DeliveryLimits,
        bounds: Bounds,
        *,
        gate: Gate,
        hub: Hub,
        shares: Shares | None,
        inflight: InFlight,
        worklist: Worklist,
        freshness: Freshness,
        grace: Grace,
        cluster: Cluster,
        presence: Presence,
        pages: Pages,
        later: Later,
        remembered: Remembered,
        recollection: Recollection,
        nodes: Persistence,
    ) -> None:
        """`shares` None: tenants do not share the bridge. `nodes`: asks the database for neighbours."""
        self._ports, self._limits, self._bounds = ports, limits, bounds
        self._gate, self._hub, self._inflight, self._worklist = gate, hub, inflight, worklist
        self._freshness, self._neighbours, self._later = freshness, cluster.neighbours, later
        self._remembered = remembered
        clock, taking = ports.clock, bounds.taking
        self._dispatcher = Dispatcher(presence=presence, pages=pages, clock=clock)
        self._load = Load(inflight, worklist, later, taking.in_hand)
        inbox, self.acks = inbox_of(shares, self._load, ports.acks, limits.tenant_window, taking)
        self.router = Router(
            hub=hub,
            inflight=inflight,
            dispatcher=self._dispatcher,
            grace=grace,
            cluster=cluster,
            persistence=nodes,
            errors=ports.errors,
            clock=clock,
            pong_after=limits.park_after,
        )
        turns, lookups = self._turns(taking.slice_seconds), self._lookups()
        repeats = self._repeats(lookups, turns)
        self.reader = Reader(limits.requests, limits.partitions, turns, ports.errors, clock)
        elsewhere = self._elsewhere(lookups, repeats, recollection)
        self.crowds = self._crowds(elsewhere)
        parts = self._parts(lookups, repeats, turns, elsewhere, self.crowds.has)
        self.intake = PushIntake(
            inbox=inbox,
            taker=Taker(parts, limits, taking, self.crowds.accepts),
            crowds=self.crowds,
            elsewhere=elsewhere,
            takeover=Takeover(inflight, lookups, hub, pages, cluster, clock),
            lookups=lookups,
            recollection=recollection,
            load=self._load,
            clock=clock,
            gate=gate,
            batch=taking.batch,
        )

    def _crowds(self, elsewhere: Elsewhere) -> Crowds:
        taking = self._bounds.taking
        turns, lookups = self._turns(taking.crowd_slice), self._lookups()
        parts = self._parts(lookups, self._repeats(lookups, turns), turns, elsewhere)
        return Crowds(
            taker=Taker(parts, self._limits, taking),
            lookups=lookups,
            load=self._load,
            gate=self._gate,
            clock=self._ports.clock,
            turn=taking.crowd_turn,
        )

    def _parts(
        self,
        lookups: Lookups,
        repeats: Repeats,
        turns: Turns,
        elsewhere: Elsewhere,
        is_aside: Callable[[PushRequest | Rejected], bool] | None = None,
    ) -> TakeParts:
        ports, limits, inflight = self._ports, self._limits, self._inflight
        return TakeParts(
            hub=self._hub,
            inflight=inflight,
            worklist=self._worklist,
            reader=self.reader,
            router=self.router,
            dispatcher=self._dispatcher,
            fan_out=self._fan_out(turns),
            lookups=lookups,
            known=KnownRows(
                inflight=inflight,
                lookups=lookups,
                remembered=self._remembered,
                turns=turns,
                lookup_rows=self._bounds.taking.lookup_rows,
                is_aside=is_aside,
            ),
            repeats=repeats,
            elsewhere=elsewhere,
            everywhere=Everywhere(
                neighbours=self._neighbours,
                lookups=lookups,
                router=self.router,
                inflight=inflight,
                turns=turns,
                clock=ports.clock,
                linger=limits.topic_linger,
            ),
            retaining=Retaining(ports.retained, lookups, inflight, ports.errors, limits.requests.max_ttl),
            remembered=self._remembered,
            turns=turns,
            load=self._load,
            later=self._later,
            acks=self.acks,
            metrics=ports.metrics,
            errors=ports.errors,
            clock=ports.clock,
        )

    def _turns(self, slice_seconds: float) -> Turns:
        bounds = self._bounds.taking._replace(slice_seconds=slice_seconds)
        return Turns(self._ports.clock, self.router.flush, bounds)

    def _lookups(self) -> Lookups:
        ports = self._ports
        return Lookups(
            ports.store, ports.directory, self._gate, ports.clock, ports.errors, ports.metrics, self._bounds
        )

    def _elsewhere(self, lookups: Lookups, repeats: Repeats, recollection: Recollection) -> Elsewhere:
        return Elsewhere(
            inflight=self._inflight,
            worklist=self._worklist,
            lookups=lookups,
            repeats=repeats,
            recollection=recollection,
            clock=self._ports.clock,
            park_after=self._limits.park_after,
        )

    def _repeats(self, lookups: Lookups, turns: Turns) -> Repeats:
        return Repeats(
            inflight=self._inflight,
            worklist=self._worklist,
            lookups=lookups,
            turns=turns,
            clock=self._ports.clock,
            bounds=self._bounds.taking,
        )

    def _fan_out(self, turns: Turns) -> FanOut:
        return FanOut(
            hub=self._hub,
            inflight=self._inflight,
            worklist=self._worklist,
            dispatcher=self._dispatcher,
            turns=turns,
            freshness=self._freshness,
            metrics=self._ports.metrics,
            clock=self._ports.clock,
            pong_after=self._limits.park_after,
            frames_first=self._bounds.settlement.frames_first,
        )
