"""However costly a message is to read, the event loop never waits long for it: CPU time, not the clock on the wall."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice

import pytest

from bridge.core.contract.client_frames import parse_client
from bridge.core.contract.control import CONTROL_BYTES_MAX, decode_control
from bridge.core.contract.requests import Decoded, Limits, decode, decode_in_steps
from bridge.core.contract.stepping import TURN, Steps, finish, in_turns
from bridge.core.model.pushes import BATCH_MAX, MESSAGE_BYTES_MAX, PushRequest, Rejected
from bridge.core.ports.broker import Arrival
from tests.support import costly_messages as costly
from tests.support.costly_messages import Costly
from tests.support.ports import ManualClock, arrival

STEP_MAX = 0.020
"""Seconds of CPU that no step may take. On the machine where this was written the worst takes a quarter of it."""
RUNS = 5
"""A step that seems to take longer may have been disturbed: the best of so many runs counts."""

FRAME_BYTES = 64 * 1024
"""A client's message is at most as large (`adapters/websocket/connection.py`)."""


def durations(steps: Steps[Decoded]) -> tuple[list[float], Decoded]:
    """CPU seconds of each step, and the result."""
    taken: list[float] = []
    while True:
        began = time.thread_time()
        try:
            next(steps)
        except StopIteration as end:
            taken.append(time.thread_time() - began)
            return taken, end.value
        taken.append(time.thread_time() - began)


def slowest_step(message: Costly, limits: Limits) -> float:
    made = arrival(message.body(), **message.properties)
    best, decoded = durations(decode_in_steps(made, limits))
    assert decoded.requests
    for _ in range(RUNS):
        if max(best) <= STEP_MAX:
            break
        again, _ = durations(decode_in_steps(made, limits))
        best = [min(pair) for pair in zip(best, again, strict=True)]
    return max(best)


def cpu_seconds(work: Callable[[], object]) -> float:
    """The least that it takes."""
    best = float("inf")
    for _ in range(RUNS):
        began = time.thread_time()
        work()
        best = min(best, time.thread_time() - began)
    return best


@pytest.mark.parametrize(
    ("messages", "every"),
    [
        (costly.requests(), 8),
        (costly.batches(), 61),
        (costly.with_headers(), 5),
        (costly.damaged(), 131),
    ],
    ids=["requests", "batches", "with headers", "damaged"],
)
def test_no_step_of_reading_a_message_takes_long(messages: Iterable[Costly], every: int) -> None:
    """Of the thousands some hundreds, the same ones each time: every value, every place and every damage."""
    limits = (Limits(), Limits(max_data_bytes=MESSAGE_BYTES_MAX))
    slow = {
        message.name: seconds
        for number, message in enumerate(islice(messages, 0, None, every))
        if (seconds := slowest_step(message, limits[number % 2])) > STEP_MAX
    }
    assert slow == {}


@pytest.mark.parametrize("what", costly.VALUES)
def test_a_clients_frame_is_read_in_no_time_whatever_it_holds(what: str) -> None:
    value = costly.VALUES[what](FRAME_BYTES - 64)
    for frame in (
        value,
        value[:-1],
        b'{"type":%b}' % value,
        b'{"type":"ack","id":%b}' % value,
        b'{"type":"ack","id":"p1","tenant":%b}' % value,
        b'{"type":"ack","id":"p1","ref":%b}' % value,
        b'{"type":"publish","data":%b}' % value,
        b'{"type":"ack","id":"p1","x":%b,"ref":true}' % value,
    ):
        for data in (frame, frame.decode()):
            assert cpu_seconds(partial(parse_client, data)) < STEP_MAX / 4


@pytest.mark.parametrize("what", costly.VALUES)
def test_a_control_message_is_read_in_no_time_whatever_it_holds(what: str) -> None:
    for size in (CONTROL_BYTES_MAX, MESSAGE_BYTES_MAX):
        value = costly.VALUES[what](size - 64)
        for body in (
            value,
            value[:-1],
            b'{"type":%b}' % value,
            b'{"type":"recall","push_id":%b}' % value,
            b'{"type":"recall",%b}' % value[1:-1],
        ):
            assert cpu_seconds(partial(decode_control, body)) < STEP_MAX


