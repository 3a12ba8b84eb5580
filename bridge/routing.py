"""Whom a push request reaches: from its target to users and their sessions, by what the hub holds now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bridge.hub import Hub
from bridge.model import NO_USER, PushRequest, Reason, ToAll, ToSession, ToUser, ToUsers
from bridge.session import Session


class Address(NamedTuple):
    """One user of a request. With no sessions, `nobody` says which kind of `offline` it is."""

    user: str
    sessions: Sequence[Session]
    nobody: Reason = Reason.NO_SESSION


def addresses(hub: Hub, request: PushRequest) -> Iterator[Address]:
    """The users of a request, each once, in the order of the request; always at least one.

    A target without a user to name (`all` or `session` that reach nobody) gives one address with NO_USER.
    """
    target = request.target
    if isinstance(target, ToUser):
        yield _user(hub, target.user, request)
    elif isinstance(target, ToUsers):
        for user in target.users:
            yield _user(hub, user, request)
    elif isinstance(target, ToSession):
        session = hub.session(target.session)
        if session is None or not session.takes_pushes:
            yield Address(NO_USER, (), Reason.NO_SESSION)
        elif session.id in request.excluded:
            yield Address(session.user, (), Reason.EXCLUDED)
        else:
            yield Address(session.user, (session,))
    else:
        everyone = hub.everyone()
        if not everyone:
            yield Address(NO_USER, (), Reason.NOBODY)
        for user in everyone:
            yield _user(hub, user, request)


def _user(hub: Hub, user: str, request: PushRequest) -> Address:
    sessions = hub.of_user(user)
    live = [s for s in sessions if s.takes_pushes]
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
    if isinstance(target, (ToSession, ToAll)):
        return (NO_USER,)
    raise TypeError(target)
