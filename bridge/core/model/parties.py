"""Who is responsible for the end of a push: one party for each reason."""

from __future__ import annotations

import enum
from collections.abc import Mapping

from bridge.core.model.outcomes import Reason


class Party(enum.StrEnum):
    """Who could have made it end better."""

    PUBLISHER = "publisher"
    """The request was wrong, or its publisher has taken it back, replaced it, or excluded the user's sessions."""
    BRIDGE = "bridge"
    """A node of the bridge, or the way between two nodes."""
    PEER = "peer"
    """The user was not there, or their client did not read, answer or acknowledge."""
    NETWORK = "network"
    """The connection to the client."""
    POLICY = "policy"
    """A limit of time, room or access that somebody has set did what it is there for."""

    __hash__ = str.__hash__


PARTIES: Mapping[Reason, Party | None] = {
    Reason.ACK_FRAME: None,
    Reason.PONG: None,
    Reason.HANDED_OVER: None,
    Reason.AWAITING_PROOF: None,
    Reason.NOT_ACKED: Party.PEER,
    Reason.NO_PROOF_POSSIBLE: Party.PEER,
    Reason.NO_SESSION: Party.PEER,
    Reason.NOBODY: Party.PEER,
    Reason.LEFT_BEFORE_SEND: Party.PEER,
    Reason.SLOW_CONSUMER: Party.PEER,
    Reason.NO_PROOF: Party.PEER,
    Reason.CONNECTION_LOST: Party.NETWORK,
    Reason.EXCLUDED: Party.PUBLISHER,
    Reason.COLLAPSED: Party.PUBLISHER,
    Reason.WITHDRAWN: Party.PUBLISHER,
    Reason.NOT_JSON: Party.PUBLISHER,
    Reason.INVALID: Party.PUBLISHER,
    Reason.UNSUPPORTED: Party.PUBLISHER,
    Reason.TOO_LARGE: Party.PUBLISHER,
    Reason.TOO_MANY: Party.PUBLISHER,
    Reason.MAX_AGE: Party.POLICY,
    Reason.TTL: Party.POLICY,
    Reason.QUEUE_EXPIRATION: Party.POLICY,
    Reason.MAILBOX_FULL: Party.POLICY,
    Reason.REVOKED: Party.POLICY,
    Reason.OVERFLOW: Party.BRIDGE,
    Reason.NODE_DIED: Party.BRIDGE,
    Reason.NODE_UNREACHABLE: Party.BRIDGE,
    Reason.NODE_SILENT: Party.BRIDGE,
    Reason.POISON: Party.BRIDGE,
    Reason.DELIVERY_LIMIT: Party.BRIDGE,
    Reason.GIVEN_UP: Party.BRIDGE,
}
"""None: the proof that was asked for has come, or nothing has gone wrong so far. The same whatever the outcome is: the
reason why a push is kept is one for which another push ends."""
