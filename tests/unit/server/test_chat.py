"""`/v1/chat/completions` against the engine's own answers and OpenAI's types."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.unit.server.harness import ADAPTERS, BASE, Server, greedy_text, sse_events

PROMPT = "user: Hello\nassistant: "


@pytest.mark.parametrize("model", [BASE, *ADAPTERS])
async def test_answer_is_the_engines(server: Server, model: str) -> None:
    digest = server.digests.get(model)
    text, reason = await greedy_text(server.engine, PROMPT, 20, digest)
    answer = (await server.chat(model=model, max_tokens=20, temperature=0)).json()
    chat = ChatCompletion.model_validate(answer, strict=True)
    assert (chat.choices[0].message.content, chat.choices[0].finish_reason) == (text, reason)
    assert chat.choices[0].message.role == "assistant"
    assert chat.system_fingerprint == (digest or f"base-{BASE}")
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == len(PROMPT)


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "user", "content": "a"}], "user: a\n"),
        ([{"role": "developer", "content": "a"}], "system: a\n"),
        (
            [
                {"role": "system", "content": "s", "name": "ignored"},
                {"role": "user", "content": [{"type": "text", "text": t} for t in ("x", "y")]},
                {
                    "role": "assistant",
                    "content": "z",
                    # What clients send back of an answer that had none of these.
                    **dict.fromkeys(("refusal", "audio", "function_call", "reasoning_content")),
                    "tool_calls": [],
                    "annotations": [],
                    "prefix": False,
                    "name": None,
                },
            ],
            "system: s\nuser: x\ny\nassistant: z\n",
        ),
    ],
)
async def test_messages(server: Server, messages: list[dict[str, Any]], prompt: str) -> None:
    assert (await server.chat(messages=messages)).status_code == 200
    ids = server.engine.requests[-1].prompt_token_ids
    assert bytes(ids).decode() == prompt + "assistant: "


async def test_default_length_is_a_setting_within_the_context(server: Server) -> None:
    answer = (await server.chat(ignore_eos=True)).json()
    assert answer["usage"]["total_tokens"] == 512
    both = (await server.chat(ignore_eos=True, max_tokens=9, max_completion_tokens=4)).json()
    assert both["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("top", [0, 3])
async def test_logprobs(server: Server, top: int) -> None:
    body = {"logprobs": True, "top_logprobs": top, "max_tokens": 6, "temperature": 0}
    answer = (await server.chat(**body)).json()
    logprobs = ChatCompletion.model_validate(answer, strict=True).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    text = answer["choices"][0]["message"]["content"]
    assert "".join(entry.token for entry in logprobs.content) == text
    for entry in logprobs.content:
        assert entry.bytes == list(entry.token.encode())
        assert len(entry.top_logprobs) == top
        assert not top or entry.top_logprobs[0].logprob == entry.logprob


async def test_stream_says_the_same_as_the_whole(server: Server) -> None:
    body = {"n": 3, "seed": 5, "max_tokens": 10, "logprobs": True, "model": "haiku"}
    whole = (await server.chat(**body)).json()
    response = await server.chat(**body, stream=True, stream_options={"include_usage": True})
    *events, last = sse_events(response.text)
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events]
    for choice in whole["choices"]:
        mine = [c.choices[0] for c in chunks if c.choices[0].index == choice["index"]]
        assert [part.delta.role for part in mine] == ["assistant"] + [None] * (len(mine) - 1)
        text = "".join(part.delta.content or "" for part in mine)
        assert text == choice["message"]["content"]
        content = [e.model_dump() for part in mine if part.logprobs for e in part.logprobs.content]
        assert content == choice["logprobs"]["content"]
        assert mine[-1].finish_reason == choice["finish_reason"]
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert {chunk.system_fingerprint for chunk in chunks} == {server.digests["haiku"]}


@pytest.mark.parametrize("goes_on", [True, False])
async def test_echo(server: Server, goes_on: bool) -> None:
    messages = [
        {"role": "user", "content": "a saying"},
        {"role": "assistant", "content": [{"type": "text", "text": t} for t in ("An", "apple")]},
    ]
    body = {"messages": messages, "n": 2, "seed": 1, "max_tokens": 9, "logprobs": True}
    body |= {"continue_final_message": goes_on, "add_generation_prompt": not goes_on}
    plain = (await server.chat(**body)).json()["choices"]
    echoed = (await server.chat(**body, echo=True)).json()["choices"]
    wholes = ["An\napple" + choice["message"].pop("content") for choice in plain]
    assert [choice["message"].pop("content") for choice in echoed] == wholes
    assert echoed == plain
    stream = (await server.chat(**body, echo=True, stream=True)).text
    texts = ["", ""]
    for event in sse_events(stream):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == wholes
