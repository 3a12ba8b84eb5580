"""The tests' own servers with TLS: RabbitMQ gets a second listener, and Postgres takes certificates, for a while."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import psycopg

from benchmarks.ports import reserved_port
from bridge.devservers import Servers
from tests.support.certificates import Authority, Certified

ROLE = "certified"
"""A role of Postgres that logs in with its certificate, and with nothing else."""
SECONDS = 10.0


class Secured(NamedTuple):
    """Servers that ask everybody for a certificate, and what a client needs for them."""

    amqp_port: int
    authority: Authority
    client: Certified

    def amqp(self, url: str, **parameters: object) -> str:
        """The address by TLS of what is at this plain one; with these parameters, or with all that are needed."""
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        asked = parameters or {
            "cafile": self.authority.certificate,
            "certfile": self.client.certificate,
            "keyfile": self.client.key,
        }
        host = f"{user}@127.0.0.1:{self.amqp_port}"
        return urlunsplit(("amqps", host, parts.path, urlencode(asked, quote_via=quote), ""))

    def postgres(self, dsn: str, **parameters: object) -> str:
        """The DSN of this database with the certificate of `ROLE`; `parameters` replace some of it."""
        parts = urlsplit(dsn)
        asked = {
            "sslmode": "verify-full",
            "sslrootcert": self.authority.certificate,
            "sslcert": self.client.certificate,
            "sslkey": self.client.key,
            **parameters,
        }
        return f"postgresql://{ROLE}@{parts.hostname}:{parts.port}{parts.path}?{urlencode(asked)}"


@contextmanager
def secured(servers: Servers, directory: Path) -> Iterator[Secured]:
    """Both servers with TLS for the length of the block. Plain connections work as before."""
    authority = Authority(directory)
    server = authority.sign("servers", "127.0.0.1")
    client = authority.sign(ROLE)
    with _postgres(servers.postgres_dsn, authority, server), _rabbit(servers, authority, server) as port:
        yield Secured(port, authority, client)


@contextmanager
def _rabbit(servers: Servers, authority: Authority, server: Certified) -> Iterator[int]:
    port = reserved_port()
    options = (
        f'[{{cacertfile, "{authority.certificate}"}}, {{certfile, "{server.certificate}"}},'
        f' {{keyfile, "{server.key}"}}, {{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}]'
    )
    servers.rabbit.evaluate("rabbit_networking:ensure_ssl()")
    servers.rabbit.evaluate(f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, {options}, 2)')
    try:
        yield port
    finally:
        servers.rabbit.evaluate(f'rabbit_networking:stop_tcp_listener({{"127.0.0.1", {port}}})')


@contextmanager
def _postgres(dsn: str, authority: Authority, server: Certified) -> Iterator[None]:
    with psycopg.connect(dsn, autocommit=True) as admin:
        found = admin.execute("select current_setting('data_directory')").fetchone()
        assert found is not None
        data = Path(found[0])
        rules = data / "pg_hba.conf"
        before = rules.read_text()
        # In its own directory, as the files of the test are nobody else's.
        copies = {
            "ssl_ca_file": (authority.certificate, data / "test-ca.pem"),
            "ssl_cert_file": (server.certificate, data / "test-server.pem"),
            "ssl_key_file": (server.key, data / "test-server.key"),
        }
        try:
            for name, (source, copy) in copies.items():
                _copy(source, copy, data)
                admin.execute(f"alter system set {name} = '{copy}'".encode())
            rules.write_text(f"hostssl all {ROLE} 127.0.0.1/32 cert\n{before}")
            admin.execute(f"create role {ROLE} superuser login".encode())
            admin.execute("alter system set ssl = on")
            _reload(admin, dsn, wanted="on")
            yield
        finally:
            rules.write_text(before)
            for name in ("ssl", *copies):
                admin.execute(f"alter system reset {name}".encode())
            admin.execute(f"drop role if exists {ROLE}".encode())
            _reload(admin, dsn, wanted="off")
            for _, copy in copies.values():
                copy.unlink(missing_ok=True)


def _copy(source: Path, copy: Path, data: Path) -> None:
    copy.touch(0o600)
    copy.write_bytes(source.read_bytes())
    owner = data.stat()
    with suppress(PermissionError):
        os.chown(copy, owner.st_uid, owner.st_gid)


def _reload(admin: psycopg.Connection, dsn: str, wanted: str) -> None:
    """Have it read its files again, and wait until a new connection sees it."""
    admin.execute("select pg_reload_conf()")
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        with psycopg.connect(dsn, autocommit=True) as conn:
            if conn.execute("show ssl").fetchone() == (wanted,):
                return
    raise AssertionError("Postgres has not taken its settings")
