"""How a setting is named: as a variable, as a flag, and in which files."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "BRIDGE_"
ENV_FILE: Final = ".env"
DEV_ENV_FILE: Final = ".dev/env"
"""`bridge dev` writes here how to reach its servers, so that `bridge push` in another shell finds them."""
SECRETS_DIR: Final = "/run/secrets"
"""Where container engines put secret files."""
SECRETS_DIR_VARIABLE: Final = f"{PREFIX}SECRETS_DIR"


def env_name(field: str) -> str:
    """The environment variable of a setting: `BRIDGE_WS_PORT`."""
    return PREFIX + field.upper()


def flag_name(field: str) -> str:
    """The flag of a setting: `--ws-port`."""
    return "--" + field.replace("_", "-")
