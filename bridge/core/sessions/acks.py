"""Find the push that an ack frame names."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.inflight.offered import Offered


class AmbiguousAck(Exception):
    """Pushes of several tenants with this id wait for their ack, and the ack frame names no tenant."""


def meant_by(tenant: str | None, pushes: Sequence[Offered]) -> Offered | None:
    """The oldest of these pushes, which wait for their ack and have one id, that an ack frame means.

    `tenant`: of the push; None where the client does not say. Raises AmbiguousAck where it does not and the pushes are
    of several tenants.
    """
    meant = [f for f in pushes if tenant is None or f.key.tenant == tenant]
    if tenant is None and len({f.key.tenant for f in meant}) > 1:
        raise AmbiguousAck
    return meant[0] if meant else None
