"""Small tokenizers of the families that language models use, and chat templates of their kinds.

All are trained on the same few lines, so that merges cross the borders of words and prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerFast

UNK, BOS, EOS, START, END = SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

_CORPUS = [
    "the cat(sat) on the mat. The north is cold, the south is hot; where is the wind?",
    "hello you, so long\n\nthe end (of it all)\n  indented  text\tand tabs",
    "<think>\nthe thought\n</think>\n\nthe answer is 42.",
    "user assistant system [INST] be brief [/INST] Today is Monday",
    'she said "hi" and that\'s it: naïve café, 1234567890',
] * 4

_PREFIX = "▁"


def _bpe(
    configure: Callable[[Tokenizer], None],
    *,
    byte_fallback: bool = False,
    alphabet: bool = False,
    unk: str | None = UNK,
) -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token=None if alphabet else unk, byte_fallback=byte_fallback))
    configure(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=760 if byte_fallback else 500,
        show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *(_BYTES if byte_fallback else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _byte_level(*, prefix: bool = False, words: bool = True) -> Tokenizer:
    def configure(tokenizer: Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=words)
        tokenizer.decoder = decoders.ByteLevel()

    return _bpe(configure, alphabet=True)


def _llama3() -> Tokenizer:
    def configure(tokenizer: Tokenizer) -> None:
        words = Regex(
            r"'(?:s|t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()

    return _bpe(configure, alphabet=True)


def _qwen() -> Tokenizer:
    tokenizer = _byte_level()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _spelled_out(*, strip: bool) -> decoders.Decoder:
    parts = [decoders.Replace(_PREFIX, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if strip else parts)


def _llama2(*, prefix: bool = True) -> Tokenizer:
    """The way of Llama 2 (a space before every piece of text) and, without the prefix, of Gemma."""

    def configure(tokenizer: Tokenizer) -> None:
        spaces = normalizers.Replace(" ", _PREFIX)
        tokenizer.normalizer = (
            normalizers.Sequence([normalizers.Prepend(_PREFIX), spaces]) if prefix else spaces
        )
        tokenizer.decoder = _spelled_out(strip=prefix)

    return _bpe(configure, byte_fallback=True)


def _metaspace(
    scheme: str, *, split: bool, byte_fallback: bool = True, unk: str | None = UNK
) -> Tokenizer:
    def configure(tokenizer: Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_PREFIX, scheme, split)
        if byte_fallback:
            tokenizer.decoder = _spelled_out(strip=scheme != "never")
        else:
            tokenizer.decoder = decoders.Metaspace(_PREFIX, scheme, split)

    return _bpe(configure, byte_fallback=byte_fallback, unk=unk)


def _unigram() -> Tokenizer:
    """The way of T5: white space is collapsed and stripped, so not every text can be written."""
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_PREFIX, "always", True)
    tokenizer.decoder = decoders.Metaspace(_PREFIX, "always", True)
    trainer = trainers.UnigramTrainer(
        vocab_size=120, show_progress=False, unk_token=UNK, special_tokens=list(SPECIAL_TOKENS)
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, show_progress=False, special_tokens=list(SPECIAL_TOKENS)
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


EXACT: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": _byte_level,
    "byte level, prefix space": lambda: _byte_level(prefix=True),
    "byte level, merges over words": lambda: _byte_level(words=False),
    "llama 3": _llama3,
    "llama 2": _llama2,
    "gemma": lambda: _llama2(prefix=False),
    "mistral": lambda: _metaspace("first", split=False),
    "metaspace, always": lambda: _metaspace("always", split=True),
    "metaspace, never": lambda: _metaspace("never", split=False),
}
"""Families that can write every text."""

LOSSY: dict[str, Callable[[], Tokenizer]] = {
    "qwen": _qwen,
    "t5": _unigram,
    "metaspace, no bytes": lambda: _metaspace("always", split=True, byte_fallback=False),
    "dropping": lambda: _metaspace("first", split=False, byte_fallback=False, unk=None),
    "wordpiece": _wordpiece,
}
"""Families that normalise, or have no token for some characters."""

FAMILIES = {**EXACT, **LOSSY}


@cache
def _trained(family: str) -> str:
    # The trainer takes bytes for special tokens, which nobody would get to read.
    trained = json.loads(FAMILIES[family]().to_str())
    trained["added_tokens"] = [t for t in trained["added_tokens"] if t["content"] not in _BYTES]
    return json.dumps(trained)


def tokenizer_of(
    family: str, template: str | None = None, *, bos: bool = False, marks: bool = False
) -> PreTrainedTokenizerFast:
    """A new tokenizer. With `bos` every text begins with a token; with `marks` `<think>` is one."""
    backend = Tokenizer.from_str(_trained(family))
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A",
            pair=f"{BOS} $A {BOS} $B",
            special_tokens=[(BOS, backend.token_to_id(BOS))],
        )
    if marks:
        backend.add_tokens([AddedToken(mark, normalized=False) for mark in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNK,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def _chatml(answer: str, *, generation: str = "", prologue: str = "") -> str:
    """`answer` renders the content of an answer, `generation` follows the header of a prompt."""
    return (
        "{%- set last = messages|length - 1 %}" + prologue + "{%- for m in messages %}"
        "{{- '<|im_start|>' + m.role + '\n' }}"
        "{%- if m.role == 'assistant' %}" + answer + "{%- else %}{{- m.content }}{%- endif %}"
        "{{- '<|im_end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n"
        + generation
        + "' }}{%- endif %}"
    )


_WITHOUT_THOUGHTS = "{{- m.content.split('</think>')[-1].lstrip('\n') }}"

TEMPLATES: dict[str, str] = {
    "plain": _chatml("{{- m.content }}"),
    "stripping": _chatml("{{- m.content|trim }}"),
    "dated": _chatml("{{- m.content }}", prologue="{{- 'Today is ' + strftime_now('%d %b %Y') }}"),
    "with its own bos": _chatml("{{- m.content }}", prologue="{{- bos_token }}"),
    "no system": _chatml(
        "{{- m.content }}",
        prologue="{%- if messages and messages[0].role == 'system' %}"
        "{{- raise_exception('System role not supported') }}{%- endif %}",
    ),
    "thinking in the prompt": _chatml(_WITHOUT_THOUGHTS, generation="<think>\\n"),
    "thinking in the answer": _chatml(
        "{%- if loop.index0 == last %}{{- '<think>\n' }}"
        "{%- if '</think>' in m.content %}"
        "{{- m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}{%- endif %}"
        "{{- '\n</think>\n\n' }}{%- endif %}" + _WITHOUT_THOUGHTS
    ),
    "thinking in both": _chatml(
        "{%- if loop.index0 == last %}{{- '<think>\n' }}"
        "{%- if '</think>' in m.content %}"
        "{{- m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}{%- endif %}"
        "{{- '\n</think>\n\n' }}{%- endif %}" + _WITHOUT_THOUGHTS,
        generation="<think>\\n",
    ),
    "no thinking": _chatml(_WITHOUT_THOUGHTS, generation="<think>\\n\\n</think>\\n\\n"),
    "llama 2": (
        "{%- for m in messages %}{%- set text = m.content.strip() %}"
        "{%- if m.role == 'assistant' %}{{- ' ' + text + ' ' + eos_token }}"
        "{%- else %}{{- bos_token + '[INST] ' + text + ' [/INST]' }}{%- endif %}{%- endfor %}"
    ),
    "without marks": (
        "{%- for m in messages %}{{- m.role + ': ' + m.content + '\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}"
    ),
}
"""Chat templates by kind, each like that of a known model; in ChatML where that is all the same."""
