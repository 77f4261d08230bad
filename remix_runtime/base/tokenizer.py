"""Loads a base's tokenizer and tries it, and its chat template, before anything depends on them."""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from remix_runtime.base.config import read_config, vocab_size
from remix_runtime.base.folder import find_base, one_line, read_json, wrong
from remix_runtime.base.quiet import quiet
from remix_runtime.base.template import render
from remix_runtime.errors import ChatTemplateError

_TOKENIZER = "tokenizer.json"
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PROBE = "Hello"

_MEDIA = ("image_token", "video_token", "audio_token")
"""Placeholders that a text model of a larger family has no rows for, as Gemma 3 1B: none is part of
a text, and who writes one in a request gets an error for its id."""


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, in the local cache at least, whose tokens all have a row in the
    embedding. No code of the model's author is run. Raises `ConfigError`."""
    folder = find_base(base)
    rows = vocab_size(folder, read_config(folder))
    for name in _SETTINGS:
        if (folder / name).exists():
            read_json(folder / name)
    file = folder / _TOKENIZER
    if not file.exists():
        file = folder  # older tokenizers have other files, each class its own
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            works = bool(tokenizer.encode(_PROBE, add_special_tokens=False))
            media = {getattr(tokenizer, name, None) for name in _MEDIA}
            tokens = {id: token for token, id in tokenizer.get_vocab().items()}
    except Exception as error:  # which depends on the tokenizer's type and on what is wrong
        raise wrong(file, f"no usable tokenizer: {one_line(error)}") from None
    if not works:
        raise wrong(file, f"no usable tokenizer: found no token for {_PROBE!r}")
    beyond = sorted(id for id, token in tokens.items() if id >= rows and token not in media)
    if beyond:
        raise wrong(
            file,
            f"the tokenizer has {beyond[-1] + 1} tokens, up to {tokens[beyond[-1]]!r}; expected "
            f"at most {rows}, the rows of the embedding",
        )
    if tokenizer.chat_template:
        _try_template(folder, tokenizer)
    return tokenizer


def _try_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ConfigError` for a template that fails on one user message. It may refuse it."""
    try:
        render(tokenizer, [{"role": "user", "content": _PROBE}], add_generation_prompt=True)
    except ChatTemplateError as error:
        cause = error.__cause__
        if not isinstance(cause, TemplateError) or isinstance(cause, TemplateSyntaxError):
            raise wrong(folder, f"the chat template fails: {error}") from None
