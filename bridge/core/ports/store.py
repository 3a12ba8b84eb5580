"""What the core asks of the delivery log, and of the lease on a node's name."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from bridge.core.model.pushes import PushKey, Recall
from bridge.core.model.rows import Difference, DueFallback, LateProof, Reply, Row, RowKey


class Written(NamedTuple):
    """The result of a compare-and-set for one row: `row` is the row that the log has now for that key.

    `applied` is True if this call wrote it (inserted, or updated a row that was not final). If it is False, the
    caller's row was NOT written, and `row` is the one that was there. A store that tries again by itself returns True
    also if an earlier try, whose answer was lost, wrote it. None: another transaction has locked the row, which is not
    final; nothing was written, and the caller must try again in a while.
    """

    row: Row
    applied: bool | None


class RowPage(NamedTuple):
    """Some of the rows of a push, in the order of their users' ids (bytewise)."""

    rows: Sequence[Row]
    next_user: str | None
    """Where the next page begins; None: there is none."""


class IdPlace(NamedTuple):
    """How far the reading of known ids has come."""

    day: datetime.date
    push_id: str


class IdPage(NamedTuple):
    """Some of the push ids in the log."""

    ids: Sequence[str]
    next: IdPlace | None
    """Where the next page begins; None: there is none."""


class MailboxAsk(NamedTuple):
    """One page of what is kept for a user: the rows with `after` < position <= `until`, lowest first."""

    user: str
    after: int
    until: int
    seen: int | None = None
    """None: only `stored` rows. A position: also those after it that were delivered to some session and whose
    ttl has not ended, for a client that resumes."""
    session: str = ""
    """Rows that exclude this session are left out."""
    rows: int = 200
    """Rows to look at, at most; a few more if several have the same position."""
    payload_bytes: int = 256 * 1024
    """The page ends with the row that brings its data and except lists to this many bytes."""


class MailboxPage(NamedTuple):
    """The answer to an ask. Rows that are left out count as looked at: even if it has no rows, there may be more."""

    rows: Sequence[Row]
    """With their data."""
    reached: int
    """Everything up to this position was looked at."""
    more: bool
    """Whether there may be more after `reached`."""


class RecallPlace(NamedTuple):
    """How far a recall has come; the default is its beginning."""

    user: str = ""
    """Recall by push id: the user to continue with."""
    position: int = -1
    """Recall by collapse key: the delivered push to continue after; below zero while stored pushes are ended."""


class RecallPage(NamedTuple):
    """The result of one step of a recall."""

    written: Sequence[Written]
    next: RecallPlace | None
    """Where the next step begins; None: the recall is done."""


class ResumeAsk(NamedTuple):
    """The last push that a client says it has seen."""

    user: str
    push_id: str


class ResumePoint(NamedTuple):
    """Where a resume begins."""

    position: int
    """The position of the push last seen; if that was not kept, its `taken_at` in microseconds. The earliest, if
    several tenants have a push of this id."""
    cut: bool
    """Whether a newer push of this user was dropped because the mailbox was full."""


class Collapse(NamedTuple):
    """A push that replaces older ones."""

    tenant: str
    user: str
    collapse_key: str
    position: int


class OthersRows(NamedTuple):
    """How many rows other boots have written since a day. For the same day the count only grows."""

    since: datetime.date
    rows: int


class Superseded(NamedTuple):
    """The result of one step of ending replaced pushes."""

    ended: Sequence[Row]
    held: Sequence[Row]
    """Rows that are still stored, since another transaction has locked them."""


