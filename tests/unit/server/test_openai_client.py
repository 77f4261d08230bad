"""The `openai` package, unmodified, against the server on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from remix_runtime.engines.fake import FakeConfig
from tests.unit.server.harness import ADAPTERS, BASE, Server, eventually, greedy_text, listening

KEY = "sesame-open"
PROMPT = "user: Hello\nassistant: "
MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "Hello"}
]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    config = FakeConfig(max_running=1, max_waiting=1, token_seconds=0.001)
    async with listening(tmp_path, config, api_key=KEY) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{server.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        yield client


async def test_models(client: openai.AsyncOpenAI, server: Server) -> None:
    models = (await client.models.list()).data
    assert [model.id for model in models] == [BASE, *ADAPTERS]
    model = await client.models.retrieve("haiku")
    assert model.model_dump()["root"] == server.digests["haiku"]
    assert model.model_dump()["parent"] == BASE
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nobody")


@pytest.mark.parametrize("model", [BASE, *ADAPTERS])
async def test_every_name_in_every_way(
    client: openai.AsyncOpenAI, server: Server, model: str
) -> None:
    digest = server.digests.get(model)
    plain, _ = await greedy_text(server.engine, "Hello", 12, digest)
    chatted, reason = await greedy_text(server.engine, PROMPT, 12, digest)
    fingerprint = digest or f"base-{BASE}"

    completion = await client.completions.create(
        model=model, prompt="Hello", max_tokens=12, temperature=0
    )
    assert (completion.choices[0].text, completion.system_fingerprint) == (plain, fingerprint)

    chat = await client.chat.completions.create(
        model=model, messages=MESSAGES, max_completion_tokens=12, temperature=0
    )
    assert chat.choices[0].message.content == chatted
    assert (chat.system_fingerprint, chat.model) == (fingerprint, model)

    stream = await client.completions.create(
        model=model, prompt="Hello", max_tokens=12, temperature=0, stream=True
    )
    assert "".join([chunk.choices[0].text async for chunk in stream]) == plain

    texts, usage, finish = [], None, None
    async for chunk in await client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ):
        assert chunk.system_fingerprint == fingerprint
        usage = chunk.usage
        for choice in chunk.choices:
            texts.append(choice.delta.content or "")
            finish = choice.finish_reason
    assert ("".join(texts), finish) == (chatted, reason)
    assert usage == chat.usage


async def test_streaming_helper(client: openai.AsyncOpenAI, server: Server) -> None:
    text, _ = await greedy_text(server.engine, PROMPT, 12, server.digests["pirate"])
    # The helper takes a cut answer for an error, so this one stops: at its last character.
    stop = text[-1]
    async with client.chat.completions.stream(
        model="pirate", messages=MESSAGES, max_tokens=12, temperature=0, stop=stop
    ) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == text[: text.index(stop)]


async def test_synchronous_client(server: Server) -> None:
    expected, _ = await greedy_text(server.engine, PROMPT, 12)

    def talk() -> list[str]:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            whole = client.chat.completions.create(
                model=BASE, messages=MESSAGES, max_tokens=12, temperature=0
            )
            stream = client.chat.completions.create(
                model=BASE, messages=MESSAGES, max_tokens=12, temperature=0, stream=True
            )
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return [whole.choices[0].message.content or "", streamed]

    assert await asyncio.to_thread(talk) == [expected] * 2


async def test_errors_become_the_clients_exceptions(
    client: openai.AsyncOpenAI, server: Server
) -> None:
    complete = client.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        await complete(model=BASE, prompt="x" * 600)
    assert (bad.value.code, bad.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.NotFoundError) as missing:
        await complete(model="nobody", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").completions.create(model=BASE, prompt="x")
    server.engine.fail_next_after = 0
    with pytest.raises(openai.InternalServerError):
        await complete(model=BASE, prompt="x")
    server.engine.fail_next_after = 3
    with pytest.raises(openai.APIError, match="The server had an error"):
        async for _ in await complete(
            model=BASE, prompt="x", stream=True, extra_body={"ignore_eos": True}
        ):
            pass
    results = await asyncio.gather(
        *(
            complete(model=BASE, prompt="x", max_tokens=99, logit_bias={"256": -100})
            for _ in range(3)
        ),
        return_exceptions=True,
    )
    busy = [r for r in results if isinstance(r, openai.InternalServerError)]
    assert [(error.status_code, error.code) for error in busy] == [(503, "busy")]


async def test_closing_a_stream_aborts(client: openai.AsyncOpenAI, server: Server) -> None:
    stream = await client.completions.create(
        model=BASE, prompt="x", max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    await stream.close()
    await eventually(lambda: len(server.engine.aborted) == 1)


@pytest.mark.parametrize("model", [BASE, *ADAPTERS])
async def test_responses_in_every_way(
    client: openai.AsyncOpenAI, server: Server, model: str
) -> None:
    expected, _ = await greedy_text(server.engine, PROMPT, 12, server.digests.get(model))
    create = client.responses.create
    whole = await create(model=model, input="Hello", max_output_tokens=12, temperature=0)
    assert whole.output_text == expected
    # The helper wants an answer that is not cut: this one stops at its last character.
    stop = {"stop": expected[-1]}
    async with client.responses.stream(
        model=model, input="Hello", temperature=0, extra_body=stop
    ) as stream:
        texts = [e.delta async for e in stream if e.type == "response.output_text.delta"]
        final = (await stream.get_final_response()).output_text
    assert final == "".join(texts) == expected[: expected.index(expected[-1])]
    again = await create(
        model=model,
        input=[*whole.output, {"role": "user", "content": "And?"}],  # type: ignore[list-item]
    )
    follow = await create(model=model, input="And?", previous_response_id=whole.id)
    assert again.usage is not None
    assert follow.usage is not None
    assert again.usage.input_tokens + len("user: Hello\n") == follow.usage.input_tokens
    assert (await client.responses.retrieve(whole.id)).output == whole.output
    await client.responses.delete(whole.id)
    with pytest.raises(openai.NotFoundError) as gone:
        await create(model=model, input="And?", previous_response_id=whole.id)
    assert gone.value.code == "previous_response_not_found"
