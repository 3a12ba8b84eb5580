"""The parts that `Taker` uses."""

from __future__ import annotations

from typing import NamedTuple

from bridge.core.delivery.dispatch import Dispatcher
from bridge.core.delivery.elsewhere import Elsewhere
from bridge.core.delivery.everywhere import Everywhere
from bridge.core.delivery.fan_out import FanOut
from bridge.core.delivery.known import KnownRows
from bridge.core.delivery.later import Later
from bridge.core.delivery.load import Load
from bridge.core.delivery.lookups import Lookups
from bridge.core.delivery.reading import Reader
from bridge.core.delivery.remembered import Remembered
from bridge.core.delivery.repeats import Repeats
from bridge.core.delivery.retaining import Retaining
from bridge.core.delivery.routing import Router
from bridge.core.delivery.turns import Turns
from bridge.core.inflight.inflight import InFlight
from bridge.core.ports.broker import Acks
from bridge.core.ports.clock import Clock
from bridge.core.ports.plugins import ErrorHandler, Metrics
from bridge.core.sessions.hub import Hub
from bridge.core.settlement.worklist import Worklist


class TakeParts(NamedTuple):
    """The parts that `Taker` uses."""

    hub: Hub
    inflight: InFlight
    worklist: Worklist
    reader: Reader
    router: Router
    dispatcher: Dispatcher
    fan_out: FanOut
    lookups: Lookups
    known: KnownRows
    repeats: Repeats
    elsewhere: Elsewhere
    everywhere: Everywhere
    retaining: Retaining
    remembered: Remembered
    turns: Turns
    load: Load
    later: Later
    acks: Acks
    metrics: Metrics
    errors: ErrorHandler
    clock: Clock
