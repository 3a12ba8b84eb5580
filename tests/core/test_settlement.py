"""Row, receipt, dead letter, ack: in this order, whatever fails between them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from bridge.core.errors import RowsRefused, StoreUnavailable
from bridge.core.inflight.making import flight_of_rejected
from bridge.core.inflight.row_of import row_of
from bridge.core.model.fingerprint import NOT_KNOWN
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Rejected
from bridge.core.model.rows import DeadLetter, LateProof, Receipt, Reply, Row, RowKey
from bridge.core.ports.broker import AckToken
from bridge.core.ports.store import Written
from bridge.core.settlement.payments import Payment, Payments, payment_of
from tests.support.house import BOUNDS, House, settlement_house
from tests.support.rows import row as a_row
from tests.support.waiting import until


async def test_a_push_that_ended_is_written_then_receipted_then_acked() -> None:
    async with settlement_house() as h:
        message = h.message("answers")
        flight = h.flight("p1", message)
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        await until(lambda: h.acks.acked)
        assert h.row("p1").outcome is Outcome.RECEIVED
        assert [(r.row.key.push_id, r.replies, r.announce) for r in h.publisher.sent] == [
            ("p1", (Reply("answers", "c"),), True)
        ]
        assert h.publisher.acked_before == [0], "the receipt is confirmed before the ack"
        assert flight.key in h.final_rows


async def test_rows_are_written_while_the_broker_is_silent_and_acked_when_it_answers() -> None:
    async with settlement_house() as h:
        send, heard = h.publisher.send, asyncio.Event()
        calls: list[int] = []

        async def silent(receipts: Sequence[Receipt]) -> Sequence[Receipt]:
            await heard.wait()
            calls.append(len(receipts))
            return await send(receipts)

        h.publisher.send = silent  # type: ignore[method-assign]
        for n in range(20):
            flight = h.flight(f"p{n}", h.message())
            flight.received(h.clock.now, "s1")
            h.worklist.due(flight)
            h.worklist.sweep()
            await until(lambda n=n: len(h.store.rows) == n + 1)  # type: ignore[misc]
        assert (h.acks.acked, h.worklist.unpaid) == ([], 20)
        heard.set()
        await until(lambda: len(h.acks.acked) == 20)
        await h.worklist.idle()
        assert h.worklist.unpaid == 0
        assert calls == [1, 19], "what has waited is paid together"


def waiting_payment(*ids: str, rows: int = 1, sweep: bool = False) -> Payment:
    receipts = [Receipt(a_row(push_id)) for push_id in ids]
    return payment_of(receipts, {receipt.row.key for receipt in receipts}, sweep=sweep, rows=rows)


def paid_ids(payment: Payment) -> list[str]:
    return [receipt.row.key.push_id for receipt in payment.receipts]


async def test_payments_that_wait_are_paid_together_up_to_one_for_a_row_of_theirs() -> None:
    payments = Payments(rows_most=10)
    for one in (
        waiting_payment("p1", "p2"),
        waiting_payment("p3", sweep=True),
        waiting_payment("p2", "p4"),
        waiting_payment("p5", rows=9),
        waiting_payment("p6"),
    ):
        payments.put(one)
    together = await payments.next()
    assert (paid_ids(together), together.rows, together.sweep) == (["p1", "p2", "p3"], 2, True)
    assert len(together.owed_by_row) == 3
    assert len(payments) == 3, "the one that was taken off the queue waits as well"
    together = await payments.next()
    assert (paid_ids(together), together.rows) == (["p2", "p4", "p5"], 10)
    assert (paid_ids(await payments.next()), len(payments)) == (["p6"], 0)


async def test_a_message_is_acked_only_after_every_row_that_it_names() -> None:
    async with settlement_house() as h:
        message = h.message()
        first, second = h.flight("p1", message, "u1"), h.flight("p1", message, "u2")
        first.received(h.clock.now, "s1")
        h.worklist.due(first)
        await until(lambda: RowKey("", "p1", "u1") in h.store.rows)
        await h.worklist.idle()
        assert h.acks.acked == []
        second.received(h.clock.now, "s1")
        h.worklist.due(second)
        await until(lambda: h.acks.acked)


async def test_a_parked_push_lets_its_message_go_and_its_row_owes_the_receipt() -> None:
    async with settlement_house() as h:
        message = h.message("answers")
        flight = h.flight("p1", message)
        h.worklist.due(flight)
        await until(lambda: h.acks.acked)
        assert h.row("p1").outcome is Outcome.PENDING
        assert h.row("p1").owed == (Reply("answers", "c"),)
        assert h.publisher.sent == []
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        await until(lambda: h.publisher.sent)
        await until(lambda: h.row("p1").owed is None)
        assert h.publisher.sent[0].replies == (Reply("answers", "c"),)


async def test_a_receipt_that_is_not_confirmed_becomes_a_debt_and_the_sweep_pays_it() -> None:
    async with settlement_house() as h:
        h.publisher.refusing = True
        flight = h.flight("p1", h.message("answers"))
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        await until(lambda: h.acks.acked)
        assert h.row("p1").owed == (Reply("answers", "c"),)
        h.worklist.sweep()
        await h.worklist.idle()
        assert h.row("p1").owed is not None
        h.publisher.refusing = False
        h.worklist.sweep()
        await until(lambda: h.row("p1").owed is None)
        assert len(h.publisher.sent) == 1


async def test_while_the_database_is_away_nothing_is_acked_and_the_gate_is_shut() -> None:
    async with settlement_house() as h:
        h.store.fail_with = StoreUnavailable("stopped")
        flight = h.flight("p1", h.message())
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        await until(lambda: not h.gate.is_open)
        assert (h.acks.acked, h.publisher.sent) == ([], [])
        h.store.fail_with = None
        h.clock.advance(5.0)
        await until(lambda: h.acks.acked)
        assert h.gate.is_open
        assert len(h.publisher.sent) == 1


def lose_the_next_answer(h: House, times: int = 1) -> None:
    """The next writes are committed, and reported as failed."""
    record = h.store.record

    async def lost(rows: Sequence[Row]) -> Sequence[Written]:
        nonlocal times
        written = await record(rows)
        times -= 1
        if times < 0:
            return written
        raise StoreUnavailable("cut during COMMIT")

    h.store.record = lost  # type: ignore[method-assign]


@pytest.mark.parametrize("times", [1, BOUNDS.statements.suspect_after, 3 * BOUNDS.statements.suspect_after])
async def test_a_commit_whose_answer_was_lost_is_told_once_and_announced(times: int) -> None:
    async with settlement_house() as h:
        lose_the_next_answer(h, times)
        flight = h.flight("p1", h.message())
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        for _ in range(100):
            h.clock.advance(1)
            for _ in range(20):
                await asyncio.sleep(0)
        assert len(h.acks.acked) == 1
        assert [r.announce for r in h.publisher.sent] == [True]
        assert [row.outcome for row in h.hooks.outcomes] == [Outcome.RECEIVED]


async def test_a_lost_answer_is_known_again_on_a_row_that_another_process_began() -> None:
    async with settlement_house() as h:
        begun = row_of(h.flight("p1", h.message()), "n1", "an older boot")
        begun = msgspec.structs.replace(begun, taken_at=h.clock.now - 60)
        assert not begun.final
        await h.store.record([begun])
        lose_the_next_answer(h)
        flight = h.flight("p1", h.message())
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        await until(lambda: h.acks.acked)
        assert [r.announce for r in h.publisher.sent] == [True]


async def test_a_repeat_makes_no_second_row_and_is_answered_from_the_first() -> None:
    async with settlement_house() as h:
        first = h.flight("p1", h.message())
        first.received(h.clock.now, "s1")
        h.worklist.due(first)
        await until(lambda: len(h.acks.acked) == 1)
        again = h.flight("p1", h.message("answers"))
        again.lost(h.clock.now, handed=True)
        h.clock.advance(1.0)
        again.taken_at = h.clock.now
        h.worklist.due(again)
        await until(lambda: len(h.acks.acked) == 2)
        assert h.row("p1").outcome is Outcome.RECEIVED
        assert h.publisher.sent[1].row.outcome is Outcome.RECEIVED
        assert h.publisher.sent[1].announce is False
        assert len(h.hooks.outcomes) == 1


async def test_a_redelivered_repeat_is_announced_again_since_its_receipt_may_be_lost() -> None:
    async with settlement_house() as h:
        first = h.flight("p1", h.message())
        first.received(h.clock.now, "s1")
        h.worklist.due(first)
        await until(lambda: len(h.acks.acked) == 1)
        message = h.message(redelivered=True)
        message.open += 1
        h.worklist.answer(message, h.row("p1"), NOT_KNOWN)
        await until(lambda: len(h.acks.acked) == 2)
        assert [r.announce for r in h.publisher.sent] == [True, True]


async def test_a_repeat_of_an_unfinished_row_leaves_its_reply_queue_with_the_row() -> None:
    async with settlement_house() as h:
        flight = h.flight("p1", h.message("first"))
        h.worklist.due(flight)
        await until(lambda: len(h.acks.acked) == 1)
        message = h.message("second")
        message.open += 1
        h.worklist.answer(message, h.row("p1"), NOT_KNOWN)
        await until(lambda: len(h.acks.acked) == 2)
        assert h.row("p1").owed == (Reply("first", "c"), Reply("second", "c"))


async def test_a_copy_that_joins_in_the_air_brings_its_own_token_and_reply() -> None:
    async with settlement_house() as h:
        flight = h.flight("p1", h.message("first"))
        joining = h.message("second")
        joining.open += 1
        flight.messages.append(joining)
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        await until(lambda: len(h.acks.acked) == 2)
        assert h.publisher.sent[0].replies == (Reply("first", "c"), Reply("second", "c"))


async def test_a_copy_that_joins_while_the_row_is_parked_is_acked_only_when_the_row_owes_it_too() -> None:
    async with settlement_house() as h:
        flight = h.flight("p1", h.message("first"))
        joining = h.message("second")
        record = h.store.record

        async def joined(rows: Sequence[Row]) -> Sequence[Written]:
            h.store.record = record  # type: ignore[method-assign]
            written = await record(rows)
            joining.open += 1
            flight.messages.append(joining)
            return written

        h.store.record = joined  # type: ignore[method-assign]
        h.worklist.due(flight)
        await until(lambda: len(h.acks.acked) == 2)
        assert h.row("p1").owed == (Reply("first", "c"), Reply("second", "c"))


async def test_a_redelivered_push_whose_row_was_written_meanwhile_is_announced_again() -> None:
    async with settlement_house() as h:
        first = h.flight("p1", h.message())
        first.received(h.clock.now, "s1")
        h.worklist.due(first)
        await until(lambda: len(h.acks.acked) == 1)
        h.clock.advance(1.0)
        again = h.flight("p1", h.message(redelivered=True))
        again.received(h.clock.now, "s1")
        h.worklist.due(again)
        await until(lambda: len(h.acks.acked) == 2)
        assert [r.announce for r in h.publisher.sent] == [True, True]


async def test_a_rejected_message_goes_to_the_dead_letters_after_its_row_and_before_its_ack() -> None:
    async with settlement_house() as h:
        message = h.message()
        flight = flight_of_rejected(
            Rejected("p1", Reason.INVALID, "to: missing", b"{}"), message, h.inflight, h.clock.now
        )
        message.open += 1
        message.letters.append(DeadLetter("p1", Reason.INVALID, "to: missing", b"{}", message.properties))
        h.publisher.refusing = True
        h.worklist.due(flight)
        await until(lambda: RowKey("", "p1", "") in h.store.rows)
        await h.worklist.idle()
        assert h.acks.acked == [], "not buried, not acked"
        h.publisher.refusing = False
        h.worklist.sweep()
        await until(lambda: h.acks.acked)
        assert [letter.push_id for letter in h.publisher.buried] == ["p1"]


async def test_a_row_that_the_database_refuses_costs_its_neighbours_nothing() -> None:
    async with settlement_house() as h:
        record = h.store.record

        async def picky(rows: Sequence[Row]) -> Sequence[Written]:
            if any(row.meta == b"bad" for row in rows):
                raise RowsRefused("22P05", "no such character")
            return await record(rows)

        h.store.record = picky  # type: ignore[method-assign]
        for i in range(9):
            flight = h.flight(f"p{i}", h.message())
            flight.meta = b"bad" if i == 4 else b""
            flight.received(h.clock.now, "s1")
            h.worklist.due(flight)
        await until(lambda: len(h.acks.acked) == 9)
        assert {h.row(f"p{i}").outcome for i in range(9)} == {Outcome.RECEIVED}
        assert h.row("p4").detail == "left out what the database refused (22P05): meta"
        assert len(h.errors.seen) == 1


async def test_a_message_without_open_rows_is_acked_when_it_is_released() -> None:
    async with settlement_house() as h:
        message = h.message()
        message.open = 1
        h.worklist.release(message)
        await until(lambda: h.acks.acked == [AckToken(1, 1)])


async def test_a_message_given_back_is_never_acked() -> None:
    async with settlement_house() as h:
        message = h.message()
        flight = h.flight("p1", message)
        message.token = None  # whoever handled it gave it back
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        await until(lambda: h.final_rows)
        await h.worklist.idle()
        assert h.acks.acked == []


async def test_late_proof_fills_a_time_only() -> None:
    async with settlement_house() as h:
        flight = h.flight("p1", h.message())
        flight.timed_out(h.clock.now)
        h.worklist.due(flight)
        await until(lambda: h.acks.acked)
        h.worklist.late(LateProof(flight.key, h.clock.now + 7))
        h.worklist.sweep()
        await until(lambda: h.row("p1").proven_at is not None)
        assert h.row("p1").outcome is Outcome.UNKNOWN


async def test_a_log_that_fails_is_told_again_before_the_ack() -> None:
    class Log:
        def __init__(self) -> None:
            self.rows: list[Row] = []
            self.broken = True

        async def record(self, rows: Sequence[Row]) -> None:
            if self.broken:
                raise OSError("disk full")
            self.rows.extend(rows)

    log = Log()
    async with settlement_house(log) as h:
        flight = h.flight("p1", h.message())
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        await until(lambda: h.errors.seen)
        assert h.acks.acked == []
        log.broken = False
        h.clock.advance(5.0)
        await until(lambda: h.acks.acked)
        assert [row.key.push_id for row in log.rows] == ["p1"]


@pytest.mark.parametrize("count", [1, 499, 1201])
async def test_any_number_of_pushes_is_settled_whole(count: int) -> None:
    async with settlement_house() as h:
        for i in range(count):
            flight = h.flight(f"p{i}", h.message())
            flight.received(h.clock.now, "s1")
            h.worklist.due(flight)
        async with asyncio.timeout(10):
            while len(h.acks.acked) < count:
                h.clock.advance(0.01)
                await asyncio.sleep(0)
        assert len(h.store.rows) == count
        assert len(h.publisher.sent) == count


async def test_a_sweep_goes_on_until_no_debt_is_left() -> None:
    async with settlement_house() as h:
        at = h.clock.time()
        rows = [
            Row(RowKey("", f"p{n}", "u1"), Outcome.RECEIVED, Reason.PONG, "n1", "b0", at, at, proven_at=at)
            for n in range(BOUNDS.statements.sweep_rows * 2 + 7)
        ]
        await h.store.record(rows)
        await h.store.owe({r.key: () for r in rows})
        h.worklist.sweep()
        await until(lambda: len(h.publisher.sent) == len(rows))
        await h.worklist.idle()
        assert await h.store.owing(10) == []


@pytest.mark.parametrize("first", [True, False])
async def test_an_end_is_not_undone_by_the_flight_of_a_session_that_had_the_push_before(first: bool) -> None:
    async with settlement_house() as h:
        before, proven = h.flight("p1", h.message()), h.flight("p1", h.message())
        proven.received(h.clock.now, "s1")
        for flight in (proven, before) if first else (before, proven):
            h.worklist.due(flight)
        await until(lambda: len(h.acks.acked) == 2)
        assert h.row("p1").outcome is Outcome.RECEIVED
