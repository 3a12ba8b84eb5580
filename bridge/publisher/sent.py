"""A request that the broker has confirmed, and the receipts that came for it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from bridge.adapters.amqp.producer import PushMessage

REPEATED: Final = 12 * 3600.0
"""Seconds for which a request is published again for its receipts: half of the time for which an id is known."""


class Receipt(NamedTuple):
    """What became of a push for one user; docs/reference/outcomes.md lists outcomes and reasons."""

    user: str
    outcome: str
    reason: str
    final: bool
    """False: there will be another one, as for `stored`, which is kept until the user comes."""
    whole: Mapping[str, Any]
    """All of it, as schemas/receipt.json has it."""


class Sent:
    """A request that the broker has confirmed. Receipts come for as long as this object lives, also over lost
    connections: the request is then published again, under its id, and answered from its row, up to `REPEATED` seconds
    after it was made."""

    def __init__(self, push_id: str, message: PushMessage, expected: int | None) -> None:
        """`expected`: how many users it is for; None: only the bridge knows."""
        self.id = push_id
        self.confirmed = False
        self._message = message
        self._expected = expected
        self._receipts: dict[str, Receipt] = {}
        self._heard = asyncio.Event()
        self._correlation_id = ""
        self._made_at = time.monotonic()

    @property
    def asked(self) -> bool:
        """Whether receipts were asked for."""
        return bool(self._correlation_id)

    def ask(self) -> str:
        """Ask for receipts; returns the correlation id that they will have."""
        self._correlation_id = str(uuid.uuid4())
        return self._correlation_id

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return len(self._message.body)

    def message(self, replies: str) -> PushMessage:
        """What is published; `replies` is the queue for receipts."""
        if not self.asked:
            return self._message
        return self._message._replace(reply_to=replies, correlation_id=self._correlation_id)

    @property
    def receipts(self) -> Mapping[str, Receipt]:
        """The last receipt for each user, by user. A request that was rejected has one, for the user `""`."""
        return self._receipts

    @property
    def at_rest(self) -> bool:
        """Whether there is a receipt for each user which is final, or says that the push is kept for a user who is
        away. Never for a topic or everyone: their number is not known."""
        return self._has(_rests)

    @property
    def ended(self) -> bool:
        """Whether there is a final receipt for each user. Never for a topic or everyone."""
        return self._has(_is_final)

    @property
    def may_repeat(self) -> bool:
        """Whether publishing it again makes no other push. For a topic or everyone it may reach others; and the bridge
        knows an id for a day at least, not for ever."""
        return self._expected is not None and time.monotonic() - self._made_at < REPEATED

    def _has(self, enough: Callable[[Receipt], bool]) -> bool:
        rejected = any(receipt.outcome == "rejected" for receipt in self._receipts.values())
        count = sum(map(enough, self._receipts.values()))
        return rejected or (self._expected is not None and count >= self._expected)

    def heard(self, receipt: Mapping[str, Any]) -> None:
        """A receipt has come. What follows a final one is a repeat."""
        user = receipt["user_id"] or ""
        before = self._receipts.get(user)
        if before is None or not before.final:
            made = Receipt(user, receipt["outcome"], receipt["reason"], receipt["final"], receipt)
            self._receipts[user] = made
            self._heard.set()

    async def outcome(self, timeout: float, *, final: bool = False) -> Receipt:  # noqa: ASYNC109
        """The receipt of a request to one user: the final one, or that the push is kept for who is away; with `final`
        never that. Raises TimeoutError after so many seconds; nothing is lost by that, and it may be awaited again.
        Raises ValueError for a request to several, and where no receipts were asked for."""
        if self._expected != 1:
            raise ValueError("this request is for several users: await outcomes()")
        (receipt,) = (await self.outcomes(timeout, final=final)).values()
        return receipt

    async def outcomes(self, timeout: float, *, final: bool = False) -> Mapping[str, Receipt]:  # noqa: ASYNC109
        """The receipts by user, once it is `at_rest`, or with `final` once it has `ended`. Raises TimeoutError as
        `outcome`; `receipts` has what came."""
        if not self.asked:
            raise ValueError("no receipts were asked for: send with receipts=True")
        async with asyncio.timeout(timeout):
            while not (self.ended if final else self.at_rest):
                self._heard.clear()
                await self._heard.wait()
        return self._receipts


def _rests(receipt: Receipt) -> bool:
    return receipt.final or (receipt.outcome == "stored" and receipt.reason != "awaiting_proof")


def _is_final(receipt: Receipt) -> bool:
    return receipt.final
