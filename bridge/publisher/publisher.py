"""Publish push requests: what is sent at the same time goes out together, confirmed, and again after an outage.

send ──> waits ──> one write for all that wait ──> confirmed ──> Sent
            │                    │
            └── back-off <───────┘ the broker is away
"""

from __future__ import annotations

import asyncio
import math
import random
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple, Self, TypedDict, Unpack
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from bridge.adapters.amqp.producer import NotTaken, Producer, PushMessage, expected_receipts
from bridge.core.contract.requests import Limits, request_body
from bridge.core.errors import BridgeError, BrokerRefused, BrokerUnavailable
from bridge.publisher.sent import Sent

MESSAGES: Final = 500
"""Requests in one write,"""
BYTES: Final = 1024 * 1024
"""and bytes of them; a single request may have more."""
AT_ONCE: Final = 5_000
"""Requests of `send_all` that are under way at the same time."""
CONFIRM: Final = 30.0
"""Seconds for the confirms of one write; after that it is written again."""
CLOSE: Final = 10.0
"""Seconds for what was sent and is not confirmed, when the publisher is closed."""
BACK_OFF: Final = 0.1
"""Seconds before the next try after the first failure; twice as long after each,"""
BACK_OFF_MOST: Final = 5.0
"""up to so many."""
_LIMITS: Final = Limits(max_ttl=math.inf)
"""Only the bridge knows how long its log keeps rows."""


class Options(TypedDict, total=False):
    """The parts of a push request, as docs/publishing.md has them."""

    user: str
    users: Sequence[str]
    session: str
    topic: str
    everyone: bool
    excluded: Sequence[str]
    event: str
    confirm: str
    tenant: str
    meta: Mapping[str, str]
    ttl: float
    collapse_key: str
    ack_within: float
    devices: str
    retain: bool
    fallback: Mapping[str, object]
    deliver_at: float


class _Waiting(NamedTuple):
    sent: Sent
    done: asyncio.Future[None] | None
    """None: it was confirmed before, and is published again for its receipts."""
    until: float
    """The loop's seconds at which it is given up."""


