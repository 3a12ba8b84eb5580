"""Files, make targets, commands and names that CONTRIBUTING.md and docs/architecture.md mention are there."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from bridge.cli.parsers import build_parser
from bridge.config import Settings, env_name

ROOT = Path(__file__).parent.parent.parent
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
OF_THE_REPOSITORY = ("bridge", "tests", "benchmarks", "docs", "schemas", "examples")
MADE_BY_COMMANDS = frozenset((".venv", ".dev"))
"""Folders that `make test` makes."""
OF_THE_CONTRACT = frozenset(("to", "ending"))
"""A field of a push request, and a table."""


@cache
def repository() -> tuple[frozenset[str], str]:
    """The names of all files, and the Python text of all of them that a contributor may have to find."""
    paths = [path for folder in OF_THE_REPOSITORY for path in (ROOT / folder).rglob("*")]
    text = "\n".join(path.read_text() for path in paths if path.suffix == ".py")
    return frozenset(path.name for path in paths), text


def commands(page: str) -> list[str]:
    """The lines of a page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def marked(page: str) -> list[str]:
    """What a page has in backticks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))


def make_target_is_there(words: list[str]) -> bool:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return len(words) == 2 and words[1] in targets


def module_runs(module: str, options: list[str]) -> bool:
    """Whether `python -m` runs it, and it, or a file beside it in its package, has these options."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return False
    origin = Path(spec.origin)
    if origin.name == "__init__.py":
        runs, files = origin.with_name("__main__.py").exists(), list(origin.parent.glob("*.py"))
    else:
        runs, files = '__name__ == "__main__"' in origin.read_text(), [origin]
    text = "".join(path.read_text() for path in files)
    return runs and all(f'"{option}"' in text for option in options if option.startswith("--"))


def python_command_is_there(words: list[str]) -> bool:
    """`python -m MODULE ...`, where the module and its options exist; of pytest, the test files."""
    flag, module, *rest = words
    if flag != "-m":
        return False
    if module == "pytest":
        return all((ROOT / word).is_file() for word in rest)
    return module.split(".")[0] in OF_THE_REPOSITORY and module_runs(module, rest)


def command_is_there(command: str) -> bool:
    program, *rest = command.split()
    match program:
        case "make":
            return make_target_is_there(command.split())
        case "python" | ".venv/bin/python":
            return python_command_is_there(rest)
        case "bridge":
            return rest[0] in build_parser()[1] or " ".join(rest[:2]) in build_parser()[1]
    return False


def path_is_there(word: str) -> bool:
    """A path from the root, or the name of a file somewhere in the repository."""
    return (ROOT / word).exists() or word in MADE_BY_COMMANDS or word in repository()[0]


def name_is_there(word: str) -> bool:
    """A class, function or constant of ours."""
    return bool(re.search(rf"^\s*(?:(?:class|def|async def) {word}\b|{word}\b *[:=])", repository()[1], re.M))


def is_there(word: str) -> bool:
    if " " in word:
        return command_is_there(word)
    if word in OF_THE_CONTRACT:
        return True
    if word.isidentifier():
        return path_is_there(word) or name_is_there(word)
    return path_is_there(word)


def looks_like_a_path(word: str) -> bool:
    return word.endswith((".py", ".toml", ".md")) or ("/" in word and word.split("/")[0] in OF_THE_REPOSITORY)


def floors(head: str, column: int) -> list[set[str]]:
    """The packages of each line of a table of docs/architecture.md that begins with this head."""
    table = ARCHITECTURE.read_text().partition(head)[2].partition("\n\n")[0]
    cells = [line.split("|")[column] for line in table.splitlines()[2:]]
    return [set(re.findall(r"`([^`]+)`", cell)) for cell in cells]


def layers(contract_id: str) -> list[set[str]]:
    """The packages of each floor of an import contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found = next(contract for contract in contracts if contract["id"] == contract_id)["layers"]
    return [set(re.findall(r"(?:bridge\.)?(\w+)", layer)) for layer in found]


def test_everything_that_the_guide_names_is_there() -> None:
    page = CONTRIBUTING.read_text()
    assert len(commands(page)) > 5
    assert [command for command in commands(page) if not command_is_there(command)] == []
    assert [word for word in marked(page) if not is_there(word)] == []


@pytest.mark.parametrize(
    "word",
    [
        "make everything",
        "make test now",
        "tests/test_nothing.py",
        "nothing.md",
        "NoSuchClass",
        "no_such_function",
        "bridge fly",
        "python -m tests.no_such_page",
        "python -m tests.support.house",
        "python -m benchmarks --no-such-option",
        ".venv/bin/python -m pytest tests/test_nothing.py",
        "python -c 1",
        "rm -rf .",
    ],
)
def test_what_is_not_there_is_found_out(word: str) -> None:
    assert not is_there(word)


def test_every_file_that_the_architecture_names_is_there() -> None:
    paths = [word for word in marked(ARCHITECTURE.read_text()) if looks_like_a_path(word)]
    assert len(paths) > 5
    assert [path for path in paths if not path_is_there(path)] == []


def test_every_setting_that_the_architecture_names_is_one() -> None:
    named = {word for word in marked(ARCHITECTURE.read_text()) if word.startswith("BRIDGE_")}
    assert named
    assert named - {env_name(field) for field in Settings.model_fields} == set()


def test_the_floors_of_the_architecture_are_those_of_the_contract() -> None:
    shown = floors("| floor | packages |", 2)
    assert set().union(*shown) == set().union(*layers("floors")), (
        "name each in the table of floors, on its floor"
    )
    assert floors("| core | what it is |", 1) == layers("core-floors")


def test_each_package_says_what_it_is_for_and_what_it_may_know() -> None:
    packages = [file for file in (ROOT / "bridge").rglob("__init__.py") if file.parent != ROOT / "bridge"]
    assert len(packages) > 15
    for file in packages:
        said = ast.get_docstring(ast.parse(file.read_text())) or ""
        assert len(said) > 40, file
        if "core" in file.relative_to(ROOT).parts and file.parent.name != "requests":
            assert re.search(r"May import|Must not know", said), file
