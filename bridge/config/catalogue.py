"""All settings together, for help, pages and hints: in groups, with their defaults as text, by nearly right names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import SecretStr

from bridge.config.names import PREFIX, SECRETS_DIR_VARIABLE, env_name
from bridge.config.settings import Settings
from bridge.core.sessions.carriers import USUAL_CARRIERS

GROUPS: Final[Mapping[str, Sequence[str]]] = {
    "Where things are": ("amqp_url", "postgres_dsn", "node", "ws_host", "ws_port", "ops_host", "ops_port"),
    "Who may come in": (
        "jwt_secret",
        "jwt_algorithms",
        "jwt_keys",
        "jwt_jwks_url",
        "jwt_issuer",
        "jwt_audience",
        "token_days",
        "origins",
        "token_from",
        "token_cookie",
        "connect_url",
        "connect_headers",
        "connect_timeout",
        "connect_at_once",
        "ops_token",
        "ops_credentials",
    ),
    "How many may come in": (
        "max_sessions",
        "max_sessions_per_user",
        "sessions_over",
        "max_sessions_per_address",
        "trusted_proxies",
        "handshakes_per_second",
        "handshake_timeout",
        "max_header_bytes",
        "max_frame_bytes",
        "frames_per_second",
        "frames_per_minute",
    ),
    "The delivery log and plug-ins": ("delivery_log", "retention_days", "payload", "error_handler", "hooks"),
    "Times": (
        "confirm_timeout",
        "max_age",
        "start_grace",
        "drain_timeout",
        "drain_rate",
        "session_lifetime",
        "topic_linger",
    ),
    "Limits": (
        "prefetch",
        "partitions",
        "tenant_share",
        "max_attempts",
        "max_data_bytes",
        "session_queue",
        "session_bytes",
        "total_bytes",
        "mailbox_pushes",
        "mailbox_bytes",
        "id_memory_bytes",
    ),
    "The broker": ("outcome_events", "session_events", "declare"),
    "The process": ("workers", "log_level", "log_format", "dev", "uvloop"),
}
"""The settings by what they are about, in the order in which people read them."""


def default_text(field: str) -> str:
    """The default as a user would write it; for settings whose default is made at the start, how."""
    made = {"node": "the host name", "jwt_secret": "", "token_from": ",".join(USUAL_CARRIERS)}
    if field in made:
        return made[field]
    value = Settings.model_fields[field].default
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def misspelt_variables(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Variables that begin like ours and are none, with the setting that was probably meant.

    Only near misses: container engines set variables such as BRIDGE_PORT for a service named bridge.
    """
    ours = [*map(env_name, Settings.model_fields), SECRETS_DIR_VARIABLE]
    found: dict[str, str] = {}
    for name in sorted(n for n in environ if n.startswith(PREFIX) and n not in ours):
        near = difflib.get_close_matches(name, ours, n=1, cutoff=0.9)
        if near:
            found[name] = near[0]
    return found
