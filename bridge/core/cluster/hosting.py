"""Pushes that other nodes forward here: each is offered to the sessions of its user, and every proof is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bridge.core.cluster.post import Post
from bridge.core.contract.frames import bare_frame, push_frame, withdraw_frame
from bridge.core.contract.letters import Forwarded, Report, Withdrawn, Word
from bridge.core.inflight.inflight import InFlight
from bridge.core.inflight.offered import Offered
from bridge.core.mailbox.pages import Pages
from bridge.core.model.outcomes import Proof, Reason
from bridge.core.model.pushes import Encoding, PushRequest, ToUser
from bridge.core.model.rows import RowKey
from bridge.core.model.sessions import CloseReason, Mode
from bridge.core.ports.nodes import Sent
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session

GUESTS_MAX: Final = 100_000
"""Pushes of others that are remembered for a withdrawal; over it the oldest are not withdrawn any more."""


class Guest(Offered):
    """A push that another node owns. It reports what its sessions report, each proof once."""

    __slots__ = ("_best", "_open", "_report", "_withdrawn")

    def __init__(self, key: RowKey, confirm: Proof, report: Callable[[Word, str], None]) -> None:
        self.key = key
        self.confirm = confirm
        self._report = report
        self._best = Proof.NONE
        self._open = 0
        self._withdrawn = False

    @property
    def withdrawn(self) -> bool:
        """See `Offered`."""
        return self._withdrawn

    def withdraw(self) -> None:
        """Its owner does not want it to be sent any more."""
        self._withdrawn = True

    def addressed(self, sessions: int) -> None:
        """It was offered to this many more sessions."""
        self._open += sessions

    def handed(self, now: float) -> None:
        """See `Offered`."""
        self._proven(Proof.WRITTEN, Word.HANDED)

    def received(self, now: float) -> None:
        """See `Offered`."""
        self._proven(Proof.RECEIVED, Word.RECEIVED)

    def acked(self, now: float) -> None:
        """See `Offered`."""
        self._proven(Proof.ACKED, Word.ACKED)

    def _proven(self, proof: Proof, word: Word) -> None:
        if proof > self._best:
            self._best = proof
            self._report(word, "")

    def lost(self, now: float, *, handed: bool, why: Reason | None = None) -> None:
        """See `Offered`."""
        self._open -= 1
        if self._open == 0 and self._best < self.confirm:
            word = Word.UNSENT if self._best is Proof.NONE else Word.LOST
            self._report(word, "" if why is None or word is Word.LOST else why.value)


class Hosting:
    """Offers the pushes of other nodes to the sessions here."""

    def __init__(
        self,
        *,
        hub: Hub,
        inflight: InFlight,
        pages: Pages,
        post: Post,
        close: Callable[[Session, CloseReason], None],
        now: Callable[[], float],
    ) -> None:
        """`close` closes a session; `now` is the wall clock."""
        self._hub = hub
        self._inflight = inflight
        self._pages = pages
        self._post = post
        self._close = close
        self._now = now
        self._guests: dict[RowKey, Guest] = {}
        self._touched: set[Session] = set()

    def __len__(self) -> int:
        return len(self._guests)

    def offer(self, boot: str, forwarded: Forwarded) -> None:
        """Offer a push to the sessions of its user. It is handed over by `flush`."""
        number = forwarded.number

        def report(word: Word, why: str) -> None:
            ended = word >= Word.LOST or word >= forwarded.confirm - 1
            if ended and self._guests.get(key) is guest:
                del self._guests[key]
            self._post.add(boot, Report(number, word, why), _kept_back)

        key = RowKey(forwarded.tenant, forwarded.push_id, forwarded.user)
        guest = Guest(key, Proof(forwarded.confirm), report)
        if forwarded.kept_at is not None:
            # Pushes taken here from now on come after it.
            self._inflight.above(forwarded.kept_at)
        here = [s for s in self._hub.of_user(forwarded.user) if s.takes_pushes]
        sessions = [s for s in here if s.id not in forwarded.excluded]
        if not sessions:
            report(Word.EXCLUDED if here else Word.ABSENT, "")
            return
        self._guests[key] = guest
        if len(self._guests) > GUESTS_MAX:
            del self._guests[next(iter(self._guests))]
        guest.addressed(len(sessions))
        frames: dict[Mode, Frame] = {}
        request = _request_of(forwarded)
        for session in sessions:
            frame = frames.get(session.mode)
            if frame is None:
                build = bare_frame if session.mode is Mode.BARE else push_frame
                frame = frames[session.mode] = build(request)
            self._offer(session, frame, guest, forwarded.kept_at)

    def _offer(self, session: Session, frame: Frame, guest: Guest, kept_at: int | None) -> None:
        if not session.offer(frame, guest):
            self._pages.flush(session)
            if not session.offer(frame, guest):
                self._no_room(session, guest, kept_at)
                return
        self._touched.add(session)

    def _no_room(self, session: Session, guest: Guest, kept_at: int | None) -> None:
        replay = session.replay
        guest.lost(self._now(), handed=False, why=Reason.SLOW_CONSUMER if replay is None else Reason.OVERFLOW)
        if replay is None:
            self._close(session, CloseReason.TOO_SLOW)
        elif kept_at is not None:
            # It follows from the mailbox, and so does all that is newer.
            replay.missed = kept_at if replay.missed is None else min(replay.missed, kept_at)

    def flush(self) -> None:
        """Hand over what was offered."""
        self._pages.flush_all(self._touched)
        self._touched.clear()

    def withdraw(self, withdrawn: Withdrawn) -> None:
        """A push must not be sent any more; sessions are told, whether they have it or not."""
        key = RowKey(withdrawn.tenant, withdrawn.push_id, withdrawn.user)
        guest = self._guests.pop(key, None)
        if guest is not None:
            guest.withdraw()
        for session in self._hub.of_user(withdrawn.user):
            if session.mode is Mode.ENVELOPE and session.takes_pushes:
                session.tell(withdraw_frame(withdrawn.push_id, withdrawn.tenant))
                self._touched.add(session)


def _kept_back(sent: Sent) -> None:
    """A report that does not arrive proves nothing to the owner, whose deadline goes on."""


def _request_of(forwarded: Forwarded) -> PushRequest:
    return PushRequest(
        id=forwarded.push_id,
        target=ToUser(forwarded.user),
        data=forwarded.data,
        event=forwarded.event,
        encoding=Encoding(forwarded.encoding),
        tenant=forwarded.tenant,
    )
