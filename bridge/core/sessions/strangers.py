"""Open sockets whose token is to come as the first message. Until then nobody has a session there, and nothing is sent.

| what comes first                           | what happens                             | why in metrics     |
|--------------------------------------------|------------------------------------------|--------------------|
| `{"type":"auth","token":...}`, good        | the session opens                        | `opened`           |
| the same, the verifier refuses the token   | closed with 4401 `token_refused`         | the verifier's why |
| the same, its key is not there yet         | closed with 1013, and the keys are read  | `no_keys`          |
| any other message                          | closed with 4401 `token_refused`         | `auth_frame`       |
| more frames than a client may send         | closed with 4429 `over_limit`            | `flood`            |
| nothing within `AUTH_SECONDS`              | closed with 4401 `auth_timeout`          | `auth_timeout`     |
| the service begins to drain                | closed with 1012                         | `draining`         |
| the peer leaves, or breaks RFC 6455        | nothing                                  | `gone`             |

In envelope mode an `error` frame says why, and a `bye` follows. Whoever holds these sockets is unknown, so there are
`STRANGERS_MAX` of them at most; over it handshakes without a token get 503 (`strangers`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bridge.core.contract.auth import token_of
from bridge.core.contract.frames import bye_frame, error_frame
from bridge.core.model.sessions import CloseReason, Grant, Mode, Refusal
from bridge.core.ports.clock import Clock
from bridge.core.ports.sockets import SessionHandle, Socket
from bridge.core.sessions.access import Access, Undecided
from bridge.core.sessions.revoked import REVOKED

AUTH_SECONDS: Final = 5.0
"""Seconds that the token may take."""
STRANGERS_MAX: Final = 1000
"""Sockets that wait for their token at a time."""

CROWD: Final = Refusal(503, "strangers", "Too many connections wait for their token, try again in a moment.")
_DRAINING: Final = Refusal(503, "draining", "The service is restarting, come back in a moment.")
_LATE: Final = Refusal(401, "auth_timeout", f"No token came within {AUTH_SECONDS:g} seconds.")
_OTHER: Final = Refusal(
    401,
    "auth_frame",
    "The first message must have the type auth and the token, since the handshake had none.",
)
_READING: Final = Refusal(503, "no_keys", "The keys that check tokens are being read again.")
_FLOOD: Final = Refusal(429, "flood", "More frames came than a client may send.")
_GONE: Final = Refusal(400, "gone", "The client left before its token came.")


class Strangers:
    """All sockets that wait for their token, the oldest first."""

    def __init__(
        self,
        *,
        access: Access,
        clock: Clock,
        opened: Callable[[Grant, Socket], SessionHandle],
        told: Callable[[Refusal | None, float], None],
    ) -> None:
        """`opened` opens a session. `told` hears how each has ended: the refusal, or None for a session, and the
        seconds that the decision took."""
        self._access = access
        self._clock = clock
        self._opened = opened
        self._told = told
        self.most = STRANGERS_MAX
        self.seconds = AUTH_SECONDS
        self._waiting: dict[Stranger, float] = {}
        """Since when, in monotonic seconds."""

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """As many wait as may."""
        return len(self._waiting) >= self.most

    def came(self, grant: Grant, socket: Socket) -> Stranger:
        """A handshake without a token was granted."""
        stranger = Stranger(self, grant, socket)
        self._waiting[stranger] = self._clock.monotonic()
        return stranger

    def tick(self) -> None:
        """Close those whose time is over, and all of them during a drain."""
        while self._waiting:
            stranger, since = next(iter(self._waiting.items()))
            if self._access.draining:
                self._refuse(stranger, CloseReason.RESTART, _DRAINING, 0.0)
            elif self._clock.monotonic() - since >= self.seconds:
                self._refuse(stranger, CloseReason.AUTH_TIMEOUT, _LATE, 0.0)
            else:
                break

    def heard(self, stranger: Stranger, data: str | bytes) -> None:
        """A message came; the first one decides."""
        if stranger not in self._waiting:
            return  # it was refused, and the closing handshake is under way
        started = self._clock.monotonic()
        token = token_of(data)
        if self._access.draining:
            self._refuse(stranger, CloseReason.RESTART, _DRAINING, 0.0)
            return
        answer = _OTHER if token is None else self._access.check(token, stranger.grant)
        seconds = self._clock.monotonic() - started
        if isinstance(answer, Grant):
            answer = self._access.bounded(answer)
        if isinstance(answer, Undecided):
            # The read has begun. Nobody waits for it here: a client that comes back then gets in.
            self._refuse(stranger, CloseReason.TRY_LATER, _READING, seconds)
        elif isinstance(answer, Refusal):
            self._refuse(stranger, reason_of(answer), answer, seconds)
        else:
            del self._waiting[stranger]
            self._told(None, seconds)
            stranger.session = self._opened(answer, stranger.socket)

    def flooded(self, stranger: Stranger) -> None:
        """It sends more than a client may."""
        if stranger in self._waiting:
            self._refuse(stranger, CloseReason.OVER_LIMIT, _FLOOD, 0.0)

    def left(self, stranger: Stranger) -> None:
        """Its socket is gone, and no session was opened there."""
        if self._waiting.pop(stranger, None) is not None:
            self._told(_GONE, 0.0)

    def _refuse(self, stranger: Stranger, reason: CloseReason, refusal: Refusal, seconds: float) -> None:
        del self._waiting[stranger]
        self._told(refusal, seconds)
        if stranger.grant.mode is Mode.ENVELOPE:
            stranger.socket.write(
                (error_frame("refused", refusal.text), bye_frame(reason, reason.retry_after)), None
            )
        stranger.socket.close(reason)


_BY_STATUS: Final = {429: CloseReason.OVER_LIMIT, 503: CloseReason.TRY_LATER}


def reason_of(refusal: Refusal) -> CloseReason:
    """How a socket is closed that is refused after its handshake."""
    if refusal is REVOKED:
        return CloseReason.REVOKED
    return _BY_STATUS.get(refusal.status, CloseReason.TOKEN_REFUSED)


class Stranger:
    """Fills the SessionHandle port: one such socket, and then the session that was opened there."""

    __slots__ = ("_all", "grant", "session", "socket")

    def __init__(self, strangers: Strangers, grant: Grant, socket: Socket) -> None:
        self._all = strangers
        self.grant = grant
        self.socket = socket
        self.session: SessionHandle | None = None

    def pong(self, payload: bytes) -> None:
        """See the port."""
        if self.session is not None:
            self.session.pong(payload)

    def became_writable(self) -> None:
        """See the port."""
        if self.session is not None:
            self.session.became_writable()

    def message(self, data: str | bytes) -> None:
        """See the port."""
        if self.session is not None:
            self.session.message(data)
        else:
            self._all.heard(self, data)

    def flooded(self) -> None:
        """See the port. A stranger has one message, which may have many fragments."""
        if self.session is not None:
            self.session.flooded()
        else:
            self._all.flooded(self)

    def closed(self, code: int, reason: str) -> None:
        """See the port."""
        if self.session is not None:
            self.session.closed(code, reason)
        else:
            self._all.left(self)
