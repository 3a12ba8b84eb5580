"""One request while it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bridge.core.delivery.given_up import GivenUp
from bridge.core.delivery.known import Known
from bridge.core.delivery.targets import Resolver
from bridge.core.inflight.held import HeldMessage
from bridge.core.model.outcomes import Outcome, Reason
from bridge.core.model.pushes import PushRequest


class Taking(NamedTuple):
    """One request while it is taken."""

    message: HeldMessage
    request: PushRequest
    resolver: Resolver
    fingerprint: int
    came_before: bool
    known: Known | None
    ending: GivenUp | None
    """Its outcome, if the broker or this bridge has given it up."""
    too_old: tuple[Outcome, Reason] | None
    """Its outcome, if its time was over before it was taken."""
    boots: Sequence[str] = ()
    """The process that has the session that it is for, where that is another one."""
