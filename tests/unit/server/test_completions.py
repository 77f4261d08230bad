"""`/v1/completions` against the engine's own answers and OpenAI's types."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import openai.types
import pytest

from remix_runtime.contracts import SamplingParams
from server.api.generation import choice_seed
from tests.unit.server.harness import ADAPTERS, BASE, Server, greedy_text, sse_events
from tests.unit.server.test_bad_input import check_error


@pytest.mark.parametrize("model", [BASE, *ADAPTERS])
async def test_answer_is_the_engines_under_the_pinned_digest(server: Server, model: str) -> None:
    prompt = secrets.token_hex(4)
    digest = server.digests.get(model)
    text, reason = await greedy_text(server.engine, prompt, 20, digest)

    answer = (
        await server.complete(model=model, prompt=prompt, max_tokens=20, temperature=0)
    ).json()

    completion = openai.types.Completion.model_validate(answer, strict=True)
    assert completion.choices[0].text == text
    assert completion.choices[0].finish_reason == reason
    assert completion.model == model
    assert completion.system_fingerprint == (digest or f"base-{BASE}")
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len(prompt)
    assert completion.usage.total_tokens == len(prompt) + completion.usage.completion_tokens
    if reason == "length":
        assert completion.usage.completion_tokens == 20


async def test_models_differ(server: Server) -> None:
    texts = {
        (await server.complete(model=model, temperature=0)).json()["choices"][0]["text"]
        for model in (BASE, *ADAPTERS)
    }
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [("Hi", [2]), (["Hi", "yop"], [2, 3]), ([72, 105], [2]), ([[72, 105], [121]], [2, 1])],
    ids=["text", "texts", "ids", "id lists"],
)
async def test_prompt_forms(server: Server, prompt: object, lengths: list[int]) -> None:
    answer = (await server.complete(prompt=prompt, n=2, temperature=0, max_tokens=8)).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(lengths)))
    first, _ = await greedy_text(server.engine, "Hi", 8)
    assert answer["choices"][0]["text"] == answer["choices"][1]["text"] == first
    # A prompt is counted once, however many choices it has.
    assert answer["usage"]["prompt_tokens"] == sum(lengths)


async def test_chats_name_of_max_tokens_is_taken(server: Server) -> None:
    for given in ({"max_completion_tokens": 3}, {"max_completion_tokens": 3, "max_tokens": 3}):
        answer = (await server.complete(ignore_eos=True, **given)).json()
        assert answer["usage"]["completion_tokens"] == 3
    null = {"max_completion_tokens": None, "max_tokens": 3}
    answer = (await server.complete(ignore_eos=True, **null)).json()
    assert answer["usage"]["completion_tokens"] == 3
    for bad in ({"max_completion_tokens": 3, "max_tokens": 4}, {"max_completion_tokens": "3"}):
        error = check_error(await server.complete(**bad), 400)
        assert error["param"] == "max_completion_tokens"


async def test_default_length_is_openais(server: Server) -> None:
    answer = (await server.complete(ignore_eos=True)).json()
    assert answer["usage"]["completion_tokens"] == 16


async def test_default_length_stops_at_the_context(server: Server) -> None:
    answer = await server.complete(prompt="x" * 507, ignore_eos=True)
    assert answer.json()["usage"]["completion_tokens"] == 5


async def test_choices_share_what_may_be_large(server: Server) -> None:
    fields = {"logit_bias": {"65": 1}, "allowed_token_ids": [65, 66], "seed": 1}
    await server.complete(n=3, max_tokens=2, **fields)
    first, *others = server.engine.requests
    assert len({request.params.seed for request in server.engine.requests}) == 3
    for other in others:
        assert other.prompt_token_ids is first.prompt_token_ids
        assert other.params.logit_bias is first.params.logit_bias
        assert other.params.allowed_token_ids is first.params.allowed_token_ids
        assert other.meter is not first.meter


async def test_sampling_parameters_reach_the_engine(server: Server) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "min_p": 0.125,
        "presence_penalty": -1.5,
        "frequency_penalty": 1,
        "repetition_penalty": 1.25,
        "stop_token_ids": [3, 4],
        "ignore_eos": True,
        "seed": -5,
        "max_tokens": 9,
    }
    await server.complete(**fields, stop=["a", "b"], logit_bias={"65": -100, "66": 2.5})
    params = server.engine.requests[-1].params
    assert {name: getattr(params, name) for name in fields} == {**fields, "stop_token_ids": (3, 4)}
    assert params.stop == ("a", "b")
    assert params.logit_bias == {65: -100.0, 66: 2.5}


async def test_null_is_the_default(server: Server) -> None:
    names = [
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "logit_bias",
        "stream",
        "logprobs",
        "echo",
    ]
    names += ["stream_options", "max_tokens", "presence_penalty", "top_k", "user", "suffix"]
    await server.complete()
    await server.complete(**dict.fromkeys(names))
    plain, nulls = (request.params for request in server.engine.requests)
    assert nulls == plain


async def test_minus_one_is_no_top_k(server: Server) -> None:
    await server.complete(top_k=-1)
    assert server.engine.requests[-1].params.top_k == 0


async def test_choices_have_seeds_of_their_own(server: Server) -> None:
    answer = (await server.complete(n=4, seed=11, temperature=1, max_tokens=12)).json()
    again = (await server.complete(n=4, seed=11, temperature=1, max_tokens=12)).json()
    one = (await server.complete(n=1, seed=11, temperature=1, max_tokens=12)).json()
    texts = [choice["text"] for choice in answer["choices"]]
    assert len(set(texts)) == 4
    assert texts == [choice["text"] for choice in again["choices"]]
    assert texts[0] == one["choices"][0]["text"]
    assert len({choice_seed(seed, i) for seed in range(20) for i in range(20)}) == 400


async def test_stop_string_is_left_out(server: Server) -> None:
    text, _ = await greedy_text(server.engine, "Hello", 12)
    answer = (await server.complete(temperature=0, max_tokens=12, stop=text[5:7])).json()
    cut = text.index(text[5:7])
    assert answer["choices"][0] == {
        "index": 0,
        "text": text[:cut],
        "logprobs": None,
        "prompt_logprobs": None,
        "finish_reason": "stop",
    }


@pytest.mark.parametrize("prompt", ["Hello", [72, 101, 108, 108, 111]])
async def test_echo(server: Server, prompt: object) -> None:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 5}
    plain = (await server.complete(**body)).json()["choices"][0]["text"]
    assert (await server.complete(**body, echo=True)).json()["choices"][0][
        "text"
    ] == "Hello" + plain
    events = sse_events((await server.complete(**body, echo=True, stream=True)).text)
    assert "".join(event["choices"][0]["text"] for event in events) == "Hello" + plain


@pytest.mark.parametrize("top", [0, 1, 5])
async def test_logprobs(server: Server, top: int) -> None:
    body = {"logprobs": top, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    choice = (await server.complete(**body)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == list(range(6))
    assert [len(entry) for entry in logprobs["top_logprobs"]] == [max(1, top)] * 6
    for token, logprob, entry in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert entry[token] == logprob == max(entry.values()) < 0
    events = sse_events((await server.complete(**body, stream=True)).text)
    parts = [event["choices"][0]["logprobs"] for event in events]
    for name in logprobs:
        assert [value for part in parts for value in part[name]] == logprobs[name]


async def test_stream_says_the_same_as_the_whole(server: Server) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "seed": 5, "max_tokens": 10, "model": "pirate"}
    whole = (await server.complete(**body)).json()

    response = await server.complete(**body, stream=True, stream_options={"include_usage": True})

    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = sse_events(response.text)
    for event in events:
        # Before its last chunk a choice has no finish reason, which this type does not know.
        finish = event["choices"][0]["finish_reason"] or "stop"
        known = {**event, "choices": [{**event["choices"][0], "finish_reason": finish}]}
        openai.types.Completion.model_validate(known, strict=True)
        assert event["usage"] is None
        assert event["system_fingerprint"] == server.digests["pirate"]
    for choice in whole["choices"]:
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        assert [part["finish_reason"] for part in mine][-1] == choice["finish_reason"]
        assert not any(part["finish_reason"] for part in mine[:-1])
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert len({event["id"] for event in [*events, last]}) == 1


async def test_usage_only_when_asked(server: Server) -> None:
    for event in sse_events((await server.complete(stream=True)).text):
        assert "usage" not in event


async def test_further_parameters_reach_the_engine(server: Server) -> None:
    fields = {
        "min_tokens": 2,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "allowed_token_ids": [65, 66],
        "bad_words": ["no", "never"],
    }
    defaults = SamplingParams(max_tokens=3)
    for call in (server.complete, server.chat):
        await call(max_tokens=3, **fields)
        params = server.engine.requests[-1].params
        given = {name: getattr(params, name) for name in fields}
        lists = {"allowed_token_ids": (65, 66), "bad_words": ("no", "never")}
        assert given == {**fields, **lists}
        await call(max_tokens=3, **dict.fromkeys(fields))
        assert server.engine.requests[-1].params == defaults


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("max_tokens", 4),
        ("top_k", 3),
        ("seed", 5),
        ("logprobs", 2),
        ("min_tokens", 1),
        ("prompt_logprobs", 1),
        ("truncate_prompt_tokens", 3),
        ("stop_token_ids", [65]),
        ("allowed_token_ids", [65, 66]),
        ("best_of", 1),
        ("prompt", [72, 105]),
    ],
)
async def test_a_whole_float_is_an_integer(server: Server, name: str, value: Any) -> None:
    as_float = [float(v) for v in value] if isinstance(value, list) else float(value)
    await server.complete(**{name: value})
    expected = [replace(request, request_id="") for request in server.engine.requests]
    server.engine.requests.clear()
    assert (await server.complete(**{name: as_float})).status_code == 200
    given = [replace(request, request_id="") for request in server.engine.requests]
    assert given == expected
    assert all(
        type(i) is int for r in given for i in (*r.prompt_token_ids, *r.params.stop_token_ids)
    )


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ({"truncate_prompt_tokens": 3}, "llo"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, "llo"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, "Hel"),
        ({"truncate_prompt_tokens": 9}, "Hello"),
        ({"truncate_prompt_tokens": -1}, "Hello"),
        ({"truncate_prompt_tokens": None}, "Hello"),
        ({"truncation_side": "right"}, "Hello"),
    ],
)
async def test_truncated_prompt(server: Server, body: dict[str, Any], left: str) -> None:
    for prompt in ("Hello", list(b"Hello")):
        answer = (await server.complete(prompt=prompt, echo=True, max_tokens=0, **body)).json()
        assert answer["choices"][0]["text"] == left
        assert bytes(server.engine.requests[-1].prompt_token_ids).decode() == left
        assert answer["usage"]["prompt_tokens"] == len(left)
    chat = (await server.chat(**body)).json()
    assert chat["usage"]["prompt_tokens"] == len(server.engine.requests[-1].prompt_token_ids)
    if body.get("truncate_prompt_tokens") == 3:
        assert chat["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("max_tokens", [None, 1, 100])
async def test_a_prompt_is_cut_to_what_fits(server: Server, max_tokens: int | None) -> None:
    body = {"truncate_prompt_tokens": -1, "max_tokens": max_tokens, "ignore_eos": True}
    for length in (511, 600, 100_000):
        text = "x" * length + "yz"
        answer = (await server.complete(prompt=text, **body)).json()
        assert answer["usage"]["completion_tokens"] == (max_tokens or 16)
        assert answer["usage"]["total_tokens"] == 512
        assert bytes(server.engine.requests[-1].prompt_token_ids).endswith(b"xyz")
    messages = [{"role": "user", "content": "x" * 500}]
    answer = (await server.chat(messages=messages, **body)).json()
    assert answer["usage"]["completion_tokens"] == (max_tokens or 256)
    assert answer["usage"]["total_tokens"] == 512


async def test_token_ids_are_returned_where_asked_for(server: Server) -> None:
    body = {"max_tokens": 6, "temperature": 0, "ignore_eos": True, "n": 2}
    for call, prompt in ((server.complete, "Hello"), (server.chat, "user: Hello\nassistant: ")):
        whole = (await call(**body, return_token_ids=True)).json()
        events = sse_events((await call(**body, return_token_ids=True, stream=True)).text)
        for choice in whole["choices"]:
            text = choice.get("text") or choice["message"]["content"]
            assert bytes(choice["token_ids"]).decode() == text
            mine = [e for e in events if e["choices"][0]["index"] == choice["index"]]
            # vLLM has a completion's in the choice, a chat's beside the choices.
            asked = choice if call == server.complete else whole
            assert bytes(asked["prompt_token_ids"]).decode() == prompt
            first = mine[0]["choices"][0] if call == server.complete else mine[0]
            assert first["prompt_token_ids"] == asked["prompt_token_ids"]
            parts = [e["choices"][0].get("token_ids", []) for e in mine]
            assert [i for part in parts for i in part] == choice["token_ids"]
        for plain in ((await call(**body)).text, (await call(**body, stream=True)).text):
            assert "token_ids" not in plain


async def test_usage_in_every_chunk(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"max_tokens": 5, "ignore_eos": True, "temperature": 0}
    body |= {"stream": True, "stream_options": options}
    for call in (server.complete, server.chat):
        usages = [event["usage"] for event in sse_events((await call(**body)).text)]
        counts = [usage["completion_tokens"] for usage in usages]
        assert counts == sorted(counts)
        assert set(counts) >= {1, 2, 3, 4, 5}
        assert usages[-1] == usages[-2]
    options["include_usage"] = False
    assert "usage" not in (await server.complete(**body)).text


async def test_the_client_names_its_answer(server: Server) -> None:
    for call in (server.complete, server.chat):
        assert (await call(request_id="mine")).json()["id"] == "mine"
        ids = [request.request_id for request in server.engine.requests]
        assert len(set(ids)) == len(ids)
        assert "mine" not in ids
