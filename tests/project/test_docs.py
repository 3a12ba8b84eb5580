"""The documents say what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from bridge.adapters.tokens import TOKEN_REFUSALS
from bridge.adapters.websocket.handshake import HANDSHAKE_REFUSALS
from bridge.cli.parsers import build_parser
from tests.support import reference_states
from tests.support.reference import OUTCOMES, TABLES, outcomes_page, tables_page

ROOT = Path(__file__).parent.parent.parent


def test_the_page_of_outcomes_is_the_code() -> None:
    assert OUTCOMES.read_text() == outcomes_page(), "run: python -m tests.support.reference"


def test_the_page_of_tables_is_the_schema(database: str) -> None:
    assert TABLES.read_text() == tables_page(database), "run: python -m tests.support.reference DSN"


def test_the_page_of_states_is_the_tables_that_are_executed() -> None:
    page = reference_states.PAGE.read_text()
    assert page == reference_states.states_page(), "run: python -m tests.support.reference_states"


def words_of_refusals() -> set[str]:
    """What a refused handshake may be answered, as the calls in the code have it, but for words put together there."""
    words = {*HANDSHAKE_REFUSALS, *TOKEN_REFUSALS}
    for file in (ROOT / "bridge").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal":
                for field in (*node.args[3:], *node.args[1:2]):
                    if isinstance(field, ast.Constant):
                        words.add(str(field.value))
                        break
    # The first three end open sockets, and of the fourth nobody is there to hear.
    others = {"auth_timeout", "auth_frame", "flood", "gone"}
    # Those of POST /v1/ack have a table of their own.
    return words - others - {"key", "no_session", "not_awaited", "stray_pong", "ambiguous"}


def test_the_page_about_clients_lists_every_word_of_a_refused_handshake() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    table = page.partition("| status | `error` |")[2].partition("\n\n")[0]
    assert set(re.findall("`([a-z_]+)`", table)) == words_of_refusals()


def test_every_link_between_documents_leads_somewhere() -> None:
    broken = []
    for page in [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
        ROOT / "benchmarks" / "README.md",
    ]:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert broken == []


def test_the_index_of_the_documents_has_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {
        (index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)\)", index.read_text())
    }
    pages = {*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "reference").glob("*.md")} - {index}
    assert {page.name for page in pages - linked} == set()


def test_every_test_that_a_document_names_exists() -> None:
    named = {
        (page.name, file, test)
        for page in sorted((ROOT / "docs").rglob("*.md"))
        for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())
    }
    assert len([name for name, _, _ in named if name == "security.md"]) > 40
    missing = [
        f"{page} -> {file}::{test}"
        for page, file, test in sorted(named)
        if not (ROOT / file).exists()
        or not re.search(rf"^(?:async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_the_page_about_security_has_every_point_of_both_standards() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| (\d+)\.(\d+) [^|]+\|[^|]+\| (.+) \|$", page, re.MULTILINE)
    assert [(int(a), int(b)) for a, b, _ in rows] == [
        *((3, n) for n in range(1, 13)),
        *((10, n) for n in range(1, 9)),
    ]
    assert all("::test_" in tests for _, _, tests in rows)


def test_no_command_takes_a_token_of_a_user() -> None:
    taken = {
        option
        for parser in build_parser()[1].values()
        for action in parser._actions
        for option in (*action.option_strings, action.dest)
    }
    # The name of a file is no secret.
    assert {word for word in taken if "token" in word} == {"--token-file", "token_file"}


def test_the_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(p.name[:4]) for p in sorted((ROOT / "docs" / "adr").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_file_that_the_architecture_names_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:bridge|tests|benchmarks)/[\w/.-]+)`", page))
    assert len(named) > 10
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_the_architecture_reads_the_way_of_a_push_in_the_order_of_its_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    verbs = re.findall(r"^\d\. `bridge/core/delivery/(\w+)\.py`", page, re.MULTILINE)
    opening = (ROOT / "bridge" / "core" / "delivery" / "intake.py").read_text()
    assert f"Read `{'`, `'.join(verbs)}` in this order" in opening
