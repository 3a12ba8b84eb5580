"""Finds which of several messages the broker refuses, so that it holds up none of the others.

RabbitMQ closes the channel over a message that this user may not publish (`set_topic_permissions`), or that is too
large, and tells neither which one it was nor what became of those behind it. So the channel is opened again, and they
are tried in halves until what is refused was alone on a channel of its own. Those that the broker judges alike are
tried together, and after that not at all for some seconds: nothing is tried in circles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple

from bridge.adapters.amqp.frames import Closed
from bridge.adapters.amqp.outbox import Failure, Message, Outbox
from bridge.core.errors import BridgeError
from bridge.core.ports.clock import Clock

REST: Final = 10.0
"""Seconds for which nothing is tried that the broker judges as what it refused."""
TOLD_EVERY: Final = 60.0
"""Seconds after which it is told again that something is still refused."""
TOLD_MOST: Final = 10
"""Kinds that are told in that time for one exchange: of a thousand keys ten say as much."""
KINDS_MAX: Final = 1000
"""Kinds of refused messages that are remembered; over it the oldest are tried again."""
_WHOLE_EXCHANGE: Final = "ACCESS_REFUSED - access to exchange "
"""So RabbitMQ begins where no routing key would help. Where it says so otherwise, each key is tried."""


class Kind(NamedTuple):
    """Messages that the broker judges alike."""

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
    """The broker refuses messages of a kind, and will until somebody changes something there.

    `given_up`: they are not tried again. Else they wait, and are tried again every `REST` seconds.
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
    """Publishes as an Outbox does, on one channel after the other. One call at a time."""

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
        """When each kind was told last, monotonic seconds; of the last minute."""

    @property
    def idle(self) -> bool:
        """Whether nothing was refused lately: then every message may be tried."""
        return not self._refused

    def known(self, message: Message) -> Failure | None:
        """The failure that this message would meet, where one like it was refused some seconds ago."""
        if not self._refused:
            return None
        exchange, key = message.exchange, message.routing_key
        for kind in (Kind(exchange), Kind(exchange, key), Kind(exchange, key, len(message.body))):
            refused = self._refused.get(kind)
            if refused is not None and self._clock.monotonic() < refused.until:
                return Failure(refused.why, refused=True)
        return None

    def refuses_all(self, exchange: str) -> str:
        """Why nothing at all may be published to an exchange, as was found some seconds ago; empty where something
        may."""
        refused = self._refused.get(Kind(exchange))
        return refused.why if refused is not None and self._clock.monotonic() < refused.until else ""

    async def publish(
        self, messages: Sequence[Message], seconds: float, deadline: float
    ) -> Mapping[int, Failure]:
        """As `Outbox.publish`, but that what is refused alone makes nothing else fail.

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
        # What ended with a refusal leaves no channel behind.
        await self._channel()
        return failures

    def _judged(
        self, refusal: Closed, was_fresh: bool, messages: Sequence[Message], left: Sequence[int]
    ) -> list[Sequence[int]]:
        """In which parts what is left is tried next, the last one first."""
        kinds: dict[Kind, list[int]] = {}
        for place in left:
            kinds.setdefault(_kind(refusal, messages[place]), []).append(place)
        if len(kinds) == 1 and was_fresh:
            self._remember(next(iter(kinds)), str(refusal))
        if len(kinds) <= 1:
            return [left]
        # Replies first: each is waited for by somebody, and one judgement is true of them all.
        replies = [kind for kind in kinds if not kind.exchange]
        named = [kind for kind in kinds if _is_named(kind, refusal)]
        others = [kind for kind in kinds if kind not in replies and kind not in named]
        some = [group for group in (replies, named, *_halves(others)) if group]
        if len(some) == 1:
            some = _halves(some[0])
        return [[place for kind in group for place in kinds[kind]] for group in reversed(some)]

    def _remember(self, kind: Kind, why: str) -> None:
        if why.startswith(_WHOLE_EXCHANGE):
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
    """So no message is sent more often than the logarithm of how many kinds there are."""
    return [kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :]]


def _is_named(kind: Kind, refusal: Closed) -> bool:
    """Whether the broker's words name it: a hint, with which fewer messages are sent twice. Trying it decides."""
    return kind.key is not None and f"'{_legible(kind.key)}' in exchange '{kind.exchange}'" in refusal.text


def _legible(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")


def _kind(refusal: Closed, message: Message) -> Kind:
    if refusal.code != 403:
        return Kind(message.exchange, message.routing_key, len(message.body))
    # The default exchange knows no permissions by routing key.
    return Kind(message.exchange, message.routing_key if message.exchange else None)
