"""`bridge token`: make a token that opens a session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from bridge.config import TokenSettings
from bridge.core.errors import SettingsError

May: TypeAlias = Mapping[str, Sequence[str] | None]
"""Claims that say what the user may do; None: without it."""


def token(settings: TokenSettings, user: str, ttl: float, may: May | None = None) -> int:
    """Print a token that a bridge with the same settings accepts. `may`: further claims."""
    if "jwt_secret" not in settings.model_fields_set or not settings.jwt_secrets:
        # With `dev` a random one is made at each start: a token signed with it would open nothing.
        raise SettingsError("BRIDGE_JWT_SECRET", "needed: the secret of the bridge that the token is for")
    print(token_for(settings, user, ttl, may))
    return 0


def token_for(settings: TokenSettings, user: str, seconds: float, may: May | None = None) -> str:
    """A token for a user that is valid so long at a bridge with these settings."""
    from bridge.adapters.tokens import make_token

    claims: dict[str, Any] = {
        "iss": settings.jwt_issuer or None,
        "aud": settings.jwt_audience or None,
        **(may or {}),
    }
    return make_token(
        settings.jwt_secrets[0],
        user,
        seconds,
        algorithm=settings.jwt_algorithms[0],
        **claims,
    )
