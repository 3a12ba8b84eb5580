"""`bridge tail`: print outcomes as they happen."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, cast

from bridge.cli.receipts import receipt_line
from bridge.config import CommonSettings
from bridge.operator.watching import Filter, told_by_receipt


async def tail(settings: CommonSettings, wanted: Filter, *, count: int | None, as_json: bool) -> int:
    """Print wanted outcomes as they come, for ever or until `count` were printed."""
    from bridge.adapters.amqp.producer import outcomes

    seen = 0
    events = cast("AsyncGenerator[dict[str, Any]]", outcomes(settings.amqp_url, wanted.binding_key))
    async with aclosing(events) as receipts:
        async for receipt in receipts:
            if not wanted.fits(told_by_receipt(receipt)):
                continue
            line = json.dumps(receipt, ensure_ascii=False) if as_json else _tail_line(receipt)
            print(line, flush=True)
            seen += 1
            if seen == count:
                break
    return 0


def _tail_line(receipt: Mapping[str, Any]) -> str:
    when = receipt.get("finished_at") or receipt.get("taken_at")
    clock = datetime.fromisoformat(when).astimezone().strftime("%H:%M:%S") if when else "--:--:--"
    return f"{clock}  {receipt_line(receipt)}"
