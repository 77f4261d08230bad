"""What a request may ask of its tokens and of its text. One suite, every engine.

Each test asks many things of one engine, since some engines take a minute to start.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from remix_runtime.contracts import (
    FinishReason,
    Grammar,
    GrammarKind,
    TokenEvent,
)
from remix_runtime.errors import InvalidRequestError
from tests.contract.conftest import PROMPT, Setup
from tests.engines import Completion, complete, complete_all, request

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH

POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": -9, "maximum": 99},
        "on": {"type": "boolean"},
        "kind": {"enum": ["one", "two", None]},
    },
    "required": ["x", "on", "kind"],
    "additionalProperties": False,
}


def schema(value: Any) -> Grammar:
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(value))


def regex(text: str) -> Grammar:
    return Grammar(kind=GrammarKind.REGEX, text=text)


def lark(text: str) -> Grammar:
    return Grammar(kind=GrammarKind.LARK, text=text)


def is_point(text: str) -> bool:
    point = json.loads(text)
    assert list(point) == ["x", "on", "kind"]
    assert -9 <= point["x"] <= 99
    assert isinstance(point["on"], bool)
    return point["kind"] in ("one", "two", None)


CHECKS = [
    (schema(POINT), is_point),
    (schema({"type": "array", "items": {"enum": [1, 22, 333]}, "minItems": 2, "maxItems": 3}),
     lambda text: len(json.loads(text)) in (2, 3)),
    (regex(r"[0-9]{3}-[0-9]{4}"), lambda text: re.fullmatch(r"[0-9]{3}-[0-9]{4}", text)),
    (regex(r"é{2}|🙂"), lambda text: text in ("éé", "🙂")),
    (lark('start: "yes" | "no" " "? "sir"'), lambda text: text in ("yes", "no sir", "nosir")),
    (lark("?start: WORD\nWORD: /[a-c]{1,4}/"), lambda text: re.fullmatch("[a-c]{1,4}", text)),
]  # fmt: skip


async def test_an_answer_follows_its_grammar_alone_and_in_a_mixed_batch(setup: Setup) -> None:
    digest = (await setup.engine.load_adapter(setup.adapters[0])).digest
    # Random models write white space for ever where they may, which vLLM's llguidance lets them.
    spaces = setup.engine.tokenizer.encode(" \n\t\r", add_special_tokens=False)
    compact = {"max_tokens": 100, "logit_bias": dict.fromkeys(spaces, -100.0)}
    for params in ({"temperature": 0.0}, {"temperature": 1.5, "seed": 3, "top_p": 0.9}):
        params = {**compact, **params}

        def ask(at: int, adapter: str | None, params: dict[str, Any] = params) -> Any:
            return request(PROMPT, adapter, grammar=CHECKS[at][0], **params)

        alone: list[Completion] = []
        for at, (_, fits) in enumerate(CHECKS):
            done = await complete(setup.engine, ask(at, digest if at % 2 else None))
            assert fits(done.text), (at, done.text)
            assert done.finish_reason == STOP
            alone.append(done)
        for start in range(0, len(CHECKS), 2):
            items = [ask(at, digest if at % 2 else None) for at in (start, start + 1)]
            plain = request(PROMPT, digest, max_tokens=20)
            *crowd, _ = await complete_all(setup.engine, [*items, plain])
            texts = [(done.text, done.token_ids) for done in crowd]
            assert texts == [(d.text, d.token_ids) for d in alone[start : start + 2]]


async def test_a_grammar_ends_the_answer_and_changes_none_that_fits(setup: Setup) -> None:
    plain = await complete(setup.engine, request(PROMPT, max_tokens=6, ignore_eos=True))
    exact = re.escape(plain.text)
    if "\ufffd" not in plain.text:
        done = await complete(
            setup.engine, request(PROMPT, grammar=regex(exact), max_tokens=50, ignore_eos=True)
        )
        assert (done.text, done.token_ids[:6]) == (plain.text, plain.token_ids)
        assert done.finish_reason == STOP
    cut = await complete(setup.engine, request(PROMPT, grammar=regex("[a-z]{9}"), max_tokens=2))
    assert (cut.finish_reason, len(cut.token_ids)) == (LENGTH, 2)
    assert re.fullmatch("[a-z]+", cut.text)
    # The end of the text comes where the grammar lets it, however likely it is.
    (eos, *_) = setup.engine.model.eos_token_ids
    params = {"max_tokens": 50, "logit_bias": {eos: 100.0}, "ignore_eos": True}
    done = await complete(setup.engine, request(PROMPT, grammar=regex("[ab]{3,9}"), **params))
    assert re.fullmatch("[ab]{3,9}", done.text)
    assert done.finish_reason == STOP
    nothing = await complete(setup.engine, request(PROMPT, grammar=regex(""), max_tokens=9))
    assert (nothing.text, nothing.finish_reason) == ("", STOP)


WRONG = [
    (schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
    (schema({"allOf": [{"type": "string"}, {"type": "null"}]}), "Unsatisfiable"),
    (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (schema({"$ref": "#/$defs/none"}), "none"),
    (schema({"$ref": "#"}), "."),
    (
        schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}),
        "requires itself",
    ),
    (Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"type": '), "."),
    (Grammar(kind=GrammarKind.JSON_SCHEMA, text="[1]"), "object"),
    (Grammar(kind=GrammarKind.JSON_SCHEMA, text='{"a":' * 5000 + "1" + "}" * 5000), "recursion"),
    (regex("(["), "unclosed"),
    (regex(r"a[^\s\S]"), "no text matches"),
    (regex("x" * 300_000), "characters"),
    (lark("start: nothing"), "nothing"),
    (lark("start: A\nA: /a+/ & /b+/"), "no text matches"),
]


async def test_an_impossible_or_broken_grammar_is_refused_and_the_next_one_served(
    setup: Setup,
) -> None:
    for grammar, names in WRONG:
        with pytest.raises(InvalidRequestError, match=names) as caught:
            await complete(setup.engine, request(PROMPT, grammar=grammar))
        assert caught.value.param == "response_format"
        assert len(str(caught.value)) < 1000
        assert "\n" not in str(caught.value)
    done = await complete(setup.engine, request(PROMPT, grammar=regex("[ab]{3}")))
    assert re.fullmatch("[ab]{3}", done.text)


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"allowed_token_ids": (10**6,)}, "allowed_token_ids"),
    ({"bad_words": ("",)}, "bad_words"),
    ({"bad_words": tuple("abcdefgh" * 40 + str(i) for i in range(200))}, "bad_words"),
    ({"stop": ("",)}, "stop"),
    ({"grammar": regex("a"), "min_tokens": 1}, "min_tokens"),
    ({"grammar": regex("a"), "allowed_token_ids": (5,)}, "allowed_token_ids"),
    ({"grammar": regex("a"), "bad_words": ("b",)}, "bad_words"),
]


async def test_limits_hold_and_contradictions_are_refused(setup: Setup) -> None:
    engine = setup.engine
    (eos, *_) = engine.model.eos_token_ids
    for params, name in CONTRADICTIONS:
        with pytest.raises(InvalidRequestError) as caught:
            await complete(engine, request(PROMPT, **params))
        assert caught.value.param == name
    with pytest.raises(InvalidRequestError) as caught:
        await complete(engine, request(PROMPT, allowed_token_ids=(eos,), min_tokens=2))
    assert caught.value.param == "allowed_token_ids"

    likely = {"logit_bias": {eos: 100.0}, "max_tokens": 9}
    early = await complete(engine, request(PROMPT, **likely, min_tokens=4))
    assert (len(early.token_ids), early.token_ids[4:]) == (5, [eos])
    assert eos not in early.token_ids[:4]

    whole = await complete(engine, request(PROMPT, max_tokens=9, ignore_eos=True))
    stop = whole.token_ids[0]
    stopped = request(PROMPT, max_tokens=9, ignore_eos=True, stop_token_ids=(stop,), min_tokens=3)
    assert stop not in (await complete(engine, stopped)).token_ids[:3]

    allowed = tuple(engine.tokenizer.encode("ABC", add_special_tokens=False))
    for temperature in (0.0, 1.0):
        params = {"max_tokens": 12, "temperature": temperature, "allowed_token_ids": allowed}
        done = await complete(engine, request(PROMPT, **params, seed=1))
        assert set(done.token_ids) <= set(allowed)
        assert done.finish_reason == LENGTH

    never = await complete(engine, request(PROMPT, max_tokens=9, **{"bad_words": ("AB",)},
                                           allowed_token_ids=allowed[:2],
                                           logit_bias={allowed[1]: 50.0}))  # fmt: skip
    assert "AB" not in never.text
    assert "B" in never.text


async def test_stops_are_text_or_special_tokens_and_are_shown_where_asked(setup: Setup) -> None:
    engine = setup.engine
    name, token_id = next(
        (n, i) for n, i in engine.tokenizer.special_tokens.items()
        if i not in engine.model.eos_token_ids or engine.model.vocab_size == 257
    )  # fmt: skip
    likely = {"logit_bias": {token_id: 100.0}, "max_tokens": 4, "ignore_eos": True}
    shown = {"include_stop_str_in_output": True}
    for params, text in (({}, ""), (shown, name)):
        done = await complete(engine, request(PROMPT, **likely, **params, stop=(name,)))
        assert (done.token_ids, done.text, done.finish_reason) == ([token_id], text, STOP)
    done = await complete(engine, request(PROMPT, **likely, skip_special_tokens=False))
    assert (done.text, done.finish_reason) == (name * 4, LENGTH)
    late = await complete(engine, request(PROMPT, **likely, stop=(name,), min_tokens=2))
    assert (len(late.token_ids), late.finish_reason) == (3, STOP)

    (eos, *_) = engine.model.eos_token_ids
    end = {"logit_bias": {eos: 100.0}, "max_tokens": 4}
    done = await complete(engine, request(PROMPT, **end, skip_special_tokens=False))
    assert (done.text, done.finish_reason) == ("", STOP)
    done = await complete(engine, request(PROMPT, **end, **shown, skip_special_tokens=False))
    assert done.text == engine.tokenizer.token_text(eos)

    letter = engine.tokenizer.encode("A", add_special_tokens=False)[0]
    text = {"logit_bias": {letter: 100.0}, "max_tokens": 6}
    done = await complete(engine, request(PROMPT, **text, stop=("AA",), min_tokens=3))
    assert (done.text, len(done.token_ids)) == ("AA", 4)
    done = await complete(engine, request(PROMPT, **text, **shown, stop=("AA",)))
    assert (done.text, len(done.token_ids)) == ("AA", 2)


async def test_the_prompt_alone_and_its_log_probabilities(setup: Setup) -> None:
    engine = setup.engine
    prompt = [*PROMPT, *PROMPT[::-1], *PROMPT]  # longer than a step of the embedded engine takes

    async def events(**params: Any) -> list[TokenEvent]:
        return [event async for event in engine.generate(request(prompt, **params))]

    (only,) = await events(max_tokens=0)
    assert (only.token_ids, only.text, only.finish_reason) == ((), "", LENGTH)
    assert only.prompt_logprobs is None
    assert only.queue_seconds is not None

    (scored,) = await events(max_tokens=0, prompt_logprobs=2)
    found = scored.prompt_logprobs
    assert found is not None
    assert [p and p.chosen.token_id for p in found] == [None, *prompt[1:]]
    for at, position in enumerate(found[1:], start=1):
        assert position is not None
        assert len(position.top) == 2
        assert position.top[0].logprob >= position.top[1].logprob
        # The same numbers as where the token is generated.
        if at in (3, 9, len(prompt) - 1):
            forced = request(prompt[:at], max_tokens=1, logit_bias={prompt[at]: 100.0}, logprobs=2)
            (generated,) = (await complete(engine, forced)).logprobs
            assert generated.chosen.token_id == prompt[at]
            assert generated.chosen.logprob == pytest.approx(position.chosen.logprob, abs=1e-4)
            assert [t.token_id for t in generated.top] == [t.token_id for t in position.top]

    asked = {"max_tokens": 3, "ignore_eos": True, "logprobs": 1}
    plain, (first, *rest) = await events(**asked), await events(**asked, prompt_logprobs=0)
    assert [e.token_ids for e in (first, *rest)] == [e.token_ids for e in plain]
    assert {e.prompt_logprobs for e in rest} == {None}
    assert first.prompt_logprobs is not None
    assert [p and p.top for p in first.prompt_logprobs] == [None, *[()] * (len(prompt) - 1)]
    chosen = [p.chosen.logprob for p in first.prompt_logprobs if p]
    assert chosen == pytest.approx([p.chosen.logprob for p in found if p], abs=1e-4)

    one = request(PROMPT[:1], max_tokens=0, prompt_logprobs=1)
    (alone,) = [event async for event in engine.generate(one)]
    assert alone.prompt_logprobs == (None,)
    # Beside others, new ones and one that is running, and aborted.
    items = [request(prompt, max_tokens=0, prompt_logprobs=1), request(PROMPT, max_tokens=5)]
    both = await complete_all(engine, items)
    assert [len(done.token_ids) for done in both] == [0, len(both[1].token_ids)]
    long = engine.generate(request(PROMPT, max_tokens=200, ignore_eos=True))
    await anext(long)
    (beside,) = await events(max_tokens=0, prompt_logprobs=2)
    assert beside.prompt_logprobs is not None
    chosen = [p.chosen.logprob for p in beside.prompt_logprobs if p]
    assert chosen == pytest.approx([p.chosen.logprob for p in found if p], abs=1e-4)
    assert (await anext(long)).finish_reason is None
    await long.aclose()
    task = asyncio.create_task(complete(engine, request(prompt, prompt_logprobs=1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await complete(engine, request(PROMPT))).token_ids
