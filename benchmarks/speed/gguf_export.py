"""Writes a Llama-architecture model folder as one float32 GGUF file, for the llama.cpp peer.

The same weights in llama.cpp's names and order; nothing is quantised. Only what Llama models
need is written; another architecture is refused, and the bench then leaves llama.cpp out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from remix_runtime.errors import ConfigError

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_TOKEN_NORMAL, _TOKEN_CONTROL = 1, 3


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Llama tensor. Raises `ConfigError` for one it does not know."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    head, _, rest = name.removeprefix("model.layers.").partition(".")
    module = rest.removesuffix(".weight")
    if not name.startswith("model.layers.") or module not in _LAYER_NAMES:
        raise ConfigError(
            f"tensor {name!r}: no GGUF name is known; expected a Llama model's tensor"
        )
    return f"blk.{head}.{_LAYER_NAMES[module]}.weight"


def interleave_rotary(weight_OD: Any, num_heads: int) -> Any:
    """Rows of a q or k projection from [first half | second half] of each head to pairs.

    transformers rotates element i with i + d/2, llama.cpp's Llama rotates neighbours.
    """
    pairs = weight_OD.reshape(num_heads, 2, -1, weight_OD.shape[1]).swapaxes(1, 2)
    return pairs.reshape(weight_OD.shape)


def export_gguf(base: Path, path: Path) -> None:
    """Writes the model of folder `base` to `path` in float32. Raises `ConfigError`."""
    import gguf

    config = json.loads((base / "config.json").read_text())
    if config.get("model_type") != "llama":
        raise ConfigError(f"model_type: found {config.get('model_type')!r}, expected 'llama'")
    writer = gguf.GGUFWriter(path, "llama")
    _add_config(writer, config)
    _add_tokenizer(writer, base, config)
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                array = tensors.get_tensor(name).to(torch.float32).numpy()
                projection = name.split(".")[-2]
                if projection in heads:
                    array = interleave_rotary(array, heads[projection])
                writer.add_tensor(gguf_name(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_config(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise ConfigError(f"rope_type: found {rope['rope_type']!r}, expected 'default'")
    num_heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _add_tokenizer(writer: Any, base: Path, config: dict[str, Any]) -> None:
    """The byte-level BPE vocabulary; the bench sends token ids, so only the texts matter."""
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    texts = {i: text for text, i in tokenizer["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    texts |= special
    ids = range(config["vocab_size"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([texts.get(i, f"[unused{i}]") for i in ids])
    writer.add_token_types([_TOKEN_CONTROL if i in special else _TOKEN_NORMAL for i in ids])
    writer.add_token_merges(merges)
    eos = config["eos_token_id"]
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    writer.add_add_bos_token(False)
