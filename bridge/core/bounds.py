"""The fixed bounds of the core: how much of its work is done at once, how long it waits, and when it stops taking more.

No setting changes them. `Core` gets them with `CoreLimits` and hands them to its parts, so that a setting could do so,
and a test does. What the contract or a format fixes is not here: it stays beside the code that keeps to it.
"""

from __future__ import annotations

from typing import NamedTuple


class StatementBounds(NamedTuple):
    """Statements that fail, and how they are made smaller."""

    retry_first: float = 0.1
    """Seconds to wait after the first try while a log can't be written; doubled from there."""
    retry_most: float = 2.0
    """Seconds between two such tries, at most."""
    suspect_after: int = 3
    """Failures of one call after which it is to blame, if a row could be written after each of them."""
    parts: int = 8
    """How many parts a failed call is cut into. With two, finding one bad row among 500 would cost nine time limits."""
    give_up: int = 8
    """Parts that may fail in a row. Then the rest is not tried, since each part may cost a time limit."""
    sweep_rows: int = 500
    """Rows that one statement of a sweep or of a recall reads, ends or notes anything in; fewer while that takes too
    long."""


class SettlementBounds(NamedTuple):
    """How rows are written and paid."""

    batch_rows: int = 500
    """Rows in one statement: with more, throughput gains little and a redelivery repeats more."""
    many_rows: int = 1_000
    """With more rows than this waiting,"""
    batch_of_crowd: int = 40
    """no more of pushes to everyone or to topics are in one statement, and the event loop gets its turns: all others
    must not wait for 500 rows and their receipts."""
    batch_bytes: int = 1024 * 1024
    """Bytes of data, except lists and meta, after which a batch ends; content that several rows share counts once."""
    batch_answers: int = 1000
    """Repeats that are answered, and rows ended by sweeps that are announced, with one batch."""
    linger: float = 0.01
    """Seconds to wait for a batch to fill: a statement, a publish and an ack for each row alone would cost seven times
    as much. No browser waits for the row. 0: do not wait."""
    linger_rows: int = 100
    """With this many rows the writer does not wait for more."""
    frames_first: float = 0.5
    """Seconds for which rows wait at most while a push to everyone is sent: frames are what its users wait for."""
    frames_look: float = 0.005
    """Seconds between looks whether it is sent."""
    aside_first: float = 0.1
    """Seconds until a row that could not be written is tried again; doubled from there."""
    aside_most: float = 30.0
    """Seconds between two such tries, at most."""
    aside_many: int = 1000
    """With more rows set aside than this nothing is taken: so many failures are not the fault of single rows."""
    replace_rows: int = 500
    """Collapse keys, and rows ended for them, in one statement."""
    replace_tries: int = 3
    """Tries to end replaced rows before the rest is left for the next second."""
    replace_wait: float = 0.02
    """Seconds between those tries."""
    fallback_wait: float = 5.0
    """Seconds until a fallback that the broker has not confirmed is tried again."""
    rest: float = 30.0
    """Seconds before a row is paid again whose debt was paid but could not be cleared; doubled each time."""
    late_max: int = 100_000
    """Late proofs, and differences, that may wait to be noted; beyond it the oldest are discarded."""


class MailboxBounds(NamedTuple):
    """How kept pushes are read, ended and recalled."""

    read_sessions: int = 50
    """Sessions whose pages are read in one statement."""
    read_rows: int = 1000
    """Rows of one such statement, which its sessions share."""
    page_rows: int = 200
    """The most rows for one session; more would keep others waiting."""
    page_rows_least: int = 20
    """The least rows for one session, however many share the statement."""
    read_bytes: int = 4 * 1024 * 1024
    """Bytes of data of one such statement, which its sessions share."""
    page_bytes: int = 256 * 1024
    """The most bytes for one session."""
    page_bytes_least: int = 64 * 1024
    """The least bytes for one session."""
    postponed: float = 30.0
    """Seconds until a page is tried again that could not be read while the database was up."""
    skew: int = 60_000_000
    """Microseconds by which the clock of another node may be ahead: pages reach that much further."""
    slack: int = 10_000_000
    """A resume begins this many microseconds before the push last seen: rows are not committed in order."""
    measured_share: int = 100
    """A mailbox is measured at once when it has grown by one part in so many of a bound."""
    measured_after: float = 10.0
    """Seconds after its first growth when it is measured in any case."""
    growth_users: int = 50_000
    """Users whose growth is remembered; beyond it the one whose growth began first is left to the patrol."""
    sweep_statements: int = 20
    """Statements of one kind in one sweep; the rest waits for the next second."""
    trim_users: int = 20
    """Mailboxes that one statement measures."""
    patrol_users: int = 20
    """Mailboxes that the patrol measures each second, whether they have grown or not."""
    recall_tries: int = 5
    """Tries of a recall while other transactions lock rows that it names."""
    recall_wait: float = 0.1
    """Seconds between those tries."""


