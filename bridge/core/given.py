"""What the core is given: its ports, and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bridge.core.bounds import Bounds
from bridge.core.delivery.limits import DeliveryLimits
from bridge.core.mailbox.measuring import MailboxLimits
from bridge.core.ports.broker import Acks, Answers, DeadLetters, Fallbacks, Receipts
from bridge.core.ports.clock import Clock
from bridge.core.ports.connecting import ConnectHook
from bridge.core.ports.nodes import Directory, NodePost
from bridge.core.ports.plugins import DeliveryLog, ErrorHandler, Hooks, Metrics
from bridge.core.ports.retained import Retained
from bridge.core.ports.revocations import RevocationLog
from bridge.core.ports.scheduling import Releases, Schedule
from bridge.core.ports.session_log import SessionEvents, SessionLog
from bridge.core.ports.store import Store
from bridge.core.sessions.admission import AdmissionLimits
from bridge.core.sessions.connecting import Connecting, HookLimits


class Ports(NamedTuple):
    """The ports that the core is given."""

    store: Store
    revocations: RevocationLog
    logs: Sequence[DeliveryLog]
    """The logs other than the store."""
    acks: Acks
    receipts: Receipts
    dead_letters: DeadLetters
    fallbacks: Fallbacks
    answers: Answers
    hooks: Hooks
    metrics: Metrics
    errors: ErrorHandler
    clock: Clock
    sessions: SessionLog | None = None
    """None: there is no ledger."""
    session_events: SessionEvents | None = None
    """None: nobody is told of sessions."""
    hook: ConnectHook | None = None
    """None: there is no business system to ask who clients are."""
    directory: Directory | None = None
    """None: there can't be other nodes."""
    post: NodePost | None = None
    """None: likewise."""
    retained: Retained | None = None
    """None: there are no last values, since nothing is kept."""
    schedule: Schedule | None = None
    """None: nothing is scheduled; requests that ask for it are rejected by their limits."""
    releases: Releases | None = None
    """None: likewise."""


class CoreLimits(NamedTuple):
    """The bounds of the core: those from the settings, and the fixed ones."""

    delivery: DeliveryLimits
    mailbox: MailboxLimits
    id_memory_bytes: int
    token_seconds: float
    """For how long a token may be good."""
    fixed: Bounds = Bounds()
    admission: AdmissionLimits = AdmissionLimits()
    hook: HookLimits = HookLimits()


def connecting_of(ports: Ports, limits: CoreLimits, node: str) -> Connecting | None:
    """What asks the connect hook; None where there is none."""
    if ports.hook is None:
        return None
    return Connecting(
        ports.hook,
        limits.hook,
        node=node,
        token_seconds=limits.token_seconds,
        errors=ports.errors,
        metrics=ports.metrics,
        clock=ports.clock,
    )
