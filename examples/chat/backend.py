"""A group chat: what a user says goes on to the topic of their room, to everybody there (see README.md)."""

import asyncio
import json
import os
import uuid

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from page import serve

KEPT = 3600  # seconds for which it waits for those who were in the room and are away


async def hand_on(message: AbstractIncomingMessage, pushes: AbstractExchange) -> None:
    """Push it to the room, with the name that the bridge vouches for. What is said again is the same push."""
    user, room, ref = (message.headers.get(name) for name in ("user", "topic", "ref"))
    said = json.loads(message.body)
    text = said.get("text") if isinstance(said, dict) else None
    if not isinstance(text, str) or len(text) > 2000 or not str(room).startswith("room."):
        return  # what users send is their word: look at it
    once = str(message.message_id) if ref is None else json.dumps([user, ref])
    push = {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, once)),
        "to": {"topic": room},
        "event": "chat.said",
        "data": {"user": user, "text": text},
        "ttl": KEPT,
    }
    await pushes.publish(aio_pika.Message(json.dumps(push).encode(), delivery_mode=2), str(room))


async def listen() -> None:
    """Take one after the other, and wait until the broker has its push: so there is one order for everybody."""
    async with await aio_pika.connect(os.environ["BRIDGE_AMQP_URL"]) as connection:
        channel = await connection.channel()
        await channel.set_qos(100)
        pushes = await channel.get_exchange("push")
        queue = await channel.declare_queue(
            "chat", durable=True, arguments={"x-queue-type": "quorum", "x-single-active-consumer": True}
        )
        await queue.bind("push.inbound", "chat.said")
        async with queue.iterator() as messages:
            async for message in messages:
                async with message.process(requeue=True):
                    await hand_on(message, pushes)


async def main() -> None:
    await serve()
    while True:
        try:
            await listen()
        except (AMQPError, ConnectionError, ChannelInvalidStateError) as error:
            print("the broker is away:", error, flush=True)
        await asyncio.sleep(1)


asyncio.run(main())
