"""What things cost, each with the command that measures it. All on two cores of an AMD EPYC that others used as well,
with the core interpreted."""

from __future__ import annotations

from typing import Final, NamedTuple


class Cost(NamedTuple):
    """Microseconds of CPU."""

    push: float
    """For a push that is taken, whatever becomes of it,"""
    forward: float
    """for each node that it is forwarded to,"""
    letter: float
    """for a letter, at both ends together,"""
    batch: float
    """and for a batch of rows with its receipts and acks."""


# `python -m benchmarks.scale --measure`, medians of three turns.
NODES: Final = Cost(63, 64, 312, 2455)
BROKER: Final = Cost(55, 2, 215, 1831)
POSTGRES: Final = Cost(20, 2, 46, 925)
WAL_BYTES: Final = 589
"""Of a push,"""
LOG_BYTES: Final = 382
"""and of its row with the indexes, without a ttl, reply_to or meta."""
LOOK_UP: Final = 0.002
LETTER: Final = 0.002
WRITE: Final = 0.0033
"""Seconds that these take where nobody has to wait for a core. `python -m benchmarks.nodes`: a user at another node
gets a push 1.4 to 1.6 ms later, for a letter; a look-up is a statement. `python -m benchmarks.handshakes`: a commit
takes 3.3 ms."""

# `python -m benchmarks --only growth --curve devices`
FRAME: Final = 20.0
"""Microseconds of a node's CPU for each device of a user."""

# `python -m benchmarks --only idle --idle-sessions 50000`
SESSION_BYTES: Final = 2.8 * 1024
SESSION_CPU: Final = 6.3e-3 / 3600
"""Of a core, for the pings and heartbeats of one session."""

# `python -m benchmarks --only soak`
NODE_BYTES: Final = 133 * 1024 * 1024
"""Of a node with a thousand sessions under load."""

# `python -m benchmarks.storm`
HANDSHAKE: Final = 850.0
"""Microseconds of a node's CPU for a client that comes in."""
