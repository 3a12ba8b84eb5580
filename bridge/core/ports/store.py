"""What the core asks of the delivery log, and of the lease on a node's name."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from bridge.core.model.pushes import PushKey, Recall
from bridge.core.model.rows import Difference, LateProof, Reply, Row, RowKey


class Written(NamedTuple):
    """How a compare-and-set ended for one row: `row` is what the log holds now for that key.

    `applied` is True where this call made it so (inserted, or updated a row that was not final). Where it
    is False the caller's row was NOT written and `row` is the one that was there. A store that tries again by
    itself says True also where a try whose answer it lost had made it so. None: somebody else holds the row, which is
    not final; nothing was written, and it is to be tried again in a while.
    """

    row: Row
    applied: bool | None


class RowPage(NamedTuple):
    """Some of the rows of a push, in the order of their users' ids (bytewise)."""

    rows: Sequence[Row]
    next_user: str | None
    """Where the next page begins; None: there is no more."""


class IdPlace(NamedTuple):
    """How far a reading of known ids has come."""

    day: datetime.date
    push_id: str


class IdPage(NamedTuple):
    """Some of the push ids that the log knows."""

    ids: Sequence[str]
    next: IdPlace | None
    """Where the next page begins; None: there is no more."""


class MailboxAsk(NamedTuple):
    """One page of what is kept for a user: the rows with `after` < position <= `until`, lowest first."""

    user: str
    after: int
    until: int
    seen: int | None = None
    """None: only `stored` rows. A position: also those after it that were delivered to some session and whose
    ttl has not ended, for a client that resumes."""
    session: str = ""
    """Rows that this session does not get are left out."""
    rows: int = 200
    """At most so many are looked at, and a few more where several have one position."""
    payload_bytes: int = 256 * 1024
    """The page ends with the row that brings what it carries to so many bytes: data and except lists."""


class MailboxPage(NamedTuple):
    """What an ask found; rows that are not wanted count as looked at, so it may have few rows, or none, and go on."""

    rows: Sequence[Row]
    """With their data."""
    reached: int
    """Everything up to this position was looked at."""
    more: bool
    """There may be more after it."""


class RecallPlace(NamedTuple):
    """How far a recall has come; a new one begins it."""

    user: str = ""
    """Of a recall by push id: the user to go on with."""
    position: int = -1
    """Of one by collapse key: after which delivered push to go on; below zero while stored ones are ended."""


class RecallPage(NamedTuple):
    """What a step of a recall did."""

    written: Sequence[Written]
    next: RecallPlace | None
    """Where the next step begins; None: it is done."""


class ResumeAsk(NamedTuple):
    """The last push that a client says it has seen."""

    user: str
    push_id: str


class ResumePoint(NamedTuple):
    """Where a resume begins."""

    position: int
    """Of the push last seen; of one that was not kept, its `taken_at` in microseconds. The earliest, where several
    tenants have a push of this id."""
    cut: bool
    """A newer push of this user was dropped because the mailbox was full."""


class Collapse(NamedTuple):
    """A push that replaces older ones."""

    tenant: str
    user: str
    collapse_key: str
    position: int


class OthersRows(NamedTuple):
    """What others have written since a day: among equal days the count only grows."""

    since: datetime.date
    rows: int


class Superseded(NamedTuple):
    """What a step of ending replaced pushes did."""

    ended: Sequence[Row]
    held: Sequence[Row]
    """Rows that are still stored, since somebody else holds them."""


