"""The composition root: what is chosen by settings, what starts before what, and how it all stops.

Start, outermost first; each part may use those before it, so it is stopped before them:

1. plug-ins, metrics: no I/O, everything else reports to them
2. the store: pushes can't be settled without it, so it is the last to go
3. the publisher: receipts are owed until the very end
4. the core: gate, hub, settlement, delivery, gateway
5. the WebSocket and ops ports: they listen at once and say `not ready` until the gate opens
6. the consumer: nothing is taken before there is somebody to send it to

Stop is a drain and goes the other way: refuse handshakes, stop taking, settle what was taken, close the
consumer's channel (what is left goes back to the queue, oldest first), close sessions spread out, leave.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from bridge import __version__
from bridge.access import Access
from bridge.config import Settings
from bridge.delivery import Delivery, DeliveryLimits
from bridge.errors import SchemaBehind, StoreUnavailable
from bridge.gate import Gate
from bridge.gateway import Gateway
from bridge.hub import Hub
from bridge.model import CloseReason
from bridge.recent import CAPACITY
from bridge.session import SessionLimits
from bridge.settlement import Settlement

log = logging.getLogger("bridge")

TICK = 0.1
"""Seconds between looks at deadlines."""
SWEEP_EVERY = 1.0
"""Seconds between sweeps of the rows."""
UPKEEP_EVERY = 3600.0
"""Seconds between looks at the partitions."""
CLOSE_SPREAD = 2.0
"""Seconds over which sessions are closed at a stop, and by which their return is spread as well."""


class SystemClock:
    """The Clock port on the machine's clocks."""

    def time(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)
