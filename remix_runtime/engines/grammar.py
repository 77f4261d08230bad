"""Grammars that answers must follow: compiled off the event loop, kept, followed by each token.

`llguidance` does the work, on every engine, so that a grammar means the same everywhere. What a
client sends is bounded in size, in the parser's own limits, in time and in the number that waits;
tenants take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import islice, takewhile

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from remix_runtime.contracts import Grammar, GrammarKind, ModelInfo
from remix_runtime.engines.recursion import require_finite
from remix_runtime.errors import EngineBusyError, InvalidRequestError, RemixError
from remix_runtime.fairness.worker import FairWorker

MAX_CHARS = 1 << 18
"""Characters of a grammar."""
MAX_WAITING = 64
"""Grammars that wait for the worker, in shares of the tenants."""
COMPILE_SECONDS = 10.0
"""A grammar that takes longer is refused. The parser's limits end it long before."""
_CACHE_GRAMMARS = 128
_CACHE_CHARS = 16 * MAX_CHARS
_ERROR_CHARS = 400

_LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=400_000,
    step_lexer_fuel=60_000,
    step_max_items=50_000,
    max_lexer_states=10_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Tighter than llguidance's own in what a mask may cost, since the steps of others wait for it."""
_TRIAL_TOKENS = 8
"""A grammar is followed for so many before it is used: some are too complex only then."""
_PROBE = '{"a": 1}'
_WHITESPACE = r"[ \t]{1,8}|[ \t]{0,2}\r?\n[ \t]{0,48}"
"""Between two tokens of JSON: what a formatter writes. Without an end to it, a small model goes on
with it for ever."""


def json_schema_source(text: str) -> str:
    """A JSON schema as llguidance takes it. Raises `ValueError` where it is no JSON."""
    match text.strip():
        case "true":
            text = "{}"  # means the same, and takes options
        case "false":
            return str(LLMatcher.grammar_from_json_schema(text))
    source: str = LLMatcher.grammar_from_json_schema(
        text, defaults={"whitespace_pattern": _WHITESPACE}
    )
    return source


def json_schema_text(text: str) -> str:
    """A JSON schema with what llguidance is told of it inside, to be compiled elsewhere."""
    return json.dumps(json.loads(json_schema_source(text))["grammars"][0]["json_schema"])


def lark_text(text: str) -> str:
    """Rules that are taken for Lark's by who would take them for another notation."""
    is_told = re.search(r"(?m)^\s*(%llguidance\b|start\s*:)", text)
    return text if is_told else f"%llguidance {{}}\n{text}"


