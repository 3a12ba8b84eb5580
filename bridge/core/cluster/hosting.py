"""Pushes that other nodes forward here: each is offered to the sessions of its user, and every proof is reported."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from bridge.core.cluster.cluster import Cluster
from bridge.core.cluster.guests import Guest, Guests
from bridge.core.contract.frames import bare_frame, push_frame
from bridge.core.contract.letters import Forwarded, Report, Word
from bridge.core.inflight.inflight import MICRO, InFlight
from bridge.core.inflight.offered import keys_of
from bridge.core.mailbox.pages import Pages
from bridge.core.mailbox.withdrawing import Withdrawing
from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import Encoding, PushRequest, Recall, ToTopic, ToUsers
from bridge.core.model.rows import LateProof, RowKey
from bridge.core.model.sessions import CloseReason, Mode
from bridge.core.ports.clock import Clock
from bridge.core.ports.nodes import Sent
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session


class _Said(NamedTuple):
    """A report that its owner may not have."""

    boot: str
    key: RowKey
    report: Report
    at: float
    """When it was made, in unix seconds."""


class Hosting:
    """Offers the pushes of other nodes to the sessions here."""

    def __init__(
        self,
        *,
        hub: Hub,
        inflight: InFlight,
        pages: Pages,
        withdrawing: Withdrawing,
        cluster: Cluster,
        close: Callable[[Session, CloseReason], None],
        late: Callable[[LateProof], None],
        clock: Clock,
    ) -> None:
        """`close` closes a session; `late` notes a proof in the row of a push whose owner is dead."""
        self._hub = hub
        self._inflight = inflight
        self._pages = pages
        self._withdrawing = withdrawing
        self._post = cluster.post
        self._neighbours = cluster.neighbours
        self._close = close
        self._late = late
        self._clock = clock
        self._guests = Guests()
        self._unheard = cluster.unheard_reports
        self._touched: set[Session] = set()
        self._unread: dict[str, set[int]] = {}
        """By process, the pushes whose reports it may not have read, and that were reported since: looked up where it
        sends a push again, and forgotten each second. What it sends again may be in hundreds of letters."""

    def offer(self, boot: str, forwarded: Forwarded) -> None:
        """Offer a push to the sessions of its users. It is handed over by `flush`."""
        # Pushes taken here from now on come after it.
        self._inflight.above(forwarded.position)
        request = _request_of(forwarded)
        frames: dict[Mode, Frame] = {}
        for number, user in enumerate(forwarded.users, forwarded.number):
            self._offer_one(boot, forwarded, number, user, request, frames)
        self._post.answer(boot, forwarded.number + len(forwarded.users) - 1)

    def _offer_one(
        self,
        boot: str,
        forwarded: Forwarded,
        number: int,
        user: str,
        request: PushRequest,
        frames: dict[Mode, Frame],
    ) -> None:
        key = RowKey(forwarded.tenant, forwarded.push_id, user)

        def report(word: Word, why: str, session: str, unprovable: bool) -> None:
            ended = word >= Word.LOST or word >= forwarded.confirm - 1
            if ended:
                self._guests.remove(guest)
                if forwarded.expires_at is not None:
                    self._pages.others.ended(key, forwarded.position, proven=word < Word.LOST)
            said = Report(number, word, why, session, unprovable)
            # A first proof is soon followed by a better one.
            self._report(_Said(boot, key, said, self._clock.time()), soon=ended or word is not Word.HANDED)

        known = self._guests.get(key)
        if known is not None:
            # Its owner has died, and the next one has taken the push: sessions have it, or will.
            guest = known
            guest.rebound(report)
            return
        if number <= self._post.had(boot) and self._has_ended(boot, number):
            return
        guest = Guest(key, forwarded, self._clock, report)
        here = [s for s in self._hub.of_user(user) if s.takes_pushes]
        if forwarded.session:
            here = [s for s in here if s.id == forwarded.session]
        elif forwarded.topic:
            subscribed = [s for s in here if forwarded.topic in self._hub.topics.of(s)]
            # A kept push is for a user, whose subscribed session may have closed a moment ago.
            here = subscribed if subscribed or forwarded.expires_at is None else here
        sessions = [s for s in here if s.id not in forwarded.excluded]
        if not sessions:
            report(Word.EXCLUDED if here else Word.ABSENT, "", "", False)
            return
        if forwarded.expires_at is not None:
            sessions = [s for s in sessions if not _has_passed(s, key, forwarded.position)]
        if not sessions:
            report(Word.UNSENT, "", "", False)
            return
        self._guests.add(guest)
        guest.addressed(len(sessions))
        for session in sessions:
            frame = frames.get(session.mode)
            if frame is None:
                build = bare_frame if session.mode is Mode.BARE else push_frame
                frame = frames[session.mode] = build(request)
            self._offer(session, frame, guest)

    def _offer(self, session: Session, frame: Frame, guest: Guest) -> None:
        if not session.offer(frame, guest):
            self._pages.flush(session)
            if not session.offer(frame, guest):
                self._no_room(session, guest)
                return
        self._touched.add(session)

    def _no_room(self, session: Session, guest: Guest) -> None:
        replay = session.replay
        guest.lost(
            self._clock.time(), handed=False, why=Reason.SLOW_CONSUMER if replay is None else Reason.OVERFLOW
        )
        if replay is None:
            self._close(session, CloseReason.TOO_SLOW)
        elif guest.expires_at is not None:
            # It follows from the mailbox, and so does all that is newer.
            at = guest.position
            replay.missed = at if replay.missed is None else min(replay.missed, at)

    def _has_ended(self, boot: str, number: int) -> bool:
        """Whether a push that its owner sends again has ended here, and the owner is yet to read how."""
        unread = self._unread.get(boot)
        if unread is None:
            unread = self._unread[boot] = self._post.unread(boot)
        return number in unread

    def every_second(self) -> None:
        """Called each second: look up again what is unread."""
        self._unread.clear()

    def flush(self) -> None:
        """Hand over what was offered by one letter."""
        self._pages.flush_all(self._touched)
        self._touched.clear()

    def recall(self, recall: Recall, until: int) -> None:
        """What a recall names, up to this position, is not sent any more, and sessions are told that may have it."""
        named = [one for one in self._guests.named(recall) if one.position <= until]
        for guest in named:
            guest.withdraw()
        self._withdrawing.withdraw([(guest.key.user, guest.key.push_id) for guest in named], recall.tenant)

    def taken_back(self, key: RowKey) -> bool:
        """It is taken back: it is not sent any more. Returns whether `recall` has told the sessions that have it."""
        guest = self._guests.get(key)
        return guest is not None and guest.withdraw()

    # --- reports ---

    def _report(self, one: _Said, number: int = 0, *, soon: bool = True) -> None:
        if one.boot in self._unread:
            self._unread[one.boot].add(one.report.number)
        self._post.add(one.boot, one.report, partial(self._not_heard, one, number), soon=soon)

    def _not_heard(self, one: _Said, number: int, sent: Sent) -> None:
        if self._unheard.full:
            self._unheard.drop_oldest(one.boot)
        self._unheard.add(one.boot, one.report, partial(self._say_again, one), number)

    def _say_again(self, one: _Said, number: int) -> None:
        """What a dead owner will never hear is noted in the row, which has its final outcome by then."""
        if self._neighbours.of_boot(one.boot) is not None:
            self._report(one, number)
        elif one.report.word in (Word.RECEIVED, Word.ACKED):
            self._late(LateProof(one.key, one.at))


def _has_passed(session: Session, key: RowKey, position: int) -> bool:
    """Whether a session that opened after this kept push was taken, by the clocks of both nodes, has read what is newer
    and not this one: others proved it before the session could read it, and it would come after newer ones."""
    if position >= session.read_to or session.opened_at < position / MICRO:
        return False
    return key not in keys_of((*session.waiting_pushes(), *session.handed_pushes()))


def _request_of(forwarded: Forwarded) -> PushRequest:
    return PushRequest(
        id=forwarded.push_id,
        target=ToTopic(forwarded.topic) if forwarded.topic else ToUsers(tuple(forwarded.users)),
        data=forwarded.data,
        event=forwarded.event,
        encoding=Encoding(forwarded.encoding),
        tenant=forwarded.tenant,
    )
