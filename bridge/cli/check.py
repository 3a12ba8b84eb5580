"""`bridge check`: would `bridge serve` work with these settings? A line for each part; it leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

from bridge.adapters.finding import Finding
from bridge.addresses import redacted
from bridge.config import Settings, env_name, misspelt_variables
from bridge.core.errors import (
    BridgeError,
    BrokerUnavailable,
    DatabaseUnsuitable,
    SettingsError,
    StoreUnavailable,
)
from bridge.core.redaction import redact

FAILED, USAGE, UNREACHABLE = 1, 2, 3
PLUGIN_SECONDS: Final = 10.0
"""Seconds to enter a plug-in and leave it again."""
ASK_SECONDS: Final = 3.0
"""Seconds to ask who has one of our ports."""


def settings_are_wrong(error: SettingsError) -> int:
    """Print what is wrong with the settings; without them nothing else can be checked."""
    _tell(Finding("fail", "settings", problem) for problem in str(error).splitlines())
    return USAGE


async def check(settings: Settings) -> int:
    """Check everything that `serve` needs; the exit code is that of the worst line."""
    nodes = settings.nodes
    names = f"node {nodes[0]}" if len(nodes) == 1 else f"nodes {nodes[0]} to {nodes[-1]}"
    words = f"{names}, delivery log {','.join(settings.delivery_log)}"
    _tell([Finding("ok", "settings", words)])
    _tell(
        Finding("warn", "settings", f"{name} is no setting; {meant} was probably meant")
        for name, meant in misspelt_variables(os.environ).items()
    )
    if settings.jwt_jwks_url:
        _tell(await _keys(settings.jwt_jwks_url))
    if settings.connect_url:
        _tell([await _hook(settings)])
    ports, runs = await _ports(settings)
    codes = [USAGE * _tell(await _plugins(settings)), USAGE * _tell(ports)]
    codes.append(await _check_broker(settings, runs))
    if settings.uses_postgres:
        codes.append(await _check_database(settings))
    else:
        _tell([Finding("ok", "database", "not used: the rows are kept in memory")])
    return max(codes)


def _tell(findings: Iterable[tuple[str, str, str]]) -> bool:
    """Print a line for each (level, part, words); returns whether one of them is a failure."""
    failed = False
    for level, what, words in findings:
        print(f"{level:<5} {what:<9} {redact(' '.join(words.split()))}", flush=True)
        failed = failed or level == "fail"
    return failed


# --- keys ------------------------------------------------------------------------------------------------


async def _keys(url: str) -> list[Finding]:
    """Fetch the keys that check tokens. `serve` starts without them, so what is wrong is a warning."""
    from bridge.adapters.jwks import fetch
    from bridge.adapters.keys import read_jwks

    setting = env_name("jwt_jwks_url")
    try:
        keys, problems = read_jwks((await fetch(url)).text)
    except (BridgeError, ValueError) as error:
        return [Finding("warn", "keys", f"{setting}: {error}")]
    found = [Finding("warn", "keys", f"{setting}: ignored: {problem}") for problem in problems]
    usable = ", ".join(f"{key.algorithm} {key.kid or 'without kid'}" for key in keys)
    if not keys:
        return [*found, Finding("warn", "keys", f"{setting}: there is no key that can be used")]
    return [*found, Finding("ok", "keys", f"{len(keys)} fetched: {usable}")]


# --- the connect hook ------------------------------------------------------------------------------------


async def _hook(settings: Settings) -> Finding:
    """Ask it about a client that shows nothing. `serve` starts without it, so what is wrong is a warning."""
    from bridge.adapters.connect_hook import connect_hook
    from bridge.core.contract.connecting import question
    from bridge.core.model.sessions import Handshake

    setting, url = env_name("connect_url"), settings.connect_url.get_secret_value()
    nobody = question(Handshake("/ws", {}, None, None, ()), settings.node)
    try:
        async with connect_hook(url, seconds=settings.connect_timeout, at_once=1) as hook:
            status = (await hook.ask(nobody)).status
    except BridgeError as error:
        return Finding("warn", "connect", f"{setting}: {error}")
    if status == 200:
        return Finding(
            "warn", "connect", f"{setting}: it lets in a client without a cookie or any other header"
        )
    if status not in (401, 403):
        return Finding(
            "warn", "connect", f"{setting}: it answered with {status}, and 200, 401 or 403 is expected"
        )
    return Finding("ok", "connect", f"it answers, and refuses who shows nothing ({status})")


# --- plug-ins --------------------------------------------------------------------------------------------


async def _plugins(settings: Settings) -> list[Finding]:
    """Make each plug-in as `serve` does, enter it, and leave it at once."""
    from bridge.adapters import plugins

    found, names = [], []
    loads: list[tuple[Callable[[str], object], str, str]] = [
        (plugins.load_hooks, spec, "BRIDGE_HOOKS") for spec in settings.hooks
    ]
    loads += [
        (plugins.load_delivery_log, spec, "BRIDGE_DELIVERY_LOG")
        for spec in settings.delivery_log
        if spec not in ("postgres", "stdout")
    ]
    loads += [
        (plugins.load_error_handler, spec, "BRIDGE_ERROR_HANDLER")
        for spec in [settings.error_handler]
        if spec != "log"
    ]
    for load, spec, setting in loads:
        left = _Left()
        try:
            async with asyncio.timeout(PLUGIN_SECONDS), AsyncExitStack() as stack:
                await plugins.enter(stack, load(spec), spec, setting, left)
        except BridgeError as error:
            found.append(Finding("fail", "plug-ins", str(error)))
        except TimeoutError:
            words = f"{setting}: {spec}: entering and leaving it took over {PLUGIN_SECONDS:g} s"
            found.append(Finding("fail", "plug-ins", words))
        else:
            names.append(spec)
        found += [
            Finding("warn", "plug-ins", f"{setting}: {spec}: leaving it failed: {e!r}") for e in left.errors
        ]
    if names:
        found.append(Finding("ok", "plug-ins", f"{', '.join(names)}: made, entered and left"))
    return found


class _Left:
    """Keeps what a plug-in raises when it is left, which would not stop `serve` from working."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def handle(self, error: BaseException, where: str, facts: Mapping[str, object]) -> None:
        """See the ErrorHandler port."""
        self.errors.append(error)


