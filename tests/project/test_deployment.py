"""The files of deploy/ name settings, ports, paths and commands that the program has, and hold what they promise."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from bridge.cli.parsers import build_parser
from bridge.config import Settings, env_name
from bridge.config.names import SECRETS_DIR_VARIABLE

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "container" / "Dockerfile"
UNIT = DEPLOY / "systemd" / "bridge.service"
KUBERNETES = DEPLOY / "kubernetes"
PORTS = {"ws": Settings.model_fields["ws_port"].default, "ops": Settings.model_fields["ops_port"].default}
OLDEST_KUBERNETES = "1.29"
USER = 10001


def settings_named(text: str) -> set[str]:
    """The variables in a text that begin as settings do, but for what only compose.yaml and the build read."""
    return {
        name
        for name in re.findall(r"\bBRIDGE_[A-Z_]+\b", text)
        if not name.startswith("BRIDGE_COMPOSE_") and name != "BRIDGE_PURE"
    }


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "compose.yaml",
        DOCKERFILE,
        UNIT,
        *sorted(KUBERNETES.glob("*.yaml")),
        ROOT / "docs" / "install.md",
        ROOT / "docs" / "operating.md",
    ],
    ids=lambda path: path.name,
)
def test_every_setting_that_is_named_exists(path: Path) -> None:
    known = {*map(env_name, Settings.model_fields), SECRETS_DIR_VARIABLE}
    assert settings_named(path.read_text()) - known == set()


# --- the container ---------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile: the word and the rest, on one line each."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for line in lines if line for word, _, rest in [line.partition(" ")]]


def health_command() -> list[str]:
    """What the container is asked by, as it stands in the Dockerfile."""
    (check,) = (rest for word, rest in instructions() if word == "HEALTHCHECK")
    command: list[str] = json.loads(check.partition("CMD ")[2])
    return command


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is made for Linux only")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_the_program_itself_as_a_user_without_rights() -> None:
    final = instructions()
    while any(word == "FROM" for word, _ in final[1:]):
        final = final[1:]
    words = dict(final)
    assert words["USER"] == f"{USER}:{USER}"
    assert words["ENTRYPOINT"] == '["bridge"]', "not by a shell, which would keep SIGTERM to itself"
    assert words["CMD"] == '["serve"]'
    assert words["EXPOSE"].split() == [str(PORTS["ws"]), str(PORTS["ops"])]
    order = [word for word, _ in final]
    assert order.index("USER") > order.index("COPY"), "the program belongs to root"


def test_the_base_image_is_one_python_that_the_package_supports_in_both_stages() -> None:
    images = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert len(images) == 2
    (image,) = set(images)
    release = re.fullmatch(r"python:(3\.\d+)-slim-\w+", image)
    assert release is not None
    assert f"Programming Language :: Python :: {release[1]}" in (ROOT / "pyproject.toml").read_text()


def test_the_build_gets_all_files_that_it_copies_and_no_others() -> None:
    copied = {
        name
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    }
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored
    assert sorted(name for name in copied if not (ROOT / name).exists()) == []


# --- docker compose --------------------------------------------------------------------------------------


def test_the_profile_full_adds_the_bridge_and_what_upgrades_its_schema() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    ours = {
        name: service for name, service in services.items() if "image" in service.get("profiles", ["image"])
    }
    assert set(ours) == {"rabbitmq", "postgres"}, "those that `make run` starts have no profile"
    added = {name: service for name, service in services.items() if service.get("profiles") == ["full"]}
    assert set(added) == {"upgrade", "bridge"}
    for service in added.values():
        assert ROOT / service["build"]["dockerfile"] == DOCKERFILE
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    assert added["upgrade"]["command"] == ["db", "upgrade"]
    bridge = added["bridge"]
    assert bridge["depends_on"]["upgrade"] == {"condition": "service_completed_successfully"}
    inside = [port.rpartition(":")[2] for port in bridge["ports"]]
    assert inside == [str(PORTS["ws"]), str(PORTS["ops"])]
    drain = float(bridge["environment"]["BRIDGE_DRAIN_TIMEOUT"])
    assert int(bridge["stop_grace_period"].removesuffix("s")) >= drain + 5


# --- systemd ---------------------------------------------------------------------------------------------


def unit() -> dict[str, list[str]]:
    """The values of each name in the unit."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd on this machine")
    made = tmp_path / UNIT.name
    made.write_text(UNIT.read_text().replace("/opt/bridge/bin/bridge", "/bin/true"))
    done = subprocess.run([analyze, "verify", made], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_waits_for_the_drain_and_gives_up_at_a_wrong_setting() -> None:
    values = unit()
    drain = re.search(r"BRIDGE_DRAIN_TIMEOUT=(\d+)", UNIT.read_text())
    assert drain is not None
    assert int(values["TimeoutStopSec"][0]) >= int(drain[1]) + 5
    assert values["RestartPreventExitStatus"] == ["2"]
    assert values["KillMode"] == ["mixed"]
    assert values["ExecStart"][0].split()[1:] == ["serve"]
    assert {"yes", "strict"} >= {*values["NoNewPrivileges"], *values["ProtectSystem"], *values["DynamicUser"]}


# --- Kubernetes ------------------------------------------------------------------------------------------


def manifests() -> dict[str, dict[str, Any]]:
    """Each object, by its kind and name."""
    return {
        f"{made['kind']} {made['metadata']['name']}": made
        for path in sorted(KUBERNETES.glob("*.yaml"))
        for made in yaml.safe_load_all(path.read_text())
    }


def pods() -> list[dict[str, Any]]:
    """The specs of the pods."""
    return [
        made["spec"]["template"]["spec"]
        for made in manifests().values()
        if "template" in made.get("spec", {})
    ]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, kubernetes_validate.latest_version()])
