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
