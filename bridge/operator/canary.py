"""A canary: it pushes to a session of its own, over the broker, and says of each push whether it was shown and proven.

So it notices what a bridge can't notice of itself: that nobody reaches it, or that it does not reach anybody.

    published with confirm ──> the bridge ──> shown in the session, which acks it ──> committed row ──> receipt
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from bridge.core.errors import BridgeError, BrokerUnavailable, SettingsError
from bridge.core.model.outcomes import Outcome
from bridge.core.redaction import redact
from bridge.publisher import NotTaken, Publisher, Receipt, Sent

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

EVENT: Final = "bridge.canary"
"""The event of its pushes, by which queries leave them out."""
APP: Final = "bridge-canary"
OPEN_TIMEOUT: Final = 10.0
"""Seconds in which a session must be open and welcomed."""


class Result(StrEnum):
    """What became of one push, by the first thing that failed."""

    OK = "ok"
    NO_SESSION = "no_session"
    """No session could be opened, so nothing was published."""
    NOT_PUBLISHED = "not_published"
    """The broker did not confirm it, or no queue took it."""
    NOT_SHOWN = "not_shown"
    """It did not come to the session in time."""
    NO_RECEIPT = "no_receipt"
    """It was shown, and no final receipt came in time."""
    WRONG_OUTCOME = "wrong_outcome"
    """It was shown and acked, and its receipt says otherwise."""


class Try(NamedTuple):
    """One push and its end."""

    push_id: str
    result: Result
    shown: float | None
    """Seconds from the publish until it was in the session; None: it was not."""
    proven: float | None
    """Seconds from the publish until its final receipt; None: there was none."""
    why: str
    """What is known of a failure, for people."""


class SessionLost(BridgeError):
    """The session could not be opened, or has ended."""


class Session:
    """A session that acks each push and remembers when it came. It is open until `ended` says why not."""

    def __init__(self, connection: ClientConnection, user: str) -> None:
        self.user = user
        """Whose it is, as the bridge says."""
        self._connection = connection
        self._shown: dict[str, asyncio.Future[float]] = {}
        self.ended = ""

    @staticmethod
    @asynccontextmanager
    async def opened(url: str, token: str) -> AsyncIterator[Session]:
        """Open one and be welcomed, for the length of the block. Raises SessionLost."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import WebSocketException

        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(OPEN_TIMEOUT):
                    connection = await stack.enter_async_context(
                        connect(
                            url,
                            additional_headers={"Authorization": f"Bearer {token}"},
                            subprotocols=["bridge.v1.json"],  # type: ignore[list-item]
                            max_size=None,
                        )
                    )
                    user = _welcomed(await connection.recv())
            except TimeoutError:
                raise SessionLost(f"{url} did not open a session in {OPEN_TIMEOUT:g} s") from None
            except (OSError, ValueError, WebSocketException) as error:
                raise SessionLost(f"{url}: {redact(str(error))}") from error
            session = Session(connection, user)
            reading = asyncio.create_task(session._read(), name="canary's session")
            try:
                yield session
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            async for text in self._connection:
                frame = json.loads(text)
                if not isinstance(frame, dict) or frame.get("type") != "push":
                    continue
                waiting = self._shown.get(str(frame.get("id")))
                if waiting is not None and not waiting.done():
                    waiting.set_result(time.monotonic())
                await self._connection.send(json.dumps({"type": "ack", "id": frame.get("id")}))
            self.ended = "the session was closed"
        except ConnectionClosed as closed:
            self.ended = f"the session has ended: {closed}"
        except (OSError, ValueError) as error:
            self.ended = f"the session has failed: {error!r}"
        for waiting in self._shown.values():
            if not waiting.done():
                waiting.set_exception(SessionLost(self.ended))

    @asynccontextmanager
    async def expecting(self, push_id: str) -> AsyncIterator[asyncio.Future[float]]:
        """Its value is the monotonic second at which the push came; SessionLost where the session ends before."""
        waiting = self._shown[push_id] = asyncio.get_running_loop().create_future()
        if self.ended:
            waiting.set_exception(SessionLost(self.ended))
        try:
            yield waiting
        finally:
            del self._shown[push_id]
            waiting.cancel()
            if not waiting.cancelled():
                waiting.exception()  # it was asked for, or nobody wants to know any more


