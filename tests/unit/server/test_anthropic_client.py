"""The `anthropic` package, unmodified, against the server on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import pytest

from remix_runtime.engines.fake import FakeConfig
from tests.unit.server.harness import ADAPTERS, BASE, Server, greedy_text, listening

KEY = "sesame-open"
PROMPT = "user: Hello\nassistant: "
MESSAGES: list[anthropic.types.MessageParam] = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with listening(tmp_path, FakeConfig(token_seconds=0.001), api_key=KEY) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", [BASE, *ADAPTERS])
async def test_every_name_in_every_way(
    client: anthropic.AsyncAnthropic, server: Server, model: str
) -> None:
    expected, _ = await greedy_text(server.engine, PROMPT, 12, server.digests.get(model))
    extra = {"temperature": 0}
    answer = await client.messages.create(
        model=model, messages=MESSAGES, max_tokens=12, extra_body=extra
    )
    assert [block.text for block in answer.content if block.type == "text"] == [expected]
    async with client.messages.stream(
        model=model, messages=MESSAGES, max_tokens=12, extra_body=extra
    ) as stream:
        assert "".join([text async for text in stream.text_stream]) == expected
        final = await stream.get_final_message()
    assert (final.stop_reason, final.usage) == (answer.stop_reason, answer.usage)
    again: list[anthropic.types.MessageParam] = [
        *MESSAGES,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": "And?"},
    ]
    counted = await client.messages.count_tokens(model=model, messages=again)
    assert counted.input_tokens > answer.usage.input_tokens + answer.usage.output_tokens


async def test_models(client: anthropic.AsyncAnthropic) -> None:
    assert [model.id async for model in client.models.list()] == [BASE, *ADAPTERS]
    assert (await client.models.retrieve("haiku")).display_name == "haiku"


async def test_a_bearer_is_as_good(server: Server) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=server.url, auth_token=KEY, max_retries=0
    ) as client:
        await client.messages.create(model=BASE, messages=MESSAGES, max_tokens=2)


async def test_errors_become_the_clients_exceptions(
    client: anthropic.AsyncAnthropic, server: Server
) -> None:
    create = client.messages.create
    with pytest.raises(anthropic.NotFoundError):
        await create(model="nobody", messages=MESSAGES, max_tokens=2)
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        await create(model=BASE, messages=[{"role": "user", "content": "x" * 600}], max_tokens=2)
    with pytest.raises(anthropic.AuthenticationError):
        await client.with_options(api_key="wrong").messages.create(
            model=BASE, messages=MESSAGES, max_tokens=2
        )
    server.engine.fail_next_after = 0
    with pytest.raises(anthropic.InternalServerError):
        await create(model=BASE, messages=MESSAGES, max_tokens=2)
    server.engine.fail_next_after = 3
    extra = {"ignore_eos": True}
    stream = await create(
        model=BASE, messages=MESSAGES, max_tokens=20, stream=True, extra_body=extra
    )
    with pytest.raises(anthropic.APIStatusError, match="The server had an error"):
        async for _ in stream:
            pass
