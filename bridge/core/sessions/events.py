"""A session that is a stream of events (`GET /sse`): its client says something with requests of its own, or nothing.

Pings go out as events. A client may answer them, and then it must: from its first answer on it is a session as every
other one. A plain EventSource never does. It owes nothing, and nothing waits for it: neither the next page of what is
kept, nor room for more frames.
"""

from __future__ import annotations

from bridge.core.inflight.offered import Offered
from bridge.core.model.outcomes import Proof
from bridge.core.model.sessions import Claims, Mode
from bridge.core.ports.sockets import Socket
from bridge.core.sessions.limits import SessionLimits
from bridge.core.sessions.session import UNPROVEN_MAX, Session


class EventSession(Session):
    """See `Session`."""

    __slots__ = ("_acks_pushes", "key")

    def __init__(
        self,
        session_id: str,
        claims: Claims,
        socket: Socket,
        limits: SessionLimits,
        *,
        key: str,
        opened_at: float,
    ) -> None:
        super().__init__(session_id, claims, Mode.SSE, socket, limits, opened_at=opened_at)
        self.proves = False
        self.key = key
        """What a request must show that says something for this session."""
        self._acks_pushes = False

    @property
    def idle(self) -> bool:
        """See `Session`. Without proofs, whether everything was handed over."""
        return not self._queue and not (self.proves and self._unproven)

    @property
    def awaited_pong(self) -> bytes | None:
        """The payload of the outstanding ping."""
        return self._ping

    def unprovable(self, push: Offered) -> bool:
        """Whether its client has never proven anything that this push asks for."""
        return not self.proves and not (self._acks_pushes and push.confirm is Proof.ACKED)

    def flush(self, now: float) -> list[Offered]:
        """See `Session`."""
        if not self.proves and len(self._unproven) >= UNPROVEN_MAX:
            self._covered = len(self._unproven)
            self.give_up()
        return super().flush(now)

    def pong(self, payload: bytes, now: float) -> list[Offered]:
        """See `Session`."""
        if payload == self._ping:
            self.proves = True
        return super().pong(payload, now)

    def ack(self, push_id: str, tenant: str | None = None) -> Offered | None:
        """See `Session`."""
        push = super().ack(push_id, tenant)
        self._acks_pushes = self._acks_pushes or push is not None
        return push

    def give_up(self) -> None:
        """Wait no longer for the outstanding pong. The acks of these pushes may still come."""
        covered = self._unproven[: self._covered]
        del self._unproven[: self._covered]
        self._covered = 0
        self._ping = None
        self.owing_since = None
        self.forgotten.extend(push for push in covered if push.confirm is not Proof.ACKED)
