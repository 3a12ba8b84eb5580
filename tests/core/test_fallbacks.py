"""Fallbacks, on the real core with its ports in memory: when they are published, and what cancels them."""

from __future__ import annotations

from bridge.adapters.memory import MemoryLease
from bridge.core.errors import StatementFailed
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Encoding, Recall
from bridge.core.model.rows import Row, RowKey
from tests.support.house import House, house, kept, to
from tests.support.ports import arrival
from tests.support.waiting import turns

MAIL = {"after": 60, "routing_key": "mail"}


async def sweep(h: House) -> list[str]:
    """One sweep, and the ids of what it published."""
    before = len(h.publisher.fallen_back)
    await MemoryLease(h.store, h.clock, "n1", "b1").claim()
    h.store.nodes["n1"].steady_since -= 10
    await h.settlement.fallbacks.sweep()
    return [one.row.key.push_id for one in h.publisher.fallen_back[before:]]


def row(h: House, push_id: str = "p1", user: str = "u1") -> Row:
    return h.store.rows[RowKey("", push_id, user)]


async def test_what_nobody_has_proven_is_published_once_with_its_data_when_its_time_has_come() -> None:
    async with house() as h:
        await h.push(to("u1", fallback=MAIL, event="order", meta={"k": "v"}))
        await h.settled(1)
        assert h.end("p1") == (Outcome.OFFLINE, Reason.NO_SESSION)
        assert row(h).payload == b'{"n": 1}'
        h.advance(59)
        assert await sweep(h) == []
        h.advance(3)
        assert await sweep(h) == ["p1"]
        (one,) = h.publisher.fallen_back
        assert (one.routing_key, one.row.payload, one.row.meta) == ("mail", b'{"n": 1}', b'{"k":"v"}')
        assert row(h).payload is None, "it is not needed any more"
        h.advance(3600)
        assert await sweep(h) == []


async def test_a_proof_in_time_leaves_nothing_in_the_row() -> None:
    async with house() as h:
        peer = await h.live("u1")
        await h.push(to("u1", fallback=MAIL))
        peer.answer()
        await h.settled(1)
        assert h.end("p1") == (Outcome.RECEIVED, Reason.PONG)
        assert (row(h).payload, row(h).fallback_due) == (None, None)
        h.advance(120)
        assert await sweep(h) == []


async def test_handed_over_is_enough_only_where_no_more_was_asked_for() -> None:
    async with house(confirm_timeout=5) as h:
        await h.live("u1")
        await h.push(to("u1", "written", fallback=MAIL, confirm="written"))
        await h.push(to("u1", "received", fallback=MAIL))
        h.advance(6)
        await h.settled(2)
        assert h.end("received") == (Outcome.UNKNOWN, Reason.NO_PROOF)
        h.advance(60)
        assert await sweep(h) == ["received"]


async def test_received_is_enough_where_an_ack_was_asked_for() -> None:
    async with house(confirm_timeout=5) as h:
        peer = await h.live("u1")
        await h.push(to("u1", fallback=MAIL, confirm="acked"))
        peer.answer()
        h.advance(6)
        await h.settled(1)
        assert h.end("p1") == (Outcome.RECEIVED, Reason.NOT_ACKED)
        h.advance(60)
        assert await sweep(h) == []


async def test_a_late_proof_cancels() -> None:
    async with house(confirm_timeout=5) as h:
        peer = await h.live("u1")
        await h.push(to("u1", fallback=MAIL))
        h.advance(5.5)
        await h.settled(1)
        assert h.end("p1") == (Outcome.UNKNOWN, Reason.NO_PROOF)
        assert row(h).payload is not None
        peer.answer()
        h.worklist.sweep()
        await turns(20)
        assert row(h).late_at is not None
        assert (row(h).payload, row(h).fallback_due) == (None, None)


async def test_a_proof_whose_row_is_not_written_yet_holds_it_back() -> None:
    async with house(confirm_timeout=120) as h:
        peer = await h.live("u1")
        await h.push(to("u1", fallback=MAIL))
        h.advance(2)
        await h.settled(1)
        assert h.end("p1")[0] is Outcome.PENDING
        h.advance(62)
        peer.answer()
        # No turn of the loop has come since: the row still says that it is pending and due.
        assert row(h).fallback_due is not None
        assert await sweep(h) == []
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)
        h.advance(60)
        assert await sweep(h) == []


async def test_a_kept_push_keeps_its_data_for_its_user() -> None:
    async with house() as h:
        await h.push(kept("u1", fallback=MAIL))
        await h.settled(1)
        h.advance(62)
        assert await sweep(h) == ["p1"]
        assert h.end("p1") == (Outcome.STORED, Reason.NO_SESSION)
        peer = await h.live("u1")
        assert [p["id"] for p in peer.pushes] == ["p1"]


