"""Revocations on the real core with its ports in memory: sessions close, their pushes end truly, tokens are refused."""

from __future__ import annotations

import asyncio
import json

import pytest

from bridge.core.delivery.revoking import CAUSE, READ_EVERY
from bridge.core.errors import StatementFailed, StoreUnavailable
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.revocations import Revocation, RevocationAnswer
from bridge.core.model.sessions import Claims, CloseReason, Grant, Handshake, Mode, Refusal
from bridge.core.ports.revocations import RevocationPage
from bridge.core.sessions.revoked import LONG_LIVED, REVOKED, UNREAD, Revoked
from tests.support.house import TOKEN_SECONDS, House, Peer, house, kept, to
from tests.support.waiting import until

DAY = 86400.0


def come(h: House, user: str = "u1", *, issued_at: float | None = 100.0, token_id: str = "t1") -> Peer:
    return h.open(Grant(Claims(user, 4e9, token_id, issued_at), Mode.ENVELOPE, Mode.ENVELOPE.value))


def later(h: House) -> bool:
    h.clock.advance(READ_EVERY)
    return True


def closes(peer: Peer) -> CloseReason | None:
    return peer.socket.closed_with


async def test_a_user_s_older_tokens_lose_their_sessions_and_newer_ones_keep_theirs() -> None:
    async with house() as h:
        older, newer = come(h, issued_at=100.0), come(h, issued_at=200.0, token_id="t2")
        undated, other = come(h, issued_at=None, token_id="t3"), come(h, "u2", token_id="t4")
        answer = await h.core.revoking.revoke(Revocation(user="u1", before=200.0))
        assert (answer.sessions, answer.nodes, answer.silent) == (2, ("n1",), ())
        assert [closes(p) for p in (older, undated)] == [CloseReason.REVOKED] * 2
        assert [closes(p) for p in (newer, other)] == [None, None]
        assert json.loads(older.socket.texts[-1]) == {
            "type": "bye",
            "code": 4403,
            "reason": "revoked",
            "retry_after": 0.0,
        }


async def test_a_token_loses_all_of_its_sessions_and_a_session_its_token() -> None:
    async with house() as h:
        first, again, other = come(h), come(h), come(h, token_id="t2")
        assert (await h.core.revoking.revoke(Revocation(token_id="t1"))).sessions == 2
        assert [closes(p) for p in (first, again, other)] == [CloseReason.REVOKED, CloseReason.REVOKED, None]
        assert (await h.core.revoking.revoke(Revocation(session=other.client.session.id))).sessions == 1
        assert h.core.revoked.covers(other.client.session.claims)


async def test_a_session_that_another_node_was_told_to_close_gives_its_token_away_here() -> None:
    async with house() as h:
        peer = come(h)
        # The node that was asked does not have this session, so it could not name the token.
        await h.revocations.revoke(Revocation(session=peer.client.session.id))
        await h.core.revoking.read()
        await h.core.revoking.confirm()
        assert closes(peer) is CloseReason.REVOKED
        found = (await h.revocations.after(0, 10)).revocations
        learned = Revocation(token_id="t1", session=peer.client.session.id)
        assert learned in [one.revocation for one in found], "all other nodes refuse it too"


async def test_what_waits_for_a_revoked_session_does_not_go_out_and_is_kept_if_it_has_a_ttl() -> None:
    async with house() as h:
        peer = come(h)
        await until(lambda: peer.client.session.replay is None)
        peer.socket.stuffed = True
        await h.push(to("u1", "p1"))
        await h.push(kept("u1", "p2"))
        sent = len(peer.socket.frames)
        peer.socket.stuffed = False
        await h.core.revoking.revoke(Revocation(user="u1", before=200.0))
        await h.ends("p1", Outcome.DROPPED, Reason.REVOKED)
        await h.ends("p2", Outcome.STORED, Reason.REVOKED)
        assert [json.loads(text)["type"] for text in peer.socket.texts[sent:]] == ["bye"]
        back = come(h, issued_at=300.0, token_id="t2")
        await until(lambda: any(b'"p2"' in text for text in back.socket.texts))


