"""Find which of several messages the broker refuses, so that the others are published.

RabbitMQ closes the channel because of a message that this user may not publish (`set_topic_permissions`), or that is
too large. It tells neither which message that was nor what became of the later ones. So the channel is opened again,
and the messages are tried in halves until the refused one is alone on a channel. Messages that the broker judges alike
are tried together, and are then not tried for some seconds.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from bridge.adapters.amqp.frames import Closed
from bridge.adapters.amqp.outbox import Failure, Message, Outbox
from bridge.core.errors import BridgeError
from bridge.core.ports.clock import Clock

REST: Final = 10.0
"""Seconds for which messages like a refused one are not tried."""
TOLD_EVERY: Final = 60.0
"""Seconds after which a refusal that goes on is reported again."""
TOLD_MOST: Final = 10
"""Kinds that are reported in that time for one exchange; more would say nothing new."""
KINDS_MAX: Final = 1000
"""Kinds of refused messages that are remembered. Over it the oldest are tried again."""
_WHOLE_EXCHANGE: Final = re.compile("ACCESS_REFUSED - (write )?access to exchange ")
"""How RabbitMQ's text begins where no routing key would help; from 4.0 on it names the right. With another text each
key is tried."""


class Kind(NamedTuple):
    """A kind of messages: the broker judges them alike."""

    exchange: str
    key: bytes | None = None
    """None: any."""
    size: int | None = None
    """Bytes of the body, where those matter; None: any."""

    def __str__(self) -> str:
        exchange = f"exchange {self.exchange}" if self.exchange else "the default exchange (reply_to)"
        key = (
            "" if self.key is None else f" with routing key {self.key.decode('utf-8', 'backslashreplace')!r}"
        )
        return f"{exchange}{key}" + ("" if self.size is None else f" of {self.size} bytes")


class PublishRefused(BridgeError):
    """The broker refuses messages of a kind, until somebody changes something there.

    `given_up`: they are not tried again. Else they are tried again every `REST` seconds.
    """

    def __init__(self, kind: Kind, cause: str, *, given_up: bool) -> None:
        self.kind = kind
        self.cause = cause
        self.given_up = given_up
        fate = "such outcome events are given up" if given_up else "what is meant for it waits"
        super().__init__(f"the broker refuses what goes to {kind}, {fate}: {cause}; see `bridge check`")


class _Refused(NamedTuple):
    why: str
    until: float
    """Monotonic seconds."""


class Search:
    """Publishes like an Outbox, on one channel after the other. One call at a time."""

    def __init__(
        self,
        channel: Callable[[], Awaitable[Outbox | None]],
        clock: Clock,
        on_refused: Callable[[Kind, str], None],
    ) -> None:
        """`channel`: the open one, or a new one where it was closed; None where there is no connection."""
        self._channel = channel
        self._clock = clock
        self._on_refused = on_refused
        self._refused: dict[Kind, _Refused] = {}
        self._told: dict[Kind, float] = {}
        """When each kind was reported last, in monotonic seconds; those of the last minute."""

    @property
    def idle(self) -> bool:
        """Whether nothing was refused lately, so that every message may be tried."""
        return not self._refused

    def known(self, message: Message) -> Failure | None:
        """The failure to expect for this message, where one like it was refused some seconds ago; else None."""
        if not self._refused:
            return None
        exchange, key = message.exchange, message.routing_key
        for kind in (Kind(exchange), Kind(exchange, key), Kind(exchange, key, len(message.body))):
            refused = self._refused.get(kind)
            if refused is not None and self._clock.monotonic() < refused.until:
                return Failure(refused.why, refused=True)
        return None

    def refuses_all(self, exchange: str) -> str:
        """Why nothing at all may be published to an exchange, as found some seconds ago; else empty."""
        refused = self._refused.get(Kind(exchange))
        return refused.why if refused is not None and self._clock.monotonic() < refused.until else ""

    async def publish(
        self, messages: Sequence[Message], seconds: float, deadline: float
    ) -> Mapping[int, Failure]:
        """As `Outbox.publish`, but a refused message does not make others fail.

        After `deadline`, by the loop's clock, nothing more is begun.
        """
        failures: dict[int, Failure] = {}
        parts: list[Sequence[int]] = [range(len(messages))]
        while parts:
            part = parts.pop()
            if self._refused:
                known = {place: self.known(messages[place]) for place in part}
                failures.update({place: failure for place, failure in known.items() if failure is not None})
                part = [place for place in part if known[place] is None]
            outbox = await self._channel() if part else None
            if outbox is None or asyncio.get_running_loop().time() >= deadline:
                failures.update(dict.fromkeys(part, Failure("not tried: no channel to the broker")))
                continue
            was_fresh = outbox.is_fresh
            failed = await outbox.publish([messages[place] for place in part], seconds)
            if outbox.refusal is None:
                failures.update({part[at]: failure for at, failure in failed.items()})
            else:
                left = [part[at] for at in sorted(failed)]
                parts += self._judged(outbox.refusal, was_fresh, messages, left)
        # A refusal has closed the channel: open the next one now.
        await self._channel()
        return failures

    def _judged(
        self, refusal: Closed, was_fresh: bool, messages: Sequence[Message], left: Sequence[int]
    ) -> list[Sequence[int]]:
        """The parts in which the rest is tried next, the last one first."""
        kinds: dict[Kind, list[int]] = {}
        for place in left:
            kinds.setdefault(_kind(refusal, messages[place]), []).append(place)
        if len(kinds) == 1 and was_fresh:
            self._remember(next(iter(kinds)), str(refusal))
        if len(kinds) <= 1:
            return [left]
        # Replies first: somebody waits for each, and the broker judges them all alike.
        replies = [kind for kind in kinds if not kind.exchange]
        named = [kind for kind in kinds if _is_named(kind, refusal)]
        others = [kind for kind in kinds if kind not in replies and kind not in named]
        some = [group for group in (replies, named, *_halves(others)) if group]
        if len(some) == 1:
            some = _halves(some[0])
        return [[place for kind in group for place in kinds[kind]] for group in reversed(some)]

    def _remember(self, kind: Kind, why: str) -> None:
        if _WHOLE_EXCHANGE.match(why):
            kind = Kind(kind.exchange)
        now = self._clock.monotonic()
        self._refused.pop(kind, None)
        self._refused[kind] = _Refused(why, now + REST)
        if len(self._refused) > KINDS_MAX:
            del self._refused[next(iter(self._refused))]
        self._told = {told: at for told, at in self._told.items() if now - at < TOLD_EVERY}
        if kind not in self._told and sum(t.exchange == kind.exchange for t in self._told) < TOLD_MOST:
            self._told[kind] = now
            self._on_refused(kind, why)


def _halves(kinds: Sequence[Kind]) -> list[Sequence[Kind]]:
    """Two halves: so no message is sent more often than the logarithm of the number of kinds."""
    return [kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :]]


def _is_named(kind: Kind, refusal: Closed) -> bool:
    """Whether the broker's text names this kind. It is a hint that saves sending messages twice; only a try decides."""
    return kind.key is not None and f"'{_legible(kind.key)}' in exchange '{kind.exchange}'" in refusal.text


def _legible(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _kind(refusal: Closed, message: Message) -> Kind:
    if refusal.code != 403:
        return Kind(message.exchange, message.routing_key, len(message.body))
    # The default exchange has no permissions by routing key.
    return Kind(message.exchange, message.routing_key if message.exchange else None)
