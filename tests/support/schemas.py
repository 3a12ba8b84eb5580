"""The schemas of `schemas/`, and what validates by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

FOLDER = Path(__file__).parent.parent.parent / "schemas"
SCHEMAS: dict[str, Any] = {
    path.name: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.glob("*.json"))
    if path.name not in ("asyncapi.json", "openapi.json")
}
REGISTRY: Registry[Any] = Registry().with_resources(
    (name, Resource.from_contents(schema, default_specification=DRAFT202012))
    for name, schema in SCHEMAS.items()
)


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(SCHEMAS[name], registry=REGISTRY)


REQUEST, BATCH, HEADERS, EVENT, RECEIPT, DEAD_LETTER = (
    validator(f"{name}.json")
    for name in (
        "push-request",
        "push-batch",
        "push-headers",
        "push-cloudevent",
        "receipt",
        "dead-letter-headers",
    )
)
