"""The ops port against whatever a client may send: requests made from its OpenAPI document, and raw bytes."""

from __future__ import annotations

import json
import logging
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.config import (
    CoveragePhaseConfig,
    GenerationConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
)
from schemathesis.core.failures import FailureGroup

from bridge.adapters import http
from bridge.devservers import Servers
from tests.bad_input import NOTED, bridge_in_a_thread
from tests.conftest import TEMPLATE, Databases
from tests.house import SECONDS
from tests.test_schemas import REQUEST

OPENAPI = Path(__file__).parent.parent / "schemas" / "openapi.json"
TOKEN = "an ops token"
WAIT_MAX = 0.25
"""Seconds that `?wait=` may ask for here: a push to everyone waits for all of them."""
EXAMPLES = 40
"""Requests that are made up for a route, next to those that the limits of its schemas give."""


def document() -> Any:
    """The document of a port that has a token, with shorter waits."""
    raw = json.loads(OPENAPI.read_text())
    assert raw["security"] == [{"token": []}, {}]
    raw["security"] = [{"token": []}]
    wait = next(p for p in raw["paths"]["/v1/push"]["post"]["parameters"] if p["name"] == "wait")
    assert wait["schema"]["maximum"] == http.WAIT_MAX
    wait["schema"]["maximum"] = WAIT_MAX
    return raw


CONFIG = schemathesis.Config(
    projects=ProjectsConfig(
        default=ProjectConfig(
            generation=GenerationConfig(max_examples=EXAMPLES, deterministic=True),
            phases=PhasesConfig(coverage=CoveragePhaseConfig(generate_duplicate_query_parameters=True)),
        )
    )
)
API = schemathesis.openapi.from_dict(document(), config=CONFIG)
API.location = OPENAPI.as_uri()  # where its references lead from


class EndedFeed(http.OutcomeFeed):
    """Streams of outcomes that end at once, so that every request has an end."""

    def __init__(self) -> None:
        super().__init__()
        self.close()


@pytest.fixture(scope="module")
def port(servers: Servers, databases: Databases) -> Iterator[int]:
    """The ops port of a bridge with a token, in development."""
    name = f"fuzz_ops_{uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch, databases.fresh(TEMPLATE) as database:
        patch.setattr(http, "WAIT_MAX", WAIT_MAX)
        patch.setattr(http, "OutcomeFeed", EndedFeed)
        vhost = servers.rabbit.create_vhost(name)
        try:
            with bridge_in_a_thread(vhost, database, ops_token=TOKEN, dev=True) as running:
                yield running.ops_port
        finally:
            servers.rabbit.delete_vhost(name)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a client sends, nothing is a defect and nothing is worth a line in the log."""
    caplog.set_level(logging.WARNING)
    yield
    assert NOTED.noted == []
    assert [r.getMessage() for r in caplog.get_records("call")] == []


def anew(body: Any) -> Any:
    """The same body with ids that were never used: a repeat would be answered from the row of the first."""
    if isinstance(body, list):
        return [anew(element) for element in body]
    if (
        isinstance(body, dict)
        and "id" in body
        and REQUEST.is_valid({"to": {"all": True}, "data": 0, "id": body["id"]})
    ):
        return {**body, "id": uuid.uuid4().hex}
    return body


def partly_right(body: Any) -> bool:
    """Whether this is a batch of which some elements are right: those are taken, the others refused in receipts."""
    return isinstance(body, list) and any(map(REQUEST.is_valid, body))


@API.parametrize()
def test_every_answer_is_one_that_the_document_gives(case: schemathesis.Case, port: int) -> None:
    case.body = anew(case.body)
    answer = case.call(
        f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=SECONDS
    )
    import sys
    if answer.elapsed > 0.3: print('SLOW', answer.elapsed, answer.status_code, str(case.body)[:300], case.query, answer.content[:300], file=sys.stderr)
    excluded = [checks.CHECKS.get_one("negative_data_rejection")] if partly_right(case.body) else []
    case.validate_response(answer, excluded_checks=excluded)