async def test_a_push_that_another_session_of_the_user_has_is_proven_by_that_one() -> None:
    async with house() as h:
        leaves, stays = come(h), come(h, issued_at=300.0, token_id="t2")
        await until(lambda: stays.client.session.replay is None)
        leaves.socket.stuffed = True
        await h.push(to("u1", "p1"))
        await h.core.revoking.revoke(Revocation(token_id="t1"))
        stays.client.pong(stays.socket.pings[-1])
        await h.ends("p1", Outcome.RECEIVED, Reason.PONG)


async def test_bytes_that_the_kernel_has_not_taken_are_aborted_and_prove_nothing() -> None:
    async with house() as h:
        peer = come(h)
        await until(lambda: peer.client.session.replay is None)
        await h.push(to("u1", "p1"))
        peer.socket.buffered_bytes = 10
        await h.core.revoking.revoke(Revocation(token_id="t1"))
        assert (peer.socket.aborted, closes(peer)) == (True, None)
        peer.client.closed(1006, "")
        await h.ends("p1", Outcome.UNKNOWN, Reason.CONNECTION_LOST)


async def test_a_revocation_in_the_middle_of_a_replay_ends_it() -> None:
    async with house() as h:
        for n in range(3):
            await h.push(kept("u1", f"p{n}"))
        h.store.reading.clear()  # type: ignore[attr-defined]
        peer = come(h)
        await until(lambda: h.store.reads > 0)  # type: ignore[attr-defined]
        await h.core.revoking.revoke(Revocation(token_id="t1"))
        sent = len(peer.socket.frames)
        h.store.reading.set()  # type: ignore[attr-defined]
        h.advance(2.0)
        assert len(peer.socket.frames) == sent
        assert closes(peer) is CloseReason.REVOKED


async def test_a_session_whose_token_was_revoked_during_its_handshake_is_closed_before_it_gets_anything() -> (
    None
):
    async with house() as h:
        await h.push(kept("u1", "p1"))
        await h.core.revoking.revoke(Revocation(token_id="t1"))
        peer = come(h)
        assert closes(peer) is CloseReason.REVOKED
        h.advance(2.0)
        assert [json.loads(text)["type"] for text in peer.socket.texts] == ["bye"]
        peer.client.closed(4403, "revoked")
        assert [info for info, *_ in h.hooks.closed] == h.hooks.opened


def asked(h: House) -> Grant | Refusal:
    answer = h.gateway.handshake(Handshake("/ws", {"token": ["u1"]}, None, None, ()))
    assert isinstance(answer, Grant | Refusal)
    return answer


async def test_a_revoked_token_opens_nothing_and_nobody_comes_in_before_revocations_are_read() -> None:
    async with house() as h:
        h.core.revoked.read = False
        h.core.revoked.token_seconds = 1e10
        assert asked(h) is UNREAD
        await h.core.revoking.begin()
        assert isinstance(asked(h), Grant)
        await h.core.revoking.revoke(Revocation(user="u1", before=1.0))
        assert asked(h) is REVOKED


@pytest.mark.parametrize(
    ("issued_at", "expires_at", "answer"),
    [
        (1_000.0, 1_000.0 + DAY, None),
        (1_000.0, 1_001.0 + DAY, LONG_LIVED),
        (2_000.0, 2_000.0 + DAY, LONG_LIVED),  # issued after now: its life counts from now
        (None, 1_000.0 + DAY, None),
        (None, 1_001.0 + DAY, LONG_LIVED),
    ],
)
def test_a_token_that_outlives_every_revocation_is_refused(
    issued_at: float | None, expires_at: float, answer: Refusal | None
) -> None:
    revoked = Revoked(DAY)
    revoked.read = True
    assert revoked.refusal(Claims("u1", expires_at, "t1", issued_at), 1_000.0) is answer


def test_revocations_are_forgotten_when_no_token_that_they_mean_can_be_valid() -> None:
    revoked = Revoked(DAY)
    revoked.note(Revocation(user="u1", before=10.0), 100.0)
    revoked.note(Revocation(token_id="t1"), 110.0)
    revoked.note(Revocation(user="u2", before=20.0), 120.0)
    revoked.note(Revocation(user="u1", before=5.0), 130.0)
    revoked.forget(125.0)
    assert len(revoked) == 1
    assert revoked.covers(Claims("u1", 4e9, "", 9.0)), "the later time counts"
    revoked.forget(130.0)
    assert len(revoked) == 0


