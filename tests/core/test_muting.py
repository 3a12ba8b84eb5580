"""A node that may have missed a revocation sends nothing; what was to be sent follows when it has read them."""

from __future__ import annotations

import pytest

from bridge.core.delivery.revoking import READ_EVERY
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.revocations import Revocation
from bridge.core.model.sessions import Claims, CloseReason, Grant, Mode
from bridge.core.ports.revocations import RevocationPage
from bridge.core.ports.store import LEASE_SECONDS
from bridge.core.sessions.freshness import FRESH_FOR
from tests.support.house import House, Peer, house, to
from tests.support.waiting import until


def come(h: House, user: str, token_id: str) -> Peer:
    return h.open(Grant(Claims(user, 4e9, token_id, 100.0), Mode.BARE, None))


def sent(peer: Peer) -> list[bytes]:
    return peer.socket.texts


def test_a_node_falls_silent_before_its_lease_is_over() -> None:
    assert FRESH_FOR < LEASE_SECONDS


async def test_what_is_taken_while_revocations_are_stale_goes_out_when_they_have_been_read() -> None:
    async with house() as h:
        h.remembered.complete = True  # so a push to everyone takes the short way
        one, all_ = await h.live("u1", Mode.BARE), await h.live("u2", Mode.BARE)
        await h.core.revoking.read()
        h.clock.advance(FRESH_FOR)
        h.core.muting.tick()
        await h.push(to("u1", "p1"))
        await h.push({"id": "p2", "to": {"all": True}, "data": 1})
        assert (sent(one), sent(all_)) == ([], [])
        await h.core.revoking.read()
        h.core.muting.tick()
        assert (len(sent(one)), len(sent(all_))) == (2, 1)


async def test_what_was_not_sent_is_sent_though_nobody_looked_meanwhile() -> None:
    async with house() as h:
        peer = come(h, "u1", "t1")
        await h.core.revoking.read()
        h.clock.advance(FRESH_FOR)
        await h.push(to("u1", "p1"))
        await h.core.revoking.read()
        assert sent(peer) == []
        h.core.muting.tick()
        assert len(sent(peer)) == 1


async def test_a_revocation_that_was_missed_is_carried_out_before_anything_is_sent() -> None:
    async with house() as h:
        revoked, other = come(h, "u1", "t1"), come(h, "u2", "t2")
        await h.core.revoking.read()
        h.clock.advance(FRESH_FOR)
        await h.push([to("u1", "p1"), to("u2", "p2")])
        await h.revocations.revoke(Revocation(token_id="t1"))
        await h.core.revoking.read()
        h.core.muting.tick()
        assert revoked.socket.closed_with is CloseReason.REVOKED
        assert (sent(revoked), len(sent(other))) == ([], 1)


async def test_what_a_socket_still_holds_is_thrown_away_and_whoever_has_read_all_stays() -> None:
    async with house() as h:
        slow, good = come(h, "u1", "t1"), come(h, "u2", "t2")
        await h.core.revoking.read()
        await h.push([to("u1", "p1"), to("u2", "p2")])
        slow.socket.buffered_bytes = 10
        h.clock.advance(FRESH_FOR)
        h.core.muting.tick()
        assert (slow.socket.aborted, good.socket.open) == (True, True)
        assert slow.client.session.close_reason is CloseReason.CUT_OFF


async def test_a_pong_still_proves_what_was_sent_before() -> None:
    async with house() as h:
        peer = come(h, "u1", "t1")
        await h.core.revoking.read()
        await h.push(to("u1", "p1"))
        h.clock.advance(FRESH_FOR)
        h.core.muting.tick()
        peer.answer()
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)


async def test_what_was_read_is_as_old_as_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house() as h:
        peer = await h.live("u1", Mode.BARE)
        after = h.revocations.after

        async def slow(mark: int, limit: int) -> RevocationPage:
            page = await after(mark, limit)
            h.clock.advance(FRESH_FOR)
            return page

        monkeypatch.setattr(h.revocations, "after", slow)
        await h.core.revoking.read()
        await h.push(to("u1", "p1"))
        assert sent(peer) == []


async def test_whoever_reads_revocations_is_never_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    async with house() as h:
        peer = come(h, "u1", "t1")
        after, began = h.revocations.after, h.clock.mono

        async def slow(mark: int, limit: int) -> RevocationPage:
            page = await after(mark, limit)
            h.clock.advance(FRESH_FOR / 2)
            return page

        monkeypatch.setattr(h.revocations, "after", slow)
        async with h.running(h.core.revoking):

            def later() -> bool:
                h.clock.advance(READ_EVERY)
                h.core.muting.tick()
                return h.clock.mono > began + 10 * FRESH_FOR

            await until(later)
        assert not h.core.freshness.was_stale
        assert peer.socket.open


def seen_as(h: House, monkeypatch: pytest.MonkeyPatch, *, unseen_for: float, ended: tuple[str, ...]) -> None:
    """What the log tells this node of its lease and its sessions from now on."""
    after = h.revocations.after

    async def told(mark: int, limit: int) -> RevocationPage:
        return (await after(mark, limit))._replace(unseen_for=unseen_for, ended_at=1.0 if ended else None)

    async def which() -> tuple[str, ...]:
        return ended

    monkeypatch.setattr(h.revocations, "after", told)
    monkeypatch.setattr(h.revocations, "ended", which)


async def test_sessions_that_others_have_ended_get_nothing_of_what_has_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house() as h:
        ended, open_ = await h.live("u1", Mode.BARE), await h.live("u2", Mode.BARE)
        await h.core.revoking.read()
        h.clock.advance(FRESH_FOR)
        await h.push([to("u1", "p1"), to("u2", "p2")])
        seen_as(h, monkeypatch, unseen_for=0.0, ended=(ended.session_id, "closed-already"))
        await h.core.revoking.read()
        h.core.muting.tick()
        assert (sent(ended), len(sent(open_))) == ([], 1)
        assert ended.socket.closed_with is CloseReason.VANISHED


async def test_a_node_sends_nothing_for_longer_than_its_lease_was_renewed_though_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house() as h:
        peer = await h.live("u1", Mode.BARE)
        seen_as(h, monkeypatch, unseen_for=FRESH_FOR - 1, ended=())
        await h.core.revoking.read()
        await h.push(to("u1", "p1"))
        assert len(sent(peer)) == 1
        h.clock.advance(1.0)
        await h.push(to("u1", "p2"))
        assert len(sent(peer)) == 1, "others may have ended its sessions by now"
        seen_as(h, monkeypatch, unseen_for=0.0, ended=())
        await h.core.revoking.read()
        h.core.muting.tick()
        assert len(sent(peer)) == 2
