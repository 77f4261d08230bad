"""`max_tokens` beyond what the context leaves: cut to it, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.server.harness import BASE, Server, serving
from tests.unit.server.tenants import tenant_serving
from tests.unit.server.test_bad_input import check_error

MESSAGES = [{"role": "user", "content": "x" * 400}]
PATHS = {
    "/v1/completions": ({"prompt": "x" * 400}, "max_tokens", "prompt"),
    "/v1/chat/completions": ({"messages": MESSAGES}, "max_completion_tokens", "messages"),
    "/v1/responses": ({"input": "x" * 400}, "max_output_tokens", "input"),
    "/v1/messages": ({"messages": MESSAGES}, "max_tokens", "messages"),
}


async def ask(server: Server, path: str, tokens: int, **more: Any) -> Any:
    body, name, _ = PATHS[path]
    given = {"model": BASE, "ignore_eos": True, **body, name: tokens, **more}
    return await server.client.post(path, json=given)


@pytest.mark.parametrize("path", PATHS)
async def test_an_answer_is_cut_to_the_room(server: Server, path: str) -> None:
    for tokens in (32_000, (1 << 31) - 1):
        answer = await ask(server, path, tokens)
        assert answer.status_code == 200, answer.text
        request = server.engine.requests[-1]
        assert len(request.prompt_token_ids) + request.params.max_tokens == 512
        usage = answer.json()["usage"]
        generated = usage.get("completion_tokens", usage.get("output_tokens"))
        assert generated == request.params.max_tokens
    # What fits is what it was.
    assert (await ask(server, path, 7)).status_code == 200
    assert server.engine.requests[-1].params.max_tokens == 7


@pytest.mark.parametrize("path", PATHS)
async def test_or_refused(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, long_max_tokens="refuse") as server:
        refused = (await ask(server, path, 513)).json()["error"]
        assert "maximum context length is 512 tokens" in refused["message"]
        if "param" in refused:  # Anthropic's errors have none
            assert (refused["param"], refused["code"]) == (
                PATHS[path][2],
                "context_length_exceeded",
            )
        assert not server.engine.requests
        await server.expect_good_request()


async def test_a_prompt_that_leaves_no_room_is_refused(server: Server) -> None:
    error = check_error(await server.complete(prompt="x" * 512, max_tokens=32_000), 400)
    assert error["code"] == "context_length_exceeded"
    await server.expect_good_request()


async def test_more_tokens_at_least_than_there_is_room_for(server: Server) -> None:
    body = {"prompt": "x" * 500, "max_tokens": 600, "min_tokens": 13}
    error = check_error(await server.complete(**body), 400)
    assert (error["param"], "the 12 tokens" in error["message"]) == ("min_tokens", True)
    assert (await server.complete(**{**body, "min_tokens": 12})).status_code == 200


async def test_a_prompt_keeps_what_a_cut_answer_leaves(server: Server) -> None:
    """An answer of the whole context would leave nothing of the prompt."""
    body = {"prompt": "x" * 600, "max_tokens": 600, "truncate_prompt_tokens": -1}
    usage = (await server.complete(**body, ignore_eos=True)).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (256, 256)


async def test_a_quota_reserves_what_is_left_of_a_cut_answer(tmp_path: Path) -> None:
    async with tenant_serving(tmp_path) as server:
        client = await server.tenant("acme", tokens_per_minute=512, may_use_base=True)
        body = {"model": BASE, "prompt": "x" * 400, "max_tokens": 32_000}
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
