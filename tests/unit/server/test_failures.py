"""Failures of the engine: the right status, nothing of our insides, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from remix_runtime.engines.fake import FakeConfig
from remix_runtime.engines.fake_model import ByteTokenizer
from remix_runtime.errors import AdapterUnavailableError, CapacityError, RemixError
from remix_runtime.fairness.shares import Shares
from server.http.errors import as_api_error
from server.live.access import SINGLE_USER
from tests.unit.server.harness import Server, eventually, serving
from tests.unit.server.test_bad_input import check_error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat", [False, True])
async def test_failure_before_the_first_token(server: Server, stream: bool, chat: bool) -> None:
    server.engine.fail_next_after = 0
    send = server.chat if chat else server.complete
    response = await send(stream=stream, n=2)
    error = check_error(response, 500)
    assert error["code"] == "internal_error"
    await server.expect_good_request()


@pytest.mark.parametrize("chat", [False, True])
async def test_failure_in_the_middle_of_a_stream(server: Server, chat: bool) -> None:
    server.engine.fail_next_after = 2
    send = server.chat if chat else server.complete
    response = await send(stream=True, n=3, max_tokens=200, ignore_eos=True)
    assert response.status_code == 200
    *chunks, last, rest = response.text.split("\n\n")
    assert (rest, len(chunks) >= 2) == ("", True)
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in response.text
    # The other choices of the request were taken off the engine.
    assert len(server.engine.aborted) == 3
    await server.expect_good_request()


@pytest.mark.parametrize("stream", [False, True])
async def test_full_queue_is_refused_at_once(tmp_path: Path, stream: bool) -> None:
    config = FakeConfig(max_running=1, max_waiting=2, token_seconds=0.02)
    async with serving(tmp_path, config) as server:
        running = [asyncio.create_task(server.complete(ignore_eos=True)) for _ in range(3)]
        await eventually(lambda: server.engine.stats().waiting == 2)
        for response in (await server.complete(stream=stream), await server.chat(stream=stream)):
            error = check_error(response, 503)
            assert error["code"] == "busy"
            assert int(response.headers["retry-after"]) >= 1
            assert not any(task.done() for task in running)
        for task in running:
            assert (await task).status_code == 200
        await server.expect_good_request()


async def test_a_request_that_is_refused_in_part_leaves_nothing(tmp_path: Path) -> None:
    config = FakeConfig(max_running=2, max_waiting=1, token_seconds=0.01)
    async with serving(tmp_path, config) as server:
        for stream in (False, True):
            running = asyncio.create_task(server.complete(ignore_eos=True))
            await eventually(lambda: server.engine.stats().running == 1)
            check_error(await server.complete(n=3, stream=stream), 503)
            assert (await running).status_code == 200
            await server.expect_good_request()
        assert (await server.complete(n=3)).status_code == 200


async def test_a_request_that_could_never_be_admitted_is_a_400(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeConfig(max_running=2, max_waiting=1)) as server:
        for answer in (await server.complete(n=4), await server.chat(n=4)):
            assert check_error(answer, 400)["param"] == "n"
        await server.expect_good_request()


class Panic(BaseException):
    """As PyO3 raises for a panic in Rust."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("place", "fields"),
    [
        ("encode", {}),
        ("encode", {"bad_words": ["x"]}),
        ("token_bytes", {}),
        ("apply_chat_template", {}),
    ],
)
async def test_a_panic_of_the_tokenizer_is_a_500_of_its_request(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    fields: dict[str, object],
    stream: bool,
) -> None:
    """With words that may not come, the prompt is tokens: the engine encodes them."""

    def panic(*_: object, **__: object) -> None:
        raise Panic("/secret/normalizer.rs:12")

    with monkeypatch.context() as patch:
        patch.setattr(ByteTokenizer, place, panic)
        if place == "apply_chat_template":
            answer = await server.chat(stream=stream)
        else:
            prompt = {"prompt": [1, 2]} if fields else {}
            answer = await server.complete(stream=stream, **prompt, **fields)
    assert check_error(answer, 500)["code"] == "internal_error"
    assert "secret" not in answer.text
    await server.expect_good_request()


async def test_a_full_tokenizer_queue_is_a_503(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizing, go_on = server.services.tokenizing, threading.Event()
    monkeypatch.setattr(tokenizing, "_shares", Shares(1))
    holding = asyncio.create_task(tokenizing.run(SINGLE_USER, go_on.wait))
    await asyncio.sleep(0)
    try:
        for answer in (await server.complete(), await server.chat()):
            assert check_error(answer, 503)["code"] == "busy"
            assert answer.headers["retry-after"]
    finally:
        go_on.set()
    await holding
    await server.expect_good_request()


async def test_dead_engine(server: Server) -> None:
    server.engine.kill("/secret/device.py is gone")
    error = check_error(await server.complete(), 503)
    assert error["code"] == "engine_dead"
    for path, status in (("/health", "dead"), ("/ping", "dead"), ("/ready", "not ready")):
        response = await server.client.get(path)
        assert (response.status_code, response.json()) == (503, {"status": status})


async def test_engine_that_dies_under_a_request(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeConfig(token_seconds=0.01)) as server:
        running = asyncio.create_task(server.complete(ignore_eos=True, max_tokens=400))
        await eventually(lambda: server.engine.stats().running == 1)
        server.engine.kill("gone")
        check_error(await running, 503)


async def test_adapter_that_the_engine_lost(server: Server) -> None:
    await server.engine.unload_adapter(server.digests["pirate"])
    error = check_error(await server.complete(model="pirate"), 404)
    assert error["code"] == "model_not_found"
    assert server.digests["pirate"] not in str(error)
    await server.expect_good_request()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_is_refused_is_no_news_of_its_adapter(
    server: Server, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """By the time that its error is written the adapter may be whole again: it would be refused for
    twice as long, and that again and again under load."""
    adapters = server.services.adapters

    async def in_repair(digest: str, tenant: str = "") -> None:
        raise AdapterUnavailableError("is being repaired", digest=digest)

    with monkeypatch.context() as patch:
        patch.setattr(adapters, "load_for_request", in_repair)
        check_error(await server.complete(model="pirate", stream=stream), 503)
    assert adapters.num_unavailable == 0
    await server.expect_good_request()


async def test_one_request_that_fails_is_alone(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeConfig(token_seconds=0.002)) as server:
        server.engine.fail_next_after = 5
        first, *others = await asyncio.gather(*(server.complete(n=1, seed=i) for i in range(4)))
        check_error(first, 500)
        assert [response.status_code for response in others] == [200] * 3


def test_an_adapter_whose_folder_is_gone_is_a_503_that_names_no_folder() -> None:
    api_error = as_api_error(AdapterUnavailableError("adapter 12: /secret/folder is gone"))
    assert (api_error.status_code, api_error.code) == (503, "model_unavailable")
    assert "secret" not in api_error.body.model_dump_json()
    assert api_error.headers
    assert "Retry-After" in api_error.headers


def test_every_other_error_says_nothing() -> None:
    assert as_api_error(CapacityError("too big")).status_code == 400
    for error in (RemixError("/secret"), ValueError("/secret"), KeyError("/secret")):
        api_error = as_api_error(error)
        assert api_error.status_code == 500
        assert "secret" not in api_error.body.model_dump_json()