class Store(Protocol):
    """The rows of the delivery log, written by compare-and-set. Every method is safe to run again.

    All raise StoreUnavailable when the database is down or its answer was lost; its subclass StatementFailed when the
    database is up and gave the statement up: a smaller one may succeed; SchemaBehind when the schema is older than the
    program.

    Returned rows have no data and no except list (`payload` None, `excluded` empty), except on a page of a mailbox.
    Rows from `find`, `find_push` and `owing` have no `meta` either: a thousand rows may all have the same megabyte. The
    row of a `Written` that was inserted is the caller's own.

    A row is *held* while another transaction has locked it. Methods skip held rows; most return which they were.
    """

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        """Insert each row, or update it if the one in the log is not final; one commit for the batch.

        The caller gives at most one row per key. The answer has one entry per row, in the same order.
        A key known from the day before is not inserted again. An update keeps `taken_at` and `published_at` of the
        older row, adds the replies of the new `owed` to its `owed`, and keeps what only a kept push has (`payload`,
        `position`, `expires_at` and so on). A row with a `day` is looked for from that day on. Raises RowsRefused, with
        nothing written, when the data itself is refused.
        """
        ...

    async def try_writing(self) -> None:
        """Write an ordinary row, end it, and roll both back. Raises what `record` would raise for any rows:
        LogTakesNoRows if the database is up and refuses, or drops, an ordinary row."""
        ...

    async def find(self, keys: Sequence[RowKey]) -> Sequence[Row]:
        """The rows with these keys, in any order, from the days in which a key is known: today, the day before, and as
        far back as anything is stored. The caller asks for a thousand keys at most."""
        ...

    async def find_push(self, push: PushKey, from_user: str, limit: int) -> RowPage:
        """About `limit` of the rows of a push from those days, from this user id on; all rows of the last user."""
        ...

    async def owe(self, debts: Mapping[RowKey, tuple[Reply, ...]]) -> Collection[RowKey]:
        """Note in each row that its receipt is owed; these replies are added to those already owed. Returns the keys of
        held rows: the caller must try them again."""
        ...

    async def settle(self, paid: Mapping[RowKey, tuple[Reply, ...]]) -> Collection[RowKey]:
        """These replies and the outcome event are paid; a row that owes no other replies then owes nothing. Returns the
        keys of held rows."""
        ...

    async def owing(self, limit: int) -> Sequence[Row]:
        """At most `limit` final rows that owe a receipt, oldest first; held rows are left out."""
        ...

    async def prove_late(self, proofs: Sequence[LateProof]) -> Collection[RowKey]:
        """Fill `late_at` and `proven_at` of final rows where they are null; the outcome stays as it is. Returns the
        keys of held rows."""
        ...

    async def differing(self, differences: Sequence[Difference]) -> Collection[RowKey]:
        """Fill `differed_at` of rows, final or not, where it is null. Returns the keys of held rows."""
        ...

    async def ids(self, after: IdPlace | None, limit: int) -> IdPage:
        """The push ids of rows from the day before on. Each page looks at `limit` rows; an id may be on several pages.
        Rows that are written during the reading may be left out."""
        ...

    async def rows_of_others(self, boot: str) -> OthersRows:
        """How many rows boots other than this one have written in those days. While the answer is the same, none has
        written another row."""
        ...

    # Kept pushes: rows with an `expires_at`, `stored` until they are final. A method that ends a row keeps its `owed`,
    # so that the sweep pays the receipt. Rows are returned as they are after the call.

    async def mailbox(self, asks: Sequence[MailboxAsk]) -> Sequence[MailboxPage]:
        """A page for each ask, in the order of the asks; never a row whose ttl has ended."""
        ...

    async def resume_points(self, asks: Sequence[ResumeAsk]) -> Sequence[ResumePoint | None]:
        """Where each resume begins; None if no row of that push and user is left in the log."""
        ...

    async def dropped_since(self, places: Sequence[tuple[str, int]]) -> Sequence[bool]:
        """For each (user, position): whether a push with a higher position was dropped because the mailbox was full."""
        ...

    async def expire(self, limit: int) -> Sequence[Row]:
        """End at most `limit` stored rows whose ttl has ended (by the store's clock): as `received`/`not_acked` if the
        row has a proof, otherwise as `expired`/`ttl`."""
        ...

    async def overfull(
        self, users: Sequence[str], pushes: int, payload_bytes: int
    ) -> Sequence[tuple[str, int]]:
        """The users among these who have more stored rows, or more bytes in them, than this; each with the position up
        to which rows must be ended."""
        ...

    async def trim(self, places: Sequence[tuple[str, int]], limit: int) -> Sequence[Row]:
        """End stored rows of each user up to the position as `dropped`/`mailbox_full`, the oldest first: at most
        `limit` in all. Returns none if there were no more."""
        ...

    async def users_with_mail(self, after: str, limit: int) -> Sequence[str]:
        """The next users for whom something is stored, in the order of their ids (bytewise)."""
        ...

    async def supersede(self, newer: Sequence[Collapse], limit: int) -> Superseded:
        """End stored rows of lower positions with the same tenant, user and key as `superseded`/`collapsed`: at most
        `limit`. Returns none as `ended` if there were no more that could be ended."""
        ...

    async def recall(self, recall: Recall, place: RecallPlace, limit: int) -> RecallPage:
        """One step of a recall: end about `limit` of the stored rows that it names, as `recalled`/`withdrawn`.

        `applied` is True for these, and None for held rows: the recall must be repeated. Other rows that the recall
        names are returned with `applied` False. For a recall by push id these are the rows of that push that had ended
        before, or are `pending`; for one by collapse key, those that were delivered, until their ttl ends. The kept
        data of delivered pushes is deleted.
        """
        ...

    async def forget_data(self, keys: Sequence[RowKey]) -> Sequence[Written]:
        """Delete the kept data of those of these rows that were delivered, as a recall does that names them; their
        fallbacks are cleared. Others are left as they are, and not returned. `applied` is None for held rows. The
        caller asks for a thousand keys at most."""
        ...

    # Fallbacks: debts of rows that have a `fallback_due`. It is cleared once nobody needs the fallback: by `record` and
    # `prove_late` with a proof that counts, and by what ends a row as superseded or recalled. A recall, or a newer push
    # with the same collapse key, also clears it in final rows that it names.

    async def claim_fallbacks(
        self, node: str, boot: str, limit: int, payload_bytes: int
    ) -> Sequence[DueFallback]:
        """Claim fallbacks that have been due for a second, the earliest first: at most `limit`, and no more once they
        have so many bytes of data. Those that another live boot has claimed are left out, and held rows; those that
        this boot has claimed are among them. A row that another live boot wrote last is left to that for ten seconds:
        it may know of a proof that its row does not say yet. None unless this boot has its name, and has seen the
        database answer for as long as a lease is valid: after an outage others must have time to write the proofs that
        have come."""
        ...

    async def note_fallbacks(self, boot: str, rows: Sequence[Row]) -> Collection[RowKey]:
        """The fallbacks of these rows, which this boot has claimed, are published: `fallback_at` says so, and the data
        of pushes without a ttl is deleted. Returns the keys of held rows."""
        ...

    async def release_fallbacks(self, boot: str, rows: Sequence[Row], wait: float) -> Collection[RowKey]:
        """The fallbacks of these rows were claimed and not published: they are due again in `wait` seconds.
        Returns the keys of held rows."""
        ...

    async def last_position(self) -> int:
        """The highest position of all rows, 0 if there are none: the positions of a node go on above it."""
        ...


