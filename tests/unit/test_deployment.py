"""Images and compose files name what the server has, and open no more than is meant."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deployed import DEFAULTS, Served

ROOT = Path(__file__).parents[2]
ROOMS = ("remix_runtime", "training", "server", "benchmarks")
IMAGES = ("Dockerfile.cpu", "Dockerfile.gpu")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
LOCKED = ("postgres", "s3", "train", "peft", "demo", "otel", "ray")
"""What an image may have. Of vLLM there are only builds for GPUs in the lock file of that image."""
LOCKS = {
    "Dockerfile.cpu": ("requirements-cpu.txt", ("torch-cpu.txt",), LOCKED),
    "Dockerfile.gpu": ("requirements-gpu.txt", (), (*LOCKED, "vllm")),
}
"""For each image its lock file, what is pinned beside it, and the extras that are locked."""
PORT, ADMIN_PORT = DEFAULTS["port"].default, DEFAULTS["admin_port"].default


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


SINGLE = composed("compose.yaml")
TENANTS = composed("compose.yaml", "compose.tenants.yaml")


@pytest.mark.parametrize("served", [SINGLE, TENANTS])
def test_the_server_understands_what_it_is_given(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = served.settings(monkeypatch)
    assert (settings.port, settings.admin_port) == (PORT, ADMIN_PORT)
    assert settings.host == "0.0.0.0"
    assert any(Path(served.options["base"]).is_relative_to(f) for f in served.read_only)


def test_a_single_user_needs_no_key_and_no_volume() -> None:
    assert SINGLE.options["adapter"]
    assert SINGLE.options["data_dir"] is None
    assert (SINGLE.environment, SINGLE.writable) == ({}, {})


def test_tenants_are_kept_in_a_volume_of_the_image_s_user(monkeypatch: pytest.MonkeyPatch) -> None:
    served = TENANTS
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
    assert set(TENANTS.writable.values()) == document["volumes"].keys()
    environment = TENANTS.environment
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
        assert re.search(
            rf"pip install --no-deps --require-hashes .*-r docker/{file}(?: \\)?$", text, re.M
        )
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
    served = set(SINGLE.options["adapter"])
    samples = {path.parent.name for path in (ROOT / "examples").glob("*/adapter")}
    assert served == {f"{name}=/adapters/{name}/adapter" for name in samples}
    assert compose("compose.yaml")["services"]["remix"]["read_only"] is True


def test_every_manifest_is_checked_by_make_lint() -> None:
    (line,) = re.findall(r"kubernetes-validate.*", (ROOT / "Makefile").read_text())
    checked = {word for word in line.split() if word.endswith(".yaml")}
    assert checked == {f"deploy/{path.name}" for path in (ROOT / "deploy").glob("*.yaml")}
