"""Tenants that take turns: the order of each, what none may lose, and how long none waits for another."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.bounds import TakingBounds
from bridge.core.contract.requests import DEFAULT_LIMITS, decode, tenant_of
from bridge.core.delivery.inbox import Inbox
from bridge.core.delivery.sharing_out import COST_BYTES, SharedAcks, SharedInbox
from bridge.core.inflight.shares import DEBT_MAX, Shares
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.rows import RowKey
from bridge.core.ports.broker import AckToken, Arrival, Source
from tests.support.house import BOUNDS, House, house, to
from tests.support.ports import RecordingAcks, arrival
from tests.support.waiting import until

WINDOW, QUANTUM, BATCH = 5, 3, 4


class Room:
    """Stands for the load."""

    room = 100


def shared(shares: Shares | None = None, *, window: int = WINDOW, batch: int = BATCH) -> SharedInbox:
    bounds = TakingBounds(turn=QUANTUM, shared_batch=batch, shared_window=window)
    return SharedInbox(Shares() if shares is None else shares, Room(), window, bounds)


def of(tenant: str, count: int = 1, *, first: int = 0, **more: object) -> list[Arrival]:
    """Messages of a tenant, numbered."""
    return [
        arrival(json.dumps({**to("u1", f"{tenant}{first + n}"), "tenant": tenant}).encode(), **more)  # type: ignore[arg-type]
        for n in range(count)
    ]


def not_suspect(_: Arrival) -> bool:
    return False


def ids(batch: Sequence[Arrival]) -> list[str]:
    return [json.loads(one.body)["id"] for one in batch]


# --- the inbox ---------------------------------------------------------------------------------------


def test_who_comes_later_has_the_next_turn() -> None:
    inbox = shared(window=100)
    inbox.add(of("a", 50))
    assert ids(inbox.next_batch(4, not_suspect)) == ["a0", "a1", "a2", "a3"]
    inbox.add(of("b", 2))
    assert ids(inbox.next_batch(9, not_suspect)) == ["a4", "a5", "b0", "b1"], "and a few at a time now"
    assert inbox.tenants == 1


def test_what_one_tenant_has_in_hand_is_bounded() -> None:
    inbox = shared()
    acks = SharedAcks(RecordingAcks(), inbox)
    inbox.add(of("a", 9))
    taken = [one for _ in range(3) for one in inbox.next_batch(100, not_suspect)]
    assert len(taken) == WINDOW
    assert not inbox.has_next
    inbox.wake.clear()
    acks.ack([taken[3].token])
    assert inbox.wake.is_set()
    assert ids(inbox.next_batch(100, not_suspect)) == ["a5"]
    acks.requeue([taken[0].token, AckToken(9, 9)])
    assert ids(inbox.next_batch(100, not_suspect)) == ["a6"]


def test_while_there_are_several_each_may_have_less_in_hand() -> None:
    bounds = TakingBounds(turn=QUANTUM, shared_batch=2, shared_window=4, shared_ticks=2)
    inbox = SharedInbox(Shares(), Room(), 6, bounds)
    inbox.add(of("a", 5) + of("b"))
    first = inbox.next_batch(10, not_suspect)
    assert len(first) == 2
    while batch := inbox.next_batch(10, not_suspect):
        first += batch
    assert sorted(ids(first)) == ["a0", "a1", "a2", "a3", "b0"]
    inbox.answered([one.token for one in first])
    inbox.add(of("a", 9, first=5))
    inbox.tick()
    assert len(inbox.next_batch(10, not_suspect)) == 2, "it may come back at once"
    inbox.tick()
    assert len(inbox.next_batch(10, not_suspect)) == 4


def test_what_comes_is_read_before_much_is_taken() -> None:
    bounds = TakingBounds(turn=QUANTUM, shared_batch=20, behind=30, behind_batch=4)
    inbox = SharedInbox(Shares(), Room(), 100, bounds)
    inbox.add(of("a", 29) + of("b"))
    assert len(inbox.next_batch(100, not_suspect)) == 4
    inbox.add(of("a", 29, first=29))
    assert len(inbox.next_batch(100, not_suspect)) == 20


def test_a_tenant_may_have_as_many_pushes_in_hand_as_there_is_room_for_others() -> None:
    shares = Shares()
    inbox = shared(shares)
    for _ in range(101):
        shares.begun("a")
    inbox.add(of("a") + of("b"))
    assert ids(inbox.next_batch(9, not_suspect)) == ["b0"]
    inbox.wake.clear()
    shares.ended("a")
    assert inbox.wake.is_set()
    assert ids(inbox.next_batch(9, not_suspect)) == ["a0"]


def test_a_message_for_many_users_costs_its_tenant_as_many_turns() -> None:
    shares = Shares()
    inbox = shared(shares, window=1000, batch=1)
    inbox.add(of("a", 100) + of("b", 100))
    [first] = inbox.next_batch(1, not_suspect)
    for _ in range(30):
        shares.begun("a")
    served = Counter(ids(inbox.next_batch(1, not_suspect))[0][0] for _ in range(27))
    assert ids([first]) == ["a0"]
    assert served == {"b": 27}
    for _ in range(DEBT_MAX + 10):
        shares.begun("a")
    assert shares.of("a").credit == -DEBT_MAX


def test_who_is_alone_waits_for_no_turn() -> None:
    shares = Shares()
    inbox = shared(shares)
    inbox.add(of("a", 3))
    for _ in range(DEBT_MAX):
        shares.begun("a")
    Room.room, before = DEBT_MAX, Room.room
    try:
        assert inbox.has_next
        assert ids(inbox.next_batch(9, not_suspect))[0] == "a0"
    finally:
        Room.room = before


def test_a_large_message_is_worth_several() -> None:
    inbox = shared(window=100, batch=100)
    large = arrival(json.dumps({**to("u1", "a0"), "tenant": "a", "data": "x" * 9 * COST_BYTES}).encode())
    inbox.add([large, *of("a", 9, first=1), *of("b", 12)])
    order = "".join(push_id[0] for push_id in ids(inbox.next_batch(16, not_suspect)))
    assert order == "abbbbbbbbbabbbba" or order.startswith("abbbbbbbbb"), order


def test_a_suspect_is_taken_alone() -> None:
    for inbox in (shared(), Inbox()):
        suspect = of("a", delivery_count=9)[0]
        inbox.add([*of("a", 1, first=5), suspect, *of("b", 2)])

        def is_suspect(one: Arrival) -> bool:
            return one.properties.delivery_count > 5

        batches = [inbox.next_batch(10, is_suspect) for _ in range(4)]
        assert [suspect] in batches
        assert sum(map(len, batches)) == 4


def test_shares_do_not_outlive_what_they_count() -> None:
    shares = Shares()
    inbox = shared(shares)
    for n in range(50):
        inbox.add(of(f"t{n}", incarnation=1 + n % 3))
    taken = inbox.next_batch(3, not_suspect)
    shares.begun("t0")
    inbox.give_back(1)
    inbox.channel_lost(2)
    inbox.channel_lost(3)
    assert inbox.waiting == inbox.tenants == 0
    inbox.answered([one.token for one in taken])
    assert len(shares) == 1
    shares.ended("t0")
    assert len(shares) == 0


class Story:
    """A shared inbox beside the order in which everything must come out of it."""

    def __init__(self) -> None:
        self.shares = Shares()
        self.inbox = shared(self.shares)
        self.lines: dict[str, deque[Arrival]] = {}
        self.in_hand: dict[AckToken, Arrival] = {}
        self.made = 0

    def arrive(self, tenant: int, channel: int) -> None:
        name = "abc"[tenant % 3]
        some = of(name, 1 + tenant % 4, first=self.made, incarnation=1 + channel % 2)
        self.made += len(some)
        self.inbox.add(some)
        self.lines.setdefault(name, deque()).extend(some)

    def take(self, most: int, taken: int) -> None:
        """Take a batch, and so many of it; below zero: all."""
        before = {name for name, line in self.lines.items() if line and self.free(name)}
        batch = self.inbox.next_batch(1 + most % 9, not_suspect)
        assert bool(batch) == bool(before), (ids(batch), before)
        for one in batch:
            assert self.lines[tenant_of(one)].popleft() is one, "out of its order, lost or twice"
        left = batch[taken % (len(batch) + 1) :] if taken >= 0 else []
        for one in reversed(left):
            self.lines[tenant_of(one)].appendleft(one)
        self.in_hand.update({one.token: one for one in batch[: len(batch) - len(left)]})
        self.inbox.put_back(left)

    def free(self, tenant: str) -> bool:
        return sum(tenant_of(one) == tenant for one in self.in_hand.values()) < WINDOW

    def answer(self, first: int, step: int) -> None:
        tokens = list(self.in_hand)[first % 3 :: 1 + step % 3]
        self.inbox.answered(tokens)
        for token in tokens:
            del self.in_hand[token]

    def lose(self, channel: int, _: int) -> None:
        self.inbox.channel_lost(1 + channel % 2)
        self._forget(1 + channel % 2)
        self.in_hand = {t: one for t, one in self.in_hand.items() if t.incarnation != 1 + channel % 2}

    def give_back(self, channel: int, _: int) -> None:
        expected = {a.token for line in self.lines.values() for a in line if a.token[0] == 1 + channel % 2}
        tokens = self.inbox.give_back(1 + channel % 2)
        assert set(tokens) == expected
        assert len(tokens) == len(expected)
        self._forget(1 + channel % 2)

    def _forget(self, incarnation: int) -> None:
        for name, line in self.lines.items():
            self.lines[name] = deque(one for one in line if one.token.incarnation != incarnation)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("arrive", "arrive", "take", "take", "answer", "lose", "give_back")),
        st.integers(0, 60),
        st.integers(0, 60),
    ),
    max_size=60,
)


@given(STEPS)
def test_the_order_of_a_tenant_holds_and_nothing_is_lost_or_twice(steps: list[tuple[str, int, int]]) -> None:
    story = Story()
    for kind, n, m in steps:
        getattr(story, kind)(n, m)
        assert story.inbox.waiting == sum(map(len, story.lines.values()))
        assert story.inbox.tenants == sum(map(bool, story.lines.values()))
        assert story.inbox.has_next == any(line and story.free(name) for name, line in story.lines.items())
    while story.inbox.waiting:
        story.answer(0, 0)
        story.take(3, -1)
    story.inbox.answered(list(story.in_hand))
    assert len(story.shares) == 0


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), min_size=1, max_size=12), st.integers(1, 12)
)
def test_nobody_waits_for_more_than_a_round(some: list[tuple[int, int]], most: int) -> None:
    inbox = shared(window=10_000, batch=most)
    for tenant, count in some:
        inbox.add(of("abcde"[tenant], count))
    left = Counter(dict.fromkeys("abcde", 0))
    for tenant, count in some:
        left["abcde"[tenant]] += count
    between = {name: Counter[str]() for name in "abcde"}
    while batch := inbox.next_batch(most, not_suspect):
        for one in batch:
            name = tenant_of(one)
            left[name] -= 1
            between[name].clear()
            for other in "abcde":
                if other != name and left[other]:
                    between[other][name] += 1
                    assert between[other][name] <= QUANTUM, "one turn of each other, at most"
    assert not any(left.values())


# --- whose a message is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"to":{"user":"u"},"data":1,"tenant":"a"}', {}),
        (b' \n{"tenant":"\\u0061","to":{"user":"u"},"data":{"tenant":"b"}}', {}),
        (b'{"tenant":"b","to":{"user":"u"},"data":1,"tenant":"a"}', {}),
        (b'{"tenant":5,"to":{"user":"u"},"data":1,"tenant":"a"}', {}),
        (b'{"to":{"user":"u"},"data":1}', {}),
        (b'{"to":{"user":"u"},"data":1,"tenant":"a"}', {"x-push-id": "p", "traceparent": "x"}),
        (b'{"tenant":"b"}', {"x-push-user": "u", "x-push-tenant": "a"}),
        (b'{"tenant":"b"}', {"x-push-user": "u"}),
        (b'{"tenant":"a","to":{"user":"u"},"data":1}', {"x-push-tenant": None}),
        (b'[{"tenant":"a","to":{"user":"u"},"data":1},{"tenant":"a","to":{"user":"u"},"data":2}]', {}),
        (b' [{"tenant":"a","to":{"user":"u"},"data":1}, {"to" 5}]', {}),
        (b'[{"to":{"user":"u"},"data":1}]', {}),
    ],
)
def test_the_tenant_of_a_message_is_that_of_its_first_request(
    body: bytes, headers: dict[str, object]
) -> None:
    made = arrival(body, headers=headers)
    assert tenant_of(made) == decode(made, DEFAULT_LIMITS).requests[0].tenant


@pytest.mark.parametrize(
    "body", [b"", b"[", b"[]", b"[5]", b"{", b"5", b'"\xff', b'{"tenant":[]}', b"[" * 9999]
)
def test_what_cannot_be_read_is_nobodys(body: bytes) -> None:
    assert tenant_of(arrival(body)) == ""


@given(st.binary(max_size=200))
def test_looking_for_a_tenant_never_fails(body: bytes) -> None:
    tenant_of(arrival(body))
    tenant_of(arrival(b"[" + body + b"]"))


# --- the whole core ----------------------------------------------------------------------------------


def crowded(in_hand: int = 50_000) -> AbstractAsyncContextManager[House]:
    bounds = BOUNDS._replace(taking=TakingBounds(in_hand=in_hand))
    return house(tenant_window=1000, bounds=bounds)


async def test_a_small_tenants_push_passes_5000_of_another() -> None:
    async with crowded() as h:
        large, small = h.connect("u1"), h.connect("u2")
        many = [arrival(json.dumps({**to("u1", f"p{n}"), "tenant": "large"}).encode()) for n in range(5000)]
        h.intake.arrived(many)
        while len(large.pushes) < 400:
            large.answer()
            await asyncio.sleep(0)
        h.intake.arrived([arrival(json.dumps({**to("u2", "s1"), "tenant": "small"}).encode())])
        while not small.pushes:
            large.answer()
            await asyncio.sleep(0)
        small.answer()
        assert h.intake.tenants_waiting == 1
        assert len(large.pushes) < 1500
        while len(h.acks.acked) < 5001:
            large.answer()
            h.clock.advance(0.001)
            await asyncio.sleep(0)
        assert [p["id"] for p in large.pushes] == [f"p{n}" for n in range(5000)]
        row = h.store.rows[RowKey("small", "s1", "u2")]
        assert (row.outcome, row.reason) == (Outcome.RECEIVED, Reason.PONG)
        assert h.core.shares is not None
        assert len(h.core.shares) == 0
        assert h.intake.tenants_waiting == 0


async def test_a_tenant_whose_clients_do_not_answer_leaves_room_for_others() -> None:
    async with crowded(in_hand=20) as h:
        h.connect("u1")
        h.connect("u2")
        h.intake.arrived(of("large", 50))
        for _ in range(50):
            await asyncio.sleep(0)
        assert h.inflight.busy == 11, "half of all that may be in hand, and one to be over it"
        assert h.intake.waiting == 39
        h.intake.arrived([arrival(json.dumps({**to("u2", "s1"), "tenant": "small"}).encode())])
        await until(lambda: h.inflight.get(RowKey("small", "s1", "u2")) is not None)


async def test_a_fallen_message_waits_in_the_line_of_its_tenant() -> None:
    async with crowded() as h:
        fallen = arrival(
            json.dumps({**to("u2", "s1"), "tenant": "small"}).encode(),
            source=Source.FALLEN,
            delivery_count=20,
        )
        h.intake.arrived([fallen])
        await h.settled(1)
        assert h.acks.acked == [fallen.token]
        assert h.core.shares is not None
        assert len(h.core.shares) == 0
