"""What there is of everything now, and what each figure means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Gauges(NamedTuple):
    """How much of everything there is now; `GAUGES` has the help text of each."""

    sessions: int
    users: int
    handshakes_in_progress: int
    strangers: int
    inbox: int
    tenants_waiting: int | None
    """None: tenants do not share the bridge."""
    in_flight: int
    parked: int
    resting: int
    replaying: int
    ids_remembered: int
    ids_whole: bool
    revocations: int
    ledger_waiting: int
    neighbours: int
    forwards: int
    subscriptions: int
    letters_waiting: int
    rows_set_aside: int
    unproven: int
    queued_frames: int
    queued_bytes: int
    rows_waiting: int
    receipts_waiting: int
    ready: bool
    active: bool | None
    """None: not known."""
    broker_up: bool
    database_up: bool | None
    """None: the log is not in Postgres."""
    connect_hook_in_flight: int | None
    """None, here and below: there is no connect hook."""
    connect_hook_breaker_open: bool | None

    def known(self) -> dict[str, float]:
        """Those that are known, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


GAUGES: Final[Mapping[str, str]] = {
    "sessions": "Open WebSocket sessions.",
    "users": "Users with at least one open session.",
    "handshakes_in_progress": "WebSocket handshakes begun and not answered yet.",
    "strangers": "Connections without a session, whose token is to come as the first message.",
    "inbox": "Messages delivered by the broker and not taken yet.",
    "tenants_waiting": "Tenants that such messages are from, counted once each. Absent with BRIDGE_TENANT_SHARE=off.",
    "in_flight": "Pushes on their way, each counted once for each user; those parked are among them.",
    "parked": "Pushes whose proof is overdue: their message is acked and their row is written. Those that have ended "
    "since are still counted for some seconds.",
    "resting": "Kept pushes that were handed to open sessions and are not proven: their row says `stored`.",
    "replaying": "Sessions that are being sent what is kept for their user.",
    "ids_remembered": "Ids in the memory of the last day or two, by which repeats are recognised.",
    "ids_whole": "1 while all ids of the last day are in that memory; 0: every push is looked up before it is sent.",
    "revocations": "Revocations in memory: users and tokens that are refused.",
    "ledger_waiting": "Sessions that the ledger is still to hear of: opened, closed, subscribed, or with a new token.",
    "neighbours": "Other nodes that this one knows: those that live, or have sessions that nobody has ended yet.",
    "subscriptions": "Subscriptions of the open sessions: one for each session and topic.",
    "forwards": "Pushes that other nodes have for their sessions, and whose end is not reported yet.",
    "letters_waiting": "Pushes, reports and rings that wait to be sent to other nodes.",
    "rows_set_aside": "Rows that could not be written with the others, and that are tried again alone.",
    "unproven": "Frames handed to sockets whose proof is awaited.",
    "queued_frames": "Frames that wait because their socket is not writable, or behind what is kept for their user.",
    "queued_bytes": "Bytes of those frames.",
    "rows_waiting": "Rows that wait for the writer or are being written.",
    "receipts_waiting": "Batches of receipts that wait to be published.",
    "ready": "1 while nothing holds the bridge back (the same as /readyz), 0 otherwise.",
    "active": "1 while this node takes the pushes; 0 while it stands by, or has no connection to the broker. Absent "
    "while that is unknown, which happens only where the queue push.taker can't be declared.",
    "broker_up": "1 while the connection is open by which this node takes pushes, or stands by to; 0 otherwise.",
    "database_up": "1 while the database answers and can be written to (asked every second), 0 otherwise; absent "
    "without the log in Postgres.",
    "connect_hook_in_flight": "Requests to the connect hook that are not answered yet. Absent without "
    "BRIDGE_CONNECT_URL.",
    "connect_hook_breaker_open": "1 while the connect hook is left alone, since it has not answered several times in a "
    "row: clients without a token get 503 at once; 0 otherwise. Absent without BRIDGE_CONNECT_URL.",
}
