"""`bridge demo`: the whole story once, and a check that the clients saw what the log says.

It starts servers and the bridge, connects several users (one of them twice, one late), and publishes a file of push
requests over AMQP with confirms. Then it prints what each client received beside the rows of the delivery log.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bridge.cli.demo_check import Line, Person, Request, Sample, Seen, disagreements, requests_of, unfinished
from bridge.cli.dev import HOST, Progress, servers, sigterm_interrupts
from bridge.cli.loop import run_loop
from bridge.config import ENV_FILE, CommonSettings, Settings
from bridge.core.errors import BridgeError, SettingsError

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

SAMPLES: Final = Path(__file__).parent / "demo_requests.jsonl"
SECRET: Final = "a secret for the demo which listens on loopback for a minute"
PROOF_SECONDS: Final = 2.0
"""Seconds; short, since one of the samples waits for an ack that never comes."""
LOOK_EVERY: Final = 0.1
"""Seconds between two looks into the log while pushes are on their way."""
DEADLINE: Final = 30.0
"""Seconds until every push must have ended."""


PEOPLE: Final = (
    Person("alice", "laptop", "bridge.v1.json"),
    Person("alice", "phone", None),
    Person("bob", "laptop", "bridge.v1.json"),
    Person("carol", "phone", None),
)
AWAY: Final = Person("dave", "phone", "bridge.v1.json")
"""Comes back when all others have received their pushes."""


def main(
    settings: CommonSettings,
    *,
    requests: str | None = None,
    root: Path | None = None,
    before_reading: Callable[[str], None] = lambda dsn: None,
) -> int:
    """Run the story; 0 if clients and log agree, 1 if they don't, 130 when interrupted.

    `settings` may name the servers to use. `before_reading` is called with the database's DSN when all pushes have
    ended and the log has not been read yet; there a test makes the log lie, to see that the demo notices.
    """
    say = Progress()
    root = root or Path(ENV_FILE).resolve().parent / ".dev" / "demo"
    messages = read_messages(Path(requests) if requests else SAMPLES, uuid.uuid4().hex[:6])
    with sigterm_interrupts():
        try:
            with servers(settings, root, say) as found:
                story = Settings(
                    amqp_url=found.amqp_url,
                    postgres_dsn=found.postgres_dsn,
                    node="demo",
                    ws_host=HOST,
                    ws_port=0,
                    ops_port=0,
                    jwt_secret=SECRET,
                    confirm_timeout=PROOF_SECONDS,
                    _env_file=None,
                )
                code = run_loop(_story(story, messages, say, before_reading))
                say("stopping the servers")
        except KeyboardInterrupt:
            say("stopped")
            return 130
    return code


def read_messages(path: Path, run: str) -> list[Sample]:
    """The file's lines, each with an id that no other run uses; raises SettingsError."""
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise SettingsError("--requests", f"{path} cannot be read: {error.strerror}") from error
    if not lines:
        raise SettingsError("--requests", f"{path} holds no push requests, one a line")
    return [Sample(f"demo-{run}-{number:02d}", line) for number, line in enumerate(lines, 1)]


async def _story(
    settings: Settings, messages: Sequence[Sample], say: Progress, before_reading: Callable[[str], None]
) -> int:
    from bridge.adapters.amqp.producer import Producer
    from bridge.app import build as app

    async with AsyncExitStack() as stack:
        say("starting the bridge")
        running = await stack.enter_async_context(app.running(settings))
        async with asyncio.timeout(DEADLINE):
            await running.ready()
        clients = [await stack.enter_async_context(_connected(person, running.ws_port)) for person in PEOPLE]
        say(f"{len(clients)} clients are connected, {AWAY.user} is away")
        async with Producer.connect(settings.amqp_url) as producer:
            for message in messages:
                await producer.publish(message.body, push_id=message.id)
        say(f"published {len(messages)} messages, the broker has confirmed each")
        requests = [request for message in messages for request in requests_of(message)]
        await _ended(settings.postgres_dsn, requests, kept=True)
        say(f"every push has ended, or is kept for {AWAY.user}, who comes back now")
        clients.append(await stack.enter_async_context(_connected(AWAY, running.ws_port)))
        await _ended(settings.postgres_dsn, requests)
        say("every push has ended")
        seen = [await client.leave() for client in clients]
        await asyncio.to_thread(before_reading, settings.postgres_dsn)
        log = await asyncio.to_thread(_read_log, settings.postgres_dsn, requests)
    for line in report(messages, seen, log):
        print(line)
    wrong = disagreements(messages, seen, log)
    frames = sum(len(client.frames) for client in seen)
    if wrong:
        print("\nThe clients and the delivery log do NOT agree:", *(f"  {w}" for w in wrong), sep="\n")
        return 1
    print(f"\nThe clients and the delivery log agree: {frames} frames received, {len(log)} rows.")
    return 0


