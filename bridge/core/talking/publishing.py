"""Carry out `publish` frames: what a user says goes to the exchange push.inbound, with who it was.

| what is the case                                            | answer                        | result in metrics |
|-------------------------------------------------------------|-------------------------------|-------------------|
| the session was not welcomed yet                            | error `unavailable`           | `unavailable`     |
| the claim `publish` does not permit the event, or the topic | error `forbidden`             | `forbidden`       |
| too much of the session, or of the node, is not confirmed   | error `busy`                  | `busy`            |
| the broker takes nothing now, or this node is cut off       | error `unavailable`           | `unavailable`     |
| the broker has confirmed it, and somebody listens           | `ok`, if there is a `ref`     | `ok`              |
| no queue is bound for the event                             | error `nobody_listens`        | `nobody_listens`  |
| a queue that should get it is full                          | error `unavailable`           | `full`            |
| the bridge may not publish this event                       | error `unavailable`           | `refused`         |
| it was not sent                                             | error `unavailable`           | `unavailable`     |
| no confirm within `CONFIRM_SECONDS`, or the broker was lost | error `unknown`               | `unknown`         |

A frame is answered once, and always, if the session is still there and reads. What was sent goes on when its session
has closed.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from bridge.core.contract.client_frames import PublishFrame
from bridge.core.contract.fields import uuid7
from bridge.core.contract.frames import Ref, error_frame, ok_frame
from bridge.core.contract.patterns import permits
from bridge.core.mailbox.pages import Pages
from bridge.core.ports.clock import Clock
from bridge.core.ports.inbound import Inbound, InboundEnd, InboundMessage
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.freshness import Freshness
from bridge.core.sessions.session import Session

CONFIRM_SECONDS: Final = 5.0
"""How long the broker's confirm is waited for."""
SESSION_MESSAGES: Final = 100
"""Messages of one session that are not confirmed."""
NODE_BYTES: Final = 32 * 1024 * 1024
"""Of all messages that are not confirmed, with what is kept beside each."""
EACH_BYTES: Final = 1024
"""What a message takes beside its data."""

INBOUND_RESULTS: Final = (
    "ok",
    "nobody_listens",
    "forbidden",
    "busy",
    "unavailable",
    "full",
    "refused",
    "unknown",
)
"""How a frame may end, in metrics."""
_UNAVAILABLE: Final = "what you publish can't be taken now, nothing was sent: try again later"
ENDS: Final = {
    InboundEnd.NOBODY: ("nobody_listens", "nobody_listens", "event: nobody listens for it, it was not kept"),
    InboundEnd.FULL: ("full", "unavailable", "a queue that should get it is full: try again later"),
    InboundEnd.REFUSED: ("refused", "unavailable", "event: the bridge itself may not publish it"),
    InboundEnd.UNSENT: ("unavailable", "unavailable", _UNAVAILABLE),
    InboundEnd.UNSURE: ("unknown", "unknown", "it was sent, and not confirmed: it may have arrived"),
}
"""For each end but TAKEN: the result in metrics, the code of the error, and its sentence."""


class _Sent(NamedTuple):
    """A message whose end is not known."""

    session: Session
    ref: Ref
    size: int
    until: float


class Publishing:
    """Passes on what users publish. Fills the port InboundListener, too."""

    def __init__(self, inbound: Inbound, freshness: Freshness, pages: Pages, clock: Clock) -> None:
        self._inbound = inbound
        self._pages = pages
        self._freshness = freshness
        self._clock = clock
        self._sent: dict[str, _Sent] = {}
        """By message id, oldest first."""
        self._of_session: Counter[str] = Counter()
        self._bytes = 0
        self.results: Counter[str] = Counter()
        """Frames by how they ended."""
        inbound.listen(self)

    @property
    def waiting(self) -> int:
        """Messages that were sent and not confirmed."""
        return len(self._sent)

    def heard(self, session: Session, said: PublishFrame) -> None:
        """Pass it on, or answer why not."""
        if session.takes_pushes:  # else we have closed it
            refusal = self._refusal(session, said)
            if refusal is None:
                self._pass_on(session, said)
            else:
                self._answer(session, refusal)

    def _refusal(self, session: Session, said: PublishFrame) -> Frame | None:
        claims, size = session.claims, len(said.data) + EACH_BYTES
        if session.spoken_at is None:
            return self._error("unavailable", "unavailable", "wait for the welcome", said.ref)
        for field, name in (("event", said.event), ("topic", said.topic)):
            if name is not None and not permits(claims.publish, name, session.user):
                problem = f"{field}: the claim publish of this session does not permit it"
                return self._error("forbidden", "forbidden", problem, said.ref)
        if self._of_session[session.id] >= SESSION_MESSAGES or self._bytes + size > NODE_BYTES:
            problem = "too much that was published before is not confirmed: wait for the answers"
            return self._error("busy", "busy", problem, said.ref)
        if self._inbound.cause or not self._freshness.lasts():
            return self._error("unavailable", "unavailable", _UNAVAILABLE, said.ref)
        return None

    def _pass_on(self, session: Session, said: PublishFrame) -> None:
        now, size = self._clock.time(), len(said.data) + EACH_BYTES
        name = uuid7(now)
        self._sent[name] = _Sent(session, said.ref, size, self._clock.monotonic() + CONFIRM_SECONDS)
        self._of_session[session.id] += 1
        self._bytes += size
        self._inbound.publish(
            InboundMessage(name, said.event, said.data, session.user, session.id, now, said.topic, said.ref)
        )

    def told(self, message_id: str, end: InboundEnd) -> None:
        """See the port."""
        sent = self._sent.pop(message_id, None)
        if sent is None:
            return
        self._bytes -= sent.size
        self._of_session[sent.session.id] -= 1
        if not self._of_session[sent.session.id]:
            del self._of_session[sent.session.id]
        if end is not InboundEnd.TAKEN:
            result, code, problem = ENDS[end]
            answer = self._error(result, code, problem, sent.ref)
        else:
            self.results["ok"] += 1
            if sent.ref is None:
                return
            answer = ok_frame(sent.ref)
        self._answer(sent.session, answer)

    def tick(self) -> None:
        """Called about ten times a second: end the waiting for what was not confirmed in time."""
        now = self._clock.monotonic()
        while self._sent:
            message_id, sent = next(iter(self._sent.items()))
            if sent.until > now:
                break
            self._inbound.forget(message_id)
            self.told(message_id, InboundEnd.UNSURE)

    def _answer(self, session: Session, answer: Frame) -> None:
        """Unlike other answers, this one waits where the client does not read at the moment: somebody there waits for
        it. Who does not read for long is closed, as for pushes."""
        if session.socket.writable:
            session.socket.write((answer,), None)
        elif session.takes_pushes:
            session.tell(answer)
            self._pages.flush(session)

    def _error(self, result: str, code: str, problem: str, ref: Ref) -> Frame:
        self.results[result] += 1
        return error_frame(code, problem, ref)
