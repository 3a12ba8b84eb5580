"""`bridge dev`: private servers and the bridge on this machine, to try it; all stop with Ctrl-C."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from bridge.cli.loop import run_loop
from bridge.cli.tokens import token_for
from bridge.config import DEV_ENV_FILE, ENV_FILE, CommonSettings, Settings, env_name
from bridge.core.contract.patterns import EVERYTHING
from bridge.core.errors import BridgeError
from bridge.devservers import Addresses, find_or_start

if TYPE_CHECKING:
    from types import FrameType

TOKEN_DAYS: Final = 7
HOST: Final = "127.0.0.1"


class Progress:
    """A line for each slow step, with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, step: str) -> None:
        """Print it now."""
        print(f"{self.seconds:5.1f} s  {step}", flush=True)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began


def main(flags: Mapping[str, object], *, user: str) -> int:
    """Serve until Ctrl-C or SIGTERM, then stop what was started; returns the exit code."""
    from bridge.adapters import logs

    say = Progress()
    with sigterm_interrupts():
        root = Path(ENV_FILE).resolve().parent / ".dev"
        settings = dev_settings(flags, root, say)
        logs.setup(
            settings.log_level, settings.log_format, node=settings.node if settings.workers > 1 else ""
        )
        try:
            with servers(settings, root / "servers", say, schema=settings.uses_postgres) as found:
                settings = settings.model_copy(
                    update={"amqp_url": found.amqp_url, "postgres_dsn": found.postgres_dsn}
                )

                def ready(ws_port: int, ops_port: int) -> None:
                    say("ready")
                    print(banner(settings, ws_port, ops_port, user), flush=True)

                with env_file(settings):
                    code = run_loop(_serve(settings, ready), uvloop=settings.uvloop and settings.workers == 1)
                say("stopping")
        except KeyboardInterrupt:
            say("stopped")
            return 130
    say("stopped")
    return code


async def _serve(settings: Settings, ready: Callable[[int, int], None]) -> int:
    """As `bridge serve` does; `ready` is called once, with both ports."""

    def last() -> None:
        # A third signal kills this process. The guard ends the servers, and this removes the file.
        Path(DEV_ENV_FILE).unlink(missing_ok=True)

    if settings.workers > 1:
        from bridge.workers.supervisor import supervise

        # Without restarts at SIGHUP: that comes when the terminal is closed, and then all has to end.
        return await supervise(settings, given(settings), ready=ready, last=last, reloads=False)
    from bridge.app import build as app

    return await app.serve(
        settings, ready=lambda running: ready(running.ws_port, running.ops_port), last=last
    )


def given(settings: Settings) -> dict[str, object]:
    """All that was given or chosen, as another process can read it."""
    values = {name: getattr(settings, name) for name in settings.model_fields_set}
    return {
        "_env_file": None,
        **{
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in values.items()
        },
    }


@contextmanager
def servers(
    settings: CommonSettings, directory: Path, say: Progress, *, schema: bool = True
) -> Iterator[Addresses]:
    """The servers that the settings name, and private ones, with their data in this directory, for those that they
    don't. With `schema` the database has today's."""
    given = settings.model_fields_set
    with find_or_start(
        directory,
        amqp_url=settings.amqp_url if "amqp_url" in given else None,
        postgres_dsn=settings.postgres_dsn if "postgres_dsn" in given else None,
        say=say,
    ) as found:
        if schema:
            upgrade(found.postgres_dsn, say, directory if "postgres_dsn" not in given else None)
        yield found


class StaleData(BridgeError):
    """The data of private servers was made by another version of this program and can't be upgraded."""

    def __init__(self, directory: Path, problem: str) -> None:
        self.directory = directory
        super().__init__(f"{problem}; or begin anew: rm -r {shlex.quote(str(directory))}")


