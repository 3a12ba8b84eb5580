"""Decide who may open a session: from the request of a handshake to a grant or a refusal.

| what is the case                                  | answer                     | why in metrics    |
|---------------------------------------------------|----------------------------|-------------------|
| the service is draining                           | 503, Retry-After           | `draining`        |
| as many sessions are open as may be               | 503, Retry-After           | `full`            |
| too many handshakes come at this moment           | 503, Retry-After           | `rate`            |
| too many sessions are open from this address      | 429                        | `address_sessions`|
| sessions can't be recorded at the moment          | 503, Retry-After           | `ledger`          |
| the Origin is not in BRIDGE_ORIGINS               | 403                        | `origin`          |
| subprotocols are offered, and we speak none       | 400                        | `subprotocol`     |
| a token came in a way that is switched off        | 401                        | `carrier`         |
| a cookie has it, and the Origin is not listed     | 403                        | `origin`          |
| tokens that differ                                | 401                        | `many`            |
| no token of ours, and there is a connect hook     | the hook decides           | see `connecting`  |
| no token, and it may come as the first message    | granted, nobody yet        | see `strangers`   |
| no token                                          | 401                        | `missing`         |
| the verifier refuses the token                    | 401                        | the verifier's why|
| the keys to check it with are not there yet       | 503, Retry-After           | `no_keys`         |
| revocations have not been read yet                | 503, Retry-After           | `starting`        |
| the token is revoked                              | 401                        | `revoked`         |
| it is good for longer than revocations are kept   | 401                        | `long_lived`      |
| too many sessions of this user are open           | 429                        | `user_sessions`   |
| it asks for a stream of events                    | granted, mode `sse`        | `opened`          |
| no subprotocol is offered                         | granted, bare mode         | `opened`          |

A browser fails a connection that is granted without any of the subprotocols it offered (RFC 6455 4.1), and the page
only sees 1006. So the bridge refuses such a handshake with an answer that a developer can read.

Beside a connect hook, a token in `Authorization` or in a cookie may be the business system's own. It is ours if we have
signed it for us. Whatever `NOT_OURS` says is the hook's to judge; a token of ours that has expired, or was revoked, is
refused. Without anything to check tokens with, the hook gets everybody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import Final, NamedTuple, TypeAlias

from msgspec import structs

from bridge.core.errors import KeysUnavailable, TokenRefused
from bridge.core.model.sessions import SSE_PATH, Claims, Grant, Handshake, Mode, Refusal
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import TokenVerifier
from bridge.core.sessions.admission import Admission
from bridge.core.sessions.carriers import TOKEN_ENTRY, USUAL_CARRIERS, Carriers
from bridge.core.sessions.connecting import Connecting
from bridge.core.sessions.ledger import Ledger
from bridge.core.sessions.revoked import UNREAD, Revoked

Decision: TypeAlias = Grant | Refusal


NOT_OURS: Final = frozenset(("malformed", "algorithm", "unknown_key", "signature", "issuer", "audience"))
"""Why the verifier refuses what somebody else has signed, or what is for somebody else."""
_NO_TOKENS: Final = Refusal(
    401, "carrier", "This bridge takes no tokens: a business system says who its clients are."
)


class Asks(NamedTuple):
    """What the connect hook is asked about, once none of these is a token of ours."""

    request: Handshake
    shared: tuple[str | Refusal, ...]


class Undecided(NamedTuple):
    """A decision for which the verifier waits, or without `claims` the hook. It may be dropped."""

    claims: Awaitable[Claims] | None
    grant: Grant
    asks: Asks | None = None
    """None where the token alone decides."""


class Access:
    """Decides on handshakes; holds no sessions."""

    def __init__(
        self,
        verifier: TokenVerifier | None,
        origins: Collection[str],
        *,
        revoked: Revoked,
        ledger: Ledger,
        admission: Admission,
        clock: Clock,
        token_from: Collection[str] = USUAL_CARRIERS,
        cookie: str = "",
        connecting: Connecting | None = None,
    ) -> None:
        """`token_from`: the carriers that may have a token; `cookie`: the name of the one that may. `connecting`: asks
        about clients without a token. Without a verifier there are no tokens."""
        self._verifier = verifier
        self._revoked = revoked
        self._ledger = ledger
        self._admission = admission
        self._clock = clock
        self._connecting = connecting
        self._carriers = Carriers(token_from, cookie, origins)
        self._origins = frozenset(origins)
        self.draining = False
        """While True every handshake is refused with 503."""

    def begin_drain(self) -> None:
        """Refuse every handshake from now on."""
        self.draining = True

    def decide(self, request: Handshake) -> Decision | Undecided:
        """Answer a handshake by the first line of the module's table that fits. Never raises."""
        if self.draining:
            return Refusal(503, "draining", "The service is restarting, come back in a moment.")
        refusal = self._admission.refuses(request.device.address, self._clock.monotonic())
        refusal = refusal or self._ledger.refusal
        if refusal is not None:
            return refusal
        if self._origins and request.origin is not None and request.origin not in self._origins:
            return Refusal(
                403, "origin", "This origin may not open a session: it is not one of BRIDGE_ORIGINS."
            )
        spoken = Mode.SSE if request.path == SSE_PATH else _spoken(request.subprotocols)
        if spoken is None and request.subprotocols:
            return _not_spoken(request.subprotocols)
        last = request.query.get("last")
        resumes = last[0] if last else None
        subprotocol = spoken.value if spoken and request.subprotocols else None
        grant = Grant(None, spoken or Mode.BARE, subprotocol, resumes, request.device)
        if self._connecting is not None:
            return self._token_or_hook(request, grant)
        token = self._carriers.token(request)
        if isinstance(token, Refusal):
            return token
        return grant if token is None else self.check(token, grant)

    def _token_or_hook(self, request: Handshake, grant: Grant) -> Decision | Undecided:
        if self._verifier is None:
            return self._ask(Asks(request, ()), grant)
        own, shared = self._carriers.shown(request)
        if isinstance(own, Refusal):
            return own
        return self._first_of_ours(Asks(request, shared), grant) if own is None else self.check(own, grant)

    def _first_of_ours(self, asks: Asks, grant: Grant) -> Decision | Undecided:
        """The first of the shared tokens that is ours decides, and without one the hook."""
        for place, token in enumerate(asks.shared, 1):
            if isinstance(token, Refusal):
                return token
            answer = self.check(token, grant)
            if isinstance(answer, Undecided):
                return answer._replace(asks=Asks(asks.request, asks.shared[place:]))
            if not _is_not_ours(answer):
                return answer
        return self._ask(asks, grant)

    def _ask(self, asks: Asks, grant: Grant) -> Decision | Undecided:
        """What can be refused without asking is refused at once."""
        if not self._revoked.read:
            return UNREAD
        refusal = self._connecting.refusal(asks.request) if self._connecting else None
        return refusal or Undecided(None, grant, Asks(asks.request, ()))

    def check(self, token: str, grant: Grant) -> Decision | Undecided:
        """The grant with what the token says, or the refusal. Never raises."""
        if self._verifier is None:
            return _NO_TOKENS
        try:
            claims = self._verifier.verify(token)
        except (TokenRefused, KeysUnavailable) as error:
            return _not_verified(error)
        if isinstance(claims, Claims):
            return self._not_revoked(claims, grant)
        return Undecided(claims, grant)

    async def decided(self, waits: Undecided) -> Decision:
        """The decision that had to wait. Never raises."""
        answer: Decision | Undecided = waits
        while isinstance(answer, Undecided):
            answer = await self._waited(answer)
        return answer

    async def _waited(self, waits: Undecided) -> Decision | Undecided:
        answer: Decision
        try:
            if waits.claims is not None:
                answer = self._not_revoked(await waits.claims, waits.grant)
            else:
                return await self._asked(waits)
        except (TokenRefused, KeysUnavailable) as error:
            answer = _not_verified(error)
        if waits.asks is not None and _is_not_ours(answer):
            return self._first_of_ours(waits.asks, waits.grant)
        return answer

    async def _asked(self, waits: Undecided) -> Decision:
        assert self._connecting is not None, "there is a hook to wait for"
        assert waits.asks is not None, "something is asked about"
        found = await self._connecting.admit(waits.asks.request)
        return found if isinstance(found, Refusal) else self._not_revoked(found, waits.grant)

    def revokes(self, claims: Claims) -> bool:
        """Whether this token was revoked, perhaps after it was granted."""
        return self._revoked.covers(claims)

    def bounded(self, answer: Decision) -> Decision:
        """This decision, unless it grants a session and there is no room for it by now."""
        if isinstance(answer, Refusal) or answer.claims is None:
            return answer
        return self._admission.refuses_session(answer.claims.user, answer.device.address) or answer

    def _not_revoked(self, claims: Claims, grant: Grant) -> Decision:
        now = self._clock.time()
        return self._revoked.refusal(claims, now) or structs.replace(grant, claims=claims, granted_at=now)


def _not_verified(error: TokenRefused | KeysUnavailable) -> Refusal:
    if isinstance(error, KeysUnavailable):
        return Refusal(503, "no_keys", "The keys that check tokens are not there yet, try again in a moment.")
    detail = f" ({error.detail})" if error.detail else ""
    return Refusal(401, error.why, f"The token was refused: {error.why}{detail}.")


def _is_not_ours(answer: Decision) -> bool:
    return isinstance(answer, Refusal) and answer.why in NOT_OURS


def _spoken(subprotocols: Collection[str]) -> Mode | None:
    """The first of them that we speak: the client lists them by preference (RFC 6455 4.1)."""
    for entry in subprotocols:
        if entry in (Mode.ENVELOPE.value, Mode.BARE.value):
            return Mode(entry)
    return None


def _not_spoken(subprotocols: Collection[str]) -> Refusal:
    if any(entry.startswith(TOKEN_ENTRY) for entry in subprotocols):
        text = "The subprotocol with the token is not enough: offer bridge.v1.json or bridge.bare too."
    else:
        text = "The bridge speaks none of these subprotocols: offer bridge.v1.json or bridge.bare too."
    return Refusal(400, "subprotocol", text)
