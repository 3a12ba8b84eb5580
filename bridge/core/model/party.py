"""Who was responsible for how a push ended: a table over the outcomes and their reasons."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from bridge.core.model.outcomes import Outcome, Reason


class Party(enum.StrEnum):
    """Somebody, or something, that a push depends on."""

    PUBLISHER = "publisher"
    """The service that published it: what it sent, when, and for how long it was to be kept."""
    BRIDGE = "bridge"
    """A process of the bridge, or the servers that it stands on."""
    PEER = "peer"
    """The user's client: it was not there, did not read, or did not answer."""
    NETWORK = "network"
    """The connection between the bridge and the client, or between two nodes."""
    POLICY = "policy"
    """A rule that somebody has set: a limit, a recall, a revocation."""

    __hash__ = str.__hash__


_BY_REASON: Final[Mapping[Reason, Party]] = {
    Reason.NO_SESSION: Party.PEER,
    Reason.EXCLUDED: Party.PUBLISHER,
    Reason.NOBODY: Party.PEER,
    Reason.LEFT_BEFORE_SEND: Party.PEER,
    Reason.MAX_AGE: Party.POLICY,
    Reason.TTL: Party.PEER,
    Reason.QUEUE_EXPIRATION: Party.PUBLISHER,
    Reason.COLLAPSED: Party.PUBLISHER,
    Reason.MAILBOX_FULL: Party.POLICY,
    Reason.WITHDRAWN: Party.POLICY,
    Reason.SLOW_CONSUMER: Party.PEER,
    Reason.REVOKED: Party.POLICY,
    Reason.OVERFLOW: Party.POLICY,
    Reason.NO_PROOF: Party.PEER,
    Reason.NO_PROOF_POSSIBLE: Party.PEER,
    Reason.NOT_ACKED: Party.PEER,
    Reason.CONNECTION_LOST: Party.NETWORK,
    Reason.NODE_DIED: Party.BRIDGE,
    Reason.NODE_UNREACHABLE: Party.BRIDGE,
    Reason.NODE_SILENT: Party.BRIDGE,
    Reason.NOT_JSON: Party.PUBLISHER,
    Reason.INVALID: Party.PUBLISHER,
    Reason.UNSUPPORTED: Party.PUBLISHER,
    Reason.TOO_LARGE: Party.PUBLISHER,
    Reason.TOO_MANY: Party.PUBLISHER,
    Reason.POISON: Party.BRIDGE,
    Reason.DELIVERY_LIMIT: Party.BRIDGE,
    Reason.GIVEN_UP: Party.BRIDGE,
}
_NO_FAULT: Final = frozenset((Reason.ACK_FRAME, Reason.PONG, Reason.HANDED_OVER, Reason.AWAITING_PROOF))
"""Reasons of what went as it was asked for, or is still on its way."""


def party(outcome: Outcome, reason: Reason) -> Party | None:
    """Who was responsible that a push got no further; None if it went as it was asked for, or is on its way."""
    if reason in _NO_FAULT:
        return None
    return _BY_REASON[reason]