def upgrade(dsn: str, say: Progress, private: Path | None) -> None:
    """Bring the schema up to date. `private`: where the data is, if the server is ours."""
    from bridge.adapters.postgres import migrate

    try:
        applied = migrate.upgrade(dsn)
    except migrate.MigrationChanged as error:
        if private is None:
            raise
        raise StaleData(private, str(error)) from error
    for name in applied:
        say(f"applied {name}")


def dev_settings(flags: Mapping[str, object], root: Path, say: Progress | None = None) -> Settings:
    """The settings for a developer's machine; what the user gave wins over what is chosen here.

    `.dev/env` of another `bridge dev` is ignored. The ports are the usual ones, or the next free ones, and then `say`
    names them.
    """
    say = say or Progress()
    base = {"dev": True, "_env_file": ENV_FILE}
    given = Settings.load({**base, **flags}).model_fields_set
    chosen: dict[str, object] = {"ws_host": HOST, "jwt_secret": kept_secret(root)}
    taken: tuple[int, ...] = ()
    for name, title in (
        ("ws_port", "WebSockets"),
        ("ops_port", "the ops port with the console and the demo page"),
    ):
        if name not in given:
            chosen[name] = usual_or_free(title, Settings.model_fields[name].default, taken, say)
            taken = (int(str(chosen[name])),)
    return Settings.load(
        {**base, **{name: value for name, value in chosen.items() if name not in given}, **flags}
    )


def kept_secret(root: Path) -> str:
    """The secret for dev tokens, made once and kept, so that an open page can reconnect after a restart."""
    path = root / "jwt-secret"
    try:
        kept = path.read_text().strip()
    except FileNotFoundError:
        kept = ""
    if not kept:
        kept = secrets.token_urlsafe(48)
        _write_private(path, kept + "\n")
    return kept


def usual_or_free(title: str, usual: int, taken: tuple[int, ...], say: Progress) -> int:
    """The usual port, or the next free one, which `say` then names."""
    port = free_port(usual, taken)
    if port != usual:
        say(f"port {usual} is in use: {title} are on {port}")
    return port


def free_port(first: int, taken: tuple[int, ...]) -> int:
    """The first port from `first` on that nobody listens on."""
    for port in range(first, first + 1000):
        if port in taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    return 0


@contextmanager
def env_file(settings: CommonSettings) -> Iterator[None]:
    """Let other commands in this directory find the servers until the block ends."""
    path = Path(DEV_ENV_FILE)
    values = {"amqp_url": settings.amqp_url, "postgres_dsn": settings.postgres_dsn}
    if isinstance(settings, Settings):
        values["jwt_secret"] = settings.jwt_secret.get_secret_value()
        values |= {name: str(getattr(settings, name)) for name in ("ws_port", "ops_port")}
    lines = [f"{env_name(name)}='{_escaped(value)}'\n" for name, value in values.items()]
    _write_private(path, "# Written by `bridge dev`, removed when it stops.\n" + "".join(lines))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that `finally` blocks stop the servers."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def banner(settings: Settings, ws_port: int, ops_port: int, user: str) -> str:
    """What a newcomer needs next."""
    token = token_for(settings, user, TOKEN_DAYS * 86400, EVERYTHING)
    push = f'{our_command()} push --user {shlex.quote(user)} --data \'{{"hello": "world"}}\''
    return f"""
  WebSocket   ws://{HOST}:{ws_port}/ws?token=<token>
  console     http://{HOST}:{ops_port}/
  demo page   http://{HOST}:{ops_port}/demo
  token       {token}
              (user {user}, valid for {TOKEN_DAYS} days)

  Open the demo page and connect, then push something from another shell in this directory:

    {push}

  Ctrl-C stops the bridge and its servers.
"""


def our_command() -> str:
    """How to call this program from a shell in this directory."""
    called = Path(sys.argv[0])
    if called.name != "bridge":
        return f"{shlex.quote(sys.executable)} -m bridge.cli"
    found = shutil.which("bridge")
    if found and Path(found).resolve() == called.resolve():
        return "bridge"
    return shlex.quote(os.path.relpath(called))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.replace(path)
