"""What the demo checks: that the clients received what the delivery log says.

It reads requests in its own simple way, without the code that decodes and routes them in the bridge.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from bridge.core.model.outcomes import DELIVERED, Outcome

UNSURE: Final = frozenset((Outcome.UNKNOWN, Outcome.DROPPED))
"""Outcomes that leave open whether a push reached its user."""


class Sample(NamedTuple):
    """One line of the file, published as one AMQP message with this id."""

    id: str
    body: bytes


class Person(NamedTuple):
    """A client that the demo connects."""

    user: str
    device: str
    subprotocol: str | None
    """None: bare mode, with frames that are just the data, and no way to acknowledge."""


class Seen(NamedTuple):
    """What one client received, in order, as (push id, data); in bare mode the id is empty."""

    person: Person
    frames: Sequence[tuple[str, Any]]
    acked: frozenset[str]


class Line(NamedTuple):
    """One row of the view `delivery`."""

    push_id: str
    user: str | None
    outcome: str
    reason: str
    final: bool
    detail: str | None
    milliseconds: float | None
    """From taken to proven, or to finished."""


class Request(NamedTuple):
    """A request as it reads at first sight, right or wrong."""

    id: str
    users: frozenset[str]
    """Those it names; empty if it names nobody."""
    data: Any


def requests_of(message: Sample) -> list[Request]:
    """The requests in a message: one, or one for each element of a batch."""
    try:
        body = json.loads(message.body)
    except ValueError:
        return [Request(message.id, frozenset(), None)]
    if isinstance(body, list) and body:
        return [_request(f"{message.id}/{index}", element) for index, element in enumerate(body)]
    return [_request(message.id, body)]


def _request(fallback_id: str, body: Any) -> Request:
    if not isinstance(body, dict):
        return Request(fallback_id, frozenset(), None)
    to = body.get("to")
    to = to if isinstance(to, dict) else {}
    users = [to.get("user"), *(to["users"] if isinstance(to.get("users"), list) else [])]
    own_id = body.get("id")
    return Request(
        own_id if isinstance(own_id, str) else fallback_id,
        frozenset(user for user in users if isinstance(user, str)),
        body.get("data"),
    )


def _has_a_crowd(message: Sample) -> bool:
    """Whether a push to everyone or to a topic is in this message."""
    try:
        body = json.loads(message.body)
    except ValueError:
        return False
    found = [
        element.get("to")
        for element in (body if isinstance(body, list) else [body])
        if isinstance(element, dict)
    ]
    return any(isinstance(to, dict) and ("all" in to or "topic" in to) for to in found)


def unfinished(requests: Iterable[Request], log: Iterable[Line], *, kept: bool = False) -> list[str]:
    """The ids that have no row yet, or one that is not final (nor `stored`, if `kept`), or not one for each user."""
    rows: dict[str, list[Line]] = {}
    for line in log:
        rows.setdefault(line.push_id, []).append(line)
    return [
        request.id
        for request in requests
        if not (lines := rows.get(request.id))
        or not all(line.final or (kept and line.outcome == "stored") for line in lines)
        or not (lines[0].outcome == "rejected" or request.users <= {line.user for line in lines})
    ]


def disagreements(messages: Sequence[Sample], seen: Sequence[Seen], log: Sequence[Line]) -> list[str]:
    """Every difference between what the clients saw and what the log says; empty if they agree."""
    requests = [request for message in messages for request in requests_of(message)]
    wrong = [f"{push_id} has no end in the log" for push_id in unfinished(requests, log)]
    places = {request.id: place for place, request in enumerate(requests)}
    # No order is promised between these and all others.
    crowds = {request.id for message in messages if _has_a_crowd(message) for request in requests_of(message)}
    wrong += [f"{line.push_id} was never published" for line in log if line.push_id not in places]
    twice = Counter((line.push_id, line.user) for line in log)
    wrong += [f"{push_id} has {n} rows for {user}" for (push_id, user), n in twice.items() if n > 1]
    claims = {(line.push_id, line.user): line for line in log}
    for client in seen:
        got = _ids(client, requests)
        wrong += _client_against_log(client, got, claims)
        for lane in (crowds, places.keys() - crowds):
            order = [places[push_id] for push_id in got if push_id in lane]
            if order != sorted(order):
                wrong.append(f"{_name(client)} received pushes in another order than they were published")
    wrong += _acks_against_log(seen, log)
    return wrong


def _ids(client: Seen, requests: Sequence[Request]) -> list[str]:
    """The ids of what a client received; in bare mode by the data, each request used once."""
    left = [r for r in requests if not r.users or client.person.user in r.users]
    ids = []
    for push_id, data in client.frames:
        if not push_id:
            found = next((r for r in left if _same(r.data, data)), None)
            if found is not None:
                left.remove(found)
            push_id = found.id if found else f"{data!r}, which nobody published"
        ids.append(push_id)
    return ids


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _client_against_log(
    client: Seen, got: Sequence[str], claims: Mapping[tuple[str, str | None], Line]
) -> list[str]:
    wrong = []
    user = client.person.user
    for push_id, times in Counter(got).items():
        line = claims.get((push_id, user))
        if times > 1:
            wrong.append(f"{_name(client)} received {push_id} {times} times")
        if line is None:
            wrong.append(f"{_name(client)} received {push_id}, and the log has no row of it for {user}")
        elif line.outcome not in DELIVERED | UNSURE:
            wrong.append(f"{_name(client)} received {push_id}, and the log says {line.outcome}")
    for (push_id, row_user), line in claims.items():
        if row_user == user and line.outcome in DELIVERED and push_id not in got:
            wrong.append(f"the log says {line.outcome} of {push_id}, and {_name(client)} did not receive it")
    return wrong


def _acks_against_log(seen: Sequence[Seen], log: Sequence[Line]) -> list[str]:
    acked = {(push_id, client.person.user) for client in seen for push_id in client.acked}
    here = {client.person.user for client in seen}
    wrong = [
        f"the log says acked of {line.push_id}, and no client of {line.user} acknowledged it"
        for line in log
        if line.outcome == "acked" and (line.push_id, line.user) not in acked
    ]
    wrong += [
        f"the log says {line.outcome} of {line.push_id}, and {line.user} was not connected"
        for line in log
        if line.outcome in DELIVERED and line.user not in here
    ]
    return wrong


def _name(client: Seen) -> str:
    return f"{client.person.user} ({client.person.device})"
