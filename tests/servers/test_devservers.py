"""The private servers: theirs alone, on loopback, quick to return, and gone with whoever started them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import LiteralString

import aiormq
import psycopg
import pytest
import yaml

import bridge
from bridge.devservers import (
    Servers,
    ServersInUse,
    ServersUnavailable,
    find_or_start,
    private_servers,
    processes,
)
from bridge.devservers.__main__ import main
from bridge.devservers.directory import SavedValues, end_recorded
from bridge.devservers.machine import INSTALL_SCRIPT, ComposeFile, Machine, PostgresFiles, RabbitFiles, choose
from bridge.devservers.postgres import fallback_base
from bridge.devservers.processes import Process
from tests.conftest import DEV
from tests.support.processes import processes_of

REPOSITORY = Path(bridge.__file__).resolve().parent.parent


# --- starting and stopping -------------------------------------------------------------------------------


def silent(_line: str) -> None:
    """No progress."""


def remove(root: Path) -> None:
    main(["forget", str(root)])


@pytest.fixture(scope="module")
def warm_root() -> Iterator[Path]:
    """A root whose data exist, so that each test pays for a warm start only."""
    root = DEV / f"own-{os.getpid()}"
    with private_servers(root, say=silent, usual_ports=False):
        pass
    yield root
    remove(root)


@pytest.fixture
def postgres_root() -> Iterator[Path]:
    root = DEV / f"postgres-{os.getpid()}"
    yield root
    remove(root)


def wait_until(true: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def execute(dsn: str, statement: LiteralString) -> object:
    """The first value that a statement gives, if it gives any."""
    with psycopg.connect(dsn) as conn:
        cursor = conn.execute(statement)
        return (cursor.fetchone() or (None,))[0] if cursor.description else None


@contextmanager
def postgres_only(root: Path, machine: Machine | None = None) -> Iterator[str]:
    """The quicker half of the servers, for what both do alike."""
    with find_or_start(
        root, amqp_url="amqp://elsewhere", postgres_dsn=None, say=silent, machine=machine
    ) as found:
        yield found.postgres_dsn


def program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def listeners() -> set[tuple[str, int]]:
    """(address, port) of every TCP socket of this machine that listens."""
    found = set()
    for table, loopback in (
        ("tcp", "0100007F"),
        ("tcp6", "00000000000000000000000001000000"),
    ):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if state == "0A":
                address, port = local.split(":")
                found.add(("loopback" if address == loopback else address, int(port, 16)))
    return found


def ports_of(root: Path) -> set[int]:
    """Every port that the servers of `root` wrote down."""
    text = "".join(file.read_text() for file in root.glob("*/settings.json"))
    return {int(port) for port in re.findall(r'port": (\d+)', text)}


def test_they_listen_on_loopback_only_and_leave_nothing_behind(warm_root: Path) -> None:
    before = listeners()
    with private_servers(warm_root, say=silent, usual_ports=False) as servers:
        assert {servers.rabbit.pid, servers.postgres.pid} <= set(processes_of(warm_root))
        mine = listeners() - before
        assert {port for _, port in mine} >= ports_of(warm_root)
        assert {address for address, port in mine if port in ports_of(warm_root)} == {"loopback"}
    assert processes_of(warm_root) == {}
    assert not ports_of(warm_root) & {port for _, port in listeners()}


def test_a_second_start_finds_the_data_unless_told_to_begin_afresh(warm_root: Path) -> None:
    with private_servers(warm_root, say=silent, usual_ports=False) as first:
        first.rabbit.create_vhost("kept")
        execute(first.postgres_dsn, "create table kept (n int)")
    with private_servers(warm_root, say=silent) as second:
        assert (second.amqp_url, second.postgres_dsn) == (first.amqp_url, first.postgres_dsn)
        assert "kept" in second.rabbit.evaluate("rabbit_vhost:list_names()")
        assert execute(second.postgres_dsn, "select to_regclass('kept')::text") == "kept"
    with private_servers(warm_root, say=silent, usual_ports=False, reuse=False) as third:
        assert "kept" not in third.rabbit.evaluate("rabbit_vhost:list_names()")
        assert execute(third.postgres_dsn, "select to_regclass('kept')::text") is None


def test_a_port_that_somebody_took_is_left_to_them(warm_root: Path) -> None:
    with ExitStack() as others:
        taken = ports_of(warm_root)
        for port in taken:
            others.enter_context(socket.create_server(("127.0.0.1", port)))
        servers = others.enter_context(private_servers(warm_root, say=silent, usual_ports=False))
        assert not taken & ports_of(warm_root)
        assert servers.rabbit.evaluate("1 + 1") == "2"
        assert execute(servers.postgres_dsn, "select 1") == 1


def test_the_usual_ports_come_first_where_they_are_free(tmp_path: Path) -> None:
    settings = SavedValues(tmp_path / "settings.json")
    with socket.create_server(("127.0.0.1", 0)) as other:
        usual = other.getsockname()[1]
        assert settings.port("first", usual) != usual
    assert settings.port("second", usual) == usual
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not low <= settings.port("first", None) <= high


def test_a_root_has_one_owner_and_is_not_removed_under_it(postgres_root: Path) -> None:
    with postgres_only(postgres_root) as dsn:
        with pytest.raises(ServersInUse) as refused, private_servers(postgres_root, say=silent):
            pass
        assert refused.value.owner == os.getpid()
        assert str(os.getpid()) in str(refused.value)
        forget = [sys.executable, "-m", "bridge.devservers", "forget", str(postgres_root)]
        done = subprocess.run(forget, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert str(os.getpid()) in done.stderr
        assert execute(dsn, "select 1") == 1
    assert main(["forget", str(postgres_root)]) == 0
    assert not postgres_root.exists()


def test_a_clone_out_of_the_reach_of_others_has_its_postgres_and_its_data(tmp_path: Path) -> None:
    root = tmp_path / "closed" / "clone"
    root.parent.mkdir(mode=0o700)
    try:
        with postgres_only(root) as dsn:
            execute(dsn, "create table kept (n int)")
        with postgres_only(root) as dsn:
            assert execute(dsn, "select to_regclass('kept')::text") == "kept"
    finally:
        remove(root)
    assert not fallback_base(root).exists()


BURNING = "echo the disk is on fire >&2; exit 1"


@pytest.mark.parametrize(
    ("initdb", "postgres", "shown"),
    [
        (None, "", "initdb"),
        (BURNING, "", "the disk is on fire"),
        ("", BURNING, "the disk is on fire"),
        ("", f'case "$*" in *--single*) ;; *) {BURNING} ;; esac', "the disk is on fire"),
    ],
)
def test_a_server_that_does_not_start_shows_the_end_of_its_log(
    postgres_root: Path, initdb: str | None, postgres: str, shown: str
) -> None:
    broken = postgres_root.with_name(f"{postgres_root.name}-broken")
    broken.mkdir(parents=True)
    if initdb is not None:
        program(broken / "initdb", initdb)
    program(broken / "postgres", postgres)

    class Burning(Machine):
        def postgres(self) -> PostgresFiles:
            return PostgresFiles(broken)

    try:
        with pytest.raises(ServersUnavailable, match=shown), postgres_only(postgres_root, Burning()):
            pass
    finally:
        shutil.rmtree(broken)
    assert processes_of(postgres_root) == {}


def test_a_server_is_not_started_any_more_once_its_owner_is_leaving(tmp_path: Path) -> None:
    process = Process("Postgres", tmp_path / "record", tmp_path / "log")
    process.close()
    with pytest.raises(ServersUnavailable, match="its owner is leaving"):
        process.spawn(["sleep", "60"], {}, tmp_path)
    assert not process.running


# --- faults, as other tests cause them -------------------------------------------------------------------


def test_each_fault_is_what_it_says_and_is_survived(own_servers: Servers) -> None:
    for server in (own_servers.rabbit, own_servers.postgres):
        first = server.pid
        server.kill()
        with pytest.raises(ServersUnavailable, match="is not running"):
            _ = server.pid
        server.start()
        second = server.pid
        assert second != first
        server.start()  # nothing: it runs
        assert server.pid == second
        server.stop()
        server.stop()  # nothing: it is down
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port), timeout=2)
        server.start()
        server.pause()
        with socket.create_connection(("127.0.0.1", server.port)) as peer:
            peer.settimeout(0.3)
            peer.sendall(b"AMQP\x00\x00\x09\x01")
            with pytest.raises(TimeoutError):
                peer.recv(1)
        server.resume()
    own_servers.postgres.stop("immediate")
    own_servers.postgres.start()
    assert own_servers.rabbit.evaluate("1 + 1") == "2"
    assert execute(own_servers.postgres_dsn, "select 1") == 1


async def test_the_broker_obeys_its_tools_and_a_vhost_is_apart_from_the_others(own_servers: Servers) -> None:
    rabbit = own_servers.rabbit
    connection = await aiormq.connect(rabbit.create_vhost("apart"))
    channel = await connection.channel()
    await channel.queue_declare("q")
    assert rabbit.ctl("list_queues", "-p", "apart", "name").split() == ["name", "q"]
    assert rabbit.ctl("list_queues", "name").split() in ([], ["name"])
    await connection.close()
    rabbit.delete_vhost("apart")
    assert "apart" not in rabbit.evaluate("rabbit_vhost:list_names()")
    with pytest.raises(ServersUnavailable, match="nonsense"):
        rabbit.ctl("nonsense")
    with pytest.raises(ServersUnavailable, match="could not evaluate"):
        rabbit.evaluate("no_such_module:go()")


def test_postgres_never_runs_as_root(own_servers: Servers) -> None:
    status = Path(f"/proc/{own_servers.postgres.pid}/status").read_text()
    users = re.search(r"^Uid:\t(.*)$", status, re.MULTILINE)
    assert users is not None
    assert "0" not in users[1].split("\t")


def test_frozen_servers_are_stopped_in_order_all_the_same(
    warm_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    real = processes._signal

    def noted(who: processes.Identity, number: int) -> bool:
        sent.append((who.pid, number))
        return real(who, number)

    monkeypatch.setattr(processes, "_signal", noted)
    with private_servers(warm_root, say=silent, usual_ports=False) as servers:
        pids = {servers.rabbit.pid, servers.postgres.pid}
        servers.rabbit.pause()
        servers.postgres.pause()
    asked = {number for pid, number in sent if pid in pids}
    assert asked >= {signal.SIGTERM, signal.SIGINT}
    assert signal.SIGKILL not in asked
    assert processes_of(warm_root) == {}


# --- owners that die -------------------------------------------------------------------------------------


@contextmanager
def owner_of(root: Path, until: str = "postgresql://") -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Another process that owns the servers, and the lines that it printed up to one that begins so."""
    command = [sys.executable, "-m", "bridge.devservers", "hold", str(root), "--any-ports"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        lines: list[str] = []
        try:
            while not (lines and lines[-1].startswith(until)):
                lines.append(owner.stdout.readline().strip())
            yield owner, lines
        finally:
            owner.kill()


def test_each_slow_step_is_said_and_sigterm_stops_all(warm_root: Path) -> None:
    with owner_of(warm_root) as (owner, lines):
        owner.terminate()
        assert owner.wait(60) == 0
    assert processes_of(warm_root) == {}
    said = "\n".join(lines)
    for server in ("RabbitMQ", "Postgres"):
        assert re.search(rf"starting {server} [\d.]+ on 127\.0\.0\.1:\d+", said)
        assert re.search(rf"{server} [\d.]+ is up after \d+\.\d s", said)
    assert lines[-2].startswith("amqp://")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_owner_that_ends_in_the_middle_of_the_start_leaves_nothing(warm_root: Path, number: int) -> None:
    with owner_of(warm_root, until="starting RabbitMQ") as (owner, _):
        wait_until(lambda: any("rabbit" in command for command in processes_of(warm_root).values()))
        owner.send_signal(number)
        assert owner.wait(60) != 0
    wait_until(lambda: processes_of(warm_root) == {})


@pytest.mark.parametrize("gap", [0.0, 0.05, 0.3])
def test_an_owner_that_is_interrupted_again_and_again_leaves_nothing(warm_root: Path, gap: float) -> None:
    """In its start, then in its stop; the second owner comes up on what the first has left, and a third on both."""
    for when in ("starting RabbitMQ", "postgres"):
        with owner_of(warm_root, until=when) as (owner, _):
            wait_until(lambda: any("rabbit" in command for command in processes_of(warm_root).values()))
            for _ in range(5):
                owner.send_signal(signal.SIGINT)
                time.sleep(gap)
            assert owner.wait(60) != 1
        wait_until(lambda: processes_of(warm_root) == {})
    with private_servers(warm_root, say=silent, usual_ports=False):
        pass


def test_an_owner_that_is_killed_takes_its_servers_along(warm_root: Path) -> None:
    with owner_of(warm_root) as (owner, _):
        assert len(processes_of(warm_root)) > 3
        owner.kill()
    wait_until(lambda: processes_of(warm_root) == {})


def test_what_outlived_even_the_guard_is_ended_by_the_next_start(warm_root: Path) -> None:
    with owner_of(warm_root) as (owner, _):
        (guard,) = [pid for pid, command in processes_of(warm_root).items() if " guard " in command]
        os.kill(guard, signal.SIGKILL)
        owner.kill()
    left = set(processes_of(warm_root)) - {guard}
    assert left
    with private_servers(warm_root, say=silent, usual_ports=False) as servers:
        assert not left & set(processes_of(warm_root))
        assert servers.rabbit.evaluate("1 + 1") == "2"
    assert processes_of(warm_root) == {}


def test_a_stranger_with_a_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        stat = Path(f"/proc/{stranger.pid}/stat").read_text()
        head, fields = stat.rsplit(")", 1)
        other = fields.split()
        other[19] = str(int(other[19]) - 1)  # the start time of whoever had this pid before
        record = tmp_path / "run" / "postgres.process"
        record.parent.mkdir()
        record.write_text(f"{boot}{head}) {' '.join(other)}\n")
        end_recorded(tmp_path)
        assert stranger.poll() is None
        record.write_text(f"{boot}{stat}")  # and with its own start time it is the one that was meant
        end_recorded(tmp_path)
        assert stranger.wait(5) == -signal.SIGINT
    finally:
        stranger.kill()
        stranger.wait()


# --- which way -------------------------------------------------------------------------------------------


class Bare(Machine):
    """A machine on which nothing is found but what a test puts there."""

    def __init__(self, *, apt: Sequence[str] | None = None, docker: bool = False, has: Sequence[str] = ()):
        self._apt = apt
        self._docker = docker
        self._has = set(has)
        self.installed: list[str] = []

    def rabbitmq(self) -> RabbitFiles | None:
        return (
            RabbitFiles(Path("/r"), Path("/erl"), Path("/epmd")) if "rabbitmq-server" in self._has else None
        )

    def postgres(self) -> PostgresFiles | None:
        return PostgresFiles(Path("/p")) if "postgresql" in self._has else None

    def can_install(self) -> bool:
        return self._apt is not None

    def install(self, packages: Sequence[str], log: Path) -> None:
        assert self._apt is not None
        self.installed += packages
        self._has |= set(packages) & set(self._apt)
        if set(packages) - set(self._apt):
            raise ServersUnavailable("apt-get could not install it: no network")

    def compose(self) -> ComposeFile | None:
        return ComposeFile(Path("/docker"), Path("/compose.yaml")) if self._docker else None


BOTH = ("rabbitmq", "postgres")
PACKAGES = ("rabbitmq-server", "postgresql")


def test_what_is_there_is_used_and_nothing_is_installed(tmp_path: Path) -> None:
    machine = Bare(apt=PACKAGES, docker=True, has=PACKAGES)
    ways = choose(machine, BOTH, tmp_path / "log", silent)
    assert isinstance(ways.rabbitmq, RabbitFiles)
    assert isinstance(ways.postgres, PostgresFiles)
    assert machine.installed == []


def test_only_what_is_missing_is_installed_and_said_so(tmp_path: Path) -> None:
    said: list[str] = []
    machine = Bare(apt=PACKAGES, docker=True, has=["postgresql"])
    ways = choose(machine, BOTH, tmp_path / "log", said.append)
    assert isinstance(ways.rabbitmq, RabbitFiles)
    assert machine.installed == ["rabbitmq-server"]
    assert said == ["installing RabbitMQ: apt-get install rabbitmq-server (once; a minute or two)"]


def test_docker_stands_in_for_what_can_not_be_installed(tmp_path: Path) -> None:
    without_root = Bare(docker=True, has=["postgresql"])
    ways = choose(without_root, BOTH, tmp_path / "log", silent)
    assert isinstance(ways.rabbitmq, ComposeFile)
    assert isinstance(ways.postgres, PostgresFiles)
    without_network = Bare(apt=(), docker=True)
    ways = choose(without_network, BOTH, tmp_path / "log", silent)
    assert isinstance(ways.rabbitmq, ComposeFile)
    assert isinstance(ways.postgres, ComposeFile)


def test_without_any_way_one_message_says_what_to_install_and_what_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(ServersUnavailable) as refused:
        choose(Bare(), BOTH, tmp_path / "log", silent)
    assert str(refused.value) == (
        "RabbitMQ and Postgres not found: run `sudo apt-get install rabbitmq-server postgresql`, or start docker,"
        " or (not for tests) point BRIDGE_AMQP_URL and BRIDGE_POSTGRES_DSN at a running server"
    )
    with pytest.raises(ServersUnavailable, match=r"^RabbitMQ not found: (?s:.*)no network$"):
        choose(Bare(apt=(), has=["postgresql"]), BOTH, tmp_path / "log", silent)


def test_addresses_that_are_given_win_and_nothing_is_looked_for(tmp_path: Path) -> None:
    given = {"amqp_url": "amqp://a", "postgres_dsn": "postgresql://b"}
    with find_or_start(tmp_path / "root", **given, say=silent, machine=Bare()) as found:
        assert (found.amqp_url, found.postgres_dsn) == ("amqp://a", "postgresql://b")
    assert not (tmp_path / "root").exists()
    with pytest.raises(ServersUnavailable, match=r"^Postgres not found"), postgres_only(tmp_path, Bare()):
        pass


def test_a_docker_client_without_an_engine_is_no_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\n[ "$1" = compose ] || exit 1\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert Machine().compose() is None
    docker.write_text("#!/bin/sh\nexit 0\n")
    assert Machine().compose() == ComposeFile(docker, REPOSITORY / "compose.yaml")


# --- installing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apt_fails", [False, True])
@pytest.mark.parametrize("policy", [None, "exit 0", "exit 101"])
def test_no_service_starts_while_packages_are_installed_and_the_policy_is_as_before(
    tmp_path: Path, policy: str | None, apt_fails: bool
) -> None:
    sbin, etc, tools = tmp_path / "usr/sbin", tmp_path / "etc", tmp_path / "bin"
    for directory in (sbin, etc, tools):
        directory.mkdir(parents=True)
    seen = tmp_path / "seen"
    program(tools / "dpkg-query", "exit 1")
    program(tools / "systemctl", f'echo "systemctl $*" >>{seen}')
    program(
        tools / "apt-get",
        f"{sbin}/policy-rc.d rabbitmq-server start; echo $? >>{seen}; "
        f"cat {etc}/postgresql-common/createcluster.d/* >>{seen}; exit {int(apt_fails)}",
    )
    before = sbin / "policy-rc.d"
    if policy is not None:
        program(before, policy)
        was = before.read_bytes(), before.stat().st_mode
    script = INSTALL_SCRIPT.replace("/usr/sbin/", f"{sbin}/").replace("/etc/", f"{etc}/")
    done = subprocess.run(
        ["sh", "-c", script, "sh", "rabbitmq-server"],
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        check=False,
    )
    assert bool(done.returncode) == apt_fails
    assert seen.read_text().splitlines()[:2] == ["101", "create_main_cluster = false"]
    assert [file.name for file in sbin.iterdir()] == ([] if policy is None else ["policy-rc.d"])
    if policy is not None:
        assert (before.read_bytes(), before.stat().st_mode) == was
    assert list((etc / "postgresql-common/createcluster.d").iterdir()) == []


def test_a_policy_that_was_left_by_a_crash_denies_nothing_and_is_removed(tmp_path: Path) -> None:
    sbin, tools = tmp_path / "usr/sbin", tmp_path / "bin"
    for directory in (sbin, tools):
        directory.mkdir(parents=True)
    program(sbin / "policy-rc.d", "exit 0 # theirs")
    program(tools / "dpkg-query", "exit 1")
    program(tools / "systemctl", "exit 0")
    script = INSTALL_SCRIPT.replace("/usr/sbin/", f"{sbin}/").replace("/etc/", f"{tmp_path}/etc/")
    # A kill -9 of the installing shell, from within apt-get.
    program(tools / "apt-get", "kill -9 $PPID")
    env = {"PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", script, "sh", "p"], env=env, capture_output=True, check=False)
    assert subprocess.run([sbin / "policy-rc.d"], check=False).returncode == 0
    assert "theirs" not in (sbin / "policy-rc.d").read_text()
    program(tools / "apt-get", "exit 0")
    subprocess.run(["sh", "-c", script, "sh", "p"], env=env, capture_output=True, check=True)
    assert "theirs" in (sbin / "policy-rc.d").read_text()
    assert [file.name for file in sbin.iterdir()] == ["policy-rc.d"]


def test_the_package_list_is_renewed_when_a_package_is_not_found(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tmp_path / "usr/sbin").mkdir(parents=True)
    program(tools / "dpkg-query", "exit 1")
    program(tools / "systemctl", "exit 0")
    program(
        tools / "apt-get",
        f'case "$*" in *update*) touch {tmp_path}/fresh ;; *) [ -e {tmp_path}/fresh ] || exit 100 ;; esac',
    )
    script = INSTALL_SCRIPT.replace("/usr/sbin/", f"{tmp_path}/usr/sbin/")
    script = script.replace("/etc/", f"{tmp_path}/etc/")
    env = {"PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", script, "sh", "p"], env=env, capture_output=True, check=True)
    assert (tmp_path / "fresh").exists()


def test_the_compose_file_binds_to_loopback_and_takes_our_ports() -> None:
    found = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    services = {name: service for name, service in found.items() if "profiles" not in service}
    assert set(services) == {"rabbitmq", "postgres"}
    for service in services.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:${BRIDGE_COMPOSE_")
