"""Put the core together from its ports: the order in which its parts are made, and which parts each of them gets.

A part gets the parts that it uses in its constructor; nothing is assigned into it afterwards. The order is that of the
floors: what is in flight, sessions, mailbox, delivery, settlement, control.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.cluster.cluster import Cluster
from bridge.core.control import Control
from bridge.core.delivery.announcing import Announcing
from bridge.core.delivery.from_nodes import FromNodes
from bridge.core.delivery.grace import Grace
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.delivery.liveness import Liveness
from bridge.core.delivery.moving import Moving
from bridge.core.delivery.muting import Muting
from bridge.core.delivery.presence import Presence
from bridge.core.delivery.proof import Proofs
from bridge.core.delivery.recording import Recording
from bridge.core.delivery.remembered import Recollection, Remembered
from bridge.core.delivery.renewing import Renewing
from bridge.core.delivery.revoking import Revoking
from bridge.core.delivery.saying import Saying
from bridge.core.delivery.scheduling import Scheduling
from bridge.core.given import CoreLimits, Ports, connecting_of
from bridge.core.inflight.inflight import InFlight
from bridge.core.inflight.shares import Shares
from bridge.core.lanes import Lanes
from bridge.core.mailbox.heard_recalls import HeardRecalls
from bridge.core.mailbox.mailbox import Mailbox
from bridge.core.mailbox.recalls import Recalls
from bridge.core.model.rows import Row
from bridge.core.sessions.admission import Admission, AdmissionLimits
from bridge.core.sessions.freshness import Freshness
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.ledger import Ledger
from bridge.core.sessions.outgoing import Outgoing
from bridge.core.sessions.revoked import Revoked
from bridge.core.sessions.subscriptions import Subscriptions
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence
from bridge.core.settlement.settlement import Settlement, SettlementPorts
from bridge.core.settlement.worklist import Worklist


class Core:
    """The parts that decide. The application drives them: `run` of intake, pages, last values, settlement, control,
    recollection, recording and announcing is a task each; `tick` is called about ten times a second, `every_second`
    each second."""

    def __init__(self, ports: Ports, limits: CoreLimits, *, gate: Gate, node: str, boot: str) -> None:
        self.ports, self.gate, self.bounds = ports, gate, limits.fixed
        clock, errors, metrics, delivery = ports.clock, ports.errors, ports.metrics, limits.delivery
        self.hub = Hub(delivery.session_lifetime)
        self.worklist = Worklist(metrics=metrics, clock=clock, late_max=self.bounds.settlement.late_max)
        self.shares = Shares() if delivery.tenant_window else None
        self.inflight = InFlight(
            ends=self.worklist,
            others=lambda: self.cluster.neighbours.any,
            clock=clock,
            park_after=delivery.park_after,
            confirm_timeout=delivery.confirm_timeout,
            shares=self.shares,
        )
        self.freshness = Freshness(clock)
        writes, on = self._persistence("schedule"), (ports.schedule, ports.releases)
        self.scheduling = Scheduling(*on, self.worklist, writes, gate, errors, clock, boot, self.bounds)
        self._make_mailbox(limits, boot)
        rings = self._persistence("rings")
        self.cluster = Cluster(ports.directory, ports.post, metrics, rings, self._routed, clock, errors, boot)
        self.grace = Grace(self.inflight, clock, delivery.start_grace)
        self._make_sessions(node, limits.admission)
        self._make_revoking(limits.token_seconds)
        self.connecting = connecting_of(self.ports, limits, node)
        self.renewing = None if self.connecting is None else Renewing(self.connecting, self.presence, clock)
        self.proofs = Proofs(pages=self.pages, clock=clock)
        self.saying = Saying(hub=self.hub, proofs=self.proofs, cluster=self.cluster, boot=boot)
        self.liveness = Liveness(
            hub=self.hub,
            presence=self.presence,
            pages=self.pages,
            clock=clock,
            limits=delivery,
            renewing=self.renewing,
        )
        self.moving = Moving(self.hub, self.inflight, self.presence, gate, clock, delivery)
        self._make_memory(limits.id_memory_bytes, boot)
        self._make_taking(delivery)
        self._make_recalls()
        self._make_from_nodes()
        self._make_settlement(node, boot)
        self.control = Control(
            store=ports.store,
            recalls=self.recalls,
            revoking=self.revoking,
            acks=ports.acks,
            answers=ports.answers,
            errors=errors,
            clock=clock,
            gate=gate,
            node=node,
            bounds=self.bounds.statements,
        )

    def _make_mailbox(self, limits: CoreLimits, boot: str) -> None:
        ports, delivery = self.ports, limits.delivery
        mailbox = Mailbox(
            store=ports.store,
            retained=ports.retained,
            errors=ports.errors,
            clock=ports.clock,
            limits=limits.mailbox,
            bounds=self.bounds,
            confirm_timeout=delivery.confirm_timeout,
            park_after=delivery.park_after,
            hub=self.hub,
            inflight=self.inflight,
            outgoing=Outgoing(
                hub=self.hub, freshness=self.freshness, metrics=ports.metrics, clock=ports.clock
            ),
            gate=self.gate,
            boot=boot,
        )
        self.pages, self.resends, self.mailbox_sweep = mailbox.pages, mailbox.resends, mailbox.sweep
        self.withdrawing, self.last_values = mailbox.withdrawing, mailbox.last_values

    def _make_recalls(self) -> None:
        ports, ringing = self.ports, self.cluster.ringing
        self.recalls = Recalls(
            store=ports.store,
            inflight=self.inflight,
            withdrawing=self.withdrawing,
            last_values=self.last_values,
            tell_others=lambda recall, until: self.from_nodes.spread(recall, until),
            take_back=ringing.recalled,
            tell_holders=ringing.recalled_in_flight,
            scheduled=self.scheduling.recall,
            clock=ports.clock,
            bounds=self.bounds,
        )
        self.heard_recalls = HeardRecalls(
            store=ports.store,
            persistence=self._persistence("recalls"),
            inflight=self.inflight,
            withdrawing=self.withdrawing,
            last_values=self.last_values,
            take_back=ringing.recalled,
            tell_holders=ringing.recalled_in_flight,
            errors=ports.errors,
            clock=ports.clock,
            bounds=self.bounds.mailbox,
        )

    def _make_memory(self, id_memory_bytes: int, boot: str) -> None:
        ports = self.ports
        self.remembered = Remembered(id_memory_bytes, ports.clock.monotonic())
        self.recollection = Recollection(
            self.remembered,
            store=ports.store,
            errors=ports.errors,
            clock=ports.clock,
            boot=boot,
            bounds=self.bounds,
        )

    def _persistence(self, name: str) -> Persistence:
        return Persistence(self.ports.store, self.gate, self.ports.clock, name, self.bounds.statements)

    def _make_sessions(self, node: str, limits: AdmissionLimits) -> None:
        ports, clock = self.ports, self.ports.clock
        self.ledger = Ledger(node, kept=ports.sessions is not None)
        self.admission = Admission(self.hub, limits)
        self.subscriptions = Subscriptions(self.hub.topics, self.ledger, self.last_values)
        self.presence = Presence(
            hub=self.hub,
            pages=self.pages,
            grace=self.grace,
            ledger=self.ledger,
            subscriptions=self.subscriptions,
            admission=self.admission,
            clock=clock,
        )
        self.announcing = Announcing(ports.session_events, clock)
        self.recording = None
        if ports.sessions is not None:
            self.recording = Recording(
                ports.sessions,
                ledger=self.ledger,
                hub=self.hub,
                presence=self.presence,
                subscriptions=self.subscriptions,
                announcing=self.announcing,
                errors=ports.errors,
                clock=clock,
            )

    def _make_revoking(self, token_seconds: float) -> None:
        self.revoked = Revoked(token_seconds)
        self.revoking = Revoking(
            log=self.ports.revocations,
            revoked=self.revoked,
            freshness=self.freshness,
            ledger=self.ledger,
            hub=self.hub,
            presence=self.presence,
            gate=self.gate,
            errors=self.ports.errors,
            clock=self.ports.clock,
        )
        self.muting = Muting(self.freshness, hub=self.hub, presence=self.presence, pages=self.pages)

    def _make_taking(self, limits: DeliveryLimits) -> None:
        lanes = Lanes(
            self.ports,
            limits,
            self.bounds,
            gate=self.gate,
            hub=self.hub,
            shares=self.shares,
            inflight=self.inflight,
            worklist=self.worklist,
            freshness=self.freshness,
            grace=self.grace,
            cluster=self.cluster,
            presence=self.presence,
            pages=self.pages,
            later=self.scheduling.later,
            remembered=self.remembered,
            recollection=self.recollection,
            nodes=self._persistence("nodes"),
        )
        self.reader, self.router = lanes.reader, lanes.router
        self.crowds, self.intake, self.acks = lanes.crowds, lanes.intake, lanes.acks

    def _make_from_nodes(self) -> None:
        self.from_nodes = FromNodes(
            cluster=self.cluster,
            router=self.router,
            hub=self.hub,
            inflight=self.inflight,
            pages=self.pages,
            withdrawing=self.withdrawing,
            recalls=self.heard_recalls,
            close=self.presence.close,
            late=self.worklist.late,
            errors=self.ports.errors,
            clock=self.ports.clock,
            saying=self.saying,
        )

    def _make_settlement(self, node: str, boot: str) -> None:
        ports = self.ports
        self.settlement = Settlement(
            SettlementPorts(
                ports.store,
                ports.logs,
                ports.receipts,
                ports.dead_letters,
                ports.fallbacks,
                self.acks,
                ports.hooks,
                ports.metrics,
                ports.errors,
                ports.clock,
            ),
            worklist=self.worklist,
            inflight=self.inflight,
            gate=self.gate,
            bounds=self.bounds,
            node=node,
            boot=boot,
            on_stored=self._stored,
            on_delivered=self._delivered,
            on_recalled=self.heard_recalls.carried_out,
            on_first_ack=self._first_acked,
            on_written=self._written,
        )

    async def _routed(self) -> None:
        await self.router.caught_up()

    def _written(self, user: str) -> None:
        self.pages.row_written(user)
        self.router.behind.row_written(user)

    def _first_acked(self, row: Row) -> None:
        self.withdrawing.withdraw([(row.key.user, row.key.push_id)], row.key.tenant, but=row.session)
        self.cluster.ringing.taken_back(row, row.session)

    def _stored(self, row: Row, size: int) -> None:
        self.mailbox_sweep.stored(row.key.user, size)
        self.cluster.ringing.stored(row.key.user, row.position)

    def _delivered(self, row: Row, holders: Sequence[str], missed: bool) -> None:
        if not self.cluster.neighbours.alone:
            self.heard_recalls.delivered(row)
            if missed:
                self.cluster.ringing.delivered(row, holders)

    def begin(self, last_position: int) -> None:
        """The store can be read, and this is the highest position that it has. Kept pushes are read from now on."""
        self.inflight.above(last_position)
        self.pages.begin()

    def tick(self) -> None:
        """Called about ten times a second: do what is due."""
        now = self.ports.clock.monotonic()
        self.muting.tick()
        self.intake.tick(now)
        self.scheduling.later.tick(now)
        self.liveness.close_slow(now)
        for flight, request in self.grace.over(now):
            self.router.grace_over(flight, request)
        if self.recording is not None:
            self.recording.tick(now)
        self.router.tick()
        self.inflight.tick(now)
        self.pages.tick(now)
        self.last_values.tick()
        self.resends.tick(now)
        self.liveness.show_life(now)
        self.moving.tick(now)
        if self.renewing is not None:
            # A second may be all that is left to ask the hook again.
            self.liveness.renew_tokens()

    def every_second(self) -> None:
        """Called each second: look at tokens, replays, what other nodes have not got or heard, and the age of ids."""
        self.liveness.renew_tokens()
        self.pages.every_second()
        self.from_nodes.every_second()
        self.heard_recalls.every_second()
        self.remembered.every_second(self.ports.clock.monotonic())
