"""Resolve a target to users and sessions, as the hub has them now.

A kind of target is one class and one line in `RESOLVERS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from bridge.core.model.outcomes import Reason
from bridge.core.model.pushes import NO_USER, PushRequest, Target, ToAll, ToSession, ToTopic, ToUser, ToUsers
from bridge.core.sessions.hub import Hub
from bridge.core.sessions.session import Session


class Resolver(Protocol):
    """What one kind of target means."""

    roams: bool
    """Whether only the hub knows the users of such a push: at another time, or on another node, they are others."""
    waits: bool
    """Whether such a push waits for an absent user who may be reconnecting after our start."""
    one_session: bool
    """Whether it is for one session, whose user never changes."""
    crowd: bool
    """Whether it is for everybody of some kind who is here: see `audience`."""
    nobody: Reason
    """The reason for `offline` where the hub knows no user for it."""

    def named(self, target: Target) -> Sequence[str]:
        """The users that the target itself names; only NO_USER where it names none."""
        ...

    def users(self, hub: Hub, request: PushRequest) -> Sequence[str]:
        """The users that it is for now, each once; only NO_USER where only the hub could know one and knows none."""
        ...

    def sessions(self, hub: Hub, request: PushRequest, user: str) -> Sequence[Session]:
        """The sessions of one of those users that the push is for."""
        ...

    def audience(self, hub: Hub, request: PushRequest) -> list[tuple[str, Sequence[Session]]]:
        """Of a push for a crowd: the users here that it is for now, and their sessions. The list of users does not
        change, those of sessions do."""
        ...


class _User:
    roams = False
    waits = True
    one_session = False
    crowd = False
    nobody = Reason.NO_SESSION

    def named(self, target: Target) -> Sequence[str]:
        assert isinstance(target, ToUser)
        return (target.user,)

    def users(self, hub: Hub, request: PushRequest) -> Sequence[str]:
        return self.named(request.target)

    def sessions(self, hub: Hub, request: PushRequest, user: str) -> Sequence[Session]:
        return hub.of_user(user)

    def audience(self, hub: Hub, request: PushRequest) -> list[tuple[str, Sequence[Session]]]:
        return []


class _Users(_User):
    def named(self, target: Target) -> Sequence[str]:
        assert isinstance(target, ToUsers)
        return target.users


class _Session(_User):
    roams = True
    waits = False
    one_session = True

    def named(self, target: Target) -> Sequence[str]:
        return (NO_USER,)

    def users(self, hub: Hub, request: PushRequest) -> Sequence[str]:
        assert isinstance(request.target, ToSession)
        session = hub.session(request.target.session)
        return (NO_USER,) if session is None or not session.takes_pushes else (session.user,)

    def sessions(self, hub: Hub, request: PushRequest, user: str) -> Sequence[Session]:
        assert isinstance(request.target, ToSession)
        session = hub.session(request.target.session)
        return () if session is None else (session,)


class _All(_User):
    roams = True
    waits = False
    crowd = True
    nobody = Reason.NOBODY

    def named(self, target: Target) -> Sequence[str]:
        return (NO_USER,)

    def users(self, hub: Hub, request: PushRequest) -> Sequence[str]:
        return hub.everyone() or (NO_USER,)

    def audience(self, hub: Hub, request: PushRequest) -> list[tuple[str, Sequence[Session]]]:
        return hub.sessions_of_everyone()


class _Topic(_All):
    def users(self, hub: Hub, request: PushRequest) -> Sequence[str]:
        return [user for user, _ in self.audience(hub, request)] or (NO_USER,)

    def sessions(self, hub: Hub, request: PushRequest, user: str) -> Sequence[Session]:
        subscribed = hub.topics.sessions(_topic(request), user)
        # A kept push is for a user, whose subscribed session may have closed a moment ago.
        return subscribed if subscribed or request.ttl <= 0 else hub.of_user(user)

    def audience(self, hub: Hub, request: PushRequest) -> list[tuple[str, Sequence[Session]]]:
        users = hub.topics.audience(_topic(request))
        if request.ttl > 0:
            users += [(user, ()) for user in hub.topics.leaving(_topic(request))]
        return users


class _Subscriber(_User):
    """A user whose subscribed session has closed a while ago: a kept push is for any session of theirs."""

    roams = True


def _topic(request: PushRequest) -> str:
    assert isinstance(request.target, ToTopic)
    return request.target.topic


ABSENT_SUBSCRIBER: Final[Resolver] = _Subscriber()
"""For those users of a push to a topic who are away. Where they are is asked as for a push to one user."""
RESOLVERS: Mapping[type[Target], Resolver] = {
    ToUser: _User(),
    ToUsers: _Users(),
    ToSession: _Session(),
    ToAll: _All(),
    ToTopic: _Topic(),
}
"""The resolver for each kind of target."""


def resolver_of(request: PushRequest) -> Resolver:
    """The resolver for the target of a request."""
    return RESOLVERS[type(request.target)]


def sessions_of(hub: Hub, request: PushRequest, resolver: Resolver, user: str) -> Sequence[Session]:
    """The sessions of one user of a request now. Use it before the next await: sessions come and go."""
    if user == NO_USER:
        return ()
    live = [s for s in resolver.sessions(hub, request, user) if s.takes_pushes]
    return [s for s in live if s.id not in request.excluded] if request.excluded else live


def why_nobody(hub: Hub, request: PushRequest, resolver: Resolver, user: str) -> Reason:
    """The reason for `offline` where there are no such sessions."""
    if user == NO_USER:
        return resolver.nobody
    live = any(s.takes_pushes for s in resolver.sessions(hub, request, user))
    return Reason.EXCLUDED if live else Reason.NO_SESSION