async def test_a_proof_of_a_kept_push_cancels_whoever_sends_it() -> None:
    async with house() as h:
        await h.push(kept("u1", fallback=MAIL))
        await h.settled(1)
        peer = await h.live("u1")
        peer.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)
        assert row(h).fallback_due is None
        h.advance(62)
        assert await sweep(h) == []


async def test_an_expired_push_keeps_it_due() -> None:
    async with house() as h:
        await h.push(kept("u1", ttl=10, fallback=MAIL))
        await h.settled(1)
        h.advance(11)
        await h.core.mailbox_sweep.sweep()
        assert h.end("p1") == (Outcome.EXPIRED, Reason.TTL)
        h.advance(60)
        assert await sweep(h) == ["p1"]
        (one,) = h.publisher.fallen_back
        assert (one.row.outcome, one.row.payload) == (Outcome.EXPIRED, b'{"n": 1}')


async def test_a_newer_push_with_its_collapse_key_and_a_recall_cancel() -> None:
    async with house() as h:
        await h.push(kept("u1", "k1", fallback=MAIL, collapse_key="c"))
        await h.push(to("u1", "o1", fallback=MAIL, collapse_key="d"))
        await h.push(kept("u1", "k2", collapse_key="c"))
        await h.push(to("u1", "o2", collapse_key="d"))
        await h.push(kept("u1", "r1", fallback=MAIL))
        await h.push(to("u1", "r2", fallback=MAIL))
        await h.push(to("u1", "r3", fallback=MAIL, collapse_key="e"))
        await h.settled(7)
        assert h.end("k1")[0] is Outcome.SUPERSEDED
        assert h.end("o1")[0] is Outcome.OFFLINE
        for recall in (Recall(push_id="r1"), Recall(push_id="r2"), Recall(user="u1", collapse_key="e")):
            await h.core.recalls.recall(recall)
        h.advance(120)
        assert await sweep(h) == []


async def test_each_user_has_one_and_a_push_that_found_no_user_has_none() -> None:
    async with house() as h:
        await h.push(to("u1", to={"users": ["u1", "u2"]}, fallback=MAIL))
        await h.push(to("u1", "all", to={"all": True}, fallback=MAIL))
        await h.push(to("u1", "session", to={"session": "nowhere"}, fallback=MAIL))
        h.advance(3)
        await h.settled(3)
        h.advance(120)
        await sweep(h)
        published = [(one.row.key.push_id, one.row.key.user) for one in h.publisher.fallen_back]
        assert sorted(published) == [("p1", "u1"), ("p1", "u2")]


async def test_bytes_go_as_they_came() -> None:
    async with house() as h:
        headers = {"x-push-user": "u1", "x-push-fallback-after": "60", "x-push-fallback-key": "k"}
        await h.take(arrival(b"\xff\x00", headers=headers, message_id="p1", arrived_at=h.clock.now))
        await h.settled(1)
        h.advance(62)
        assert await sweep(h) == ["p1"]
        (one,) = h.publisher.fallen_back
        assert (one.row.payload, one.row.encoding) == (b"\xff\x00", Encoding.BYTES)


async def test_while_the_broker_takes_nothing_it_stays_owed_and_nobody_has_claimed_it() -> None:
    async with house() as h:
        await h.push(to("u1", fallback=MAIL))
        await h.settled(1)
        h.advance(62)
        h.publisher.blocked = True
        assert await sweep(h) == []
        assert h.store.fallbacks.claims == {}
        h.publisher.blocked, h.publisher.refusing = False, True
        assert await sweep(h) == []
        assert h.store.fallbacks.claims == {}, "another node may try it"
        h.publisher.refusing = False
        assert await sweep(h) == [], "not at once again"
        h.advance(7)
        assert await sweep(h) == ["p1"]


async def test_what_could_not_be_noted_is_noted_later_and_not_published_again() -> None:
    async with house() as h:
        await h.push(to("u1", fallback=MAIL))
        await h.settled(1)
        h.advance(62)
        note = h.store.note_fallbacks

        async def refuse(boot: str, rows: object) -> list[RowKey]:
            raise StatementFailed("a trigger")

        h.store.note_fallbacks = refuse  # type: ignore[method-assign]
        assert await sweep(h) == ["p1"]
        assert await sweep(h) == []
        assert row(h).fallback_due is not None
        h.store.note_fallbacks = note  # type: ignore[method-assign]
        assert await sweep(h) == []
        assert row(h).fallback_due is None
        assert [where for _, where in h.errors.seen] == ["store.note_fallbacks"] * 2


async def test_many_are_published_in_one_sweep() -> None:
    async with house() as h:
        users = [f"u{n:04}" for n in range(1200)]
        await h.push(to("u1", to={"users": users}, fallback=MAIL))
        await h.settled(1)
        h.advance(62)
        assert len(await sweep(h)) == 1200
        assert h.metrics.fallen == 1200
