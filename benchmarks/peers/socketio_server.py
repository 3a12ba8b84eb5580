"""A python-socketio server that gets its events from RabbitMQ, as its documentation shows it.

It runs in an environment of its own, with aiohttp and uvloop, and says `ready` when its queue is bound.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import aio_pika
import jwt
import uvloop
from aiohttp import web

PORT = int(os.environ["BRIDGE_WS_PORT"])
SECRET = os.environ["BRIDGE_JWT_SECRET"]
URL = os.environ["BRIDGE_AMQP_URL"]


async def main() -> None:
    """Serve until SIGTERM."""
    import socketio  # type: ignore[import-not-found,unused-ignore] # not among this project's packages

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = socketio.AsyncServer(
        async_mode="aiohttp",
        client_manager=socketio.AsyncAioPikaManager(URL),
        transports=["websocket"],
        cors_allowed_origins="*",
    )

    @server.event  # type: ignore[untyped-decorator,unused-ignore]
    async def connect(sid: str, environ: dict[str, Any], auth: dict[str, Any]) -> None:
        try:
            claims = jwt.decode(
                auth["token"], SECRET, algorithms=["HS256"], options={"require": ["exp", "sub"]}
            )
        except (KeyError, TypeError, jwt.InvalidTokenError) as exc:
            raise socketio.exceptions.ConnectionRefusedError("a valid token is needed") from exc
        await server.enter_room(sid, claims["sub"])

    app = web.Application()
    server.attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", PORT, backlog=4096).start()
    # The server would do this at its first connection; what is emitted before is lost.
    server.manager_initialized = True
    server.manager.initialize()
    await _bound()
    print("ready", flush=True)
    await stop.wait()
    await runner.cleanup()


async def _bound() -> None:
    """Return when the exchange has a queue: a mandatory message is not returned."""
    async with await aio_pika.connect(URL) as connection:
        while True:
            channel = await connection.channel(on_return_raises=True)
            try:
                exchange = await channel.declare_exchange("socketio", aio_pika.ExchangeType.FANOUT)
                await exchange.publish(aio_pika.Message(b'"probe"'), "*", mandatory=True)
                return
            except aio_pika.exceptions.DeliveryError:
                await channel.close()
                await asyncio.sleep(0.05)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main_runner:
        main_runner.run(main())
