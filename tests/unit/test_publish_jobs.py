"""The jobs that train and publish, for compose and Kubernetes, fit the servers that are shipped."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.chart import objects, the
from tests.chart import pod as server_pod
from tests.deployed import Served
from tests.unit.test_deployment import ADMIN_PORT, EXTRAS, LOCKED, ROOT, compose

COMPOSE, MANIFEST = "compose.publish.yaml", "publish-job.yaml"
JOB: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / MANIFEST).read_text(encoding="utf-8"))
POD: dict[str, Any] = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def service() -> dict[str, Any]:
    found: dict[str, Any] = compose(COMPOSE)["services"]["publish"]
    return found


def arguments(of: str) -> list[str]:
    found: list[str] = service()["command"] if of == COMPOSE else CONTAINER["args"]
    return found


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (COMPOSE, f"http://remix:{ADMIN_PORT}"),
        (MANIFEST, f"http://remix-serve-admin:{ADMIN_PORT}"),
    ],
)
def test_the_command_line_is_one_and_its_server_is_the_shipped_one(name: str, url: str) -> None:
    options = Served(arguments(name), {}).options
    assert str(options["config"]) == "/runs/recipe.yaml"
    assert options["publish"].endswith("acme/pirate}" if name == COMPOSE else "acme/pirate")
    assert options["url"] == url
    assert "remix" in compose("compose.yaml")["services"]
    assert objects("", "Service")["remix-serve-admin"]


def test_the_image_has_what_training_needs_and_its_lock_too() -> None:
    assert service()["build"]["args"] == {"EXTRAS": "train"}
    assert "train" in LOCKED
    assert EXTRAS["train"]
    assert CONTAINER["image"] == service()["image"]


def test_what_is_written_has_a_place_that_the_image_writes_to() -> None:
    """The image keeps its caches in /tmp; the root is read-only."""
    text = (ROOT / "docker" / "Dockerfile.cpu").read_text(encoding="utf-8")
    assert "XDG_CACHE_HOME=/tmp/" in text
    assert {part.partition(":")[0] for part in service()["tmpfs"]} == {"/tmp"}
    mounts = CONTAINER["volumeMounts"]
    assert {m["mountPath"] for m in mounts if not m.get("readOnly")} == {"/tmp", "/runs"}
    for environment in (
        service()["environment"],
        {e["name"]: e.get("value") for e in CONTAINER["env"]},
    ):
        assert environment["MPLCONFIGDIR"].startswith("/tmp/")


def test_the_job_may_reach_the_admin_port_and_has_its_key() -> None:
    policy = the("", "NetworkPolicy")["spec"]
    (rule,) = (rule for rule in policy["ingress"] if "from" in rule)
    wanted = rule["from"][0]["podSelector"]["matchLabels"]
    assert wanted.items() <= JOB["spec"]["template"]["metadata"]["labels"].items()
    for container in (server_pod("")[1], CONTAINER):
        (key,) = (item for item in container["env"] if item["name"] == "REMIX_ADMIN_KEY")
        assert key["valueFrom"]["secretKeyRef"] == {"name": "remix-serve", "key": "admin-key"}
    assert service()["environment"]["REMIX_ADMIN_KEY"].startswith("${REMIX_ADMIN_KEY:?")


def test_a_refusal_is_not_tried_again_and_nothing_is_open_that_need_not_be() -> None:
    assert JOB["spec"]["backoffLimit"] == 0
    assert POD["restartPolicy"] == "Never"
    server, its_container = server_pod("")
    assert POD["securityContext"] == server["securityContext"]
    assert CONTAINER["securityContext"] == its_container["securityContext"]
    assert service()["profiles"] == ["publish"]
    assert "ports" not in service()
    hardened = ("read_only", "cap_drop", "security_opt")
    assert [service()[n] for n in hardened] == [
        compose("compose.yaml")["services"]["remix"][n] for n in hardened
    ]
