"""The glossary as JSON, by which the console explains its figures: `python -m tests.support.console_words`."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
WORDS = ROOT / "bridge" / "web" / "console" / "words.json"


def words() -> str:
    """The file: each term and its line, without markup."""
    lines = (ROOT / "docs" / "glossary.md").read_text().splitlines()
    found = [re.fullmatch(r"- \*\*([^*]+)\*\*: (.+)", line) for line in lines]
    plain = {match[1]: re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", match[2]) for match in found if match}
    plain = {term: re.sub(r"[`*]", "", line) for term, line in plain.items()}
    return json.dumps({term: line[0].upper() + line[1:] for term, line in plain.items()}, indent=0) + "\n"


if __name__ == "__main__":
    WORDS.write_text(words())
