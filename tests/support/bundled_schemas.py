"""Makes each schema whole: `python -m tests.support.bundled_schemas` copies what it refers to into its `$defs`.

A validator that is given one file then needs no other, nor the network. A schema is written once, in the file of its
name; what stands in `$defs` of others is a copy, and a test holds the copies up to date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent.parent.parent / "schemas"
BASE: Final = "https://bridge.example/schemas/"
"""Of every `$id`: a host that does not exist (RFC 2606), so that nobody asks it."""
_OF_A_FILE: Final = ("$schema", "$id", "examples", "$defs")
_LOCAL: Final = "#/$defs/"


def names() -> list[str]:
    """The files that are JSON schemas."""
    documents = ("asyncapi.json", "openapi.json")
    return [path.name for path in sorted(FOLDER.glob("*.json")) if path.name not in documents]


def read(name: str) -> dict[str, Any]:
    """A schema as it is in its file."""
    schema: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return schema


def whole(name: str) -> dict[str, Any]:
    """The schema of a file with its `$id`, and with a copy of each schema that it refers to."""
    given = read(name)
    schema = {key: _local(value) for key, value in given.items() if key not in ("$schema", "$id", "$defs")}
    copies: dict[str, Any] = {
        part: value
        for part, value in given.get("$defs", {}).items()
        if not (FOLDER / f"{part}.json").exists()
    }
    todo = _referred(schema) | _referred(copies)
    while todo:
        other = todo.pop()
        if other not in copies:
            copies[other] = _local({k: v for k, v in read(f"{other}.json").items() if k not in _OF_A_FILE})
            todo |= _referred(copies[other])
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"{BASE}{name}"}
    tail = {"$defs": {other: copies[other] for other in sorted(copies)}} if copies else {}
    return {**head, **schema, **tail}


def _local(value: Any) -> Any:
    """The same with references to `$defs` in the place of those to files."""
    if isinstance(value, dict):
        return {
            key: f"{_LOCAL}{inner.removesuffix('.json')}"
            if key == "$ref" and isinstance(inner, str) and not inner.startswith("#")
            else _local(inner)
            for key, inner in value.items()
        }
    return [_local(inner) for inner in value] if isinstance(value, list) else value


def _referred(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = {name for inner in value.values() for name in _referred(inner)}
        reference = value.get("$ref")
        return found | {reference.removeprefix(_LOCAL)} if isinstance(reference, str) else found
    return {name for inner in value for name in _referred(inner)} if isinstance(value, list) else set()


def text(schema: dict[str, Any]) -> str:
    """A schema as its file has it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in names():
        (FOLDER / each).write_text(text(whole(each)), encoding="utf-8")
