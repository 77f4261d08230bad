"""Grammars: what is refused, that work on them is bounded, and that tokens follow them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from llguidance import LLTokenizer

from remix_runtime.contracts import Grammar, GrammarKind, ModelInfo
from remix_runtime.engines import grammar as module
from remix_runtime.engines.fake_model import EOS_ID, VOCAB_SIZE, byte_grammar_tokenizer
from remix_runtime.engines.grammar import (
    Grammars,
    Matcher,
    compiled,
    json_schema_text,
    lark_text,
    model_tokenizer,
)
from remix_runtime.engines.recursion import require_finite
from remix_runtime.errors import EngineBusyError, InvalidRequestError, RemixError
from tests.tokenizers import EXACT, FAMILIES, tokenizer_of

BYTES = byte_grammar_tokenizer()
PREFIXING = "byte level, prefix space"
UNREADABLE = ("t5", "metaspace, no bytes", "dropping", "wordpiece")


def schema(value: Any) -> Grammar:
    return Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(value))


def regex(text: str) -> Grammar:
    return Grammar(kind=GrammarKind.REGEX, text=text)


def matcher(grammar: Grammar, tokenizer: LLTokenizer = BYTES) -> Matcher:
    return Matcher(compiled(grammar, tokenizer))


def allowed(item: Matcher, size: int = 10**6) -> list[int]:
    (found,) = item.mask(size).nonzero()
    return [int(token_id) for token_id in found]


# -- following ----------------------------------------------------------------------------------


def test_a_mask_is_exactly_the_tokens_that_may_come_and_the_end_where_it_may() -> None:
    item = matcher(regex("a(b|cd)?"))
    for token_id, expected in ((97, [97]), (99, [98, 99, EOS_ID]), (100, [100])):
        assert allowed(item) == expected
        assert [i for i in range(VOCAB_SIZE) if item.allows(i)] == expected
        assert allowed(item, 99) == [i for i in expected if i < 99]
        item.take(token_id)
    assert item.is_complete


def test_what_is_forced_is_told_without_a_step_forward() -> None:
    item = matcher(regex("ab(c|d)efg"))
    assert item.forced(VOCAB_SIZE) == (97, 98)
    assert item.forced(98) == (97,)  # a model that has no more tokens
    item.take(97)
    item.take(98)
    assert item.forced(VOCAB_SIZE) == ()
    item.take(99)
    assert item.forced(VOCAB_SIZE) == (101, 102, 103)


@pytest.mark.parametrize("text", ["", "a+", "(ab){2}"])
def test_an_end_is_an_end(text: str) -> None:
    item = matcher(regex(text))
    for byte in {"": b"", "a+": b"aaa", "(ab){2}": b"abab"}[text]:
        item.take(byte)
    if not item.is_complete:
        assert item.allows(EOS_ID)
        item.take(EOS_ID)
    assert item.is_complete


def test_a_token_that_breaks_the_grammar_is_an_error_in_one_line() -> None:
    item = matcher(regex("ab"))
    with pytest.raises(RemixError, match="cannot be followed") as caught:
        item.take(99)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", [f for f in EXACT if f != PREFIXING])
def test_every_tokenizer_walks_to_valid_json(family: str) -> None:
    tokenizer = tokenizer_of(family)
    ends = tuple(tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"]))
    # Logits may be wider than the tokenizer.
    model = info(vocab_size=len(tokenizer) + 7, ends=ends)
    kind = {"type": "string", "pattern": "^(the|é🙂)$"}
    wanted = {"a": {"type": "array", "items": kind, "maxItems": 2}, "b": {"type": "null"}}
    grammar = schema({"type": "object", "properties": wanted, "required": ["a", "b"],
                      "additionalProperties": False})  # fmt: skip
    base = compiled(grammar, model_tokenizer(tokenizer, model))
    for seed in range(5):
        draw, item, ids = random.Random(seed), Matcher(base.deep_copy()), list[int]()
        while not item.is_complete:
            choices = [i for i in allowed(item) if i not in ends] or [ends[0]]
            ids.append(draw.choice(choices))
            item.take(ids[-1])
            assert len(ids) < 500
        answer = json.loads(tokenizer.decode(ids))
        assert set(answer["a"]) <= {"the", "é🙂"}


def test_every_end_of_the_model_ends_an_answer() -> None:
    tokenizer = tokenizer_of("gpt2")
    ends = tuple(tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"]))
    grammars = model_tokenizer(tokenizer, info(vocab_size=len(tokenizer), ends=ends))
    for end in ends:
        item = matcher(regex("a*"), grammars)
        assert set(ends) <= set(allowed(item))
        item.take(end)
        assert item.is_complete


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_is_read_or_refused_by_name(family: str) -> None:
    tokenizer = tokenizer_of(family)
    model = info(vocab_size=len(tokenizer))
    if family in (PREFIXING, *UNREADABLE):
        with pytest.raises(InvalidRequestError, match="tokenizer"):
            model_tokenizer(tokenizer, model)
    else:
        assert model_tokenizer(tokenizer, model).vocab_size == len(tokenizer)


def test_a_tokenizer_in_python_is_refused() -> None:
    class Slow:
        pass

    with pytest.raises(InvalidRequestError, match="Slow"):
        model_tokenizer(Slow(), info(vocab_size=5))  # type: ignore[arg-type]


def info(vocab_size: int, ends: tuple[int, ...] = ()) -> ModelInfo:
    return ModelInfo(
        name="m", max_model_len=99, vocab_size=vocab_size, eos_token_ids=ends, max_requests=9
    )


# -- what is refused ----------------------------------------------------------------------------

ENDLESS: list[Any] = [
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
    {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
    {"$ref": "#/$defs/a", "$defs": {
        "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
        "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"allOf": [{"$ref": "#/$defs/b"}]}]},
    }},
    {"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["x"]},
]  # fmt: skip

ENDING: list[Any] = [
    True,
    {"type": "object", "properties": {"a": {"$ref": "#"}}},
    {"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"type": "array", "items": {"$ref": "#"}},
    {"type": "array", "prefixItems": [{"type": "null"}], "items": {"$ref": "#"}, "minItems": 1},
    {"$ref": "#/$defs/a", "$defs": {
        "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
        "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]},
    }},
    {"$ref": "https://example.com/schema"},
    {"type": "object", "properties": {"a~b": {"enum": [1]}, "c": {"$ref": "#/properties/a~0b"}},
     "required": ["c"]},
]  # fmt: skip


@pytest.mark.parametrize("value", ENDLESS)
def test_a_schema_that_requires_itself_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="requires itself"):
        require_finite(json.dumps(value))


@pytest.mark.parametrize("value", ENDING)
def test_a_schema_with_an_end_is_not(value: Any) -> None:
    require_finite(json.dumps(value))


def test_a_chain_of_many_references_is_judged_or_let_through_in_bounded_work() -> None:
    names = [f"d{i}" for i in range(3000)]
    chain = {
        name: {"type": "object", "properties": {"a": {"$ref": f"#/$defs/{after}"}},
               "required": ["a"]}
        for name, after in zip(names, [*names[1:], "end"], strict=True)
    }  # fmt: skip
    require_finite(json.dumps({"$ref": "#/$defs/d0", "$defs": {**chain, "end": True}}))


HOSTILE = [
    regex("(a{1000}){1000}"),
    regex("(a|b)*a(a|b){2000}"),
    regex("(" * 5000 + ")" * 5000),
    regex("|".join("x" * i for i in range(600))),
    schema({"enum": [f"value {i}" for i in range(10_000)]}),
    schema({"type": "string", "pattern": "^(a?){300}b{300}$", "minLength": 200}),
    schema({"type": "array", "minItems": 100_000, "items": {"type": "null"}}),
    schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}),
    schema({"anyOf": [{"type": "array", "items": {"anyOf": [{"const": i}] * 30}}
                      for i in range(300)]}),
    Grammar(kind=GrammarKind.LARK, text="start: " + " ".join(["a?"] * 3000) + '\na: "x"'),
    Grammar(kind=GrammarKind.LARK, text="start: a\n"
            + "".join(f"a{'' if i == 0 else i}: a{i + 1} a{i + 1}\n" for i in range(40))
            + 'a40: "x"'),
]  # fmt: skip


@pytest.mark.parametrize("grammar", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_grammar_ends_by_itself(grammar: Grammar) -> None:
    """Refused, or followed until its limits say no; all inside the test's time limit."""
    with contextlib.suppress(RemixError):
        item = matcher(grammar)
        for _ in range(20):
            item.take(allowed(item)[0])
            if item.is_complete:
                break


