"""How many may come in: sessions in all, of one user, from one address, and handshakes a second."""

from __future__ import annotations

import enum
from collections import Counter
from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple

from bridge.core.model.sessions import Refusal
from bridge.core.sessions.hub import Hub

FULL: Final = Refusal(503, "full", "As many sessions are open as may be, try again soon.")
TOO_FAST: Final = Refusal(503, "rate", "Too many are opening sessions at this moment, try again soon.")
OF_ADDRESS: Final = Refusal(
    429, "address_sessions", "As many sessions are open from this address as may be: close some first."
)
OF_USER: Final = Refusal(
    429, "user_sessions", "As many sessions of this user are open as may be: close some first."
)


_ROUNDING: Final = 1e-6
"""Seconds by which a sum of floats may be off."""


class SessionsOver(enum.StrEnum):
    """What happens when a user opens more sessions than one may have."""

    REPLACE = "replace"
    """The oldest is closed with 4409."""
    REFUSE = "refuse"
    """The handshake gets 429, or, where others have come at the same moment, the session 4429."""


class AdmissionLimits(NamedTuple):
    """The bounds; 0: none."""

    sessions: int = 0
    of_user: int = 0
    over: SessionsOver = SessionsOver.REPLACE
    of_address: int = 0
    handshakes_per_second: float = 0.0


class Admission:
    """Counts who comes, and says who may not."""

    def __init__(self, hub: Hub, limits: AdmissionLimits) -> None:
        self._hub = hub
        self.limits = limits
        self._due = 0.0
        """Monotonic seconds at which the handshakes so far would be within the rate."""
        self._from: dict[str, str] = {}
        """The address of each session, where those are bounded."""
        self._sessions: Counter[str] = Counter()
        """Sessions by address."""

    def refuses(self, address: str, now: float) -> Refusal | None:
        """Why a handshake from this address is refused at `now` (monotonic seconds), whoever it is; else None."""
        limits = self.limits
        if (no_room := self._no_room(address)) is not None:
            return no_room
        if limits.handshakes_per_second:
            # Those of one second may come at once.
            due = max(self._due, now) + 1.0 / limits.handshakes_per_second
            if due - now > 1.0 + _ROUNDING:
                return TOO_FAST
            self._due = due
        return None

    def _no_room(self, address: str) -> Refusal | None:
        limits = self.limits
        if limits.sessions and len(self._hub) >= limits.sessions:
            return FULL
        if limits.of_address and self._sessions[_place(address)] >= limits.of_address:
            return OF_ADDRESS
        return None

    def refuses_session(self, user: str, address: str) -> Refusal | None:
        """Why this user may open no further session from this address; else None. The ledger knows about other nodes.
        Ask when the session opens: others may have come since its handshake."""
        limits = self.limits
        if (no_room := self._no_room(address)) is not None:
            return no_room
        if limits.over is SessionsOver.REFUSE and 0 < limits.of_user <= len(self._hub.of_user(user)):
            return OF_USER
        return None

    def came(self, session_id: str, address: str) -> None:
        """A session has opened."""
        if self.limits.of_address:
            place = self._from[session_id] = _place(address)
            self._sessions[place] += 1

    def left(self, session_id: str) -> None:
        """It is gone; idempotent."""
        place = self._from.pop(session_id, None)
        if place is not None:
            self._sessions[place] -= 1
            if not self._sessions[place]:
                del self._sessions[place]


def _place(address: str) -> str:
    """What counts as one address: of IPv6 the network of 64 bits, in which one device may have them all."""
    if ":" not in address:
        return address
    return str(IPv6Address(int(ip_address(address)) >> 64 << 64))
