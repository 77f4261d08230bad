"""The chart's objects, rendered with a file of its values and single values beside."""

from __future__ import annotations

from typing import Any

from tests.deployed import Served
from tests.helm import render

Object = dict[str, Any]


def files(name: str) -> tuple[str, ...]:
    return (name,) if name else ()


def objects(name: str, kind: str, *sets: str) -> dict[str, Object]:
    """By their names."""
    found = render(*files(name), sets=sets)
    return {item["metadata"]["name"]: item for item in found if item["kind"] == kind}


def the(name: str, kind: str, *sets: str) -> Object:
    """The release's own object of a kind."""
    return objects(name, kind, *sets)["remix-serve"]


def workload(name: str, *sets: str) -> Object:
    (found,) = [
        item
        for item in render(*files(name), sets=sets)
        if item["kind"] in ("StatefulSet", "Deployment")
        and item["metadata"]["name"] == "remix-serve"
    ]
    return found


def pod(name: str, *sets: str) -> tuple[Object, Object]:
    """And its only container."""
    spec = workload(name, *sets)["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def every_pod(name: str) -> list[Object]:
    found = render(*files(name))
    return [item["spec"]["template"] for item in found if "template" in item.get("spec", {})]


def served_by(name: str, *sets: str) -> Served:
    _, container = pod(name, *sets)
    claims = workload(name, *sets)["spec"].get("volumeClaimTemplates", [])
    lasting = {claim["metadata"]["name"] for claim in claims}
    served = Served(container["args"], {item["name"]: item for item in container["env"]})
    for mount in container["volumeMounts"]:
        if mount.get("readOnly"):
            served.read_only[mount["mountPath"]] = mount["name"]
        elif mount["name"] in lasting:
            served.writable[mount["mountPath"]] = mount["name"]
    return served
