"""A session host for tests of the WebSocket server: grants by the token, keeps what the server told it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from bridge.core.model.sessions import Claims, CloseReason, Grant, Handshake, Mode, Refusal, Said
from bridge.core.ports.sockets import Frame, Socket
from tests.support.clients import SECONDS


class RecordingSession:
    """Fills the SessionHandle port: one socket, and all that happened to it in order."""

    def __init__(self, host: Host, grant: Grant, socket: Socket) -> None:
        self._host = host
        self.grant = grant
        self.socket = socket
        self.pongs: list[bytes] = []
        self.messages: list[str | bytes] = []
        self.resumes = 0
        self.endings: list[tuple[int, str]] = []
        self.after_the_end = 0
        self.on_message: Callable[[str | bytes], None] | None = None

    def pong(self, payload: bytes) -> None:
        self.pongs.append(payload)
        self._told()

    def became_writable(self) -> None:
        self.resumes += 1
        self._told()

    def message(self, data: str | bytes) -> None:
        self.messages.append(data)
        if self.on_message is not None:
            self.on_message(data)
        self._told()

    def flooded(self) -> None:
        self.socket.close(CloseReason.OVER_LIMIT)
        self._told()

    def closed(self, code: int, reason: str) -> None:
        self._told()
        self.endings.append((code, reason))

    def _told(self) -> None:
        if self.endings:
            self.after_the_end += 1
        self._host.changed()

    def text(self, text: str, ping: bytes | None = None) -> bool:
        """Write one text frame."""
        return self.socket.write((Frame(text.encode()),), ping)

    async def end(self) -> tuple[int, str]:
        """Wait for the end: its code and reason. Fails if it is told twice or anything is told after it."""
        await self._host.until(lambda: self.endings)
        assert (len(self.endings), self.after_the_end) == (1, 0)
        return self.endings[0]


class Host:
    """Fills the SessionHost port. The tokens `refuse-<status>` are refused, every other one is granted; with the token
    `later` it is to come as the first message."""

    def __init__(self) -> None:
        self.handshakes: list[Handshake] = []
        self.sessions: list[RecordingSession] = []
        self.refusals: list[Refusal] = []
        self.heard: list[Said] = []
        """What clients of streams have said; with the key `refused` it counts for nothing."""
        self.ready: tuple[bool, list[str]] = (True, [])
        self.on_open: Callable[[Socket], None] | None = None
        self.held: asyncio.Future[None] | None = None
        """Decisions wait for it where it is there."""
        self.begun = 0
        """Decisions that wait, or waited."""
        self.cancelled = 0
        """Decisions that were given up."""
        self.on_hold: Callable[[], None] | None = None
        self.speaks = (Mode.ENVELOPE.value, Mode.BARE.value)
        self._changed = asyncio.Event()

    def handshake(self, request: Handshake) -> Grant | Refusal | Coroutine[Any, Any, Grant | Refusal]:
        self.handshakes.append(request)
        if self.held is not None and self.on_hold is not None:
            self.on_hold()
        return self._decision(request) if self.held is None else self._later(request, self.held)

    async def _later(self, request: Handshake, held: asyncio.Future[None]) -> Grant | Refusal:
        await self._hold(held)
        return self._decision(request)

    def _decision(self, request: Handshake) -> Grant | Refusal:
        token = request.query.get("token", [""])[0]
        if token.startswith("refuse-"):
            return Refusal(int(token.removeprefix("refuse-")), "test", f"refused with {token[7:]}")
        spoken = next((entry for entry in request.subprotocols if entry in self.speaks), None)
        mode = Mode.SSE if request.path == "/sse" else Mode(spoken) if spoken else Mode.BARE
        claims = None if token == "later" else Claims(user=token or "anybody", expires_at=4e9)
        return Grant(claims, mode, spoken)

    async def _hold(self, held: asyncio.Future[None]) -> None:
        self.begun += 1
        self.changed()
        try:
            await asyncio.shield(held)
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # a host may have to clean up
            self.cancelled += 1
            self.changed()
            raise

    def hold(self) -> asyncio.Future[None]:
        """From now on decisions wait until this is resolved."""
        self.held = asyncio.get_running_loop().create_future()
        return self.held

    def refused(self, refusal: Refusal) -> None:
        self.refusals.append(refusal)
        self.changed()

    def said(self, said: Said) -> Refusal | None:
        self.heard.append(said)
        return Refusal(404, "test", "refused") if said.key == "refused" else None

    def opened(self, grant: Grant, socket: Socket) -> RecordingSession:
        if self.on_open is not None:
            self.on_open(socket)
        seen = RecordingSession(self, grant, socket)
        self.sessions.append(seen)
        self.changed()
        return seen

    def readiness(self) -> tuple[bool, list[str]]:
        return self.ready

    def changed(self) -> None:
        """Something happened: whoever waits looks again."""
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds, looked at whenever the server told something."""
        async with asyncio.timeout(SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def session(self, number: int = 0) -> RecordingSession:
        """The session that was opened as this one."""
        await self.until(lambda: len(self.sessions) > number)
        return self.sessions[number]
