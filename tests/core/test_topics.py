"""Pushes to topics: who is subscribed gets them, here and at other nodes, and who has just left finds them kept."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from bridge.core.contract.letters import Forwarded, decode_letter
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.errors import RowsRefused
from bridge.core.model.ledger import Entries, Noted
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.sessions import Claims, Grant, Mode
from bridge.core.sessions.subscriptions import TOPICS_MAX, UNANSWERED_MAX
from tests.support.house import House, Peer, house
from tests.support.town import town
from tests.support.waiting import until

LIMITS = DeliveryLimits(start_grace=0.0, topic_linger=100.0)


async def come(
    h: House, user: str, *topics: str, may: Sequence[str] = ("#",), mode: Mode = Mode.ENVELOPE
) -> Peer:
    """A session whose token names these topics, and permits by frames what `may` says."""
    peer = h.open(Grant(Claims(user, 4e9, topics=topics, subscribe=tuple(may)), mode, mode.value))
    await until(lambda: mode is Mode.BARE or peer.client.session.spoken_at is not None)
    await until(lambda: peer.client.session.replay is None)
    return peer


def said(peer: Peer) -> list[dict[str, object]]:
    return [json.loads(text) for text in peer.socket.texts]


def answers(peer: Peer) -> list[object]:
    """What has come about frames: `ok`, or the code of an error."""
    return [one.get("code", "ok") for one in said(peer) if one["type"] in ("ok", "error")]


async def asks(peer: Peer, word: str, topic: str) -> object:
    """Send a frame about a topic; returns its answer."""
    before = len(answers(peer))
    peer.client.message(json.dumps({"type": word, "topic": topic, "ref": before}))
    await until(lambda: len(answers(peer)) > before)
    return answers(peer)[before]


def ids(peer: Peer) -> list[object]:
    return [one["id"] for one in said(peer) if one["type"] == "push"]


def to(topic: str, push_id: str, **more: object) -> dict[str, object]:
    return {"id": push_id, "to": {"topic": topic}, "data": 1, **more}


async def test_subscribers_get_it_with_its_topic_and_have_a_row_each() -> None:
    async with house() as h:
        one, two, other = [await come(h, user) for user in ("u1", "u2", "u3")]
        for peer in (one, two):
            assert await asks(peer, "subscribe", "room.7") == "ok"
        await h.push(to("room.7", "p1"))
        assert [ids(peer) for peer in (one, two, other)] == [["p1"], ["p1"], []]
        assert said(one)[-1]["topic"] == "room.7"
        one.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG, "u1")
        two.leave()
        await h.ends("p1", Outcome.UNKNOWN, Reason.CONNECTION_LOST, "u2")


async def test_a_token_that_names_topics_subscribes_at_once_in_every_mode() -> None:
    async with house() as h:
        peer = await come(h, "u1", "news", mode=Mode.BARE, may=())
        await h.push(to("news", "p1"))
        assert peer.socket.texts == [b"1"]


async def test_what_no_claim_permits_is_refused() -> None:
    async with house() as h:
        peer = await come(h, "u1", may=("room.*", "of.{user}.#"))
        assert await asks(peer, "subscribe", "news") == "forbidden"
        assert await asks(peer, "subscribe", "of.u2.x") == "forbidden"
        assert await asks(peer, "subscribe", "room.7") == "ok"
        assert await asks(peer, "subscribe", "of.u1.x.y") == "ok"
        await h.push([to("news", "p1"), to("room.7", "p2"), to("of.u1.x.y", "p3")])
        assert ids(peer) == ["p2", "p3"]


async def test_nobody_is_subscribed() -> None:
    async with house() as h:
        peer = await come(h, "u1", "sports")
        await asks(peer, "unsubscribe", "sports")
        await h.push(to("sports", "p1"))
        await h.ends("p1", Outcome.OFFLINE, Reason.NOBODY, "")
        assert ids(peer) == []


async def test_only_the_sessions_that_are_subscribed_get_it() -> None:
    async with house() as h:
        tab, other = await come(h, "u1", "t"), await come(h, "u1")
        await h.push(to("t", "p1", confirm="written"))
        assert (ids(tab), ids(other)) == (["p1"], [])
        await h.push({**to("t", "p2"), "to": {"topic": "t", "except": [tab.session_id]}})
        await h.ends("p2", Outcome.OFFLINE, Reason.EXCLUDED)


async def test_the_answer_waits_for_the_commit_and_comes_for_each_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with town("a", limits=LIMITS) as (made, [h]):
        peer = await come(h, "u1")
        note, entries = made.sessions.note, list[Entries]()

        async def watched(some: Entries) -> Noted:
            entries.append(some)
            assert answers(peer) == []
            return await note(some)

        monkeypatch.setattr(made.sessions, "note", watched)
        for word in ("subscribe", "unsubscribe", "subscribe"):
            peer.client.message(json.dumps({"type": word, "topic": "t", "ref": 1}))
        await until(lambda: answers(peer) == ["ok"] * 3)
        assert [one.on for some in entries for one in some.subscribed] == [True]


async def test_a_client_that_does_not_read_at_the_moment_has_its_answer_later() -> None:
    async with town("a", limits=LIMITS) as (made, [h]):
        peer = await come(h, "u1")
        peer.socket.stuffed = True
        peer.client.message('{"type":"subscribe","topic":"t","ref":1}')
        await until(lambda: len(made.sessions.subscriptions) == 1 and not h.core.ledger.ready)
        await h.push(to("t", "p1"))
        assert (answers(peer), ids(peer)) == ([], [])
        peer.socket.stuffed = False
        peer.client.became_writable()
        assert (answers(peer), ids(peer)) == (["ok"], ["p1"])


async def test_a_client_that_does_not_wait_for_answers_is_told_to() -> None:
    async with town("a", limits=LIMITS) as (_, [h]):
        peer = await come(h, "u1")
        for _ in range(UNANSWERED_MAX + 1):
            peer.client.message('{"type":"subscribe","topic":"t"}')
        assert answers(peer) == ["try_later"]
        await until(lambda: len(answers(peer)) == UNANSWERED_MAX + 1)


async def test_a_session_has_so_many_topics_and_no_more() -> None:
    async with house() as h:
        peer = await come(h, "u1", *(f"t{n}" for n in range(TOPICS_MAX)))
        assert await asks(peer, "subscribe", "t0") == "ok"
        assert await asks(peer, "subscribe", "more") == "over_limit"
        await asks(peer, "unsubscribe", "t0")
        assert await asks(peer, "subscribe", "more") == "ok"


async def test_a_subscription_that_the_database_refuses_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async with town("a", limits=LIMITS) as (made, [h]):
        peer = await come(h, "u1")

        async def refuses(some: Entries) -> Noted:
            raise RowsRefused("22000", "not this one")

        monkeypatch.setattr(made.sessions, "note", refuses)
        assert await asks(peer, "subscribe", "t") == "try_later"
        await h.push(to("t", "p1"))
        assert ids(peer) == []


async def test_what_is_kept_is_also_for_users_who_have_just_left() -> None:
    async with town("a", limits=LIMITS) as (made, [h]):
        here, gone, off = [await come(h, user, "t") for user in ("u1", "u2", "u3")]
        await asks(off, "unsubscribe", "t")
        for peer in (gone, off):
            peer.leave()
        # The ledger does not say yet that it has left, then it does.
        await h.push(to("t", "p1", ttl=60))
        await until(lambda: len(made.sessions.closed) == 2)
        await h.push([to("t", "p2", ttl=60), to("t", "p3")])
        assert ids(here) == ["p1", "p2", "p3"]
        for push in ("p1", "p2"):
            await h.ends(push, Outcome.STORED, Reason.NO_SESSION, "u2")
        assert not any(row.key.user == "u3" or row.key == ("", "p3", "u2") for row in h.store.rows.values())
        back = await h.live("u2")
        assert ids(back) == ["p1", "p2"]
        assert {one.get("topic") for one in said(back) if one["type"] == "push"} == {"t"}


async def test_who_is_back_and_has_not_subscribed_again_misses_nothing() -> None:
    async with town("a", limits=LIMITS) as (made, [h]):
        gone = await come(h, "u1", "t")
        gone.leave()
        await until(lambda: len(made.sessions.closed) == 1)
        back = await come(h, "u1")
        await h.push(to("t", "p1", ttl=60))
        assert ids(back) == ["p1"]
        assert await asks(back, "subscribe", "t") == "ok"
        await h.push(to("t", "p2", ttl=60))
        assert ids(back) == ["p1", "p2"]


async def test_who_left_long_ago_is_no_subscriber() -> None:
    async with town("a", limits=LIMITS) as (made, [h]):
        gone = await come(h, "u1", "t")
        gone.leave()
        await until(lambda: len(made.sessions.closed) == 1)
        h.clock.advance(100.0)
        await h.core.revoking.read()
        await h.push(to("t", "p1", ttl=60))
        await h.ends("p1", Outcome.OFFLINE, Reason.NOBODY, "")


async def test_a_new_token_that_does_not_permit_a_topic_ends_its_subscription() -> None:
    async with house() as h:
        peer = await come(h, "u1", "a", "b")
        session = peer.client.session
        session.claims = Claims("u1", 5e9, topics=("b", "c"))
        h.core.presence.refreshed(session)
        assert answers(peer) == ["forbidden"]
        assert "topic: the new token does not permit a," in str(said(peer)[-1]["message"])
        await h.push([to(topic, f"to-{topic}") for topic in "abc"])
        assert ids(peer) == ["to-b", "to-c"]


async def test_subscribers_at_other_nodes_get_it_and_nobody_else_there() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        here, there, other = await come(a, "u1", "t"), await come(b, "u2", "t"), await come(b, "u3")
        tab, both = await come(b, "u2"), [await come(h, "u4", "t") for h in (a, b)]
        await a.push(to("t", "p1"))
        peers = (here, there, other, tab, *both)
        await until(lambda: [ids(peer) for peer in peers] == [["p1"], ["p1"], [], [], ["p1"], ["p1"]])
        assert said(there)[-1]["topic"] == "t"
        for peer in (here, there, both[1]):
            peer.answer()
        for user in ("u1", "u2", "u4"):
            await a.ends("p1", Outcome.RECEIVED, Reason.PONG, user)


async def test_who_unsubscribes_at_another_node_while_it_is_forwarded_does_not_get_it() -> None:
    async with town("a", "b", limits=LIMITS) as (made, [a, b]):
        there = await come(b, "u1", "t")

        async def before(step: str) -> None:
            if step == "send" and not ids(there):
                b.core.hub.topics.remove(there.client.session, "t")

        made.before = before
        await a.push(to("t", "p1"))
        await a.settled(1)
        assert ids(there) == []
        assert a.row("p1").outcome is Outcome.OFFLINE


async def test_who_has_left_another_node_finds_it_kept_wherever_they_come() -> None:
    async with town("a", "b", "c", limits=LIMITS) as (made, [a, b, c]):
        gone = await come(b, "u1", "t")
        gone.leave()
        await until(lambda: len(made.sessions.closed) == 1)
        await a.push(to("t", "p1", ttl=60))
        await a.ends("p1", Outcome.STORED, Reason.NO_SESSION)
        back = await come(c, "u1")
        await until(lambda: ids(back) == ["p1"])
        await a.push(to("t", "p2", ttl=60))
        await until(lambda: ids(back) == ["p1", "p2"])
        assert said(back)[-1]["topic"] == "t"
        forwards = [
            i for letter in made.letters for i in decode_letter(letter.body).items if isinstance(i, Forwarded)
        ]
        assert [one.topic for one in forwards] == ["t"]


async def test_a_repeat_finds_subscribers_elsewhere_whom_the_first_taking_did_not_reach() -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        first = await come(a, "u1", "t")
        await a.push(to("t", "p1"))
        first.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG)
        first.leave()
        there = await come(b, "u2", "t")
        await a.push(to("t", "p1"))
        await until(lambda: ids(there) == ["p1"])
        there.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG, "u2")
        assert {key.user for key in a.store.rows} == {"u1", "u2"}


@pytest.mark.parametrize("target", [{"topic": "t"}, {"all": True}])
async def test_who_is_excluded_here_gets_it_at_another_node(target: dict[str, object]) -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        sender, tab, alone = await come(a, "u1", "t"), await come(b, "u1", "t"), await come(a, "u2", "t")
        but = [sender.session_id, alone.session_id]
        await a.push({**to("t", "p1"), "to": {**target, "except": but}})
        await until(lambda: ids(tab) == ["p1"])
        tab.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG, "u1")
        await a.ends("p1", Outcome.OFFLINE, Reason.EXCLUDED, "u2")
        assert (ids(sender), ids(alone)) == ([], [])
        assert {key.user for key in a.store.rows} == {"u1", "u2"}


async def test_who_leaves_while_others_are_looked_for_makes_no_row_of_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with town("a", "b", limits=LIMITS) as (_, [a, b]):
        await a.push(to("nobody's", "p0"))
        a.remembered.complete = True  # so the next one takes the short way
        here, there = await come(a, "u1", "t"), await come(b, "u2", "t")
        directory = a.core.ports.directory
        assert directory is not None
        subscribers = directory.subscribers

        async def slow(topic: str, after: str, limit: int, within: float) -> object:
            if here.socket.open:
                here.leave()
            return await subscribers(topic, after, limit, within)

        monkeypatch.setattr(directory, "subscribers", slow)
        await a.push(to("t", "p1"))
        await until(lambda: ids(there) == ["p1"])
        there.answer()
        await a.ends("p1", Outcome.RECEIVED, Reason.PONG, "u2")
        assert [key.user for key in a.store.rows if key.push_id == "p1"] == ["u2"]


async def test_a_new_token_brings_no_more_topics_than_a_session_may_have() -> None:
    async with house() as h:
        peer = await come(h, "u1", *(f"a{n}" for n in range(TOPICS_MAX)), may=("#",))
        session = peer.client.session
        session.claims = Claims("u1", 5e9, topics=("a0", "more"), subscribe=("#",))
        h.core.presence.refreshed(session)
        assert answers(peer) == ["over_limit"]
        assert h.core.hub.topics.count == TOPICS_MAX
