"""Nothing is sent while this node may have missed a revocation. What its sockets still hold is thrown away."""

from __future__ import annotations

import logging

from bridge.core.delivery.presence import Presence
from bridge.core.mailbox.pages import Pages
from bridge.core.model.sessions import CloseReason
from bridge.core.sessions.freshness import FRESH_FOR, Freshness
from bridge.core.sessions.hub import Hub

log = logging.getLogger("bridge.muting")


class Muting:
    """Watches `Freshness`. Whoever hands frames to sockets asks it; this does what is due when it ends or returns."""

    def __init__(self, freshness: Freshness, *, hub: Hub, presence: Presence, pages: Pages) -> None:
        self._freshness = freshness
        self._hub = hub
        self._presence = presence
        self._pages = pages
        self._mute = False

    def tick(self) -> None:
        """Called about ten times a second."""
        if not self._freshness.lasts():
            if not self._mute:
                self._mute = True
                self._discard()
        elif self._freshness.was_stale:
            self._freshness.was_stale = self._mute = False
            log.info("revocations are read again: what has waited is sent")
            self._pages.flush_all(tuple(self._hub.backlogged))

    def _discard(self) -> None:
        """A peer that reads now would get what its socket holds, revoked or not; nobody could stop it later."""
        holding = [session for session in self._hub if session.socket.buffered]
        log.warning(
            "no revocation could be read for %.0f seconds: nothing is sent; sessions whose socket holds bytes: %d",
            FRESH_FOR,
            len(holding),
        )
        for session in holding:
            self._presence.close(session, CloseReason.CUT_OFF)
