"""The ledger on the real core: nobody is welcomed who is not in it, and what it says of a session is true."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bridge.adapters.memory import MemorySessions
from bridge.core.delivery import announcing
from bridge.core.delivery.announcing import Announcing
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.delivery.recording import LOOK_EVERY, OPENS_WITHIN
from bridge.core.errors import RowsRefused, StoreUnavailable
from bridge.core.model.ledger import Closed, Device, Entries, Noted, Opened
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.sessions import Claims, CloseReason, Grant, Handshake, Mode, Refusal
from tests.support.house import House, Peer, kept, to
from tests.support.ports import ManualClock, claims
from tests.support.waiting import turns, until


class Sessions(MemorySessions):
    """May be slow, be down, refuse one session, or lose its answer."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.go = asyncio.Event()
        self.go.set()
        self.down = self.lose_answer = False
        self.refused = ""
        self.statements: list[Entries] = []

    async def note(self, entries: Entries) -> Noted:
        await self.go.wait()
        if any(entries):
            self.statements.append(entries)
        if self.down:
            raise StoreUnavailable("down")
        if any(one.session == self.refused for one in entries.opened):
            raise RowsRefused("22021", "no such character")
        noted = await super().note(entries)
        if self.lose_answer:
            self.lose_answer = False
            raise StoreUnavailable("cut after COMMIT")
        return noted


