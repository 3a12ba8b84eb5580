"""What the tests run on: private servers, and a fresh database and vhost for each test that asks for one."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import itertools
import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import hypothesis
import psycopg
import pytest
from psycopg import sql

from bridge.adapters import logs
from bridge.adapters.postgres import migrate
from bridge.core import redaction
from bridge.devservers import Servers, ServersInUse, private_servers

# A shell that runs the tests in the background has SIGINT ignored, and every process they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests kill servers and drop databases, so they never touch one that somebody configured.
for _name in [name for name in os.environ if name.startswith("BRIDGE_")]:
    del os.environ[_name]

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

DEV = Path(__file__).resolve().parent.parent / ".dev"
TEMPLATE = "template_upgraded"

_numbers = itertools.count(1)


def _fresh_name() -> str:
    return f"test_{os.getpid()}_{next(_numbers)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several tests with one node id, pytest-xdist runs the first and leaves out the others without a word."""
    double = [node_id for node_id, times in Counter(item.nodeid for item in items).items() if times > 1]
    if double:
        raise pytest.UsageError(f"more than one test is called {', '.join(double)}")


def pytest_collection_finish() -> None:
    """What is imported and collected lives as long as the process, so no collection of garbage need look at it again.
    Tests that must leave no garbage behind make hundreds of those."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_secret_of_another_test() -> Iterator[None]:
    """The secrets that settings tell are the whole process's: a word of one test would be masked in the next."""
    known, pattern = set(redaction._known), redaction._pattern
    yield
    redaction._known.clear()
    redaction._known.update(known)
    redaction._pattern = pattern


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The root logger as it was: the commands set it up for a process of their own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    quiet = {name: logging.getLogger(name).level for name in (*logs.QUIET, *logs.SILENT)}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in quiet.items():
        logging.getLogger(name).setLevel(was)
    logging.captureWarnings(False)


class Databases:
    """Databases on one server: empty ones, and clones of one that was upgraded once."""

    def __init__(self, admin_dsn: str) -> None:
        self._admin_dsn = admin_dsn
        with self._admin() as admin:
            # What an interrupted run left. fsync guards against a power cut of the machine, which no test
            # makes; without it a database takes a tenth of the time.
            admin.execute("alter system set fsync = off")
            admin.execute("select pg_reload_conf()")
            left = admin.execute("select datname from pg_database where datname ~ '^(test|template)_'")
            for (name,) in left.fetchall():
                self._drop(admin, name)
            self._make_template(admin, self._today(admin))

    @contextmanager
    def fresh(self, template: str) -> Iterator[str]:
        """The DSN of a new database; it is dropped at the end, whoever is still connected."""
        name = _fresh_name()
        with self._admin() as admin:
            if template == TEMPLATE and (today := self._today(admin)) != self._made_on:
                # A database's log begins on the day of its upgrade, and the tests want that to be today.
                self._drop(admin, TEMPLATE)
                self._make_template(admin, today)
            self._create(admin, name, template)
        yield self._dsn(name)
        with self._admin() as admin:
            self._drop(admin, name)

    def _make_template(self, admin: psycopg.Connection, today: datetime.date) -> None:
        self._create(admin, TEMPLATE, "template0")
        migrate.upgrade(self._dsn(TEMPLATE))
        self._made_on = today

    @contextmanager
    def _admin(self) -> Iterator[psycopg.Connection]:
        # One connection per use: fault tests take the server away in between.
        with psycopg.connect(self._admin_dsn, autocommit=True) as admin:
            yield admin

    def _dsn(self, database: str) -> str:
        return urlunsplit(urlsplit(self._admin_dsn)._replace(path=f"/{database}"))

    @staticmethod
    def _today(admin: psycopg.Connection) -> datetime.date:
        """The day by the server's clock, as the delivery log counts days."""
        found = admin.execute("select (clock_timestamp() at time zone 'UTC')::date").fetchone()
        assert found is not None
        assert isinstance(found[0], datetime.date)
        return found[0]

    @staticmethod
    def _create(admin: psycopg.Connection, name: str, template: str) -> None:
        names = sql.Identifier(name), sql.Identifier(template)
        admin.execute(sql.SQL("create database {} template {}").format(*names))

    @staticmethod
    def _drop(admin: psycopg.Connection, name: str) -> None:
        admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


@contextmanager
def _fresh_vhost(servers: Servers) -> Iterator[str]:
    name = _fresh_name()
    yield servers.rabbit.create_vhost(name)
    servers.rabbit.delete_vhost(name)


@contextmanager
def _first_free(say: Callable[[str], None], kind: str) -> Iterator[Servers]:
    """Servers in .dev, one set for each run of the suite that is under way at the same time."""
    with ExitStack() as stack:
        yield next(filter(None, (_entered(stack, DEV / f"{kind}-{n}", say) for n in itertools.count(1))))


def _entered(stack: ExitStack, root: Path, say: Callable[[str], None]) -> Servers | None:
    try:
        return stack.enter_context(private_servers(root, say=say, usual_ports=False))
    except ServersInUse:
        return None


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Progress past pytest's capture: the first start may install a server."""
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")

    def write(line: str) -> None:
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(line)

    return write


@pytest.fixture(scope="session")
def servers(say: Callable[[str], None]) -> Iterator[Servers]:
    """RabbitMQ and Postgres for the whole session. Not to be stopped: other tests are on them."""
    with _first_free(say, "test") as running:
        yield running


@pytest.fixture(scope="session")
def databases(servers: Servers) -> Databases:
    return Databases(servers.postgres_dsn)


@pytest.fixture
def database(databases: Databases) -> Iterator[str]:
    """The DSN of a fresh database with the current schema."""
    with databases.fresh(TEMPLATE) as dsn:
        yield dsn


@pytest.fixture
def empty_database(databases: Databases) -> Iterator[str]:
    """The DSN of a fresh database without any schema."""
    with databases.fresh("template0") as dsn:
        yield dsn


@pytest.fixture
def vhost(servers: Servers) -> Iterator[str]:
    """The AMQP URL of a fresh vhost, without any queue."""
    with _fresh_vhost(servers) as url:
        yield url


@pytest.fixture(scope="session")
def _servers_to_kill(say: Callable[[str], None]) -> Iterator[tuple[Servers, Databases]]:
    # Once for all files: idle they cost next to nothing, and a start of RabbitMQ is five seconds of a processor.
    with _first_free(say, "fault") as running:
        yield running, Databases(running.postgres_dsn)


@pytest.fixture
def own_servers(_servers_to_kill: tuple[Servers, Databases]) -> Iterator[Servers]:
    """Servers that a test may stop, kill and pause; its addresses are a fresh vhost and a fresh database.

    After a quorum queue was declared wait a second before the broker is killed: RabbitMQ 3.10 may lose the
    queue's leader for good otherwise.
    """
    servers, databases = _servers_to_kill
    with ExitStack() as stack:
        url = stack.enter_context(_fresh_vhost(servers))
        dsn = stack.enter_context(databases.fresh(TEMPLATE))
        stack.callback(_mend, servers)  # first of all: what follows needs both servers
        yield dataclasses.replace(servers, amqp_url=url, postgres_dsn=dsn)


def _mend(servers: Servers) -> None:
    for server in (servers.rabbit, servers.postgres):
        server.start()
        server.resume()
