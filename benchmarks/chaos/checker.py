"""Compares the evidence of a run, at rest, with the promises I1 to I5. Pure: no I/O, no clock.

| promise | what breaks it |
|---|---|
| I1 | a confirmed request without exactly one final row per user; a rejected one without one row and a dead letter |
| I1 | a kept one not ended as proven, or by ttl, newer push, recall or full mailbox, that has no reason to wait |
| I1 | one given up as rejected that neither kills the bridge nor was returned by others again and again |
| I2 | `received` without a pong written after the push was read, `acked` without an ack frame |
| I3 | a push on the screen of another user, or read two seconds after its session was revoked |
| I1 | one that is not kept ended as `offline`, and its user had a session that was open all the time |
| I4 | messages left, rows not final, owed receipts, final rows without a receipt, receipts with another outcome |
| I4 | a fallback that is due, or noted and never came, or came after a proof that was in time, or with two ids |
| I5 | rows, receipts and fallbacks that nobody published |
| order | a kept push that a client reads after one that was published later; a resume that left one out |
"""

from __future__ import annotations

import bisect
import enum
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.chaos.evidence import (
    Evidence,
    Fate,
    Request,
    Row,
    RowKey,
    Session,
    Showing,
    Tab,
    To,
    subscribes,
)

STORIES_MAX = 10
"""Violations of each kind for which the evidence is gathered, which takes a search of everything known."""
FACTS_MAX = 10
"""Lines of each kind in a violation's story: a push to everyone has hundreds."""
NEAR = 5.0
"""Seconds before a push was published, and after, in which the sessions of its users are told."""


IN_KERNELS = 2.0
"""Seconds in which a client may read what the kernels had when its session was revoked; the machine is busy."""

CLOSING = 1.0
"""Seconds for which a session must stay open after the end of a push to count as open all the time: its end and the
receipt come on different connections."""

LEASE = 4.0
"""Seconds after which others may take a node for dead that does not say that it lives: its lease of five seconds, less
the second that may have passed since it said so."""

MENDED = 5.0
"""Seconds after which a node that says again that it lives has closed the sessions that others have ended, or has told
of them anew."""

READ = frozenset(("acked", "received", "written", "stored", "dropped"))
"""Outcomes of a kept push after which a client that resumes must have read it, or must know that something is
missing. Superseded, recalled and expired ones are not among them."""


class Broken(enum.Enum):
    """The ways in which a promise is broken."""

    LOST = "I1 lost"
    TWICE = "I1 more than one outcome"
    KEPT_ENDED = "I1 an outcome that it can't have"
    TAKEN_FOR_ABSENT = "I1 offline, and connected all the time"
    NOT_BURIED = "I1 rejected, but not in push.dead"
    FALSE_PROOF = "I2 false proof"
    WRONG_USER = "I3 wrong user"
    AFTER_REVOKED = "I3 read after it was revoked"
    LEFT_IN_QUEUE = "I4 left in a queue"
    NOT_FINAL = "I4 not final"
    OWED = "I4 owed"
    NO_RECEIPT = "I4 no receipt"
    WRONG_RECEIPT = "I4 a receipt with another outcome"
    NO_FALLBACK = "I4 no fallback"
    FALSE_FALLBACK = "I4 a fallback that must not be"
    NOT_PUBLISHED = "I5 never published"
    OUT_OF_ORDER = "order: read after a newer one"
    GAP = "order: resumed, and never read"
    TROUBLE = "trouble"


class Violation(NamedTuple):
    """One promise broken for one push (or queue), and all that is known about it."""

    kind: Broken
    what: str
    facts: tuple[str, ...] = ()


