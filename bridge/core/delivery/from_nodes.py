"""What other nodes send: pushes for sessions here, reports of pushes that were forwarded, rings, recalls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bridge.core.cluster.cluster import Cluster
from bridge.core.cluster.hosting import Hosting
from bridge.core.contract.letters import EVERYBODY, Forwarded, Posted, Recalled, Report, Ring, decode_letter
from bridge.core.delivery.routing import Router
from bridge.core.delivery.saying import Saying
from bridge.core.inflight.inflight import InFlight
from bridge.core.mailbox.heard_recalls import HeardRecalls
from bridge.core.mailbox.pages import Pages
from bridge.core.mailbox.withdrawing import Withdrawing
from bridge.core.model.pushes import Recall
from bridge.core.model.rows import LateProof, RowKey
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Sent
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session


class FromNodes:
    """Fills the port NodeListener."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        router: Router,
        hub: Hub,
        inflight: InFlight,
        pages: Pages,
        withdrawing: Withdrawing,
        recalls: HeardRecalls,
        close: Callable[[Session, CloseReason], None],
        late: Callable[[LateProof], None],
        errors: ErrorHandler,
        clock: Clock,
        saying: Saying,
    ) -> None:
        """For `close` and `late` see `Hosting`."""
        self._hosting = Hosting(
            hub=hub,
            inflight=inflight,
            pages=pages,
            withdrawing=withdrawing,
            cluster=cluster,
            close=close,
            late=late,
            clock=clock,
        )
        self._forwards = cluster.forwards
        self._router = router
        self._saying = saying
        self._inflight = inflight
        self._pages = pages
        self._withdrawing = withdrawing
        self._recalls = recalls
        self._neighbours = cluster.neighbours
        self._post = cluster.post
        self._unheard = cluster.unheard_recalls
        self._hub = hub
        self._errors = errors

    def came(self, body: bytes) -> None:
        """See the port."""
        try:
            letter = decode_letter(body)
            sender = self._neighbours.of_boot(letter.boot)
            node = letter.boot if sender is None else sender.node
            if letter.had:
                self._forwards.had(letter.boot, letter.had)
            for item in letter.items:
                if isinstance(item, Forwarded):
                    self._hosting.offer(letter.boot, item)
                elif isinstance(item, Report):
                    absent = self._forwards.reported(letter.boot, node, item)
                    if absent is not None:
                        self._router.again(absent.flight, absent.request)
                elif isinstance(item, Ring):
                    self._taken_back(item) if item.push_id else self._rung(item)
                elif isinstance(item, Posted):
                    self._saying.told(item)
                else:
                    self._recall(item)
            # What the other has read is looked up where it sends a push again.
            self._post.came(letter.boot, letter.number, letter.read)
        except Exception as error:  # it must cost this letter only, and not the connection
            self._errors.handle(error, "nodes.letter", {"bytes": len(body)})
        self._hosting.flush()

    def every_second(self) -> None:
        """Called each second: send again what was lost with a queue, and say again what was not heard."""
        self._hosting.every_second()
        self._forwards.every_second()
        self._post.every_second()

    def _rung(self, ring: Ring) -> None:
        for user in self._hub.everyone() if ring.user == EVERYBODY else (ring.user,):
            self._pages.rounds.rung(user, ring.position, delivered=ring.delivered)

    def _taken_back(self, ring: Ring) -> None:
        """All sessions but the one that keeps it lose this push."""
        key = RowKey(ring.tenant, ring.push_id, ring.user)
        if self._hosting.taken_back(key) and not ring.delivered:
            return
        self._inflight.taken_back(key)
        self._withdrawing.withdraw([(ring.user, ring.push_id)], ring.tenant, but=ring.session)

    def listening(self) -> None:
        """See the port. Rings may be lost: every open session looks into its mailbox."""
        self._neighbours.look_soon()
        for user in self._hub.everyone():
            self._pages.rounds.rung(user, 1)

    # --- recalls ---

    def spread(self, recall: Recall, until: int) -> None:
        """Have the other nodes carry out a recall of what was taken up to this position."""
        item = Recalled(until, recall.tenant, recall.push_id, recall.user, recall.collapse_key)
        for other in self._neighbours.others:
            self._tell(other.boot, item)

    def _tell(self, boot: str, item: Recalled, number: int = 0) -> None:
        self._post.add(boot, item, partial(self._not_heard, boot, item, number))

    def _not_heard(self, boot: str, item: Recalled, number: int, sent: Sent) -> None:
        """Its sessions may be open, and show what is recalled, though one of both nodes is cut off from the broker."""
        if not self._unheard.full:
            self._unheard.add(boot, item, partial(self._tell_again, boot, item), number)

    def _tell_again(self, boot: str, item: Recalled, number: int) -> None:
        if self._neighbours.of_boot(boot) is not None:
            self._tell(boot, item, number)

    def _recall(self, item: Recalled) -> None:
        recall = Recall(item.tenant, item.push_id, item.user, item.collapse_key)
        self._recalls.came(recall, item.until)
        self._hosting.recall(recall, item.until)
