"""Who may open a session: the opening handshake from its request to a grant or a refusal.

| what the client did                               | answer                     | why in metrics    |
|---------------------------------------------------|----------------------------|-------------------|
| the service is draining                           | 503, Retry-After           | `draining`        |
| its Origin is not in BRIDGE_ORIGINS               | 403                        | `origin`          |
| no token, or tokens that differ                   | 401                        | `missing`, `many` |
| a token that the verifier refuses                 | 401                        | the verifier's why|
| offered subprotocols, none of which we speak      | granted, bare mode         | `opened`          |
"""

from __future__ import annotations

from collections.abc import Collection

from bridge.errors import TokenRefused
from bridge.model import Grant, Handshake, Mode, Refusal
from bridge.ports import TokenVerifier

TOKEN_ENTRY = "bridge.token."
"""A subprotocol entry that carries the token: browsers can set no other header. It is never echoed."""


class Access:
    """Decides on handshakes; holds no sessions."""

    def __init__(self, verifier: TokenVerifier, origins: Collection[str]) -> None:
        self._verifier = verifier
        self._origins = frozenset(origins)
        self.draining = False
        """While True every handshake is refused with 503."""

    def decide(self, request: Handshake) -> Grant | Refusal:
        """Answer a handshake; never raises. The first line of the module's table that fits is taken."""
        if self.draining:
            return Refusal(503, "draining", "The service is restarting, come back in a moment.\n")
        if self._origins and request.origin is not None and request.origin not in self._origins:
            return Refusal(403, "origin", "This origin may not open a session.\n")
        tokens = self._tokens(request)
        if not tokens:
            return Refusal(
                401,
                "missing",
                "A token is required: ?token=, Authorization: Bearer, or the subprotocol bridge.token.<jwt>.\n",
            )
        if len(tokens) > 1:
            return Refusal(401, "many", "More than one token was given, and they differ.\n")
        try:
            claims = self._verifier.verify(tokens.pop())
        except TokenRefused as refused:
            return Refusal(401, refused.why, f"The token was refused: {refused.why}.\n")
        mode, echoed = _mode(request.subprotocols)
        last = request.query.get("last")
        return Grant(claims, mode, echoed, last[0] if last else None)

    @staticmethod
    def _tokens(request: Handshake) -> set[str]:
        tokens = {t for t in request.query.get("token", ()) if t}
        scheme, _, credentials = (request.authorization or "").partition(" ")
        if scheme.lower() == "bearer" and credentials.strip():
            tokens.add(credentials.strip())
        tokens.update(
            entry[len(TOKEN_ENTRY) :]
            for entry in request.subprotocols
            if entry.startswith(TOKEN_ENTRY) and len(entry) > len(TOKEN_ENTRY)
        )
        return tokens


def _mode(subprotocols: Collection[str]) -> tuple[Mode, str | None]:
    for entry in subprotocols:
        if entry in (Mode.ENVELOPE.value, Mode.BARE.value):
            return Mode(entry), entry
    return Mode.BARE, None
