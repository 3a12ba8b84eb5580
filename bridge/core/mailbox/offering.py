"""Offer the push of a row that was read from the log to a session: once, and in its state of now."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bridge.core.contract.frames import bare_frame, push_frame
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.inflight import RESENDS, InFlight
from bridge.core.inflight.making import flight_of_stored
from bridge.core.model.outcomes import DELIVERED, Outcome, Reason
from bridge.core.model.pushes import PushRequest, ToTopic, ToUser
from bridge.core.model.rows import Row, RowKey
from bridge.core.model.sessions import Mode
from bridge.core.ports.clock import Clock
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.session import Session


class Offering:
    """Finds the flight of a stored row, or makes one, and offers it to the session."""

    def __init__(self, inflight: InFlight, clock: Clock, boot: str) -> None:
        self._inflight = inflight
        self._clock = clock
        self._boot = boot

    def offer(
        self,
        session: Session,
        row: Row,
        *,
        again: bool,
        resumes: bool,
        handed: Collection[RowKey],
        gone: Mapping[RowKey, Row],
    ) -> bool:
        """Offer one row's push to a session, unless it needs none; False where the session has no room for it now.

        `again`: the session may have it already; `handed` are the pushes that it was handed. It waits for none of them.
        `resumes`: it gets the push even if another session has proven it just now.
        `gone`: rows that became final since the page was read.
        """
        key = row.key
        if _was_seen(session, row):
            return True
        if row.final:
            if _taken_back(row):
                return True
            return key in handed or session.offer_kept(_frame(session.mode, row), None)
        flight = self._inflight.get(key)
        if flight is None:
            if key in handed:
                # Forwarded by its owner, who hears what its peer proves.
                return True
            if key in gone:
                # Delivered to another session just now: a session that resumes gets it as well.
                lives = row.expires_at is not None and row.expires_at > self._clock.time()
                if resumes and lives and gone[key].outcome in DELIVERED and not _taken_back(gone[key]):
                    return session.offer_kept(_frame(session.mode, row), None)
                return True
            flight = flight_of_stored(row, self._boot, self._inflight, self._clock.monotonic())
            if not session.offer_kept(_frame(session.mode, row), flight):
                return False
            self._inflight.add_stored(flight)
        elif flight.ended:
            if flight.outcome in DELIVERED and not flight.withdrawn and (resumes or not again):
                return session.offer_kept(_frame(session.mode, row), None)
            return True
        elif key in handed:
            return self._offer_again(session, row, flight)
        elif not session.offer_kept(_frame(session.mode, row), flight):
            return False
        flight.addressed(1)
        self._inflight.look_later(flight)
        return True

    def _offer_again(self, session: Session, row: Row, flight: Flight) -> bool:
        kept = flight.kept
        now = self._clock.monotonic()
        if kept is None or kept.resent >= RESENDS or kept.look_at > now:
            return True
        if not session.offer_kept(_frame(session.mode, row), flight):
            return False
        kept.resent += 1
        self._inflight.look_later(flight)
        return True


def _taken_back(row: Row) -> bool:
    """Whether the first ack has taken it back from all other sessions."""
    return row.first_device and row.outcome is Outcome.ACKED


def _was_seen(session: Session, row: Row) -> bool:
    """A stream of events that resumes says what it had last, and that is all that its client can say: what came before
    that push, and was handed to such a stream, is not sent to it again. It stays kept for the user's other devices."""
    if session.proves or row.reason is not Reason.NO_PROOF_POSSIBLE or row.final:
        return False
    replay = session.replay
    return replay is not None and replay.resumed is not None and row.position <= replay.resumed


def _frame(mode: Mode, row: Row) -> Frame:
    request = PushRequest(
        id=row.key.push_id,
        target=ToTopic(row.topic) if row.topic else ToUser(row.key.user),
        data=row.payload or b"",
        event=row.event,
        encoding=row.encoding,
        tenant=row.key.tenant,
    )
    return bare_frame(request) if mode is Mode.BARE else push_frame(request)
