"""vLLM's own tests of its chat and completion endpoints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from calls import API_KEY, BASE_URL, MODEL
from foreign_tests import StandIns, run_tests
from openai import AsyncOpenAI
from transformers import AutoTokenizer

SOURCE = Path(os.environ["CONFORMANCE_SOURCE"], "tests", "entrypoints")
TOKENIZER = os.environ["CONFORMANCE_TOKENIZER"]
BASE = os.environ["CONFORMANCE_BASE_MODEL"]


class RemoteOpenAIServer:
    """In the place of vLLM's, which starts a server: this one runs."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> RemoteOpenAIServer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def url_for(self, *parts: str) -> str:
        return "/".join([BASE_URL.removesuffix("/v1"), *parts])

    def get_async_client(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0, **options)


def get_tokenizer(*_: object, **__: object) -> Any:
    return AutoTokenizer.from_pretrained(TOKENIZER)


sys.meta_path[:0] = [
    StandIns("vllm", {"get_tokenizer": get_tokenizer}),
    StandIns("tests", {"RemoteOpenAIServer": RemoteOpenAIServer}),
]
chat = SOURCE / "openai" / "chat_completion"
run_tests(
    [
        SOURCE / "conftest.py",
        chat / "test_chat.py",
        chat / "test_chat_echo.py",
        SOURCE / "openai" / "completion" / "test_completion.py",
    ],
    {
        "HuggingFaceH4/zephyr-7b-beta": BASE,
        "zephyr-lora": MODEL,
        "Qwen/Qwen2-1.5B-Instruct": BASE,
        "facebook/opt-125m": BASE,
    },
    # Where both are one model, pytest numbers them.
    names={f"{BASE}0": "base", f"{BASE}1": "adapter", BASE: "base", MODEL: "adapter"},
)
