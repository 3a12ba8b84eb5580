"""Both servers in docker, from compose.yaml."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
from typing import Literal

from bridge.devservers.directory import Run, home_of
from bridge.devservers.machine import ComposeFile
from bridge.devservers.servers import (
    HOST,
    INSTALL_TIMEOUT,
    USUAL_AMQP_PORT,
    USUAL_POSTGRES_PORT,
    ServersUnavailable,
)


class Project:
    """Our compose project. It is named after the directory, has its own ports, and is taken down with its owner."""

    def __init__(self, compose: ComposeFile, run: Run, usual_ports: bool) -> None:
        home, kept = home_of(run.root, "compose")
        kept.put("ready", True)  # the volumes stay in docker, and know this password
        name = f"bridge-{hashlib.sha256(os.fsencode(run.root)).hexdigest()[:8]}"
        self.password = kept.get("password", lambda: secrets.token_urlsafe(24))
        self.amqp_port = kept.port("amqp_port", USUAL_AMQP_PORT if usual_ports else None)
        self.postgres_port = kept.port("postgres_port", USUAL_POSTGRES_PORT if usual_ports else None)
        self.log = home / "compose.log"
        self._docker = compose.docker
        self._command = [str(compose.docker), "compose", "-p", name, "-f", str(compose.file)]
        self._env = dict(os.environ) | {
            "BRIDGE_COMPOSE_PASSWORD": self.password,
            "BRIDGE_COMPOSE_AMQP_PORT": str(self.amqp_port),
            "BRIDGE_COMPOSE_POSTGRES_PORT": str(self.postgres_port),
        }
        self._record = run.records / "compose.json"
        self._record.touch(0o600)
        self._record.write_text(json.dumps({"down": [*self._command, "down"], "env": self._env}))

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT,
        )
        with self.log.open("a") as log:
            log.write(f"$ docker compose {' '.join(arguments)}\n{done.stdout}{done.stderr}")
        if done.returncode:
            raise ServersUnavailable(f"docker compose {' '.join(arguments)}:\n{done.stderr.strip()}")
        return done.stdout

    def pid_of(self, service: str) -> int:
        """The pid of the container's first process on this machine."""
        container = self.run("ps", "-q", service).strip()
        asked = [str(self._docker), "inspect", "--format", "{{.State.Pid}}", container]
        told = subprocess.run(asked, capture_output=True, text=True, check=False)
        if not container or told.returncode or told.stdout.strip() in ("", "0"):
            raise ServersUnavailable(f"the container of {service} is not running")
        return int(told.stdout)

    def down(self) -> None:
        """Remove containers and network; keep the volumes."""
        self.run("down")
        self._record.unlink(missing_ok=True)


class ComposeServer:
    """One service of the compose file."""

    def __init__(self, project: Project, service: str, title: str) -> None:
        self.title = title
        self._project = project
        self._service = service

    @property
    def pid(self) -> int:
        return self._project.pid_of(self._service)

    def start(self) -> None:
        self._project.run("up", "-d", "--wait", self._service)

    def kill(self) -> None:
        self._project.run("kill", self._service)

    def pause(self) -> None:
        self._project.run("pause", self._service)

    def resume(self) -> None:
        self._project.run("unpause", self._service)

    def close(self) -> None:
        """Does nothing: the project is taken down as a whole."""


class ComposeRabbit(ComposeServer):
    """RabbitMQ in docker."""

    def __init__(self, project: Project) -> None:
        super().__init__(project, "rabbitmq", "RabbitMQ in docker")

    @property
    def port(self) -> int:
        return self._project.amqp_port

    @property
    def url(self) -> str:
        return self._url("")

    def stop(self) -> None:
        self._project.run("stop", self._service)

    def ctl(self, *arguments: str) -> str:
        return self._project.run("exec", "-T", self._service, "rabbitmqctl", "--quiet", *arguments)

    def evaluate(self, expression: str) -> str:
        return self.ctl("eval", " ".join(expression.split()).rstrip(".") + ".").strip()

    def create_vhost(self, name: str) -> str:
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "-p", name, "bridge", ".*", ".*", ".*")
        return self._url(name)

    def delete_vhost(self, name: str) -> None:
        self.ctl("delete_vhost", name)

    def _url(self, vhost: str) -> str:
        return f"amqp://bridge:{self._project.password}@{HOST}:{self.port}/{vhost}"


class ComposePostgres(ComposeServer):
    """Postgres in docker."""

    def __init__(self, project: Project) -> None:
        super().__init__(project, "postgres", "Postgres in docker")

    @property
    def port(self) -> int:
        return self._project.postgres_port

    @property
    def dsn(self) -> str:
        return f"postgresql://bridge:{self._project.password}@{HOST}:{self.port}/bridge"

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self._project.run("kill", "-s", "SIGINT" if mode == "fast" else "SIGQUIT", self._service)