class Store(Protocol):
    """The rows of the delivery log by compare-and-set. Every method is safe to run again.

    All raise StoreUnavailable when the database is down or its answer was lost; StatementFailed (which is one) when it
    is there and gave the statement up: less at a time may succeed; SchemaBehind when its schema is older than the
    program.

    A row that is returned carries no data and no except list (`payload` None, `excluded` empty) but on a page of a
    mailbox, and none of `find`, `find_push` and `owing` carries `meta`: of a thousand rows all may have the same
    megabyte. The row of a `Written` that was inserted is the caller's own.
    """

    async def record(self, rows: Sequence[Row]) -> Sequence[Written]:
        """Insert each row, or update it where the one in the log is not final; one commit for the batch.

        The caller gives at most one row per key. The answer has one entry per row, in the same order.
        A key known from the day before is not inserted again. Of an existing row that is not final, an
        update keeps `taken_at`, `published_at` and `owed` of the older one, and adds the replies of the new
        `owed` to it, and keeps what only a kept push has (`payload`, `position`, `expires_at` and so on). A
        row that says its `day` is looked for from that day on. Raises RowsRefused with nothing written when
        the data itself is refused.
        """
        ...

    async def try_writing(self) -> None:
        """Write a row, end it, and take both back. Raises what `record` would raise if it were not for its rows:
        LogTakesNoRows where the database is there and refuses, or drops, an ordinary row."""
        ...

    async def find(self, keys: Sequence[RowKey]) -> Sequence[Row]:
        """The rows with these keys in the days in which a key is known (today's and the day before's, and as far back
        as anything is stored), in any order. The caller asks for a thousand at a time at most."""
        ...

    async def find_push(self, push: PushKey, from_user: str, limit: int) -> RowPage:
        """About `limit` of the rows of a push in those days, from this user id on; all rows of the last user."""
        ...

    async def owe(self, debts: Mapping[RowKey, tuple[Reply, ...]]) -> Collection[RowKey]:
        """Note in each row that its receipt is owed, adding these replies to those already owed. Returns those whose
        row somebody else holds: they are to be tried again."""
        ...

    async def settle(self, paid: Mapping[RowKey, tuple[Reply, ...]]) -> Collection[RowKey]:
        """These replies are paid, and the outcome event; a row that owes no others owes nothing any more. Returns those
        whose row somebody else holds."""
        ...

    async def owing(self, limit: int) -> Sequence[Row]:
        """At most `limit` final rows that owe a receipt, and that nobody else holds, oldest first."""
        ...

    async def prove_late(self, proofs: Sequence[LateProof]) -> Collection[RowKey]:
        """Fill `late_at`, and `proven_at`, of final rows where they are null; the outcome stays as it is. Returns those
        whose row somebody else holds."""
        ...

    async def differing(self, differences: Sequence[Difference]) -> Collection[RowKey]:
        """Fill `differed_at` of rows, final or not, where it is null. Returns those whose row somebody else holds."""
        ...

    async def ids(self, after: IdPlace | None, limit: int) -> IdPage:
        """Push ids that a row has from the day before on, in pages that look at `limit` rows each; an id may be on
        several. Rows that are written while one reads may be left out."""
        ...

    async def rows_of_others(self, boot: str) -> OthersRows:
        """How many rows other processes than this boot have written in those days: while it is the same, none has
        written another."""
        ...

    # Kept pushes: rows with an `expires_at`, `stored` until they end. What ends a row here keeps its `owed`,
    # so that the receipt is paid by the sweep; the rows that are returned are those as they are now.

    async def mailbox(self, asks: Sequence[MailboxAsk]) -> Sequence[MailboxPage]:
        """A page for each ask, in their order; never a row whose ttl has ended."""
        ...

    async def resume_points(self, asks: Sequence[ResumeAsk]) -> Sequence[ResumePoint | None]:
        """Where each resume begins; None where no row of that push and user is left in the log."""
        ...

    async def dropped_since(self, places: Sequence[tuple[str, int]]) -> Sequence[bool]:
        """Of each (user, position): whether a push of a higher one was dropped because the mailbox was full."""
        ...

    async def expire(self, limit: int) -> Sequence[Row]:
        """End at most `limit` stored rows whose ttl has ended (by the store's clock): as `expired`/`ttl`, where
        the row has a proof as `received`/`not_acked`."""
        ...

    async def overfull(
        self, users: Sequence[str], pushes: int, payload_bytes: int
    ) -> Sequence[tuple[str, int]]:
        """Those of these users who have more stored rows, or more bytes in them, than this; each with the position up
        to which rows must go."""
        ...

    async def trim(self, places: Sequence[tuple[str, int]], limit: int) -> Sequence[Row]:
        """End stored rows up to a position of a user as `dropped`/`mailbox_full`, the oldest first: at most `limit`
        in all. None: there were no more."""
        ...

    async def users_with_mail(self, after: str, limit: int) -> Sequence[str]:
        """The next users for whom something is stored, in the order of their ids (bytewise)."""
        ...

    async def supersede(self, newer: Sequence[Collapse], limit: int) -> Superseded:
        """End stored rows of lower positions with the same tenant, user and key: `superseded`/`collapsed`. At most
        `limit`; none: there were no more that could be ended."""
        ...

    async def recall(self, recall: Recall, place: RecallPlace, limit: int) -> RecallPage:
        """One step: end stored rows that a recall names as `recalled`/`withdrawn` (`applied`), about `limit` of them.
        Of rows that somebody else holds `applied` is None: the recall is to be repeated.

        The others that it names are returned as well, not applied: of a recall by push id those of that push that
        had ended before, or are `pending`; of one by collapse key those that were delivered, until their ttl ends.
        The data that was kept of those that were delivered is forgotten.
        """
        ...

    async def last_position(self) -> int:
        """The highest position that any row has, 0 for none: a node goes on above it."""
        ...


class Account(NamedTuple):
    """Where the pushes are that this process has begun, each counted once for each user, at one moment."""

    begun: int
    with_row: int
    """Those whose first row, final or not, is committed."""
    on_their_way: int
    """Those that have none yet."""
    ages: Sequence[float]
    """Of those on their way: seconds since they were taken."""


NO_ACCOUNT = Account(0, 0, 0, ())
"""Of a process that has begun nothing."""
LEASE_SECONDS = 5.0
"""How long a lease is good after it was renewed; the functions of the schema have the same."""


class Lease(Protocol):
    """This process's claim on its node name, by the database's time."""

    async def claim(self) -> None:
        """Take the name for this boot. Raises NodeNameTaken while another boot of it is alive."""
        ...

    async def renew(self, account: Account = NO_ACCOUNT) -> None:
        """Say that this boot lives, and where the pushes are that it has begun, for the audit; called every second.

        Raises NodeNameTaken when it was taken over.
        """
        ...

    async def end_dead(self, limit: int) -> Sequence[Row]:
        """End at most `limit` `pending` rows whose boot is dead: as `received`/`not_acked` where the row has a
        proof, as `unknown`/`node_died` where it has none. `stored` rows wait for their user, not for a boot.

        A boot is dead when it is an earlier one of this node's name, or when its lease ran out (5 s).
        Returns the rows as they ended, `owed` included. Idempotent.
        """
        ...

    async def release(self) -> None:
        """Give the name back, at the end of a clean stop."""
        ...
