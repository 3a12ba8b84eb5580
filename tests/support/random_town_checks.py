"""What must be true after a random story of several nodes."""

from __future__ import annotations

from collections import Counter

from bridge.core.contract.letters import Word
from bridge.core.inflight.inflight import MICRO
from bridge.core.model.outcomes import DELIVERED, Outcome
from bridge.core.model.rows import Row, RowKey
from tests.support.random_town import SHOWN_MOST, Story


def wrong_of(story: Story) -> list[str]:
    """What is not as it must be, in words."""
    return [
        *wrong_rows(story),
        *wrong_answers(story),
        *wrong_screens(story),
        *missed(story),
        *missed_since(story),
        *left_over(story),
    ]


def wrong_rows(story: Story) -> list[str]:
    wrong = []
    rows = story.made.store.rows
    wanted = {RowKey("", name, user) for name, users in story.users.items() for user in users}
    wrong += [f"no row: {key}" for key in wanted - rows.keys()]
    wrong += [f"a row of nothing: {key}" for key in rows.keys() - wanted]
    wrong += [f"kept, and its user was there: {key.push_id} {key.user}" for key in story.unended]
    for key in wanted & rows.keys():
        wrong += wrong_row(story, rows[key])
    return wrong


def wrong_row(story: Story, row: Row) -> list[str]:
    key = row.key
    name, user = key.push_id, key.user
    pair = (name, user)
    what = f"{name} {user} {row.outcome}/{row.reason} {story.pushes[name]}"
    if not row.final:
        return [f"not final: {what}"]
    ended = row.finished_at or 0.0
    wrong = []
    if row.outcome is Outcome.RECEIVED and pair not in story.proven:
        wrong.append(f"nobody has received it: {what}")
    if row.outcome is Outcome.ACKED and pair not in story.acked:
        wrong.append(f"nobody has acked it: {what}")
    if row.outcome is Outcome.WRITTEN and not any(
        device.user == user and name in [n for _, n in device.shown] for device in story.gone + story.devices
    ):
        wrong.append(f"nobody was shown it: {what}")
    confirm = story.pushes[name]["confirm"]
    if row.outcome not in DELIVERED and row.outcome not in (Outcome.RECALLED, Outcome.SUPERSEDED):
        for word in (Word.RECEIVED, Word.ACKED, Word.HANDED)[: 3 if confirm == "written" else 2]:
            at = story.reported.get((*pair, word))
            if at is not None and at < ended:
                wrong.append(f"{word.name} was reported {ended - at:.3f} s before its end: {what}")
        for device in story.gone + story.devices:
            at = device.answered.get(name) if device.user == user else None
            if story.houses.index(device.house) in story.dead:
                continue
            slack = 2.0 if device.house is not story.houses[0] else 0.0
            at = at if at is None or not slack else max(at, story.healed) + slack
            if at is not None and at < ended and not (slack and (story.dropped or row.expires_at is None)):
                wrong.append(f"proven at {device.peer.session_id} before its end: {what}")
    if row.outcome is Outcome.EXPIRED and (row.expires_at or 0.0) > story.healed + 16:
        wrong.append(f"expired though its user was there: {what}")
    return wrong


def wrong_answers(story: Story) -> list[str]:
    wrong = []
    a = story.houses[0]
    if sorted(map(str, a.acks.acked)) != sorted(map(str, story.tokens)):
        wrong.append(f"acked {len(a.acks.acked)} of {len(story.tokens)}, {len(set(a.acks.acked))} different")
    count: dict[RowKey, int] = {}
    announced: dict[RowKey, int] = {}
    for house in story.houses:
        for receipt in house.publisher.sent:
            if receipt.row.final:
                key = receipt.row.key
                count[key] = count.get(key, 0) + len(receipt.replies)
                announced[key] = announced.get(key, 0) + receipt.announce
                have = story.made.store.rows.get(key)
                if have is not None and have.outcome is not receipt.row.outcome:
                    wrong.append(f"the receipt says {receipt.row.outcome}, the row {have.outcome}: {key}")
    for key in story.made.store.rows:
        if (count.get(key), announced.get(key)) != (1, 1):
            wrong.append(f"{count.get(key)} receipts, announced {announced.get(key)}: {key}")
    for house in story.houses:
        wrong += [f"error: {error!r} in {where}" for error, where in house.errors.seen]
    return wrong


