"""A private RabbitMQ."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from bridge.devservers.directory import Run, home_of
from bridge.devservers.machine import RabbitFiles
from bridge.devservers.processes import Process
from bridge.devservers.servers import HOST, USUAL_AMQP_PORT, ServersUnavailable

_RABBIT_CONF = """\
listeners.tcp.1 = {host}:{port}
default_user = bridge
default_pass = {password}
log.console = false
log.file.rotation.size = 10485760
log.file.rotation.count = 2
# For a developer's machine: alarms come early enough to be seen, and the write-ahead log stays small.
vm_memory_high_watermark.absolute = 1GB
disk_free_limit.absolute = 200MB
raft.wal_max_size_bytes = 67108864
"""

HASH_PLUGIN = "rabbitmq_consistent_hash_exchange"
"""Ships with every RabbitMQ, and several partitions of the requests need it."""

# Reads one expression a line, evaluates it on the node, and answers with one line. It ends at the end of its
# input, so it ends with us.
_SHELL = (
    'Node = list_to_atom(os:getenv("BRIDGE_NODE")), '
    'Loop = fun(Again) -> case io:get_line("") of eof -> halt(0); Line -> '
    "Answer = try {ok, Tokens, _} = erl_scan:string(Line), {ok, Exprs} = erl_parse:parse_exprs(Tokens), "
    "case rpc:call(Node, erl_eval, exprs, [Exprs, []], 60000) of "
    "{value, Value, _} -> {ok, Value}; Bad -> {error, Bad} end catch _:Why -> {error, Why} end, "
    'io:format("~0tp~n", [Answer]), Again(Again) end end, Loop(Loop).'
)


class PrivateRabbit:
    """RabbitMQ as child processes: the broker, its port mapper, and a shell into it."""

    def __init__(
        self, files: RabbitFiles, run: Run, usual_ports: bool, plugins: Mapping[str, Sequence[str]]
    ) -> None:
        self.title = f"RabbitMQ {files.version}".strip()
        self._files = files
        self._plugins = {HASH_PLUGIN: (), **plugins}
        self._home, self._saved = home_of(run.root, f"rabbitmq-{files.version}".rstrip("-"))
        kept = self._saved
        self._node = kept.get("node", lambda: f"bridge-{secrets.token_hex(4)}@localhost")
        self._password = kept.get("password", lambda: secrets.token_urlsafe(24))
        self._cookie = kept.get("cookie", lambda: secrets.token_hex(20).upper())
        self._port = kept.port("port", USUAL_AMQP_PORT if usual_ports else None)
        self._dist_port = kept.port("dist_port", None)
        self._epmd_port = kept.port("epmd_port", None)
        self._broker = Process(self.title, run.record("rabbitmq"), self._home / "console.log")
        self._epmd = Process("epmd", run.record("epmd"), self._home / "epmd.log")
        self._shell: subprocess.Popen[str] | None = None
        self._shell_lock = threading.Lock()

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int:
        return self._broker.identity.pid

    @property
    def url(self) -> str:
        return self._url("")

    def start(self) -> None:
        if self._broker.running:
            return
        self._configure()
        if not self._epmd.running:
            self._epmd.spawn(
                [self._files.epmd, "-port", str(self._epmd_port), "-address", HOST], self._env(), self._home
            )
            self._epmd.wait_ready(lambda: _answers(self._epmd_port))
        self._broker.spawn([self._files.scripts / "rabbitmq-server"], self._env(), self._home)
        self._broker.wait_ready(self._ready)
        if not self._saved.flag("ready"):
            self._saved.put("ready", True)

    def stop(self) -> None:
        self._broker.end(signal.SIGTERM)

    def kill(self) -> None:
        self._broker.kill()

    def pause(self) -> None:
        self._broker.signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._broker.signal_all(signal.SIGCONT)

    def close(self) -> None:
        """The last stop: broker, shell and port mapper."""
        self._broker.close()
        self._epmd.close()
        self._close_shell()
        self.stop()
        self._epmd.end(signal.SIGTERM)

    def ctl(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._files.scripts / "rabbitmqctl", "--quiet", *arguments],
            env=self._env(),
            cwd=self._home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise ServersUnavailable(f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def evaluate(self, expression: str) -> str:
        with self._shell_lock:
            if self._shell is None or self._shell.poll() is not None:
                self._shell = self._open_shell()
            assert self._shell.stdin is not None
            assert self._shell.stdout is not None
            self._shell.stdin.write(" ".join(expression.split()).rstrip(".") + ".\n")
            self._shell.stdin.flush()
            answer = self._shell.stdout.readline().strip()
        if not answer.startswith("{ok,"):
            raise ServersUnavailable(f"RabbitMQ could not evaluate {expression}: {answer or 'no answer'}")
        return answer.removeprefix("{ok,").removesuffix("}").strip()

    def create_vhost(self, name: str) -> str:
        self.evaluate(
            f'ok = rabbit_vhost:add({_binary(name)}, <<"bridge">>), '
            f'rabbit_auth_backend_internal:set_permissions(<<"bridge">>, {_binary(name)}, '
            '<<".*">>, <<".*">>, <<".*">>, <<"bridge">>)'
        )
        return self._url(name)

    def delete_vhost(self, name: str) -> None:
        self.evaluate(f'rabbit_vhost:delete({_binary(name)}, <<"bridge">>)')

    def _url(self, vhost: str) -> str:
        return f"amqp://bridge:{self._password}@{HOST}:{self._port}/{vhost}"

    def _ready(self) -> bool:
        """Whether a broker greets and is ours: its greeting names the cluster, which has the name of the node."""
        with socket.create_connection((HOST, self._port), timeout=2) as peer:
            peer.sendall(b"AMQP\x00\x00\x09\x01")
            greeting = b""
            while len(greeting) < 7 or len(greeting) < 8 + int.from_bytes(greeting[3:7], "big"):
                more = peer.recv(4096)
                if not more:
                    return False
                greeting += more
        return greeting[7:11] == b"\x00\x0a\x00\x0a" and self._node.partition("@")[0].encode() in greeting

    def _configure(self) -> None:
        cookie = self._home / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(0o600)
            cookie.write_text(self._cookie)
            cookie.chmod(0o400)
        conf = self._home / "rabbitmq.conf"
        conf.touch(0o600)
        usual = _RABBIT_CONF.format(host=HOST, port=self._port, password=self._password)
        more = [f"{line}\n" for lines in self._plugins.values() for line in lines]
        conf.write_text("".join((usual, *more)))
        (self._home / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        # Empty files, so that the configuration of a broker that is installed on this machine is not read.
        (self._home / "rabbitmq-env.conf").touch()
        (self._home / "advanced.config").write_text("[].\n")

    def _env(self) -> dict[str, str]:
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return {
            "PATH": f"{self._files.erl.parent}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(self._home),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_CRASH_DUMP": str(self._home / "erl_crash.dump"),
            "BRIDGE_NODE": self._node,
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self._home / "data"),
            "RABBITMQ_LOG_BASE": str(self._home / "log"),
            "RABBITMQ_PID_FILE": str(self._home / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self._home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._home / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self._home / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._home / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self._home / "config"),
            # Our port mapper runs already. Without this, Erlang would start one that stays behind.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{loopback} -start_epmd false",
            "RABBITMQ_CTL_ERL_ARGS": f"{loopback} -start_epmd false",
            # With this the script becomes the Erlang VM instead of its parent, so the pid that we know is the broker's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _open_shell(self) -> subprocess.Popen[str]:
        name = f"shell-{secrets.token_hex(4)}@localhost"
        return subprocess.Popen(
            [
                *(self._files.erl, "-noshell", "-hidden", "-sname", name, "-setcookie", self._cookie),
                *("-dist_listen", "false", "-start_epmd", "false", "+S", "1", "-eval", _SHELL),
            ],
            env=self._env(),
            cwd=self._home,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def _close_shell(self) -> None:
        with self._shell_lock:
            shell, self._shell = self._shell, None
        if shell is not None:
            with suppress(subprocess.TimeoutExpired):
                shell.communicate(timeout=5)
            shell.kill()
            shell.wait()


def _answers(port: int) -> bool:
    with socket.create_connection((HOST, port), timeout=2):
        return True


def _binary(text: str) -> str:
    """A text as an Erlang expression, whatever characters its shell takes for what."""
    return f"<<{','.join(map(str, text.encode()))}>>"