def test_the_manifests_are_what_kubernetes_takes(version: str) -> None:
    found = manifests()
    assert set(found) == {
        "ConfigMap bridge",
        "Deployment bridge",
        "Job bridge-migrate",
        "PodDisruptionBudget bridge",
        "Service bridge",
        "Service bridge-ops",
    }
    for made in found.values():
        kubernetes_validate.validate(made, version, strict=True)


def test_no_container_runs_as_root_writes_to_its_files_or_gets_more_rights() -> None:
    assert len(pods()) == 2
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == USER
        assert pod["automountServiceAccountToken"] is False
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert ":latest" not in container["image"]


def test_the_images_are_of_this_version_and_their_arguments_are_commands() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    commands = build_parser()[1]
    for pod in pods():
        for container in containers(pod):
            assert container["image"] == f"bridge:{version[1]}"
            assert " ".join(container["args"][:2]) in commands or container["args"][0] in commands
    migrate = manifests()["Job bridge-migrate"]["spec"]["template"]["spec"]
    assert [container["args"][:2] for container in containers(migrate)] == [
        ["db", "upgrade"],
        ["db", "grant"],
    ]


def test_ports_and_probes_are_those_of_the_program_and_services_lead_to_them() -> None:
    found = manifests()
    (container,) = found["Deployment bridge"]["spec"]["template"]["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == PORTS
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"ws"}, "the ops port asks for a credential"
    assert probes["startup"]["path"] == probes["liveness"]["path"] == "/livez"
    assert probes["readiness"]["path"] == "/readyz"
    for name, port in (("bridge", "ws"), ("bridge-ops", "ops")):
        service = found[f"Service {name}"]["spec"]
        assert service["ports"] == [{"name": port, "port": PORTS[port], "targetPort": port}]
        assert (
            service["selector"]
            == found["Deployment bridge"]["spec"]["template"]["metadata"]["labels"]
            == found["PodDisruptionBudget bridge"]["spec"]["selector"]["matchLabels"]
        )


def test_a_pod_has_the_time_that_a_drain_takes() -> None:
    found = manifests()
    pod = found["Deployment bridge"]["spec"]["template"]["spec"]
    drain = float(found["ConfigMap bridge"]["data"]["BRIDGE_DRAIN_TIMEOUT"])
    before = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= before + drain + 5


def test_the_pods_of_an_upgrade_are_not_those_of_the_service() -> None:
    found = manifests()
    selector = found["Service bridge"]["spec"]["selector"].items()
    assert not selector <= found["Job bridge-migrate"]["spec"]["template"]["metadata"]["labels"].items()


def test_secrets_come_as_files_from_where_the_settings_say() -> None:
    found = manifests()
    pod = found["Deployment bridge"]["spec"]["template"]["spec"]
    data = found["ConfigMap bridge"]["data"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert mount["mountPath"] == data[SECRETS_DIR_VARIABLE]
    assert not {name for name in data if re.search("SECRET$|TOKEN$|URL$|DSN$", name)}
