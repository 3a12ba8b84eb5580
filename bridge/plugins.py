"""What a plug-in imports: the shapes it may fill, what it is told, and the errors it may see or raise.

This is the only module of the bridge that a plug-in needs, and the only one that keeps its names for it: other modules
may move with any release. docs/extending.md tells of each name. The bridge itself does not import this module.
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
