"""A node whose letters have a newer version beside one of this version, as long as an upgrade lasts.

The newer one reads this version, as the rule in docs/operating.md wants; this one can't read the newer one. No push is
lost, and each ends once, by the rules for a node that does not answer.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from bridge.core.contract.letters import VERSION, NotUnderstood, decode_letter
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.ports.nodes import Letter
from tests.support.house import House, Peer, kept, to
from tests.support.town import Town, town
from tests.support.waiting import turns, until

LIMITS = DeliveryLimits(start_grace=0.0, confirm_timeout=5.0)
HERE, THERE = "u-here", "u-there"


def newer(letter: Letter) -> Letter:
    """What the newer node sends: another version, and an item that this one has never heard of."""
    version, boot, items, *rest = msgspec.msgpack.decode(letter.body)
    if boot != "boot-new":
        return letter
    return letter._replace(body=msgspec.msgpack.encode([version + 1, boot, [*items, [99, "news"]], *rest]))


@asynccontextmanager
async def side_by_side() -> AsyncIterator[tuple[Town, House, House]]:
    """A town with a node of this version and a newer one."""
    async with town("old", "new", limits=LIMITS) as (made, [old, new]):
        made.on_the_way = newer
        yield made, old, new


async def online(house: House, user: str) -> Peer:
    """A session that is welcomed, and has what was kept."""
    peer = house.connect(user)
    await until(lambda: any(b"welcome" in frame.payload for frame in peer.socket.frames))
    return peer


async def pass_time(*houses: House, seconds: float = 8.0) -> None:
    """Let all deadlines pass."""
    for _ in range(round(seconds / 0.1)):
        houses[0].clock.advance(0.1)
        for house in houses:
            house.core.tick()
        await turns(5)


def shown(*peers: Peer) -> set[object]:
    """The pushes that they were sent."""
    return {push["id"] for peer in peers for push in peer.pushes}


async def test_the_old_one_takes_and_can_not_read_what_the_new_one_reports() -> None:
    async with side_by_side() as (_, old, new):
        here, there = await online(old, HERE), await online(new, THERE)
        for user in (HERE, THERE):
            await old.push(to(user, f"live {user}"))
            await old.push(kept(user, f"kept {user}", 60))
        await until(lambda: len(shown(here, there)) == 4)
        here.answer()
        there.answer()
        await pass_time(old, new)
        assert [old.end(f"{kind} {HERE}", HERE) for kind in ("live", "kept")] == [
            (Outcome.RECEIVED, Reason.PONG)
        ] * 2
        # Shown, and nobody here was told: that is not known, and what has a ttl is sent again.
        assert old.end(f"live {THERE}", THERE) == (Outcome.UNKNOWN, Reason.NODE_SILENT)
        assert old.row(f"kept {THERE}", THERE).outcome is Outcome.STORED
        there.leave()
        back = await online(old, THERE)
        await until(lambda: shown(back))
        back.answer()
        await until(lambda: old.row(f"kept {THERE}", THERE).final)
        assert old.end(f"kept {THERE}", THERE) == (Outcome.RECEIVED, Reason.PONG)
        told = [error for error, where in old.errors.seen if where == "nodes.letter"]
        words = f"its version is {VERSION + 1}, and this bridge speaks version {VERSION}"
        assert {str(error) for error in told} == {f"a letter from another node can't be read: {words}"}
        assert not new.errors.seen


async def test_the_new_one_takes_and_the_old_one_can_not_read_what_it_forwards() -> None:
    async with side_by_side() as (_, old, new):
        there = await online(old, THERE)
        await new.push(to(THERE, "live"))
        await new.push(kept(THERE, "kept", 60))
        await pass_time(new, old)
        assert shown(there) == set()
        assert new.end("live", THERE) == (Outcome.UNKNOWN, Reason.NODE_SILENT)
        assert new.end("kept", THERE) == (Outcome.STORED, Reason.NODE_SILENT)
        # The upgrade goes on: the old node stops, and its client comes to the new one.
        there.leave()
        back = await online(new, THERE)
        await until(lambda: shown(back) == {"kept"})
        back.answer()
        await until(lambda: new.row("kept", THERE).final)
        assert new.end("kept", THERE) == (Outcome.RECEIVED, Reason.PONG)


@pytest.mark.parametrize("seed", range(5))
async def test_whoever_takes_nothing_is_lost_and_each_push_ends_once(seed: int) -> None:
    dice = random.Random(seed)
    async with side_by_side() as (made, old, new):
        houses = (old, new)
        peers = [
            await online(house, user) for house, user in ((old, "a"), (new, "b"), (old, "c"), (new, "c"))
        ]
        sent: dict[str, str] = {}
        for number in range(40):
            user, push_id = dice.choice("abcd"), f"p{number}"
            sent[push_id] = user
            body = kept(user, push_id, 3600) if dice.random() < 0.5 else to(user, push_id)
            await dice.choice(houses).push(body)
            await turns()
            if dice.random() < 0.7:
                dice.choice(peers).answer()
            if dice.random() < 0.2:
                await pass_time(*houses, seconds=1.0)
        await pass_time(*houses)
        for peer in peers:
            peer.leave()
        await turns()
        # All are upgraded, and every user comes back: what was kept is shown and proven.
        made.on_the_way = lambda letter: letter
        back = [await online(new, user) for user in "abcd"]
        for _ in range(20):
            await pass_time(*houses, seconds=0.5)
            for peer in back:
                peer.answer()
        rows = {key.push_id: (key.user, row) for key, row in made.store.rows.items()}
        assert {push_id: user for push_id, (user, _) in rows.items()} == sent, "a row for each, and no other"
        assert not [push_id for push_id, (_, row) in rows.items() if not row.final]
        everyone = shown(*peers, *back)
        for push_id, (_, row) in rows.items():
            proven = row.outcome in (Outcome.RECEIVED, Outcome.ACKED)
            assert not proven or push_id in everyone, f"{push_id} was proven, and nobody has seen it"


def test_a_letter_with_an_item_of_a_later_program_is_not_read_in_part() -> None:
    """Its items belong together. So a new kind of item needs a new version, or is only sent to who knows it."""
    with pytest.raises(NotUnderstood):
        decode_letter(msgspec.msgpack.encode([VERSION, "boot", [[99, "news"]]]))
