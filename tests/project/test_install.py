"""What `pip install .` and the container's build install: a program that works in any directory and writes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import bridge
from benchmarks.ports import reserved_port
from tests.project.test_deployment import health_command, instructions
from tests.support.bridges import SECRET

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60.0
EVERYTHING = """
import importlib, pkgutil, bridge
for module in pkgutil.walk_packages(bridge.__path__, "bridge."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(bridge.__file__)
"""


class Installed(NamedTuple):
    """An environment with the wheel of this project in it, and the packages that it needs beside."""

    home: Path
    away: Path
    """A directory that has nothing to do with the project and can't be written to."""

    def run(
        self, *command: str, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of it from elsewhere."""
        return subprocess.run(
            [self.home / "bin" / command[0], *command[1:]],
            cwd=self.away, env=environment or self.environment(), capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip

    def environment(self, **more: str) -> dict[str, str]:
        """Of a user without a home: nothing may be written there, and nothing is found in the repository."""
        path = f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", **more}


def build_steps(home: Path) -> Sequence[str]:
    """The shell commands with which the Dockerfile installs the program, for a folder in the place of /opt/bridge.

    Nothing is downloaded here: what the build and the program need is in the environment of the tests.
    """
    (steps,) = (rest for word, rest in instructions() if word == "RUN" and "pip install" in rest)
    assert "--constraint constraints.txt ." in steps
    steps = steps.replace("/opt/bridge", str(home)).replace("python -m venv", f"{sys.executable} -m venv")
    steps = steps.replace("venv ", "venv --without-pip ", 1)
    steps = steps.replace(f"{home}/bin/pip", f"{sys.executable} -m pip --python {home}/bin/python")
    return [
        step.replace(
            "--constraint constraints.txt",
            "--no-build-isolation --no-deps --no-index --ignore-installed --quiet",
        )
        for step in steps.split("&& ")
    ]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install as the container's build does, interpreted, of the files that are sent to it."""
    place = tmp_path_factory.mktemp("install")
    source, home, away = place / "source", place / "bridge", place / "away"
    source.mkdir()
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            *names, target = rest.split()
            (source / target).parent.mkdir(parents=True, exist_ok=True)
            for name in names:
                subprocess.run(["cp", "-r", str(ROOT / name), str(source / target)], check=True)
    for step in build_steps(home):
        if packages := next(home.glob("lib/python*/site-packages"), None):
            # In the place of downloads. What an editable install has left there works in its own directory only.
            (packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
        done = subprocess.run(
            step,
            shell=True,
            cwd=source,
            env={**os.environ, "BRIDGE_PURE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    away.mkdir(mode=0o555)
    return Installed(home, away)


def test_the_command_works_in_any_directory(installed: Installed) -> None:
    done = installed.run("bridge", "--version")
    assert (done.returncode, done.stdout) == (0, f"bridge {bridge.__version__}\n")
    for command in ("demo", "dev", "serve"):
        assert installed.run("bridge", command, "--help").returncode == 0


def test_every_module_can_be_imported_and_is_the_installed_one(installed: Installed) -> None:
    done = installed.run("python", "-c", EVERYTHING)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed.home))


def test_the_wheel_has_every_file_of_the_package_and_what_dev_and_demo_read(installed: Installed) -> None:
    (package,) = installed.home.glob("lib/python*/site-packages/bridge")
    there = {
        str(path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so")
    }
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "bridge"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    compose = "devservers/compose.yaml"
    if tracked:  # not where the project is no clone
        assert there == {
            compose,
            *(name.removeprefix("bridge/") for name in tracked if (ROOT / name).exists()),
        }
    assert (package / compose).read_text() == (ROOT / "compose.yaml").read_text()
    assert {"cli/demo_requests.jsonl", "web/bridge-client.js", "py.typed"} <= there
    code = "from bridge.cli.demo import SAMPLES, read_messages; print(len(read_messages(SAMPLES, 'x')))"
    assert int(installed.run("python", "-c", code).stdout) > 10


def test_serve_and_the_health_check_work_where_no_byte_can_be_written_to_a_file_and_a_stop_drains(
    installed: Installed, vhost: str, database: str
) -> None:
    environment = installed.environment(
        BRIDGE_AMQP_URL=vhost,
        BRIDGE_POSTGRES_DSN=database,
        BRIDGE_JWT_SECRET=SECRET,
        BRIDGE_WS_HOST="127.0.0.1",
        BRIDGE_WS_PORT=str(reserved_port()),
        BRIDGE_OPS_PORT="0",
        TMPDIR="/nonexistent",
    )
    served = subprocess.Popen(
        ["sh", "-c", "ulimit -f 0 && exec bridge serve"],
        cwd=installed.away, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    check = health_command()
    try:
        for path in ("/livez", "/readyz"):
            asked = [word.replace("/livez", path) for word in check]
            give_up = time.monotonic() + SECONDS
            while installed.run(*asked, environment=environment).returncode != 0:
                assert served.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.1)
        served.send_signal(signal.SIGTERM)
        said, _ = served.communicate(timeout=SECONDS)
    finally:
        served.kill()
        served.wait()
    assert served.returncode == 0, said
    assert "everything that was taken is settled" in said
    assert installed.run(*check, environment=environment).returncode != 0, "nobody answers any more"


def test_demo_runs_from_elsewhere_and_agrees(installed: Installed, vhost: str, database: str) -> None:
    servers = installed.environment(BRIDGE_AMQP_URL=vhost, BRIDGE_POSTGRES_DSN=database)
    done = installed.run("bridge", "demo", environment=servers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The clients and the delivery log agree" in done.stdout
