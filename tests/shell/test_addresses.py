"""The addresses of broker and database: what is wrong with one, said without a word of it."""

from __future__ import annotations

import re

import pytest

from bridge.addresses import amqp_problem, amqp_secrets, postgres_problem, postgres_secrets

CANARY = "s3cr3tcanary"

RIGHT_AMQP = [
    "amqp://guest:guest@127.0.0.1:5672/",
    "amqp://h",
    "amqps://app:p%40ss@broker.example:5671/a%2Fb",
    "amqp://app:@h/",
    "amqp://[::1]:5672/v",
    "amqp://app:p^|{}ä@h/v",
    "amqp://app:x@h/v?heartbeat=30&name=me&interleave=1&happy_eyeballs_delay=0.25&auth=PLAIN",
    "amqps://app:x@h/v?cafile=/ca.pem&certfile=/c.pem&keyfile=/k.pem&no_verify_ssl=0&cadata=aGk%3D&auth=external",
]
WRONG_AMQP = [
    ("http://h/", "amqp://"),
    (f"{CANARY}", "amqp://"),
    (f"amqp://app:{CANARY} x@h/", "%20"),
    (f"amqp://app:{CANARY}\\x@h/", "%5C"),
    (f"amqp://app:{CANARY}%@h/", "%25"),
    (f"amqp://app:{CANARY}%zz@h/", "%25"),
    (f"amqp://app:{CANARY}%00@h/", "%00"),
    (f"amqp://app:{CANARY}\n@h/", "%0A"),
    (f"amqp://app:12/{CANARY}@h/", "%2F"),
    (f"amqp://app:12?{CANARY}@h/", "%3F"),
    (f"amqp://app:12#{CANARY}@h/", "%23"),
    (f"amqp://app:x@{CANARY}@h/", "%40"),
    (f"amqp://app:{CANARY}@h:port/", "port"),
    (f"amqp://app:{CANARY}@h:99999/", "port"),
    (f"amqp://app:{CANARY}@h:0/", "port"),
    (f"amqp://app:{CANARY}@[::1/", "host"),
    (f"amqp://app:{CANARY}@/", "amqp://"),
    (f"amqp://app:{CANARY}@h/?heartbeat=abc", "heartbeat: whole seconds"),
    (f"amqp://app:{CANARY}@h/?heartbeat={CANARY}", "heartbeat: whole seconds"),
    (f"amqp://app:{CANARY}@h/?heartbeat=10&heartbeat=abc", "heartbeat: whole seconds"),
    (f"amqp://app:{CANARY}@h/?heartbeat=99999", "65535"),
    (f"amqp://app:{CANARY}@h/?heartbeat=-1", "heartbeat: whole seconds"),
    (f"amqp://app:{CANARY}@h/?heartbeat=", "heartbeat: whole seconds"),
    (f"amqp://app:{CANARY}@h/?heartbeat", "heartbeat: whole seconds"),
    (f"amqp://app:{CANARY}@h/?heart_beat=10", "no parameter heart_beat "),
    (f"amqp://app:{CANARY}@h/?Heartbeat=10", "no parameter Heartbeat "),
    (f"amqp://app:{CANARY}@h/?connection_timeout=10", "no parameter connection_timeout "),
    (f"amqp://app:12?{CANARY}", "no parameter of"),
    (f"amqp://app:12?{CANARY}=1", "no parameter of"),
    (f"amqp://app:{CANARY}@h/?a%20{CANARY}=1", "no parameter of"),
    (f"amqp://app:{CANARY}@h/?interleave=x", "interleave: a whole number"),
    (f"amqp://app:{CANARY}@h/?happy_eyeballs_delay=nan", "happy_eyeballs_delay: seconds"),
    (f"amqps://app:{CANARY}@h/?no_verify_ssl=false", "no_verify_ssl: 0 or 1"),
    (f"amqps://app:{CANARY}@h/?cafile=", "cafile: a path"),
    (f"amqps://app:{CANARY}@h/?cadata=!", "cadata: base64"),
    (f"amqp://app:{CANARY}@h/?cafile=/ca.pem", "amqps://"),
    (f"amqp://app:{CANARY}@h/?auth=kerberos", "auth: plain or external"),
]
RIGHT_POSTGRES = [
    "postgresql://127.0.0.1:5432/bridge",
    "postgres://app:p%40ss@h1,h2:5433/db?sslmode=require&connect_timeout=3",
    "postgresql:///bridge?host=/run/postgresql",
    "host=h dbname=d user=u password='a b' port=5432",
    "postgresql://app@[::1]/d",
]
WRONG_POSTGRES = [
    (CANARY, "postgresql://"),
    ("mysql://h/", "postgresql://"),
    (f"postgresql://app:{CANARY} x@h/d", "%20"),
    (f"postgresql://app:{CANARY}%@h/d", "%25"),
    (f"postgresql://app:{CANARY}%zz@h/d", "%25"),
    (f"postgresql://app:{CANARY}\\@h/d", "%5C"),
    (f"postgresql://app:12/{CANARY}@h/d", "%2F"),
    (f"postgresql://app:a?{CANARY}=c@h/d", "%3F"),
    (f"postgresql://app:a#{CANARY}@h/d", "%23"),
    (f"postgresql://app:{CANARY}#x@h/d", "%23"),
    (f"postgresql://app:{CANARY}@h/d?schema=public", "schema"),
    (f"postgresql://app:{CANARY}@h/d?sslmode=on", "sslmode"),
    (f"postgresql://app:{CANARY}@h/d?connect_timeout=soon", "connect_timeout"),
    (f"postgresql://app:{CANARY}@h:port/d", "port"),
    (f"postgresql://app:{CANARY}@h:99999/d", "port"),
    (f"postgresql://app:{CANARY}@[::1/d", "postgresql://"),
    (f"host=h password={CANARY} x", "quotes"),
    (f"host=h password='{CANARY}", "quote"),
    (f"host=h passwort={CANARY}", "parameter"),
    (f"host=h {CANARY}=x", "parameter"),
    (f"host=h port={CANARY}", "port"),
    (f"host=h sslmode={CANARY}", "sslmode"),
]