def _welcomed(text: str | bytes) -> str:
    """The user of a welcome frame. Raises ValueError for anything else."""
    frame = json.loads(text)
    if isinstance(frame, dict) and frame.get("type") == "welcome" and isinstance(frame.get("user"), str):
        return str(frame["user"])
    raise ValueError("what answers there is no bridge: its first frame is no welcome")


class Canary:
    """Makes one try after the other. A session that has ended, or is old, is opened again by the next one."""

    def __init__(
        self, publisher: Publisher, url: str, token: Callable[[], str], timeout: float, renew: float
    ) -> None:
        """`token` is asked whenever a session is opened, and may raise SettingsError; nobody else may have sessions of
        its user. `timeout`: seconds for all of one push. `renew`: seconds after which a session is opened anew."""
        self._publisher = publisher
        self._url = url
        self._token = token
        self._timeout = timeout
        self._renew = renew
        self._prefix = uuid.uuid4().hex[:12]
        self._number = 0

    async def tries(self, every: float) -> AsyncGenerator[Try]:
        """A try each `every` seconds, for ever. One that takes longer delays the next."""
        clock = asyncio.get_running_loop().time
        due, opened_at = clock(), 0.0
        stack = AsyncExitStack()
        session: Session | None = None
        try:
            while True:
                self._number += 1
                push_id = f"canary-{self._prefix}-{self._number}"
                if session is None or session.ended or clock() - opened_at > self._renew:
                    await stack.aclose()
                    session, opened_at = None, clock()
                    try:
                        session = await stack.enter_async_context(Session.opened(self._url, self._token()))
                    except (SessionLost, SettingsError) as lost:
                        yield Try(push_id, Result.NO_SESSION, None, None, str(lost))
                if session is not None:
                    yield await self._try(session, push_id)
                due = max(due + every, clock())
                await asyncio.sleep(due - clock())
        finally:
            await stack.aclose()

    async def _try(self, session: Session, push_id: str) -> Try:
        began = time.monotonic()
        final: Receipt | None = None
        async with session.expecting(push_id) as shown:
            sent: Sent | None = None
            try:
                async with asyncio.timeout(self._timeout):
                    sent = await self._publisher.send(
                        {"canary": self._number},
                        id=push_id,
                        receipts=True,
                        user=session.user,
                        event=EVENT,
                        confirm="acked",
                        ack_within=self._timeout,
                    )
                    final = await sent.outcome(self._timeout, final=True)
            except TimeoutError:
                if sent is None:
                    why = f"the broker did not confirm it in {self._timeout:g} s"
                    return Try(push_id, Result.NOT_PUBLISHED, None, None, why)
            except (BrokerUnavailable, NotTaken) as error:
                return Try(push_id, Result.NOT_PUBLISHED, None, None, str(error))
            proven = None if final is None else time.monotonic() - began
            came = shown.done() and shown.exception() is None
            seconds = shown.result() - began if came else None
        why = "no receipt came" if final is None else f"its receipt says {final.outcome} ({final.reason})"
        if seconds is None:
            # An ack is sent after it was shown, so a receipt for one can't have come before.
            return Try(push_id, Result.NOT_SHOWN, None, proven, session.ended or why)
        if final is None:
            return Try(push_id, Result.NO_RECEIPT, seconds, None, why)
        if final.outcome != Outcome.ACKED:
            return Try(push_id, Result.WRONG_OUTCOME, seconds, proven, why)
        return Try(push_id, Result.OK, seconds, proven, "")
