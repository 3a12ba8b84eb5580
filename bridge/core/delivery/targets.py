"""Resolve a target to users and sessions, as the hub has them now.

A kind of target is one class and one line in `RESOLVERS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, cast

from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import NO_USER, PushRequest, Target, ToAll, ToSession, ToUser, ToUsers
from bridge.core.model.tuples import new_tuple
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session


class Address(NamedTuple):
    """One user of a request, and the sessions to send to. If there are none, `nobody` is the reason for `offline`."""

    user: str
    sessions: Sequence[Session]
    nobody: Reason = Reason.NO_SESSION


class Resolver(Protocol):
    """What one kind of target means."""

    roams: bool
    """Whether only the hub knows the users of such a push: at another time, or on another node, they are others."""
    waits: bool
    """Whether such a push waits for an absent user who may be reconnecting after our start."""
    one_session: bool
    """Whether it is for one session, whose user never changes."""
    nobody: Reason
    """The reason for `offline` where the hub knows no user for it."""

    def named(self, target: Target) -> Sequence[str]:
        """The users that the target itself names; only NO_USER where it names none."""
        ...

    def users(self, hub: Hub, target: Target) -> Sequence[str]:
        """The users that it is for now, each once; only NO_USER where only the hub could know one and knows none."""
        ...

    def sessions(self, hub: Hub, target: Target, user: str) -> Sequence[Session]:
        """The sessions of one of those users that the push is for."""
        ...


class _User:
    roams = False
    waits = True
    one_session = False
    nobody = Reason.NO_SESSION

    def named(self, target: Target) -> Sequence[str]:
        assert isinstance(target, ToUser)
        return (target.user,)

    def users(self, hub: Hub, target: Target) -> Sequence[str]:
        return self.named(target)

    def sessions(self, hub: Hub, target: Target, user: str) -> Sequence[Session]:
        return hub.of_user(user)


class _Users(_User):
    def named(self, target: Target) -> Sequence[str]:
        assert isinstance(target, ToUsers)
        return target.users


class _Session:
    roams = True
    waits = False
    one_session = True
    nobody = Reason.NO_SESSION

    def named(self, target: Target) -> Sequence[str]:
        return (NO_USER,)

    def users(self, hub: Hub, target: Target) -> Sequence[str]:
        assert isinstance(target, ToSession)
        session = hub.session(target.session)
        return (NO_USER,) if session is None or not session.takes_pushes else (session.user,)

    def sessions(self, hub: Hub, target: Target, user: str) -> Sequence[Session]:
        assert isinstance(target, ToSession)
        session = hub.session(target.session)
        return () if session is None else (session,)


class _All:
    roams = True
    waits = False
    one_session = False
    nobody = Reason.NOBODY

    def named(self, target: Target) -> Sequence[str]:
        return (NO_USER,)

    def users(self, hub: Hub, target: Target) -> Sequence[str]:
        return hub.everyone() or (NO_USER,)

    def sessions(self, hub: Hub, target: Target, user: str) -> Sequence[Session]:
        return hub.of_user(user)


RESOLVERS: Mapping[type[Target], Resolver] = {
    ToUser: _User(),
    ToUsers: _Users(),
    ToSession: _Session(),
    ToAll: _All(),
}
"""The resolver for each kind of target."""


def resolver_of(request: PushRequest) -> Resolver:
    """The resolver for the target of a request."""
    return RESOLVERS[type(request.target)]


def address(hub: Hub, request: PushRequest, resolver: Resolver, user: str) -> Address:
    """The sessions of one user of a request now. Use it before the next await: sessions come and go."""
    if user == NO_USER:
        return Address(user, (), resolver.nobody)
    live = [s for s in resolver.sessions(hub, request.target, user) if s.takes_pushes]
    if not request.excluded:
        return cast(Address, new_tuple(Address, (user, live, Reason.NO_SESSION)))
    chosen = [s for s in live if s.id not in request.excluded]
    return Address(user, chosen, Reason.EXCLUDED if live and not chosen else Reason.NO_SESSION)
