"""Keep the last value of a topic and an event, before the push goes to those who are subscribed.

Whoever subscribes registers first and reads then. So who is not found when the push is taken, since they come later,
finds it among the last values.
"""

from __future__ import annotations

from functools import partial

import msgspec

from bridge.core.delivery.lookups import Lookups
from bridge.core.delivery.taking import Taking
from bridge.core.errors import StatementFailed
from bridge.core.inflight.inflight import InFlight
from bridge.core.model.retained import LastValue
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.retained import Retained


class Retaining:
    """Keeps last values as pushes are taken."""

    def __init__(
        self,
        retained: Retained | None,
        lookups: Lookups,
        inflight: InFlight,
        errors: ErrorHandler,
        kept_for: float,
    ) -> None:
        """`kept_for`: seconds after its publication for which a push without a ttl stays the last value."""
        self._retained = retained
        self._lookups = lookups
        self._inflight = inflight
        self._errors = errors
        self._kept_for = kept_for

    async def keep(self, taking: Taking) -> None:
        """Keep this request, if it asks for that. A repeat is not newer than what has replaced the first. What the
        database refuses though it is there is sent all the same, and no last value. Raises Stopped."""
        request = taking.request
        if not request.retain or self._retained is None or taking.ending or taking.too_old:
            return
        if taking.came_before and await self._lookups.has_rows(request.key):
            return
        message = taking.message
        began = max(message.published_at, min(request.deliver_at, message.taken_at))
        value = LastValue(
            # Whoever subscribes later has not been waited for.
            msgspec.structs.replace(request, deliver_at=0.0, fallback=None),
            self._inflight.take_position(),
            began,
            began + (request.ttl or self._kept_for),
            taking.fingerprint,
            # Postgres takes no NUL.
            message.properties.app_id.replace("\0", ""),
            message.traceparent,
        )
        try:
            await self._lookups.once(partial(self._retained.keep, value))
        except StatementFailed as failed:
            # Somebody has locked its row, or a right is missing: others must not wait for that.
            self._errors.handle(failed, "retained.keep", {"push_id": request.id})
