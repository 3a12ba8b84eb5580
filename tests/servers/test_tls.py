"""RabbitMQ and Postgres with TLS, own certificates, and certificates asked of the bridge."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.adapters.amqp.tls import advice
from bridge.adapters.postgres import migrate
from bridge.cli import main
from bridge.core.errors import BrokerUnavailable
from bridge.devservers import Servers
from tests.support.bridges import bridge, endings, final_rows, publish, request, token
from tests.support.certificates import Authority
from tests.support.check_command import run_check
from tests.support.clients import client
from tests.support.other_sessions import ask
from tests.support.secured_servers import ROLE, Secured, secured


@pytest.fixture(scope="module")
def tls(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured(servers, tmp_path_factory.mktemp("tls")) as made:
        yield made


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """An authority that has signed nothing of the servers."""
    return Authority(tmp_path, "stranger")


async def test_a_bridge_delivers_and_every_one_of_its_connections_is_encrypted(
    servers: Servers, vhost: str, database: str, tls: Secured
) -> None:
    url, dsn = tls.amqp(vhost), tls.postgres(database)
    async with bridge(url, dsn) as made, client(made.ws_port, token("u1")) as opened:
        await publish(url, request("u1", "p1"), {"id": "p2", "data": 1})
        await opened.read()
        assert endings(await final_rows(dsn, 2)) == {
            ("p1", "u1"): ("received", "pong"),
            ("p2", None): ("rejected", "invalid"),
        }
        found = await ask(
            database,
            "select application_name, s.ssl, s.client_dn from pg_stat_ssl s join pg_stat_activity using (pid)"
            " where datname = current_database() and pid <> pg_backend_pid() order by 1",
        )
        assert {name for name, _, _ in found} >= {"bridge n1", "bridge n1 lease"}
        assert {(encrypted, dn) for _, encrypted, dn in found} == {(True, f"/CN={ROLE}")}
        where = vhost.rpartition("/")[2]
        asked = f'[S || [{{vhost, <<"{where}">>}}, {{ssl, S}}] <- rabbit_networking:connection_info_all([vhost, ssl])]'
        links = servers.rabbit.evaluate(asked)
        assert set(links.strip("[]").split(",")) == {"true"}
        assert links.count("true") >= 4, "consumer, publisher, what users send, other nodes"


async def test_each_command_works(vhost: str, empty_database: str, tls: Secured) -> None:
    url, dsn = tls.amqp(vhost), tls.postgres(empty_database)
    places = ["--postgres-dsn", dsn, "--amqp-url", url]

    async def run(*words: str) -> int:
        return await asyncio.to_thread(main, [*words])

    assert await run("db", "upgrade", "--postgres-dsn", dsn) == 0
    assert migrate.status(dsn)[-1].applied_at
    secret = ["--jwt-secret", "a secret for tests only: 0123456789"]
    async with bridge(url, dsn):
        assert await run("check", *places, *secret, "--ws-port", "0", "--ops-port", "0", "--node", "n2") == 0
        assert await run("push", "--user", "u1", "--data", "1", "--id", "p1", "--amqp-url", url) == 1
        await final_rows(dsn, 1)
        assert await run("why", "p1", *places) == 0
        assert await run("who", "u1", "--postgres-dsn", dsn) == 0
        assert await run("nodes", "--postgres-dsn", dsn) == 0
        assert await run("audit", *places) == 0
        assert await run("dead", "list", "--amqp-url", url) == 0


FAULTS = {
    "another authority": (
        "signed by nobody who is trusted here: name the file .* as ?cafile=",
        "certificate verify failed; sslrootcert in the DSN must name the file",
    ),
    "another host": (
        "is for another host than the address names",
        "the DSN must name the host as the server's certificate does",
    ),
    "no certificate": (
        # In TLS 1.3 the broker says it after the handshake, and may close before it is heard.
        "wants a certificate of the bridge: name its file .* as ?certfile=|[Cc]onnection.* reset|connection was lost",
        "requires a valid client certificate; name one in the DSN, as sslcert and sslkey",
    ),
    "a certificate of others": (
        "does not trust the certificate in certfile|[Cc]onnection.* reset|connection was lost",
        "ssl_ca_file of the server must have the authority",
    ),
    "no such file": (
        "cafile in the broker's address: /none can't be read",
        'root certificate file "/none" does not exist; sslrootcert in the DSN names this file',
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_told_in_one_sentence_that_says_what_to_do(
    vhost: str,
    database: str,
    tls: Secured,
    stranger: Authority,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    url, dsn = with_fault(fault, vhost, database, tls, stranger)
    assert await asyncio.to_thread(run_check, url, dsn) == 3
    told = capsys.readouterr().out.splitlines()
    for what, wanted in zip(("broker", "database"), FAULTS[fault], strict=True):
        [line] = [line for line in told if line.startswith(f"fail  {what}")]
        assert re.search(wanted.replace("?", "[?]"), line), line
    # The same words from whatever connects.
    with pytest.raises(BrokerUnavailable, match=FAULTS[fault][0].replace("?", "[?]")):
        await publish(url, request("u1", "p1"))
    assert await asyncio.to_thread(main, ["db", "upgrade", "--postgres-dsn", dsn]) == 3
    said = capsys.readouterr().err
    assert FAULTS[fault][1] in said
    assert "Traceback" not in said


def with_fault(fault: str, vhost: str, database: str, tls: Secured, stranger: Authority) -> tuple[str, str]:
    """The addresses of both servers, with this fault in them."""
    ours = {"certfile": tls.client.certificate, "keyfile": tls.client.key}
    match fault:
        case "another authority":
            asked: dict[str, object] = {"cafile": stranger.certificate, **ours}
            return tls.amqp(vhost, **asked), tls.postgres(database, sslrootcert=stranger.certificate)
        case "another host":
            named = tls.amqp(vhost), tls.postgres(database)
            return named[0].replace("127.0.0.1", "localhost"), named[1].replace("127.0.0.1", "localhost")
        case "no certificate":
            without = tls.amqp(vhost, cafile=tls.authority.certificate)
            return without, tls.postgres(database, sslcert="/none", sslkey="/none")
        case "a certificate of others":
            other = stranger.sign(ROLE)
            trusted = {"cafile": tls.authority.certificate}
            theirs = {"certfile": other.certificate, "keyfile": other.key}
            return (
                tls.amqp(vhost, **trusted, **theirs),
                tls.postgres(database, sslcert=other.certificate, sslkey=other.key),
            )
        case _:
            return tls.amqp(vhost, cafile="/none"), tls.postgres(database, sslrootcert="/none")


async def test_a_bridge_waits_for_a_broker_that_it_does_not_trust_and_says_so(
    vhost: str, database: str, tls: Secured, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    url = tls.amqp(vhost, cafile=stranger.certificate)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5), bridge(url, tls.postgres(database)):
            pass
    told = {r.getMessage() for r in caplog.records if "trusted here" in r.getMessage()}
    assert told, "the log names the cause"


@pytest.mark.parametrize(
    ("certfile", "keyfile", "words"),
    [
        ("own", "other key", "keyfile in the broker's address: .* is not the key of"),
        ("own key", "own key", "must be a certificate and its key, in PEM"),
        ("own", "none", "keyfile in the broker's address: /none can't be read"),
    ],
)
async def test_what_is_wrong_with_the_bridges_own_files_is_told(
    vhost: str, tls: Secured, stranger: Authority, certfile: str, keyfile: str, words: str
) -> None:
    files = {
        "own": tls.client.certificate,
        "own key": tls.client.key,
        "other key": stranger.sign("other").key,
        "none": Path("/none"),
    }
    url = tls.amqp(vhost, cafile=tls.authority.certificate, certfile=files[certfile], keyfile=files[keyfile])
    with pytest.raises(BrokerUnavailable, match=words):
        await publish(url, request("u1", "p1"))


async def test_a_port_without_tls_is_told(vhost: str, tls: Secured) -> None:
    url = f"{vhost.replace('amqp://', 'amqps://')}?cafile={tls.authority.certificate}"
    with pytest.raises(BrokerUnavailable, match="there is no TLS at this port"):
        await publish(url, request("u1", "p1"))


def test_a_certificate_that_newer_versions_of_python_refuse_is_called_that() -> None:
    words = "certificate verify failed: Missing Authority Key Identifier (_ssl.c:1029)"
    told = advice(ssl.SSLCertVerificationError(f"[SSL: CERTIFICATE_VERIFY_FAILED] {words}"))
    assert "lacks an extension that RFC 5280 asks for" in told
    assert "authorityKeyIdentifier" in told