class Matcher:
    """Follows one answer. Used in one thread."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole and nothing more may come."""
        return bool(self._matcher.is_stopped())

    def allows(self, token_id: int) -> bool:
        """Whether the token may come next."""
        return bool(self._matcher.validate_tokens([token_id]) == 1)

    def mask(self, size: int) -> NDArray[np.bool_]:
        """Which of the first `size` tokens may come next: [size]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._require_works()
        return np.unpackbits(bits, bitorder="little").view(np.bool_)[:size]

    def forced(self, size: int) -> tuple[int, ...]:
        """The next tokens, those below `size`, where the grammar leaves no choice of text: as the
        tokenizer would write it, though other tokens may write the same."""
        return tuple(takewhile(lambda token: token < size, self._matcher.compute_ff_tokens()))

    def take(self, token_id: int) -> None:
        """Goes on by a token. Raises `RemixError` where it may not come."""
        self._matcher.consume_token(token_id)
        self._require_works()

    def _require_works(self) -> None:
        if self._matcher.is_error():
            raise RemixError(f"the grammar cannot be followed: {_words(self._matcher.get_error())}")


class Grammars:
    """The compiled grammars of one model. All methods are for the event loop.

    `make_tokenizer` is called once, in the worker; it raises `InvalidRequestError` for a tokenizer
    that grammars cannot be used with.
    """

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer]) -> None:
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._worker: FairWorker | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._compiling: dict[tuple[str, Grammar], Future[LLMatcher]] = {}
        """By tenant too: nobody waits until it is the turn of another who wants the same."""

    def close(self) -> None:
        """Lets the worker go. What it compiles comes to its end unheard."""
        if self._worker is not None:
            self._worker.close()

    async def matcher(self, grammar: Grammar, tenant: str = "") -> Matcher:
        """A new matcher at the start of an answer. Raises `InvalidRequestError` for a grammar that
        is wrong, too large, or that no answer can follow, and `EngineBusyError`."""
        found = self._compiled.get(grammar)
        if found is None:
            found = await self._compile(grammar, tenant)
        else:
            self._compiled.move_to_end(grammar)
        # Copies share what the lexer has found out of the grammar so far.
        return Matcher(found.deep_copy())

    async def _compile(self, grammar: Grammar, tenant: str) -> LLMatcher:
        if len(grammar.text) > MAX_CHARS:
            raise _wrong(f"found {len(grammar.text)} characters, expected at most {MAX_CHARS}")
        key = (tenant, grammar)
        future = self._compiling.get(key)
        if future is None:
            if self._worker is None:
                self._worker = FairWorker(
                    "remix-grammar",
                    places=1 + MAX_WAITING,
                    what="grammars wait to be compiled",
                )
            future = self._worker.submit(tenant, partial(self._compile_in_worker, grammar))
            self._compiling[key] = future
            loop = asyncio.get_running_loop()

            def done(future: Future[LLMatcher]) -> None:
                with contextlib.suppress(RuntimeError):  # the loop closed meanwhile
                    loop.call_soon_threadsafe(self._keep, key, future)

            future.add_done_callback(done)
        compiling = asyncio.wrap_future(future)
        compiling.add_done_callback(_heard)
        try:
            return await asyncio.wait_for(asyncio.shield(compiling), COMPILE_SECONDS)
        except TimeoutError:
            if future.running():
                raise _wrong(f"it takes longer than {COMPILE_SECONDS:g} s to compile") from None
            raise EngineBusyError("other grammars are being compiled") from None
        except asyncio.CancelledError:
            if future.cancelled():
                raise EngineBusyError("the server is shutting down", retry_after=5.0) from None
            raise

    def _keep(self, key: tuple[str, Grammar], done: Future[LLMatcher]) -> None:
        del self._compiling[key]
        _, grammar = key
        if done.cancelled() or done.exception() is not None:
            return
        self._compiled[grammar] = done.result()
        chars = sum(len(kept.text) for kept in self._compiled)
        while len(self._compiled) > _CACHE_GRAMMARS or chars > _CACHE_CHARS:
            dropped, _ = self._compiled.popitem(last=False)
            chars -= len(dropped.text)

    def _compile_in_worker(self, grammar: Grammar) -> LLMatcher:
        found = self._compiled.get(grammar)  # for another tenant, meanwhile
        if found is not None:
            return found
        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        return compiled(grammar, self._tokenizer)


def _heard(done: asyncio.Future[LLMatcher]) -> None:
    """Takes note of an error, which asyncio logs where whoever asked has left."""
    if not done.cancelled():
        done.exception()


def compiled(grammar: Grammar, tokenizer: LLTokenizer) -> LLMatcher:
    """Raises `InvalidRequestError` for a grammar that is wrong or that no answer can follow."""
    try:
        source = _source(grammar)
    except ValueError as error:
        raise _wrong(_words(str(error))) from None
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise _wrong(_words(matcher.get_error()))
    matcher.compute_bitmask()  # also finds out whether there is a first token at all
    fault = _words(matcher.get_error())
    if fault and not fault.startswith("NoExtension"):
        raise _wrong(fault)
    if fault or (matcher.is_stopped() and not matcher.is_accepting()):
        raise _wrong("no text matches it")
    _try(matcher.deep_copy(), tokenizer)
    return matcher


def _try(matcher: LLMatcher, tokenizer: LLTokenizer) -> None:
    """Raises `InvalidRequestError` for a grammar that the limits stop soon. What the lexer finds
    out on the way serves the copies that follow answers."""
    for _ in range(_TRIAL_TOKENS):
        mask = matcher.compute_logit_bias()
        if matcher.is_error():
            raise _wrong(_words(matcher.get_error()))
        allowed = (token_id for token_id, byte in enumerate(mask) if byte)
        some = list(islice(allowed, _TRIAL_TOKENS))
        written = (i for i in some if tokenizer.decode_bytes([i]).strip())
        matcher.consume_token(next(written, some[0]))
        if matcher.is_error():
            raise _wrong(_words(matcher.get_error()))
        if matcher.is_stopped():
            return


def _source(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            source = json_schema_source(grammar.text)
            require_finite(grammar.text)
            return source
        case GrammarKind.REGEX:
            return str(LLMatcher.grammar_from_regex(grammar.text))
        case GrammarKind.LARK:
            return str(LLMatcher.grammar_from_lark(grammar.text))


def model_tokenizer(tokenizer: PreTrainedTokenizerBase, model: ModelInfo) -> LLTokenizer:
    """A model's own tokenizer as llguidance reads it. Takes a second or two. Raises
    `InvalidRequestError`."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise _wrong(f"the model's tokenizer ({type(tokenizer).__name__}) cannot be used with it")
    size, ends = max(model.vocab_size, len(tokenizer)), list(model.eos_token_ids) or None
    try:
        made = from_tokenizer(tokenizer, size, eos_token=ends)
    except ValueError as error:
        raise _wrong(f"the model's tokenizer cannot be used: {_words(str(error))}") from None
    if made.decode_bytes(made.tokenize_str(_PROBE)) != _PROBE.encode():
        # What a grammar leaves no choice in is taken for other tokens than are drawn.
        raise _wrong(
            "the model's tokenizer cannot be used: it adds to a text, as a space before it"
        )
    return made


def _words(text: str) -> str:
    """An error of llguidance in one short line."""
    line = " ".join(text.split("<state>")[0].removesuffix("<non-verbose/>").split())
    return line if len(line) <= _ERROR_CHARS else f"{line[:_ERROR_CHARS]}…"


def _wrong(text: str) -> InvalidRequestError:
    return InvalidRequestError(f"structured output: {text}", param="response_format")