RIGHT: dict[str, object] = {
    "to": {"user": "u1"},
    "event": "order.shipped",
    "data": {"order": 4711, "parcels": 2, "note": "x" * 60},
    "tenant": "shop",
}
DEEP = [json.loads(costly.nested(99, 201))] * 3
"""As many brackets as in 300 levels."""


def batch(fields: Mapping[str, object]) -> Arrival:
    """As many of these as there may be; what is `...` is left out."""
    given = {name: value for name, value in fields.items() if value is not ...}
    return arrival(json.dumps([{"id": f"p{number}", **given} for number in range(BATCH_MAX)]).encode())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ({}, {"evnt": "x"}),
        ({}, {"to": ...}),
        ({}, {"data": ...}),
        ({}, {"event": 7}),
        ({}, {"to": {"user": 5}}),
        ({}, {"confirm": "seen"}),
        ({}, {"ttl": -1}),
        ({"meta": {"k": "v"}}, {"meta": {"k": 1}}),
        ({"data": "x" * 500}, {"data": "x" * 501}),
        ({"data": DEEP}, {"data": json.loads(b"[" * 300 + b"]" * 300)}),
    ],
    ids=lambda change: next(iter(change), "right"),
)
def test_what_is_wrong_costs_little_more_than_what_is_right(
    right: dict[str, object], wrong: dict[str, object]
) -> None:
    """Six to nine times as much, since all that is wrong is named; the rest is for the sake of busy machines."""
    limits = Limits(max_data_bytes=650 if right.get("data") is DEEP else 502)
    seconds = []
    for changes, kind in ((right, PushRequest), (wrong, Rejected)):
        made = batch({**RIGHT, **changes})
        assert {type(request) for request in decode(made, limits).requests} == {kind}
        seconds.append(cpu_seconds(partial(decode, made, limits)))
    assert seconds[1] < 15 * seconds[0]


def test_one_element_that_is_no_json_costs_the_others_little() -> None:
    whole = batch(RIGHT)
    broken = arrival(whole.body[:-1].replace(b"4711", b"NaN", 1) + b"]")
    requests = decode(broken, Limits()).requests
    assert [isinstance(request, Rejected) for request in requests] == [True] + [False] * (BATCH_MAX - 1)
    seconds = [cpu_seconds(partial(decode, made, Limits())) for made in (whole, broken)]
    assert seconds[1] < 10 * seconds[0]


# --- taking turns ----------------------------------------------------------------------------------------


class CountingClock(ManualClock):
    """Its time moves with each look at it."""

    def __init__(self, seconds_a_look: float) -> None:
        super().__init__()
        self.turns = 0
        self._seconds = seconds_a_look

    def monotonic(self) -> float:
        self.mono += self._seconds
        return self.mono

    async def sleep(self, seconds: float) -> None:
        self.turns += 1
        await super().sleep(seconds)


@pytest.mark.parametrize(("seconds_a_step", "turns"), [(0.0, 0), (TURN / 4, 6), (TURN, 25)])
async def test_others_have_their_turn_when_it_takes_long(seconds_a_step: float, turns: int) -> None:
    def steps() -> Steps[str]:
        for _ in range(25):
            yield
        return "done"

    clock = CountingClock(seconds_a_step)
    assert await in_turns(steps(), clock) == "done"
    assert clock.turns == turns


@pytest.mark.parametrize("number", range(0, 1400, 100))
def test_reading_in_steps_and_in_one_go_is_the_same(number: int) -> None:
    message = next(islice(costly.requests(), number, None))
    made = arrival(message.body(), **message.properties)
    assert finish(decode_in_steps(made, Limits())) == decode(made, Limits())
