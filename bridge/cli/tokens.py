"""`bridge token`: make a token that opens a session."""

from __future__ import annotations

from bridge.config import TokenSettings
from bridge.core.errors import SettingsError


def token(settings: TokenSettings, user: str, ttl: float) -> int:
    """Print a token that the bridge with the same settings takes."""
    from bridge.adapters.tokens import make_token

    if "jwt_secret" not in settings.model_fields_set:
        # With `dev` one is made up at each start: a token signed with it would open nothing.
        raise SettingsError(
            "BRIDGE_JWT_SECRET", "the secret of the bridge that is to take the token is needed"
        )
    made = make_token(
        settings.jwt_secret.get_secret_value(),
        user,
        ttl,
        algorithm=settings.jwt_algorithms[0],
        iss=settings.jwt_issuer or None,
        aud=settings.jwt_audience or None,
    )
    print(made)
    return 0
