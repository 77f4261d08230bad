"""The CPU image, built from its Dockerfile: what it does as a container, and what is in it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import httpx
import pytest

from tests.images import contents, report
from tests.images.buildah import ROOT, Buildah
from tests.images.container import Container, Image

pytestmark = pytest.mark.images

URL = "http://127.0.0.1:8000"
STREAMS = 30
ADAPTER = ("--adapter", "pirate=/models/adapters/pirate")
WRITABLE = {"/tmp", "/data", "/dev/shm", "/proc"}
"""The last two are no files of anybody's."""


@pytest.fixture(scope="module")
def files(buildah: Buildah, cpu_image: str) -> Iterator[Path]:
    with buildah.mounted(cpu_image) as root:
        yield root


@pytest.fixture
def container(
    buildah: Buildah, cpu_image: str, models: dict[str, Path], tmp_path: Path
) -> Iterator[Container]:
    """The image's own command, and a sample adapter."""
    image = Image.of(buildah.inspect(cpu_image))
    with buildah.mounted(cpu_image) as root:
        running = Container(image, root, tmp_path / "data", models, *ADAPTER)
        try:
            running.wait_healthy()
            yield running
        finally:
            running.stop()


def chat(model: str, **more: object) -> dict[str, object]:
    question = {"role": "user", "content": "What is the capital of France?"}
    return {"model": model, "messages": [question], "temperature": 0, **more}


def test_it_answers_as_its_user_and_writes_to_no_place_but_tmp_and_data(
    container: Container,
) -> None:
    with container.network(), httpx.Client(base_url=URL, timeout=120) as client:
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        answers = {name: client.post("/v1/chat/completions", json=chat(name)) for name in names}
    assert names == ["base", "pirate"]
    texts = {
        name: answer.raise_for_status().json()["choices"][0]["message"]["content"]
        for name, answer in answers.items()
    }
    assert "Paris" in texts["base"]
    assert texts["pirate"] != texts["base"]

    user = "10001"
    assert container.status("Uid").split() == container.status("Gid").split() == [user] * 4
    assert int(container.status("CapEff"), 16) == int(container.status("CapPrm"), 16) == 0
    assert container.status("NoNewPrivs") == "1"
    assert container.status("NSpid").split()[-1] == "1"  # what SIGTERM does to it is not usual
    places = {place for place, writable in container.mounts().items() if writable}
    assert {place for place in places if not place.startswith("/dev/")} == WRITABLE - {"/dev/shm"}
    refused = container.execute("touch", "/home/remix/file")
    assert "Read-only file system" in refused.stderr
    kernels = container.execute("sh", "-c", "ls /tmp/cache/remix-serve/kernels/*.so")
    assert kernels.returncode == 0, container.log.read_text()  # in C, compiled by the image's gcc
    log = container.log.read_text()
    assert "no native CPU kernels" not in log
    assert "Read-only" not in log


def test_tenants_last_in_data_from_one_container_to_the_next(
    buildah: Buildah, cpu_image: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """And the image's own command line manages them."""
    image = Image.of(buildah.inspect(cpu_image))
    key = {"REMIX_ADMIN_KEY": secrets.token_hex(24)}
    options = ("--data-dir", "/data", "--import-root", "/models/adapters")
    tenant_key = ""
    for start in ("first", "second"):
        with buildah.mounted(cpu_image) as root:
            container = Container(image, root, tmp_path / "data", models, *options, environment=key)
            try:
                container.wait_healthy()
                if start == "first":
                    made = container.execute("remix", "tenant", "create", "acme")
                    assert made.returncode == 0, made.stderr
                    told = container.execute("remix", "tenant", "key", "acme", "--json")
                    tenant_key = json.loads(told.stdout)["secret"]
                    document = "{tenant: acme, adapters: {arr: /models/adapters/pirate}}"
                    apply = "remix set apply --yes -f /tmp/set.yaml"
                    script = f"echo '{document}' > /tmp/set.yaml && {apply}"
                    applied = container.execute("sh", "-c", script)
                    assert applied.returncode == 0, applied.stderr
                headers = {"Authorization": f"Bearer {tenant_key}"}
                with container.network(), httpx.Client(base_url=URL, timeout=120) as client:
                    answer = client.post("/v1/chat/completions", json=chat("arr"), headers=headers)
                    assert answer.status_code == 200, answer.text
                    assert client.get("/v1/models").status_code == 401
                container.terminate()
                assert container.wait(60) == 0
            finally:
                container.stop()


def test_its_check_fails_where_nobody_answers(container: Container) -> None:
    assert container.is_healthy()
    wrong = [part.replace(":8000", ":8009") for part in container.image.health]
    assert container.execute(*wrong).returncode != 0


def test_sigterm_under_load_ends_no_stream(container: Container) -> None:
    """Not one of the streams that run, and the exit status is 0."""
    all_run = Barrier(STREAMS + 1)

    def stream(number: int) -> tuple[int, str, bool]:
        """The number of tokens, why it ended, and whether the stream was whole."""
        question = chat("pirate" if number % 2 else "base", stream=True, max_tokens=40)
        question |= {"ignore_eos": True}
        deltas, reason, done, waited = 0, "", False, False
        with (
            container.network(),
            httpx.Client(base_url=URL, timeout=300) as client,
            client.stream("POST", "/v1/chat/completions", json=question) as answer,
        ):
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    break
                choice = json.loads(line.removeprefix("data: "))["choices"][0]
                reason = choice["finish_reason"] or reason
                deltas += bool(choice["delta"].get("content"))
                if deltas == 1 and not waited:
                    waited = True
                    all_run.wait(300)
        return deltas, reason, done

    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream, number) for number in range(STREAMS)]
        all_run.wait(300)
        container.terminate()
        with container.network(), httpx.Client(base_url=URL, timeout=60) as client:
            refused = client.get("/ready")
        ends = [running.result(300) for running in streams]
    assert {(reason, done) for _, reason, done in ends} == {("length", True)}
    assert refused.status_code == 503
    assert container.wait(60) == 0
    log = container.log.read_text()
    assert "draining" in log
    assert "Traceback" not in log


def test_nothing_of_this_machine_is_left_in_it(files: Path) -> None:
    """Neither its package index nor its certificates."""
    for name in ("etc/uv/uv.toml", "etc/pip.conf"):
        assert (files / name).read_text() == ""
    assert not list((files / "mnt").iterdir())
    assert not (files / "opt/remix/lib/python3.11/site-packages/pip").exists()


def test_what_is_shipped_has_a_licence_that_allows_it(files: Path) -> None:
    packages = contents.python_packages(files)
    assert {"torch", "transformers", "fastapi"} <= {package.name for package in packages}
    assert report.not_allowed(packages) == []


def test_bill_of_materials_and_report_are_written(
    buildah: Buildah, cpu_image: str, files: Path
) -> None:
    packages = contents.python_packages(files), contents.debian_packages(files)
    text = contents.written(contents.document("remix-serve:cpu", [*packages[0], *packages[1]]))
    names = {component["name"] for component in json.loads(text)["components"]}
    assert {"torch", "remix-serve", "libc6", "gcc-12"} <= names
    folder = ROOT / "dist" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cdx.json").write_text(text)
    (folder / "cpu-licences.md").write_text(report.licences(*packages))
    report.write("cpu", buildah.layers(cpu_image), *packages)
