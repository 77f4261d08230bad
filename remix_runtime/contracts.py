"""The words that every room shares, and the border between server and runtime.

Imports no sibling but `errors` and `engine_state`. An *adapter* is one trained mixture, named by
its *digest*; an *expert* is one LoRA of a layer; a *route* is the set of experts a token activates
there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from remix_runtime.engine_state import AdapterState, EngineStats, Health
from remix_runtime.errors import InvalidRequestError

MAX_MODEL_NAME = 256
"""Characters of a model's name in the API."""


class GrammarKind(StrEnum):
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"
    """Lark's notation, with llguidance's extensions."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must be, from its first character to its last. Engines compile and cache
    it."""

    kind: GrammarKind
    text: str
    """The schema as JSON, the expression or the rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when to stop; field meanings follow vLLM's. The server
    validates ranges, the engine what depends on the model (`InvalidRequestError`)."""

    max_tokens: int
    """0 computes the prompt alone: one event without tokens, ended by its length."""
    min_tokens: int = 0
    """Before so many, no end of text and no stop token is drawn."""
    temperature: float = 1.0
    """0 means greedy: the highest logit, ties to the lower token id."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary; larger than the vocabulary is the same as 0."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Strings that end the answer; one that is the text of a special token stops at that token."""
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    """Whether special tokens are left out of the text."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that may be drawn; empty: all."""
    bad_words: tuple[str, ...] = ()
    """Words that are never completed, at the start of a text or after a space."""
    grammar: Grammar | None = None
    logprobs: int | None = None
    """None: no log-probabilities. j >= 0: the chosen token's, and the j most likely tokens'."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""


@dataclass(slots=True)
class Meter:
    """What an engine has scheduled of one request, whether anybody hears of it or not. Right as
    soon as the request has ended, and never less than what its events have told."""

    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One sequence to complete. The server turns `n` choices into n requests."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    digest: str | None = None
    """A loaded adapter; None is the base model alone."""
    tenant: str = ""
    """The tenant that the request comes from; engines share their work fairly between tenants."""
    cache_salt: str = ""
    """Tenants share no cached prefix, so none can tell from the time of an answer what another one
    has asked; nor do a tenant's requests with different salts."""
    meter: Meter = field(default_factory=Meter, compare=False)
    """Written by the engine, read by whoever charges for it."""


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural-log probability of one token after temperature 1 softmax of the raw logits."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionLogprobs:
    """Log-probabilities at one generated position: the chosen token's and the top ones'."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """A step of one request. The last event of a request has a `finish_reason`.

    `text` is what can be shown now: held-back text (half a character, the start of a possible
    stop string) comes in a later event, and a matched stop string only where it is asked for.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[PositionLogprobs, ...] | None = None
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    """On the first event only, where they were asked for: a position for each token of the prompt,
    None for the first one, which nothing stands before."""
    finish_reason: FinishReason | None = None
    queue_seconds: float | None = None
    """On the first event only: seconds from arrival to the first scheduled step."""
    cached_tokens: int | None = None
    """On the first event only: tokens of the prompt whose keys and values were in the prefix cache.
    None where the engine keeps none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the server needs to know of the base model."""

    name: str
    max_model_len: int
    """Prompt and completion tokens together."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_requests: int
    """Requests that the engine takes at the same time, those in its queue included; tenants have
    shares of them."""
    fingerprint: str | None = None
    """Of the weights in the base's files; None where the engine does not tell."""

    def require_room(self, prompt_tokens: int, max_tokens: int, *, param: str = "prompt") -> None:
        """Raises `InvalidRequestError` where a request does not fit the context. `param`: the
        API's field that the prompt came in."""
        if prompt_tokens + max_tokens > self.max_model_len:
            raise InvalidRequestError(
                f"This model's maximum context length is {self.max_model_len} tokens. However, you "
                f"requested {prompt_tokens + max_tokens} tokens ({prompt_tokens} in the {param}, "
                f"{max_tokens} in the completion). Please reduce the length of either one.",
                param=param,
                code="context_length_exceeded",
            )

    def require_known(self, token_ids: Collection[int], *, param: str) -> None:
        """Raises `InvalidRequestError` for a token that the model does not have."""
        # Prompts are long: looked at one by one in C, and in Python only for the error.
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.vocab_size:
            bad = next(i for i in token_ids if not 0 <= i < self.vocab_size)
            raise InvalidRequestError(
                f"{param}: found token id {bad}, expected 0 to {self.vocab_size - 1}", param=param
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDefaults:
    """What a request for an adapter has where it says nothing else. None: the server's default."""

    chat_template: str | None = None
    """Jinja, in the place of the base model's own."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def given(self) -> dict[str, Any]:
        """The fields that the adapter does have, by their names."""
        values = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: value for name, value in values if value not in (None, ())}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedLoad:
    """How often the tokens of a sample of the training data activated each expert."""

    tokens: int
    modules: Mapping[str, Sequence[int]]
    """n counts by module, which add up to k times the tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """A loaded adapter, as `Engine.load_adapter` reports it."""

    digest: str
    num_layers: int
    """Adapted linears, not transformer blocks."""
    num_experts: int
    top_k: int
    r: int
    num_bytes: int
    defaults: AdapterDefaults = field(default_factory=AdapterDefaults)
    trained_load: TrainedLoad | None = None
    """None where the folder has no `training.json`, or one without it."""


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back. The embedded engine wraps the model's own tokenizer."""

    def __hash__(self) -> int: ...

    @property
    def max_token_chars(self) -> int:
        """Characters of the longest token: a text has at least its length over this in tokens."""

    @property
    def chat_template(self) -> str | None:
        """The template's source; None where the model has none."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The tokens that are left out of a text unless they are asked for, by their names."""

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        at_most: int | None = None,
        keep_end: bool = False,
    ) -> list[int]:
        """The tokens of a text. Where they are more than `at_most`, more than so many of them are
        enough: its first ones, or its last ones for `keep_end`."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_text(self, token_id: int) -> str:
        """One token as text, special tokens included; for the `token` fields of logprobs."""

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the UTF-8 of a text; a special token's is its name. Joined, the
        bytes of tokens are their text, apart from a space that some tokenizers drop at its
        start."""

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        at_most: int | None = None,
        keep_end: bool = False,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a chat, all or as many as `encode` gives. `template` takes the place of the
        model's own; `variables` are further names that a template may read, as `tools` and
        `enable_thinking`.

        Raises `InvalidRequestError` where the model has no template or the template refuses.
        """


@runtime_checkable
class Engine(Protocol):
    """The whole border between server and runtime. All methods are called from one event loop:
    `start`, any number of `load_adapter`, `generate`, `abort` and `unload_adapter`, then `stop`."""

    @property
    def model(self) -> ModelInfo: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    async def start(self) -> None:
        """Loads the model and returns when the engine is ready. Raises `ConfigError`."""

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Refuses new requests (`EngineBusyError`), lets running ones end for at most
        `drain_seconds`, aborts the rest and frees everything. Idempotent."""

    async def load_adapter(self, folder: Path, digest: str | None = None) -> AdapterInfo:
        """Validates a checkpoint folder, replays its parity file and makes it servable. With
        `digest`, a folder that holds another adapter is refused (`CheckpointMismatchError`).

        Idempotent by digest. Other requests go on meanwhile. Raises `CheckpointError`,
        `CapacityError`; a failed load leaves nothing behind, and a caller that goes away leaves
        a whole one.

        More adapters may be loaded than fit in memory. The folder must stay as it is until the
        adapter is unloaded: a copy that was dropped is read from there again when a request needs
        it, its digest is checked, and others' requests go on meanwhile. Loaded again from another
        folder, an adapter is read from that one.
        """

    async def unload_adapter(self, digest: str) -> None:
        """Refuses new requests for the digest at once. Frees its memory, and returns, when the last
        request that uses it has ended. Unknown digests are a no-op."""

    async def adapter_states(self) -> list[AdapterState]:
        """The state of every loaded adapter, in no order."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        """Token events of one request, ended by an event with a `finish_reason`.

        Raises on the first `anext`: `InvalidRequestError`, `AdapterNotLoadedError`,
        `AdapterUnavailableError`, `EngineBusyError`, `EngineDeadError`. Closing the iterator
        early aborts the request.

        A full queue refuses a tenant that has its share of it (`fairness/shares.py`), no other.
        Requests that wait are taken fairly between tenants (`GenerationRequest.tenant`), in order
        of arrival inside a tenant; one whose adapter is not at hand lets others pass for a
        bounded time.
        """

    async def abort(self, request_id: str) -> None:
        """Ends a request with `FinishReason.ABORT` and frees what it held at the next step.
        Unknown ids are a no-op."""

    def health(self) -> Health: ...

    def stats(self) -> EngineStats: ...

    def expert_load(self, digest: str) -> Mapping[str, tuple[int, ...]]:
        """How often tokens activated each expert of an adapter since its load: a number for each of
        its n experts, by module. Empty for an adapter that is not loaded, and where nobody counts.
        Cheap to take at any moment from any thread.

        What is computed for requests counts: the tokens of prompts, decoded ones, those that a
        preemption makes the engine compute again, proposed ones that are refused. Replays of
        parity files and tokens found in the prefix cache do not.

        Embedded: exact, every step on the CPU; nothing on a GPU. During a step some modules may
        have counted its tokens and others not. vLLM: one in 32 steps of its workers on the CPU, as
        of some seconds ago; modules that no such step has seen are left out, and so is what
        workers had not told of an adapter before they dropped it. Nothing on GPUs."""
