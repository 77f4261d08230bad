"""The clients: what to install, by pinned version, which script to run, and what is explained.

`explained` names the calls that need not work and says why: a refusal that docs/api.md states, or
something that no server can do with these models. Everything else has to work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SCRIPTS = Path(__file__).parent / "clients"


@dataclass(frozen=True)
class Client:
    """A client that somebody else wrote, in an environment of its own."""

    title: str
    script: str
    """Under clients/. Its ending says how it runs: .py or .mjs."""
    packages: tuple[str, ...]
    """As pip or npm take them; none: the client is a program of this machine."""
    explained: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: int = 900
    asks_to_reason: bool = False
    """Only models whose names say that they reason."""
    source: str = ""
    """The variable that names the folder of its source, for what no registry has."""

    @property
    def name(self) -> str:
        """The name of its environment, for the command line."""
        return Path(self.script).stem.removesuffix("_client").replace("_", "-")


ANY_OBJECT = (
    "the client asks for any JSON object, so its keys are the model's: this one is too small"
)
CALLS_ON = "this model calls the tool again after every result, so an agent's loop has no end"
GOES_ON = "the smallest model goes on with a list or a text until its tokens end"
NO_EMBEDDINGS = "a causal model has no embeddings: docs/api.md"
TEXT_ALONE = "images are refused, since only text is served: docs/api.md"
PATIENT = {"CONFORMANCE_CALL_SECONDS": "600"}
LITELLM_OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
TOO_SMALL = "right with the model that the test is for; this one is too small"
REFUSED = "refused by its name: docs/api-fields.md"
VLLM_EXPLAINED = {
    # Of the smaller model, unless another one is named.
    "test_more_than_one_prompt_logprobs_chat[base]": "needs a prompt whose token is the likeliest",
    "test_completion_streaming[base]": "the model ends its answer before the test's 5 tokens",
    **{
        f"test_chat_streaming[{of}]": "Qwen ends its answer before the test's 10 tokens"
        for of in ("base", "adapter")
    },
    "test_chat_completion_n_parameter_non_streaming[base]": "Qwen is so sure that its three "
    "answers are one",
    "test_response_format_json_object": TOO_SMALL,
    "test_response_format_json_schema": TOO_SMALL,
    "test_complex_message_content": TOO_SMALL,
    "test_structured_outputs_json_chat": "this model goes on with a text past the test's 1,000 "
    "tokens",
    "test_chat_session_with_echo_and_continue_final_message[test_case0]": TOO_SMALL,
    "test_chat_session_with_echo_and_continue_final_message[test_case1]": TOO_SMALL,
    "test_custom_role": "Qwen's template leaves out other roles, so they are refused: docs/api.md",
    "test_prompt_logprobs": "-1, the whole vocabulary, is refused",
    "test_top_logprobs": "-1, the whole vocabulary, is refused",
    "test_single_completion[base]": "counts the tokens of the model that the test is for, and "
    "wants prompt_tokens_details, an option of vLLM",
    "test_logprob_token_ids": REFUSED,
    "test_logprob_token_ids_stream": REFUSED,
    "test_batch_completions[base]": f"use_beam_search is {REFUSED}",
}
TORCH = "torch==2.13.0"
NODE = "node@22.23.3"
"""Node itself, from npm: these clients ask for 22, whatever this machine has."""

CLIENTS = (
    Client(
        "openai (Python)",
        "openai_python.py",
        ("openai==3.57.0",),
        {"embeddings": NO_EMBEDDINGS},
    ),
    Client(
        "openai (Node)",
        "openai_node.mjs",
        (NODE, "openai@7.59.0", "zod@4.6.7"),
        {"runTools": CALLS_ON},
    ),
    Client("anthropic (Python)", "anthropic_python.py", ("anthropic==2.14.0",)),
    Client(
        "LangChain",
        "langchain_client.py",
        ("langchain==1.5.2", "langchain-openai==1.7.4"),
        {"create_agent": CALLS_ON},
    ),
    Client("LiteLLM", "litellm_client.py", ("litellm==1.110.2",), environment=LITELLM_OFFLINE),
    Client("LlamaIndex", "llama_index_client.py", ("llama-index-llms-openai-like==0.8.1",)),
    Client(
        "dspy",
        "dspy_client.py",
        ("dspy==3.4.1",),
        {"Predict, JSON adapter": ANY_OBJECT, "Predict, native function calling": ANY_OBJECT},
        LITELLM_OFFLINE,
    ),
    Client(
        "instructor", "instructor_client.py", ("instructor==1.17.0",), {"JSON mode": ANY_OBJECT}
    ),
    Client(
        "pydantic-ai",
        "pydantic_ai_client.py",
        ("pydantic-ai-slim[openai]==2.68.0",),
        {"prompted output": ANY_OBJECT, "tools": CALLS_ON, "responses, tools": CALLS_ON},
    ),
    Client(
        "openai-agents",
        "openai_agents_client.py",
        ("openai-agents==0.24.0",),
        {"responses, tools": CALLS_ON, "chat, tools": CALLS_ON},
    ),
    Client(
        "ai (Vercel)",
        "ai_sdk.mjs",
        (
            NODE,
            "ai@7.0.173",
            "@ai-sdk/openai@4.0.118",
            "@ai-sdk/openai-compatible@3.0.92",
            "zod@4.6.7",
        ),
    ),
    Client(
        "llm",
        "llm_client.py",
        ("llm==0.36",),
        {
            "a tool": CALLS_ON,
            "--schema": "its schema allows keys that it does not name, and this model adds one",
        },
    ),
    Client("inspect-ai", "inspect_client.py", ("inspect-ai==0.3.285", "openai==3.57.0")),
    Client("guidellm", "guidellm_client.py", ("guidellm==0.8.1", TORCH)),
    Client("aiperf", "aiperf_client.py", ("aiperf==0.13.0",)),
    Client(
        "lm-eval",
        "lm_eval_client.py",
        ("lm-eval[api,hf]==0.4.13", "transformers>=5.19,<5.24", TORCH),
        environment={"HF_HUB_OFFLINE": "1", **PATIENT},
        seconds=1800,
    ),
    Client("a browser (Chromium)", "browser_client.py", ()),
    Client(
        "llm-comply",
        "llm_comply_client.py",
        ("llm-comply==0.5.0",),
        {
            "chat: chat-image-input": TEXT_ALONE,
            "Open Responses: image-input": TEXT_ALONE,
            "Anthropic: anth-image-input": TEXT_ALONE,
        },
        asks_to_reason=True,
    ),
    Client(
        "vLLM's tests, v0.32.0",
        "vllm_tests.py",
        (
            *("pytest==9.2.0", "pytest-asyncio==1.5.0", "pytest-timeout==2.4.0", "openai==3.57.0"),
            *("regex", "jsonschema", "requests", "transformers>=5.19,<5.24", TORCH),
        ),
        VLLM_EXPLAINED,
        environment=PATIENT,
        source="VLLM_SOURCE",
        seconds=3600,
    ),
    Client(
        "SGLang's tests of tool_choice",
        "sglang_tests.py",
        ("pytest==9.2.0", "pytest-asyncio==1.5.0", "pytest-timeout==2.4.0", "openai==3.57.0"),
        {
            "test_conflicting_defs_required_tool_choice": "works here: each tool has its own $defs",
            "test_complex_parameters_required_non_streaming": GOES_ON,
            "test_required_streaming_arguments_chunks_json": GOES_ON,
        },
        environment=PATIENT,
        source="SGLANG_SOURCE",
        seconds=3600,
    ),
    Client("compatcanary", "compatcanary.mjs", (NODE, "compatcanary@0.2.2")),
)
