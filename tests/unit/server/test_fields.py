"""The table of fields is up to date, and no field of OpenAI's or vLLM's is left out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic.types import message_create_params
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params

from server.api.fields import BODIES, document, fate, others_of
from tests.unit.server.harness import BASE, Server
from tests.unit.server.test_bad_input import check_error

DOCUMENT = Path(__file__).parents[3] / "docs" / "api-fields.md"

VLLM = """
    add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt
    chat_template chat_template_kwargs continue_final_message documents ec_transfer_params
    echo frequency_penalty ignore_eos include_reasoning include_stop_str_in_output
    kv_transfer_params length_penalty logit_bias logprob_token_ids logprobs
    max_completion_tokens max_tokens media_io_kwargs messages min_p min_tokens mm_payload
    mm_processor_kwargs model n parallel_tool_calls presence_penalty priority prompt
    prompt_embeds prompt_logprobs reasoning_effort repetition_detection repetition_penalty
    request_id response_format return_mm_kwargs return_prompt_text return_token_ids
    return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start seed
    session_id skip_special_tokens spaces_between_special_tokens stop stop_token_ids stream
    stream_interval stream_options structured_outputs suffix temperature thinking_token_budget
    tool_choice tools top_k top_logprobs top_p truncate_prompt_tokens truncation_side
    use_beam_search user vllm_xargs watermarking
"""
"""Of the completion and chat requests of vLLM 0.32, and those that it had before."""

OLDER = "guided_json guided_regex guided_choice guided_grammar guided_decoding_backend"
OLDER += " guided_whitespace_pattern best_of logits_processors"

GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": BASE, "prompt": "a"},
    "/v1/chat/completions": {"model": BASE, "messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"model": BASE, "input": "a"},
    "/v1/messages": {
        "model": BASE,
        "max_tokens": 4,
        "messages": [{"role": "user", "content": "a"}],
    },
    "/v1/messages/count_tokens": {"model": BASE, "messages": [{"role": "user", "content": "a"}]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [97]},
}


OPENAI = ["/v1/completions", "/v1/chat/completions"]


def test_the_table_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "python -m server.api.fields"


@pytest.mark.parametrize(
    ("names", "paths"),
    [
        (chat_params.CompletionCreateParamsBase.__annotations__, OPENAI),
        (completion_params.CompletionCreateParamsBase.__annotations__, OPENAI),
        (VLLM.split(), OPENAI),
        (OLDER.split(), OPENAI),
        (response_create_params.ResponseCreateParamsBase.__annotations__, ["/v1/responses"]),
        (message_create_params.MessageCreateParamsBase.__annotations__, ["/v1/messages"]),
    ],
    ids=[
        *("OpenAI's chat", "OpenAI's completions", "vLLM's", "vLLM's older"),
        *("OpenAI's responses", "Anthropic's messages"),
    ],
)
def test_every_field_of_others_is_decided(names: Any, paths: list[str]) -> None:
    bodies = [BODIES[path] for path in paths]
    decided = {name for body in bodies for name in {*body.model_fields, *others_of(body).all}}
    # The package sends it as a header.
    assert set(names) - {"workspace_id"} <= decided


@pytest.mark.parametrize("path", BODIES)
async def test_the_table_is_true(server: Server, path: str) -> None:
    body = BODIES[path]
    others = others_of(body)
    assert (await server.client.post(path, json=GOOD[path])).status_code == 200
    # Those that are passed on are chats' own, or are refused there.
    for field in others.all - others.passed_on - set(body.model_fields):
        response = await server.client.post(path, json={**GOOD[path], field: {"no": "sense"}})
        if fate(body, field) == "taken":
            assert response.status_code == 200
        else:
            assert refused_field(response) == field
        for value in (None, *others.ask_nothing.get(field, ())):
            response = await server.client.post(path, json={**GOOD[path], field: value})
            assert response.status_code == 200, (field, value)


def refused_field(response: httpx.Response) -> str:
    if "request_id" not in response.json():
        return str(check_error(response, 400)["param"])
    assert response.status_code == 400
    return str(response.json()["error"]["message"].partition(": ")[0])
