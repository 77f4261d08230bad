"""Images, compose files and manifests name what the server has, and open no more than is meant."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from remix_runtime.cli import build_app
from server.settings import ServerSettings, load_settings

ROOT = Path(__file__).parents[2]
ROOMS = ("remix_runtime", "training", "server", "benchmarks")
IMAGES = ("Dockerfile.cpu", "Dockerfile.gpu")
DEFAULTS = ServerSettings.model_fields
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
LOCKED = ("postgres", "s3", "train", "peft", "demo")
"""What an image may have. Of vLLM there are only builds for GPUs in the lock file of that image."""
LOCKS = {
    "Dockerfile.cpu": ("requirements-cpu.txt", ("torch-cpu.txt",), LOCKED),
    "Dockerfile.gpu": ("requirements-gpu.txt", (), (*LOCKED, "vllm")),
}
"""For each image its lock file, what is pinned beside it, and the extras that are locked."""
PORT, ADMIN_PORT = DEFAULTS["port"].default, DEFAULTS["admin_port"].default


@dataclass
class Served:
    """A container with a server in it, as its file has it."""

    arguments: list[str]
    environment: dict[str, Any]
    writable: dict[str, str] = field(default_factory=dict)
    """What lasts, to where it is mounted."""
    read_only: dict[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """As the real command line reads them."""
        name, *arguments = self.arguments
        root = typer.main.get_command(build_app(entry_points(group="remix.commands")))
        command = root.commands[name]  # type: ignore[attr-defined]
        parsed: dict[str, Any] = command.make_context(name, list(arguments)).params
        return parsed

    def settings(self, monkeypatch: pytest.MonkeyPatch) -> ServerSettings:
        """Every REMIX_ variable must be one of them."""
        for name in self.environment:
            if name.startswith("REMIX_"):
                assert name.removeprefix("REMIX_").lower() in DEFAULTS, name
                monkeypatch.setenv(name, "given")
        return load_settings(**{k: v for k, v in self.options.items() if k in DEFAULTS})


def compose(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def composed(*names: str) -> Served:
    """As `docker compose -f` adds the files up."""
    served = Served([], {})
    for name in names:
        service = compose(name)["services"]["remix"]
        served.arguments = service["command"]
        served.environment |= service.get("environment", {})
        for volume in service["volumes"]:
            source, target = re.sub(r":ro$", "", volume).rsplit(":", 1)
            (served.read_only if volume.endswith(":ro") else served.writable)[target] = source
    return served


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "deploy" / name).read_text()))


def manifest(name: str, kind: str, of: str = "remix-serve") -> dict[str, Any]:
    (found,) = [
        item for item in manifests(name) if (item["kind"], item["metadata"]["name"]) == (kind, of)
    ]
    return found


def workload(name: str) -> dict[str, Any]:
    (found,) = [item for item in manifests(name) if "template" in item.get("spec", {})]
    return found


def pod(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """And its only container."""
    spec = workload(name)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def deployed(name: str) -> Served:
    _, container = pod(name)
    claims = workload(name)["spec"].get("volumeClaimTemplates", [])
    lasting = {claim["metadata"]["name"] for claim in claims}
    served = Served(container["args"], {item["name"]: item for item in container.get("env", [])})
    for mount in container["volumeMounts"]:
        if mount.get("readOnly"):
            served.read_only[mount["mountPath"]] = mount["name"]
        elif mount["name"] in lasting:
            served.writable[mount["mountPath"]] = mount["name"]
    return served


SINGLE = (composed("compose.yaml"), deployed("kubernetes.yaml"))
TENANTS = (composed("compose.yaml", "compose.tenants.yaml"), deployed("kubernetes-tenants.yaml"))


@pytest.mark.parametrize("served", [*SINGLE, *TENANTS])
def test_the_server_understands_what_it_is_given(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = served.settings(monkeypatch)
    assert (settings.port, settings.admin_port) == (PORT, ADMIN_PORT)
    assert settings.host == "0.0.0.0"
    assert any(Path(served.options["base"]).is_relative_to(f) for f in served.read_only)


@pytest.mark.parametrize("served", SINGLE)
def test_a_single_user_needs_no_key_and_no_volume(served: Served) -> None:
    assert served.options["adapter"]
    assert served.options["data_dir"] is None
    assert (served.environment, served.writable) == ({}, {})


@pytest.mark.parametrize("served", TENANTS)
def test_tenants_are_kept_in_a_volume_of_the_image_s_user(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = served.settings(monkeypatch)
    assert str(settings.data_dir) in served.writable
    assert {"REMIX_ADMIN_KEY", "REMIX_DATABASE_URL"} <= served.environment.keys()
    assert any(settings.import_root.is_relative_to(folder) for folder in served.read_only)
    assert settings.admin_host == "0.0.0.0"  # who may come there is said outside of the container
    for name in IMAGES:
        text = (ROOT / "docker" / name).read_text(encoding="utf-8")
        owned = re.findall(
            r"install --directory --owner=10001 --group=10001 \S+ (\S+)$", text, re.M
        )
        assert owned == [str(settings.data_dir)]
    spec, _ = pod("kubernetes-tenants.yaml")
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"] == 10001


def test_compose_opens_the_admin_port_to_this_machine_only() -> None:
    published = {
        name: compose(name)["services"]["remix"]["ports"]
        for name in ("compose.yaml", "compose.tenants.yaml")
    }
    assert published == {
        "compose.yaml": [f"127.0.0.1:{PORT}:{PORT}"],
        "compose.tenants.yaml": [f"127.0.0.1:{ADMIN_PORT}:{ADMIN_PORT}"],
    }


def test_compose_has_its_volumes_and_asks_for_the_key() -> None:
    document = compose("compose.tenants.yaml")
    assert set(TENANTS[0].writable.values()) == document["volumes"].keys()
    environment = TENANTS[0].environment
    assert environment["REMIX_ADMIN_KEY"].startswith("${REMIX_ADMIN_KEY:?")  # no start without it
    assert environment["REMIX_DATABASE_URL"] is None  # the shell's, if it has one


@pytest.mark.parametrize("name", IMAGES)
def test_images_expose_no_admin_port_and_have_the_driver_for_postgresql(name: str) -> None:
    text = (ROOT / "docker" / name).read_text(encoding="utf-8")
    assert re.findall(r"^EXPOSE (.+)$", text, re.MULTILINE) == [str(PORT)]
    assert re.search(r'pip install .*"\.\[\$\{EXTRAS\}\]"$', text, re.MULTILINE)
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    items = [item for extra in extras.split(",") for item in EXTRAS[extra]]
    assert any("psycopg" in item for item in items)
    assert any(item.startswith("vllm==") for item in items) == (name == "Dockerfile.gpu")


def pins(file: str) -> list[tuple[Requirement, list[str]]]:
    """The requirements of a lock file and their hashes."""
    text = (ROOT / "docker" / file).read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [
        (Requirement(line.partition(" --hash=")[0]), re.findall(r"--hash=(\S+)", line))
        for line in lines
    ]


@pytest.mark.parametrize("file", ["requirements-cpu.txt", "requirements-gpu.txt", "torch-cpu.txt"])
def test_every_locked_package_has_one_version_and_a_hash(file: str) -> None:
    found = pins(file)
    assert found
    for requirement, hashes in found:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement


@pytest.mark.parametrize("name", IMAGES)
def test_lock_has_what_the_project_asks_for(name: str) -> None:
    """If this fails: `make lock`."""
    lock, beside, extras = LOCKS[name]
    locked = {
        canonicalize_name(requirement.name): str(requirement.specifier).removeprefix("==")
        for file in (lock, *beside)
        for requirement, _ in pins(file)
        if requirement.marker is None or requirement.marker.evaluate({"sys_platform": "linux"})
    }
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for text in [*asked, *(text for extra in extras for text in EXTRAS[extra])]:
        requirement = Requirement(text)
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, text
    assert ("vllm" in locked) == (name == "Dockerfile.gpu")


@pytest.mark.parametrize("name", IMAGES)
def test_image_installs_by_its_lock(name: str) -> None:
    lock, beside, locked = LOCKS[name]
    text = (ROOT / "docker" / name).read_text(encoding="utf-8")
    (command,) = re.findall(r"^RUN .*pip install .*EXTRAS.*$", text, re.MULTILINE)
    assert f"--constraints docker/{lock} --build-constraints docker/{lock} " in command
    for file in beside:
        assert re.search(rf"pip install --no-deps --require-hashes .*-r docker/{file}$", text, re.M)
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    assert set(extras.split(",")) <= set(locked)
    (named,) = re.findall(r"^# Of the extras in pyproject.toml: (.+) are locked\.$", text, re.M)
    assert set(re.split(r", | and ", named)) == set(locked)
    assert "!docker/*.txt\n" in (ROOT / ".dockerignore").read_text()


def test_nothing_of_cuda_is_in_the_cpu_image() -> None:
    """And `make` takes the same build of torch."""
    names = {requirement.name for requirement, _ in pins("requirements-cpu.txt")}
    assert {name for name in names if re.match(r"nvidia|cuda|triton|torch$", name)} == set()
    ((torch, _),) = pins("torch-cpu.txt")
    assert str(torch.specifier).endswith("+cpu")
    assert f"CPU_TORCH := {torch}\n" in (ROOT / "Makefile").read_text()


def test_lock_is_made_for_the_extras_that_images_may_have() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f"$(patsubst %,--extra=%,{' '.join(LOCKED)})" in makefile
    for lock, _, _ in LOCKS.values():
        assert f"--output-file=docker/{lock} " in makefile


def test_kubernetes_keeps_the_admin_port_off_the_public_service() -> None:
    name = "kubernetes-tenants.yaml"
    _, container = pod(name)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": PORT, "admin": ADMIN_PORT}
    public = manifest(name, "Service")["spec"]
    assert [port["targetPort"] for port in public["ports"]] == ["http"]
    admin = manifest(name, "Service", "remix-serve-admin")["spec"]
    assert admin["type"] == "ClusterIP"
    assert [(port["port"], port["targetPort"]) for port in admin["ports"]] == [
        (ADMIN_PORT, "admin")
    ]
    assert len([item for item in manifests(name) if item["kind"] == "Service"]) == 2
    labels = workload(name)["spec"]["template"]["metadata"]["labels"]
    assert public["selector"] == admin["selector"] == labels


def test_kubernetes_lets_only_chosen_pods_to_the_admin_port() -> None:
    name = "kubernetes-tenants.yaml"
    policy = manifest(name, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    labels = workload(name)["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels
    rules = {rule["ports"][0]["port"]: rule for rule in policy["ingress"]}
    assert len(policy["ingress"]) == 2
    assert all(len(rule["ports"]) == 1 for rule in policy["ingress"])
    assert "from" not in rules["http"]
    (allowed,) = rules["admin"]["from"]
    assert allowed["podSelector"]["matchLabels"]


def test_kubernetes_takes_secrets_from_a_secret() -> None:
    environment = deployed("kubernetes-tenants.yaml").environment
    sources = {
        name: item["valueFrom"]["secretKeyRef"]
        for name, item in environment.items()
        if name.startswith("REMIX_")
    }
    assert sources["REMIX_ADMIN_KEY"] == {"name": "remix-serve", "key": "admin-key"}
    assert sources["REMIX_DATABASE_URL"]["optional"] is True
    text = (ROOT / "deploy" / "kubernetes-tenants.yaml").read_text()
    for source in sources.values():
        assert f"--from-literal={source['key']}=" in text  # how to make it


@pytest.mark.parametrize(
    ("name", "port"), [("kubernetes.yaml", PORT), ("kubernetes-tenants.yaml", ADMIN_PORT)]
)
def test_metrics_are_scraped_where_they_are(name: str, port: int) -> None:
    annotations = workload(name)["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)


def test_with_sqlite_there_is_one_replica() -> None:
    """Each pod has a volume and so a database of its own."""
    assert workload("kubernetes-tenants.yaml")["spec"]["replicas"] == 1
    # Or the only pod could never be moved.
    assert "minAvailable" not in manifest("kubernetes-tenants.yaml", "PodDisruptionBudget")["spec"]


def test_both_manifests_agree_on_what_is_not_about_tenants() -> None:
    (one, container), (other, other_container) = (
        pod("kubernetes.yaml"),
        pod("kubernetes-tenants.yaml"),
    )
    differ = {"args", "env", "ports", "volumeMounts", "resources"}
    cpus = [c["resources"]["requests"].pop("cpu") for c in (container, other_container)]
    assert cpus[0] == cpus[1]
    for what in container["resources"], other_container["resources"]:  # imports take memory
        assert [*map(list, what.values())] == [["memory"], ["memory"]]
    assert {k: v for k, v in container.items() if k not in differ} == {
        k: v for k, v in other_container.items() if k not in differ
    }
    assert {**one, "containers": []} == {**other, "containers": []}


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes-tenants.yaml"])
def test_pod_may_drain_before_it_is_killed(name: str) -> None:
    spec, _ = pod(name)
    assert spec["terminationGracePeriodSeconds"] > deployed(name).options["drain_seconds"]


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kubernetes-tenants.yaml"])
def test_pod_is_probed_where_the_server_answers_and_has_no_rights(name: str) -> None:
    spec, container = pod(name)
    for probe, path in (("livenessProbe", "/health"), ("readinessProbe", "/ready")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_pinned_and_run_as_nobody_special(name: str) -> None:
    text = (ROOT / "docker" / name).read_text(encoding="utf-8")
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert images
    assert all(re.search(r":\d+\.\d+\.\d+", image) for image in images)
    assert text.rindex("USER 10001") > text.rindex("FROM ")
    assert "HEALTHCHECK" in text


@pytest.mark.parametrize("name", IMAGES)
def test_images_copy_every_room(name: str) -> None:
    text = (ROOT / "docker" / name).read_text(encoding="utf-8")
    for room in ROOMS:
        assert f"COPY {room} {room}\n" in text


def test_compose_serves_the_committed_samples() -> None:
    served = set(SINGLE[0].options["adapter"])
    samples = {path.parent.name for path in (ROOT / "examples").glob("*/adapter")}
    assert served == {f"{name}=/adapters/{name}/adapter" for name in samples}
    assert compose("compose.yaml")["services"]["remix"]["read_only"] is True


def test_every_manifest_is_checked_by_make_lint() -> None:
    (line,) = re.findall(r"kubernetes-validate.*", (ROOT / "Makefile").read_text())
    checked = {word for word in line.split() if word.endswith(".yaml")}
    assert checked == {f"deploy/{path.name}" for path in (ROOT / "deploy").glob("*.yaml")}
