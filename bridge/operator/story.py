"""What became of a push, in words for people: a screen of text from its rows in the delivery log."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from bridge.adapters.amqp.depths import QueueDepth
from bridge.core.model.outcomes import Outcome, Proof
from bridge.core.model.parties import PARTIES, Party
from bridge.operator.lookup import Found, LoggedPush

STORIES_SHOWN: Final = 3
"""For at most so many users the whole story is told; for more, a line each."""

_PARTIES: Final = {reason.value: party for reason, party in PARTIES.items()}
"""A log may hold reasons of a newer bridge, which are not among them."""
_RESPONSIBLE: Final = {
    Party.PUBLISHER: "the publisher",
    Party.BRIDGE: "the bridge",
    Party.PEER: "the user or their client",
    Party.NETWORK: "the network between bridge and client",
    Party.POLICY: "a limit that is set",
}
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, most: int = 0) -> str:
    """Untrusted text for one line of a terminal: control characters are escaped; cut to `most` characters."""
    text = _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text if not most or len(text) <= most else text[: most - 1] + "…"


def tell(push_id: str, user: str | None, found: Found) -> Iterator[str]:
    """What the log has of a push, line by line; there must be rows for somebody, or it must be scheduled."""
    if found.scheduled:
        yield from _scheduled(push_id, found)
        if not found.endings:
            return
        yield ""
    if not found.rows:
        yield f"push {printable(push_id)} has no row for {printable(user or '')}, but for others:"
        yield from _endings(found)
        yield "It was not addressed to that user: the request did not name them, or it went to everyone and they"
        yield "had no session then. (The user is compared letter by letter, as the request and the token say it.)"
        return
    total = sum(ending.users for ending in found.endings)
    if user is None and total > STORIES_SHOWN:
        yield f"push {printable(push_id)}: {total} users"
        yield from _endings(found)
        yield ""
        for row in found.rows:
            yield _row_line(row)
        if total > len(found.rows):
            yield f"... and {total - len(found.rows)} more"
        yield ""
        yield f"bridge why {printable(push_id)} USER tells the whole story of one."
        return
    for number, row in enumerate(found.rows):
        if number:
            yield ""
        yield from story(row, found.asked_at)


def _scheduled(push_id: str, found: Found) -> Iterator[str]:
    """That it waits for its time: a line for each request that does."""
    for one in found.scheduled:
        tenant = f" of tenant {printable(one.tenant)}" if one.tenant else ""
        to = printable(one.user) or ("one target" if one.users == 1 else f"{one.users} users")
        ahead = (one.deliver_at - found.asked_at).total_seconds()
        if one.recalled_at is not None:
            words = f"recalled at {_moment(one.recalled_at)}: it ends as soon as a node takes it again"
        elif ahead >= 0:
            words = f"in {age(ahead)}; until then it can be recalled"
        else:
            words = f"{age(-ahead)} ago: the next look of any node publishes it"
        yield f"push {printable(push_id)}{tenant} for {to}: scheduled for {_moment(one.deliver_at)}, {words}"


def _endings(found: Found) -> Iterator[str]:
    for e in found.endings:
        tenant = f"  (tenant {e.tenant})" if e.tenant else ""
        yield f"  {e.users:>7}  {e.outcome}/{e.reason}: {e.meaning}{tenant}"


def _row_line(row: LoggedPush) -> str:
    took = ""
    end = row.proven_at or row.finished_at
    if end is not None:
        took = span((end - row.taken_at).total_seconds())
    differs = "  repeated with other content" if row.differed_at is not None else ""
    return f"  {row.user or '-':<24}  {row.outcome:<9} {row.reason:<16}  {took:>9}{differs}".rstrip()


def story(row: LoggedPush, now: datetime) -> Iterator[str]:
    """One row of the log, step by step, for people."""
    tenant = f" of tenant {row.tenant}" if row.tenant else ""
    yield f"push {row.push_id}{tenant} for {row.user or 'nobody (no user was known)'}: {row.outcome}"
    yield f"  {row.meaning or row.reason}" + (f": {printable(row.detail)}" if row.detail else "")
    party = _PARTIES.get(row.reason)
    if party is not None:
        yield f"  responsible: {_RESPONSIBLE[party]}"
    yield ""
    before = row.published_at
    for step, at, words in steps(row):
        if at is None:
            yield f"  {step:<10} {words}"
        else:
            passed = "" if step == "published" else span((at - before).total_seconds(), sign=True)
            yield f"  {step:<10} {_moment(at)}  {passed:>9}  {words}".rstrip()
            before = at
    if not row.final:
        yield f"  {'finished':<10} not yet, for {span((now - row.taken_at).total_seconds())}: {_who_ends_it(row, now)}"
    yield ""
    yield from _owes(row)
    if row.outcome == Outcome.REJECTED and row.encoding is None:
        body = (
            "not kept" if row.payload_bytes is None else f"{row.payload_bytes} bytes in delivery_log.payload"
        )
        yield (
            f"  {'body':<10} {body}; the message, if it was not replayed or purged: bridge dead show {row.push_id}"
        )
    elif row.payload_bytes is not None:
        again = f"; to send it again: bridge replay --where push={row.push_id}" if row.final else ""
        yield f"  {'data':<10} {row.payload_bytes} bytes ({row.encoding}) in delivery_log.payload{again}"


def steps(row: LoggedPush) -> Iterator[tuple[str, datetime | None, str]]:
    """(step, when, how), in their order. No time: it never happened, or lasts."""
    publisher = [f"by {printable(row.app_id)}"] if row.app_id else []
    event = [f"event {printable(row.event)}"] if row.event else []
    topic = [f"to topic {printable(row.topic)}"] if row.topic else []
    yield "published", row.published_at, ", ".join(publisher + topic + event)
    yield "taken", row.taken_at, f"from the queue by node {row.node}, boot {row.boot}"
    if row.expires_at is not None:
        key = f", collapse key {printable(row.collapse_key)}" if row.collapse_key else ""
        ttl = span((row.expires_at - row.published_at).total_seconds())
        yield "kept", None, f"for {ttl}, until {_moment(row.expires_at)}{key}"
    if row.written_at is None:
        yield "written", None, "never: it was handed to no socket"
    else:
        by = f", first by {_prover(row)}" if row.proven_at is None and row.session else ""
        yield (
            "written",
            row.written_at,
            f"handed over {_times(row.attempts)}, to {_sessions(row.sessions)}{by}",
        )
    if any(one.node != row.node for one in row.held):
        # At another node than the one that wrote the row: then it was forwarded.
        yield "held", None, "by " + ", ".join(f"{one.node} (session {one.session})" for one in row.held)
    late = row.late_at
    if row.proven_at is not None and row.proven_at != late:
        yield "proven", row.proven_at, f"by the peer of {_prover(row)}" if row.session else "by the peer"
    elif row.proven_at is None and row.written_at is not None and row.confirm > Proof.WRITTEN:
        yield "proven", None, f"never: nothing came back from the peer; wanted was {_wanted(row)}"
    if row.finished_at is not None:
        yield "finished", row.finished_at, f"{row.outcome}/{row.reason}"
    if late is not None:
        yield "late", late, f"{_late_proof(row)}, after the end: the outcome stays"
    if row.fallback_key is not None:
        yield "fallback", row.fallback_at, _fallback(row)
    if row.differed_at is not None:
        yield (
            "repeated",
            row.differed_at,
            "WARNING: with other content, which was sent to nobody: two pushes have this id",
        )


def _fallback(row: LoggedPush) -> str:
    key = f"to push.fallback with routing key {printable(row.fallback_key or '')}"
    if row.fallback_at is not None:
        return f"published {key}"
    if row.fallback_due is not None:
        return f"due at {_moment(row.fallback_due)}, {key}, unless it is proven before"
    return f"cancelled: nothing was published {key}"


def _prover(row: LoggedPush) -> str:
    return f"session {row.session} at node {row.holder}"


def _moment(at: datetime) -> str:
    return at.astimezone().isoformat(" ", "milliseconds")


def _late_proof(row: LoggedPush) -> str:
    """What came late. If the pong had come before, it can only have been the ack."""
    return "a pong or an ack of the peer" if row.proven_at == row.late_at else "the ack of the application"


def _owes(row: LoggedPush) -> Iterator[str]:
    if row.owed is None:
        unacked = "" if row.final else " yet: its message is not acknowledged, and carries the debt"
        yield f"  {'owed':<10} nothing{unacked}"
        return
    when = "" if row.final else ", once it has ended"
    yield f"  {'owed':<10} the event on push.outcomes{when}"
    for reply in row.owed:
        correlation = f" (correlation id {printable(reply.correlation_id)})" if reply.correlation_id else ""
        yield f"  {'owed':<10} a receipt to queue {printable(reply.queue)}{correlation}{when}"


def _who_ends_it(row: LoggedPush, now: datetime) -> str:
    if row.outcome == Outcome.STORED:
        if row.expires_at is not None and row.expires_at < now:
            return "its ttl is over, the next sweep of any node ends it as expired/ttl"
        return "it goes out when the user opens a session or proves what was sent, and ends with its ttl"
    if row.node_alive:
        return f"node {row.node} lives and waits for the proof, {_wanted(row)}"
    return "its process is dead: the next sweep of any node ends it as unknown/node_died"


def _wanted(row: LoggedPush) -> str:
    return Proof(row.confirm).name.lower()


def never_seen(push_id: str, found: Found, waiting: Sequence[QueueDepth] | str | None) -> Iterator[str]:
    """What it may mean that the log has no row. `waiting`: the queues, or why they can't be asked; None: not asked."""
    yield f"push {printable(push_id)} is not in the delivery log. That means one of these:"
    if waiting is None:
        yield "- It waits in the queue: `bridge why` looks there as well."
    elif isinstance(waiting, str):
        yield f"- It may wait in the queue; the broker could not be asked: {waiting}"
    else:
        for depth in waiting:
            if depth.hidden:
                yield f"- It may wait in {depth.name}: the broker does not let this user look at it."
            elif not depth.there:
                yield f"- There is no queue {depth.name}: no bridge has ever run with this broker (vhost)."
            elif depth.ready or not depth.consumers:
                taker = "a bridge takes from it" if depth.consumers else "no bridge takes from it"
                yield f"- It may wait in {depth.name}: {depth.ready} messages are there, and {taker}."
    yield "- It was taken within the last second, and its proof is still awaited: ask again."
    if found.kept_since is not None:
        yield f"- It is older than the log, which begins on {found.kept_since} (BRIDGE_RETENTION_DAYS)."
    yield "- It has another id: a rejected request without a usable id has one that begins with sha256-, and one"
    yield "  that named none a UUID. `bridge dead list` shows what was rejected."
    yield "- It never came: was the publish confirmed, mandatory, to exchange push of this broker and vhost?"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _sessions(count: int) -> str:
    return "one session" if count == 1 else f"{count} sessions"


# --- time, for people ------------------------------------------------------------------------------------


def age(seconds: float) -> str:
    """How long ago, roughly: `3 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def span(seconds: float, *, sign: bool = False) -> str:
    """How long, as exactly as people need it: `1.5 ms`, with `sign` `+1.5 ms`."""
    plus = "+" if sign and seconds >= 0 else ""
    if abs(seconds) < 1:
        return f"{plus}{seconds * 1000:.1f} ms"
    if abs(seconds) < 120:
        return f"{plus}{seconds:.2f} s"
    return plus + age(seconds) if seconds > 0 else f"{seconds:.0f} s"
