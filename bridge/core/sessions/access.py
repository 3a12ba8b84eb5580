"""Decide who may open a session: from the request of a handshake to a grant or a refusal.

| what is the case                                  | answer                     | why in metrics    |
|---------------------------------------------------|----------------------------|-------------------|
| the service is draining                           | 503, Retry-After           | `draining`        |
| the Origin is not in BRIDGE_ORIGINS               | 403                        | `origin`          |
| subprotocols are offered, and we speak none       | 400                        | `subprotocol`     |
| no token, or tokens that differ                   | 401                        | `missing`, `many` |
| the verifier refuses the token                    | 401                        | the verifier's why|
| the keys to check it with are not there yet       | 503, Retry-After           | `no_keys`         |
| no subprotocol is offered                         | granted, bare mode         | `opened`          |

A browser fails a connection that is granted without any of the subprotocols it offered (RFC 6455 4.1), and the page
only sees 1006. So the bridge refuses such a handshake with an answer that a developer can read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection
from typing import NamedTuple, TypeAlias

from msgspec import structs

from bridge.core.errors import KeysUnavailable, TokenRefused
from bridge.core.model.sessions import Claims, Grant, Handshake, Mode, Refusal
from bridge.core.ports.plugins import TokenVerifier

Decision: TypeAlias = Grant | Refusal


class Undecided(NamedTuple):
    """A decision for which the verifier waits. It may be dropped."""

    claims: Awaitable[Claims]
    grant: Grant


TOKEN_ENTRY = "bridge.token."
"""The start of a subprotocol entry that carries the token: browsers can set no other header. It is never echoed."""

_AS_BASE64URL = str.maketrans("+/", "-_")


class Access:
    """Decides on handshakes; holds no sessions."""

    def __init__(self, verifier: TokenVerifier, origins: Collection[str]) -> None:
        self._verifier = verifier
        self._origins = frozenset(origins)
        self.draining = False
        """While True every handshake is refused with 503."""

    def begin_drain(self) -> None:
        """Refuse every handshake from now on."""
        self.draining = True

    def decide(self, request: Handshake) -> Decision | Undecided:
        """Answer a handshake by the first line of the module's table that fits. Never raises."""
        if self.draining:
            return Refusal(503, "draining", "The service is restarting, come back in a moment.\n")
        if self._origins and request.origin is not None and request.origin not in self._origins:
            return Refusal(
                403, "origin", "This origin may not open a session: it is not one of BRIDGE_ORIGINS.\n"
            )
        spoken = _spoken(request.subprotocols)
        if spoken is None and request.subprotocols:
            return _not_spoken(request.subprotocols)
        tokens = _tokens(request)
        if not tokens:
            return _no_token(request)
        if len(tokens) > 1:
            return Refusal(401, "many", "More than one token was given, and they differ.\n")
        last = request.query.get("last")
        grant = Grant(None, spoken or Mode.BARE, spoken and spoken.value, last[0] if last else None)
        return self.check(tokens.pop(), grant)

    def check(self, token: str, grant: Grant) -> Decision | Undecided:
        """The grant with what the token says, or the refusal. Never raises."""
        try:
            claims = self._verifier.verify(token)
        except (TokenRefused, KeysUnavailable) as error:
            return _not_verified(error)
        if isinstance(claims, Claims):
            return structs.replace(grant, claims=claims)
        return Undecided(claims, grant)

    @staticmethod
    async def decided(waits: Undecided) -> Decision:
        """The decision that had to wait. Never raises."""
        try:
            return structs.replace(waits.grant, claims=await waits.claims)
        except (TokenRefused, KeysUnavailable) as error:
            return _not_verified(error)


def _not_verified(error: TokenRefused | KeysUnavailable) -> Refusal:
    if isinstance(error, KeysUnavailable):
        return Refusal(
            503, "no_keys", "The keys that check tokens are not there yet, try again in a moment.\n"
        )
    detail = f" ({error.detail})" if error.detail else ""
    return Refusal(401, error.why, f"The token was refused: {error.why}{detail}.\n")


def _tokens(request: Handshake) -> set[str]:
    """The different tokens of all carriers. The same token in two spellings of base64 counts once."""
    # A raw `+` in a query becomes a space, and no token has a space.
    given = [token.strip("\t\r\n").replace(" ", "+") for token in request.query.get("token", ())]
    scheme, *credentials = (request.authorization or "").split(None, 1)[:2] or [""]
    if scheme.lower() == "bearer":
        given.extend(token.strip() for token in credentials)
    given.extend(entry[len(TOKEN_ENTRY) :] for entry in request.subprotocols if entry.startswith(TOKEN_ENTRY))
    return set({_canonical(token): token for token in given if token}.values())


def _canonical(token: str) -> str:
    return ".".join(part.rstrip("=") for part in token.translate(_AS_BASE64URL).split("."))


def _spoken(subprotocols: Collection[str]) -> Mode | None:
    """The first of them that we speak: the client lists them by preference (RFC 6455 4.1)."""
    for entry in subprotocols:
        if entry in (Mode.ENVELOPE.value, Mode.BARE.value):
            return Mode(entry)
    return None


def _not_spoken(subprotocols: Collection[str]) -> Refusal:
    if any(entry.startswith(TOKEN_ENTRY) for entry in subprotocols):
        text = "The subprotocol with the token is not enough: offer bridge.v1.json or bridge.bare too.\n"
    else:
        text = "The bridge speaks none of these subprotocols: offer bridge.v1.json or bridge.bare too.\n"
    return Refusal(400, "subprotocol", text)


def _no_token(request: Handshake) -> Refusal:
    # Worded so that the log's redaction does not mistake it for a token.
    ways = "in the query as `token`, in the header Authorization with the scheme Bearer, or as a subprotocol"
    if request.authorization is not None:
        text = f"The header Authorization has no Bearer token. A token is required: {ways}.\n"
        return Refusal(401, "missing", text)
    return Refusal(401, "missing", f"A token is required: {ways} (bridge.token. and the JWT).\n")