# --- ports -----------------------------------------------------------------------------------------------


async def _ports(settings: Settings) -> tuple[list[Finding], bool]:
    """What is wrong with the ports of `serve`, and whether this node runs already: then it may have them."""
    found = []
    runs = False
    said: dict[str, Any] | None = None
    for setting, host, port in (
        ("BRIDGE_WS_PORT", settings.ws_host, settings.ws_port),
        ("BRIDGE_OPS_PORT", settings.ops_host, settings.ops_port),
    ):
        problem = await _cannot_listen(host, port)
        if problem is None:
            continue
        if problem.errno == errno.EADDRINUSE:
            said = await _who_serves(settings) if said is None else said
            ours = said.get("node") == settings.node
            if ours and (setting == "BRIDGE_OPS_PORT" or said.get("ws_port") == port):
                found.append(Finding("ok", "ports", f"{port} is in use by node {settings.node}, which runs"))
                runs = True
                continue
            mend = f"`ss -ltnp 'sport = :{port}'` names who has it; end that, or choose another {setting}"
        else:
            mend = f"choose another {setting.replace('PORT', 'HOST')} or {setting}"
        words = f"{setting}: cannot listen on {host}:{port}: {problem.strerror or problem}: {mend}"
        found.append(Finding("fail", "ports", words))
    return found or [Finding("ok", "ports", f"{settings.ws_port} and {settings.ops_port} are free")], runs


async def _cannot_listen(host: str, port: int) -> OSError | None:
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)
    except OSError as error:
        return error
    server.close()
    await server.wait_closed()
    return None


