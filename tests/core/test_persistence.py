"""The database is down, or a call is too much for it: told apart, and neither stops what has nothing to do with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec
import pytest

from bridge.adapters.memory import MemoryStore
from bridge.core.errors import StatementFailed, StoreUnavailable
from bridge.core.inflight.flight import Flight
from bridge.core.inflight.held import HeldMessage
from bridge.core.inflight.row_of import OWED_MAX, row_of
from bridge.core.model.fingerprint import NOT_KNOWN
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import Reply, Row, RowKey
from bridge.core.ports.store import Collapse, Superseded, Written
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence
from tests.support.house import BOUNDS, House, settlement_house
from tests.support.ports import ManualClock
from tests.support.waiting import until


class Parts:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStore(self.clock)
        self.gate = Gate()
        self.persistence = Persistence(self.store, self.gate, self.clock, "parts", BOUNDS.statements)
        self.calls: list[list[int]] = []
        self.set_aside: list[int] = []

    async def run(self, items: Sequence[int], bad: Callable[[Sequence[int]], bool]) -> list[int]:
        async def call(some: Sequence[int]) -> Sequence[int]:
            self.calls.append(list(some))
            if bad(some):
                raise StatementFailed("canceling statement due to statement timeout")
            return some

        async def alone(item: int, error: StatementFailed) -> Sequence[int]:
            self.set_aside.append(item)
            return ()

        return await self.persistence.in_parts(items, call, alone)


async def test_a_statement_that_fails_is_made_smaller_until_its_culprit_is_alone() -> None:
    p = Parts()
    done = await p.run(range(500), lambda some: 333 in some)
    assert done == [n for n in range(500) if n != 333]
    assert p.set_aside == [333]
    failed = [len(call) for call in p.calls if 333 in call]
    assert failed == [500, 63, 8, 1], "each try of a culprit costs a time limit"
    assert p.gate.is_open


async def test_what_is_too_much_at_once_is_done_in_parts() -> None:
    p = Parts()
    assert await p.run(range(100), lambda some: len(some) > 20) == list(range(100))
    assert p.set_aside == []
    assert len(p.calls) == 1 + BOUNDS.statements.parts


async def test_while_nothing_can_be_written_the_gate_is_shut_and_the_call_waits() -> None:
    p = Parts()
    p.store.fail_with = StoreUnavailable("stopped")

    async def call() -> int:
        if p.store.fail_with is not None:
            raise p.store.fail_with
        return 7

    running = asyncio.create_task(p.persistence.call(call))
    await until(lambda: "parts" in p.gate)
    p.gate.clear("database")
    assert "parts" in p.gate, "an unrelated query does not open it"
    p.store.fail_with = None
    p.clock.advance(3)
    assert await running == 7
    assert p.gate.is_open


async def test_a_call_that_goes_on_failing_while_rows_can_be_written_is_to_blame() -> None:
    p = Parts()
    tries = 0

    async def call() -> None:
        nonlocal tries
        tries += 1
        raise StoreUnavailable("cannot do this (0A000)")

    with pytest.raises(StatementFailed):
        await p.persistence.call(call)
    assert tries == BOUNDS.statements.suspect_after
    assert p.gate.is_open


# --- rows ------------------------------------------------------------------------------------------------


def refuse(h: House, bad: Callable[[Row], bool]) -> list[int]:
    """From now on a statement with such a row fails; returns the sizes of those that did."""
    record, failed = h.store.record, []

    async def picky(rows: Sequence[Row]) -> Sequence[Written]:
        if any(map(bad, rows)):
            failed.append(len(rows))
            raise StatementFailed("canceling statement due to statement timeout")
        return await record(rows)

    h.store.record = picky  # type: ignore[method-assign]
    return failed


def received(h: House, push_id: str, reply_to: str = "") -> Flight:
    flight = h.flight(push_id, h.message(reply_to))
    flight.received(h.clock.now, "s1")
    h.worklist.due(flight)
    return flight


async def test_a_row_that_can_not_be_written_is_set_aside_and_the_others_are_acked() -> None:
    async with settlement_house() as h:
        failed = refuse(h, lambda row: row.key.push_id == "p4")
        for n in range(9):
            received(h, f"p{n}")
        await until(lambda: len(h.acks.acked) == 8)
        assert h.gate.is_open
        assert (h.worklist.set_aside, h.worklist.rows_waiting) == (1, 1)
        assert [error for error, where in h.errors.seen if where == "store.record"]
        before = len(failed)
        received(h, "p9")
        await until(lambda: len(h.acks.acked) == 9)
        assert len(failed) == before, "nobody waits for it"
        h.store.record = type(h.store).record.__get__(h.store)  # type: ignore[method-assign]
        h.clock.advance(60)
        await until(lambda: len(h.acks.acked) == 10)
        assert h.row("p4").outcome is Outcome.RECEIVED
        assert h.worklist.set_aside == 0


async def test_a_row_that_somebody_holds_is_written_when_it_is_let_go_with_what_came_in_between() -> None:
    async with settlement_house() as h:
        held = True
        record = h.store.record

        async def holding(rows: Sequence[Row]) -> Sequence[Written]:
            return [Written(r, None) for r in rows] if held else await record(rows)

        h.store.record = holding  # type: ignore[method-assign]
        flight = h.flight("p1", h.message())
        h.worklist.due(flight)
        await until(lambda: h.worklist.set_aside)
        h.clock.advance(0.2)
        await asyncio.sleep(0)
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        held = False
        h.clock.advance(60)
        await until(lambda: h.acks.acked)
        assert h.row("p1").outcome is Outcome.RECEIVED
        assert not h.worklist.set_aside


async def test_a_row_that_is_set_aside_again_and_again_is_tried_ever_less_often() -> None:
    async with settlement_house() as h:
        failed = refuse(h, lambda row: True)
        received(h, "p1")
        await until(lambda: failed)
        for _ in range(1200):
            h.clock.advance(0.1)
            for _ in range(5):
                await asyncio.sleep(0)
        assert 8 <= len(failed) <= 14, "a tenth of a second at first, half a minute in the end"


async def test_older_pushes_that_can_not_be_ended_hold_nobody_up_and_end_later() -> None:
    async with settlement_house() as h:
        supersede, stuck = h.store.supersede, True

        async def failing(newer: Sequence[Collapse], limit: int) -> Superseded:
            if stuck and any(c.user == "u1" for c in newer):
                raise StatementFailed("canceling statement due to lock timeout")
            return await supersede(newer, limit)

        h.store.supersede = failing  # type: ignore[method-assign]
        for push_id, user, position in (("a", "u1", 1), ("a", "u2", 1)):
            key = RowKey("", push_id, user)
            flight = h.flight(push_id, h.message(), user)
            old = row_of(flight, "n1", "b1")
            h.store.rows[key] = Row(
                key, Outcome.STORED, old.reason, "n1", "b1", h.clock.now, h.clock.now,
                expires_at=h.clock.now + 99, collapse_key="k", position=position, payload=b"1",
            )  # fmt: skip
        for user in ("u1", "u2"):
            flight = h.flight("b", h.message(), user)
            flight.collapse_key, flight.position = "k", 9
            flight.received(h.clock.now, "s1")
            h.worklist.due(flight)
        await until(lambda: len(h.acks.acked) == 2)
        assert [key.user for key, row in h.final_rows.items() if row.outcome is Outcome.SUPERSEDED] == ["u2"]
        stuck = False
        h.worklist.sweep()
        await until(lambda: sum(row.outcome is Outcome.SUPERSEDED for row in h.final_rows.values()) == 2)


# --- debts -----------------------------------------------------------------------------------------------


def stored_row(h: House, push_id: str, owes: int) -> Row:
    """A row that waits for its user and owes so many replies."""
    flight = h.flight(push_id, h.message())
    made = msgspec.structs.replace(
        row_of(flight, "n1", "b1"),
        outcome=Outcome.STORED,
        reason=Reason.NO_SESSION,
        expires_at=h.clock.now + 99,
        payload=b"1",
        owed=tuple(Reply("q", f"c{n}") for n in range(owes)),
    )
    h.store.rows[made.key] = made
    return made


def repeat(h: House, row: Row, correlation_id: str) -> HeldMessage:
    message = h.message("q", correlation_id)
    message.open = 1
    h.worklist.answer(message, row, NOT_KNOWN)
    return message


async def test_a_row_that_owes_enough_answers_at_once_and_before_the_ack() -> None:
    async with settlement_house() as h:
        row = stored_row(h, "p1", OWED_MAX - 1)
        h.publisher.refusing = True
        repeat(h, row, "last")
        repeat(h, row, "too many")
        repeat(h, row, "c0")
        await until(lambda: len(h.acks.acked) == 2)
        assert len(h.row("p1").owed or ()) == OWED_MAX
        assert [r.correlation_id for r in h.row("p1").owed or ()][-1] == "last"
        h.publisher.refusing = False
        h.worklist.sweep()
        await until(lambda: len(h.acks.acked) == 3)
        [answer] = h.publisher.sent
        assert (answer.row.outcome, answer.row.final, answer.announce) == (Outcome.STORED, False, False)
        assert [r.correlation_id for r in answer.replies] == ["too many"]


async def test_a_debt_that_can_not_be_noted_keeps_its_message_and_no_other() -> None:
    async with settlement_house() as h:
        owe, stuck = h.store.owe, True

        async def failing(debts: Mapping[RowKey, tuple[Reply, ...]]) -> Collection[RowKey]:
            if stuck and any(key.push_id == "p1" for key in debts):
                raise StatementFailed("canceling statement due to lock timeout")
            return await owe(debts)

        h.store.owe = failing  # type: ignore[method-assign]
        for push_id in ("p1", "p2", "p3"):
            repeat(h, stored_row(h, push_id, 0), "c")
        await until(lambda: len(h.acks.acked) == 2)
        assert h.row("p1").owed == ()
        stuck = False
        h.worklist.sweep()
        await until(lambda: len(h.acks.acked) == 3)
        assert h.row("p1").owed == (Reply("q", "c"),)


async def test_a_row_with_very_many_debts_is_paid_in_parts_that_are_confirmed_one_by_one() -> None:
    async with settlement_house() as h:
        many = 3 * OWED_MAX + 7
        row = stored_row(h, "p1", many)
        h.store.rows[row.key] = msgspec.structs.replace(
            row, outcome=Outcome.RECEIVED, reason=Reason.PONG, finished_at=h.clock.now
        )
        h.worklist.sweep()
        await until(lambda: h.row("p1").owed is None)
        assert max(len(r.replies) for r in h.publisher.sent) == OWED_MAX
        assert len({reply for r in h.publisher.sent for reply in r.replies}) == many
        assert [r.announce for r in h.publisher.sent] == [True, False, False, False]


async def test_a_debt_that_is_paid_and_can_not_be_settled_is_not_paid_again_each_second() -> None:
    async with settlement_house() as h:
        settle, stuck = h.store.settle, True

        async def failing(paid: Mapping[RowKey, tuple[Reply, ...]]) -> Collection[RowKey]:
            if stuck:
                raise StatementFailed("canceling statement due to lock timeout")
            return await settle(paid)

        h.store.settle = failing  # type: ignore[method-assign]
        row = stored_row(h, "p1", 1)
        h.store.rows[row.key] = msgspec.structs.replace(
            row, outcome=Outcome.RECEIVED, reason=Reason.PONG, finished_at=h.clock.now
        )
        for _ in range(5):
            h.worklist.sweep()
            h.clock.advance(1)
            await h.worklist.idle()
        assert len(h.publisher.sent) == 1
        stuck = False
        h.clock.advance(60)
        h.worklist.sweep()
        await until(lambda: h.row("p1").owed is None)


async def test_proof_is_noted_on_a_row_that_another_process_has_ended_without_it() -> None:
    async with settlement_house() as h:
        flight = h.flight("p1", h.message())
        ended = msgspec.structs.replace(
            row_of(flight, "n1", "b0"),
            outcome=Outcome.UNKNOWN,
            reason=Reason.NODE_DIED,
            finished_at=h.clock.now,
        )
        h.store.rows[ended.key] = ended
        h.clock.advance(1)
        flight.received(h.clock.now, "s1")
        h.worklist.due(flight)
        await until(lambda: h.acks.acked)
        h.worklist.sweep()
        await until(lambda: h.row("p1").late_at is not None)
        assert (h.row("p1").outcome, h.row("p1").proven_at) == (Outcome.UNKNOWN, flight.proven_at)