class Publisher:
    """Publishes over one connection, which is made again whenever it is lost. An async context manager: its end waits
    for what was sent, up to `CLOSE` seconds."""

    def __init__(
        self, url: str, *, app_id: str = "", retry_for: float = 60.0, name: str = "publisher"
    ) -> None:
        """`app_id`: who publishes, for analysts. `retry_for`: seconds for which a request is tried again while the
        broker is away. `name` is what people see in the broker's list of connections. Raises ValueError for a URL that
        is none of AMQP."""
        self._url = _checked(url)
        self._app_id = app_id
        self._retry_for = retry_for
        self._name = name
        self._waiting: deque[_Waiting] = deque()
        self._undone: set[asyncio.Future[None]] = set()
        """Of all that was sent and is neither confirmed nor failed, waiting or on the wire."""
        self._wake = asyncio.Event()
        self._asked: WeakValueDictionary[str, Sent] = WeakValueDictionary()
        """Requests that somebody holds and whose receipts are wanted, by correlation id."""
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
        self._wait = BACK_OFF
        self._open = AsyncExitStack()
        self._producer: Producer | None = None
        self._replies = ""
        """The queue for receipts on this connection; empty until one is asked for."""
        self._deaf = False
        """Somebody has deleted that queue, or it could not be made."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="publisher")
        return self

    async def __aexit__(self, *_: object) -> None:
        task, self._task = self._task, None
        assert task is not None
        if self._undone:
            await asyncio.wait(self._undone, timeout=CLOSE)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._fail(BrokerUnavailable("the publisher was closed"))
        await self._open.aclose()

    async def send(
        self, data: object, *, id: str | None = None, receipts: bool = False, **options: Unpack[Options]
    ) -> Sent:
        """Publish a request, and return once the broker has confirmed it: then it is on its way for good.

        `id`: the idempotency key, which a later try after an error must have, too; a new one by default. `receipts`:
        what became of it can be awaited. What is sent at the same time goes out together, in the order of the calls.

        Raises InvalidRequest, which names the wrong field, before anything is sent; NotTaken where no queue takes
        requests, and BrokerRefused for a missing right, at once; BrokerUnavailable when the broker was away for
        `retry_for` seconds: the request may have arrived, and may be sent again under its id. A cancelled call may have
        published it, too. RuntimeError: the publisher is not open.
        """
        if self._task is None:
            raise RuntimeError("the publisher is not open: use it in `async with`")
        push_id = str(uuid.uuid4()) if id is None else id
        body = request_body(data, push_id=push_id, limits=_LIMITS, **options)
        crowd = bool(options.get("everyone") or options.get("topic"))
        message = PushMessage(body, app_id=self._app_id)
        sent = Sent(push_id, message, None if crowd else expected_receipts(body))
        if receipts:
            self._asked[sent.ask()] = sent
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._undone.add(done)
        done.add_done_callback(self._undone.discard)
        self._waiting.append(_Waiting(sent, done, loop.time() + self._retry_for))
        self._wake.set()
        await done
        return sent

    async def send_all(self, requests: Iterable[Mapping[str, Any]]) -> Sequence[Sent]:
        """Send many, in their order, each given as the arguments of `send` by name (`data`, `user`, ...); returns once
        all are confirmed. Raises as `send`: the first error, when all that were begun have ended."""
        all_sent: list[Sent] = []
        some: list[asyncio.Task[Sent]] = []
        for request in requests:
            some.append(asyncio.create_task(self.send(**request), name="send"))
            if len(some) == AT_ONCE:
                all_sent += await _each(some)
                some = []
        return all_sent + await _each(some)

    async def _run(self) -> None:
        """Publish what waits, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._has_work:
                try:
                    producer = await self._connected()
                    await self._publish(producer)
                except BrokerRefused as refused:
                    self._fail(refused)
                except BrokerUnavailable as error:
                    self._give_up(error)
                except Exception as defect:  # whoever waits is told, and never left waiting
                    self._fail(defect)
                else:
                    self._wait = BACK_OFF
                    continue
                # Publishers that were cut off together do not come back together.
                await self._sleep(self._wait * random.uniform(0.5, 1))
                self._wait = min(2 * self._wait, BACK_OFF_MOST)

    @property
    def _has_work(self) -> bool:
        """Whether something is to be published, or receipts are wanted that went to a queue that is gone."""
        lost = self._deaf or (self._producer is not None and bool(self._producer.ended))
        return bool(self._waiting) or (lost and any(self._open_requests()))

    def _open_requests(self) -> Iterator[Sent]:
        """Those that were confirmed, and whose receipts are wanted still."""
        held = list(self._asked.values())
        return (sent for sent in held if sent.confirmed and sent.may_repeat and not sent.ended)

    async def _connected(self) -> Producer:
        if self._producer is None or self._producer.ended:
            await self._open.aclose()
            producer = await self._open.enter_async_context(
                Producer.connect(self._url, name=self._name, lost=self._wake.set)
            )
            self._producer = producer
            self._ask_again()
        elif self._deaf:
            # Whoever deletes it again and again does not make us publish without a pause.
            await self._sleep(BACK_OFF * random.uniform(0.5, 1))
            self._ask_again()
        if not self._replies and any(one.sent.asked for one in self._waiting):
            self._replies = await self._producer.reply_queue(self._heard, self._deafened)
        return self._producer

    def _ask_again(self) -> None:
        """Receipts went to a queue that is gone, with its connection or alone. The bridge answers a repeat from its
        row."""
        again = [_Waiting(sent, None, math.inf) for sent in self._open_requests()]
        self._waiting = deque([*again, *(one for one in self._waiting if one.done is not None)])
        self._replies, self._deaf = "", False

    def _deafened(self, _cause: str) -> None:
        self._deaf = True
        self._wake.set()

    def _heard(self, correlation_id: str, receipt: Mapping[str, Any]) -> None:
        sent = self._asked.get(correlation_id)
        if sent is not None:
            sent.heard(receipt)

    async def _publish(self, producer: Producer) -> None:
        """Publish as much as goes into one write. Raises BrokerUnavailable if something has to be tried again."""
        some = self._some()
        messages = [one.sent.message(self._replies) for one in some]
        try:
            failures = await producer.publish_each(messages, CONFIRM)
        except BaseException:
            self._waiting.extendleft(reversed(some))
            raise
        again: BridgeError | None = None
        for place in reversed(range(len(some))):
            one, failure = some[place], failures.get(place)
            if failure is None:
                one.sent.confirmed = True
                _end(one, None)
            elif isinstance(failure, NotTaken | BrokerRefused):
                _end(one, failure)
            else:
                again = failure
                self._waiting.appendleft(one)
        if again is not None:
            raise again

    def _some(self) -> list[_Waiting]:
        some: list[_Waiting] = []
        size = 0
        while self._waiting and len(some) < MESSAGES and size < BYTES:
            one = self._waiting.popleft()
            if one.done is not None and one.done.done():
                continue  # cancelled
            some.append(one)
            size += one.sent.size
        return some

    def _give_up(self, error: BrokerUnavailable) -> None:
        """End what has waited for too long. The others keep their order."""
        now = asyncio.get_running_loop().time()
        late = [one for one in self._waiting if one.until <= now]
        self._waiting = deque(one for one in self._waiting if one.until > now)
        for one in late:
            _end(one, error)

    def _fail(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, deque()
        # What was confirmed before has nobody to tell: its receipts are asked for again later.
        self._deaf |= any(one.done is None for one in waiting)
        for one in waiting:
            _end(one, error)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("amqp", "amqps") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("url: amqp://user:password@host:port/vhost expected, or amqps://")
    return url


async def _each(tasks: Sequence[asyncio.Task[Sent]]) -> list[Sent]:
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, BaseException):
            raise ended
    return [task.result() for task in tasks]


def _end(one: _Waiting, error: Exception | None) -> None:
    if one.done is None or one.done.done():
        return
    if error is None:
        one.done.set_result(None)
    else:
        one.done.set_exception(error)
