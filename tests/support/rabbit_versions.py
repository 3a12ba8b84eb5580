"""What releases of RabbitMQ do differently, as their documentation says; docs/compatibility.md names each source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

TIMED_OUT: Final = (
    "PRECONDITION_FAILED - delivery acknowledgement on channel {} timed out. Timeout value used: 1800000 ms. This "
    "timeout value can be configured, see consumers doc guide to learn more"
)
TRANSIENT: Final = (
    "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated. By default, this feature is not permitted "
    "anymore."
)


class Rules(NamedTuple):
    """What a version does."""

    levels: int = 1
    """Levels of priority in a quorum queue."""
    least_frame: int = 4096
    """Bytes: the lowest `frame_max` that a client may ask for."""
    counts_nacks: bool = True
    """Whether basic.nack raises `x-delivery-count`; basic.reject and a lost channel do in every version."""
    says_acquired: bool = False
    """Whether there is `x-acquired-count` beside it."""
    cancels: bool = False
    """Whether a consumer that acks too late is cancelled; otherwise its channel is closed."""
    takes_transient: bool = True
    """Whether a queue may be neither durable nor exclusive."""
    looking_is_configuring: bool = False
    """Whether a passive declare needs the right to configure."""


_4_1: Final = Rules(levels=2, least_frame=8192)
_4_3: Final = Rules(32, 8192, counts_nacks=False, says_acquired=True, cancels=True, takes_transient=False)
RULES: Final[Mapping[str, Rules]] = {
    "3.13.7": Rules(),
    "4.0.9": Rules(levels=2),
    "4.1.8": _4_1,
    "4.2.6": _4_1._replace(looking_is_configuring=True),
    "4.2.9": _4_1,
    "4.3.0": _4_3._replace(looking_is_configuring=True),
    "4.3.5": _4_3,
}
"""By version."""


def level_of(priority: int | None, levels: int) -> int:
    """Where a quorum queue with so many levels sorts it; higher ones are given out first."""
    if levels == 1:
        return 0
    given = 4 if priority is None else priority
    return int(given > 4) if levels == 2 else min(given, 31)
