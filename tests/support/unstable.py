"""Run tests against the RabbitMQ and Postgres of Debian unstable, the newest that Debian has:
`python -m tests.support.unstable tests/servers/test_amqp.py`, or without arguments those that meet the broker most.

It unpacks the servers into .dev/unstable with debootstrap, once: remove that folder for newer ones. The tests are those
of this tree, with this machine's Python, which must not be the one in /usr: its folders are bound into the chroot. It
needs root, debootstrap and unshare. All mounts and processes end with it.
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
FOLDER: Final = ROOT / ".dev" / "unstable"
PACKAGES: Final = (
    "ca-certificates", "libbz2-1.0", "libffi8", "liblzma5", "libreadline8t64", "libsqlite3-0", "openssl", "postgresql",
    "procps", "rabbitmq-server", "zlib1g",
)  # fmt: skip
"""The servers, and what a Python of its own is linked with."""
TOOLS: Final = ("debootstrap", "unshare", "chroot")
TESTS: Final = tuple(
    f"tests/servers/test_{name}.py"
    for name in (
        "amqp",
        "foreign_clients",
        "check",
        "amqp_publish",
        "dead_letters",
        "broker_words",
        "least_privilege",
        "end_to_end",
        "nodes",
        "partitions",
        "standby",
        "publish_refusals",
        "fallbacks",
        "scheduled",
        "producer",
        "inbound",
        "check_limits",
        "replay",
        "surroundings",
        "faults",
    )
)


def main(arguments: Sequence[str]) -> int:
    """Run pytest with these arguments; returns its exit code, or 2 where it can't be run."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    python = Path(sys.base_prefix)
    if missing or os.geteuid() != 0 or python == Path("/usr"):
        print(f"needed: root, {', '.join(missing or TOOLS)}, and a Python outside of /usr", file=sys.stderr)
        return 2
    if not (FOLDER / "usr" / "lib" / "rabbitmq").exists():
        print(f"unpacking Debian unstable into {FOLDER.relative_to(ROOT)} (two minutes)", flush=True)
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "sid", str(FOLDER)],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            print(made.stdout[-2_000:], file=sys.stderr)
            shutil.rmtree(FOLDER)
            return 2
    shutil.copy("/etc/hosts", FOLDER / "etc" / "hosts")
    tests = shlex.join([sys.executable, "-m", "pytest", "-q", *(arguments or TESTS)])
    lines = script(f"cd {shlex.quote(str(ROOT))} && exec {tests}", (python, Path(sys.prefix).resolve(), ROOT))
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "bash", "-ec", lines]
    ).returncode


def script(command: str, folders: Sequence[Path]) -> str:
    """What runs in the namespaces: mounts, also of these folders, then the command in the chroot."""
    root = shlex.quote(str(FOLDER))
    lines = [
        f"mount -t proc proc {root}/proc",
        f"mount --rbind /dev {root}/dev",
        f"mount -t tmpfs tmpfs {root}/tmp",
    ]
    for folder in folders:
        there = shlex.quote(f"{FOLDER}{folder}")
        lines += [f"mkdir -p {there}", f"mount --bind {shlex.quote(str(folder))} {there}"]
    given = {
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(ROOT),
    }
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in given.items())
    lines.append(f"exec chroot {root} /usr/bin/env -i {variables} bash -ec {shlex.quote(command)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