@dataclass
class Verdict:
    """What the checker found, and what it counted."""

    violations: list[Violation] = field(default_factory=list)
    published: int = 0
    """Requests that the broker confirmed."""
    unconfirmed: int = 0
    """Requests that were sent and never confirmed: they may have a row or not."""
    final_rows: int = 0
    wire_duplicates: int = 0
    """Times that a client read a push again."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """The outcomes of the rows: a fault without a trace here was perhaps not made."""
    receipt_duplicates: int = 0
    """Announcements on push.outcomes beyond the first."""

    def count(self, *kinds: Broken) -> int:
        """Violations of these kinds."""
        return sum(v.kind in kinds for v in self.violations)

    @property
    def lost(self) -> int:
        """Pushes without exactly one true outcome: lost, ended twice, or not at rest."""
        return len(self.violations) - self.false - self.wrong

    @property
    def false(self) -> int:
        """Outcomes that claim a proof that was not given."""
        return self.count(Broken.FALSE_PROOF)

    @property
    def wrong(self) -> int:
        """Pushes shown to somebody else."""
        return self.count(Broken.WRONG_USER, Broken.AFTER_REVOKED)


def check(evidence: Evidence) -> Verdict:
    """Judge a run that is at rest."""
    return _Check(evidence).verdict()


class Waits:
    """Knows which kept pushes may still wait for their users when all is at rest."""

    def __init__(self, tabs: Sequence[Tab]) -> None:
        self._tabs: dict[str, list[Tab]] = defaultdict(list)
        for tab in tabs:
            self._tabs[tab.user].append(tab)

    def rightly(self, request: Request, user: str | None) -> bool:
        """Whether no client is connected, or none that acks a push that wants an ack. The ttl is not checked."""
        tabs = self._tabs.get(user or "", ())
        return not tabs or (request.confirm == "acked" and not any(tab.acks for tab in tabs))


class _Check:
    def __init__(self, evidence: Evidence) -> None:
        self._e = evidence
        self._waits = Waits(evidence.tabs)
        self._open: dict[str, list[Tab]] = defaultdict(list)
        """The clients of a user."""
        for tab in evidence.tabs:
            self._open[tab.user].append(tab)
        self._shaken = sorted(evidence.shaken)
        self._verdict = Verdict()
        self._broken_times: Counter[Broken] = Counter()
        self._rows: Mapping[str, list[Row]] = defaultdict(list)
        """Mark of a request to its rows."""
        self._by_key: dict[tuple[str, str | None, str], list[Request]] = defaultdict(list)
        """(tenant, user, collapse key) to the requests that have them."""
        for request in evidence.requests.values():
            if request.collapse_key:
                for user in request.users:
                    self._by_key[request.tenant, user, request.collapse_key].append(request)

    def verdict(self) -> Verdict:
        self._count()
        self._match()
        for mark, request in self._e.requests.items():
            self._ends(request, self._rows.get(mark, []))
            if request.fate is Fate.PUSHED:
                self._kept(request, self._rows.get(mark, []))
                self._found(request, self._rows.get(mark, []))
        self._collapsed()
        self._recalled()
        self._mailboxes()
        for tab in self._e.tabs:
            self._in_order(tab)
            self._without_gap(tab)
            self._nothing_after(tab)
        self._proofs()
        self._screens()
        self._rest()
        self._receipts()
        self._fallbacks()
        for trouble in self._e.troubles:
            self._broken(Broken.TROUBLE, trouble)
        return self._verdict

    def _broken(self, kind: Broken, what: str, *requests: Request | None, first: Sequence[str] = ()) -> None:
        """`first`: facts that come before those of the requests."""
        self._broken_times[kind] += 1
        told = requests if self._broken_times[kind] <= STORIES_MAX else ()
        facts = tuple(fact for request in told if request for fact in self._facts(request))
        self._verdict.violations.append(Violation(kind, what, (*first, *facts)))

    def _facts(self, request: Request) -> tuple[str, ...]:
        """All that is known about a request, from each side."""
        facts = [
            f"request {request.mark} id={request.push_id!r} to={request.to.value} "
            f"users={_some(request.users)} copies={request.copies} confirmed={request.confirmed}"
            f" confirm={request.confirm} ttl={request.ttl:g} key={request.collapse_key}"
            f" published={request.first_published:.3f}..{request.first_confirmed:.3f}"
        ]
        rows = self._rows.get(request.mark, [])
        facts += [f"row {_row(r)}" for r in rows[:FACTS_MAX]]
        shown = [
            f"shown to {user}: {sum(s.times.values())} times, ponged={s.ponged}, acked={s.acked}"
            for (user, mark), s in self._e.shown.items()
            if mark == request.mark
        ]
        facts += shown[:FACTS_MAX]
        keys = {r.key for r in rows} | {k for k in self._e.announced if k.push_id == request.push_id}
        for key in list(keys)[:FACTS_MAX]:
            told = ", ".join(
                f"{r.outcome}/{r.reason} x{n}" for r, n in self._e.announced.get(key, Counter()).items()
            )
            facts.append(f"announced for {key.user}: {told or 'nothing'}")
        facts.append(f"in push.dead {self._e.dead[request.mark]} times")
        return tuple(facts)

    def _count(self) -> None:
        v, e = self._verdict, self._e
        v.published = sum(r.confirmed > 0 for r in e.requests.values())
        v.unconfirmed = sum(r.copies > 0 and not r.confirmed for r in e.requests.values())
        v.final_rows = sum(r.final for r in e.rows)
        v.outcomes = Counter(f"{r.outcome}/{r.reason}" for r in e.rows)
        v.wire_duplicates = sum(n - 1 for s in e.shown.values() for n in s.times.values())
        v.receipt_duplicates = sum(max(0, sum(told.values()) - 1) for told in e.announced.values())

    def _match(self) -> None:
        """Each row to its request; I5 for those that have none."""
        by_id = {(r.tenant, r.push_id): r.mark for r in self._e.requests.values() if r.push_id and r.copies}
        sent = {r.mark for r in self._e.requests.values() if r.copies}
        for row in self._e.rows:
            mark = by_id.get((row.key.tenant, row.key.push_id)) or next(iter(row.marks & sent), None)
            if mark is None:
                self._broken(Broken.NOT_PUBLISHED, f"row {_row(row)}")
            else:
                self._rows[mark].append(row)

    # --- I1 ---

    def _ends(self, request: Request, rows: Sequence[Row]) -> None:
        final = [r for r in rows if r.final]
        users = [r.key.user for r in rows if r.final or self._may_wait(request, r)]
        must = request.confirmed > 0 and not request.excused
        for user in {u for u in users if users.count(u) > 1}:
            if request.push_id or request.fate is Fate.REJECTED:
                self._broken(Broken.TWICE, f"{users.count(user)} final rows for user {user}", request)
        refused = [r for r in final if r.outcome == "rejected"]
        if refused and must and not self._e.dead[request.mark]:
            self._broken(Broken.NOT_BURIED, "rejected, and not in push.dead", request)
        if request.fate is Fate.REJECTED:
            self._one_end(request, users, {None}, must)
            for row in final:
                if row.outcome not in ("rejected", "expired"):
                    self._broken(Broken.TWICE, f"to be rejected, but it ended as {row.outcome}", request)
        elif request.to is To.USERS:
            self._all_ends(request, users, must)
        elif request.to is To.SESSION:
            self._one_end(request, users, {None, *request.users}, must)
        else:
            if must and not users:
                self._broken(Broken.LOST, "sent to everyone or a topic, and no row", request)
            if request.to is To.TOPIC:
                for user in set(users) - {None}:
                    if not subscribes(str(user)):
                        self._broken(
                            Broken.NOT_PUBLISHED, f"a row for {user}, who is not subscribed", request
                        )
            # A user who has read it may have no row, and a row may say that nobody was connected: each time the push
            # is taken, its users are determined anew.

    def _one_end(
        self, request: Request, users: Sequence[str | None], allowed: set[str | None], must: bool
    ) -> None:
        if must and not users:
            self._broken(Broken.LOST, "no final row", request)
        if len(set(users)) > 1:
            self._broken(Broken.TWICE, f"final rows for {_some(users)}, where one is due", request)
        for user in set(users) - allowed:
            self._broken(Broken.NOT_PUBLISHED, f"a row for {user}, whom it does not name", request)

    def _all_ends(self, request: Request, users: Sequence[str | None], must: bool) -> None:
        missing = request.users - set(users)
        if must and missing:
            self._broken(Broken.LOST, f"no final row for {_some(missing)}", request)
        for user in set(users) - request.users:
            self._broken(Broken.NOT_PUBLISHED, f"a row for {user}, whom it does not name", request)

    # --- I1: kept pushes ---

    def _may_wait(self, request: Request, row: Row) -> bool:
        """Whether a row that is not final may be: stored, with time left, for an absent user."""
        return row.outcome == "stored" and not row.lapsed and self._waits.rightly(request, row.key.user)

    def _kept(self, request: Request, rows: Sequence[Row]) -> None:
        for row in rows:
            if row.key.user is not None and not self._ends_as_kept(request, row):
                self._broken(Broken.KEPT_ENDED, f"row {_row(row)}, with a ttl of {request.ttl:g} s", request)

    def _ends_as_kept(self, request: Request, row: Row) -> bool:
        match row.outcome, row.reason:
            case ("acked" | "received" | "written", "not_acked") if request.ttl:
                return not request.lasts
            case (("acked" | "received" | "written"), _):
                return True
            case "rejected", _:
                return self._e.given_back or request.mark in self._e.deadly
            case "expired", "ttl":
                return request.ttl > 0 and not request.lasts
            case "stored", _:
                return request.ttl > 0
            case "expired", "queue_expiration":
                return request.expiration
            case "superseded", _:
                return any(not newer.before(request) for newer in self._same_key(request, row.key.user))
            case "recalled", _:
                return any(recall.names(request, row.key.user) for recall in self._e.recalls.values())
            case "dropped", "mailbox_full":
                return request.ttl > 0 and self._e.mailbox > 0
        return request.ttl == 0

    def _found(self, request: Request, rows: Sequence[Row]) -> None:
        """Check that no user counts as absent who had one session from before the push was published until after its
        end was known."""
        if not self._e.found or request.to is not To.USERS or request.scheduled:
            return
        for row in rows:
            if row.outcome != "offline" or row.key not in self._e.ended:
                continue
            ended = self._e.ended[row.key]
            for tab in self._open[row.key.user or ""]:
                for since, until in (span for session in tab.open for span in self._spans(session)):
                    if since < request.first_published and ended + CLOSING < until:
                        what = f"{row.key.user} had a session from {since:.3f} to {until:.3f}"
                        self._broken(Broken.TAKEN_FOR_ABSENT, f"{what}, its end came at {ended:.3f}", request)

    def _spans(self, session: Session) -> Sequence[tuple[float, float]]:
        """When a session was open, and its node not taken for dead."""
        spans = []
        since = session.since
        for mute in self._e.mute:
            if mute.port == session.port and mute.until + MENDED > since and mute.since < session.until:
                spans.append((since, min(session.until, mute.since + LEASE)))
                since = mute.until + MENDED
        return [*spans, (since, session.until)]

    def _same_key(self, request: Request, user: str | None) -> Iterable[Request]:
        """Other requests that may have replaced this one, or be replaced by it."""
        if not request.collapse_key:
            return ()
        others = self._by_key.get((request.tenant, user, request.collapse_key), ())
        return (r for r in others if r is not request and r.copies)

    def _collapsed(self) -> None:
        """Report rows that wait although a newer push with their key was taken."""
        for mark, rows in self._rows.items():
            request = self._e.requests[mark]
            for row in rows:
                if row.outcome != "stored" or not self._has_a_place(request, row.key):
                    continue
                for newer in self._same_key(request, row.key.user):
                    # One that had expired before it was taken, or was rejected, replaces nothing.
                    taken = [
                        r
                        for r in self._rows.get(newer.mark, ())
                        if r.key.user == row.key.user and r.outcome not in ("expired", "rejected")
                    ]
                    if taken and request.before(newer) and newer.copies == 1:
                        what = f"stored for {row.key.user}, though it is replaced by {_row(taken[0])}"
                        self._broken(Broken.KEPT_ENDED, what, request)
                        break

    def _recalled(self) -> None:
        """Report rows that wait although they were recalled when they were certainly stored."""
        by_id = {(r.tenant, r.push_id): mark for mark, r in self._e.requests.items() if r.push_id}
        for recall in self._e.recalls.values():
            mark = by_id.get((recall.tenant, recall.push_id))
            if mark is None or not (recall.stored_for and recall.confirmed):
                continue
            for row in self._rows.get(mark, ()):
                if row.outcome == "stored" and row.key.user == recall.stored_for:
                    what = f"stored for {row.key.user}, though it was recalled"
                    self._broken(Broken.KEPT_ENDED, what, self._e.requests[mark])

    def _mailboxes(self) -> None:
        """Check that no mailbox is over its bound, and that it dropped its oldest pushes."""
        if not self._e.mailbox:
            return
        held: dict[str | None, list[Request]] = defaultdict(list)
        given_up: dict[str | None, list[Request]] = defaultdict(list)
        for mark, rows in self._rows.items():
            for row in rows:
                if row.outcome == "stored":
                    held[row.key.user].append(self._e.requests[mark])
                elif row.reason == "mailbox_full":
                    given_up[row.key.user].append(self._e.requests[mark])
        for user, requests in held.items():
            if len(requests) > self._e.mailbox:
                what = f"{len(requests)} pushes are kept for {user}, over the bound of {self._e.mailbox}"
                self._broken(Broken.KEPT_ENDED, what)
            for victim in given_up[user]:
                if any(kept.before(victim) for kept in requests if kept.copies == victim.copies == 1):
                    self._broken(Broken.KEPT_ENDED, f"given up for {user}, who still has older ones", victim)

    # --- order ---

    def _in_order(self, tab: Tab) -> None:
        """Check that it reads kept pushes in the order of publishing: over all of its connections, or within each
        if it resumes, since a resume begins a little before the last push seen. Messages with a push to everyone or to
        a topic have an order among themselves."""
        if not self._e.ordered:
            return
        last: dict[bool, Request] = {}
        """The newest that was read: of those to a crowd, and of the others."""
        read: set[str] = set()
        connection = 0
        for number, mark, at in tab.reads:
            if number != tab.reads[0][0] and not self._e.reopened:
                return
            if tab.resumes and number != connection:
                connection, last, read = number, {}, set()
            request = self._e.requests.get(mark)
            if mark in read or request is None:
                continue
            if not self._has_a_place(request, RowKey(request.tenant, request.push_id, tab.user), at):
                continue
            read.add(mark)
            crowd = request.with_a_crowd
            newest = last.get(crowd)
            if newest is not None and request.before(newest):
                what = f"{tab.user} read it after {newest.push_id}, on connection {number} at {at:.3f}"
                self._broken(Broken.OUT_OF_ORDER, what, request, newest)
            if newest is None or request.first_published > newest.first_published:
                last[crowd] = request

    def _has_a_place(self, request: Request, key: RowKey, read_at: float = math.inf) -> bool:
        """Whether the order of the queue applies to this push: it is kept, was published once, and the broker
        has not taken it back before it was read or stored. A redelivered push comes after those taken meanwhile."""
        if not request.ttl or request.copies != 1 or request.scheduled or request.retained:
            return False
        settled = min(read_at, self._e.stored.get(key, math.inf))
        return bisect.bisect(self._shaken, request.first_published) == bisect.bisect(self._shaken, settled)

    def _without_gap(self, tab: Tab) -> None:
        """Check that a client that always resumes, and is never told of a gap, has read all kept pushes."""
        if not tab.resumes or tab.cut or not (self._e.ordered or self._e.complete):
            return
        read = {mark for _, mark, _ in tab.reads}
        for mark, rows in self._rows.items():
            request = self._e.requests[mark]
            if not request.lasts or mark in read or request.first_published <= tab.since:
                continue
            for row in rows:
                if (
                    row.key.user == tab.user
                    and row.outcome in READ
                    and not self._withdrawn(request, tab.user)
                    and not (request.first_device and row.outcome == "acked")
                ):
                    what = f"{tab.user} resumed, was told that it is complete, and has not read it"
                    near = [f"row {_row(row)}", *(_near(one, request) for one in self._open[tab.user])]
                    self._broken(Broken.GAP, what, request, first=near)

    def _withdrawn(self, request: Request, user: str) -> bool:
        """Whether it was recalled after another client had read it: then no other client is shown it."""
        return any(recall.names(request, user) for recall in self._e.recalls.values())

    # --- I2, I3 ---

    def _proofs(self) -> None:
        for mark, rows in self._rows.items():
            for row in rows:
                seen = self._e.shown.get((row.key.user or "", mark)) or Showing()
                request = self._e.requests[mark]
                if row.outcome == "received" and not seen.ponged:
                    why = "nobody answered a ping after it" if seen.times else "nobody was shown it"
                    self._broken(Broken.FALSE_PROOF, f"received by {row.key.user}, but {why}", request)
                if row.outcome == "acked" and not seen.acked:
                    self._broken(Broken.FALSE_PROOF, f"acked by {row.key.user}, who sent no ack", request)

    def _screens(self) -> None:
        for (user, mark), seen in self._e.shown.items():
            request = self._e.requests.get(mark)
            if request is None or not request.copies:
                self._broken(Broken.NOT_PUBLISHED, f"{user} was shown {mark}, which nobody published")
            elif request.fate is Fate.REJECTED:
                self._broken(Broken.WRONG_USER, f"{user} was shown what had to be rejected", request)
            elif request.to is To.SESSION and seen.sessions - {request.session}:
                other = _some(seen.sessions - {request.session})
                self._broken(Broken.WRONG_USER, f"shown to session {other} of {user}", request)
            elif not _may_see(request, user):
                self._broken(Broken.WRONG_USER, f"shown to {user}", request)

    def _nothing_after(self, tab: Tab) -> None:
        for connection, answered in tab.revoked:
            for number, mark, at in tab.reads:
                if number <= connection and at > answered + IN_KERNELS:
                    late = at - answered
                    what = f"{tab.user} read {mark} {late:.1f} s after the session was revoked"
                    self._broken(Broken.AFTER_REVOKED, what, self._e.requests.get(mark))

    # --- I4 ---

    def _rest(self) -> None:
        for queue, depth in self._e.queues.items():
            if depth.ready or depth.unacked:
                self._broken(Broken.LEFT_IN_QUEUE, f"{queue}: {depth.ready} ready, {depth.unacked} unacked")
        for mark, rows in self._rows.items():
            for row in rows:
                if not row.final and not self._may_wait(self._e.requests[mark], row):
                    self._broken(Broken.NOT_FINAL, f"row {_row(row)}", self._e.requests[mark])
                if row.owed and row.final:
                    self._broken(Broken.OWED, f"row {_row(row)}", self._e.requests[mark])

    def _fallbacks(self) -> None:
        rows = {row.key: row for row in self._e.rows}
        marks = {row.key: mark for mark, of_mark in self._rows.items() for row in of_mark}
        for key, row in rows.items():
            request = self._e.requests.get(marks.get(key, ""))
            if row.overdue:
                self._broken(Broken.OWED, f"its fallback is due: row {_row(row)}", request)
            if row.fell_back and not self._e.fallbacks.get(key):
                self._broken(Broken.NO_FALLBACK, f"row {_row(row)}", request)
            # With several nodes the proof may wait for its row at one that is stopped or cut off.
            if row.early and self._e.ordered:
                self._broken(Broken.FALSE_FALLBACK, f"it was proven in time: row {_row(row)}", request)
        for key, ids in self._e.fallbacks.items():
            if key not in rows:
                self._broken(Broken.NOT_PUBLISHED, f"a fallback of {key}, which has no row")
            if len(ids) > 1:
                self._broken(Broken.FALSE_FALLBACK, f"{key} has {len(ids)} message ids")

    def _receipts(self) -> None:
        rows = {row.key: row for row in self._e.rows}
        marks = {row.key: mark for mark, of_mark in self._rows.items() for row in of_mark}
        for key, row in rows.items():
            told = self._e.announced.get(key, Counter())
            request = self._e.requests.get(marks.get(key, ""))
            if row.final and not any(r.final for r in told):
                self._broken(Broken.NO_RECEIPT, f"row {_row(row)}", request)
        for key, receipts in self._e.announced.items():
            self._agree(rows, marks, key, ((r.outcome, r.reason, r.final) for r in receipts), "announced")
        for correlation, answers in self._e.replied.items():
            for key, r in answers:
                said = [(r.outcome, r.reason, r.final)]
                self._agree(rows, marks, key, said, f"replied to {correlation}")
        for mark, request in self._e.requests.items():
            # Who subscribes after a last value was taken is nobody whom its publisher waits for.
            if request.excused or request.retained:
                continue
            due = {r.key for r in self._rows.get(mark, []) if r.final}
            for correlation in request.replies:
                answered = {key for key, r in self._e.replied.get(correlation, {}) if r.final}
                if due - answered:
                    missing = _some(key.user for key in due - answered)
                    self._broken(Broken.NO_RECEIPT, f"{correlation} got no reply for {missing}", request)

    def _agree(
        self,
        rows: Mapping[RowKey, Row],
        marks: Mapping[RowKey, str],
        key: RowKey,
        said: Iterable[tuple[str, str, bool]],
        where: str,
    ) -> None:
        row = rows.get(key)
        for outcome, reason, final in said:
            if row is None:
                self._broken(Broken.NOT_PUBLISHED, f"{where}: {outcome}/{reason} of {key}, which has no row")
            elif final and (outcome, reason) != (row.outcome, row.reason):
                request = self._e.requests.get(marks.get(key, ""))
                what = f"{where}: {outcome}/{reason}, but the row says {row.outcome}/{row.reason}"
                self._broken(Broken.WRONG_RECEIPT, what, request)


def _row(row: Row) -> str:
    state = "final" if row.final else "not final"
    owed = ", owed" if row.owed else ""
    key = f"{row.key.tenant}/{row.key.push_id}/{row.key.user}"
    place = f" at place {row.position}" if row.position else ""
    detail = f" ({row.detail})" if row.detail else ""
    return (
        f"{key}: {row.outcome}/{row.reason} {state}{owed} by {row.node} after {row.attempts}{place}{detail}"
    )


def _near(tab: Tab, request: Request) -> str:
    """When a client had sessions while a push was new, and read it, in seconds since that was published."""
    at = request.first_published
    spans = [
        f"{s.since - at:.3f} to {s.until - at:.3f} at port {s.port}"
        for s in tab.open
        if s.since < at + NEAR and s.until > at - NEAR
    ]
    read = [
        f"{when - at:.3f} on connection {number}" for number, mark, when in tab.reads if mark == request.mark
    ]
    how = "resumes" if tab.resumes else "does not resume"
    return f"a client of {tab.user} that {how}: sessions {_told(spans)}; read {_told(read)}"


def _told(things: Sequence[str]) -> str:
    return ", ".join(things) or "never"


def _some(things: Iterable[object], most: int = 8) -> str:
    names = sorted(str(t) for t in things)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _may_see(request: Request, user: str) -> bool:
    if request.to is To.TOPIC:
        return subscribes(user)
    return request.to is To.ALL or user in request.users