class Account(NamedTuple):
    """How many pushes this process has begun, and how far they are, at one moment; each counts once for each user."""

    begun: int
    with_row: int
    """Pushes whose first row, final or not, is committed."""
    on_their_way: int
    """Pushes that have no row yet."""
    ages: Sequence[float]
    """For each push on its way: seconds since it was taken."""


NO_ACCOUNT = Account(0, 0, 0, ())
"""The account of a process that has begun no push."""
LEASE_SECONDS = 5.0
"""Seconds for which a lease is valid after it was renewed; the functions of the schema use the same number."""


class Lease(Protocol):
    """This process's claim on its node name, by the database's time."""

    async def check(self) -> None:
        """Raise DatabaseUnsuitable where the database can't keep a claim; to be called before it is asked anything
        else. It leaves nothing behind there."""
        ...

    async def claim(self) -> None:
        """Claim the name for this boot. Raises NodeNameTaken while another boot with this name is alive."""
        ...

    async def renew(self, account: Account = NO_ACCOUNT) -> bool:
        """Renew the lease, and record the account for the audit; called every second. Returns whether this process
        should stop, or has said that it does.

        Raises NodeNameTaken when another boot has claimed the name.
        """
        ...

    async def stopping(self) -> None:
        """Let everybody know that this process stops. Idempotent; may be called while another method runs."""
        ...

    async def end_dead(self, limit: int) -> Sequence[Row]:
        """End at most `limit` `pending` rows whose boot is dead: as `received`/`not_acked` if the row has a proof,
        otherwise as `unknown`/`node_died`. `stored` rows stay: they wait for their user, not for a boot.

        A boot is dead when it is an earlier one of this node's name, or when its lease ran out (5 s).
        Returns the rows as they ended, `owed` included. Idempotent.
        """
        ...

    async def release(self) -> None:
        """Give the name back, at the end of a clean stop."""
        ...
