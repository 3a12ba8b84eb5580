"""Answer a client's frame."""

from __future__ import annotations

from bridge.core.ports.sockets import Frame
from bridge.core.sessions.session import Session


def send_answer(session: Session, frame: Frame) -> None:
    """Answer a client's frame, unless the client does not read: its answers must not take memory."""
    if session.socket.writable:
        session.socket.write((frame,), None)


def send_later_answer(session: Session, frame: Frame) -> None:
    """Answer a frame that somebody waits for, and that may not be asked for again: behind what waits for a client that
    does not read. Who asks bounds how many of them there are."""
    if session.socket.writable:
        session.socket.write((frame,), None)
    elif session.takes_pushes:
        session.tell(frame)
