"""Keep sessions alive; close those whose peer is gone or does not read, and those whose token has expired."""

from __future__ import annotations

from bridge.core.contract.frames import HEARTBEAT, REFRESH
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.delivery.presence import Presence
from bridge.core.delivery.renewing import Renewing
from bridge.core.mailbox.pages import Pages
from bridge.core.model.sessions import CloseReason
from bridge.core.ports.clock import Clock
from bridge.core.sessions.events import EventSession
from bridge.core.sessions.hub import Hub


class Liveness:
    """Checks sessions as time passes."""

    def __init__(
        self,
        *,
        hub: Hub,
        presence: Presence,
        pages: Pages,
        clock: Clock,
        limits: DeliveryLimits,
        renewing: Renewing | None,
    ) -> None:
        """Of `limits`: `total_bytes` of the frames that wait for all sockets together; over it the fullest session is
        closed. `renewing`: asks the connect hook again, where there is one."""
        self._hub = hub
        self._presence = presence
        self._pages = pages
        self._clock = clock
        self._confirm_timeout = limits.confirm_timeout
        self._total_bytes = limits.total_bytes
        self._renewing = renewing

    def close_slow(self, now: float) -> None:
        """Close sessions whose socket takes nothing, and the fullest ones while too many bytes wait in all; `now` is
        monotonic seconds."""
        for session in self._hub.stalled(now, self._confirm_timeout):
            self._presence.close(session, CloseReason.TOO_SLOW)
        while self._hub.queued_bytes > self._total_bytes:
            fullest = self._hub.fullest()
            if fullest is None:
                break
            self._presence.close(fullest, CloseReason.TOO_SLOW)

    def show_life(self, now: float) -> None:
        """Send the pings and heartbeats whose turn it is, and close sessions whose peer owes a pong for too long."""
        for turn in self._hub.turns(now):
            quiet = dict.fromkeys(turn.quiet, HEARTBEAT)
            for session in turn.to_ping:
                if session.owes_pong(now, self._confirm_timeout * 2):
                    if not session.proves and isinstance(session, EventSession):
                        session.give_up()
                        self._pages.flush(session)
                        session.ping(now, quiet.get(session), turn.at)
                    else:
                        self._presence.close(session, CloseReason.VANISHED)
                else:
                    session.ping(now, quiet.get(session), turn.at)
            for session, heartbeat in quiet.items():
                if session.close_reason is None:
                    session.beat(heartbeat, turn.at)

    def renew_tokens(self) -> None:
        """Ask for a new token where one expires soon, or the hook, and close sessions whose time is over."""
        soon, gone = self._hub.expiring(self._clock.time())
        for session in gone:
            self._presence.close(session, CloseReason.TOKEN_EXPIRED)
        for session in soon:
            if session.claims.asked is not None:
                if self._renewing is not None:
                    self._renewing.due(session)
                continue
            # Who does not read gets it behind what waits; it may come too late then.
            session.tell(REFRESH)
            self._pages.flush(session)
