"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

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