class TakingBounds(NamedTuple):
    """How messages are taken, and how pushes that came before are looked up."""

    batch: int = 200
    """Messages taken together: their pushes to one session are handed over in one write."""
    suspect_attempts: int = 5
    """From this delivery count on a message is taken and handled alone. If it kills the process, its neighbours must
    not be lost with it, and their deliveries must not be counted with its own."""
    in_hand: int = 50_000
    """Pushes and answers in memory at once, over which no more messages are taken."""
    turn: int = 25
    """What the turn of one tenant is worth where tenants share the bridge, in pushes to one user."""
    shared_batch: int = 50
    """Messages taken together while there are several: who comes next waits until these are taken."""
    behind: int = 100
    """So many messages that arrived since the last batch mean that more are on the way, and others among them:"""
    behind_batch: int = 10
    """then no more than this are taken together, so that these are read first."""
    shared_window: int = 200
    """Messages of one tenant that may be taken and not answered meanwhile: rows and receipts of who comes next wait
    behind theirs."""
    shared_ticks: int = 20
    """Tenths of a second for which these hold after there were several."""
    answers: int = 10_000
    """With more repeats than this waiting to be answered, no more rows are read for others."""
    yield_every: int = 250
    """Pushes taken before the event loop gets a turn: more than most batches have."""
    slice_seconds: float = 0.008
    """Seconds after which the event loop gets a turn in any case."""
    crowd_slice: float = 0.0003
    """The same while a push to a crowd is taken: all others get their turn in between."""
    crowd_turn: float = 1.0
    """Seconds after which a push to a crowd is taken though more than half of what may be in hand is."""
    lookup_rows: int = 1000
    """Rows that one statement looks for."""
    lookup_retry: float = 1.0
    """Seconds until a look-up that failed alone is tried again: a push that may have come before must not be sent
    without it."""
    ids_rows: int = 20_000
    """Rows of the log that one page of known ids reads; fewer while that takes too long."""
    ids_rows_least: int = 100
    """The least of them: when so few fail, the log can't be read."""
    ids_at_once: int = 2_000
    """Known ids that are added before the event loop gets a turn."""
    ids_retry: float = 1.0
    """Seconds between tries to read known ids while the log can't be read."""


class ScheduleBounds(NamedTuple):
    """How scheduled pushes are written, and published again."""

    add_rows: int = 500
    """Entries in one statement that writes them."""
    add_bytes: int = 4 * 1024 * 1024
    """Bytes of their bodies after which a statement ends."""
    add_first: float = 0.1
    """Seconds until an entry that could not be written is tried again; doubled from there."""
    add_most: float = 30.0
    """Seconds between two such tries, at most."""
    claim_rows: int = 500
    """Entries that are claimed, and published, at a time."""
    claim_bytes: int = 4 * 1024 * 1024
    """Bytes of their bodies, likewise."""
    look_most: float = 0.4
    """Seconds between two looks for what is due, at most: a push that is scheduled for the next moment may be written
    by any node."""
    look_least: float = 0.05
    """Seconds between two looks that find little, at least."""
    rest: float = 2.0
    """Seconds until the next look after the broker has not confirmed something."""


class Bounds(NamedTuple):
    """All of them."""

    statements: StatementBounds = StatementBounds()
    settlement: SettlementBounds = SettlementBounds()
    mailbox: MailboxBounds = MailboxBounds()
    taking: TakingBounds = TakingBounds()
    schedule: ScheduleBounds = ScheduleBounds()
