"""Carry out `subscribe` and `unsubscribe` frames."""

from __future__ import annotations

from typing import Final

from bridge.core.contract.client_frames import SubscribeFrame, UnsubscribeFrame
from bridge.core.contract.frames import error_frame
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.session import Session
from bridge.core.sessions.subscriptions import TOPICS_MAX, Subscriptions, Trouble

_TROUBLES: Final = {
    Trouble.FORBIDDEN: ("forbidden", "topic: no claim of the token permits it"),
    Trouble.TOO_MANY: (
        "over_limit",
        f"topic: the session is subscribed to {TOPICS_MAX}, the most there may be",
    ),
    Trouble.TRY_LATER: ("try_later", "subscriptions can't be recorded at the moment, try again soon"),
}


class Subscribing:
    """Answers at once where nothing can be done, and when it is committed otherwise."""

    def __init__(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions

    def heard(self, session: Session, frame: SubscribeFrame) -> Frame | None:
        """A session wants a topic."""
        return _told(self._subscriptions.subscribe(session, frame.topic, frame.ref), frame)

    def heard_no_more(self, session: Session, frame: UnsubscribeFrame) -> Frame | None:
        """A session does not want a topic any more, or never did."""
        return _told(self._subscriptions.unsubscribe(session, frame.topic, frame.ref), frame)


def _told(trouble: Trouble | None, frame: SubscribeFrame | UnsubscribeFrame) -> Frame | None:
    if trouble is None:
        return None
    code, problem = _TROUBLES[trouble]
    return error_frame(code, problem, frame.ref)
