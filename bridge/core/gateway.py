"""The core's side of the WebSocket server: handshakes, and the session of each socket."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from bridge.core.delivery.presence import Presence
from bridge.core.delivery.proof import Proofs
from bridge.core.delivery.saying import Saying
from bridge.core.model.sessions import Claims, CloseReason, Grant, Handshake, Mode, Refusal, Said
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import Hooks, Metrics
from bridge.core.ports.sockets import SessionHandle, Socket
from bridge.core.sessions.access import Access, Decision, Undecided
from bridge.core.sessions.events import EventSession
from bridge.core.sessions.limits import SessionLimits
from bridge.core.sessions.session import Session
from bridge.core.sessions.strangers import CROWD, Strangers, reason_of
from bridge.core.talking.hearing import Hearing

log = logging.getLogger("bridge.handshake")


class Gateway:
    """Fills the SessionHost port: decides on handshakes and opens sessions."""

    def __init__(
        self,
        *,
        access: Access,
        presence: Presence,
        proofs: Proofs,
        hearing: Hearing,
        saying: Saying,
        limits: SessionLimits,
        hooks: Hooks,
        metrics: Metrics,
        clock: Clock,
        new_session_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._access = access
        self._presence = presence
        self._proofs = proofs
        self._hearing = hearing
        self._saying = saying
        self._limits = limits
        self._hooks = hooks
        self._metrics = metrics
        self._clock = clock
        self._new_session_id = new_session_id
        self.strangers = Strangers(access=access, clock=clock, opened=self.opened, told=self._stranger_ended)

    def handshake(self, request: Handshake) -> Decision | Coroutine[Any, Any, Decision]:
        """Decide on an opening handshake."""
        started = self._clock.monotonic()
        answer = self._access.decide(request)
        if isinstance(answer, Grant | Refusal):
            return self._decided(answer, started)
        return self._decided_later(answer, started)

    async def _decided_later(self, waits: Undecided, started: float) -> Decision:
        return self._decided(await self._access.decided(waits), started)

    def _decided(self, answer: Decision, started: float) -> Decision:
        answer = self._access.bounded(answer)
        seconds = self._clock.monotonic() - started
        if isinstance(answer, Grant) and answer.claims is None:
            if not self.strangers.full:
                return answer  # how it ends is told later
            answer = CROWD
        if isinstance(answer, Refusal):
            self._refused(answer, seconds)
        else:
            self._metrics.handshake("opened", seconds)
        return answer

    def said(self, said: Said) -> Refusal | None:
        """See the port."""
        return self._saying.said(said)

    def refused(self, refusal: Refusal) -> None:
        """See the port."""
        self._refused(refusal, 0.0)

    def _refused(self, refusal: Refusal, seconds: float) -> None:
        self._metrics.handshake(refusal.why, seconds)
        log.debug(
            "handshake refused: %s",
            refusal.text,
            extra={"why": refusal.why, "status": refusal.status},
        )

    def _stranger_ended(self, refusal: Refusal | None, seconds: float) -> None:
        if refusal is None:
            self._metrics.handshake("opened", seconds)
        else:
            self._refused(refusal, seconds)

    def opened(self, grant: Grant, socket: Socket) -> SessionHandle:
        """The handshake is done: welcome first, then what is kept for this user, then what is newer.

        Without claims none of it: the token comes first.
        """
        if grant.claims is None:
            return self.strangers.came(grant, socket)
        session = self._session(grant, grant.claims, socket)
        self._hooks.on_open(session.info)
        if self._access.revokes(grant.claims):
            # It was revoked while the handshake was on its way: nothing is for this session.
            self._presence.close(session, CloseReason.REVOKED)
        elif isinstance(late := self._access.bounded(grant), Refusal):
            # Others whose handshakes were decided on at the same moment have come first.
            self._presence.close(session, reason_of(late))
        else:
            self._presence.opened(session, grant.last, grant.device)
        return Client(self, session)

    def _session(self, grant: Grant, claims: Claims, socket: Socket) -> Session:
        session_id, at = self._new_session_id(), grant.granted_at
        if grant.mode is not Mode.SSE:
            return Session(session_id, claims, grant.mode, socket, self._limits, opened_at=at)
        key = self._saying.key_of(session_id)
        return EventSession(session_id, claims, socket, self._limits, key=key, opened_at=at)

    def _message(self, session: Session, data: str | bytes) -> None:
        if session.mode is Mode.BARE:
            # Bare mode is one-way: messages from such a client are ignored.
            return
        self._hearing.heard(session, data)

    def _closed(self, session: Session, code: int, reason: str) -> None:
        self._presence.closed(session, code)
        word = session.close_reason.word if session.close_reason else "client"
        self._metrics.closed(word)
        self._hooks.on_close(session.info, code, reason or word)


class Client:
    """Fills the SessionHandle port: passes the events of one socket on."""

    __slots__ = ("_gateway", "session")

    def __init__(self, gateway: Gateway, session: Session) -> None:
        self._gateway = gateway
        self.session = session

    def pong(self, payload: bytes) -> None:
        """The peer answered a ping."""
        self._gateway._proofs.pong(self.session, payload)

    def became_writable(self) -> None:
        """The socket is writable again."""
        self._gateway._proofs.became_writable(self.session)

    def message(self, data: str | bytes) -> None:
        """The peer sent a data message."""
        self._gateway._message(self.session, data)

    def flooded(self) -> None:
        """The peer sends too much."""
        self._gateway._presence.close(self.session, CloseReason.OVER_LIMIT)

    def closed(self, code: int, reason: str) -> None:
        """The connection is gone."""
        self._gateway._closed(self.session, code, reason)
