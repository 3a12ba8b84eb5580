"""Files and functions stay so small that each can be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

BRIDGE = Path(__file__).parent.parent.parent / "bridge"
CORE_LINES, FILE_LINES, FUNCTION_LINES = 400, 500, 60


def test_no_file_of_the_core_and_none_of_the_package_is_too_long() -> None:
    files = sorted(BRIDGE.rglob("*.py"))
    assert len(files) > 100
    long = {}
    for file in files:
        lines = len(file.read_text().splitlines())
        if lines > (CORE_LINES if file.is_relative_to(BRIDGE / "core") else FILE_LINES):
            long[str(file.relative_to(BRIDGE))] = lines
    assert long == {}


def test_no_function_is_too_long() -> None:
    long = {}
    for file in BRIDGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{file.relative_to(BRIDGE)}:{node.name}"] = lines
    assert long == {}
