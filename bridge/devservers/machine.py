"""Finds server programs on this machine, and installs those that are missing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bridge.devservers.processes import end_of_log
from bridge.devservers.servers import INSTALL_TIMEOUT, ServersUnavailable


@dataclass(frozen=True)
class RabbitFiles:
    """RabbitMQ's own scripts (not a distribution's wrappers around them) and the Erlang that they run on."""

    scripts: Path
    erl: Path
    epmd: Path

    @property
    def version(self) -> str:
        """`3.10`, or empty if the directory's name does not say. Another version may not load the data."""
        found = re.search(r"rabbitmq_server-(\d+\.\d+)", str((self.scripts / "rabbitmq-server").resolve()))
        return found[1] if found else ""


@dataclass(frozen=True)
class PostgresFiles:
    """The directory that holds `postgres` and `initdb`."""

    bin: Path

    @property
    def version(self) -> str:
        """`15`: the major version; only the same one can use the data again."""
        told = subprocess.run(
            [self.bin / "postgres", "--version"], capture_output=True, text=True, check=False
        )
        found = re.search(r"(\d+)(?:\.\d+|devel|beta|rc)", told.stdout)
        return found[1] if found else ""


class Needed(NamedTuple):
    """A program: its usual name, its Debian package, and the setting that can replace it."""

    title: str
    package: str
    variable: str = ""


NEEDED = {
    "rabbitmq": Needed("RabbitMQ", "rabbitmq-server", "BRIDGE_AMQP_URL"),
    "postgres": Needed("Postgres", "postgresql", "BRIDGE_POSTGRES_DSN"),
    "chromium": Needed("Chromium", "chromium"),
    "pgbouncer": Needed("PgBouncer", "pgbouncer"),
    "nginx": Needed("nginx", "nginx"),
    "haproxy": Needed("HAProxy", "haproxy"),
    "caddy": Needed("Caddy", "caddy"),
    "nats": Needed("the NATS server", "nats-server"),
    "mosquitto": Needed("mosquitto", "mosquitto"),
    "nchan": Needed("nginx with nchan", "libnginx-mod-nchan"),
    "promtool": Needed("promtool", "prometheus"),
    "venv": Needed("Python's venv", "python3-venv"),
}

NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

INSTALL_SCRIPT = r"""
set -u
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
kept=$policy.kept-by-bridge
no_cluster=/etc/postgresql-common/createcluster.d/bridge.conf
mark='Written by bridge while it installs packages'
ours=

undo() {
    rm -f "$no_cluster"
    [ -z "$ours" ] || rm -f "$policy"
    [ ! -e "$kept" ] || mv -f "$kept" "$policy"
}
trap undo EXIT
trap 'exit 1' HUP INT TERM

# Packages ask this file whether their service may start. Ours says no only while this shell lives, so a
# power cut at this point does not keep services down for good.
denies() { [ -x "$policy" ] && { "$policy" rabbitmq-server start >/dev/null 2>&1; [ $? -eq 101 ]; }; }
if ! denies; then
    if [ -e "$policy" ] && ! grep -q "$mark" "$policy"; then mv -f "$policy" "$kept"; fi
    ours=yes
    cat >"$policy" <<END
#!/bin/sh
# $mark: no service starts meanwhile.
[ -d /proc/$$ ] && exit 101
[ ! -x $kept ] || exec $kept "\$@"
END
    chmod 755 "$policy"
fi
mkdir -p "${no_cluster%/*}"
echo 'create_main_cluster = false' >"$no_cluster"

installed() { dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }
new=
for unit in rabbitmq-server erlang-base nats-server mosquitto nginx haproxy caddy prometheus; do
    installed "$unit" || new="$new $unit"
done

get() {
    apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold "$@"
}
get install --no-install-recommends "$@" || { get update && get install --no-install-recommends "$@"; }
code=$?

# Nor may they start with the machine: nobody asked for a system-wide broker or web server.
if command -v systemctl >/dev/null; then
    for package in $new; do
        case $package in
            rabbitmq-server) units=rabbitmq-server.service ;;
            erlang-base) units='epmd.socket epmd.service' ;;
            *) units=$package.service ;;
        esac
        ! installed "$package" || systemctl disable $units
    done
fi
exit $code
"""


