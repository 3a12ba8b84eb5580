"""`bridge nodes`: which bridges run with this database."""

from __future__ import annotations

import msgspec

from bridge.config import CommonSettings
from bridge.operator import nodes


async def show_nodes(settings: CommonSettings, *, as_json: bool) -> int:
    """List them; 1 if none lives."""
    found = await nodes.read(settings.postgres_dsn)
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        for line in nodes.tell(found):
            print(line)
    return 0 if any(one.alive for one in found) else 1
