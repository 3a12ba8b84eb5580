"""`bridge who`: what is known of a user."""

from __future__ import annotations

import msgspec

from bridge.config import CommonSettings
from bridge.operator import people


async def who(settings: CommonSettings, user: str, *, as_json: bool) -> int:
    """Tell who a user is to the bridge; 1 if neither the ledger nor the log has anything of them."""
    person = await people.look_up(settings.postgres_dsn, user)
    if as_json:
        print(msgspec.json.encode(person).decode())
    else:
        for line in people.tell(person):
            print(line)
    return 0 if person.known else 1
