"""Tiny random models of the tested families, a tokenizer for them, and strong random adapters.

Everything is a pure function of its arguments: the same seed gives the same weights everywhere.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from remix_runtime.adapter.checkpoint.layouts import remix_tensors
from remix_runtime.adapter.checkpoint.reader import adapter_digest
from remix_runtime.adapter.checkpoint.types import (
    AdapterConfig,
    Checkpoint,
    LayerWeights,
    Scaling,
    routing_weight,
)
from remix_runtime.adapter.layers import base_shapes, target_shapes

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3")
"""One model type each; `tiny_model` also knows "gemma2", whose logits are soft-capped, and
"llama-32", which is llama with heads that vLLM takes on the CPU."""

MLP = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")

# Named so that the tokenizer classes of all families add no token of their own.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PAD_ID, START_ID, EOS_ID = 256, 257, 258
_LETTERS = "thheinerannreonatendtiesorofedisitalarstngsehaasouiolevecomedehiriro"
_MERGES = tuple(dict.fromkeys(_LETTERS[i : i + 2] for i in range(0, len(_LETTERS), 2)))
VOCAB_SIZE = 256 + len(SPECIAL_TOKENS) + len(_MERGES)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The initializer keeps activations near unit size at width 64, so that logits are far apart.
_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
    "pad_token_id": PAD_ID,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
    "tie_word_embeddings": False,
}


def tiny_config(family: str) -> PretrainedConfig:
    """Width 64, two layers, 4 query and 2 key heads; windows of 12 where the family has them."""
    match family:
        case "llama":
            return LlamaConfig(**_COMMON)
        case "llama-32":  # heads that vLLM's attention on the CPU has a kernel for
            return LlamaConfig(**{**_COMMON, "head_dim": 32})
        case "qwen2":  # no head_dim of its own; biases on q, k and v
            return Qwen2Config(**{k: v for k, v in _COMMON.items() if k != "head_dim"})
        case "qwen3":  # norms on q and k
            return Qwen3Config(**_COMMON)
        case "mistral":
            return MistralConfig(**_COMMON, sliding_window=12)
        case "gemma2":
            return Gemma2Config(**_COMMON, sliding_window=12, query_pre_attn_scalar=24)
        case "gemma3":
            layer_types = ["sliding_attention", "full_attention"]
            return Gemma3TextConfig(
                **_COMMON, sliding_window=12, query_pre_attn_scalar=24, layer_types=layer_types
            )
    raise ValueError(f"unknown family {family!r}")


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random float32 model in eval mode; norms and biases are random too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE: 256 bytes, three special tokens, some two-letter merges; a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *SPECIAL_TOKENS, *_MERGES]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[(m[0], m[1]) for m in _MERGES]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[0],
        eos_token=SPECIAL_TOKENS[2],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_tiny_base(
    folder: Path, family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """`tiny_model` and its tokenizer as a Hugging Face folder, with weights in `dtype`. Returns
    `folder`."""
    tiny_model(family, seed).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def random_checkpoint(
    model: nn.Module,
    *,
    n: int = 4,
    k: int = 2,
    r: int = 4,
    target_modules: tuple[str, ...] = MLP,
    seed: int = 0,
    strength: float = 1.0,
    scaling: Scaling = "rslora",
) -> Checkpoint:
    """A random adapter, B included: at strength 1 its output is about as large as W x.

    The digest is the one that `write_checkpoint` would return.
    """
    generator = torch.Generator().manual_seed(seed)
    config = AdapterConfig(
        base_model_name_or_path="tiny",
        num_experts=n,
        top_k=k,
        r=r,
        routing_weight=routing_weight(scaling, top_k=k, r=r),
        target_modules=tuple(sorted(target_modules)),
    )
    # Each expert adds variance |B|² r |A|² |x|²; k of them, times ω, should reach that of W x.
    b_scale = strength / (config.routing_weight * (k * r) ** 0.5)
    layers: dict[str, LayerWeights] = {}
    for name, (width_o, width_d) in target_shapes(base_shapes(model), target_modules).items():
        layers[name] = LayerWeights(
            a_nrD=torch.randn(n, r, width_d, generator=generator) / width_d**0.5,
            b_nOr=torch.randn(n, width_o, r, generator=generator) * b_scale,
            router_nD=torch.randn(n, width_d, generator=generator) / width_d**0.5,
        )
    tensors = remix_tensors(layers)
    return Checkpoint(
        config=config,
        layers=layers,
        mixtures=dict.fromkeys(layers, config),
        digest=adapter_digest(config, save(tensors, metadata={"format": "pt"})),
        num_bytes=sum(t.numel() * t.element_size() for t in tensors.values()),
    )