def wrong_screens(story: Story) -> list[str]:
    wrong = []
    rows = story.made.store.rows
    for device in story.gone + story.devices:
        times = Counter(name for _, name in device.shown)
        wrong += [f"{name} was shown {n} times" for name, n in times.items() if n > SHOWN_MOST]
        first: set[str] = set()
        highest, of = 0, ""
        for _, name in device.shown:
            row = rows.get(RowKey("", name, device.user))
            session = device.peer.session_id
            if row is None:
                wrong.append(f"{session} was shown {name}, which is not for it")
                continue
            if name in first:
                continue
            first.add(name)
            if row.expires_at is None:
                continue
            if row.position < highest and not (story.lossy or story.slow or device.after):
                wrong.append(f"{session} of {device.user} was shown {name} after {of}")
            if row.position > highest:
                highest, of = row.position, name
    return wrong


def missed(story: Story) -> list[str]:
    """Who was there when a push was taken, and stayed, has been shown it."""
    if story.lossy or story.dropped:
        return []
    wrong = []
    for name, devices in story.there.items():
        push = story.pushes[name]
        if name in story.recalled or "collapse_key" in push or "session" in str(push["to"]):
            continue
        for device in devices:
            row = story.made.store.rows.get(RowKey("", name, device.user))
            if device not in story.stayed or row is None or row.outcome not in DELIVERED:
                continue
            if name not in [shown for _, shown in device.shown]:
                wrong.append(f"{device.peer.session_id} of {device.user} has missed {name}")
    return wrong


def missed_since(story: Story) -> list[str]:
    """Who has resumed, and stayed, and was never told otherwise, has been shown all that was delivered since, unless a
    newer one has its collapse key."""
    wrong = []
    rows = story.made.store.rows
    for device in story.stayed:
        since = rows.get(RowKey("", device.since or "", device.user))
        welcomes = [f.payload for f in device.peer.socket.frames if b'"type":"welcome"' in f.payload]
        if since is None or not all(b'"complete":true' in welcome for welcome in welcomes):
            continue
        position = since.position or round(since.taken_at * MICRO)
        shown = {name for _, name in device.shown}
        for key, row in rows.items():
            name = key.push_id
            if (
                key.user == device.user
                and row.expires_at is not None
                and row.position > position
                and row.outcome in DELIVERED
                and row.expires_at > story.healed + 16
                and name not in shown | story.recalled
                and not replaced(story, key)
                and "session" not in str(story.pushes[name]["to"])
            ):
                wrong.append(f"{device.peer.session_id} of {device.user} has resumed and missed {name}")
    return wrong


def replaced(story: Story, key: RowKey) -> bool:
    """Whether a newer push to this user has its collapse key."""
    names = [n for n, push in story.pushes.items() if "collapse_key" in push and key.user in story.users[n]]
    return key.push_id in names[:-1]


def left_over(story: Story) -> list[str]:
    wrong = []
    for n, house in enumerate(story.houses):
        if n in story.dead:
            continue
        core = house.core
        hosting, forwards = core.from_nodes._hosting, core.cluster.forwards
        sizes = {
            "unheard": len(hosting._unheard),
            "busy": house.inflight.busy,
            "post": core.cluster.post.waiting,
            "lines": len(core.cluster.post._waiting),
            "asked": len(core.router._asked),
            "unrouted": len(core.router._unrouted),
            "behind": len(core.router.behind),
            "rings": len(core.cluster.ringing._unheard),
            "grown": len(core.cluster.ringing._grown),
            "young": sum(not f.ended for f in house.inflight._deadlines._young),
        }
        if not (story.lossy or story.dropped or story.dead or story.unsure):
            # Otherwise what nobody reports of any more is remembered, up to a bound.
            sizes |= {
                "guests": len(hosting._guests),
                "resting": house.inflight.resting,
                "out": len(forwards),
                "silent": len(forwards._silent),
                "since": sum(len(o.since) for o in forwards._owed.values()),
            }
        wrong += [f"left at {'abc'[n]}: {name} {size}" for name, size in sizes.items() if size]
    return wrong
