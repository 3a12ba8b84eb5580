"""Run the tests on Debian 13: Python 3.13, RabbitMQ 4.0 and Postgres 17. `make test13`, or with arguments for pytest
`python -m tests.support.debian13 tests/core -k fan_out`; after `--` any other command, which runs in the sources there:
`python -m tests.support.debian13 -- .venv/bin/python -m benchmarks.chaos`.

It unpacks Debian 13 into .dev/debian13 with debootstrap, copies what is committed into it, makes the environment there
and runs pytest in a chroot, in namespaces of its own: all mounts and processes end with it. It needs root, debootstrap,
unshare, and the ways of pip and npm to their packages, which it takes over from this machine. The next run takes the
same folder.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
FOLDER: Final = ROOT / ".dev" / "debian13"
RELEASE: Final = "trixie"
PACKAGES: Final = (
    "ca-certificates", "gcc", "git", "iproute2", "libc6-dev", "make", "openssl", "procps", "python3", "python3-dev",
    "python3-venv", "rabbitmq-server", "postgresql", "pgbouncer", "nginx", "haproxy", "caddy", "prometheus", "chromium",
    "npm",
)  # fmt: skip
TOOLS: Final = ("debootstrap", "unshare", "chroot", "git")
SHARED: Final = ("/etc/ssl", "/etc/xdg/pip")
"""Folders of this machine that are there, too: its certificates, and how its pip finds packages."""
CONFIGURED: Final = {"globalconfig": "etc/npmrc", "userconfig": "root/.npmrc"}
"""Settings of npm that name its files of settings, and where Debian's npm has these."""
COPIED: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf")
PASSED: Final = (
    "PIP_",
    "npm_config_",
    "SSL_CERT_",
    "REQUESTS_CA_",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "PYTEST_ADDOPTS",
)
"""Beginnings of the names of environment variables that are passed on."""
PYTEST: Final = ".venv/bin/python -m pytest -n 2 --dist loadfile"
INSIDE: Final = "cd /src && make --no-print-directory .venv/.ready && exec"


def main(arguments: Sequence[str]) -> int:
    """Run the tests with these arguments, or another command; returns its exit code, or 2 where Debian can't be
    unpacked."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        print(f"needed: root, and {', '.join(missing or TOOLS)}", file=sys.stderr)
        return 2
    if not (FOLDER / "usr" / "bin" / "python3").exists():
        print(f"unpacking Debian 13 into {FOLDER.relative_to(ROOT)} (two minutes)", flush=True)
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", RELEASE, str(FOLDER)],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            print(made.stdout[-2_000:], file=sys.stderr)
            shutil.rmtree(FOLDER)
            return 2
    for name in COPIED:
        if Path(name).exists():
            shutil.copy(name, FOLDER / name[1:])
    copy_npm_settings()
    copy_sources()
    other = list(arguments[:1]) == ["--"]
    command = (
        f"{INSIDE} {shlex.join(arguments[1:])}" if other else f"{INSIDE} {PYTEST} {shlex.join(arguments)}"
    )
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "bash", "-ec", script(command)]
    ).returncode


def copy_npm_settings() -> None:
    """Let npm there find packages as npm does here, if it is here."""
    npm = shutil.which("npm")
    for setting, path in CONFIGURED.items() if npm else ():
        told = subprocess.run(
            [str(npm), "config", "get", setting], capture_output=True, text=True, check=True
        )
        if Path(told.stdout.strip()).exists():
            shutil.copy(told.stdout.strip(), FOLDER / path)


def copy_sources() -> None:
    """Bring the copy of the repository there to what is committed here; its environment stays."""
    target = FOLDER / "src"
    if not target.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(target)], check=True)
    for step in (("fetch", "--quiet", str(ROOT), "HEAD"), ("reset", "--quiet", "--hard", "FETCH_HEAD")):
        subprocess.run(["git", "-C", str(target), *step], check=True)


def local_indexes() -> list[str]:
    """Folders of this machine in which pip looks for packages."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    words = [word.strip("'\"").removeprefix("file://") for word in told.replace("=", " ").split()]
    return sorted({word for word in words if word.startswith("/") and Path(word).is_dir()})


def script(command: str) -> str:
    """What runs in the namespaces: mounts, then the command in the chroot."""
    root = shlex.quote(str(FOLDER))
    lines = [
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        f"mount -t tmpfs tmpfs {root}/tmp",
        # Here is the data of private servers whose folder Postgres' user can't reach. Tests use folders of the same
        # names in each run.
        f"mount -t tmpfs tmpfs {root}/var/tmp",
    ]
    for folder in (*SHARED, *local_indexes()):
        if Path(folder).is_dir():
            lines += [f"mkdir -p {root}{folder}", f"mount --bind {folder} {root}{folder}"]
    passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
    given = {
        **passed,
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "BRIDGE_PURE": "1",
        "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items())
    lines.append(f"chroot {root} /usr/bin/env -i {variables} bash -ec {shlex.quote(command)} || exit $?")
    # This shell is process 1 there and collects the children that others leave: it must not become its last command.
    lines.append("exit 0")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
