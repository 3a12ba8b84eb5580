"""Offer a push to each session of its user, and hand offered pushes to sockets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bridge.core.contract.frames import bare_frame, push_frame
from bridge.core.delivery.presence import Presence
from bridge.core.inflight.flight import Flight
from bridge.core.mailbox.pages import Pages
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import PushRequest
from bridge.core.model.sessions import CloseReason, Mode
from bridge.core.ports.clock import Clock
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.session import Session

_BARE: Final = Mode.BARE


class Dispatcher:
    """Collects the pushes of a batch for each session, so that they are handed over in one write."""

    def __init__(self, *, presence: Presence, pages: Pages, clock: Clock) -> None:
        self._presence = presence
        self._pages = pages
        self._clock = clock
        self._touched: set[Session] = set()
        """Sessions that were offered something since the last flush."""

    def offer(
        self, flight: Flight, request: PushRequest, sessions: Sequence[Session], frames: dict[Mode, Frame]
    ) -> None:
        """Offer a push to these sessions. `frames` caches the frames of a request for its other users."""
        flight.addressed(len(sessions))
        for session in sessions:
            mode = session.mode
            frame = frames.get(mode)
            if frame is None:
                frame = frames[mode] = bare_frame(request) if mode is _BARE else push_frame(request)
            if session.offer(frame, flight):
                self._touched.add(session)
                continue
            # This batch may have filled the queue: a flush makes room if the socket takes bytes.
            self._pages.flush(session)
            if session.offer(frame, flight):
                self._touched.add(session)
            else:
                self._no_room(flight, session)

    def show(self, request: PushRequest, session: Session) -> None:
        """Offer a push that has ended to one more session, if it has room."""
        frame = bare_frame(request) if session.mode is _BARE else push_frame(request)
        if session.offer_kept(frame, None):
            self._touched.add(session)

    def _no_room(self, flight: Flight, session: Session) -> None:
        replay = session.replay
        why = Reason.SLOW_CONSUMER if replay is None else Reason.OVERFLOW
        flight.lost(self._clock.time(), handed=False, why=why)
        if replay is None:
            self._presence.close(session, CloseReason.TOO_SLOW)
        elif flight.kept is not None and replay.missed is None:
            # The peer is not slow: older pushes are still being sent to it. This one follows from the mailbox.
            replay.missed = flight.position

    def flush(self) -> None:
        """Hand over what was offered: one write for each session, however many pushes it was offered."""
        self._pages.flush_all(self._touched)
        self._touched.clear()
