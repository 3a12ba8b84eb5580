"""Ask the connect hook who a client is: so many at a time, and not at all while it does not answer.

| what is the case                                  | answer           | why in metrics | result in metrics      |
|---------------------------------------------------|------------------|----------------|------------------------|
| it has not answered several times in a row        | 503, Retry-After | `hook_down`    | not asked              |
| as many ask as may                                | 503, Retry-After | `hook_busy`    | not asked              |
| it says 200 and who it is                         | claims           | `opened`       | `allowed`              |
| it says 401 or 403                                | the same status  | `hook_refused` | `refused`              |
| it says 200 and anything else, or any other status| 503, Retry-After | `hook_failed`  | `wrong`                |
| it says 429 or 5xx, or nothing in time            | 503, Retry-After | `hook_failed`  | `failed`               |
| whoever asked does not wait for the answer        |                  |                | `given_up`             |

Only `failed` ones open the breaker: they may be the same for everybody. An answer that makes no sense is an answer.

Handshakes and open sessions that ask again share the places. Sessions never have more than half of them. While some of
them wait, handshakes have no more than the other half: so neither can starve the other.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Final, NamedTuple

from bridge.core.contract.connecting import Allowed, allowed, question
from bridge.core.errors import ConnectHookFailed
from bridge.core.model.sessions import Claims, Handshake, Refusal
from bridge.core.ports.clock import Clock
from bridge.core.ports.connecting import ConnectHook, HookAnswer
from bridge.core.ports.plugins import ErrorHandler, Metrics
from bridge.core.sessions.breaker import Breaker, BreakerState

# These sentences leave open what has failed, and so do the words for clients.
DOWN: Final = Refusal(
    503, "hook_down", "Clients can't be checked at the moment, try again soon.", "unchecked"
)
BUSY: Final = Refusal(503, "hook_busy", "Too many clients are being checked, try again in a moment.", "busy")
FAILED: Final = Refusal(
    503, "hook_failed", "This client could not be checked, try again in a moment.", "unchecked"
)
REFUSED: Final = {
    status: Refusal(status, "hook_refused", "The system that knows the clients has refused this one.")
    for status in (401, 403)
}
TOLD_EVERY: Final = 1.0
"""Seconds between two reports of one and the same failure."""


class HookLimits(NamedTuple):
    """What the settings say about the hook."""

    at_once: int = 100
    """Requests at a time, 2 or more."""
    headers: frozenset[str] = frozenset()
    """Those of a handshake that it gets, in lower case."""
    may_use_cookies: Callable[[str], bool] = bool
    """Whether browsers may send what they know of their users from pages with this Origin; empty: without one."""


class Places:
    """How many ask at a time. Each place that is taken is given back."""

    def __init__(self, most: int) -> None:
        """`most`: 2 or more."""
        self._most = most
        self._half = most // 2
        self.handshakes = 0
        self.renewals = 0
        self.renewals_wait = False
        """Sessions that are to ask again wait for a place."""

    @property
    def taken(self) -> int:
        """Places that are not free."""
        return self.handshakes + self.renewals

    @property
    def free_for_handshake(self) -> bool:
        """Whether a handshake may take one."""
        most = self._most - self._half if self.renewals_wait else self._most
        return self.taken < self._most and self.handshakes < most

    @property
    def free_for_renewal(self) -> bool:
        """Whether a session may take one to ask again."""
        return self.taken < self._most and self.renewals < self._half


class Connecting:
    """Asks the hook, for handshakes and for open sessions."""

    def __init__(
        self,
        hook: ConnectHook,
        limits: HookLimits,
        *,
        node: str,
        token_seconds: float,
        errors: ErrorHandler,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        """`token_seconds`: for how long it may let somebody in."""
        self._hook = hook
        self._limits = limits
        self._node = node
        self._token_seconds = token_seconds
        self._errors = errors
        self._metrics = metrics
        self._clock = clock
        self.places = Places(limits.at_once)
        self.breaker = Breaker(clock)
        self._told = ""
        """The failure that was reported last,"""
        self._told_at = 0.0
        """when, in monotonic seconds,"""
        self._untold = 0
        """and how many like it were not reported since."""

    @property
    def open(self) -> bool:
        """Whether the breaker keeps clients away from the hook."""
        return self.breaker.state is not BreakerState.CLOSED

    def refusal(self, request: Handshake) -> Refusal | None:
        """Why the hook is not asked about this handshake; None if it is. Takes nothing."""
        if self._sent_by_browsers(request) and not self._limits.may_use_cookies(request.origin or ""):
            return Refusal(
                403,
                "origin",
                "Cookies, and what else a browser sends by itself, need an Origin that BRIDGE_ORIGINS lists.",
            )
        if not self.breaker.allows:
            return DOWN
        return None if self.places.free_for_handshake else BUSY

    def _sent_by_browsers(self, request: Handshake) -> bool:
        """Whether the hook would get what browsers send whichever page asks them to (RFC 6455 10.2). A page can set no
        header of a WebSocket, so beside an Origin even Authorization is the browser's, unless it is a Bearer token."""
        if "cookie" in self._limits.headers and request.cookie is not None:
            return True
        if (
            "authorization" not in self._limits.headers
            or request.authorization is None
            or request.origin is None
        ):
            return False
        scheme, *_ = request.authorization.split(None, 1) or [""]
        return scheme.lower() != "bearer"

    async def admit(self, request: Handshake) -> Claims | Refusal:
        """Ask about a handshake. May be cancelled."""
        refusal = self.refusal(request)  # others may have come since it was decided to ask
        if refusal is not None:
            return refusal
        asked = question(request, self._node)
        self.places.handshakes += 1
        try:
            return await self._ask(asked, f"hook:{uuid.uuid4().hex}")
        finally:
            self.places.handshakes -= 1

    def begin_renewal(self) -> bool:
        """Take a place for `renew`, if there is one and the hook may be asked."""
        if not self.places.free_for_renewal or not self.breaker.allows:
            return False
        self.places.renewals += 1
        return True

    async def renew(self, claims: Claims) -> Claims | Refusal:
        """Ask again what was asked for these claims; `begin_renewal` has taken the place. May be cancelled.

        The id stays: whoever has revoked it means the same client.
        """
        try:
            if not self.breaker.allows:
                return DOWN  # another one has tried it meanwhile
            return await self._ask(claims.asked or b"", claims.token_id)
        finally:
            self.places.renewals -= 1

    async def _ask(self, asked: bytes, token_id: str) -> Claims | Refusal:
        number = self.breaker.begin()
        # Whoever revokes a user means everybody about whom was asked before.
        asked_at, started = self._clock.time(), self._clock.monotonic()
        result = "given_up"
        found: Claims | Refusal
        try:
            answer = await self._hook.ask(asked)
            if answer.status in REFUSED:
                result, found = "refused", REFUSED[answer.status]
            else:
                latest = asked_at + self._token_seconds
                user, expires_at, may = _allowed(answer, self._clock.time(), latest)
                result = "allowed"
                found = Claims(
                    user, expires_at, token_id, asked_at, asked, may.topics, may.subscribe, may.publish
                )
            self.breaker.answered()
        except ConnectHookFailed as failed:
            result, found = "failed" if failed.down else "wrong", FAILED
            self._failed(failed, number)
        finally:
            if result == "given_up":
                self.breaker.given_up(number)
            self._metrics.hook_asked(result, self._clock.monotonic() - started)
        return found

    def _failed(self, failed: ConnectHookFailed, number: int) -> None:
        opened = False
        if failed.down:
            opened = self.breaker.failed(number)
        else:
            self.breaker.answered()
        self._report(failed, opened=opened)

    def _report(self, failed: ConnectHookFailed, *, opened: bool) -> None:
        """Tell of a failure: at once of a new one, now and then of the same."""
        now = self._clock.monotonic()
        if failed.cause == self._told and now - self._told_at < TOLD_EVERY and not opened:
            self._untold += 1
            return
        facts: dict[str, object] = {"not_reported": self._untold}
        if opened:
            facts["breaker"] = "open: it is left alone for a while"
        self._errors.handle(failed, "connect.hook", facts)
        self._told, self._told_at, self._untold = failed.cause, now, 0


def _allowed(answer: HookAnswer, now: float, latest: float) -> Allowed:
    if answer.status != 200:
        down = answer.status == 429 or answer.status >= 500
        raise ConnectHookFailed(f"it answered with {answer.status}", down=down)
    return allowed(answer.body, now, latest)
