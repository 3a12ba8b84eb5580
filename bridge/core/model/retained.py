"""The last value of a topic and an event: a push that who subscribes later gets first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from bridge.core.model.pushes import PushRequest


class LastValue(msgspec.Struct, frozen=True, gc=False):
    """A push to a topic that said `retain`, as it was taken."""

    request: PushRequest
    position: int
    """Its place among all pushes: of two for one topic and event the higher one stays."""
    published_at: float
    until: float
    """Unix seconds: when its ttl is over, or without one when its row would be dropped."""
    fingerprint: int
    app_id: str = ""
    traceparent: str = ""


class LastValuesAsk(NamedTuple):
    """What somebody who has subscribed is to get: the last values of a topic with a higher position."""

    topic: str
    user: str
    after: int = 0


class FoundValue(NamedTuple):
    """One of them."""

    value: LastValue
    known: bool
    """Whether the push has a row for the user: another session has got it, or was to get it."""
    taken_back: bool = False
    """Whether it was for the first device, and one of the user's sessions has acked it."""


class LastValuesPage(NamedTuple):
    """The answer to an ask, lowest position first."""

    values: Sequence[FoundValue]
    more: bool
    """Whether there may be more after the last of them."""
