"""What other nodes send: pushes for sessions here, reports of pushes that were forwarded, rings, withdrawals."""

from __future__ import annotations

from bridge.core.cluster.forwards import Forwards
from bridge.core.cluster.hosting import Hosting
from bridge.core.cluster.neighbours import Neighbours
from bridge.core.contract.letters import Forwarded, Report, Ring, decode_letter
from bridge.core.delivery.routing import Router
from bridge.core.mailbox.pages import Pages
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.sessions.hub import Hub


class FromNodes:
    """Fills the port NodeListener."""

    def __init__(
        self,
        *,
        hosting: Hosting,
        forwards: Forwards,
        router: Router,
        pages: Pages,
        neighbours: Neighbours,
        hub: Hub,
        errors: ErrorHandler,
    ) -> None:
        self._hosting = hosting
        self._forwards = forwards
        self._router = router
        self._pages = pages
        self._neighbours = neighbours
        self._hub = hub
        self._errors = errors

    def came(self, body: bytes) -> None:
        """See the port."""
        try:
            letter = decode_letter(body)
            for item in letter.items:
                if isinstance(item, Forwarded):
                    self._hosting.offer(letter.boot, item)
                elif isinstance(item, Report):
                    absent = self._forwards.reported(letter.boot, item)
                    if absent is not None:
                        self._router.again(absent)
                elif isinstance(item, Ring):
                    self._pages.rung(item.user, item.position)
                else:
                    self._hosting.withdraw(item)
        except Exception as error:  # a letter that can't be handled must not cost the others
            self._errors.handle(error, "nodes.letter", {"bytes": len(body)})
        self._hosting.flush()

    def listening(self) -> None:
        """See the port. Rings may be lost: every open session looks into its mailbox."""
        self._neighbours.look_soon()
        for user in self._hub.everyone():
            self._pages.rung(user, 1)
