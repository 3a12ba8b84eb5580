"""Carry out `ack` frames: the application of a client has a push."""

from __future__ import annotations

from bridge.core.contract.client_frames import AckFrame
from bridge.core.contract.frames import error_frame, ok_frame
from bridge.core.delivery.proof import Proofs
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.acks import AmbiguousAck
from bridge.core.sessions.session import Session


class Acking:
    """Notes acks."""

    def __init__(self, proofs: Proofs) -> None:
        self._proofs = proofs

    def heard(self, session: Session, ack: AckFrame) -> Frame | None:
        """Note an ack. It is answered only where it has a `ref`: a client may ack everything it gets."""
        try:
            counts = self._proofs.acked(session, ack.id, ack.tenant)
        except AmbiguousAck:
            problem = "tenant: required, pushes of several tenants with this id wait for their ack"
            return error_frame("bad_frame", problem, ack.ref)
        if ack.ref is None:
            return None
        if counts:
            return ok_frame(ack.ref)
        problem = "id: no push with this id waits for an ack of this session"
        return error_frame("not_awaited", problem, ack.ref)
