"""Control messages on the real core with its ports in memory: carried out in order, answered, acked, never lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import get_args, get_type_hints

import msgspec
import pytest

from bridge.core.contract.control import BadControl, decode_control
from bridge.core.control import AT_ONCE, HANDLERS, Control
from bridge.core.errors import ControlRefused, StoreUnavailable
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import Recall
from bridge.core.model.rows import Reply
from bridge.core.ports.broker import Arrival, Source
from bridge.core.ports.store import RecallPage, RecallPlace
from tests.support.house import House, house, kept
from tests.support.ports import RecordingAnswers, arrival
from tests.support.waiting import until


def asking(tag: int = 1, reply_to: str = "q", **message: object) -> Arrival:
    body = json.dumps(message).encode()
    return arrival(body, tag=tag, source=Source.CONTROL, reply_to=reply_to, correlation_id=f"c{tag}")


@asynccontextmanager
async def controlled() -> AsyncIterator[tuple[House, Control, RecordingAnswers]]:
    async with house() as h:
        async with h.running(h.control):
            yield h, h.control, h.answers


def test_every_type_of_message_that_can_be_read_has_a_handler() -> None:
    read = set(get_args(get_type_hints(decode_control)["return"])) - {BadControl}
    assert set(HANDLERS) == read


async def test_recalls_are_carried_out_in_their_order_answered_and_acked() -> None:
    async with controlled() as (h, control, answers):
        await h.push(kept("u1", "p1"))
        await h.settled(1)
        asked = [asking(11, type="recall", push_id="p1"), asking(12, type="recall", push_id="p1")]
        control.arrived(asked)
        await h.settled(3)
        await h.ends("p1", Outcome.RECALLED, Reason.WITHDRAWN)
        assert [(reply.correlation_id, said["ended"]) for reply, said in answers.given] == [
            ("c11", 1),
            ("c12", 0),
        ]
        assert h.acks.acked[1:] == [a.token for a in asked]
        assert h.errors.seen == []


async def test_what_is_not_carried_out_is_answered_and_reported_since_nobody_may_read_the_answer() -> None:
    async with controlled() as (h, control, answers):
        control.arrived([asking(1, type="recall", push="p1"), asking(2, "", type="dance")])
        await h.settled(2)
        ((reply, said),) = answers.given
        assert (reply, said["type"]) == (Reply("q", "c1"), "error")
        assert [type(error) for error, _ in h.errors.seen] == [ControlRefused] * 2
        assert str(h.errors.seen[0][0]).endswith(": no such field")


async def test_a_recall_of_which_only_the_beginning_came_is_not_carried_out() -> None:
    async with controlled() as (h, control, answers):
        await h.push(kept("u1", "p1"))
        await h.settled(1)
        control.arrived(
            [msgspec.structs.replace(asking(11, type="recall", push_id="p1"), body_size=2_000_000)]
        )
        await h.settled(2)
        await h.ends("p1", Outcome.STORED, Reason.NO_SESSION)
        assert [said["problem"] for _, said in answers.given] == [
            "the message has 2000000 bytes, 16384 are allowed"
        ]


async def test_while_the_database_is_away_a_recall_waits_and_is_acked_when_it_is_done() -> None:
    async with controlled() as (h, control, answers):
        await h.push(kept("u1", "p1"))
        await h.settled(1)
        h.store.fail_with = StoreUnavailable("away")
        control.arrived([asking(11, type="recall", push_id="p1")])
        await until(lambda: "control" in h.gate)
        assert (len(h.acks.acked), answers.given) == (1, [])
        h.store.fail_with = None
        h.advance(2)
        await h.settled(2)
        await h.ends("p1", Outcome.RECALLED, Reason.WITHDRAWN)
        assert len(answers.given) == 1


async def test_what_has_not_begun_when_its_channel_is_lost_is_left_to_come_again() -> None:
    async with controlled() as (h, control, answers):
        h.gate.shut("broker", "away")
        control.arrived([asking(n, type="recall", push_id="p1") for n in range(1, AT_ONCE + 2)])
        for _ in range(20):
            await asyncio.sleep(0)
        control.channel_lost(1)
        h.gate.clear("broker")
        await h.settled(AT_ONCE)
        for _ in range(50):
            await asyncio.sleep(0)
        begun = [f"c{n}" for n in range(1, AT_ONCE + 1)]
        assert sorted(reply.correlation_id for reply, _ in answers.given) == begun


async def test_a_recall_that_takes_long_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async with controlled() as (h, control, answers):
        recall, waiting = h.store.recall, asyncio.Event()

        async def slow(asked: Recall, place: RecallPlace, limit: int) -> RecallPage:
            if asked.push_id == "p1":
                await waiting.wait()
            return await recall(asked, place, limit)

        monkeypatch.setattr(h.store, "recall", slow)
        control.arrived([asking(1, type="recall", push_id="p1"), asking(2, type="recall", push_id="p2")])
        await h.settled(1)
        assert [reply.correlation_id for reply, _ in answers.given] == ["c2"]
        waiting.set()
        await h.settled(2)


async def test_recalls_of_rows_that_somebody_holds_make_room_for_others_and_are_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with controlled() as (h, control, answers):
        recall, held = h.store.recall, True

        async def holding(asked: Recall, place: RecallPlace, limit: int) -> RecallPage:
            page = await recall(asked, place, limit)
            if held and asked.push_id == "p1":
                return RecallPage([w._replace(applied=None) for w in page.written], page.next)
            return page

        await h.push(kept("u1", "p1"))
        await h.settled(1)
        monkeypatch.setattr(h.store, "recall", holding)
        control.arrived([asking(n, type="recall", push_id="p1") for n in range(1, AT_ONCE + 1)])
        control.arrived([asking(99, type="recall", push_id="p2")])

        async def answered(count: int) -> None:
            while len(answers.given) < count:
                h.clock.advance(0.1)
                for _ in range(20):
                    await asyncio.sleep(0)

        await asyncio.wait_for(answered(1), 10)
        assert [reply.correlation_id for reply, _ in answers.given] == ["c99"]
        held = False
        await asyncio.wait_for(answered(1 + AT_ONCE), 10)
