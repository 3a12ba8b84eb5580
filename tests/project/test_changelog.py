"""CHANGELOG.md is one list of releases, each grouped by what a reader has to do about it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
GROUPS = ("Added", "Changed", "Removed", "Fixed", "Security")
"""In this order; a release has those that it needs."""


def releases(changelog: str) -> list[tuple[str, str]]:
    """The name and the text of each release, the newest first."""
    parts = re.split(r"^## (.*)\n", changelog, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def problems(changelog: str) -> list[str]:
    """What is wrong with the form of a list of changes."""
    found = []
    for name, text in releases(changelog):
        if name != "Unreleased" and not re.fullmatch(r"\d+\.\d+\.\d+", name):
            found.append(f"{name}: is no release")
        lead, *rest = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)
        groups = rest[::2]
        if re.search(r"^- ", lead, re.MULTILINE):
            found.append(f"{name}: has changes outside of a group")
        found += [f"{name}: {group} is no group" for group in groups if group not in GROUPS]
        if [group for group in GROUPS if group in groups] != [group for group in groups if group in GROUPS]:
            found.append(f"{name}: groups are twice, or not in the order {', '.join(GROUPS)}")
        for group, lines in zip(groups, rest[1::2], strict=True):
            found += of_a_group(f"{name}, {group}", [line for line in lines.splitlines() if line])
        if not groups:
            found.append(f"{name}: has no group")
    return found


def of_a_group(place: str, lines: Sequence[str]) -> list[str]:
    found = [f"{place}: is empty"] if not lines else []
    found += [
        f"{place}: {line!r} is no item of the list" for line in lines if not line.startswith(("- ", "  "))
    ]
    words = "|".join(GROUPS)
    found += [f"{place}: {line!r} repeats a group" for line in lines if re.match(rf"- (?:{words}): ", line)]
    return found


def test_each_release_has_its_changes_in_groups() -> None:
    assert problems((ROOT / "CHANGELOG.md").read_text()) == []


def test_the_newest_release_is_the_version_of_the_package() -> None:
    names = [name for name, _ in releases((ROOT / "CHANGELOG.md").read_text()) if name != "Unreleased"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert names[0] == version
    numbers = [tuple(map(int, name.split("."))) for name in names]
    assert numbers == sorted(set(numbers), reverse=True)


@pytest.mark.parametrize(
    ("changelog", "problem"),
    [
        ("## 1.0.0\n\n- One.\n", "1.0.0: has changes outside of a group"),
        ("## 1.0.0\n\nWords.\n", "1.0.0: has no group"),
        ("## Next\n\n### Added\n\n- One.\n", "Next: is no release"),
        ("## 1.0.0\n\n### New\n\n- One.\n", "1.0.0: New is no group"),
        ("## 1.0.0\n\n### Fixed\n\n- One.\n\n### Added\n\n- Two.\n", "1.0.0: groups are twice, or not in the order"),
        ("## 1.0.0\n\n### Added\n\n- One.\n\n### Added\n\n- Two.\n", "1.0.0: groups are twice, or not in the order"),
        ("## 1.0.0\n\n### Added\n\n", "1.0.0, Added: is empty"),
        ("## 1.0.0\n\n### Added\n\nOne.\n", "1.0.0, Added: 'One.' is no item of the list"),
        ("## 1.0.0\n\n### Added\n\n- Fixed: one.\n", "1.0.0, Added: '- Fixed: one.' repeats a group"),
    ],
)  # fmt: skip
def test_what_has_another_form_is_found(changelog: str, problem: str) -> None:
    assert any(found.startswith(problem) for found in problems(changelog)), problems(changelog)
