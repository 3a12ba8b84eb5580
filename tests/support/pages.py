"""A page that stays connected as docs/clients.md says: it comes back, resumes, and leaves out what it has seen."""

from __future__ import annotations

import asyncio
import json
import random
import ssl

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.support.bridges import token
from tests.support.clients import client

FIRST_WAIT, LONGEST_WAIT = 0.5, 4.0
"""Seconds before it comes back: doubled from the first to the longest, each with a random part of half of it."""


class Page:
    """One page of a user. It acks every push."""

    def __init__(self, user: str, port: int, tls: ssl.SSLContext, host: str) -> None:
        self.user = user
        self.seen: list[str] = []
        """Ids of pushes, each once, in the order in which they came."""
        self.opened = 0
        """How often it had a session."""
        self.refused = 0
        """Tries that did not get as far."""
        self._port = port
        self._tls = tls
        self._host = host
        self._wait = 0.0
        self._last = ""

    async def stay(self) -> None:
        """Be connected, until cancelled."""
        tries = 0
        while True:
            self._wait, opened = 0.0, self.opened
            try:
                await self._session()
            except (OSError, EOFError, InvalidHandshake):
                self.refused += 1
            except ConnectionClosed:
                pass
            tries = 0 if self.opened > opened else tries + 1
            longest = min(LONGEST_WAIT, FIRST_WAIT * 2**tries)
            await asyncio.sleep(self._wait + longest * random.uniform(0.5, 1.0))

    async def _session(self) -> None:
        path = f"/ws?last={self._last}" if self._last else "/ws"
        offered = ["bridge.v1.json", f"bridge.token.{token(self.user)}"]
        async with client(
            self._port, path=path, subprotocols=offered, tls=self._tls, name=self._host
        ) as opened:
            async for message in opened.connection:
                frame = json.loads(message)
                match frame["type"]:
                    case "welcome":
                        self.opened += 1
                    case "bye":
                        self._wait = frame["retry_after"]
                    case "push":
                        if frame["id"] not in self.seen:
                            self.seen.append(frame["id"])
                        self._last = frame["id"]
                        await opened.send_json({"type": "ack", "id": frame["id"]})
