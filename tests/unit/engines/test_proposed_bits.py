"""Proposals change the number of steps and nothing else: tokens, text, log-probabilities, ends,
what is charged and the random state after them are those of decoding one by one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.contracts import (
    FinishReason,
    GenerationRequest,
    Grammar,
    GrammarKind,
    PositionLogprobs,
    SamplingParams,
)
from remix_runtime.engines.bad_words import bad_word_ids
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.embedded.core import EngineCore
from remix_runtime.engines.embedded.proposals import Proposer
from remix_runtime.engines.embedded.startup import build_core
from remix_runtime.engines.front import Prepared
from remix_runtime.engines.grammar import Matcher, compiled, model_tokenizer
from remix_runtime.kernels import attention, native
from tests.models import EOS_ID, VOCAB_SIZE, random_checkpoint, save_tiny_base, tiny_model

pytestmark = pytest.mark.skipif(
    native.lib() is None, reason="without a C compiler rows depend on their batch"
)
_NUMBERS = itertools.count()
FORCED = "0123456789-0123456789-98765"
GRAMMARS = {
    text: Grammar(kind=kind, text=text)
    for kind, text in (
        (GrammarKind.REGEX, "(ab|the |[0-9]{2},){1,9}"),
        (GrammarKind.JSON_SCHEMA, '{"type": "array", "items": {"enum": ["there", "other", 12]}}'),
        (GrammarKind.REGEX, FORCED),
    )
}


class Setup:
    """Two engines that differ in the setting only. Not a dataclass: hypothesis would print it."""

    def __init__(self, root: Path) -> None:
        base = save_tiny_base(root / "base")
        self.on, self.off = (
            build_core(
                EmbeddedConfig(
                    model=str(base), kv_cache_bytes=1 << 22, adapter_slots=4, proposals=proposals
                )
            )
            for proposals in (True, False)
        )
        checkpoints = [random_checkpoint(tiny_model("llama"), seed=seed) for seed in (1, 2)]
        self.digests = [None, *(checkpoint.digest for checkpoint in checkpoints)]
        for core in (self.on, self.off):
            for checkpoint in checkpoints:
                core.bank.add(core.bank.prepare(checkpoint))
        known = model_tokenizer(self.on.runner.tokenizer.own, self.on.runner.model)
        self._grammars = {grammar: compiled(grammar, known) for grammar in GRAMMARS.values()}

    def prepared(self, params: SamplingParams) -> Prepared:
        runner = self.on.runner
        words = bad_word_ids(params, runner.tokenizer, runner.model)
        if params.grammar is None:
            return Prepared(words)
        return Prepared(words, Matcher(self._grammars[params.grammar].deep_copy()))


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return Setup(tmp_path_factory.mktemp("proposed"))


@dataclass
class Answer:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: Any = None
    finish_reason: FinishReason | None = None
    error: str | None = None
    charged: tuple[int, int] = (0, 0)
    random_state: Any = None
    events: int = field(default=0, compare=False)


MakeProposer = Callable[[int, GenerationRequest], Proposer]
"""Of the n-th request."""


def answers(
    setup: Setup,
    core: EngineCore,
    requests: Sequence[GenerationRequest],
    *,
    aborted_at: Sequence[int | None] = (),
    proposer: MakeProposer | None = None,
) -> list[Answer]:
    """Runs the requests, each from one step later than the one before. `aborted_at`: so many tokens
    end a request."""
    named = [
        replace(item, request_id=str(next(_NUMBERS)), meter=type(item.meter)()) for item in requests
    ]
    found = {item.request_id: Answer() for item in named}
    sources = {}
    waiting = list(enumerate(named))
    limits = {item.request_id: end for item, end in zip(named, aborted_at, strict=False)}
    while waiting or core.has_work:
        if waiting:
            number, item = waiting.pop(0)
            assert core.add(item, setup.prepared(item.params)) == []
            job = core._jobs[item.request_id]
            sources[item.request_id] = job.rng
            if proposer is not None:
                job.proposer = proposer(number, item)
        outputs = core.step()
        # All but the newest token is computed, and nothing twice.
        for job in core._jobs.values():
            assert not job.num_generated or job.num_computed == len(job.tokens) - 1
        for name, end in limits.items():
            if end is not None and len(found[name].tokens) >= end:
                outputs += core.abort(name)
        for output in outputs:
            answer, event = found[output.request_id], output.event
            assert answer.finish_reason is None
            if isinstance(event, Exception):
                answer.error = str(event)
                continue
            answer.events += 1
            answer.tokens += event.token_ids
            answer.text += event.text
            answer.logprobs += event.logprobs or ()
            answer.prompt_logprobs = answer.prompt_logprobs or event.prompt_logprobs
            answer.finish_reason = event.finish_reason
    for item in named:
        answer, meter = found[item.request_id], item.meter
        answer.charged = meter.prompt_tokens, meter.output_tokens
        answer.random_state = sources[item.request_id].getstate()
    assert core.scheduler.pool.num_free == core.scheduler.pool.num_pages
    assert not core._jobs
    return list(found.values())


@st.composite
def params(draw: st.DrawFn) -> SamplingParams:
    grammar = draw(st.sampled_from([None, None, *GRAMMARS.values()]))
    free: dict[str, Any] = {} if grammar else {
        "min_tokens": draw(st.sampled_from([0, 0, 5])),
        "bad_words": draw(st.sampled_from([(), ("the", "he t")])),
        "ignore_eos": draw(st.booleans()),
    }  # fmt: skip
    return SamplingParams(
        max_tokens=draw(st.integers(1, 40)),
        temperature=draw(st.sampled_from([0.0, 0.0, 0.1, 0.8])),
        seed=draw(st.integers(0, 9)),
        top_k=draw(st.sampled_from([0, 3])),
        top_p=draw(st.sampled_from([1.0, 0.7])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.1, 0.8])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 0.4, -0.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.2])),
        logit_bias=draw(st.sampled_from([{}, {70: 3.0, 71: 3.0}, {EOS_ID: 4.0}])),
        stop=draw(st.sampled_from([(), ("th", "zz"), ("\n", "e")])),
        stop_token_ids=draw(st.sampled_from([(), (71,)])),
        include_stop_str_in_output=draw(st.booleans()),
        logprobs=draw(st.sampled_from([None, 0, 2])),
        prompt_logprobs=draw(st.sampled_from([None, None, 1])),
        grammar=grammar,
        **free,
    )


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[list[int], int, SamplingParams]]:
    """Prompts that repeat themselves, with whose adapter they are answered."""
    tokens = st.integers(0, VOCAB_SIZE - 1)
    batch = []
    for _ in range(draw(st.integers(1, 4))):
        motif = draw(st.lists(tokens, min_size=1, max_size=8))
        prompt = motif * draw(st.integers(1, 4)) + draw(st.lists(tokens, max_size=3))
        batch.append((prompt, draw(st.integers(0, 2)), draw(params())))
    return batch


def requests_of(
    setup: Setup, batch: Sequence[tuple[list[int], int, SamplingParams]]
) -> list[GenerationRequest]:
    return [
        GenerationRequest(
            request_id="",
            prompt_token_ids=tuple(prompt),
            params=each,
            digest=setup.digests[adapter],
        )
        for prompt, adapter, each in batch
    ]


def test_answers_are_those_of_decoding_one_by_one(setup: Setup) -> None:
    accepted = setup.on.num_accepted

    @settings(max_examples=60)
    @given(batches())
    def check(batch: list[tuple[list[int], int, SamplingParams]]) -> None:
        requests = requests_of(setup, batch)
        assert answers(setup, setup.on, requests) == answers(setup, setup.off, requests)

    check()
    assert setup.on.num_accepted - accepted > 100
    assert setup.off.num_proposed == 0


class Scripted(Proposer):
    """Proposes what will come, up to a random place, and then something else."""

    def __init__(self, prompt_len: int, answer: Sequence[int], seed: int) -> None:
        self._prompt_len, self._answer = prompt_len, answer
        self._random = random.Random(seed)

    def propose(self, tokens: Sequence[int], at_most: int) -> tuple[int, ...]:
        coming = self._answer[len(tokens) - self._prompt_len :]
        right = self._random.randint(0, at_most)
        wrong = [(token_id + 1) % VOCAB_SIZE for token_id in coming[right:]]
        more = [self._random.randrange(VOCAB_SIZE) for _ in range(at_most)]
        return tuple([*coming[:right], *wrong, *more][:at_most])


@settings(max_examples=60)
@given(batches(), st.integers(0, 1000), st.data())
def test_whatever_is_proposed_and_whoever_leaves(
    setup: Setup,
    batch: list[tuple[list[int], int, SamplingParams]],
    seed: int,
    data: st.DataObject,
) -> None:
    """Right proposals, wrong ones, and aborts in between."""
    requests = requests_of(setup, batch)
    expected = answers(setup, setup.off, requests)

    def proposer(number: int, item: GenerationRequest) -> Proposer:
        return Scripted(len(item.prompt_token_ids), expected[number].tokens, seed + number)

    ends = [data.draw(st.none() | st.integers(1, 20)) for _ in batch]
    found = answers(setup, setup.on, requests, aborted_at=ends, proposer=proposer)
    for answer, whole in zip(found, expected, strict=True):
        if answer.finish_reason is FinishReason.ABORT:
            count = len(answer.tokens)
            assert answer.tokens == whole.tokens[:count]
            assert answer.logprobs == whole.logprobs[:count]
            # An abort shows half a character as U+FFFD, which the whole answer completes.
            assert whole.text.startswith(answer.text.rstrip("\ufffd"))
            assert answer.charged[1] == count
        else:
            assert answer == whole


def greedy(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0, ignore_eos=True, **more)


def repeating(setup: Setup, **more: Any) -> tuple[Answer, Answer]:
    """An answer that comes to repeat itself, with proposals and without."""
    batch = [([5, 6, 7, 8] * 4, 0, greedy(120, frequency_penalty=-0.5, **more))]
    requests = requests_of(setup, batch)
    (on,), (off,) = (answers(setup, core, requests) for core in (setup.on, setup.off))
    return on, off


def test_a_text_that_repeats_itself_takes_fewer_steps(setup: Setup) -> None:
    proposed, accepted = setup.on.num_proposed, setup.on.num_accepted
    on, off = repeating(setup, logprobs=1)
    assert on == off
    assert off.events == 120
    assert on.events < 60
    accepted = setup.on.num_accepted - accepted
    assert on.events == 120 - accepted
    assert setup.on.num_proposed - proposed >= accepted


def test_what_a_grammar_leaves_no_choice_of_is_proposed(setup: Setup) -> None:
    """Nothing of it stands in the prompt."""
    params = SamplingParams(max_tokens=40, seed=0, grammar=GRAMMARS[FORCED])
    requests = requests_of(setup, [([200, 201], 0, params)])
    (on,), (off,) = (answers(setup, core, requests) for core in (setup.on, setup.off))
    assert on == off
    assert on.text == FORCED
    assert off.events == len(FORCED)
    assert on.events < len(FORCED) / 3


def test_a_grammar_that_panics_fails_its_request_alone(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        pass

    def panic(*_: Any) -> Any:
        raise Panic

    victim = SamplingParams(max_tokens=40, seed=0, grammar=GRAMMARS[FORCED])
    requests = requests_of(setup, [([1], 0, victim), ([5, 6] * 3, 1, greedy(9))])
    expected = answers(setup, setup.off, requests)
    monkeypatch.setattr(Matcher, "forced", panic)
    assert answers(setup, setup.on, requests) == expected
    monkeypatch.setattr(Matcher, "take", panic)
    found = answers(setup, setup.on, requests)
    assert found[0].error is not None
    assert found[1:] == expected[1:]


def test_accepted_tokens_are_charged_to_their_tenant(setup: Setup) -> None:
    counters = []
    for core in (setup.on, setup.off):
        before = core.scheduler.queue.counter("")
        repeating(setup)
        counters.append(core.scheduler.queue.counter("") - before)
    assert counters[0] == counters[1] > 240


def test_a_row_that_is_not_reached_may_be_anything(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only tokens that are drawn can fail a request."""
    run = setup.on.runner.run

    def spoilt(chunks: Any, routes: Any = None) -> torch.Tensor:
        logits_SV = run(chunks, routes).clone()
        if chunks[0].proposed:
            logits_SV[1:] = float("nan")
        return logits_SV

    class Wrong(Proposer):
        def propose(self, tokens: Sequence[int], at_most: int) -> tuple[int, ...]:
            return (-1 % VOCAB_SIZE,) * at_most

    requests = requests_of(setup, [([5, 6, 7, 8], 0, greedy(12))])
    expected = answers(setup, setup.off, requests)
    assert VOCAB_SIZE - 1 not in expected[0].tokens
    monkeypatch.setattr(setup.on.runner, "run", spoilt)
    assert answers(setup, setup.on, requests, proposer=lambda *_: Wrong()) == expected


