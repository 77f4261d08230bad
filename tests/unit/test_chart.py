"""The Helm chart, rendered by Helm: its objects are valid, and do what the server needs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, get_args

import kubernetes_validate
import pytest
import yaml

from remix_runtime.engines.fake import FakeEngine
from server.app import create_app
from server.engines import EngineName
from server.settings import ServerSettings
from tests.chart import Object, every_pod, files, objects, pod, served_by, the, workload
from tests.deployed import DEFAULTS
from tests.helm import CHART, HelmError, helm, render

VALUES = ("", *sorted(path.stem for path in (CHART / "values").glob("*.yaml")))
"""Names of files with values; the empty one is none, only the chart's own."""
COMBINATIONS = (*((name,) if name else () for name in VALUES), ("gpu", "postgresql"))
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""Of operators; Kubernetes itself has no schema for them."""
PORT, ADMIN_PORT = DEFAULTS["port"].default, DEFAULTS["admin_port"].default


@pytest.mark.parametrize("values", COMBINATIONS)
def test_every_object_is_valid(values: tuple[str, ...]) -> None:
    kinds = []
    for item in render(*values):
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, "1.29", strict=True)
        kinds.append((item["kind"], item["metadata"]["name"]))
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == "remix-serve"
    assert len(set(kinds)) == len(kinds)
    assert {"Service", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"} <= {
        k for k, _ in kinds
    }


ENGINES = {"gpu": "vllm", "ray": "ray"}
"""By names of values; the others have the embedded one."""


@pytest.mark.parametrize(
    "name", [name for name in VALUES if ENGINES.get(name, "embedded") in get_args(EngineName)]
)
def test_the_server_understands_what_it_is_given(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = served_by(name)
    settings = served.settings(monkeypatch)
    assert (settings.port, settings.admin_port) == (PORT, ADMIN_PORT)
    assert settings.host == "0.0.0.0"
    assert any(Path(served.options["base"]).is_relative_to(f) for f in served.read_only)
    assert served.options["engine"] == ENGINES.get(name, "embedded")


def test_values_become_options_as_they_are_meant() -> None:
    """Whole numbers above a million too, which Helm reads as floats."""
    sets = (
        "options.prefix-cache=false",
        "options.cors-origin={https://a.example,https://b.example}",
    )
    more = ("options.keep-alive-seconds=2.5", "options.log-format=json")
    traces = "options.otlp-endpoint=http://collector.monitoring:4318"
    options = served_by("", *sets, *more, traces).options
    assert options["kv_cache_bytes"] == 1 << 30
    assert options["prefix_cache"] is False
    assert options["cors_origin"] == ["https://a.example", "https://b.example"]
    assert options["keep_alive_seconds"] == 2.5
    assert options["log_format"] == "json"
    assert options["otlp_endpoint"] == "http://collector.monitoring:4318"
    names = served_by("single-user", "adapters.a: b=/models/c").options["adapter"]
    assert "a: b=/models/c" in names


@pytest.mark.parametrize("name", ["", "single-user", "ray"])
def test_what_the_chart_gives_itself_is_refused_as_an_option(name: str) -> None:
    """A port that the probes do not ask, a drain that the kill cuts off, a secret in plain text."""
    _, container = pod(name, "options=null")
    given = {argument.partition("=")[0] for argument in container["args"][1:]}
    given |= {"--api-key", "--database-url"}
    for option in given:
        with pytest.raises(HelmError, match=f"options.{option[2:]}: the chart gives it"):
            render(*files(name), sets=(f"options.{option[2:]}=9",))


def test_a_single_user_needs_no_key_and_no_volume() -> None:
    served = served_by("single-user")
    assert served.options["adapter"] == ["pirate=/models/adapters/pirate"]
    assert served.options["data_dir"] is None
    assert (served.environment, served.writable) == ({}, {})
    assert workload("single-user")["kind"] == "Deployment"
    assert objects("single-user", "Service").keys() == {"remix-serve"}
    sets = ("apiKey.secret=keys",)
    (key,) = served_by("single-user", *sets).environment.values()
    assert key["valueFrom"]["secretKeyRef"] == {"name": "keys", "key": "api-key"}


@pytest.mark.parametrize("name", ["", "gpu", "postgresql"])
def test_tenants_are_kept_in_a_volume_of_each_pod(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = served_by(name)
    settings = served.settings(monkeypatch)
    assert str(settings.data_dir) in served.writable
    assert any(settings.import_root.is_relative_to(folder) for folder in served.read_only)
    assert settings.admin_host == "0.0.0.0"  # who may come there is said by the network policy
    spec, _ = pod(name)
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsUser"] == 10001


def test_secrets_are_references_only() -> None:
    for name, expected in (
        ("", {"REMIX_ADMIN_KEY": ("remix-serve", "admin-key")}),
        (
            "postgresql",
            {
                "REMIX_ADMIN_KEY": ("remix-serve", "admin-key"),
                "REMIX_DATABASE_URL": ("remix-database", "database-url"),
            },
        ),
    ):
        sources = {
            variable: item["valueFrom"]["secretKeyRef"]
            for variable, item in served_by(name).environment.items()
            if variable.startswith("REMIX_")
        }
        assert {v: (s["name"], s["key"]) for v, s in sources.items()} == expected
        assert not objects(name, "Secret")
        text = "".join(path.read_text() for path in CHART.glob("**/values*/*.yaml"))
        for secret, key in expected.values():  # how to make it
            made = f"kubectl create secret generic {secret} --from-literal={key}="
            assert made in text + (CHART / "values.yaml").read_text()


@pytest.mark.parametrize("name", VALUES)
def test_the_pod_drains_before_it_is_killed(name: str) -> None:
    spec, container = pod(name)
    options = served_by(name).options
    delay, seconds = options["drain_delay_seconds"], options["drain_seconds"]
    assert delay > container["readinessProbe"]["periodSeconds"]
    assert spec["terminationGracePeriodSeconds"] >= delay + seconds + 5
    assert "lifecycle" not in container  # the server itself goes on until it has left the service


def test_a_worker_of_ray_leaves_before_it_is_killed() -> None:
    worker = objects("ray", "Deployment", "drain.requests=70")["remix-serve-ray"]
    spec = worker["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    shell = container["lifecycle"]["preStop"]["exec"]["command"]
    assert shell[:2] == ["sh", "-c"]
    drain, _, rest = shell[2].partition(";")  # whether Ray takes it or not
    assert drain.startswith("ray drain-node ")
    assert "--deadline-remaining-seconds=70" in drain
    assert rest.split() == ["sleep", "70"]
    assert spec["terminationGracePeriodSeconds"] >= 70 + 5


@pytest.mark.parametrize("name", VALUES)
def test_the_pod_is_probed_where_the_server_answers(name: str) -> None:
    _, container = pod(name)
    app = create_app(FakeEngine(), ServerSettings(), {})
    paths = app.openapi()["paths"]
    probes = {probe: container[probe]["httpGet"] for probe in container if probe.endswith("Probe")}
    assert {probe: found["path"] for probe, found in probes.items()} == {
        "startupProbe": "/health",
        "livenessProbe": "/health",
        "readinessProbe": "/ready",
    }
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for found in probes.values():
        assert "get" in paths[found["path"]]
        assert ports[found["port"]] == PORT


@pytest.mark.parametrize("name", VALUES)
def test_no_pod_has_rights(name: str) -> None:
    templates = every_pod(name)
    assert len(templates) == (2 if name == "ray" else 1)
    for template in templates:
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*spec["containers"], *spec.get("initContainers", [])):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
            assert writable <= {"/tmp", "/data", "/dev/shm"}
    for account in objects(name, "ServiceAccount").values():
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", VALUES)
def test_services_lead_to_the_pods_and_the_admin_port_is_apart(name: str) -> None:
    services = objects(name, "Service")
    labels = workload(name)["spec"]["template"]["metadata"]["labels"]
    public = services.pop("remix-serve")["spec"]
    assert [port["targetPort"] for port in public["ports"]] == ["http"]
    assert public["selector"].items() <= labels.items()
    _, container = pod(name)
    named = {port["name"] for port in container["ports"]}
    if name == "single-user":
        assert (services, named) == ({}, {"http"})
        return
    admin = services["remix-serve-admin"]["spec"]
    assert admin["type"] == "ClusterIP"
    assert admin["ports"] == [{"name": "admin", "port": ADMIN_PORT, "targetPort": "admin"}]
    assert admin["selector"] == public["selector"]
    assert workload(name)["spec"]["serviceName"] in services
    exposing = {
        service
        for service, item in services.items()
        for port in item["spec"]["ports"]
        if port["targetPort"] == "admin"
    }
    assert exposing == {"remix-serve-admin"}


def ports_of(rules: list[Object]) -> dict[Any, Object]:
    return {rule["ports"][0]["port"]: rule for rule in rules if "ports" in rule}


def test_network_policy_lets_only_chosen_pods_to_the_admin_port() -> None:
    policy = the("postgresql", "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    labels = workload("postgresql")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    incoming = ports_of(policy["ingress"])
    assert incoming.keys() == {"http", "admin"}
    assert "from" not in incoming["http"]
    (allowed,) = incoming["admin"]["from"]
    assert allowed["podSelector"]["matchLabels"]
    outgoing = ports_of(policy["egress"])
    assert outgoing.keys() == {53, 443, 5432}
    assert outgoing[5432]["to"]
    sets = (
        "networkPolicy.egress.https=false",
        "networkPolicy.clients[0].podSelector.matchLabels.app=gateway",
    )
    closed = the("", "NetworkPolicy", *sets)["spec"]
    assert ports_of(closed["egress"]).keys() == {53}
    assert ports_of(closed["ingress"])["http"]["from"] == [
        {"podSelector": {"matchLabels": {"app": "gateway"}}}
    ]
    offline = served_by("", *sets).environment["HF_HUB_OFFLINE"]["value"]
    assert offline == "1"  # or an import from the hub would wait for a time-out


@pytest.mark.parametrize(
    ("name", "sets", "said"),
    [
        ("", ("replicas=2",), "replicas: found 2 with SQLite"),
        ("", ("autoscaling.kind=hpa",), "replicas: found 4 with SQLite"),
        ("gpu", ("replicas=2",), "replicas: found 2 with SQLite"),
        ("ray", ("replicas=2", "database.secret=db"), "replicas: found 2 with the Ray engine"),
        ("", ("adapters.pirate=/models/pirate",), "adapters: with tenants.enabled"),
        ("", ("optoins.a=1",), "'optoins' not allowed"),
        ("", ("tenants.adminKey.secret=",), "/tenants/adminKey/secret"),
        ("", ("base=/etc",), "/base"),
    ],
)
def test_values_that_cannot_be_served_are_refused(
    name: str, sets: tuple[str, ...], said: str
) -> None:
    with pytest.raises(HelmError, match=re.escape(said)):
        render(*files(name), sets=sets)


def test_with_sqlite_there_is_one_replica_and_it_can_be_moved() -> None:
    assert workload("")["spec"]["replicas"] == 1
    assert the("", "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_pods_are_scaled_by_the_queues_that_the_server_shows() -> None:
    scaler = the("postgresql", "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["kind"] == workload("postgresql")["kind"]
    assert "replicas" not in workload("postgresql")["spec"]  # or each upgrade would undo it
    metrics = {m["pods"]["metric"]["name"]: m["pods"]["target"] for m in scaler["metrics"]}
    assert metrics == {
        "remix_requests_waiting": {"type": "AverageValue", "averageValue": "4"},
        "remix_requests_running": {"type": "AverageValue", "averageValue": "24"},
    }
    sets = ("autoscaling.kind=keda",)
    scaled = the("postgresql", "ScaledObject", *sets)["spec"]
    queries = [trigger["metadata"]["query"] for trigger in scaled["triggers"]]
    assert [re.findall(r"^sum\((\w+)\{", query) for query in queries] == [[m] for m in metrics]
    (service,) = set(re.findall(r'service="([^"]+)"', " ".join(queries)))
    assert service in objects("postgresql", "Service")
    assert not objects("postgresql", "HorizontalPodAutoscaler", *sets)


def test_prometheus_scrapes_where_metrics_are_with_the_key_they_want() -> None:
    monitor = the("postgresql", "ServiceMonitor")["spec"]
    (chosen,) = [
        service
        for service in objects("postgresql", "Service").values()
        if monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ]
    assert chosen["metadata"]["name"] == "remix-serve-admin"
    # The job's name, which the rules ask for, whatever the release is called.
    assert chosen["metadata"]["labels"][monitor["jobLabel"]] == "remix-serve"
    (endpoint,) = monitor["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("admin", "/metrics")
    assert endpoint["authorization"] == {
        "type": "Bearer",
        "credentials": {"name": "remix-serve", "key": "admin-key"},
    }
    alone = the("single-user", "ServiceMonitor", "metrics.serviceMonitor.enabled=true")["spec"]
    (endpoint,) = alone["endpoints"]
    assert endpoint["port"] == "http"
    assert "authorization" not in endpoint


def test_the_chart_has_the_rules_of_the_deployment() -> None:
    shipped = yaml.safe_load((CHART.parent / "prometheus" / "rules.yaml").read_text())["groups"]
    assert shipped
    assert the("", "PrometheusRule", "metrics.rules.enabled=true")["spec"]["groups"] == shipped


def test_rules_of_prometheus_are_taken_from_their_files(tmp_path: Path) -> None:
    """Those of deploy/prometheus, by a link in the chart's folder `rules`."""
    expression = "{{ $labels.instance }} has {{ $value }} waiting"
    rule = {
        "alert": "Full",
        "expr": "remix_requests_waiting > 9",
        "annotations": {"is": expression},
    }
    groups = [{"name": "remix", "rules": [rule]}]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    (chart / "rules").mkdir(exist_ok=True)
    for file in (chart / "rules").iterdir():
        file.unlink()
    (chart / "rules" / "rules.yaml").symlink_to("../../rules.yaml")
    text = helm("template", "remix-serve", str(chart), "--set=metrics.rules.enabled=true")
    items = filter(None, yaml.safe_load_all(text))
    (found,) = [item for item in items if item["kind"] == "PrometheusRule"]
    assert found["spec"]["groups"] == groups