@pytest.mark.parametrize("url", RIGHT_AMQP)
def test_a_right_address_of_the_broker_has_no_problem(url: str) -> None:
    assert amqp_problem(url) == ""


@pytest.mark.parametrize("dsn", RIGHT_POSTGRES)
def test_a_right_address_of_the_database_has_no_problem(dsn: str) -> None:
    assert postgres_problem(dsn) == ""


@pytest.mark.parametrize(("url", "hint"), WRONG_AMQP)
def test_a_wrong_address_of_the_broker_is_told_without_a_word_of_it(url: str, hint: str) -> None:
    problem = amqp_problem(url)
    assert hint in problem
    assert CANARY not in problem


@pytest.mark.parametrize(("dsn", "hint"), WRONG_POSTGRES)
def test_a_wrong_address_of_the_database_is_told_without_a_word_of_it(dsn: str, hint: str) -> None:
    problem = postgres_problem(dsn)
    assert hint in problem
    assert CANARY not in problem


@pytest.mark.parametrize("part", [chr(n) for n in range(1, 256) if chr(n) not in "'"])
def test_a_password_with_any_character_is_taken_or_told_apart(part: str) -> None:
    from psycopg import conninfo
    from yarl import URL

    url = f"amqp://app:{CANARY}{part}y@h:1/v"
    if problem := amqp_problem(url):
        assert CANARY not in problem
    else:
        assert (URL(url).host, URL(url).port, URL(url).path) == ("h", 1, "/v")
    dsn = f"postgresql://app:{CANARY}{part}y@h:1/v"
    if problem := postgres_problem(dsn):
        assert CANARY not in problem
    else:
        assert conninfo.conninfo_to_dict(dsn)["host"] == "h"


def test_the_secrets_of_an_address_are_its_password_in_each_spelling() -> None:
    assert set(amqp_secrets("amqp://app:p%40ss@h/v").secrets) == {"p%40ss", "p@ss"}
    assert set(postgres_secrets("postgresql://app:p%40ss@h/d").secrets) == {"p%40ss", "p@ss"}
    assert set(postgres_secrets("host=h password='a b' sslpassword=c").secrets) == {"a b", "c"}
    assert re.fullmatch(r"app,h,d", ",".join(postgres_secrets("postgresql://app:x@h/d").public))
