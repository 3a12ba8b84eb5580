"""Resend kept pushes that a session was handed and did not prove in time, if the session answers pings."""

from __future__ import annotations

from bridge.core.inflight.flight import Flight
from bridge.core.inflight.inflight import InFlight
from bridge.core.mailbox.pages import Pages
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.replay import Replay
from bridge.core.sessions.states import SessionState


class Resends:
    """Begins another replay of a session, from the oldest push that lacks its proof."""

    def __init__(self, *, hub: Hub, inflight: InFlight, pages: Pages, pong_after: float) -> None:
        """`pong_after`: seconds for which a session may owe a pong before nothing is resent to it."""
        self._hub = hub
        self._inflight = inflight
        self._pages = pages
        self._pong_after = pong_after

    def tick(self, now: float) -> None:
        """Called about ten times a second; `now` is monotonic seconds."""
        due: dict[str, list[Flight]] = {}
        for flight in self._inflight.overdue(now):
            due.setdefault(flight.key.user, []).append(flight)
        for user, flights in due.items():
            if not self._resend(user, min(f.position for f in flights), now):
                for flight in flights:
                    self._inflight.look_later(flight)

    def _resend(self, user: str, first: int, now: float) -> bool:
        """Resend to those sessions of a user that answer; False where there is none now."""
        begun = False
        for session in self._hub.of_user(user):
            if session.state is not SessionState.LIVE or session.owes_pong(now, self._pong_after):
                continue
            if not session.proves:
                # Whoever is there may show a push twice, and proves neither.
                continue
            if now < session.next_round:
                continue
            until = self._inflight.take_position()
            self._pages.begin_replay(session, Replay(after=first - 1, until=until, again=True))
            begun = True
        return begun
