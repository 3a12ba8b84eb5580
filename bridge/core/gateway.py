"""The core's side of the WebSocket server: handshakes, the session of each socket, frames from clients."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Final

from bridge.core.contract.frames import (
    AckFrame,
    RefreshFrame,
    UnsupportedFrame,
    error_frame,
    ok_frame,
    parse_client,
)
from bridge.core.delivery.presence import Presence
from bridge.core.delivery.proof import Proofs
from bridge.core.model.sessions import CloseReason, Grant, Handshake, Mode, Refusal
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import Hooks, Metrics
from bridge.core.ports.sockets import Frame, SessionHandle, Socket
from bridge.core.sessions.access import Access, Decision, Undecided
from bridge.core.sessions.acks import AmbiguousAck
from bridge.core.sessions.limits import SessionLimits
from bridge.core.sessions.session import Session
from bridge.core.sessions.strangers import CROWD, Strangers, reason_of

log = logging.getLogger("bridge.handshake")

FORMER_MAX: Final = 20
"""Tokens before the present one that a session may have while they are still good: each is revoked with the session,
and written with each refresh. Who refreshes when it is asked has one."""
FORMER_SECONDS: Final = 60.0
"""For so long after it has expired, a token that was refreshed is remembered: clocks differ."""


class Gateway:
    """Fills the SessionHost port: decides on handshakes and opens sessions."""

    def __init__(
        self,
        *,
        access: Access,
        presence: Presence,
        proofs: Proofs,
        limits: SessionLimits,
        hooks: Hooks,
        metrics: Metrics,
        clock: Clock,
        new_session_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._access = access
        self._presence = presence
        self._proofs = proofs
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
        session = Session(
            self._new_session_id(),
            grant.claims,
            grant.mode,
            socket,
            self._limits,
            opened_at=grant.granted_at,
        )
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

    def _message(self, session: Session, data: str | bytes) -> None:
        if session.mode is Mode.BARE:
            # Bare mode is one-way: messages from such a client are ignored.
            return
        frame = parse_client(data)
        if isinstance(frame, AckFrame):
            self._acked(session, frame)
        elif isinstance(frame, RefreshFrame):
            self._refreshed(session, frame)
        elif isinstance(frame, UnsupportedFrame):
            problem = f"{frame.type} is not available here"
            send_answer(session, error_frame("unsupported", problem, frame.ref))
        else:
            send_answer(session, error_frame("bad_frame", frame.problem, frame.ref))

    def _refreshed(self, session: Session, refresh: RefreshFrame) -> None:
        """A new token for an open session: of the same user, or the session ends with the one that it has."""
        answer = self._access.check(refresh.token, Grant(None, session.mode, None))
        if isinstance(answer, Undecided):
            problem = "token: the keys that check it are being read, send it again in a moment"
            send_answer(session, error_frame("try_later", problem, refresh.ref))
        elif isinstance(answer, Refusal):
            code = "try_later" if answer.status == 503 else "refused"
            send_answer(session, error_frame(code, answer.text, refresh.ref))
        elif answer.claims is None or answer.claims.user != session.user:
            send_answer(session, error_frame("refused", "token: it is not of this user", refresh.ref))
        elif answer.claims.expires_at <= session.claims.expires_at:
            problem = "token: it does not expire later than the one before"
            send_answer(session, error_frame("refused", problem, refresh.ref))
        else:
            # Whoever revokes the session means them too: its client must not come back with one.
            good = self._clock.time() - FORMER_SECONDS
            former = tuple(c for c in (*session.former, session.claims) if c.expires_at > good)
            if len(former) > FORMER_MAX:
                problem = f"token: the session has had {FORMER_MAX} others that are still good, send it later"
                send_answer(session, error_frame("refused", problem, refresh.ref))
                return
            session.former = former
            session.claims = answer.claims
            self._presence.refreshed(session)
            send_answer(session, ok_frame(refresh.ref))

    def _acked(self, session: Session, ack: AckFrame) -> None:
        """Note an ack. It is answered only where it has a `ref`: a client may ack everything it gets."""
        try:
            counts = self._proofs.acked(session, ack.id, ack.tenant)
        except AmbiguousAck:
            problem = "tenant: required, pushes of several tenants with this id wait for their ack"
            send_answer(session, error_frame("bad_frame", problem, ack.ref))
            return
        if ack.ref is None:
            return
        if counts:
            answer = ok_frame(ack.ref)
        else:
            problem = "id: no push with this id waits for an ack of this session"
            answer = error_frame("not_awaited", problem, ack.ref)
        send_answer(session, answer)

    def _closed(self, session: Session, code: int, reason: str) -> None:
        self._presence.closed(session, code)
        word = session.close_reason.word if session.close_reason else "client"
        self._metrics.closed(word)
        self._hooks.on_close(session.info, code, reason or word)


def send_answer(session: Session, frame: Frame) -> None:
    """Answer a client's frame, unless the client does not read: its answers must not take memory."""
    if session.socket.writable:
        session.socket.write((frame,), None)


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
