"""The engine's core with a real model and few pages: cached, preempted, swapped and beside others,
a request has the bits that it has alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.adapter.checkpoint import Checkpoint
from remix_runtime.contracts import (
    GenerationRequest,
    Grammar,
    GrammarKind,
    SamplingParams,
    TokenEvent,
)
from remix_runtime.engines.embedded.bank import AdapterBank, HostAdapter
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.embedded.core import EngineCore, Output
from remix_runtime.engines.embedded.runner import ModelRunner
from remix_runtime.engines.embedded.startup import build_core
from remix_runtime.engines.front import Prepared
from remix_runtime.engines.grammar import Matcher, compiled, model_tokenizer
from remix_runtime.kernels import native
from remix_runtime.kernels.attention import PAGE_TOKENS
from tests.models import ATTENTION, MLP, random_checkpoint, save_tiny_base, tiny_model

pytestmark = pytest.mark.skipif(
    native.lib() is None, reason="without a C compiler the bits are PyTorch's, not ours"
)
MAX_PAGES = 24
WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "min_tokens": 9},
    {"temperature": 1.0, "seed": 7},
    {"temperature": 1.3, "seed": 8, "top_p": 0.8},
    {"temperature": 0.0, "prompt_logprobs": 1},
    {
        "temperature": 1.0,
        "seed": 3,
        "grammar": Grammar(kind=GrammarKind.REGEX, text="[a-f ]{4,90}"),
    },
]


@dataclass(frozen=True)
class Spec:
    """`adapter`: -1 is the base. The prompt is `length` tokens of one of some texts."""

    text: int
    length: int
    new: int
    adapter: int
    way: int
    tenant: str
    salt: str
    arrives: int
    aborts_after: int | None

    def request(self, number: int, digests: list[str]) -> GenerationRequest:
        return GenerationRequest(
            request_id=str(number),
            prompt_token_ids=tuple((self.text * i * i + i) % 250 for i in range(self.length)),
            params=SamplingParams(max_tokens=self.new, logprobs=1, **WAYS[self.way]),
            digest=digests[self.adapter] if self.adapter >= 0 else None,
            tenant=self.tenant,
            cache_salt=self.salt,
        )


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)
    reasons: list[Any] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)

    def take(self, event: TokenEvent | Exception) -> None:
        assert isinstance(event, TokenEvent), event
        self.token_ids += event.token_ids
        self.text += event.text
        self.logprobs += event.logprobs or ()
        if event.prompt_logprobs is not None:
            self.prompt_logprobs.append(event.prompt_logprobs)
        if event.finish_reason is not None:
            self.reasons.append(event.finish_reason)
        if event.cached_tokens is not None:
            self.cached.append(event.cached_tokens)


class Setup:
    """Not a dataclass: hypothesis would print it, tensors and all."""

    def __init__(self, runner: ModelRunner, bank: AdapterBank, checkpoints: list[Checkpoint]):
        self.runner = runner
        self.bank = bank
        self.host: dict[str, HostAdapter] = {}
        for checkpoint in checkpoints:
            adapter = bank.prepare(checkpoint)
            self.host[adapter.digest] = adapter
            bank.add(adapter)
        self.digests = list(self.host)
        self.bank.host_bytes = 2 * max(adapter.num_bytes for adapter in self.host.values())
        self.rows: dict[bytes, tuple[bytes, ...]] = {}
        """The keys and values of each page that could ever be found, by its key."""
        self._alone: dict[tuple[Any, ...], Answer] = {}

    def core(self, *, pages: int = MAX_PAGES, cache: bool = True, **config: Any) -> EngineCore:
        self.runner.num_pages = pages
        settings_ = EmbeddedConfig(model="none", prefix_cache=cache, **config)
        return EngineCore(settings_, self.runner, self.bank)

    def add(self, core: EngineCore, request: GenerationRequest) -> None:
        matcher = None
        if request.params.grammar is not None:
            tokenizer = model_tokenizer(self.runner.tokenizer.own, self.runner.model)
            matcher = Matcher(compiled(request.params.grammar, tokenizer))
        assert core.add(request, Prepared((), matcher)) == []

    def step(self, core: EngineCore) -> list[Output]:
        digest = core.next_read()
        if digest is not None:
            assert core.finish_read(digest, self.host[digest]) == []
        return core.step()

    def alone(self, spec: Spec) -> Answer:
        key = (spec.text, spec.length, spec.new, spec.adapter, spec.way)
        if key not in self._alone:
            core = self.core(cache=False)
            self.add(core, spec.request(0, self.digests))
            answer = self._alone[key] = Answer()
            while not answer.reasons:
                for output in self.step(core):
                    answer.take(output.event)
        return self._alone[key]

    def check_pages(self, core: EngineCore) -> None:
        """A key stands for the same bits, whoever computed them and whenever it is looked at."""
        for key, page in core.scheduler.pool._page_of.items():
            found = tuple(
                tensor[page].numpy().tobytes()
                for layer in self.runner._kv.layers
                for tensor in (layer.keys, layer.values)  # type: ignore[attr-defined]
            )
            assert self.rows.setdefault(key, found) == found


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    base = save_tiny_base(tmp_path_factory.mktemp("cached-bits") / "base")
    core = build_core(EmbeddedConfig(model=str(base), kv_cache_bytes=1 << 19, adapter_slots=2))
    assert core.runner.num_pages >= MAX_PAGES
    model = tiny_model("llama")
    shapes = [(8, 4, 8, MLP), (3, 1, 5, (*MLP, *ATTENTION)), (4, 2, 4, ("down_proj", "q_proj"))]
    checkpoints = [
        random_checkpoint(model, n=n, k=k, r=r, target_modules=targets, seed=seed)
        for seed, (n, k, r, targets) in enumerate(shapes)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Setup(core.runner, core.bank, checkpoints)
    torch.set_num_threads(threads)


def spec_of(rng: random.Random) -> Spec:
    return Spec(
        text=rng.choice([1, 1, 1, 2]),
        length=rng.choice([16, 17, 33, 48, rng.randint(1, 30)]),
        new=rng.choice([60, rng.randint(1, 60)]),
        adapter=rng.choice([0, 0, 0, -1, 1, 2]),
        way=rng.randrange(len(WAYS)),
        tenant=rng.choice("fffg"),
        salt=rng.choice(["", "", "", "s"]),
        arrives=rng.choice([rng.randint(0, 10), rng.randint(0, 60)]),
        aborts_after=rng.choice([None, None, None, rng.randint(0, 30)]),
    )


@settings(max_examples=20)
@given(seed=st.integers(0, 2**62), cache=st.sampled_from([True, True, True, False]))
def test_every_answer_has_the_bits_that_it_has_alone(setup: Setup, seed: int, cache: bool) -> None:
    rng = random.Random(seed)
    given_specs = [spec_of(rng) for _ in range(rng.randint(4, 12))]
    unloads = [(rng.randint(0, 60), rng.randint(0, 2)) for _ in range(rng.randint(0, 4))]
    pages, running = rng.randint(7, 16), rng.randint(3, 8)
    budget = rng.randint(running, 80)
    expected = [setup.alone(spec) for spec in given_specs]
    core = setup.core(pages=pages, cache=cache, max_running=running, max_tokens_per_step=budget)
    answers = [Answer() for _ in given_specs]
    step = 0
    while step <= 60 or any(not answer.reasons for answer in answers):
        for number, spec in enumerate(given_specs):
            if spec.arrives == step:
                setup.add(core, spec.request(number, setup.digests))
            if spec.aborts_after is not None and spec.arrives + spec.aborts_after == step:
                for output in core.abort(str(number)):
                    answers[number].take(output.event)
        for when, adapter in unloads:
            digest = setup.digests[adapter]
            if when == step and not any(j.request.digest == digest for j in core._jobs.values()):
                core.bank.remove(digest)
                core.bank.add(setup.host[digest])
        for output in setup.step(core):
            answers[int(output.request_id)].take(output.event)
        if not step % 5:
            setup.check_pages(core)
        step += 1
        assert step < 3000, "somebody waits for ever"
    setup.check_pages(core)
    for spec, answer, alone in zip(given_specs, answers, expected, strict=True):
        count = len(answer.token_ids)
        assert len(answer.reasons) == 1
        assert answer.token_ids == alone.token_ids[:count]
        assert answer.logprobs == alone.logprobs[:count]
        if spec.aborts_after is None:
            assert (answer.text, answer.reasons) == (alone.text, alone.reasons)
        if count:
            assert answer.prompt_logprobs == alone.prompt_logprobs
            assert len(answer.cached) == int(cache)
    pool = core.scheduler.pool
    assert pool.num_free == pages
    assert sorted(pool.take(pages) or ()) == list(range(pages))
    for digest in setup.digests:
        assert setup.bank._slots.pins(digest) == 0
        assert setup.bank._entries[digest].pins == 0


@pytest.mark.parametrize("way", range(len(WAYS)))
@pytest.mark.parametrize("adapter", [-1, 0])
def test_set_back_in_the_middle_of_an_answer_and_found_again(
    setup: Setup, way: int, adapter: int
) -> None:
    """Three that grow into memory for two of them: the last one waits, and goes on."""
    spec = Spec(1, 40, 40, adapter, way, "f", "", 0, None)
    alone = setup.alone(spec)
    core = setup.core(pages=11)
    answers = [Answer() for _ in range(3)]
    for number in range(3):
        salted = Spec(1, 40, 40, adapter, way, "f", str(number), 0, None)
        setup.add(core, salted.request(number, setup.digests))
    while any(not answer.reasons for answer in answers):
        for output in setup.step(core):
            answers[int(output.request_id)].take(output.event)
    if len(alone.token_ids) > 24:
        assert core.scheduler.num_preemptions
    for answer in answers:
        assert (answer.token_ids, answer.logprobs) == (alone.token_ids, alone.logprobs)
        assert answer.prompt_logprobs == alone.prompt_logprobs
        assert answer.cached == [0]


def test_the_second_turn_of_a_chat_computes_what_is_new(setup: Setup) -> None:
    core = setup.core()
    prompt, cached = [5, 9, 31, 77] * 12, []
    for number in range(3):
        spec = Spec(0, 1, 20, 1, 0, "f", "", 0, None).request(number, setup.digests)
        request = GenerationRequest(
            request_id=spec.request_id,
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True),
            digest=spec.digest,
        )
        setup.add(core, request)
        answer = Answer()
        while not answer.reasons:
            for output in setup.step(core):
                answer.take(output.event)
        cached += answer.cached
        prompt = [*prompt, *answer.token_ids, 1, 2, 3]
    rows = [0, 48 + 20 - 1, 2 * (20 + 3) + 48 - 3 - 1]
    assert cached == [count // PAGE_TOKENS * PAGE_TOKENS for count in rows]