# -- the worker ---------------------------------------------------------------------------------


class Worker:
    """Compiles when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.compiled: list[Grammar] = []
        self.tokenizers = 0
        self.grammars = Grammars(self._tokenizer)
        monkeypatch.setattr(module, "compiled", self._compile)

    def _tokenizer(self) -> LLTokenizer:
        self.tokenizers += 1
        return BYTES

    def _compile(self, grammar: Grammar, tokenizer: LLTokenizer) -> Any:
        self.gate.wait(60)
        self.compiled.append(grammar)
        return compiled(grammar, tokenizer)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    made = Worker(monkeypatch)
    yield made
    made.gate.set()
    made.grammars.close()


async def test_one_grammar_is_compiled_once_for_all_who_want_it(worker: Worker) -> None:
    asked = [asyncio.create_task(worker.grammars.matcher(regex("a+"))) for _ in range(5)]
    await asyncio.sleep(0)
    worker.gate.set()
    first, second, *_ = await asyncio.gather(*asked)
    await worker.grammars.matcher(regex("a+"))
    assert (worker.compiled, worker.tokenizers) == ([regex("a+")], 1)
    first.take(97)
    first.take(EOS_ID)
    assert first.is_complete
    assert not second.is_complete, "each answer has a matcher of its own"


async def test_the_event_loop_goes_on_and_a_caller_may_leave(worker: Worker) -> None:
    task = asyncio.create_task(worker.grammars.matcher(regex("a+")))
    await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    worker.gate.set()
    assert (await worker.grammars.matcher(regex("a+"))).allows(97)
    assert worker.compiled == [regex("a+")]


async def test_a_caller_who_left_gets_no_line_in_the_log_for_a_wrong_grammar(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    task = asyncio.create_task(worker.grammars.matcher(regex("(")))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    worker.gate.set()
    with pytest.raises(InvalidRequestError):  # which is behind it
        await worker.grammars.matcher(regex("(("))
    gc.collect()
    assert caplog.messages == []


async def test_a_bounded_number_waits(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    asked = [asyncio.create_task(worker.grammars.matcher(regex("a" * i))) for i in (1, 2, 3)]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError):
        await worker.grammars.matcher(regex("b"))
    worker.gate.set()
    await asyncio.gather(*asked)
    await worker.grammars.matcher(regex("b"))


@pytest.mark.parametrize("wanted", ["b", "aaaaaa"])
async def test_tenants_take_turns_and_nobody_is_refused_because_of_others(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    """Also where the quiet one wants what the loud one has asked for last."""
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    grammars = [regex("a" * i) for i in range(1, 7)]
    loud = [asyncio.create_task(worker.grammars.matcher(item, "loud")) for item in grammars]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError, match="6 of your grammars"):
        await worker.grammars.matcher(regex("c"), "loud")
    quiet = asyncio.create_task(worker.grammars.matcher(regex(wanted), "quiet"))
    await asyncio.sleep(0)
    worker.gate.set()
    await asyncio.gather(*loud, quiet)
    assert worker.compiled.index(regex(wanted)) <= 2


async def test_a_grammar_that_takes_too_long_is_refused_and_those_behind_it_may_come_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMPILE_SECONDS", 0.05)
    slow, behind = await asyncio.gather(
        worker.grammars.matcher(regex("a")),
        worker.grammars.matcher(regex("b")),
        return_exceptions=True,
    )
    assert isinstance(slow, InvalidRequestError)
    assert isinstance(behind, EngineBusyError)


async def test_those_who_wait_hear_of_the_end(worker: Worker) -> None:
    first = asyncio.create_task(worker.grammars.matcher(regex("a")))
    second = asyncio.create_task(worker.grammars.matcher(regex("b")))
    await asyncio.sleep(0.01)
    worker.grammars.close()
    with pytest.raises(EngineBusyError):
        await second
    worker.gate.set()
    assert (await first).allows(97)


async def test_a_failed_grammar_is_not_kept_and_the_unused_ones_leave_first(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.gate.set()
    monkeypatch.setattr(module, "_CACHE_GRAMMARS", 2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await worker.grammars.matcher(regex(text))
    assert [grammar.text for grammar in worker.compiled] == ["a", "b", "c", "b"]
    for _ in range(2):
        with pytest.raises(InvalidRequestError):
            await worker.grammars.matcher(regex("("))
    assert [grammar.text for grammar in worker.compiled][-2:] == ["(", "("]


# -- the same on vLLM ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, {"type": "object"}, {"x-guidance": {"lenient": True}}])
def test_a_schema_for_vllm_says_what_llguidance_was_told_here(value: Any) -> None:
    text = json.dumps(value)
    assert json_schema_text(json_schema_text(text)) == json_schema_text(text)
    if value is not True:
        told = json.loads(json_schema_text(text))
        assert told.items() > {k: v for k, v in value.items() if k != "x-guidance"}.items()
        assert "whitespace_pattern" in told["x-guidance"]


@pytest.mark.parametrize("text", ['start: "a"', '?start: "a"', '// no\nA: "x"\nstart: A'])
def test_rules_are_taken_for_larks(text: str) -> None:
    from llguidance.gbnf_to_lark import any_to_lark

    told = lark_text(text)
    assert any_to_lark(told) == told
    first, second = (matcher(Grammar(kind=GrammarKind.LARK, text=t)) for t in (told, text))
    assert allowed(first) == allowed(second)
