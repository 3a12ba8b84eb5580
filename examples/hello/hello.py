"""Print each push of a user, and say hello: `python hello.py TOKEN [ADDRESS]` (pip install websockets)."""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

token = sys.argv[1]
address = sys.argv[2] if len(sys.argv) > 2 else "ws://127.0.0.1:8181/ws"


async def main() -> None:
    offer = [Subprotocol("bridge.v1.json"), Subprotocol(f"bridge.token.{token}")]
    async with connect(address, subprotocols=offer) as bridge:
        async for text in bridge:
            frame = json.loads(text)
            match frame["type"]:
                case "welcome":
                    print("welcome", frame["user"], flush=True)
                    hello = {"type": "publish", "event": "hello", "data": "from Python", "ref": 1}
                    await bridge.send(json.dumps(hello))
                case "push":
                    print("push", frame["event"], frame["data"], flush=True)
                case "ok" | "error":
                    print(frame["type"], frame.get("code", ""), flush=True)


asyncio.run(main())
