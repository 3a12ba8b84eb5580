"""The scripts of deploy/ that make roles and users, run on private servers under names of a test's own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import LiteralString, NamedTuple
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import conninfo, sql

from bridge.adapters.postgres import migrate
from bridge.adapters.postgres import rights as postgres_rights
from bridge.devservers import Servers
from bridge.devservers.postgres import PrivatePostgres
from bridge.devservers.rabbit import PrivateRabbit

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
PASSWORD = "of-a-role-in-tests"
ROLES = ("owner", "app", "analyst")
USERS = ("publisher", "bridge", "operator")


class Databases(NamedTuple):
    """The DSNs of the roles in one database, and of two analysts."""

    admin: str
    owner: str
    app: str
    of_shop: str
    """An analyst of the tenant `shop`, by a row of its own."""
    of_none: str
    """An analyst without a tenant."""
    names: dict[str, str]
    """The names of the roles, by what they are for."""


class Urls(NamedTuple):
    """The AMQP URLs of the users in one vhost."""

    admin: str
    publisher: str
    bridge: str
    operator: str


def psql(servers: Servers, dsn: str, script: str, **variables: str) -> None:
    """Run a script of deploy/postgres, as its head says."""
    assert isinstance(servers.postgres, PrivatePostgres)
    given = [f"--set={name}={value}" for name, value in variables.items()]
    command = [str(servers.postgres._files.bin / "psql"), "--no-psqlrc", "--quiet", f"--dbname={dsn}"]
    done = subprocess.run(
        [*command, *given, f"--file={DEPLOY / 'postgres' / script}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@contextmanager
def databases(servers: Servers, admin: str) -> Iterator[Databases]:
    """An empty database with all roles and the schema, each script run twice."""
    suffix = conninfo.conninfo_to_dict(admin)["dbname"]
    names = {role: f"{role}_{suffix}" for role in (*ROLES, "of_shop", "of_none")}
    dsn = {role: conninfo.make_conninfo(admin, user=names[role], password=PASSWORD) for role in names}
    given = {role: names[role] for role in ROLES}
    with psycopg.connect(admin, autocommit=True) as conn:
        try:
            for _ in range(2):
                psql(servers, admin, "roles.sql", **given)
            for role in ("owner", "app"):
                conn.execute(_role("alter role {} password {}", names[role]))
            migrate.upgrade(dsn["owner"])
            postgres_rights.grant(dsn["owner"], names["app"])
            for _ in range(2):
                psql(servers, dsn["owner"], "analyst.sql", analyst=names["analyst"])
            for role in ("of_shop", "of_none"):
                conn.execute(_role("create role {} login password {}", names[role]))
                group, member = sql.Identifier(names["analyst"]), sql.Identifier(names[role])
                conn.execute(sql.SQL("grant {} to {}").format(group, member))
            given_to = names["of_shop"]
            conn.execute("insert into analyst.tenant_of values (%s, 'shop'), ('nobody', 'bank')", (given_to,))
            yield Databases(admin, dsn["owner"], dsn["app"], dsn["of_shop"], dsn["of_none"], names)
        finally:
            conn.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = any(%s)",
                (list(names.values()),),
            )
            there = conn.execute(
                "select rolname from pg_roles where rolname = any(%s)", (list(names.values()),)
            )
            for (role,) in there.fetchall():
                conn.execute(sql.SQL("drop owned by {0} cascade; drop role {0}").format(sql.Identifier(role)))


def _role(statement: LiteralString, name: str) -> sql.Composed:
    return sql.SQL(statement).format(sql.Identifier(name), PASSWORD)


@contextmanager
def urls(servers: Servers, admin: str) -> Iterator[Urls]:
    """A vhost with topology and users, the script run twice."""
    assert isinstance(servers.rabbit, PrivateRabbit)
    address = urlsplit(admin)
    vhost = address.path[1:]
    names = {user: f"{user}_{vhost}" for user in USERS}
    variables = {user.upper(): name for user, name in names.items()}
    passwords = {f"{user.upper()}_PASSWORD": PASSWORD for user in USERS}
    try:
        for given in (passwords, {}):
            done = subprocess.run(
                ["sh", DEPLOY / "rabbitmq" / "users.sh", vhost],
                env={
                    **servers.rabbit._env(),
                    "RABBITMQCTL": str(servers.rabbit._files.scripts / "rabbitmqctl"),
                    **variables,
                    **given,
                },
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            assert (done.returncode, done.stderr) == (0, ""), done.stderr
        yield Urls(
            admin,
            *(
                f"amqp://{quote(names[user])}:{PASSWORD}@{address.hostname}:{address.port}/{vhost}"
                for user in USERS
            ),
        )
    finally:
        for name in names.values():
            servers.rabbit.evaluate(f'rabbit_auth_backend_internal:delete_user(<<"{name}">>, <<"test">>).')