async def _who_serves(settings: Settings) -> dict[str, Any]:
    """The status of a bridge on the ops port; empty if none answers."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.ops_host, settings.ops_host)
    token = _ops_secret(settings)
    request = "GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    request += f"Authorization: Bearer {token}\r\n\r\n" if token else "\r\n"
    try:
        async with asyncio.timeout(ASK_SECONDS):
            reader, writer = await asyncio.open_connection(host, settings.ops_port)
            try:
                writer.write(request.encode())
                _, _, body = (await reader.read(1 << 20)).partition(b"\r\n\r\n")
                while more := await reader.read(1 << 20):
                    body += more
            finally:
                writer.close()
        said = json.loads(body)
    except (OSError, TimeoutError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _ops_secret(settings: Settings) -> str:
    """A secret that may read at the ops port; empty if it asks for none."""
    from bridge.adapters.credentials import Scope, read_entries

    if token := settings.ops_token.get_secret_value():
        return token
    entries = read_entries(settings.ops_credentials) if settings.ops_credentials else ()
    return next((e.secret for e in entries if e.credential().allows(Scope.READ)), "")


# --- broker and database ---------------------------------------------------------------------------------


async def _check_broker(settings: Settings, runs: bool) -> int:
    from bridge.adapters.amqp import check as amqp_check
    from bridge.adapters.amqp import excess as amqp_excess
    from bridge.adapters.amqp.topology import FALLBACK, INBOUND, OUTCOMES, SESSIONS, DeclareMode

    where = redacted(settings.amqp_url)
    try:
        found = await amqp_check.findings(
            settings.amqp_url,
            DeclareMode(settings.declare),
            where,
            partitions=settings.partitions,
            told=[
                INBOUND,
                *([OUTCOMES] if settings.outcome_events else []),
                *([FALLBACK] if settings.uses_postgres else []),
                *([SESSIONS] if settings.session_events and settings.uses_postgres else []),
            ],
            runs=runs,
        )
        found += await amqp_excess.findings(settings.amqp_url, DeclareMode(settings.declare))
    except BrokerUnavailable as error:
        _tell([Finding("fail", "broker", f"{where}: {error.cause}")])
        return UNREACHABLE
    return FAILED * _tell(found)


async def _check_database(settings: Settings) -> int:
    from bridge.adapters.postgres import migrate
    from bridge.adapters.postgres.limits import room_for

    where = redacted(settings.postgres_dsn)
    try:
        lines = migrate.status(settings.postgres_dsn)
    except DatabaseUnsuitable as error:
        _tell([Finding("fail", "database", str(error))])
        # If rights are missing, this says which.
        await _check_surroundings(settings, where)
        return FAILED
    except StoreUnavailable as error:
        _tell([Finding("fail", "database", f"{where}: {error.cause}{room_for(error.cause)}")])
        return UNREACHABLE
    except BridgeError as error:
        _tell([Finding("ok", "database", where), Finding("fail", "schema", str(error))])
        return FAILED
    missing = sum(1 for line in lines if line.applied_at is None)
    if missing:
        words = f"{missing} of {len(lines)} migrations are missing: run `bridge db upgrade`"
        _tell([Finding("ok", "database", where), Finding("fail", "schema", words)])
        return FAILED
    version = max(line.version for line in lines)
    schema = Finding("ok", "schema", f"version {version}")
    if version > migrate.WANTED_VERSION:
        schema = Finding("warn", "schema", migrate.ahead(version))
    _tell([Finding("ok", "database", where), schema])
    return await _check_surroundings(settings, where)


async def _check_surroundings(settings: Settings, where: str) -> int:
    from bridge.adapters.postgres import check as postgres_check
    from bridge.adapters.postgres import excess as postgres_excess

    try:
        found = await postgres_check.findings(settings.postgres_dsn, settings.nodes)
        return FAILED * _tell([*found, *await postgres_excess.findings(settings.postgres_dsn)])
    except DatabaseUnsuitable:
        return FAILED
    except StoreUnavailable as error:
        _tell([Finding("fail", "database", f"{where}: {error.cause}")])
        return UNREACHABLE
