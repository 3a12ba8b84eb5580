"""Settings: what there is, where values come from, what is wrong with one. May import adapters, addresses and the core.

It knows nothing of what the settings are for.
"""

from bridge.config.catalogue import GROUPS, default_text, misspelt_variables
from bridge.config.common import CommonSettings, InvalidSettings, expected_value
from bridge.config.names import DEV_ENV_FILE, ENV_FILE, env_name, flag_name
from bridge.config.settings import Settings, TokenSettings

__all__ = [
    "DEV_ENV_FILE",
    "ENV_FILE",
    "GROUPS",
    "CommonSettings",
    "InvalidSettings",
    "Settings",
    "TokenSettings",
    "default_text",
    "env_name",
    "expected_value",
    "flag_name",
    "misspelt_variables",
]
