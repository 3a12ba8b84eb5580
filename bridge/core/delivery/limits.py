"""The bounds for delivery; each has a setting of the same name."""

from __future__ import annotations

import msgspec

from bridge.core.contract.requests import Limits


class DeliveryLimits(msgspec.Struct, frozen=True):
    """Times in seconds."""

    requests: Limits = Limits()
    confirm_timeout: float = 5.0
    park_after: float = 1.0
    max_age: float = 60.0
    start_grace: float = 2.0
    max_attempts: int = 20
    partitions: int = 1
    tenant_window: int = 0
    """Messages of one tenant that may be taken and not answered, where tenants share the bridge; 0: they do not."""
    total_bytes: int = 256 * 1024 * 1024
    drain_rate: float = 500.0
    """Sessions a second; 0: any number."""
    topic_linger: float = 3600.0
    """See `Everywhere`."""
    keep_bodies: bool = True
    """Whether rows of rejected requests have their body."""
    session_lifetime: float = 0.0
    """0: sessions stay as long as they like."""
