"""What stands in docker/: image, compose file, manifests and scripts keep to what docs/how-to/deploy.md says."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from support import PROJECT

DOCKER = PROJECT / "docker"
SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY")
ONCE = {"prepare"}  # ends at once, so nobody asks for its health


def tool(name: str) -> str:
    """Where a linter is: beside this Python or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def linted(*command: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=PROJECT)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def documents(name: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all((DOCKER / name).read_text()))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return documents("compose.yaml")[0]


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return compose["services"]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    """The best practices that it knows."""
    linted(tool("hadolint"), "docker/Dockerfile")


def test_shellcheck_finds_nothing_in_the_scripts() -> None:
    """Portable sh, without traps of quoting."""
    linted(tool("shellcheck"), "--external-sources", "--source-path", "SCRIPTDIR",
           *sorted(str(path) for path in DOCKER.glob("*.sh")))  # fmt: skip


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_are_what_the_compose_specification_says(name: str) -> None:
    """By its JSON schema."""
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    linted(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", f"docker/{name}")


class TestDockerfile:
    """The image."""

    instructions = re.sub(r"\\\n\s*", "", (DOCKER / "Dockerfile").read_text()).splitlines()

    def test_it_runs_as_nobody_in_particular(self) -> None:
        """A user with a fixed number, after all that needs root."""
        users = [line for line in self.instructions if line.startswith("USER ")]
        assert users == ["USER 10001:10001"]

    def test_every_package_is_pinned_by_hash(self) -> None:
        """All that pip fetches; the wheel of this project is not fetched."""
        fetching = [line for line in self.instructions if re.search(r"pip install(?!.*/wheels/)", line)]
        assert len(fetching) == 3
        assert all("--require-hashes --only-binary :all:" in line for line in fetching)

    def test_stages_begin_at_one_exact_tag_that_a_digest_can_pin(self) -> None:
        """The digest is an argument: what a tag means is not known without a registry."""
        stages = [line for line in self.instructions if line.startswith("FROM ")]
        assert all(line.startswith("FROM ${PYTHON}${DIGEST}") for line in stages)
        assert re.search(r"^ARG PYTHON=python:3\.\d+\.\d+-slim-\w+$", "\n".join(self.instructions), re.MULTILINE)

    def test_the_last_stage_has_the_wheel_and_no_source(self) -> None:
        """And no secret in a layer."""
        last = self.instructions[max(i for i, line in enumerate(self.instructions) if line.startswith("FROM ")) :]
        copied = [line for line in last if line.startswith("COPY ")]
        assert all("--from=installed" in line or "docker/" in line for line in copied)
        assert not [line for line in self.instructions if line.startswith(("ARG", "ENV")) and SECRET.search(line)]

    def test_the_context_is_a_list_of_what_is_needed(self) -> None:
        """So that no secret that lies in the folder comes into a build."""
        lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        rules = [line for line in lines if line and not line.startswith("#")]
        assert rules[0] == "*"
        assert all(rule.startswith("!") for rule in rules[1:])


class TestCompose:
    """No open doors, and an order to start in."""

    def test_only_this_machine_reaches_what_is_published(self, services: dict[str, dict[str, Any]]) -> None:
        """Tests of the address before the port."""
        ports = [port for service in services.values() for port in service.get("ports", [])]
        assert len(ports) == 2
        assert all(port.startswith("127.0.0.1:") for port in ports)

    def test_no_service_has_rights_it_does_not_need(self, services: dict[str, dict[str, Any]]) -> None:
        """No root, no capabilities, nothing of the machine."""
        for name, service in services.items():
            assert int(service["user"].split(":")[0]) > 0, name
            assert service["cap_drop"] == ["ALL"], name
            assert "no-new-privileges:true" in service["security_opt"], name
            assert not {"privileged", "cap_add", "pid", "ipc", "devices"} & service.keys(), name
            assert service.get("network_mode") in (None, "none"), name
            assert not [volume for volume in service.get("volumes", []) if volume.startswith(("/", "."))], name
            assert service["deploy"]["resources"]["limits"]["memory"], name

    def test_each_service_says_how_it_is(self, services: dict[str, dict[str, Any]]) -> None:
        """All but what ends at once."""
        assert {name for name, service in services.items() if "test" not in service["healthcheck"]} == ONCE
        assert all(services[name]["restart"] == "no" for name in ONCE)

    def test_services_start_when_those_that_they_need_are_healthy(self, services: dict[str, dict[str, Any]]) -> None:
        """Not when they were only begun."""
        for service in services.values():
            for other, needed in service.get("depends_on", {}).items():
                wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
                assert needed["condition"] == wanted
        assert {"postgres", "mlflow"} <= services["head"]["depends_on"].keys()
        assert {"postgres", "store"} <= services["mlflow"]["depends_on"].keys()
        assert {"head"} == services["worker"]["depends_on"].keys()

    def test_passwords_are_files_without_a_default(
        self, compose: dict[str, Any], services: dict[str, dict[str, Any]]
    ) -> None:
        """Compose itself refuses to start without the folder of them."""
        for name, secret in compose["secrets"].items():
            assert re.fullmatch(r"\$\{SECRETS:\?[^}]+\}/" + name, secret["file"])
        for service in services.values():
            for variable, value in service.get("environment", {}).items():
                if SECRET.search(variable):
                    assert variable.endswith(("_FILE", "_PATH")), variable
                    assert value.removeprefix("/run/secrets/") in service["secrets"], variable

    def test_secrets_sh_makes_those_files(self, compose: dict[str, Any], tmp_path: Path) -> None:
        """Each another one, in a private folder, and never twice; the hub's token is the user's matter."""
        make = [str(DOCKER / "secrets.sh"), str(tmp_path / "secrets")]
        subprocess.run(make, check=True)
        made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
        assert made.keys() == compose["secrets"].keys()
        assert made.pop("hf_token") == ""  # the user's own
        assert len(set(made.values())) == len(made)
        assert all(re.fullmatch("[0-9a-f]{48}", secret) for secret in made.values())
        assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
        assert subprocess.run(make, check=False, stderr=subprocess.DEVNULL).returncode != 0

    def test_database_and_store_are_reached_by_those_who_need_them(
        self, compose: dict[str, Any], services: dict[str, dict[str, Any]]
    ) -> None:
        """Not by workers, on which the code of trials runs, and not from outside."""
        on = {
            network: {name for name, service in services.items() if network in service.get("networks", [])}
            for network in compose["networks"]
        }
        assert on["database"] == {"postgres", "mlflow", "head"}
        assert on["artifacts"] == {"store", "mlflow", "head"}
        assert on["cluster"] == {"head", "worker"}
        assert all(compose["networks"][name]["internal"] for name in ("database", "artifacts"))

    def test_mlflow_answers_to_its_names_and_head_calls_it_by_one(self, services: dict[str, dict[str, Any]]) -> None:
        """Else the driver would be refused."""
        uri = services["head"]["environment"]["MLFLOW_TRACKING_URI"]
        assert uri.removeprefix("http://") in services["mlflow"]["environment"]["ALLOWED_HOSTS"].split(",")

    def test_images_of_others_have_exact_tags(self, services: dict[str, dict[str, Any]]) -> None:
        """Which an own variable replaces by a digest."""
        images = {service["image"] for service in services.values()} - {"lorafront:${VARIANT:-cpu}"}
        assert len(images) == 2
        assert all(re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[\w./-]+:v?\d+\.\d+[\w.-]*\}", image) for image in images)

    def test_it_starts_the_scripts_and_files_that_are_there(
        self, compose: dict[str, Any], services: dict[str, dict[str, Any]]
    ) -> None:
        """The same that the tests start."""
        assert [services[name]["command"] for name in ("mlflow", "head", "worker")] == [
            ["mlflow.sh"], ["head.sh"], ["worker.sh"],
        ]  # fmt: skip
        inside = (DOCKER / "Dockerfile").read_text()
        scripts = ("mlflow.sh", "head.sh", "worker.sh", "driver.sh", "secret.sh")
        assert all(f"docker/{name}" in inside for name in scripts)
        assert all((DOCKER / config["file"]).is_file() for config in compose["configs"].values())

    def test_gpus_are_reserved_by_one_worker(self) -> None:
        """Docker would lend two the same ones."""
        (override,) = documents("compose.gpu.yaml")
        deploy = override["services"]["worker"]["deploy"]
        assert deploy["replicas"] == 1
        assert deploy["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def pods(found: Any) -> Iterator[dict[str, Any]]:
    """The specifications of pods in a manifest."""
    if isinstance(found, dict):
        if "containers" in found:
            yield found
        for value in found.values():
            yield from pods(value)
    elif isinstance(found, list):
        for value in found:
            yield from pods(value)


class TestKubeRay:
    """The manifests."""

    manifests = documents("kuberay.yaml")

    def test_they_are_a_cluster_with_a_token_and_a_job_on_it(self) -> None:
        """Of the version that was tested."""
        cluster, job = self.manifests
        assert (cluster["apiVersion"], cluster["kind"], job["kind"]) == ("ray.io/v1", "RayCluster", "RayJob")
        assert cluster["spec"]["authOptions"]["mode"] == "token"
        assert f"ray=={cluster['spec']['rayVersion']}" in (PROJECT / "constraints.txt").read_text().splitlines()
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}

    def test_pods_have_no_rights_and_limits(self) -> None:
        """Not root, no capabilities, no account of the cluster."""
        found = [pod for manifest in self.manifests for pod in pods(manifest)]
        assert len(found) == 3
        for pod in found:
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["securityContext"]["runAsUser"] == 10001
            assert pod["automountServiceAccountToken"] is False
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                }  # fmt: skip
                assert {"cpu", "memory"} <= container["resources"]["limits"].keys()

    def test_secrets_are_named_and_not_written(self) -> None:
        """In Kubernetes' own secrets."""
        entries = [
            entry
            for manifest in self.manifests
            for pod in pods(manifest)
            for container in pod["containers"]
            for entry in container["env"]
            if SECRET.search(entry["name"])
        ]
        assert len(entries) == 5
        assert all(entry["valueFrom"].keys() == {"secretKeyRef"} for entry in entries)
