"""docs/glossary.md has a line for each term, in order, and only terms that the project uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge.config import Settings, env_name

ROOT = Path(__file__).parent.parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
ENTRY = re.compile(r"- \*\*([^*]+)\*\*: (.+)")
ASKED_FOR = (
    "push", "request", "row", "outcome", "reason", "proof", "session", "user", "tenant", "mailbox", "kept push",
    "collapse key", "recall", "receipt", "owed", "repeat", "fallen", "poison", "park", "flight", "in flight", "standby",
    "boot", "node", "sweep", "gate", "upkeep", "partition", "settle", "take", "replay", "resume", "duplicate",
)  # fmt: skip


def sections() -> dict[str, list[str]]:
    """The lines below each heading."""
    parts = GLOSSARY.read_text().split("\n## ")[1:]
    return {part.splitlines()[0]: [line for line in part.splitlines()[1:] if line] for part in parts}


def entries() -> dict[str, str]:
    found = [ENTRY.fullmatch(line) for lines in sections().values() for line in lines]
    return {match[1]: match[2] for match in found if match}


def test_each_term_has_one_line() -> None:
    lines = [line for lines in sections().values() for line in lines]
    assert [line for line in lines if not ENTRY.fullmatch(line)] == []
    assert len(entries()) == len(lines), "a term has two lines"
    assert all(meaning.endswith((".", ".)")) for meaning in entries().values())


@pytest.mark.parametrize("name", sections())
def test_terms_are_in_order(name: str) -> None:
    terms = [match[1].lower() for line in sections()[name] if (match := ENTRY.fullmatch(line))]
    assert terms == sorted(terms)


def test_the_terms_that_readers_stumble_over_are_there() -> None:
    assert set(ASKED_FOR) - set(entries()) == set()


def test_every_term_is_used_by_the_code_or_another_document() -> None:
    paths = [*(ROOT / "bridge").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    text = "\n".join(path.read_text() for path in paths if path != GLOSSARY).lower()
    unused = [
        term for term in entries() if not re.search(rf"\b{re.escape(term)}".replace(r"\ ", r"[\s_-]+"), text)
    ]
    assert unused == []


def test_readers_find_it() -> None:
    assert "(docs/glossary.md)" in (ROOT / "README.md").read_text()
    assert "(glossary.md)" in (ROOT / "docs" / "architecture.md").read_text()


def test_its_settings_are_settings() -> None:
    named = set(re.findall(r"BRIDGE_\w+", GLOSSARY.read_text()))
    assert named
    assert named - {env_name(field) for field in Settings.model_fields} == set()
