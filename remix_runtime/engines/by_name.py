"""The engines that compute, by their names: how each is made, and the text of its base for where it
is somewhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llguidance import LLTokenizer

from remix_runtime.contracts import Engine, ModelInfo, Tokenizer
from remix_runtime.engines.config import FrontConfig
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.fake_config import FakeConfig
from remix_runtime.engines.vllm.config import VllmConfig

CONFIGS: Mapping[str, type[FrontConfig]] = {
    "embedded": EmbeddedConfig,
    "vllm": VllmConfig,
    "fake": FakeConfig,
}


def make(config: FrontConfig) -> Engine:
    if isinstance(config, EmbeddedConfig):
        from remix_runtime.engines.embedded import EmbeddedEngine

        return EmbeddedEngine(config)
    if isinstance(config, VllmConfig):
        from remix_runtime.engines.vllm.engine import VllmEngine

        return VllmEngine(config)
    from remix_runtime.engines.fake import FakeEngine

    assert isinstance(config, FakeConfig)
    return FakeEngine(config)


@dataclass(frozen=True, slots=True)
class Text:
    """The server's side of a base: no weights, only what text needs."""

    tokenizer: Tokenizer
    grammar_tokenizer: Callable[[ModelInfo], LLTokenizer]


def text_of(name: str, model: str | None) -> Text:
    """Raises `ConfigError` for a base that has no readable tokenizer."""
    if name == "fake":
        from remix_runtime.engines.fake_model import ByteTokenizer, byte_grammar_tokenizer

        return Text(ByteTokenizer(), lambda _: byte_grammar_tokenizer())
    from remix_runtime.engines.grammar import model_tokenizer
    from remix_runtime.engines.tokenizer import ModelTokenizer

    assert model is not None
    tokenizer = ModelTokenizer(model)
    return Text(tokenizer, lambda info: model_tokenizer(tokenizer.own, info))
