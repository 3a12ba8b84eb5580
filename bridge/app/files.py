"""The bounds of the sockets of this process: those of the settings, and the files that it may have open."""

from __future__ import annotations

import logging
import resource
from typing import Final

from bridge.adapters.websocket.limits import SocketLimits
from bridge.config import Settings

SPARED: Final = 128
"""Open files that are left for all but WebSockets: the database, the broker, the ops port, logs. Each further partition
has a connection more."""

log = logging.getLogger("bridge")


def socket_limits(settings: Settings) -> SocketLimits:
    """The bounds of a connection. Says so where the process may not have as many as the settings allow."""
    files = _files()
    connections = max(1, files - SPARED - (settings.partitions - 1))
    if settings.max_sessions > connections:
        log.warning(
            "this process may have %d files open, so %d connections are taken at most: fewer than"
            " BRIDGE_MAX_SESSIONS, which is %d (raise `ulimit -n`, or LimitNOFILE of systemd)",
            files,
            connections,
            settings.max_sessions,
        )
    return SocketLimits(
        handshake_seconds=settings.handshake_timeout,
        header_bytes=settings.max_header_bytes,
        message_bytes=settings.max_frame_bytes,
        frames_per_second=settings.frames_per_second,
        frames_per_minute=settings.frames_per_minute,
        connections=connections,
        proxies=settings.trusted_networks,
    )


def _files() -> int:
    """How many files this process may have open; the soft limit is raised to the hard one first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and hard != resource.RLIM_INFINITY:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            # Some systems have a lower bound of their own.
            return soft
        return hard
    return soft
