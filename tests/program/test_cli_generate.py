"""What `relay generate` prints: whole, of the shape that Compose and Kubernetes ask for, its config fit to run."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay import __version__
from relay.config import Config, ConfigRefused, load
from tests.program.test_cli import ROOT, run_relay

ENV = {
    "RELAY_DATABASE_URL": "postgresql://relay:a-password@db/relay",
    "RELAY_ADMIN_TOKEN": "0123456789abcdef0123456789abcdef",
    "PARTNER_SECRET": "0123456789abcdef0",
    "APP_URL": "https://app.example.com/hooks",
}
USER = 10001


def printed(tmp_path: Path, *arguments: str) -> str:
    done = run_relay("generate", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"relay {__version__}:" in done.stdout.splitlines()[0]
    assert not re.search(r"@[A-Z]+@", done.stdout)  # a place that was left open
    return done.stdout


def composed(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    whole: dict[str, Any] = yaml.safe_load(printed(tmp_path, "compose", *arguments))
    return whole


def manifests(tmp_path: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all(printed(tmp_path, "kubernetes", *arguments))}


def config_of(tmp_path: Path, text: str, env: dict[str, str]) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load(path, env)


def config_in(tmp_path: Path, kind: str) -> str:
    if kind == "kubernetes":
        return str(manifests(tmp_path)["ConfigMap"]["data"]["config.yaml"])
    content = str(composed(tmp_path)["configs"]["relay"]["content"])
    assert "$" not in content.replace("$$", "")  # Compose would put something in its place
    return content.replace("$$", "$")


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
def test_the_config_in_it_is_taken_as_it_stands(tmp_path: Path, kind: str) -> None:
    """By the loader that `relay run` uses, on the database, with the admin listener behind its token."""
    config = config_of(tmp_path, config_in(tmp_path, kind), ENV)
    assert config.store.url == ENV["RELAY_DATABASE_URL"]
    assert config.admin.token is not None
    assert (config.server.listen.port, config.admin.listen.port) == (8080, 8081)
    assert config.server.drain_timeout.total_seconds() == 20
    assert config.warnings == ()


@pytest.mark.parametrize("name", ENV)
@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
def test_what_was_not_filled_in_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    """Each value that is left empty is named."""
    with pytest.raises(ConfigRefused, match=name):
        config_of(tmp_path, config_in(tmp_path, kind), ENV | {name: ""})


def test_the_secret_and_the_environment_name_what_the_config_reads(tmp_path: Path) -> None:
    """All of it, and none has a value that somebody might leave."""
    assert manifests(tmp_path)["Secret"]["stringData"] == dict.fromkeys(ENV, "")
    relay = composed(tmp_path)["services"]["relay"]["environment"]
    assert relay.keys() == ENV.keys()
    assert all(":?" in value for value in relay.values())


def test_compose_runs_them_behind_a_balancer(tmp_path: Path) -> None:
    """One port is published, the balancer's; what a relay runs as and may write is the image's own."""
    whole = composed(tmp_path, "--replicas", "3", "--image", "registry.example.com:5000/relay:1.2")
    db, relay, balancer = (whole["services"][name] for name in ("db", "relay", "balancer"))
    assert (relay["image"], relay["deploy"]["replicas"]) == ("registry.example.com:5000/relay:1.2", 3)
    assert relay["user"] == f"{USER}:{USER}"
    assert relay["stop_grace_period"] == "30s"
    assert relay["depends_on"] == {"db": {"condition": "service_healthy"}}
    assert [name for name, one in whole["services"].items() if "ports" in one] == ["balancer"]
    for one in (db, relay, balancer):
        assert one["read_only"] is True
        assert one["cap_drop"] == ["ALL"]
        assert one["restart"] == "unless-stopped"
        assert one["user"] not in {"root", "0"}
        assert set(one["networks"]) <= whole["networks"].keys()
        assert {mount["source"] for mount in one.get("configs", [])} <= whole["configs"].keys()
    assert db["volumes"] == ["database:/var/lib/postgresql/data"]
    assert "database" in whole["volumes"]
    assert "healthcheck" in db
    assert whole["networks"]["database"] == {"internal": True}
    assert "server-template relay 3 relay:8080" in whole["configs"]["balancer"]["content"]
    assert "uri /readyz" in whole["configs"]["balancer"]["content"]


def test_kubernetes_takes_no_relay_away_before_another_is_ready(tmp_path: Path) -> None:
    """Probes ask the admin listener, which no Service has; a stop has the time that it takes."""
    found = manifests(tmp_path)
    kinds = {"Secret", "ConfigMap", "Deployment", "Service", "PodDisruptionBudget"}
    assert found.keys() == kinds
    assert all("namespace" not in one["metadata"] for one in found.values())
    deployment, pod = found["Deployment"]["spec"], found["Deployment"]["spec"]["template"]["spec"]
    (relay,) = pod["containers"]
    assert (deployment["replicas"], deployment["strategy"]["rollingUpdate"]["maxUnavailable"]) == (2, 0)
    assert (relay["image"], relay["args"]) == ("relay", ["run", "--watch"])
    ports = {port["name"]: port["containerPort"] for port in relay["ports"]}
    assert ports == {"hooks": 8080, "admin": 8081}
    assert relay["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    assert relay["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "admin"}
    sleep = int(relay["lifecycle"]["preStop"]["exec"]["command"][1])
    assert sleep + 20 < pod["terminationGracePeriodSeconds"]
    assert [port["targetPort"] for port in found["Service"]["spec"]["ports"]] == ["hooks"]
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (deployment["selector"]["matchLabels"], found["Service"]["spec"]["selector"]):
        assert selector == labels
    assert found["PodDisruptionBudget"]["spec"] == {"minAvailable": 1, "selector": {"matchLabels": labels}}
    assert {mount["name"] for mount in relay["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_pod_is_restricted(tmp_path: Path) -> None:
    """As the strictest of Kubernetes' own standards asks."""
    pod = manifests(tmp_path)["Deployment"]["spec"]["template"]["spec"]
    (relay,) = pod["containers"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, USER)
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert relay["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert f"USER {USER}:{USER}" in (ROOT / "Dockerfile").read_text()


def test_a_single_relay_may_be_moved(tmp_path: Path) -> None:
    """A budget that keeps the only one where it is would stop whoever empties its machine."""
    assert manifests(tmp_path, "--replicas", "1")["PodDisruptionBudget"]["spec"]["minAvailable"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("swarm",),
        ("compose", "kubernetes"),
        ("compose", "--replicas", "0"),
        ("compose", "--replicas", "101"),
        ("kubernetes", "--replicas", "two"),
        ("kubernetes", "--image", ""),
        ("kubernetes", "--image", 'relay"\nprivileged: true'),
        ("kubernetes", "--image", "${IMAGE}"),
        ("compose", "--image", "-relay"),
    ],
)
def test_what_makes_no_sense_is_exit_code_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """With words on stderr, and nothing printed that might be taken for a file."""
    refused = run_relay("generate", *arguments, cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr


def test_the_files_are_part_of_what_is_installed() -> None:
    """As data of the package."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["relay"]
    assert {path.stem for path in (ROOT / "relay").glob("cli/generated/*.yaml")} == {"compose", "kubernetes"}
    assert "cli/generated/*.yaml" in data