# --- the clients -----------------------------------------------------------------------------------------


class Client:
    """One connected WebSocket that notes what it receives, and acknowledges it if its mode can."""

    def __init__(self, person: Person, connection: ClientConnection) -> None:
        self._person = person
        self._connection = connection
        self._frames: list[tuple[str, Any]] = []
        self._acked: set[str] = set()
        self._reader = asyncio.create_task(self._read(), name=f"demo client {person.user} {person.device}")

    async def _read(self) -> None:
        async for text in self._connection:
            if self._person.subprotocol is None:
                self._frames.append(("", _bare(text)))
                continue
            frame = json.loads(text)
            if frame["type"] == "push":
                self._frames.append((frame["id"], frame["data"]))
                self._acked.add(frame["id"])
                await self._connection.send(json.dumps({"type": "ack", "id": frame["id"]}))

    async def leave(self) -> Seen:
        """Close the connection, read what came before the close, and return what was seen."""
        await self._connection.close()
        await self._reader
        return Seen(self._person, tuple(self._frames), frozenset(self._acked))


@asynccontextmanager
async def _connected(person: Person, port: int) -> AsyncIterator[Client]:
    from websockets.asyncio.client import connect
    from websockets.typing import Subprotocol

    from bridge.adapters.tokens import make_token

    token = make_token(SECRET, person.user, 300)
    async with connect(
        f"ws://{HOST}:{port}/ws",
        additional_headers={"Authorization": f"Bearer {token}"},
        subprotocols=[Subprotocol(person.subprotocol)] if person.subprotocol else None,
        compression=None,
        proxy=None,
    ) as connection:
        client = Client(person, connection)
        try:
            yield client
        finally:
            await client.leave()


def _bare(text: str | bytes) -> Any:
    """The data of a bare frame. A string is sent without quotes, so a frame that is not JSON was a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


# --- the log ---------------------------------------------------------------------------------------------


async def _ended(dsn: str, requests: Sequence[Request], *, kept: bool = False) -> None:
    """Return when every request has its rows and all are final, or `kept`; raises BridgeError at the deadline."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + DEADLINE
    while left := unfinished(requests, await asyncio.to_thread(_read_log, dsn, requests), kept=kept):
        if loop.time() > give_up:
            raise BridgeError(f"after {DEADLINE:g} s these have not ended: {', '.join(left)}")
        await asyncio.sleep(LOOK_EVERY)


def _read_log(dsn: str, requests: Sequence[Request]) -> list[Line]:
    """The rows of these requests, as an analyst would read them."""
    import psycopg

    from bridge.adapters.postgres.conninfo import conninfo_of

    with psycopg.connect(conninfo_of(dsn, "bridge demo", connect_timeout=5)) as conn:
        rows = conn.execute(
            "select push_id, user_id, outcome, reason, final, detail,"
            " extract(epoch from coalesce(proven_at, finished_at) - taken_at)::float8 * 1000"
            " from delivery where push_id = any(%s) order by push_id, user_id",
            ([request.id for request in requests],),
        ).fetchall()
    return [Line(*row) for row in rows]


# --- what is printed -------------------------------------------------------------------------------------


def report(messages: Sequence[Sample], seen: Sequence[Seen], log: Sequence[Line]) -> Iterator[str]:
    """The story for people: what was published, what each client received, what the log says."""
    yield "\nPublished to the exchange `push`:"
    for message in messages:
        yield f"  {message.id}  {_cut(message.body.decode(errors='replace'), 110)}"
    yield "\nReceived:"
    for client in seen:
        mode = "bare mode" if client.person.subprotocol is None else client.person.subprotocol
        yield f"  {client.person.user} ({client.person.device}, {mode})"
        for push_id, data in client.frames:
            yield f"    {push_id or '(just the data)':<17} {_cut(json.dumps(data, ensure_ascii=False), 80)}"
    yield "\nThe delivery log in Postgres:"
    yield f"  {'push_id':<17} {'user_id':<8} {'outcome':<10} {'reason':<13} {'took':>9}  detail"
    for line in log:
        took = "" if line.milliseconds is None else f"{line.milliseconds:.1f} ms"
        yield (
            f"  {line.push_id:<17} {line.user or '-':<8} {line.outcome:<10} {line.reason:<13} {took:>9}"
            f"  {_cut(line.detail or '', 70)}"
        ).rstrip()


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
