"""What a plug-in imports: the protocols that it may implement, the types that it gets, and the errors.

A plug-in needs no other module of the bridge. The names here are stable; other modules may change with any release.
docs/extending.md describes each name. The bridge itself does not import this module.
"""

from bridge.core.errors import (
    BridgeError,
    BrokerUnavailable,
    SettingsError,
    StatementFailed,
    StoreUnavailable,
)
from bridge.core.model.outcomes import Outcome, Proof, Reason
from bridge.core.model.pushes import NO_USER, Encoding
from bridge.core.model.rows import Reply, Row, RowKey
from bridge.core.ports.plugins import DeliveryLog, ErrorHandler, Hooks, SessionInfo

__all__ = [
    "NO_USER",
    "BridgeError",
    "BrokerUnavailable",
    "DeliveryLog",
    "Encoding",
    "ErrorHandler",
    "Hooks",
    "Outcome",
    "Proof",
    "Reason",
    "Reply",
    "Row",
    "RowKey",
    "SessionInfo",
    "SettingsError",
    "StatementFailed",
    "StoreUnavailable",
]