class Events:
    """Fills the port SessionEvents; takes nothing while it is `away`."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.away = False

    async def announce(self, events: Sequence[Opened | Closed]) -> Sequence[Opened | Closed]:
        if self.away:
            return events
        self.told += [(type(event).__name__.lower(), event.session) for event in events]
        return ()


class Ledgered(House):
    """A house with a ledger."""

    def __init__(self) -> None:
        clock = ManualClock()
        self.sessions, self.events = Sessions(clock), Events()
        super().__init__(
            DeliveryLimits(start_grace=0.0), clock=clock, sessions=self.sessions, session_events=self.events
        )

    async def recorded(self) -> None:
        """Wait until the ledger has everything."""
        await until(lambda: not self.core.ledger.ready)

    def come(self, user: str = "u1", token_id: str = "t1", last: str | None = None) -> Peer:
        told = Claims(user, 4e9, token_id, 100.0)
        device = Device("192.0.2.7", "a browser")
        return self.open(Grant(told, Mode.ENVELOPE, Mode.ENVELOPE.value, last, device, self.clock.now))

    def turned_away(self) -> bool:
        """Whether the ledger is why a handshake is refused."""
        answer = self.handshake()
        return isinstance(answer, Refusal) and answer.why == "ledger"

    def handshake(self) -> object:
        asked = Handshake(
            path="/ws", query={"token": ["t"]}, origin=None, authorization=None, subprotocols=()
        )
        return self.gateway.handshake(asked)


@asynccontextmanager
async def ledgered() -> AsyncIterator[Ledgered]:
    h = Ledgered()
    assert h.core.recording is not None
    async with h.running(*h.parts, h.core.recording, h.core.announcing):
        h.core.begin(0)
        yield h


def types(peer: Peer) -> list[str]:
    return [json.loads(text)["type"] for text in peer.socket.texts]


async def test_nothing_is_sent_before_the_open_is_committed_and_pushes_that_come_meanwhile_follow() -> None:
    async with ledgered() as h:
        await h.push(kept("u1", "p0"))
        h.sessions.go.clear()
        peer = h.come()
        await h.push(to("u1", "p1"))
        await turns()
        assert peer.socket.frames == []
        h.sessions.go.set()
        await until(lambda: len(peer.pushes) == 2)
        assert types(peer)[0] == "welcome"
        assert [push["id"] for push in peer.pushes] == ["p0", "p1"]
        peer.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)


async def test_bare_sessions_wait_too() -> None:
    async with ledgered() as h:
        h.sessions.go.clear()
        peer = h.connect("u1", Mode.BARE)
        await h.push(to("u1", "p1"))
        assert peer.socket.frames == []
        h.sessions.go.set()
        await until(lambda: peer.socket.frames)


async def test_who_comes_at_once_is_written_at_once() -> None:
    async with ledgered() as h:
        h.sessions.go.clear()
        h.come("u0")
        await turns()
        peers = [h.come(f"u{n}") for n in range(1, 300)]
        h.sessions.go.set()
        await until(lambda: all(peer.socket.frames for peer in peers))
        assert [len(one.opened) for one in h.sessions.statements] == [1, 299]


async def test_the_ledger_says_who_came_from_where_and_how_they_left() -> None:
    async with ledgered() as h:
        gone, closed = h.come(), h.come("u2")
        await h.recorded()
        opened = h.sessions.opened[gone.session_id]
        assert opened == Opened(
            gone.session_id, "u1", "n1", h.clock.now, "bridge.v1.json", Device("192.0.2.7", "a browser"),
            "t1", 100.0, 4e9,
        )  # fmt: skip
        h.clock.advance(5.0)
        gone.leave(1000)
        h.core.presence.close(closed.client.session, CloseReason.TOO_SLOW)
        closed.leave(1006)
        await h.recorded()
        ends = {name: (one.code, one.reason) for name, one in h.sessions.closed.items()}
        assert ends == {gone.session_id: (1000, "client"), closed.session_id: (4408, "too_slow")}
        assert h.sessions.closed[gone.session_id].closed_at == h.clock.now


async def test_a_session_that_ends_before_it_was_written_is_not_written() -> None:
    async with ledgered() as h:
        h.sessions.go.clear()
        h.come("u0")
        await turns()
        h.come("u1").leave()
        h.sessions.go.set()
        await h.recorded()
        assert [one.user for one in h.sessions.opened.values()] == ["u0"]
        assert not h.sessions.closed


async def test_a_close_follows_the_open_that_is_being_written_even_if_its_answer_is_lost() -> None:
    async with ledgered() as h:
        h.sessions.go.clear()
        peer = h.come()
        await turns()
        peer.leave(1001)
        h.sessions.lose_answer = True
        h.sessions.go.set()
        await turns()
        h.advance(1.0)
        await h.recorded()
        assert h.sessions.closed[peer.session_id].code == 1001
        assert h.sessions.opened.keys() == h.sessions.closed.keys()


async def test_an_open_that_takes_over_a_second_is_turned_away_and_then_handshakes_are_refused() -> None:
    async with ledgered() as h:
        early = h.come("u0")
        await h.recorded()
        h.sessions.go.clear()
        peer = h.come()
        await h.push(kept("u1", "p1"))
        h.advance(OPENS_WITHIN + 0.2)
        assert peer.socket.closed_with is CloseReason.TRY_LATER
        assert types(peer) == ["bye"]
        assert early.socket.closed_with is None
        assert h.handshake() == Refusal(
            503, "ledger", "Sessions can't be recorded at the moment, try again soon."
        )
        h.sessions.go.set()
        await h.recorded()
        assert h.sessions.closed[peer.session_id].reason == "try_later"
        await h.ends("p1", Outcome.STORED, Reason.LEFT_BEFORE_SEND)
        h.advance(LOOK_EVERY + 0.1)
        await turns()
        assert not h.turned_away()


async def test_while_the_database_is_down_nobody_opens_and_who_leaves_is_written_when_it_is_back() -> None:
    async with ledgered() as h:
        peer = h.come()
        await h.recorded()
        h.sessions.down = True
        peer.leave(1001)
        await turns()
        assert h.turned_away()
        h.advance(30.0)
        h.sessions.down = False
        h.advance(3.0)
        await h.recorded()
        assert h.sessions.closed[peer.session_id].code == 1001
        assert not h.turned_away()
        assert any(isinstance(error, StoreUnavailable) for error, _ in h.errors.seen)


async def test_one_session_that_the_database_refuses_does_not_keep_the_others_out() -> None:
    async with ledgered() as h:
        h.sessions.go.clear()
        h.come("u0")
        await turns()
        peers = [h.come(f"u{n}") for n in range(1, 20)]
        h.sessions.refused = peers[7].session_id
        h.sessions.go.set()
        await h.recorded()
        assert [types(peer) for peer in peers] == [["bye" if n == 7 else "welcome"] for n in range(19)]
        assert peers[7].socket.closed_with is CloseReason.TRY_LATER
        assert peers[7].session_id not in h.sessions.opened
        assert [where for _, where in h.errors.seen] == ["ledger.note"]


async def test_a_session_whose_token_is_revoked_is_never_welcomed_even_if_nobody_here_reads_the_revocation() -> (
    None
):
    async with ledgered() as h:
        h.sessions.revoked.add("t1")
        peer = h.come()
        await h.push(to("u1", "p1"))
        await h.recorded()
        await turns()
        assert peer.socket.frames == []
        h.advance(1.2)
        assert peer.socket.closed_with is CloseReason.REVOKED
        assert types(peer) == ["bye"]
        await h.recorded()
        assert h.sessions.closed[peer.session_id].reason == "revoked"


async def test_a_session_that_somebody_wants_closed_is_closed_within_a_moment() -> None:
    async with ledgered() as h:
        peer, other = h.come(), h.come("u2")
        await h.recorded()
        h.sessions.unwanted[peer.session_id] = "disconnected"
        h.advance(LOOK_EVERY + 0.1)
        await until(lambda: peer.socket.closed_with)
        assert json.loads(peer.socket.texts[-1]) == {
            "type": "bye", "code": 1001, "reason": "disconnected", "retry_after": 1.0,
        }  # fmt: skip
        assert other.socket.closed_with is None
        await h.recorded()
        assert h.sessions.closed[peer.session_id].reason == "disconnected"


async def test_a_refresh_is_written() -> None:
    async with ledgered() as h:
        peer = h.come()
        await h.recorded()
        session = peer.client.session
        session.claims = claims("u1", 5e9)
        h.core.presence.refreshed(session)
        await h.recorded()
        assert h.sessions.opened[peer.session_id].expires_at == 5e9


async def test_a_node_that_has_lost_its_name_lets_nobody_in() -> None:
    async with ledgered() as h:
        h.sessions.ended = True
        peer = h.come()
        for _ in range(40):
            h.advance(0.1)
            await turns(5)
        assert peer.socket.closed_with is CloseReason.TRY_LATER
        assert h.turned_away()


async def test_what_is_committed_is_told_in_its_order_also_of_sessions_whose_process_died() -> None:
    async with ledgered() as h:
        peer, dead = h.come(), h.come("u2")
        await h.recorded()
        peer.leave()
        await h.recorded()
        h.sessions.dead.append(dead.session_id)
        h.advance(1.5)
        await until(lambda: len(h.events.told) == 4)
        one, two = peer.session_id, dead.session_id
        assert h.events.told == [("opened", one), ("opened", two), ("closed", one), ("closed", two)]


async def test_events_wait_for_the_broker_and_of_too_many_the_oldest_are_dropped() -> None:
    clock, events = ManualClock(), Events()
    told = Announcing(events, clock)

    def closed(name: str) -> Closed:
        return Closed(name, "u", "n1", 0.0, 1.0, 1000, "client")

    events.away = True
    told.tell([closed(str(n)) for n in range(announcing.WAITING_MAX)])
    assert not await told.flush()
    told.tell([closed("last"), closed("of all")])
    events.away = False
    assert await told.flush()
    assert (told.sent, told.dropped) == (announcing.WAITING_MAX, 2)
    assert [name for _, name in events.told[:1] + events.told[-2:]] == ["2", "last", "of all"]


async def test_a_stop_writes_that_its_sessions_have_closed() -> None:
    h = Ledgered()
    recording = h.core.recording
    assert recording is not None
    peer = h.come()
    await recording.flush()
    h.core.presence.close(peer.client.session, CloseReason.RESTART)
    await recording.flush()
    assert h.sessions.closed[peer.session_id].reason == "restart"


async def test_without_a_ledger_nothing_waits_for_one() -> None:
    h = House()
    assert h.core.recording is None
    peer = h.connect("u1")
    assert types(peer) == ["welcome"]
    peer.leave()
    assert not h.core.ledger.ready
