"""Bases without weights worth anything: the shape of Llama-3-8B, and one for trying things out."""

from __future__ import annotations

from transformers import LlamaConfig

_COMMON = {"bos_token_id": 1, "architectures": ["LlamaForCausalLM"]}


def small(vocab_size: int = 32_000) -> LlamaConfig:
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    context = {"max_position_embeddings": 2048}
    return LlamaConfig(
        **_COMMON, **sizes, **heads, **context, vocab_size=vocab_size, initializer_range=0.06
    )


def llama_8b(*, layers: int = 32, vocab_size: int = 128_256) -> LlamaConfig:
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    context = {"max_position_embeddings": 8192}
    return LlamaConfig(**_COMMON, **sizes, **heads, **context, vocab_size=vocab_size)
