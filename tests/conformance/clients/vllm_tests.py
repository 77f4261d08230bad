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


def count_tokens(*messages: dict[str, str]) -> int:
    """Of a chat's prompt, as transformers has it."""
    tokenizer = get_tokenizer()
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return len(tokenizer.encode(text, add_special_tokens=False))


count = count_tokens(
    {"role": "system", "content": "you are a helpful assistant"},
    {"role": "user", "content": "what is 1+1?"},
)
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
        # Numbers that belong to the model, and the key, which one test sends itself.
        "prompt_tokens=37, total_tokens=42": f"prompt_tokens={count}, total_tokens={count + 5}",
        "json=request_args": f'json=request_args, headers={{"authorization": "Bearer {API_KEY}"}}',
    },
    # Where both are one model, pytest numbers them.
    names={f"{BASE}0": "base", f"{BASE}1": "adapter", MODEL: "adapter", BASE: "base"},
)
