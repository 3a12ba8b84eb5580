"""Send the last values of a topic to a session that has subscribed, before anything newer.

From the frame, or the opening, on the session holds what it is offered. Once the ledger has the subscription, the last
values are read and queued; then what was held follows. To a user whom nobody has sent the value yet it is a push like
any other, with a row of its own: this node takes it for that user.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from bridge.core.contract.frames import bare_frame, push_frame
from bridge.core.errors import StatementFailed
from bridge.core.inflight.inflight import InFlight
from bridge.core.inflight.making import flight_of_last_value
from bridge.core.inflight.offered import keys_of
from bridge.core.mailbox.pages import Pages
from bridge.core.model.pushes import PushKey
from bridge.core.model.retained import FoundValue, LastValue, LastValuesAsk, LastValuesPage
from bridge.core.model.rows import RowKey
from bridge.core.model.sessions import Mode
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.retained import Retained
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.session import Session
from bridge.core.settlement.persistence import Persistence

ASKS: Final = 50
"""Topics of sessions that are read in one statement."""


class _Ask(NamedTuple):
    """The last values of a topic that a session is to get, from a position on."""

    session: Session
    topic: str
    after: int


class LastValues:
    """Knows which sessions wait for the last values of which topics."""

    def __init__(
        self,
        retained: Retained | None,
        *,
        persistence: Persistence,
        inflight: InFlight,
        pages: Pages,
        clock: Clock,
        errors: ErrorHandler,
    ) -> None:
        self._retained = retained
        self._inflight = inflight
        self._pages = pages
        self._clock = clock
        self._errors = errors
        self._persistence = persistence
        self._waiting: dict[Session, set[str]] = {}
        """Topics of sessions that wait, whether the ledger has their subscription yet or not."""
        self._asked: dict[tuple[Session, str], int] = {}
        """Those to be read, and from which position on."""
        self._full: dict[tuple[Session, str], int] = {}
        """Those whose session had no room for more."""
        self._reads = False
        self._recalled: set[PushKey] = set()
        """Pushes that were recalled while a statement reads."""
        self._wake = asyncio.Event()

    def subscribes(self, session: Session, topic: str) -> None:
        """A session is about to be subscribed: from now on it holds its pushes. Idempotent."""
        if self._retained is None:
            return
        topics = self._waiting.setdefault(session, set())
        if topic not in topics:
            topics.add(topic)
            self._pages.hold(session)

    def subscribed(self, session: Session, topic: str) -> None:
        """The ledger has that."""
        if topic in self._waiting.get(session, ()):
            self._asked[session, topic] = 0
            self._wake.set()

    def not_subscribed(self, session: Session, topic: str) -> None:
        """It has ended, or the ledger does not take it. Idempotent."""
        topics = self._waiting.get(session)
        if topics is None or topic not in topics:
            return
        topics.remove(topic)
        self._asked.pop((session, topic), None)
        self._full.pop((session, topic), None)
        if not topics:
            del self._waiting[session]
        self._pages.let_go(session)

    def closed(self, session: Session) -> None:
        """It gets no more pushes. Idempotent."""
        for topic in self._waiting.pop(session, ()):
            self._asked.pop((session, topic), None)
            self._full.pop((session, topic), None)

    async def forget(self, push: PushKey) -> None:
        """A recall names this push: it is sent to no one any more. Raises StoreUnavailable."""
        if self._retained is not None:
            self.recalled(push)
            await self._retained.forget(push)

    def recalled(self, push: PushKey) -> None:
        """A node carries out a recall of this push."""
        if self._reads:
            self._recalled.add(push)

    async def run(self) -> None:
        """Read as sessions subscribe, until cancelled."""
        if self._retained is None:
            return
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._asked:
                some = [_Ask(*place, after) for place, after in itertools.islice(self._asked.items(), ASKS)]
                for ask in some:
                    del self._asked[ask.session, ask.topic]
                await self._read(self._retained, some)

    def tick(self) -> None:
        """Called about ten times a second: go on where a session has room again."""
        for place in [place for place in self._full if not place[0].queued]:
            self._asked[place] = self._full.pop(place)
            self._wake.set()

    async def _read(self, retained: Retained, some: Sequence[_Ask]) -> None:
        self._reads = True

        async def pages(asked: Sequence[_Ask]) -> Sequence[tuple[_Ask, LastValuesPage]]:
            found = await retained.find([LastValuesAsk(a.topic, a.session.user, a.after) for a in asked])
            return list(zip(asked, found, strict=True))

        async def failed(asked: _Ask, error: StatementFailed) -> Sequence[tuple[_Ask, LastValuesPage]]:
            context = {"session": asked.session.id, "topic": asked.topic}
            self._errors.handle(error, "retained.find", context)
            return [(asked, LastValuesPage((), False))]

        for asked, page in await self._persistence.in_parts(some, pages, failed):
            self._page(asked, page)
            # A page may hold many; pongs get their turn in between.
            await self._clock.sleep(0)
        self._reads = False
        self._recalled.clear()

    def _page(self, asked: _Ask, page: LastValuesPage) -> None:
        session, topic, after = asked
        if topic not in self._waiting.get(session, ()):
            return
        has = keys_of((*session.waiting_pushes(), *session.handed_pushes()))
        for found in page.values:
            if found.value.request.key not in self._recalled and not self._offer(session, found, has):
                self._full[session, topic] = after
                break
            after = found.value.position
        else:
            if page.more:
                self._asked[session, topic] = after
            else:
                self.not_subscribed(session, topic)
        self._pages.flush(session)

    def _offer(self, session: Session, found: FoundValue, has: Collection[RowKey]) -> bool:
        """Offer one value to a session, unless it has it; False where there is no room for it now."""
        request = found.value.request
        key = RowKey(request.tenant, request.id, session.user)
        self._inflight.make_sent(request.id)
        flight = self._inflight.get(key)
        if key in has or session.id in request.excluded or found.taken_back:
            return True
        if flight is not None and flight.withdrawn:
            return True
        frame = bare_frame(request) if session.mode is Mode.BARE else push_frame(request)
        if flight is None and not found.known:
            return self._take(session, found.value, frame)
        if flight is None or flight.ended:
            return session.offer_kept(frame, None)
        if not session.offer_kept(frame, flight):
            return False
        flight.addressed(1)
        self._inflight.look_later(flight)
        return True

    def _take(self, session: Session, value: LastValue, frame: Frame) -> bool:
        """Nobody has taken it for this user: this node does."""
        mono = self._clock.monotonic()
        flight = flight_of_last_value(value, session.user, self._inflight, self._clock.time(), mono)
        if not session.offer_kept(frame, flight):
            return False
        self._inflight.add(flight, roams=True)
        flight.addressed(1)
        self._inflight.limit(flight, mono)
        self._inflight.wait(flight)
        return True
