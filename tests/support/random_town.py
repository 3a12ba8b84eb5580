"""A town in which anything may happen to letters, sessions and clients."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bridge.core.contract.letters import Forwarded, Post, Report, Word, decode_letter, encode_letter
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.inflight.inflight import MICRO, RESENDS
from bridge.core.model.ledger import Closed
from bridge.core.model.pushes import Recall
from bridge.core.ports.nodes import Letter, Sent
from bridge.core.sessions.states import SessionState
from tests.support.house import House, Peer
from tests.support.town import Town
from tests.support.waiting import turns

LIMITS: Final = DeliveryLimits(start_grace=0.0, confirm_timeout=5.0)
USERS: Final = ("u0", "u1", "u2")
CONFIRMS: Final = ("received", "written", "acked", "received")
TTLS: Final = (0, 60, 60)
PAUSES: Final = (0.005, 0.05, 0.1, 0.2, 0.3, 1.0, 2.0)
SLEEP_MOST: Final = 2.5
"""Seconds for which a node does nothing, at most: its lease lasts longer."""
HALT_MOST: Final = 1.5
"""Seconds for which the database does nothing, at most: less than `OTHERS_FOR`."""
DEAD_AFTER: Final = 6.0
"""Seconds after a death in which its sessions are ended in the ledger."""
SHOWN_MOST: Final = 2 + RESENDS
"""How often one session is shown a push, at most: a ring may have one more sent."""
KINDS: Final = {
    "push": 24,
    "push_to_all_users": 3,
    "push_to_session": 2,
    "open": 8,
    "resume": 8,
    "leave": 5,
    "answer": 18,
    "answer_one": 4,
    "ack": 8,
    "stuff": 2,
    "recall": 2,
    "pause": 30,
    "freeze": 4,
    "wake": 6,
    "returns": 2,
    "loses": 2,
    "unsure": 2,
    "works": 6,
    "moves": 2,
    "dies": 1,
    "halts": 4,
    "goes_on": 5,
}
"""What happens, and how often."""


class Step(NamedTuple):
    """One thing that happens; numbers are taken modulo whatever there is."""

    kind: str
    n: int
    m: int


@dataclass
class Device:
    """A client that remembers what it has seen."""

    user: str
    house: House
    peer: Peer
    last: str | None = None
    """What it has read last, in this session or in those before."""
    after: bool = False
    """It opened while the answer who has its user was late: what others have proven meanwhile is forwarded all the
    same, after newer pushes."""
    since: str | None = None
    """The push that it has resumed after."""
    left: float = math.inf
    shown: list[tuple[float, str]] = field(default_factory=list)
    """When its session was sent each push, and which."""
    answered: dict[str, float] = field(default_factory=dict)
    """When it has proven each push first."""
    acked: dict[str, int] = field(default_factory=dict)
    """How often it had been shown what it acked in the end."""


class Story:
    """A town, its devices, and what really happened."""

    def __init__(self, made: Town, houses: list[House], *, says: bool = True) -> None:
        self.made, self.houses, self.says = made, houses, says
        self.clock = made.clock
        self.devices: list[Device] = []
        self.gone: list[Device] = []
        self.pushes: dict[str, dict[str, object]] = {}
        self.users: dict[str, tuple[str, ...]] = {}
        self.there: dict[str, list[Device]] = {}
        """The devices that were live, and in the ledger, when each push was taken."""
        self.stayed: list[Device] = []
        """Those that are there at the end."""
        self.tokens: list[object] = []
        self.frozen: dict[int, float] = {}
        self.fates: dict[int, str] = {}
        self.late: dict[tuple[str, str], list[Letter]] = {}
        """Letters that wait, by the process that has sent them and the queue that they are for."""
        self.numbers: dict[int, tuple[str, str]] = {}
        self.proven: dict[tuple[str, str], float] = {}
        self.acked: dict[tuple[str, str], float] = {}
        self.reported: dict[tuple[str, str, Word], float] = {}
        self.recalled: set[str] = set()
        self.lossy = self.dropped = False
        self.unsure = False
        """Letters came, and their senders do not know that: they may send a push twice."""
        self.queueless: set[int] = set()
        """Nodes whose queue was lost, and that have none yet."""
        self.slow = False
        """The taker's letters were late, and those of others came before them."""
        self.log: list[str] = []
        self.ids = itertools.count(1)
        self.healed = float("inf")
        self.seconds = 0.0
        self.tasks: list[asyncio.Task[object]] = []
        self.dead: dict[int, float] = {}
        """When each has died, by monotonic seconds; infinity once its sessions are ended."""
        self.halted: dict[str, float] = {}
        """What the database does not do, and since when."""
        self.looking = asyncio.Event()
        self.looking.set()
        made.before = self.before
        made.deliver = self.deliver  # type: ignore[method-assign]

    async def before(self, step: str) -> None:
        """The town asks before it does this."""
        if step == "look":
            await self.looking.wait()

    # --- letters ---

    def node(self, queue: str) -> int | None:
        house = self.made.houses.get(queue)
        return None if house is None else self.houses.index(house)

    def deliver(self, letter: Letter) -> Sent:
        to = self.node(letter.queue)
        body = decode_letter(letter.body)
        forwards = any(isinstance(item, Forwarded) for item in body.items)
        if to is None:
            self.lossy = self.lossy or forwards
            return Sent.UNREACHABLE
        if body.boot == "boot-a":
            for item in body.items:
                if isinstance(item, Forwarded):
                    for number, user in enumerate(item.users, item.number):
                        self.numbers[number] = item.push_id, user
        fate = self.fates.get(to)
        if fate == "returns":
            self.lossy = self.lossy or forwards
            return Sent.UNREACHABLE
        if fate == "loses":
            self.lossy = True
            return Sent.UNSURE
        sender = next(n for n, house in enumerate(self.houses) if f"boot-{'abc'[n]}" == body.boot)
        line = self.late.setdefault((body.boot, letter.queue), [])
        if line or to in self.frozen or sender in self.frozen:
            line.append(letter)
        else:
            self.arrive(letter, body)
        return Sent.UNSURE if fate == "unsure" else Sent.DELIVERED

    def arrive(self, letter: Letter, body: Post) -> None:
        house = self.made.houses.get(letter.queue)
        if house is None:
            self.dropped = True
            return
        if house is self.houses[0]:
            for item in body.items:
                if isinstance(item, Report) and item.number in self.numbers:
                    self.reported.setdefault((*self.numbers[item.number], Word(item.word)), self.clock.now)
        bytes_ = letter.body if self.says else encode_letter(body.boot, body.items)
        house.core.from_nodes.came(bytes_)

    def post_waiting(self) -> None:
        for (boot, queue), line in self.late.items():
            sender = "abc".index(boot[-1])
            if sender in self.frozen or self.node(queue) in self.frozen:
                continue
            waiting, line[:] = list(line), []
            for letter in waiting:
                self.arrive(letter, decode_letter(letter.body))

    # --- time ---

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.seconds += seconds
        for n in [n for n, since in self.frozen.items() if self.clock.mono - since > SLEEP_MOST]:
            del self.frozen[n]
        for what in [w for w, since in self.halted.items() if self.clock.mono - since >= HALT_MOST]:
            self.go_on(what)
        self.end_sessions_of_the_dead()
        self.post_waiting()
        second, self.seconds = self.seconds >= 1.0, self.seconds % 1.0
        for n, house in enumerate(self.houses):
            if n in self.frozen or n in self.dead:
                continue
            node = self.made.store.nodes["abc"[n]]
            node.seen_at = self.clock.now
            house.core.freshness.heard(self.clock.boottime())
            await house.core.cluster.neighbours.look()
            house.core.tick()
            if second:
                house.core.every_second()
                await house.core.mailbox_sweep.sweep()
                if n == 0 and self.clock.now > self.healed + 20:
                    house.core.worklist.sweep()
        await turns(30)
        self.look()

    def look(self) -> None:
        """Note what the sessions were sent, and take leave of those that were closed."""
        for device in list(self.devices):
            pushes = device.peer.pushes
            for push in pushes[len(device.shown) :]:
                device.shown.append((self.clock.now, str(push["id"])))
            socket = device.peer.socket
            if not socket.open or socket.closed_with is not None:
                self.log.append(f"{device.peer.session_id} closed {socket.closed_with}")
                device.peer.leave(1006)
                self.devices.remove(device)
                self.gone.append(device)
                device.left = self.clock.now

    # --- steps ---

    async def do(self, step: Step) -> None:
        self.clock.advance(1 / MICRO)  # what happens first is older
        await getattr(self, f"do_{step.kind}")(step.n, step.m)
        self.look()

    async def push(self, to: dict[str, object], users: tuple[str, ...], n: int, m: int) -> None:
        name = f"p{next(self.ids)}"
        body: dict[str, object] = {"id": name, "to": to, "data": 1, "confirm": CONFIRMS[n % 4]}
        if ttl := TTLS[n // 4 % 3]:
            body["ttl"] = ttl
            if m % 7 == 0:
                body["collapse_key"] = "k"
        self.pushes[name], self.users[name] = body, users
        self.there[name] = [d for d in self.devices if d.user in users and self.is_live(d)]
        body = dict(body)
        arrived = await self.houses[0].push(body, reply_to="answers", correlation_id=name)
        self.tokens.append(arrived.token)

    def is_live(self, device: Device) -> bool:
        session = device.peer.client.session
        return session.state is SessionState.LIVE and session.id in self.made.sessions.opened

    async def do_push(self, n: int, m: int) -> None:
        user = USERS[m % 3]
        await self.push({"user": user}, (user,), n, m // 3)

    async def do_push_to_all_users(self, n: int, m: int) -> None:
        await self.push({"users": list(USERS)}, USERS, n, m)

    async def do_push_to_session(self, n: int, m: int) -> None:
        if self.devices:
            device = self.devices[m % len(self.devices)]
            session = device.peer.client.session
            await self.push({"session": session.id}, (device.user,), n // 12 * 12 + n % 4, 1)

    async def open(self, user: str, house: House, last: str | None) -> Device:
        peer = house.connect(user, last=last)
        device = Device(user, house, peer, last, "look" in self.halted, last)
        self.devices.append(device)
        await turns(3)
        return device

    async def do_open(self, n: int, m: int) -> None:
        house = m % len(self.houses)
        if self.works(house) and len(self.devices) < 7:
            await self.open(USERS[n % 3], self.houses[house], None)

    async def do_resume(self, n: int, m: int) -> None:
        house = m % len(self.houses)
        if not self.works(house) or not (self.devices or self.gone):
            return
        both = self.gone[-6:] + self.devices
        device = both[n % len(both)]
        if device in self.devices:
            if self.houses.index(device.house) in self.frozen:
                return
            self.leave(device)
        await self.open(device.user, self.houses[house], device.last)

    def leave(self, device: Device) -> None:
        device.peer.leave()
        device.left = self.clock.now
        self.devices.remove(device)
        self.gone.append(device)

    def device(self, n: int) -> Device | None:
        """One whose node is awake."""
        awake = [d for d in self.devices if self.works(self.houses.index(d.house))]
        return awake[n % len(awake)] if awake else None

    async def do_leave(self, n: int, m: int) -> None:
        if (device := self.device(n)) is not None:
            self.leave(device)

    def answer(self, device: Device) -> None:
        """Answer its oldest ping."""
        count = device.peer.next_read()
        if not device.peer.unanswered:
            return
        for push in device.peer.first(count):
            name = str(push["id"])
            if name not in device.answered:
                device.answered[name] = self.clock.now
                self.proven.setdefault((name, device.user), self.clock.now)
                device.last = name
        device.peer.answer_one()

    async def do_answer(self, n: int, m: int) -> None:
        if (device := self.device(n)) is not None:
            while device.peer.unanswered:
                self.answer(device)
            await turns(m % 20)

    async def do_answer_one(self, n: int, m: int) -> None:
        if (device := self.device(n)) is not None:
            self.answer(device)
            await turns(m % 20)

    def ack(self, device: Device, name: str) -> None:
        self.acked.setdefault((name, device.user), self.clock.now)
        device.peer.client.message(json.dumps({"type": "ack", "id": name}))

    async def do_ack(self, n: int, m: int) -> None:
        if (device := self.device(n)) is not None and device.answered:
            self.ack(device, list(device.answered)[-1 - m % min(3, len(device.answered))])
            await turns(3)

    async def do_dies(self, n: int, m: int) -> None:
        """Another node than the taker dies for good."""
        n = 1 + n % (len(self.houses) - 1)
        if n in self.dead:
            return
        self.frozen.pop(n, None)
        self.post_waiting()
        for (_, queue), line in self.late.items():
            if self.node(queue) == n:
                line.clear()
        self.dead[n] = self.clock.mono
        await self.made.dies("abc"[n])
        for device in [d for d in self.devices if d.house is self.houses[n]]:
            self.devices.remove(device)
            self.gone.append(device)
            device.left = self.clock.now

    def end_sessions_of_the_dead(self) -> None:
        """The nodes that live have noticed."""
        sessions = self.made.sessions
        for n in [n for n, since in self.dead.items() if self.clock.mono - since > DEAD_AFTER]:
            self.dead[n] = math.inf
            for one in sessions.opened.values():
                if one.node == "abc"[n] and one.session not in sessions.closed:
                    sessions.closed[one.session] = Closed(
                        one.session, one.user, one.node, one.opened_at, self.clock.now, None, "node_died"
                    )

    def works(self, n: int) -> bool:
        """Whether a node does anything now."""
        return n not in self.frozen and n not in self.dead

    async def do_halts(self, n: int, m: int) -> None:
        """The database does not answer one kind of question for a while."""
        what = ("look", "write", "read")[n % 3]
        self.halted.setdefault(what, self.clock.mono)
        self.gate_of(what).clear()

    async def do_goes_on(self, n: int, m: int) -> None:
        if self.halted:
            self.go_on(list(self.halted)[n % len(self.halted)])
        await turns(m % 30)

    def go_on(self, what: str) -> None:
        del self.halted[what]
        self.gate_of(what).set()

    def gate_of(self, what: str) -> asyncio.Event:
        store = self.made.store
        return {"look": self.looking, "write": store.writing, "read": store.reading}[what]

    async def do_stuff(self, n: int, m: int) -> None:
        if (device := self.device(n)) is not None:
            device.peer.socket.stuffed = not device.peer.socket.stuffed
            if not device.peer.socket.stuffed:
                device.peer.client.became_writable()

    async def do_recall(self, n: int, m: int) -> None:
        house = m % len(self.houses)
        if self.pushes and self.works(house):
            name = list(self.pushes)[-1 - n % min(4, len(self.pushes))]
            self.recalled.add(name)
            call = self.houses[house].core.recalls.recall(Recall(push_id=name))
            self.tasks.append(asyncio.create_task(call, name="recall"))
            await turns(3)

    async def do_pause(self, n: int, m: int) -> None:
        await self.pass_time(PAUSES[n % len(PAUSES)])

    async def do_freeze(self, n: int, m: int) -> None:
        self.frozen.setdefault(n % len(self.houses), self.clock.mono)
        self.slow = self.slow or 0 in self.frozen

    async def do_wake(self, n: int, m: int) -> None:
        self.frozen.pop(n % len(self.houses), None)
        self.post_waiting()
        await turns(m % 30)

    async def do_returns(self, n: int, m: int) -> None:
        to = n % len(self.houses)
        self.fates[to] = "returns"
        for (_, queue), line in self.late.items():
            if self.node(queue) == to and line:
                self.dropped = self.lossy = True  # the queue is no more
                self.queueless.add(to)
                line.clear()

    async def do_loses(self, n: int, m: int) -> None:
        await self.do_works(n, m)
        self.fates[n % len(self.houses)] = "loses"

    async def do_unsure(self, n: int, m: int) -> None:
        await self.do_works(n, m)
        self.fates[n % len(self.houses)] = "unsure"
        self.unsure = True

    async def do_works(self, n: int, m: int) -> None:
        n %= len(self.houses)
        self.fates.pop(n, None)
        if n in self.queueless:
            await self.do_moves(n, 1)

    async def do_moves(self, n: int, m: int) -> None:
        n %= len(self.houses)
        if n not in self.dead and (n not in self.frozen or m % 2):
            self.queueless.discard(n)
            await self.made.moves("abc"[n])
            self.houses[n].core.from_nodes.listening()
            self.fates.pop(n, None)
            self.post_waiting()
            await turns(5)

    # --- the end ---

    async def heal(self) -> None:
        self.frozen.clear()
        for n in list(self.queueless):
            await self.do_moves(n, 1)
        self.fates.clear()
        for what in list(self.halted):
            self.go_on(what)
        self.post_waiting()
        self.healed = self.clock.now
        for device in self.devices:
            device.peer.socket.stuffed = False
            device.peer.client.became_writable()
        alive = [house for n, house in enumerate(self.houses) if n not in self.dead]
        for user, house in zip(USERS, itertools.cycle(alive), strict=False):
            await self.open(user, house, None)
        for _ in range(60):
            await self.pass_time(0.25)
            for device in list(self.devices):
                while device.peer.unanswered:
                    self.answer(device)
                for name in device.answered:
                    times = sum(shown == name for _, shown in device.shown)
                    if device.acked.get(name, 0) < times:
                        device.acked[name] = times
                        self.ack(device, name)
        await turns(50)
        self.stayed = list(self.devices)
        self.unended = [key for key, row in self.made.store.rows.items() if not row.final]
        for device in list(self.devices):
            self.leave(device)
        for _ in range(70):
            await self.pass_time(1.0)
        for task in self.tasks:
            await task
