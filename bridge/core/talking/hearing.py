"""Pass each frame of a client to the part that carries it out, and send its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from bridge.core.contract.client_frames import (
    AckFrame,
    BadFrame,
    PublishFrame,
    RefreshFrame,
    SubscribeFrame,
    UnsubscribeFrame,
    parse_client,
)
from bridge.core.contract.frames import error_frame
from bridge.core.delivery.presence import Presence
from bridge.core.delivery.proof import Proofs
from bridge.core.ports.clock import Clock
from bridge.core.ports.sockets import Frame
from bridge.core.sessions.access import Access
from bridge.core.sessions.answering import send_answer
from bridge.core.sessions.session import Session
from bridge.core.sessions.subscriptions import Subscriptions
from bridge.core.talking.acking import Acking
from bridge.core.talking.publishing import Publishing
from bridge.core.talking.refreshing import Refreshing
from bridge.core.talking.subscribing import Subscribing

Hears: TypeAlias = Callable[[Session, Any], Frame | None]
"""Carries out one kind of frame. Returns the answer; None where there is none, or it comes later."""


class Hearing:
    """Hears what clients say."""

    def __init__(
        self,
        *,
        access: Access,
        presence: Presence,
        proofs: Proofs,
        publishing: Publishing,
        subscriptions: Subscriptions,
        clock: Clock,
    ) -> None:
        subscribing = Subscribing(subscriptions)
        self.refreshing = Refreshing(access, presence, clock)
        self.publishing = publishing
        self._by_frame: Final[Mapping[type, Hears]] = {
            AckFrame: Acking(proofs).heard,
            RefreshFrame: self.refreshing.heard,
            PublishFrame: publishing.heard,
            SubscribeFrame: subscribing.heard,
            UnsubscribeFrame: subscribing.heard_no_more,
            BadFrame: _bad,
        }

    def heard(self, session: Session, data: str | bytes) -> None:
        """A client in envelope mode has sent a message."""
        frame = parse_client(data)
        answer = self._by_frame[type(frame)](session, frame)
        if answer is not None:
            send_answer(session, answer)


def _bad(session: Session, frame: BadFrame) -> Frame:
    return error_frame("bad_frame", frame.problem, frame.ref)
