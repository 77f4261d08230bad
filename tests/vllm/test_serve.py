"""Servers as users start them, through the `openai` client: vLLM's own with the plugin, and ours
with the vLLM engine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

import tests.vllm_engines  # noqa: F401  sets what vLLM reads at import
from tests.models import tiny_tokenizer
from tests.vllm.conftest import Adapter, World

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

NEW_TOKENS = 10


@contextmanager
def served(command: list[str], log: Path, **environment: str) -> Iterator[openai.OpenAI]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    finally:
        process.terminate()
        process.wait(60)


def text(client: openai.OpenAI, model: str, prompt: list[int]) -> str:
    done = client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=NEW_TOKENS,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    return done.choices[0].text


def tokens(client: openai.OpenAI, model: str, prompt: list[int]) -> list[int]:
    """As vLLM's server tells them; its texts are decoded in its own way."""
    done = client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=NEW_TOKENS,
        temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    return list(done.choices[0].token_ids)  # type: ignore[attr-defined]


def expected(adapter: Adapter, prompt: list[int]) -> str:
    decoded: str = tiny_tokenizer().decode(
        adapter.answer(prompt, NEW_TOKENS),
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return decoded


def test_vllms_own_server_serves_mixtures_beside_plain_loras(
    world: World, prompt: Callable[[int], list[int]], tmp_path: Path
) -> None:
    named = {f"a{i}": adapter for i, adapter in enumerate(world.adapters)}
    late = named.pop("a1")
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(world.base)),
        *("--served-model-name", "base", "--dtype", "float32", "--enforce-eager"),
        *("--enable-lora", "--max-loras", "4", "--max-lora-rank", "64"),
        *("--lora-modules", *(f"{name}={adapter.folder}" for name, adapter in named.items())),
    ]
    with served(command, tmp_path / "log", VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as client:
        ids = prompt(9)
        for name, adapter in named.items():
            assert tokens(client, name, ids) == adapter.answer(ids, NEW_TOKENS)
        assert tokens(client, "base", ids) == Adapter(world.base, world.model).answer(
            ids, NEW_TOKENS
        )
        loaded = httpx.post(
            f"{client.base_url}load_lora_adapter",
            json={"lora_name": "late", "lora_path": str(late.folder)},
            timeout=60,
        )
        assert loaded.status_code == 200, loaded.text
        assert tokens(client, "late", ids) == late.answer(ids, NEW_TOKENS)
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "adapter_config.json").write_text('{"peft_type": "REMIX"}')
        refused = httpx.post(
            f"{client.base_url}load_lora_adapter",
            json={"lora_name": "broken", "lora_path": str(broken)},
            timeout=60,
        )
        assert refused.status_code >= 400
        assert tokens(client, "late", ids) == late.answer(ids, NEW_TOKENS)


def test_remix_serve_with_the_vllm_engine(world: World, tmp_path: Path) -> None:
    named = {f"a{i}": adapter for i, adapter in enumerate(world.remix)}
    command = [
        *(sys.executable, "-c", "from remix_runtime.cli import main; main()", "serve"),
        *("--engine", "vllm", "--base", str(world.base), "--dtype", "float32", "--enforce-eager"),
        *(f"--adapter={name}={adapter.folder}" for name, adapter in named.items()),
    ]
    with served(command, tmp_path / "log") as client:
        # A text that ends in a whole character: the answer's first byte joins no half one.
        ids = tiny_tokenizer()("Once upon a time")["input_ids"]
        for name, adapter in named.items():
            assert text(client, name, ids) == expected(adapter, ids)
        assert text(client, "base", ids) == expected(Adapter(world.base, world.model), ids)
        with pytest.raises(openai.NotFoundError):
            text(client, "a9", ids)
        with pytest.raises(openai.BadRequestError):
            text(client, "a0", [10**6])
        assert text(client, "a0", ids) == expected(named["a0"], ids)
        stream = client.completions.create(
            model="a0", prompt=ids, max_tokens=NEW_TOKENS, temperature=0, stream=True, logprobs=2
        )
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason in ("length", "stop")
        metrics = httpx.get(str(client.base_url).replace("/v1/", "/metrics")).text
        assert "remix_" in metrics
