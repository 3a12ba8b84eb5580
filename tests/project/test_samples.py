"""The samples of the documents do what they say: each is run as it stands there, on a real bridge."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.adapters.tokens import JwtVerifier
from bridge.app.build import SystemClock
from tests.support.bridges import SECONDS, SECRET, bridge, final_rows, token
from tests.support.clients import client

ROOT = Path(__file__).parent.parent.parent
LANGUAGES = {
    "python": (sys.executable, "make_token.py"),
    "js": ("node", "token.cjs"),
    "php": ("php", "token.php"),
    "java": ("java", "Token.java"),
    "go": ("go", "token.go"),
}
"""The languages of the page of tokens: what runs a sample, and the file that it wants."""


def samples(page: str, language: str) -> list[str]:
    """The blocks of a language on a page of the documents."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


async def run(file: Path, *words: str, **variables: str) -> str:
    """Run a sample to its end, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=file.parent,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SECONDS * 2):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().strip()


def test_the_page_of_tokens_has_one_sample_for_each_language() -> None:
    for language in LANGUAGES:
        (sample,) = samples("docs/tokens.md", language)
        for word in ("sub", "exp", "HS256", "BRIDGE_JWT_SECRET", "600"):
            assert word in sample, f"{language}: {word}"


@pytest.mark.parametrize(
    "language", [name for name, (runner, _) in LANGUAGES.items() if shutil.which(runner)]
)
async def test_a_token_of_a_sample_opens_a_session(language: str, tmp_path: Path) -> None:
    runner, name = LANGUAGES[language]
    file = tmp_path / name
    file.write_text(samples("docs/tokens.md", language)[0])
    words = (runner, "run", str(file), "u42") if language == "go" else (runner, str(file), "u42")
    made = await run(file, *words, BRIDGE_JWT_SECRET=SECRET)
    claims = JwtVerifier(SECRET, clock=SystemClock()).verify(made)
    assert claims.user == "u42"
    assert 500 < claims.expires_at - SystemClock().time() <= 600


CHECKS = {
    "js": ("client.mjs", "node", "--check"),
    "php": ("client.php", "php", "-l"),
    "ruby": ("client.rb", "ruby", "-c"),
    "go": ("client.go", "gofmt", "-l", "-e"),
}
"""How to check the syntax of a language without the libraries of its samples."""


def test_each_client_has_a_sample_that_publishes_the_same_request() -> None:
    page = (ROOT / "docs/publishing.md").read_text()
    section = page.partition("## Your client\n")[2].partition("\n## ")[0]
    found = re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)
    languages = "python js js java java php go ruby csharp"
    assert [language for language, _ in found] == languages.split()
    for language, sample in found:
        # Go has three lines for each call that may fail.
        assert len(sample.splitlines()) <= (13 if language == "go" else 10)
        for word in ("order-17", "u42", "push", "user.u42"):
            assert word in sample
        assert re.search("[cC]onfirm|wait_for_pending_acks|lastValueFrom|await endpoint.Send", sample)


def whole(language: str, sample: str) -> str:
    """A file of the sample, as the checker wants one."""
    if language == "php":
        return f"<?php\n{sample}"
    if language == "go":
        lines = "".join(f"\t{line}\n" if line else "\n" for line in sample.splitlines())
        return f"package client\n\nfunc publish() error {{\n{lines}\treturn nil\n}}\n"
    return sample


def test_each_client_has_a_line_that_says_what_was_looked_at() -> None:
    """What counts was looked at in one version: another may do it otherwise."""
    page = (ROOT / "docs/publishing.md").read_text()
    table = page.partition("| client | persistent |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^:|]+): ([^|]+) \|", table, re.MULTILINE)
    assert len(rows) == len(re.findall(r"^\| [^-|]", table, re.MULTILINE)) == 12
    for client_, looked_at in rows:
        assert re.match(r"(run, \d|source )[^|]*\d", looked_at), client_
    recorded = (ROOT / "tests/contract/test_other_clients.py").read_text()
    for _, looked_at in rows:
        for version in re.findall(r"run, ([\w.]+)", looked_at):
            assert version in recorded, version


def test_the_syntax_of_the_samples_of_clients_is_right(tmp_path: Path) -> None:
    for sample in samples("docs/publishing.md", "python"):
        ast.parse(sample)
    for language, (name, *words) in CHECKS.items():
        if shutil.which(words[0]):
            for sample in samples("docs/publishing.md", language):
                file = tmp_path / name
                file.write_text(whole(language, sample))
                done = subprocess.run([*words, str(file)], check=True, capture_output=True, timeout=SECONDS)
                # gofmt names a file that it would write otherwise.
                assert language != "go" or not done.stdout


async def test_the_first_sample_of_the_readme_publishes_and_reads_the_receipt(
    vhost: str, database: str, tmp_path: Path
) -> None:
    file = tmp_path / "publish.py"
    sample = samples("README.md", "python")[0]
    assert "amqp://guest:guest@127.0.0.1:5672/" in sample
    file.write_text(sample.replace("amqp://guest:guest@127.0.0.1:5672/", vhost))
    async with bridge(vhost, database) as made, client(made.ws_port, token("u42")):
        first = await run(file, sys.executable, str(file))
        second = await run(file, sys.executable, str(file))
    assert (first, second) == ("received pong", "received pong")
    assert len({row["push_id"] for row in await final_rows(database, 2)}) == 2, (
        "each run is a push of its own"
    )
