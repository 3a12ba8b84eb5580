"""The bounds of one session's queue."""

from __future__ import annotations

from typing import NamedTuple


class SessionLimits(NamedTuple):
    """The bounds of one session's queue."""

    frames: int
    """Frames that wait for the socket."""
    total_bytes: int
    """Bytes of those frames, including what the transport still buffers."""
