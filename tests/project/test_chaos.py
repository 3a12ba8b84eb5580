"""The machine that tries to break the promises: that its checker sees each break, and a short run of it."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.chaos import run, stories
from benchmarks.chaos.broker import Envelope, Requests
from benchmarks.chaos.checker import Broken, check
from benchmarks.chaos.commits import CommitCutter, Cut
from benchmarks.chaos.errors import NotPossible
from benchmarks.chaos.evidence import (
    Depth,
    Evidence,
    Fate,
    Mute,
    Recall,
    Receipt,
    Request,
    Row,
    RowKey,
    Session,
    Showing,
    Tab,
    To,
    subscribes,
)
from benchmarks.chaos.fault import FAULTS, fault
from benchmarks.chaos.faults_mixed import PARTS, dealt
from benchmarks.chaos.faults_process import deadly
from benchmarks.chaos.proxy import Link, Proxy
from benchmarks.chaos.stage import SHORT, Stage, play
from benchmarks.listening import listening
from bridge.core.settlement.paying import Paying
from bridge.devservers import Servers

SEED = 7


# --- the checker ---


def pushed(mark: str = "m1", *users: str, **more: object) -> Request:
    """A confirmed request to these users."""
    known: dict[str, object] = {"users": frozenset(users or ("u1",)), "copies": 1, "confirmed": 1}
    return Request(mark, f"p-{mark}", **{**known, **more})  # type: ignore[arg-type]


def row(request: Request, user: str | None, outcome: str, reason: str = "r", **more: object) -> Row:
    """A final row that owes nothing."""
    key = RowKey(request.tenant, request.push_id, user)
    return Row(key, outcome, reason, **{"final": True, "owed": False, **more})  # type: ignore[arg-type]


def evidence(*requests: Request, rows: list[Row] | None = None) -> Evidence:
    """A run in which all went well: each user of each request has the push, and said so."""
    made = Evidence(requests={r.mark: r for r in requests})
    made.queues = {"push.requests": Depth(0, 0), "push.fallen": Depth(0, 0)}
    if rows is None:
        rows = []
        for request in requests:
            if request.fate is Fate.REJECTED:
                rows.append(row(request, None, "rejected"))
                made.dead[request.mark] += 1
            for user in sorted(request.users):
                rows.append(row(request, user, "received"))
                made.shown[user, request.mark] = shown()
    made.rows = rows
    for each in rows:
        announce(made, each)
    return made


def kept(mark: str = "m1", user: str = "u1", at: float = 0.0, **more: object) -> Request:
    """A confirmed request that is kept for long, published at one second and confirmed half of one later."""
    known: dict[str, object] = {"ttl": 7200.0, "first_published": at, "first_confirmed": at + 0.5}
    return pushed(mark, user, **{**known, **more})


def tab(user: str, *marks: str, **more: object) -> Tab:
    """A client that stays, and has read these on its first connection."""
    return Tab(user, [(1, mark, 9.0) for mark in marks], **more)  # type: ignore[arg-type]


def announce(made: Evidence, of: Row) -> None:
    made.announced[of.key][Receipt(of.outcome, of.reason, of.final)] += 1


def shown(times: int = 1, *, ponged: bool = True, acked: bool = False, session: str = "s1") -> Showing:
    return Showing(Counter({0: times}), {session}, ponged, acked)


def kinds(made: Evidence) -> list[Broken]:
    return [v.kind for v in check(made).violations]


def test_a_run_in_which_all_went_well_breaks_nothing_and_is_counted() -> None:
    made = evidence(
        pushed("m1", "u1", "u2"),
        pushed("m2", replies={"c1"}),
        pushed("m3", fate=Fate.REJECTED, users=frozenset()),
        pushed("m4", confirmed=0),
    )
    made.replied["c1"][made.rows[2].key, Receipt("received", "r", True)] += 1
    made.shown["u1", "m1"] = shown(3)
    announce(made, made.rows[0])
    verdict = check(made)
    assert verdict.violations == []
    assert (verdict.published, verdict.unconfirmed, verdict.final_rows) == (3, 1, 5)
    assert (verdict.wire_duplicates, verdict.receipt_duplicates) == (2, 1)
    assert (verdict.lost, verdict.false, verdict.wrong) == (0, 0, 0)


def test_a_confirmed_push_without_a_row_is_lost() -> None:
    made = evidence(pushed(), rows=[])
    assert kinds(made) == [Broken.LOST]
    assert check(made).lost == 1


def test_one_of_several_users_without_a_row_is_lost() -> None:
    request = pushed("m1", "u1", "u2")
    made = evidence(request, rows=[row(request, "u1", "offline")])
    assert kinds(made) == [Broken.LOST]


def test_what_was_never_confirmed_may_be_missing_and_what_a_deleted_queue_held_as_well() -> None:
    assert kinds(evidence(pushed("m1", confirmed=0), pushed("m2", excused="deleted"), rows=[])) == []


def test_two_final_rows_for_one_push_and_user_are_seen() -> None:
    request = pushed()
    twice = [row(request, "u1", "offline"), row(request, "u1", "offline")]
    assert kinds(evidence(request, rows=twice)) == [Broken.TWICE]


def test_a_push_to_a_session_ends_once_whoever_had_the_session() -> None:
    request = pushed(to=To.SESSION, session="s1")
    both = [row(request, "u1", "offline"), row(request, None, "offline")]
    assert kinds(evidence(request, rows=both)) == [Broken.TWICE]
    assert kinds(evidence(request, rows=both[1:])) == []
    assert kinds(evidence(request, rows=[])) == [Broken.LOST]


def test_a_push_to_everyone_has_rows_for_some_or_one_for_nobody() -> None:
    request = pushed(to=To.ALL, users=frozenset())
    some, nobody = row(request, "u1", "offline"), row(request, None, "offline")
    assert kinds(evidence(request, rows=[some])) == []
    assert kinds(evidence(request, rows=[nobody])) == []
    assert kinds(evidence(request, rows=[some, nobody])) == [], "it was taken twice"
    assert kinds(evidence(request, rows=[some, some])) == [Broken.TWICE]
    assert kinds(evidence(request, rows=[])) == [Broken.LOST]


def test_a_push_to_a_topic_has_rows_for_subscribers_only() -> None:
    request = pushed(to=To.TOPIC, users=frozenset())
    one, other = (
        next(u for u in (f"u{n}" for n in range(99)) if subscribes(u) is yes) for yes in (True, False)
    )
    assert kinds(evidence(request, rows=[row(request, one, "offline")])) == []
    assert kinds(evidence(request, rows=[row(request, None, "offline")])) == []
    assert kinds(evidence(request, rows=[row(request, other, "offline")])) == [Broken.NOT_PUBLISHED]
    assert kinds(evidence(request, rows=[])) == [Broken.LOST]


def test_a_rejected_request_needs_one_row_and_its_dead_letter() -> None:
    request = pushed(fate=Fate.REJECTED, users=frozenset())
    made = evidence(request)
    made.dead.clear()
    assert kinds(made) == [Broken.NOT_BURIED]
    assert kinds(evidence(request, rows=[])) == [Broken.LOST]
    assert Broken.TWICE in kinds(evidence(request, rows=[row(request, None, "offline")]))


def test_a_rejected_request_without_an_id_is_known_by_what_its_row_keeps() -> None:
    request = Request("m1-1", "", fate=Fate.REJECTED, copies=1, confirmed=1)
    kept = Row(RowKey("", "sha256-x", None), "rejected", "not_json", True, False, frozenset(["m1-1"]))
    made = evidence(request, rows=[kept])
    made.dead["m1-1"] = 1
    assert kinds(made) == []
    made.rows[0] = kept._replace(marks=frozenset(["m1-2"]))
    assert sorted(kinds(made), key=str) == sorted([Broken.NOT_PUBLISHED, Broken.LOST], key=str)


@pytest.mark.parametrize(
    ("outcome", "seen"),
    [
        ("received", None),
        ("received", shown(ponged=False)),
        ("acked", None),
        ("acked", shown(ponged=True, acked=False)),
    ],
)
def test_a_proof_that_the_client_did_not_give_is_false(outcome: str, seen: Showing | None) -> None:
    request = pushed()
    made = evidence(request, rows=[row(request, "u1", outcome)])
    if seen is not None:
        made.shown["u1", "m1"] = seen
    assert kinds(made) == [Broken.FALSE_PROOF]
    assert check(made).false == 1


def test_a_proof_of_another_user_proves_nothing() -> None:
    request = pushed("m1", "u1", "u2")
    made = evidence(request, rows=[row(request, "u1", "received"), row(request, "u2", "offline")])
    made.shown["u2", "m1"] = shown()
    assert kinds(made) == [Broken.FALSE_PROOF]


def test_a_push_on_somebody_elses_screen_is_seen() -> None:
    made = evidence(pushed())
    made.shown["u2", "m1"] = shown()
    assert kinds(made) == [Broken.WRONG_USER]
    assert check(made).wrong == 1


def test_a_push_in_another_session_of_the_same_user_is_seen() -> None:
    made = evidence(pushed(to=To.SESSION, session="s1"))
    made.shown["u1", "m1"].sessions.add("s2")
    assert kinds(made) == [Broken.WRONG_USER]


def test_a_rejected_request_on_a_screen_is_seen() -> None:
    made = evidence(pushed(fate=Fate.REJECTED, users=frozenset()))
    made.shown["u1", "m1"] = shown()
    assert kinds(made) == [Broken.WRONG_USER]


@pytest.mark.parametrize("depth", [Depth(1, 0), Depth(0, 1)])
def test_messages_that_are_left_in_a_queue_are_seen(depth: Depth) -> None:
    made = evidence(pushed())
    made.queues["push.requests"] = depth
    assert kinds(made) == [Broken.LEFT_IN_QUEUE]


def test_rows_that_are_not_final_or_owe_something_are_seen() -> None:
    request = pushed()
    pending = row(request, "u1", "pending", final=False)
    assert set(kinds(evidence(request, rows=[pending]))) == {Broken.LOST, Broken.NOT_FINAL}
    assert kinds(evidence(request, rows=[row(request, "u1", "offline", owed=True)])) == [Broken.OWED]


def test_fallbacks_that_are_missing_early_or_of_nobody_are_seen() -> None:
    request = pushed()

    def told(*ids: str, **more: Any) -> list[Broken]:
        made = evidence(request, rows=[row(request, "u1", "offline", **more)])
        made.fallbacks[made.rows[0].key].update(ids)
        return kinds(made)

    assert told("f1", "f1", fell_back=True) == []
    assert told("f1", "f2", fell_back=True) == [Broken.FALSE_FALLBACK]
    assert told("f1", fell_back=True, early=True) == [Broken.FALSE_FALLBACK]
    assert told(fell_back=True) == [Broken.NO_FALLBACK]
    assert told(overdue=True) == [Broken.OWED]
    made = evidence(pushed())
    made.fallbacks[RowKey("", "p-m9", "u1")]["f1"] += 1
    assert kinds(made) == [Broken.NOT_PUBLISHED]


def test_a_final_row_without_a_receipt_is_seen() -> None:
    made = evidence(pushed())
    made.announced.clear()
    assert kinds(made) == [Broken.NO_RECEIPT]


def test_a_reply_that_was_asked_for_and_never_came_is_seen() -> None:
    assert kinds(evidence(pushed(replies={"c1"}))) == [Broken.NO_RECEIPT]


def test_a_receipt_that_tells_another_end_than_the_row_is_seen() -> None:
    made = evidence(pushed())
    made.announced[made.rows[0].key][Receipt("offline", "no_session", True)] += 1
    assert kinds(made) == [Broken.WRONG_RECEIPT]


def test_rows_receipts_and_pushes_of_what_nobody_published_are_seen() -> None:
    stranger = Request("m9", "p-m9")
    assert kinds(evidence(rows=[row(stranger, "u1", "offline")])) == [Broken.NOT_PUBLISHED]
    made = evidence(pushed())
    made.announced[RowKey("", "p-m9", "u1")][Receipt("offline", "r", True)] += 1
    assert kinds(made) == [Broken.NOT_PUBLISHED]
    made = evidence(pushed())
    made.shown["u1", "m9"] = shown()
    assert kinds(made) == [Broken.NOT_PUBLISHED]
    request = pushed()
    both = [row(request, "u1", "offline"), row(request, "u2", "offline")]
    assert kinds(evidence(request, rows=both)) == [Broken.NOT_PUBLISHED]


def test_a_request_of_another_tenant_is_another_one() -> None:
    request = pushed(tenant="t1")
    other = row(pushed(), "u1", "offline")
    assert sorted(kinds(evidence(request, rows=[other])), key=str) == [Broken.LOST, Broken.NOT_PUBLISHED]


# --- the checker: kept pushes ---


def stored(request: Request, user: str = "u1", **more: object) -> Row:
    return row(request, user, "stored", "no_session", final=False, owed=True, **more)


def test_a_kept_push_may_wait_for_somebody_who_never_came() -> None:
    request = kept()
    assert kinds(evidence(request, rows=[stored(request)])) == []


def test_a_kept_push_may_not_wait_for_somebody_who_is_there() -> None:
    request = kept()
    made = evidence(request, rows=[stored(request)])
    made.tabs = [tab("u1")]
    assert set(kinds(made)) == {Broken.LOST, Broken.NOT_FINAL}


def test_a_kept_push_may_wait_for_an_ack_that_nobody_sends() -> None:
    request = kept(confirm="acked")
    made = evidence(request, rows=[stored(request)])
    made.tabs = [tab("u1", "m1")]
    assert kinds(made) == []
    made.tabs = [tab("u1", "m1"), tab("u1", "m1", acks=True)]
    assert set(kinds(made)) == {Broken.LOST, Broken.NOT_FINAL}


def test_a_kept_push_may_not_wait_longer_than_its_ttl() -> None:
    request = kept()
    made = evidence(request, rows=[stored(request, lapsed=True)])
    assert set(kinds(made)) == {Broken.LOST, Broken.NOT_FINAL}


def test_what_is_not_kept_is_never_stored() -> None:
    request = pushed()
    assert Broken.KEPT_ENDED in kinds(evidence(request, rows=[stored(request)]))


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ("unknown", "no_proof"),
        ("unknown", "node_died"),
        ("offline", "no_session"),
        ("dropped", "slow_consumer"),
        ("dropped", "mailbox_full"),
        ("expired", "ttl"),
        ("expired", "max_age"),
        ("expired", "queue_expiration"),
        ("received", "not_acked"),
        ("superseded", "collapsed"),
        ("recalled", "withdrawn"),
    ],
)
def test_a_kept_push_does_not_end_as_if_it_were_not(outcome: str, reason: str) -> None:
    request = kept(collapse_key="k")
    made = evidence(request, rows=[row(request, "u1", outcome, reason)])
    made.shown["u1", "m1"] = shown()
    assert kinds(made) == [Broken.KEPT_ENDED]


def test_nobody_is_taken_for_absent_who_was_connected_all_the_time() -> None:
    request = pushed(first_published=2.0)
    made = evidence(request, rows=[row(request, "u1", "offline", "no_session")])
    made.ended[made.rows[0].key] = 3.0
    made.tabs = [tab("u1", open=[Session(1.0, 9.0, 80)])]
    assert kinds(made) == [], "it is checked only where it is said"
    made.found = True
    assert kinds(made) == [Broken.TAKEN_FOR_ABSENT]
    for opened in ([(2.5, 9.0)], [(1.0, 3.5)], [(0.0, 2.5), (2.6, 9.0)], []):
        made.tabs = [tab("u1", open=[Session(*times) for times in opened])]
        assert kinds(made) == [], opened
    made.tabs = [tab("u2", open=[Session(1.0, 9.0, 80)])]
    assert kinds(made) == []
    made.tabs = [tab("u1", open=[Session(1.0, 9.0, 80)])]
    made.mute = [Mute(80, 1.5, 9.0), Mute(81, 0.0, 9.0)]
    assert kinds(made) == [Broken.TAKEN_FOR_ABSENT], "its node was not given up yet"
    made.mute = [Mute(80, -0.5, 0.5)]
    assert kinds(made) == [], "its node was taken for dead when the push ended"
    made.mute = [Mute(80, -8.0, -4.5)]
    assert kinds(made) == [Broken.TAKEN_FOR_ABSENT], "its node was there again before the session opened"
    made.tabs = [tab("u1", open=[Session(-9.0, 9.0, 80)])]
    assert kinds(made) == [Broken.TAKEN_FOR_ABSENT], "the session has lasted until its node was there again"


def test_a_short_ttl_may_end() -> None:
    request = kept(ttl=2.0)
    assert kinds(evidence(request, rows=[row(request, "u1", "expired", "ttl")])) == []
    brief = pushed()
    assert kinds(evidence(brief, rows=[row(brief, "u1", "expired", "ttl")])) == [Broken.KEPT_ENDED]


def test_only_a_newer_push_with_its_key_replaces_one() -> None:
    older, newer = kept("m1", at=1.0, collapse_key="k"), kept("m2", at=2.0, collapse_key="k")

    def rows(first: str, second: str) -> list[Row]:
        made = {"superseded": ("superseded", "collapsed"), "received": ("received", "pong")}
        return [row(older, "u1", *made[first]), row(newer, "u1", *made[second])]

    def judged(first: str, second: str) -> list[Broken]:
        made = evidence(older, newer, rows=rows(first, second))
        made.shown["u1", "m1"] = made.shown["u1", "m2"] = shown()
        return kinds(made)

    assert judged("superseded", "received") == []
    assert judged("received", "superseded") == [Broken.KEPT_ENDED]
    newer.collapse_key = "other"
    assert judged("superseded", "received") == [Broken.KEPT_ENDED]


def test_what_was_replaced_does_not_wait() -> None:
    older, newer = kept("m1", at=1.0, collapse_key="k"), kept("m2", at=2.0, collapse_key="k")
    assert kinds(evidence(older, newer, rows=[stored(older), stored(newer)])) == [Broken.KEPT_ENDED]


def test_what_was_recalled_while_it_was_stored_does_not_wait() -> None:
    request = kept(at=1.0)
    recalled = row(request, "u1", "recalled", "withdrawn")
    made = evidence(request, rows=[stored(request)])
    made.recalls["r1"] = Recall("", push_id=request.push_id, confirmed=True, replied=3.0)
    assert kinds(made) == [], "it may have come before the push was taken"
    made.recalls["r1"].stored_for = "u2"
    assert kinds(made) == [], "it was stored for somebody else then"
    made.recalls["r1"].stored_for = "u1"
    assert kinds(made) == [Broken.KEPT_ENDED]
    made = evidence(request, rows=[recalled])
    made.recalls["r1"] = Recall("", push_id=request.push_id, confirmed=True, replied=3.0)
    assert kinds(made) == []
    made.recalls["r1"].replied = 0.5
    assert kinds(made) == [Broken.KEPT_ENDED], "the recall was over before the push was published"
    made.recalls["r1"] = Recall("", user="u1", collapse_key="k")
    assert kinds(made) == [Broken.KEPT_ENDED]
    request.collapse_key = "k"
    assert kinds(made) == []


def test_a_full_mailbox_gives_up_its_oldest() -> None:
    requests = [kept(f"m{i}", at=float(i)) for i in range(3)]
    full = row(requests[0], "u1", "dropped", "mailbox_full")
    made = evidence(*requests, rows=[full, stored(requests[1]), stored(requests[2])])
    made.mailbox = 2
    assert kinds(made) == []
    made.mailbox = 1
    assert kinds(made) == [Broken.KEPT_ENDED]
    newest = row(requests[2], "u1", "dropped", "mailbox_full")
    made = evidence(*requests, rows=[stored(requests[0]), stored(requests[1]), newest])
    made.mailbox = 2
    assert kinds(made) == [Broken.KEPT_ENDED]


def test_a_kept_push_that_is_read_after_a_newer_one_is_seen() -> None:
    made = evidence(kept("m1", at=1.0), kept("m2", at=2.0))
    made.tabs = [tab("u1", "m1", "m2", "m1")]
    assert kinds(made) == []
    made.tabs = [tab("u1", "m2", "m1")]
    assert kinds(made) == [Broken.OUT_OF_ORDER]
    made.ordered = False
    assert kinds(made) == []


def test_messages_with_a_push_to_a_crowd_have_an_order_among_themselves() -> None:
    user = next(name for name in ("u1", "u2", "u3", "u4") if subscribes(name))
    older, newer = (kept(mark, user, at, to=To.TOPIC) for mark, at in (("m1", 1.0), ("m3", 3.0)))
    beside = kept("m0", user, 0.0)
    for batch in ([older, beside], [newer]):
        Envelope(batch, b"")
    made = evidence(older, beside, kept("m2", user, 2.0), newer)
    made.tabs = [tab(user, "m2", "m0", "m1", "m3")]
    assert kinds(made) == []
    made.tabs = [tab(user, "m2", "m3", "m1")]
    assert kinds(made) == [Broken.OUT_OF_ORDER]
    made.tabs = [tab(user, "m2", "m3", "m0")]
    assert kinds(made) == [Broken.OUT_OF_ORDER], "it is of a batch with a push to a topic"


def test_pushes_that_were_under_way_together_have_no_order() -> None:
    made = evidence(kept("m1", at=1.0), kept("m2", at=1.2))
    made.tabs = [tab("u1", "m2", "m1")]
    assert kinds(made) == []
    made = evidence(kept("m1", at=1.0, copies=2), kept("m2", at=2.0))
    made.tabs = [tab("u1", "m2", "m1")]
    assert kinds(made) == [], "its second copy may be the one that was read"


def test_what_the_broker_may_have_given_out_again_has_no_order_until_it_is_stored() -> None:
    older, newer = kept("m1", at=1.0), kept("m2", at=2.0)
    made = evidence(older, newer)
    made.tabs = [tab("u1", "m2", "m1")]
    made.shaken = [5.0]
    assert kinds(made) == []
    made.stored = {RowKey("", r.push_id, "u1"): 4.0 for r in (older, newer)}
    assert kinds(made) == [Broken.OUT_OF_ORDER]
    made.shaken = [3.0]
    assert kinds(made) == []


def test_a_resume_may_begin_a_little_earlier_and_is_in_order_within_itself() -> None:
    made = evidence(kept("m1", at=1.0), kept("m2", at=2.0))
    made.tabs = [Tab("u1", [(1, "m2", 8.0), (2, "m1", 9.0), (2, "m2", 9.0)], resumes=True)]
    assert kinds(made) == []
    made.tabs = [Tab("u1", [(1, "m2", 8.0), (2, "m1", 9.0), (2, "m2", 9.0)])]
    assert kinds(made) == [Broken.OUT_OF_ORDER]


def test_what_a_resume_leaves_out_is_told_with_the_sessions_of_all_clients_of_the_user() -> None:
    made = evidence(kept("m1", at=1.0), kept("m2", at=8.5))
    made.tabs = [tab("u1", "m1", "m2"), tab("u1", "m1", resumes=True, since=1.6)]
    made.tabs[0].open = [Session(0.5, 8.0, 4001), Session(8.25, 9.5, 4002)]
    (violation,) = check(made).violations
    assert violation.facts[0].startswith("row ")
    assert violation.facts[1:3] == (
        "a client of u1 that does not resume: sessions -8.000 to -0.500 at port 4001, -0.250 to 1.000 at port 4002;"
        " read 0.500 on connection 1",
        "a client of u1 that resumes: sessions never; read never",
    )


def test_a_resume_that_leaves_something_out_must_say_so() -> None:
    made = evidence(kept("m1", at=1.0), kept("m2", at=2.0))
    made.tabs = [tab("u1", "m1", "m2"), tab("u1", "m1", resumes=True, since=1.6)]
    assert kinds(made) == [Broken.GAP]
    made.tabs[1].cut = 1
    assert kinds(made) == []
    made.tabs[1].cut, made.ordered = 0, False
    assert kinds(made) == []
    made.complete = True
    assert kinds(made) == [Broken.GAP]
    made.tabs[1].since = 2.1
    assert kinds(made) == [], "it knew nothing yet when that was published"


def test_a_violation_tells_all_sides_of_the_story() -> None:
    request = pushed()
    made = evidence(request, rows=[row(request, "u1", "acked")])
    made.shown["u1", "m1"] = shown(2)
    (violation,) = check(made).violations
    story = "\n".join(violation.facts)
    assert "p-m1" in story
    assert "shown to u1: 2 times, ponged=True, acked=False" in story
    assert "acked/r final" in story
    assert "announced for u1: acked/r x1" in story


# --- the proxy ---


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)


async def test_the_proxy_passes_on_falls_silent_cuts_and_resets() -> None:
    async with listening(_echo) as port, Proxy("127.0.0.1", port).listening() as proxy:

        async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(b"hello")
            assert await asyncio.wait_for(reader.readexactly(5), 10) == b"hello"
            return reader, writer

        reader, writer = await opened()
        assert proxy.silence() == 1
        writer.write(b"anybody?")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        again, other = await opened()
        proxy.cut_after(3)
        other.write(b"abcdef")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(again.readexactly(6), 10)
        proxy.heal()
        again, other = await opened()
        proxy.reset()
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(again.readexactly(1), 10)
        proxy.refuse = True
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await opened()
        for each in (writer, other):
            each.transport.abort()


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


async def test_the_commit_cutter_cuts_the_write_of_rows_and_nothing_else() -> None:
    parse = _message(b"P", b"_pg3_1\0select ord, applied, x from record_rows()\0\0\0")
    write = _message(b"B", b"\0_pg3_1\0\0\0")
    other = _message(b"B", b"\0_pg3_2\0\0\0")
    for how in Cut:
        link = Link(None, None)  # type: ignore[arg-type]
        cutter = CommitCutter()
        cutter.arm(how)
        assert cutter.look(link, True, other) == other
        assert cutter.look(link, True, parse) == parse
        assert not cutter.done.is_set()
        passed = cutter.look(link, True, write)
        if how is Cut.BEFORE:
            assert passed is None
        elif how is Cut.ANSWER_LOST:
            assert passed == write
            assert not cutter.done.is_set()
            assert cutter.look(link, False, b"answer") is None
        else:
            assert link.bytes_left == (len(write) if how is Cut.UNANSWERED else len(write) // 2)
        assert cutter.done.is_set()


# --- the machine ---


def test_every_fault_has_a_name_a_sentence_and_is_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == len(FAULTS)
    assert all(f.about for f in FAULTS.values())
    with pytest.raises(SystemExit) as refused:
        run.main(["--fault", "no such thing"])
    assert refused.value.code == 2


@pytest.fixture
def quietly() -> list[str]:
    """What a run says."""
    return []


@pytest.mark.timeout(300)
async def test_a_short_run_breaks_no_promise(servers: Servers, tmp_path: Path, quietly: list[str]) -> None:
    names = (
        "kill -9 at random times",
        "kill -9 before and after a commit",
        "cut during COMMIT",
        "clients that reset between send and pong",
        "everyone away, and back at once",
    )
    faults = [FAULTS[name] for name in names]
    lines = await run.run(servers, faults, SEED, SHORT, tmp_path, quietly.append, at_once=len(faults))
    assert not any(line.bad for line in lines), "\n".join(quietly)
    for line in lines:
        assert line.outcome is not None
        verdict, name = line.outcome.verdict, line.fault.name
        assert verdict.published > 100, name
        assert line.outcome.times >= 1, f"{name} was not made"
        assert any(ending.startswith("stored/") for ending in verdict.outcomes), f"{name}: {verdict.outcomes}"
    assert "| 0 | " in " ".join(run.table(lines).split())


async def test_a_push_that_kills_the_bridge_is_given_up_alone(servers: Servers, tmp_path: Path) -> None:
    outcome = await play(
        servers,
        f"chaos_{uuid.uuid4().hex}",
        deadly,
        seed="7",
        scale=SHORT,
        logs=tmp_path,
        settings={"max_attempts": 3},
    )
    assert outcome.verdict.violations == []
    assert outcome.times == 3
    assert outcome.verdict.outcomes["rejected/poison"] == 1


async def test_a_run_that_breaks_a_promise_says_so(
    servers: Servers, tmp_path: Path, quietly: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.chaos.stage.REST_TIMEOUT", 3.0)
    monkeypatch.setattr("benchmarks.chaos.fault.FAULTS", {})

    @fault("a row is taken away")
    async def thief(stage: Stage) -> int:
        """Somebody deletes rows."""
        await stage.load(1)
        await stage.execute("delete from delivery_log where outcome = 'offline'")
        return 1

    @fault("not here")
    async def impossible(stage: Stage) -> int:
        """It needs what this machine has not."""
        raise NotPossible("needs another machine")

    @fault("never comes to it")
    async def idle(stage: Stage) -> int:
        """It waits for what does not happen."""
        return 0

    from benchmarks.chaos.fault import FAULTS as mine

    lines = await run.run(
        servers, list(mine.values()), SEED, SHORT, tmp_path, quietly.append, at_once=len(mine)
    )
    assert lines[0].bad
    assert "I1 lost" in "\n".join(quietly)
    assert not lines[1].bad
    assert lines[2].bad, "nobody knows what it would have done"
    assert "never comes to it: NOT MADE" in "\n".join(quietly)
    table = " ".join(run.table(lines).split())
    assert "| not run |" in table
    assert "| not made |" in table
    end = "every promise held in every fault that was made"
    assert run.footer([lines[1]], "short run", 1.0).endswith(end), "not run is not passed"


def test_a_seed_decides_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    # Some are for later, which is a time by the clock.
    monkeypatch.setattr("benchmarks.chaos.broker.time.time", lambda: 1.8e9)

    def bodies(seed: int) -> list[tuple[bytes, bool, bool]]:
        users = [f"u{i}" for i in range(20)]
        made = Requests(Evidence(), random.Random(seed), users, ["away"], lambda rng: None, "0")
        return [(e.body, e.reply_to, e.insist) for e in (made.next() for _ in range(300))]

    assert bodies(1) == bodies(1)
    assert bodies(1) != bodies(2)


# --- the generated stories ---


def test_stories_are_told_and_counted_by_the_seed() -> None:
    first, second = stories.tell(25, SEED), stories.tell(25, SEED)
    assert first.played >= 25
    assert (first.played, first.pushes) == (second.played, second.pushes)
    assert "every promise held" in first.line


def test_a_story_that_breaks_a_promise_is_cut_down_to_the_steps_that_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(self: Paying, *_: object) -> None:
        """No message is acked, so that whatever is published breaks a promise, whenever it is."""

    monkeypatch.setattr(Paying, "settle_messages", never)
    monkeypatch.setattr(
        stories, "STEPS", 10
    )  # a story of 32 takes three times as long, and ends as the same step
    told = stories.tell(50, SEED)
    steps = [line.strip() for line in told.story.splitlines() if "broken: " not in line]
    assert len(steps) == 1, told.story
    assert steps[0].startswith("publish")
    assert "broken: not acked" in told.story
    assert "BROKEN" in run.footer([], "short run", 1.0, told)


# --- the mixed fault ---


def test_the_mixed_fault_deals_every_piece_once_and_pairs_different_parts() -> None:
    stage = SimpleNamespace(rng=random.Random(SEED))
    rounds = dealt(stage)  # type: ignore[arg-type]
    pieces = Counter(piece for pair in rounds for piece in pair)
    assert pieces == Counter(piece for part in PARTS.values() for piece in part)
    parts = {piece: part for part, pieces in PARTS.items() for piece in pieces}
    assert all(len({parts[piece] for piece in pair}) == len(pair) for pair in rounds)
    assert sum(len(pair) == 1 for pair in rounds) < 5