def test_tokens_before_a_failure_are_told(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are without proposals."""
    requests = requests_of(setup, [([5, 6, 7, 8], 0, greedy(12))])
    (whole,) = answers(setup, setup.off, requests)
    run = setup.on.runner.run

    def spoilt(chunks: Any, routes: Any = None) -> torch.Tensor:
        logits_SV = run(chunks, routes).clone()
        if chunks[0].proposed:
            logits_SV[3:] = float("nan")
        return logits_SV

    class Right(Proposer):
        def propose(self, tokens: Sequence[int], at_most: int) -> tuple[int, ...]:
            return tuple(whole.tokens[len(tokens) - 4 :][:at_most])

    monkeypatch.setattr(setup.on.runner, "run", spoilt)
    (found,) = answers(setup, setup.on, requests, proposer=lambda *_: Right())
    assert found.tokens == whole.tokens[:4]
    assert found.error is not None
    assert "not finite" in found.error


def test_nothing_is_proposed_where_rows_depend_on_their_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_native_attend", lambda: None)
    core = build_core(EmbeddedConfig(model=str(save_tiny_base(tmp_path)), kv_cache_bytes=1 << 20))
    core.add(requests_of_plain([5, 6] * 8))
    while core.has_work:
        core.step()
    assert core.num_proposed == 0


def requests_of_plain(prompt: list[int]) -> GenerationRequest:
    return GenerationRequest(request_id="plain", prompt_token_ids=tuple(prompt), params=greedy(20))
