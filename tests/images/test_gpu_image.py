"""The GPU image, built from its Dockerfile, where there is no GPU: it says so, and its embedded
engine serves on the CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.images import contents, report
from tests.images.buildah import ROOT, Buildah
from tests.images.container import Container, Image

pytestmark = [
    pytest.mark.images,
    pytest.mark.skipif(
        not os.environ.get("REMIX_IMAGES_GPU"), reason="35 GB of disk: make test-images GPU=1"
    ),
]

ADAPTER = ("--adapter", "pirate=/models/adapters/pirate")


@pytest.fixture(scope="module")
def files(buildah: Buildah, gpu_image: str) -> Iterator[Path]:
    with buildah.mounted(gpu_image) as root:
        yield root


@pytest.fixture
def image(buildah: Buildah, gpu_image: str) -> Image:
    return Image.of(buildah.inspect(gpu_image))


def test_vllm_says_that_there_is_no_gpu(
    files: Path, image: Image, models: dict[str, Path], tmp_path: Path
) -> None:
    container = Container(image, files, tmp_path / "data", models, "--engine", "vllm", *ADAPTER)
    try:
        assert container.wait(300) not in (0, None)
    finally:
        container.stop()
    last = container.log.read_text().strip().splitlines()[-1]
    assert last.startswith("error: "), container.log.read_text()
    assert "GPU" in last or "CUDA" in last, last


def test_the_embedded_engine_serves_without_a_gpu(
    files: Path, image: Image, models: dict[str, Path], tmp_path: Path
) -> None:
    container = Container(image, files, tmp_path / "data", models, *ADAPTER)
    try:
        container.wait_healthy(300)
        question = {"role": "user", "content": "What is the capital of France?"}
        with container.network(), httpx.Client(timeout=120) as client:
            answer = client.post(
                "http://127.0.0.1:8000/v1/chat/completions",
                json={"model": "base", "messages": [question], "temperature": 0},
            )
        assert "Paris" in answer.raise_for_status().json()["choices"][0]["message"]["content"]
        assert container.status("Uid").split() == ["10001"] * 4
        container.terminate()
        assert container.wait(60) == 0
    finally:
        container.stop()


def test_what_is_in_it_is_written(buildah: Buildah, gpu_image: str, files: Path) -> None:
    packages = contents.python_packages(files), contents.debian_packages(files)
    assert report.not_allowed(packages[0], with_nvidia=True) == []
    text = contents.written(contents.document("remix-serve:gpu", [*packages[0], *packages[1]]))
    names = {component["name"] for component in json.loads(text)["components"]}
    assert {"torch", "vllm", "remix-serve"} <= names
    folder = ROOT / "dist" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.cdx.json").write_text(text)
    (folder / "gpu-licences.md").write_text(report.licences(*packages))
    report.write("gpu", buildah.layers(gpu_image), *packages)
