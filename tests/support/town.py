"""Several cores with one store and one ledger, and letters between them, in memory: each step when the test says so."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from bridge.adapters.memory import MemoryDirectory, MemoryLease, MemorySessions
from bridge.adapters.memory.retained import MemoryRetained
from bridge.core.bounds import Bounds
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.model.retained import LastValue, LastValuesAsk, LastValuesPage
from bridge.core.ports.nodes import Holder, Letter, Sent
from tests.support.house import BOUNDS, House
from tests.support.ports import GatedStore, ManualClock


async def open_gate() -> None:
    """Wait for nothing."""


class Wire:
    """Fills the NodePost port of one core: letters come at once, unless the test wants otherwise."""

    def __init__(self, town: Town, queue: str) -> None:
        self._town = town
        self._queue = queue
        self._line: deque[tuple[Sequence[Letter], Callable[[int, Sent], None]]] = deque()
        self._sending: asyncio.Task[None] | None = None

    @property
    def queue(self) -> str:
        return self._queue

    def listen(self, queue: str) -> None:
        """Listen on another queue from now on."""
        self._queue = queue

    def send(self, letters: Sequence[Letter], told: Callable[[int, Sent], None]) -> None:
        self._line.append((letters, told))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name="letters of the town")

    async def _send(self) -> None:
        while self._line:
            await self._town.before("send")
            letters, told = self._line.popleft()
            for place, letter in enumerate(letters):
                told(place, self._town.deliver(letter))


class Asked(MemoryDirectory):
    """Tells the town before it looks who has a user."""

    town: Town

    async def holders(self, users: Sequence[str]) -> Mapping[str, Sequence[str]]:
        self.town.asked += 1
        await self.town.before("look")
        found = await super().holders(users)
        await self.town.before("found")
        return found

    async def session_holders(self, sessions: Sequence[str]) -> Mapping[str, Holder]:
        self.town.sessions_asked.append(list(sessions))
        return await super().session_holders(sessions)

    async def everyone(self, after: str, limit: int) -> Sequence[tuple[str, Sequence[str]]]:
        self.town.everyone_asked += 1
        return await super().everyone(after, limit)


class AskedValues(MemoryRetained):
    """Tells the town when it has kept a last value, before it reads some, and when it has."""

    town: Town
    kept: LastValue
    """The last one."""

    async def keep(self, value: LastValue) -> None:
        await self.town.before("keep")
        await super().keep(value)
        self.kept = value
        await self.town.before("kept")

    async def find(self, asks: Sequence[LastValuesAsk]) -> Sequence[LastValuesPage]:
        await self.town.before("read")
        found = await super().find(asks)
        await self.town.before("have read")
        return found


@dataclass
class Town:
    """Houses by the queue on which they listen."""

    clock: ManualClock
    store: GatedStore
    sessions: MemorySessions
    houses: dict[str, House] = field(default_factory=dict)
    fate: Callable[[Letter], Sent | None] = lambda letter: None
    """What becomes of a letter; None: it comes. UNSURE: it does not come, and nobody knows."""
    on_the_way: Callable[[Letter], Letter] = lambda letter: letter
    """What a letter is when it comes."""
    before: Callable[[str], Awaitable[None]] = lambda step: open_gate()
    """Awaited before the steps `look`, `found` (after the look), `send`; of last values `keep`, `read`, `have read`."""
    asked: int = 0
    """How often somebody has looked who has users."""
    sessions_asked: list[list[str]] = field(default_factory=list)
    """The sessions of each question who has them."""
    everyone_asked: int = 0
    """How often somebody has asked who else is there."""
    letters: list[Letter] = field(default_factory=list)
    stacks: dict[str, AsyncExitStack] = field(default_factory=dict)
    """What runs in each house, by its name."""

    def deliver(self, letter: Letter) -> Sent:
        letter = self.on_the_way(letter)
        self.letters.append(letter)
        fate = self.fate(letter)
        if fate is not None:
            return fate
        house = self.houses.get(letter.queue)
        if house is None:
            return Sent.UNREACHABLE
        house.core.from_nodes.came(letter.body)
        return Sent.DELIVERED

    async def moves(self, node: str) -> None:
        """A core has lost its queue and listens on a new one, and all others know."""
        old, house = next((q, h) for q, h in self.houses.items() if q.startswith(f"push.node.{node}."))
        del self.houses[old]
        self.houses[f"{old}+"] = house
        wire = house.core.ports.post
        assert isinstance(wire, Wire)
        wire.listen(f"{old}+")
        await self.know_each_other()

    async def dies(self, node: str) -> None:
        """From now on this house does nothing, and nobody can reach it. Its sessions stay in the ledger."""
        del self.houses[next(q for q in self.houses if q.startswith(f"push.node.{node}."))]
        await self.stacks[node].aclose()

    async def know_each_other(self) -> None:
        """Every core looks around."""
        for _ in range(2):
            for house in self.houses.values():
                await house.core.cluster.neighbours.look()


@asynccontextmanager
async def town(
    *names: str, limits: DeliveryLimits | None = None, bounds: Bounds = BOUNDS
) -> AsyncIterator[tuple[Town, list[House]]]:
    """A house for each name, which run and know each other."""
    clock = ManualClock()
    made = Town(clock, GatedStore(clock), MemorySessions(clock))
    houses = []
    retained = AskedValues(made.store, clock)
    retained.town = made
    async with AsyncExitStack() as stack:
        for name in names:
            boot = f"boot-{name}"
            directory = Asked(made.store, made.sessions, clock, name, boot)
            directory.town = made
            await MemoryLease(made.store, clock, name, boot).claim()
            wire = Wire(made, f"push.node.{name}.{boot}-1")
            house = House(
                limits,
                clock=clock,
                store=made.store,
                boot=boot,
                bounds=bounds,
                sessions=made.sessions,
                node=name,
                directory=directory,
                post=wire,
                retained=retained,
            )
            made.houses[wire.queue] = house
            houses.append(house)
            cluster = house.core.cluster
            recording = house.core.recording
            assert recording is not None
            made.stacks[name] = await stack.enter_async_context(AsyncExitStack())
            await made.stacks[name].enter_async_context(
                house.running(
                    *house.parts,
                    recording,
                    cluster.post,
                    cluster.ringing,
                    house.core.router,
                )
            )
            house.core.begin(0)
        await made.know_each_other()
        yield made, houses
