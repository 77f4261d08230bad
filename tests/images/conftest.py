"""Buildah's folder, the images in it, and what is mounted into containers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from remix_runtime.demo_model import demo_model
from tests.images.buildah import ROOT, Base, Buildah
from tests.images.indexes import indexes_of_this_machine

# `make test` collects what stands here and runs none of it, so it need not have what that needs.
collect_ignore_glob = [] if find_spec("license_expression") else ["test_*.py"]

CPU = "localhost/remix-serve:cpu"
PYTHON_BASE = Base(
    "docker.io/library/python:3.11.14-slim-bookworm",
    "bookworm",
    ("python3.11", "python3.11-venv", "python3-pip"),
    python="python3.11",
)
GPU = "localhost/remix-serve:gpu"
CUDA_BASE = Base(
    "docker.io/nvidia/cuda:13.0.1-base-ubuntu24.04",
    "bookworm",
    ("libssl3", "libffi8", "libsqlite3-0", "libbz2-1.0", "liblzma5", "libreadline8", "zlib1g"),
    copied_python="python3.12",
)


@pytest.fixture(scope="session")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    kept = os.environ.get("REMIX_IMAGES")
    found = Buildah(Path(kept) if kept else tmp_path_factory.mktemp("buildah"))
    yield found
    if not kept:
        found.clear()


@pytest.fixture(scope="session")
def cpu_image(buildah: Buildah) -> str:
    """Its tag."""
    buildah.make_base(PYTHON_BASE)
    buildah.build("Dockerfile.cpu", CPU, indexes_of_this_machine())
    return CPU


@pytest.fixture(scope="session")
def gpu_image(buildah: Buildah) -> str:
    """Its tag."""
    buildah.make_base(CUDA_BASE)
    buildah.build("Dockerfile.gpu", GPU, indexes_of_this_machine())
    return GPU


@pytest.fixture(scope="session")
def models() -> dict[str, Path]:
    """The demo base and a sample adapter, by where containers have them."""
    return {
        "/models/base": demo_model(),
        "/models/adapters/pirate": ROOT / "examples" / "pirate" / "adapter",
    }
