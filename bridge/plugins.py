"""What a plug-in imports: the shapes it may fill, what it is told, and the errors it may see or raise.

This is the only module of the bridge that a plug-in needs, and the only one that keeps its names for it: other modules
may move with any release. docs/extending.md tells of each name. The bridge itself does not import this module.
"""

from bridge.errors import BridgeError, BrokerUnavailable, SettingsError, StatementFailed, StoreUnavailable
from bridge.model import NO_USER, Encoding, Outcome, Proof, Reason, Reply, Row, RowKey
from bridge.ports import DeliveryLog, ErrorHandler, Hooks, SessionInfo

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