class Machine:
    """What this machine has, and how to install more. Tests pass machines that have less."""

    def rabbitmq(self) -> RabbitFiles | None:
        """RabbitMQ and Erlang, if both are here."""
        erl, epmd = _on_path("erl"), _on_path("epmd")
        if erl is not None and epmd is None:
            # Debian keeps epmd on the PATH; other builds of Erlang have it next to the real `erl` only.
            epmd = next(iter(sorted(erl.resolve().parent.parent.parent.glob("erts-*/bin/epmd"))), None)
        if erl is None or epmd is None:
            return None
        places = [Path("/usr/lib/rabbitmq/bin"), *_newest("/usr/lib/rabbitmq/lib", "*/sbin")]
        on_path = _on_path("rabbitmq-server")
        if on_path is not None:
            places.append(on_path.resolve().parent)
        for place in places:
            # Debian's wrapper on the PATH insists on the user `rabbitmq`; only the real scripts have this file.
            if all((place / name).exists() for name in ("rabbitmq-server", "rabbitmqctl", "rabbitmq-env")):
                return RabbitFiles(place, erl, epmd)
        return None

    def postgres(self) -> PostgresFiles | None:
        """Postgres; the newest if there are several."""
        places = _newest("/usr/lib/postgresql", "*/bin")
        on_path = _on_path("postgres")
        if on_path is not None:
            places.insert(0, on_path.resolve().parent)
        for place in places:
            if (place / "postgres").exists() and (place / "initdb").exists():
                return PostgresFiles(place)
        return None

    def chromium(self) -> Path | None:
        """A browser for the tests of the demo page."""
        return _on_path("chromium") or _on_path("chromium-browser") or _on_path("google-chrome")

    def pgbouncer(self) -> Path | None:
        """A pooler, for the tests of a bridge behind one."""
        return _on_path("pgbouncer")

    def nginx(self) -> Path | None:
        """A proxy, for the tests of a bridge behind one."""
        return _on_path("nginx")

    def haproxy(self) -> Path | None:
        """Another one."""
        return _on_path("haproxy")

    def caddy(self) -> Path | None:
        """Another one."""
        return _on_path("caddy")

    def nats(self) -> Path | None:
        """The NATS server, a peer of the benchmarks."""
        return _on_path("nats-server")

    def mosquitto(self) -> Path | None:
        """An MQTT broker, a peer of the benchmarks."""
        return _on_path("mosquitto")

    def nchan(self) -> Path | None:
        """nginx, if it has the module nchan; a peer of the benchmarks."""
        nginx = _on_path("nginx")
        return nginx if nginx is not None and NCHAN_MODULE.exists() else None

    def promtool(self) -> Path | None:
        """The checker of Prometheus, for the tests of the alerts."""
        return _on_path("promtool")

    def venv(self) -> object | None:
        """The module that `python -m venv` needs; Debian's python3 comes without it."""
        importlib.invalidate_caches()
        return importlib.util.find_spec("ensurepip")

    def find(self, wanted: Sequence[str]) -> dict[str, Any]:
        """Those of `wanted` that are here, by name."""
        looks: dict[str, Callable[[], object]] = {
            "rabbitmq": self.rabbitmq,
            "postgres": self.postgres,
            "chromium": self.chromium,
            "pgbouncer": self.pgbouncer,
            "nginx": self.nginx,
            "haproxy": self.haproxy,
            "caddy": self.caddy,
            "nats": self.nats,
            "mosquitto": self.mosquitto,
            "nchan": self.nchan,
            "promtool": self.promtool,
            "venv": self.venv,
        }
        return {name: found for name in wanted if (found := looks[name]()) is not None}

    def root_command(self) -> list[str] | None:
        """The words before a command that run it as root without a password: none for root, `sudo -n`, or None."""
        if os.geteuid() == 0:
            return []
        sudo = _on_path("sudo")
        if sudo is None or not _succeeds([str(sudo), "-n", "true"]):
            return None
        return [str(sudo), "-n"]

    def can_install(self) -> bool:
        """Whether `install` can work."""
        return _on_path("apt-get") is not None and self.root_command() is not None

    def install(self, packages: Sequence[str], log: Path) -> None:
        """Install Debian packages without starting any service; raises ServersUnavailable."""
        as_root = self.root_command()
        assert as_root is not None
        command = [*as_root, "sh", "-c", INSTALL_SCRIPT, "sh", *packages]
        with log.open("wb") as out:
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    check=False,
                    timeout=INSTALL_TIMEOUT,
                )
            except subprocess.TimeoutExpired as exc:
                raise ServersUnavailable(
                    f"apt-get did not end in {INSTALL_TIMEOUT:.0f} s, see {log}"
                ) from exc
        if done.returncode:
            raise ServersUnavailable(f"apt-get could not install {' '.join(packages)}:\n{end_of_log(log)}")

    def compose(self) -> ComposeFile | None:
        """Our compose.yaml and a docker client, if a docker engine answers."""
        docker = _on_path("docker")
        here = Path(__file__).resolve()
        # A wheel has it in this package, the repository at its root.
        places = (here.parent / "compose.yaml", here.parent.parent.parent / "compose.yaml")
        file = next((place for place in places if place.exists()), None)
        if docker is None or file is None:
            return None
        # `docker info` alone succeeds without an engine; asking it for the engine's version does not.
        engine = [str(docker), "info", "--format", "{{.ServerVersion}}"]
        if not _succeeds(engine) or not _succeeds([str(docker), "compose", "version"]):
            return None
        return ComposeFile(docker, file)


