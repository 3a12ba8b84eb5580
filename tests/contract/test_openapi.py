"""The OpenAPI document of the ops port and the port itself say the same, in both directions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from bridge.ops import answers
from bridge.ops.server import OpsServer
from tests.support.ops import FakeDesk, Nobody, Parts, nothing_known
from tests.support.schemas import FOLDER

DOCUMENT: dict[str, Any] = json.loads((FOLDER / "openapi.json").read_text())
OPERATIONS: dict[tuple[str, str], dict[str, Any]] = {
    (method.upper(), path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
PARTS = Parts(look_up=nothing_known, people=Nobody(), desk=FakeDesk())
EVERYWHERE = {404, 405}
"""What no operation has: there is no such path, or not this method."""


def resolved(value: Any) -> Any:
    if "$ref" not in value:
        return value
    found: Any = DOCUMENT
    for step in value["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return found


def words(response: dict[str, Any]) -> list[str]:
    """The words of an error answer; none for any other."""
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    found: list[str] = schema.get("properties", {}).get("error", {}).get("enum", [])
    return found


def errors() -> Iterator[tuple[int, str]]:
    for operation in OPERATIONS.values():
        for status, response in operation["responses"].items():
            for word in words(resolved(response)):
                yield int(status), word


def test_the_document_has_each_route_and_no_other() -> None:
    routes = {
        (route.method, route.resource.canonical)
        for route in OpsServer(PARTS.context(), PARTS.credentials()).app().router.routes()
        if route.resource is not None
    }
    # A GET is a HEAD, too, but for the stream that has no end.
    heads = {("HEAD", path) for method, path in OPERATIONS if method == "GET" and path != "/v1/outcomes"}
    assert routes == set(OPERATIONS) | heads


def test_the_errors_of_the_document_are_those_of_the_table() -> None:
    assert answers.__doc__ is not None
    rows = re.findall(r"^\| (\d{3})    \| (`.*?`) +\|", answers.__doc__, re.MULTILINE)
    table = {(int(status), word) for status, cell in rows for word in re.findall(r"`(\w+)`", cell)}
    assert {entry for entry in table if entry[0] not in EVERYWHERE} == {
        entry for entry in errors() if entry[0] not in EVERYWHERE
    }


def test_what_is_free_needs_no_token_and_nothing_else_is_free() -> None:
    free = {path for (_, path), operation in OPERATIONS.items() if operation.get("security") == []}
    assert free == {
        route.path for route in OpsServer(PARTS.context(), PARTS.credentials()).routes if route.free
    }


def test_what_has_a_body_says_what_may_be_wrong_with_it() -> None:
    for (method, _), operation in OPERATIONS.items():
        statuses = set(operation["responses"])
        assert ("requestBody" in operation) == (method == "POST")
        assert {"408", "413", "415"} <= statuses or method != "POST"
        assert {"401", "403"} <= statuses or operation.get("security") == []


def test_every_status_has_a_body_and_every_reference_leads_somewhere() -> None:
    for operation in OPERATIONS.values():
        assert operation["summary"]
        for response in operation["responses"].values():
            media = resolved(response)["content"]
            assert media
            assert all(m["schema"] for m in media.values())
    for reference in references(DOCUMENT):
        if reference.startswith("#"):
            resolved({"$ref": reference})
        else:
            assert (FOLDER / reference).is_file(), reference


def test_the_schemas_of_the_document_are_schemas() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_the_page_of_the_ops_port_names_the_document() -> None:
    page = Path(__file__).parent.parent.parent / "docs" / "reference" / "ops.md"
    assert "(../../schemas/openapi.json)" in page.read_text()


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from references(inner)