async def test_a_node_that_may_have_missed_revocations_takes_no_pushes_until_it_has_read_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house() as h:
        peer = come(h)
        after = h.revocations.after

        async def unreachable(mark: int, limit: int) -> RevocationPage:
            raise StoreUnavailable("the database is away")

        monkeypatch.setattr(h.revocations, "after", unreachable)
        async with h.running(h.core.revoking):
            await until(lambda: later(h) and CAUSE in h.gate)
            await h.revocations.revoke(Revocation(token_id="t1"))
            monkeypatch.setattr(h.revocations, "after", after)
            await until(lambda: later(h) and CAUSE not in h.gate)
            assert closes(peer) is CloseReason.REVOKED


async def test_thousands_of_revocations_are_read_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.core.delivery.revoking.PAGE", 10)
    async with house() as h:
        for n in range(35):
            await h.revocations.revoke(Revocation(token_id=f"t{n}"))
        peers = [come(h, token_id=f"t{n}") for n in range(40)]
        await h.core.revoking.read()
        assert [closes(p) is CloseReason.REVOKED for p in peers] == [True] * 35 + [False] * 5
        assert len(h.core.revoked) == 35


def test_the_tests_tokens_live_as_long_as_the_default_allows() -> None:
    assert TOKEN_SECONDS == 400 * DAY


async def away(*_: object) -> None:
    raise StatementFailed("a row is locked by another session")


async def test_a_node_that_cannot_confirm_works_on_says_so_and_confirms_when_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house() as h:
        peer = come(h)
        mark = await h.revocations.revoke(Revocation(token_id="t1"))
        async with h.running(h.core.revoking):
            with monkeypatch.context() as held:
                held.setattr(h.revocations, "confirm", away)
                await until(lambda: later(h) and bool(h.errors.seen))
                assert closes(peer) is CloseReason.REVOKED
                assert CAUSE not in h.gate, "it has missed nothing"
                assert (await h.revocations.answer(mark)).silent == ("n1",)
            confirmed = RevocationAnswer(1, ("n1",), ())
            async with asyncio.timeout(10):
                while later(h) and await h.revocations.answer(mark) != confirmed:
                    await asyncio.sleep(0)


async def test_a_revocation_that_cannot_be_confirmed_is_answered_with_this_node_as_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house() as h:
        peer = come(h)
        monkeypatch.setattr(h.revocations, "confirm", away)
        asked = asyncio.create_task(h.core.revoking.revoke(Revocation(token_id="t1")))
        await until(lambda: later(h) and asked.done())
        assert (await asked).silent == ("n1",)
        assert closes(peer) is CloseReason.REVOKED


async def test_a_token_that_could_not_be_committed_is_committed_as_soon_as_it_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with house() as h:
        peer = come(h)
        mark = await h.revocations.revoke(Revocation(session=peer.client.session.id))
        with monkeypatch.context() as held:
            held.setattr(h.revocations, "revoke", away)
            await h.core.revoking.read()
            with pytest.raises(StatementFailed):
                await h.core.revoking.confirm()
        assert closes(peer) is CloseReason.REVOKED
        await h.core.revoking.confirm()
        found = (await h.revocations.after(0, 10)).revocations
        learned = Revocation(token_id="t1", session=peer.client.session.id)
        assert learned in [one.revocation for one in found]
        assert (await h.revocations.answer(mark)).sessions == 1


def test_a_revocation_for_all_time_does_not_keep_those_behind_it_in_memory() -> None:
    revoked = Revoked(DAY)
    revoked.note(Revocation(user="banned", before=9e9), 9e9 + DAY)
    for n in range(10):
        revoked.note(Revocation(user=f"u{n}", before=10.0), 100.0 + n)
    revoked.forget(200.0)
    revoked.forget(200.0)
    assert len(revoked) == 1
    assert revoked.covers(Claims("banned", 4e9, "", 100.0))
