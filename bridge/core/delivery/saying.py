"""What a client says with a request of its own, since its session is a stream of events: a pong, or an ack.

Such a request may come to any node. The key of a session names the process that has it, and that process is told.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import Final

from bridge.core.cluster.cluster import Cluster
from bridge.core.contract.letters import Posted
from bridge.core.delivery.proof import Proofs
from bridge.core.model.sessions import Refusal, Said
from bridge.core.ports.nodes import Sent
from bridge.core.sessions.acks import AmbiguousAck
from bridge.core.sessions.events import EventSession
from bridge.core.sessions.hub import Hub

NO_SESSION: Final = Refusal(404, "no_session", "No open session has this key.")
NOT_AWAITED: Final = Refusal(404, "not_awaited", "No push with this id waits for an ack of this session.")
STRAY: Final = Refusal(404, "stray_pong", "This answers no ping that waits for its answer.")
AMBIGUOUS: Final = Refusal(
    400, "ambiguous", "Pushes of several tenants with this id wait for their ack: say which with `tenant`."
)


class Saying:
    """Finds the session that is meant, and reports the proof."""

    def __init__(
        self,
        *,
        hub: Hub,
        proofs: Proofs,
        cluster: Cluster,
        boot: str,
        secret: Callable[[], str] = lambda: secrets.token_urlsafe(18),
    ) -> None:
        self._hub = hub
        self._proofs = proofs
        self._neighbours = cluster.neighbours
        self._post = cluster.post
        self._boot = boot
        self._secret = secret

    def key_of(self, session_id: str) -> str:
        """A new key for this session of this process."""
        return f"{self._boot}.{session_id}.{self._secret()}"

    def said(self, said: Said) -> Refusal | None:
        """A client has said something; see `SessionHost.said`."""
        boot, _, rest = said.key.partition(".")
        if boot != self._boot:
            if self._neighbours.of_boot(boot) is None:
                return NO_SESSION
            self._post.add(boot, Posted(said.key, said.pong, said.ack, said.tenant), _not_there)
            return None
        session = self._hub.session(rest.partition(".")[0])
        if not isinstance(session, EventSession):
            return NO_SESSION
        if not hmac.compare_digest(said.key.encode(), session.key.encode()):
            return NO_SESSION
        return self._heard(session, said)

    def told(self, posted: Posted) -> None:
        """Another node was told this, for a session here. Nobody waits for an answer."""
        if posted.key.partition(".")[0] == self._boot:
            self.said(Said(posted.key, posted.pong, posted.ack, posted.tenant))

    def _heard(self, session: EventSession, said: Said) -> Refusal | None:
        if said.pong is not None:
            if said.pong != session.awaited_pong:
                return STRAY
            self._proofs.pong(session, said.pong)
        if said.ack is None:
            return None
        try:
            return None if self._proofs.acked(session, said.ack, said.tenant) else NOT_AWAITED
        except AmbiguousAck:
            return AMBIGUOUS


def _not_there(sent: Sent) -> None:
    """That process is gone, and the session with it."""
