"""Logs: their two styles, and that no token and no password gets through."""

from __future__ import annotations

import io
import json
import logging

import pytest

from bridge.adapters import logs
from bridge.core.redaction import redact

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1NDIifQ.c2lnbmF0dXJl"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(style: str, stream: io.StringIO | None = None) -> io.StringIO:
    out = io.StringIO() if stream is None else stream
    logs.setup("debug", style, out)
    return out


def test_json_lines_have_time_level_logger_message_and_facts() -> None:
    out = lines("json")
    logging.getLogger("bridge.test").warning("took %d", 3, extra={"rows": 7, "user": "ü"})
    entry = json.loads(out.getvalue())
    assert list(entry)[:4] == ["time", "level", "logger", "message"]
    assert entry["time"].endswith("Z")
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "bridge.test", "took 3")
    assert (entry["rows"], entry["user"]) == (7, "ü")


def test_an_error_with_its_traceback_is_one_json_line() -> None:
    out = lines("json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("bridge.test").exception("failed")
    assert out.getvalue().count("\n") == 1
    assert json.loads(out.getvalue())["exception"].startswith("Traceback")


def test_auto_is_text_on_a_terminal_and_json_elsewhere() -> None:
    terminal = lines("auto", Terminal())
    logging.getLogger("bridge.test").info("hello", extra={"rows": 7})
    assert terminal.getvalue().endswith("info    bridge.test: hello  rows=7\n")
    pipe = lines("auto")
    logging.getLogger("bridge.test").info("hello")
    assert json.loads(pipe.getvalue())["message"] == "hello"


def test_setup_again_replaces_what_it_set_up_and_leaves_other_handlers() -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    first, second = lines("text"), lines("text")
    logging.getLogger("bridge.test").info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1
    assert other in logging.getLogger().handlers


@pytest.mark.parametrize("style", ["text", "json"])
def test_each_line_names_the_node_where_several_write_to_one_place(style: str) -> None:
    out = io.StringIO()
    logs.setup("info", style, out, node="n1-2")
    logging.getLogger("bridge").info("hello")
    logging.getLogger("bridge").info("of another", extra={"node": "n2"})
    first, second = out.getvalue().splitlines()
    assert first.endswith("node='n1-2'" if style == "text" else '"node": "n1-2"}')
    assert second.endswith("node='n2'" if style == "text" else '"node": "n2"}')


def test_nobody_can_forge_a_line_of_text() -> None:
    out = lines("text")
    logging.getLogger("bridge.test").info(
        "user %s", "u\n12:00:00.000 error   bridge: all is lost\x1b[31m\u2028"
    )
    assert out.getvalue().count("\n") == 1
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("name", logs.QUIET)
def test_libraries_that_would_log_what_they_carry_stay_quiet_at_any_level(name: str) -> None:
    out = lines("text")
    logging.getLogger(name).debug("< TEXT 'the payload'")
    logging.getLogger(f"{name}.server").info("GET /ws?token=x")
    assert out.getvalue() == ""
    logging.getLogger(name).warning("worth saying")
    assert "worth saying" in out.getvalue()


@pytest.mark.parametrize("name", logs.SILENT)
def test_libraries_whose_errors_are_handled_elsewhere_say_nothing(name: str) -> None:
    out = lines("text")
    logging.getLogger(f"{name}.connection").warning("the same error once more")
    assert out.getvalue() == ""


LEAKS = [
    f"GET /ws?token={JWT}&x=1",
    "GET /ws?x=1&token=s3cr3t&y=2",
    "Authorization: Bearer s3cr3t-0123",
    "authorization=Basic s3cr3t",
    "[('Authorization', 'Bearer s3cr3t-0123')]",
    '{"Authorization": "Bearer s3cr3t-0123"}',
    "{'authorization': b's3cr3t'}",
    "sent bearer s3cr3t-0123456 on",
    f"Sec-WebSocket-Protocol: bridge.v1.json, bridge.token.{JWT}",
    "['bridge.v1.json', 'bridge.token.s3cr3t']",
    f"the token {JWT} was refused",
    "amqp://guest:s3cr3t@127.0.0.1:5672/",
    "amqp://guest:s3cr3t@m0re@127.0.0.1:5672/",
    "postgresql://h/db?user=u&password=s3cr3t&x=1",
    "host=h password='s3cr3t spl1t' user=u",
    "host=h password=s3cr3t user=u",
    'token="s3cr3t" jwt_secret = s3cr3t',
    '{"token": "s3cr3t", "x": 1}',
    "BRIDGE_OPS_TOKEN=s3cr3t",
]


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("leak", LEAKS)
def test_what_slips_through_is_taken_out_wherever_it_stands(leak: str, style: str) -> None:
    out = lines(style)
    log = logging.getLogger("bridge.test")
    log.info(leak)
    log.info("in an argument: %s", leak)
    log.info("in a fact", extra={"fact": leak, "deep": {"in": [leak]}})
    try:
        raise RuntimeError(leak)
    except RuntimeError:
        log.exception("in an exception")
    text = out.getvalue()
    for secret in ("s3cr3t", "m0re", "spl1t", JWT, JWT.split(".")[1]):
        assert secret not in text
    assert "***" in text
    if style == "json":
        assert len([json.loads(line) for line in text.splitlines()]) == 4


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("key", ["token", "ops_token", "password", "jwt_secret", "Authorization", "x-token"])
def test_a_fact_with_a_telling_name_is_taken_out_whole(key: str, style: str) -> None:
    out = lines(style)
    logging.getLogger("bridge.test").info(
        "x", extra={key: "s3cr3t with, 'anything'", "deep": {key: "s3cr3t"}}
    )
    assert "s3cr3t" not in out.getvalue()


@pytest.mark.parametrize(
    "harmless",
    [
        "token refused: expired",
        "BRIDGE_OPS_TOKEN: a token is required",
        "with token: see the docs",
        "took 12 rows from ws://127.0.0.1:8181/ws",
        "user u42@example.com has no session",
        "the password was not accepted",
    ],
)
def test_ordinary_sentences_stay_as_they_are(harmless: str) -> None:
    assert redact(harmless) == harmless
