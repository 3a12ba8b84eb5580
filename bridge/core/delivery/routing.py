"""Resolve a target to users and sessions, by what the hub holds now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import NO_USER, PushRequest, ToAll, ToSession, ToUser, ToUsers
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session


class Address(NamedTuple):
    """One user of a request. With no sessions, `nobody` says which kind of `offline` it is."""

    user: str
    sessions: Sequence[Session]
    nobody: Reason = Reason.NO_SESSION


def roams(request: PushRequest) -> bool:
    """Whether only the hub knows the users of a request."""
    return isinstance(request.target, (ToAll, ToSession))


def users_of(hub: Hub, request: PushRequest) -> Sequence[str]:
    """The users of a request, each once, in its order; NO_USER where only the hub could know one and knows none."""
    target = request.target
    if isinstance(target, ToUser):
        return (target.user,)
    if isinstance(target, ToUsers):
        return target.users
    if isinstance(target, ToSession):
        session = hub.session(target.session)
        return (NO_USER,) if session is None or not session.takes_pushes else (session.user,)
    return hub.everyone() or (NO_USER,)


def address(hub: Hub, request: PushRequest, user: str) -> Address:
    """Where this user of a request is now; to be used before anything else happens."""
    target = request.target
    if user == NO_USER:
        return Address(user, (), Reason.NOBODY if isinstance(target, ToAll) else Reason.NO_SESSION)
    if isinstance(target, ToSession):
        session = hub.session(target.session)
        live = [session] if session is not None and session.takes_pushes else []
    else:
        live = [s for s in hub.of_user(user) if s.takes_pushes]
    if not request.excluded:
        return Address(user, live)
    chosen = [s for s in live if s.id not in request.excluded]
    return Address(user, chosen, Reason.EXCLUDED if live and not chosen else Reason.NO_SESSION)


def named_users(request: PushRequest) -> Sequence[str]:
    """The users that the request itself names, for rows that are written without looking at the hub."""
    target = request.target
    if isinstance(target, ToUser):
        return (target.user,)
    if isinstance(target, ToUsers):
        return target.users
    return (NO_USER,)
