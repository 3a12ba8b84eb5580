"""Scheduled pushes as a whole: they are written down, released at their time, and recalled before."""

from __future__ import annotations

from bridge.core.bounds import Bounds
from bridge.core.delivery.later import Later
from bridge.core.delivery.releasing import Releasing
from bridge.core.model.pushes import Recall
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler
from bridge.core.ports.scheduling import Releases, Schedule
from bridge.core.settlement.gate import Gate
from bridge.core.settlement.persistence import Persistence
from bridge.core.settlement.worklist import Worklist


class Scheduling:
    """What writes entries for the taker, and what releases them."""

    def __init__(
        self,
        schedule: Schedule | None,
        releases: Releases | None,
        worklist: Worklist,
        persistence: Persistence,
        gate: Gate,
        errors: ErrorHandler,
        clock: Clock,
        boot: str,
        bounds: Bounds,
    ) -> None:
        """`schedule` None: every push is delivered at once."""
        self.later = Later(
            schedule,
            worklist=worklist,
            persistence=persistence,
            errors=errors,
            clock=clock,
            bounds=bounds.schedule,
        )
        self.releasing = None
        """None where nothing is scheduled."""
        if schedule is not None and releases is not None:
            self.releasing = Releasing(
                schedule,
                releases,
                boot=boot,
                gate=gate,
                errors=errors,
                clock=clock,
                bounds=bounds.schedule,
                parts=bounds.statements.parts,
            )

    async def recall(self, recall: Recall) -> int:
        """See `Later.recall`."""
        withdrawn = await self.later.recall(recall)
        if withdrawn and self.releasing is not None:
            self.releasing.look_now()
        return withdrawn
