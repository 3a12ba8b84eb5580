"""Check that requests can be spread over as many partitions as the setting says, without changing anything."""

from __future__ import annotations

import aio_pika
from aiormq.exceptions import ChannelAccessRefused

from bridge.adapters.amqp.connection import STEP_TIMEOUT, border, channel, close_channel, look_at, opened
from bridge.adapters.amqp.spread import (
    KINDS,
    SPREAD,
    exchange_is_there,
    is_there,
    other_number,
    plugin_missing,
    waiting,
)
from bridge.adapters.amqp.topology import REQUESTS, DeclareMode, requests_queue
from bridge.adapters.finding import Finding
from bridge.core.errors import BrokerUnavailable


async def findings(
    url: str, connection: aio_pika.Connection, partitions: int, mode: DeclareMode
) -> list[Finding]:
    """What is wrong. A connection of its own is used to ask for an exchange type: some brokers end it over one that
    they do not know. Raises BrokerUnavailable."""
    if problem := await other_number(connection, partitions):
        return [Finding("fail", "partitions", problem)]
    if partitions == 1:
        return []
    found = []
    made = await is_there(connection, requests_queue(1))
    if not made and await is_there(connection, REQUESTS):
        low = await channel(connection, confirms=False)
        declared = await look_at(low, REQUESTS)
        await close_channel(low)
        if problem := waiting(declared.message_count or 0, declared.consumer_count or 0):
            found.append(Finding("fail", "partitions", problem))
    if await exchange_is_there(connection):
        return found
    if made and mode is DeclareMode.ACTIVE:
        words = f"exchange {SPREAD} is missing, so pushes reach no queue: each bridge declares it when it connects"
        found.append(Finding("fail", "partitions", words))
    if mode is DeclareMode.PASSIVE:
        return [*found, Finding("fail", "partitions", f"exchange {SPREAD} is missing")]
    refused = [await _refused(url, kind) for kind in KINDS]
    if all(refused):
        found.append(Finding("fail", "partitions", refused[0]))
    return found


async def _refused(url: str, kind: str) -> str:
    """Why an exchange of this type can't be declared; empty where it can."""
    try:
        async with opened(url, "bridge check", lambda events: None, lambda cause: None) as (connection, _):
            low = await channel(connection, confirms=False)
            async with border(f"declare exchange {SPREAD}", STEP_TIMEOUT):
                # In vain: an alternate exchange is named by a text.
                await low.exchange_declare(
                    SPREAD, exchange_type=kind, durable=True, arguments={"alternate-exchange": 1}
                )
    except BrokerUnavailable as refused:
        if plugin_missing(kind, refused.cause):
            return plugin_missing(KINDS[0], refused.cause)
        if isinstance(refused.__cause__, ChannelAccessRefused):
            return f"exchange {SPREAD} is missing, and this user may not declare it"
    return ""
