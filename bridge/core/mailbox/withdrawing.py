"""Take pushes back from screens: tell sessions that may show a push that it is withdrawn."""

from __future__ import annotations

from collections.abc import Iterable

from bridge.core.contract.frames import withdraw_frame
from bridge.core.mailbox.pages import Pages
from bridge.core.model.sessions import Mode
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session


class Withdrawing:
    """Tells the sessions here. A push must have ended before, so that none is sent after its withdrawal."""

    def __init__(self, hub: Hub, pages: Pages) -> None:
        self._hub = hub
        self._pages = pages

    def withdraw(self, pushes: Iterable[tuple[str, str]], tenant: str, *, but: str = "") -> set[Session]:
        """Tell the sessions of these users, but the one with the id `but`, that these pushes are withdrawn. `pushes`:
        user and push id. Returns whom it told: sessions in bare mode get data and nothing else."""
        told: set[Session] = set()
        for user, push_id in pushes:
            for session in self._hub.of_user(user):
                if session.mode is not Mode.BARE and session.takes_pushes and session.id != but:
                    session.tell(withdraw_frame(push_id, tenant))
                    told.add(session)
        self._pages.flush_all(told)
        return told