@dataclass(frozen=True)
class ComposeFile:
    """The docker client and its compose file."""

    docker: Path
    file: Path


@dataclass(frozen=True)
class Ways:
    """How each of the servers will be run; None for one that is not wanted."""

    rabbitmq: RabbitFiles | ComposeFile | None = None
    postgres: PostgresFiles | ComposeFile | None = None


def choose(machine: Machine, wanted: Sequence[str], log: Path, say: Callable[[str], None]) -> Ways:
    """Decide how to run the servers named in `wanted`: found here, installed now, or in docker.

    Raises ServersUnavailable, with everything that is missing in one sentence.
    """
    found, trouble = _find_or_install(machine, wanted, log, say)
    missing = [name for name in wanted if name not in found]
    if missing and (compose := machine.compose()) is not None:
        found |= dict.fromkeys(missing, compose)
        missing = []
    if missing:
        raise ServersUnavailable(_advice(missing, trouble))
    return Ways(**found)


def ensure(machine: Machine, wanted: Sequence[str], log: Path, say: Callable[[str], None]) -> None:
    """Install those of `wanted` that are missing. Raises ServersUnavailable."""
    found, trouble = _find_or_install(machine, wanted, log, say)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ServersUnavailable(_advice(missing, trouble))


def _find_or_install(
    machine: Machine, wanted: Sequence[str], log: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], str]:
    """What is here now, and what went wrong with the installation."""
    found = machine.find(wanted)
    missing = [name for name in wanted if name not in found]
    if not missing or not machine.can_install():
        return found, ""
    packages = [NEEDED[name].package for name in missing]
    say(f"installing {_titles(missing)}: apt-get install {' '.join(packages)} (once; a minute or two)")
    try:
        machine.install(packages, log)
    except ServersUnavailable as exc:
        return machine.find(wanted), str(exc)
    return machine.find(wanted), ""


def _advice(missing: Sequence[str], trouble: str) -> str:
    packages = " ".join(NEEDED[name].package for name in missing)
    advice = f"{_titles(missing)} not found: run `sudo apt-get install {packages}`"
    variables = [NEEDED[name].variable for name in missing if NEEDED[name].variable]
    if variables:
        advice += f", or start docker, or (not for tests) point {' and '.join(variables)} at a running server"
    return f"{advice}\n{trouble}" if trouble else advice


def _titles(names: Sequence[str]) -> str:
    return " and ".join(NEEDED[name].title for name in names)


def _on_path(name: str) -> Path | None:
    # A plain user's PATH on Debian lacks the sbin directories.
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin")
    return Path(found) if found else None


def _newest(base: str, pattern: str) -> list[Path]:
    def version(path: Path) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", str(path))]

    return sorted(Path(base).glob(pattern), key=version, reverse=True)


def _succeeds(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
