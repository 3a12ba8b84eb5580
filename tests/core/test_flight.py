"""How a push to one user ends: every rule of `bridge.core.inflight.flight`, one by one."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import pytest

from bridge.core.errors import IllegalTransition
from bridge.core.inflight.flight import Effect, Flight
from bridge.core.inflight.kept import Kept
from bridge.core.inflight.making import flight_of_rejected, flight_of_stored
from bridge.core.inflight.owed import Owed
from bridge.core.inflight.row_of import row_of
from bridge.core.inflight.transitions import STEPS, Event, State
from bridge.core.model.outcomes import ENDINGS, Outcome, Proof, Reason
from bridge.core.model.pushes import Encoding, Rejected
from bridge.core.model.rows import Reply, Row, RowKey, merged
from tests.support.house import Recorder, flight, message


def ended(f: Flight) -> tuple[Outcome | None, Reason | None]:
    return f.outcome, f.reason


def test_written_is_the_end_only_where_no_more_was_asked_for() -> None:
    f = flight(confirm=Proof.WRITTEN)
    assert f.handed(12.0, "s1") is Effect.ENDED
    assert ended(f) == (Outcome.WRITTEN, Reason.HANDED_OVER)
    g = flight(confirm=Proof.RECEIVED)
    assert g.handed(12.0, "s1") is Effect.NOTHING
    assert not g.ended


def test_a_pong_ends_a_push_that_asked_for_received() -> None:
    f = flight()
    f.handed(12.0, "s1")
    assert f.received(13.0, "s1") is Effect.ENDED
    assert ended(f) == (Outcome.RECEIVED, Reason.PONG)
    assert (f.written_at, f.proven_at, f.finished_at) == (12.0, 13.0, 13.0)


def test_an_ack_ends_a_push_that_asked_for_it_and_a_pong_does_not() -> None:
    f = flight(confirm=Proof.ACKED)
    f.handed(12.0, "s1")
    assert f.received(13.0, "s1") is Effect.NOTHING
    assert f.acked(14.0, "s1") is Effect.ENDED
    assert ended(f) == (Outcome.ACKED, Reason.ACK_FRAME)
    assert f.proven_at == 14.0


def test_the_first_session_that_gives_the_proof_ends_it_and_later_ones_change_nothing() -> None:
    f = flight(sessions=2)
    f.handed(12.0, "s1")
    f.handed(12.1, "s1")
    assert f.received(13.0, "s1") is Effect.ENDED
    assert f.received(14.0, "s1") is Effect.NOTHING
    assert f.lost(15.0, handed=True) is Effect.NOTHING
    assert (f.proven_at, f.finished_at, f.attempts) == (13.0, 13.0, 2)


def test_a_connection_that_dies_after_the_hand_over_leaves_it_unknown_when_it_was_the_last() -> None:
    f = flight(sessions=2)
    f.handed(12.0, "s1")
    assert f.lost(13.0, handed=True) is Effect.NOTHING
    assert f.lost(14.0, handed=False) is Effect.ENDED
    assert ended(f) == (Outcome.UNKNOWN, Reason.CONNECTION_LOST)


def test_a_session_that_left_before_the_hand_over_makes_it_offline() -> None:
    f = flight()
    assert f.lost(13.0, handed=False) is Effect.ENDED
    assert ended(f) == (Outcome.OFFLINE, Reason.LEFT_BEFORE_SEND)
    assert f.withdrawn


def test_a_slow_session_drops_what_was_never_handed_over() -> None:
    f = flight()
    f.lost(13.0, handed=False, why=Reason.SLOW_CONSUMER)
    assert ended(f) == (Outcome.DROPPED, Reason.SLOW_CONSUMER)
    assert f.withdrawn


def test_a_received_push_whose_ack_can_no_longer_come_is_received_not_acked() -> None:
    f = flight(confirm=Proof.ACKED)
    f.handed(12.0, "s1")
    f.received(13.0, "s1")
    assert f.lost(14.0, handed=True) is Effect.ENDED
    assert ended(f) == (Outcome.RECEIVED, Reason.NOT_ACKED)
    assert f.proven_at == 13.0


@pytest.mark.parametrize(
    ("confirm", "steps", "outcome", "reason"),
    [
        (Proof.RECEIVED, ["handed"], Outcome.UNKNOWN, Reason.NO_PROOF),
        (Proof.ACKED, ["handed", "received"], Outcome.RECEIVED, Reason.NOT_ACKED),
        (Proof.RECEIVED, [], Outcome.DROPPED, Reason.SLOW_CONSUMER),
    ],
)
def test_at_the_deadline_the_best_proof_held_decides(
    confirm: Proof, steps: list[str], outcome: Outcome, reason: Reason
) -> None:
    f = flight(confirm=confirm)
    for step in steps:
        getattr(f, step)(12.0, "s1")
    assert f.timed_out(17.0) is Effect.ENDED
    assert ended(f) == (outcome, reason)


def test_a_push_that_never_found_a_session_is_offline_at_the_deadline() -> None:
    f = flight(sessions=0)
    f.timed_out(17.0)
    assert ended(f) == (Outcome.OFFLINE, Reason.NO_SESSION)


def test_proof_after_the_end_fills_a_time_and_changes_no_outcome() -> None:
    f = flight()
    f.handed(12.0, "s1")
    f.timed_out(17.0)
    assert f.received(18.0, "s1") is Effect.LATE
    assert ended(f) == (Outcome.UNKNOWN, Reason.NO_PROOF)
    assert (f.proven_at, f.finished_at) == (None, 17.0)
    assert f.received(19.0, "s1") is Effect.NOTHING
    assert f.acked(20.0, "s1") is Effect.LATE, "that is better proof still"
    assert f.acked(21.0, "s1") is Effect.NOTHING


def test_an_ack_after_the_end_is_late_where_the_outcome_claims_less() -> None:
    f = flight(confirm=Proof.ACKED)
    f.handed(12.0, "s1")
    f.received(13.0, "s1")
    f.timed_out(17.0)
    assert ended(f) == (Outcome.RECEIVED, Reason.NOT_ACKED)
    assert f.acked(18.0, "s1") is Effect.LATE
    assert (ended(f), f.proven_at) == ((Outcome.RECEIVED, Reason.NOT_ACKED), 13.0)
    proven = flight()
    proven.handed(12.0, "s1")
    proven.received(13.0, "s1")
    assert proven.acked(14.0, "s1") is Effect.NOTHING, "no more was asked for"


def test_the_row_of_a_push_that_has_not_ended_is_pending_and_owes_its_receipts() -> None:
    f = flight(of=message(reply_to="answers", correlation_id="c1", app_id="shop"))
    f.handed(12.0, "s1")
    row = row_of(f, "n", "b")
    assert (row.outcome, row.reason, row.final) == (Outcome.PENDING, Reason.AWAITING_PROOF, False)
    assert row.owed == (Reply("answers", "c1"),)
    f.received(13.0, "s1")
    row = row_of(f, "n", "b")
    assert (row.final, row.owed, row.app_id) == (True, None, "shop")


def test_every_field_of_a_row_is_from_its_flight() -> None:
    f = flight(of=message(app_id="shop"), confirm=Proof.ACKED, sessions=3)
    f.kept = Kept(1e9, b"data", Encoding.TEXT, frozenset(("s9",)))
    f.fallback = Owed(500.0, "mail", Encoding.BYTES)
    f.handed(12.0, "s1", "n2")
    f.received(13.0, "s1", "n2")
    f.acked(14.0, "s1", "n2")
    f.day, f.batch, f.data_bytes, f.attempts = datetime.date(2026, 1, 2), ("b7", 4), 5, 2
    f.detail, f.event, f.meta, f.traceparent, f.topic = "why", "order.created", b"{}", "00-1", "news"
    f.position, f.collapse_key, f.ack_within, f.fingerprint, f.first_device = 11, "k", 6.0, 77, True
    expected = Row(
        key=f.key,
        outcome=Outcome.ACKED,
        reason=Reason.ACK_FRAME,
        node="n1",
        boot="b1",
        published_at=f.published_at,
        taken_at=f.taken_at,
        detail="why",
        event="order.created",
        app_id="shop",
        meta=b"{}",
        confirm=Proof.ACKED,
        written_at=12.0,
        proven_at=14.0,
        finished_at=14.0,
        sessions=3,
        attempts=2,
        payload=b"data",
        traceparent="00-1",
        day=datetime.date(2026, 1, 2),
        expires_at=1e9,
        position=11,
        encoding=Encoding.TEXT,
        excluded=frozenset(("s9",)),
        collapse_key="k",
        ack_within=6.0,
        fingerprint=77,
        topic="news",
        session="s1",
        holder="n2",
        first_device=True,
        fallback_key="mail",
        batch_id="b7",
        batch_position=4,
        data_bytes=5,
    )
    assert row_of(f, "n1", "b1") == expected
    alike = {name for name in Row.__struct_fields__ if getattr(expected, name) == getattr(_PLAIN, name)}
    assert alike == {"owed", "late_at", "differed_at", "fallback_due"}, "others would not show a wrong place"
    waiting = flight()
    waiting.fallback = f.fallback
    assert row_of(waiting, "n1", "b1").fallback_due == 500.0


_PLAIN = Row(RowKey("", "", ""), Outcome.PENDING, Reason.AWAITING_PROOF, "", "", 0.0, 0.0)


def test_a_rejected_request_keeps_its_body_cut_and_says_so() -> None:
    f = flight_of_rejected(
        Rejected("p9", Reason.INVALID, "to: missing", b"x" * 5000), message(), Recorder(), 12.0
    )
    row = row_of(f, "n", "b")
    assert (row.outcome, row.key.user, len(row.payload or b"")) == (Outcome.REJECTED, "", 4096)
    assert row.detail == "to: missing (payload cut at 4096 of 5000 bytes)"


def test_every_ending_a_flight_can_have_is_in_the_table() -> None:
    table = {(e.outcome, e.reason) for e in ENDINGS}
    seen = set()
    for confirm in (Proof.WRITTEN, Proof.RECEIVED, Proof.ACKED):
        for sessions in (0, 1):
            for steps in ([], ["handed"], ["handed", "received"], ["handed", "received", "acked"]):
                for last in ("timed_out", "lost", "slow"):
                    f = flight(confirm=confirm, sessions=sessions)
                    for step in steps:
                        getattr(f, step)(12.0, "s1")
                    if last == "timed_out":
                        f.timed_out(20.0)
                    else:
                        f.lost(20.0, handed=bool(steps), why=Reason.SLOW_CONSUMER if last == "slow" else None)
                    assert f.ended
                    seen.add(ended(f))
    assert seen <= table


def test_replies_are_merged_in_order_and_once() -> None:
    a, b = Reply("q1", "1"), Reply("q2", "2")
    assert merged((a,), (b, a), ()) == (a, b)


EVENTS: dict[Event, Callable[[Flight], object]] = {
    Event.ADDRESSED: lambda f: f.addressed(1),
    Event.HANDED: lambda f: f.handed(50.0, "s1"),
    Event.RECEIVED: lambda f: f.received(50.0, "s1"),
    Event.ACKED: lambda f: f.acked(50.0, "s1"),
    Event.LOST: lambda f: f.lost(50.0, handed=False),
    Event.TIMED_OUT: lambda f: f.timed_out(50.0),
    Event.UNDELIVERABLE: lambda f: f.undeliverable(Outcome.OFFLINE, Reason.NO_SESSION, 50.0),
    Event.SUPERSEDED: lambda f: f.superseded(50.0),
    Event.RECALLED: lambda f: f.recalled(50.0),
    Event.DECIDED: lambda f: f.decided(Outcome.OFFLINE, Reason.EXCLUDED, 50.0),
    Event.LOGGED: lambda f: f.logged(Outcome.UNKNOWN, Reason.NODE_DIED, 50.0),
    Event.UNPROVABLE: lambda f: unprovable(f).timed_out(50.0),
}
"""How each event is sent."""


def unprovable(f: Flight) -> Flight:
    """Where nobody who has it can prove it."""
    f.unprovable = True
    return f


def in_state(state: State) -> tuple[Flight, Recorder]:
    """A push that asks for an ack, in this state."""
    owner = Recorder()
    made = flight(confirm=Proof.ACKED, owner=owner)
    steps = [made.handed, made.received, made.acked][: int(state)]
    for step in steps:
        step(12.0, "s1")
    assert made.state is state
    owner.effects.clear()
    return made, owner


def facts(f: Flight) -> dict[str, object]:
    names = [name for name in dir(f) if not name.startswith("_")]
    return {name: getattr(f, name) for name in names if not callable(getattr(f, name))}


@pytest.mark.parametrize("event", Event, ids=lambda e: e.name.lower())
@pytest.mark.parametrize("state", State, ids=lambda s: s.name.lower())
def test_each_event_does_what_the_table_says_and_without_a_line_raises_and_changes_nothing(
    state: State, event: Event
) -> None:
    made, owner = in_state(state)
    line = STEPS.get((state, event))
    if event is Event.UNPROVABLE and line is None:
        return  # only what sessions have, and none has proven, is looked at in this way
    before = facts(made)
    if line is None:
        with pytest.raises(IllegalTransition, match=event.name.lower()):
            EVENTS[event](made)
        assert (facts(made), owner.effects) == (before, [])
        return
    EVENTS[event](made)
    if state is State.ENDED:
        assert (made.state, ended(made)) == (State.ENDED, (before["outcome"], before["reason"]))
    elif made.state is State.ENDED:
        decided_by_sender = event in (Event.UNDELIVERABLE, Event.DECIDED, Event.LOGGED)
        assert decided_by_sender or ended(made) == (line.outcome, line.reason)
        assert owner.effects == ([] if event is Event.LOGGED else [Effect.ENDED]), "the owner hears of it"
    else:
        assert (made.state, ended(made), owner.effects) == (line.to, (None, None), [])


def stored_again(confirm: Proof) -> Flight:
    """A push that goes out again: a peer had proven it to another process, and no session has it now."""
    row = Row(
        RowKey("", "p1", "u1"), Outcome.STORED, Reason.NOT_ACKED, "n1", "b0", 10.0, 11.0,
        confirm=confirm, proven_at=13.0, expires_at=99.0, position=1, payload=b"1", attempts=1,
    )  # fmt: skip
    made = flight_of_stored(row, "b1", Recorder(), 0.0)
    made.addressed(1)
    return made


def test_proof_that_an_older_process_noted_does_not_keep_a_push_from_its_outcome() -> None:
    received = stored_again(Proof.RECEIVED)
    received.handed(20.0, "s1")
    assert received.received(21.0, "s1") is Effect.ENDED
    assert ended(received) == (Outcome.RECEIVED, Reason.PONG)
    written = stored_again(Proof.WRITTEN)
    assert written.handed(20.0, "s1") is Effect.ENDED
    assert ended(written) == (Outcome.WRITTEN, Reason.HANDED_OVER)


def test_a_push_of_the_log_that_is_shown_and_not_acked_yet_has_its_row_say_so_at_once() -> None:
    """Another process may have written the row, and would publish its fallback."""
    row = Row(
        RowKey("", "p1", "u1"), Outcome.STORED, Reason.NO_SESSION, "n1", "b0", 10.0, 11.0,
        confirm=Proof.ACKED, expires_at=99.0, position=1, payload=b"1",
    )  # fmt: skip
    shown = flight_of_stored(row, "b1", owner := Recorder(), 0.0)
    shown.addressed(1)
    assert shown.handed(20.0, "s1") is Effect.NOTHING
    assert shown.received(21.0, "s1") is Effect.SHOWN
    assert shown.received(22.0, "s1") is Effect.NOTHING, "once is enough"
    assert owner.effects == [Effect.SHOWN]
    assert row_of(shown, "n2", "b1").proven_at == 21.0
    assert shown.outcome is None, "the ack may still come"


def test_a_stored_push_that_was_not_handed_over_again_is_superseded_at_once() -> None:
    waiting = stored_again(Proof.ACKED)
    assert waiting.superseded(20.0) is Effect.ENDED
    assert ended(waiting) == (Outcome.SUPERSEDED, Reason.COLLAPSED)


def test_the_first_session_with_the_best_proof_has_proven_it() -> None:
    f = flight(confirm=Proof.ACKED, sessions=3)
    f.handed(12.0, "s1")
    f.handed(12.0, "s2", "n2")
    assert (f.prover, f.holder) == ("s1", "")
    f.received(13.0, "s2", "n2")
    f.received(13.0, "s1")
    assert (f.prover, f.holder) == ("s2", "n2")
    f.acked(14.0, "s3")
    f.acked(14.0, "s2", "n2")
    assert (f.prover, f.holder) == ("s3", "")