def test_gpus_are_asked_for_where_the_engine_runs() -> None:
    spec, container = pod("gpu")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"] == "remix-serve:gpu"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert any(item["key"] == "nvidia.com/gpu" for item in spec["tolerations"])
    _, without = pod("")
    assert "nvidia.com/gpu" not in without["resources"]["limits"]
    sets = ("gpu.count=2",)
    _, head = pod("ray", *sets)
    worker = objects("ray", "Deployment", *sets)["remix-serve-ray"]
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    assert "--num-gpus=2" in container["command"]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]


def test_ray_workers_find_the_head_which_outlives_the_server() -> None:
    spec, server = pod("ray")
    (head,) = spec["initContainers"]
    assert head["restartPolicy"] == "Always"  # a sidecar ends after the server
    assert "startupProbe" in head  # and the server starts after it
    assert "--port=6379" in head["command"]
    assert "--ray-address=127.0.0.1:6379" in server["args"]
    shared = {mount["mountPath"] for mount in head["volumeMounts"]}
    assert {"/tmp", "/dev/shm"} <= shared  # where Ray's processes find one another
    worker = objects("ray", "Deployment")["remix-serve-ray"]["spec"]["template"]
    (container,) = worker["spec"]["containers"]
    (address,) = [part for part in container["command"] if part.startswith("--address=")]
    service, _, port = address.removeprefix("--address=").partition(":")
    found = objects("ray", "Service")[service]["spec"]
    assert found["selector"] == the("ray", "Service")["spec"]["selector"]
    assert [item["port"] for item in found["ports"]] == [int(port)]
    assert found["publishNotReadyAddresses"] is True
    secret = {"secretKeyRef": {"name": "remix-serve", "key": "ray-token"}}
    for each in (head, server, container):  # Ray's ports run what they are sent
        environment = {item.pop("name"): item for item in map(dict, each["env"])}
        assert environment["RAY_AUTH_MODE"] == {"value": "token"}
        assert environment["RAY_AUTH_TOKEN"] == {"valueFrom": secret}
    for policy in objects("ray", "NetworkPolicy").values():
        (peers,) = [rule["from"] for rule in policy["spec"]["ingress"] if "ports" not in rule]
        (peer,) = peers
        assert peer["podSelector"]["matchLabels"].items() <= worker["metadata"]["labels"].items()


def test_notes_name_what_is_there() -> None:
    notes = helm("install", "remix-serve", str(CHART), "--dry-run=client", "--namespace=models")
    notes = notes.partition("NOTES:")[2]
    for service in re.findall(r"service/(\S+)", notes):
        assert service in objects("", "Service")
    assert "get secret remix-serve" in notes
