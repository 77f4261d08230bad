"""Writes a folder of a Llama or Qwen2 model as one GGUF file, for the llama.cpp peer.

The same weights in llama.cpp's names and order, in float32, bfloat16 or llama.cpp's 8 bits (Q8_0).
Only what these models need is written; another architecture is refused, and the bench then leaves
llama.cpp out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open

from remix_runtime.errors import ConfigError

GgufType = Literal["F32", "BF16", "Q8_0"]

_TOKENIZERS = {"llama": "smollm", "qwen2": "qwen2"}
"""The model types that are known, and how llama.cpp's tokenizer splits their texts."""

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
    """llama.cpp's name of a tensor. Raises `ConfigError` for one it does not know."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    head, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    if not name.startswith("model.layers.") or module not in _LAYER_NAMES:
        raise ConfigError(
            f"tensor {name!r}: no GGUF name is known; expected a Llama model's tensor"
        )
    return f"blk.{head}.{_LAYER_NAMES[module]}.{kind}"


def interleave_rotary(weight_OD: Any, num_heads: int) -> Any:
    """Rows of a q or k projection from [first half | second half] of each head to pairs.

    transformers rotates element i with i + d/2, llama.cpp's Llama rotates neighbours.
    """
    pairs = weight_OD.reshape(num_heads, 2, -1, weight_OD.shape[1]).swapaxes(1, 2)
    return pairs.reshape(weight_OD.shape)


def export_gguf(base: Path, path: Path, kind: GgufType) -> None:
    """Writes the model of folder `base` to `path`, its matrices in `kind`. Raises `ConfigError`."""
    import gguf

    config = json.loads((base / "config.json").read_text())
    model_type = config.get("model_type")
    if model_type not in _TOKENIZERS:
        expected = " or ".join(map(repr, _TOKENIZERS))
        raise ConfigError(f"model_type: found {model_type!r}, expected {expected}")
    writer = gguf.GGUFWriter(path, model_type)
    _add_config(writer, config, kind)
    _add_tokenizer(writer, base, config)
    # llama.cpp rotates neighbours in Llama, and halves, as transformers does, in Qwen2.
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    heads = heads if model_type == "llama" else {}
    as_type = gguf.GGMLQuantizationType[kind]
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                array = tensors.get_tensor(name).to(torch.float32).numpy()
                projection = name.split(".")[-2]
                if projection in heads:
                    array = interleave_rotary(array, heads[projection])
                array = np.ascontiguousarray(array)
                if array.ndim == 1 or kind == "F32":
                    writer.add_tensor(gguf_name(name), array)
                else:
                    packed = gguf.quants.quantize(array, as_type)
                    writer.add_tensor(gguf_name(name), packed, raw_dtype=as_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_config(writer: Any, config: dict[str, Any], kind: GgufType) -> None:
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
    name = "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"
    writer.add_file_type(gguf.LlamaFileType[name])


def _add_tokenizer(writer: Any, base: Path, config: dict[str, Any]) -> None:
    """The byte-level BPE vocabulary; the bench sends token ids, so only the texts matter."""
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    texts = {i: text for text, i in tokenizer["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    texts |= special
    ids = range(config["vocab_size"])
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_TOKENIZERS[config["model_type"]])
    writer.add_token_list([texts.get(i, f"[unused{i}]") for i in ids])
    writer.add_token_types([_TOKEN_CONTROL if i in special else _TOKEN_NORMAL for i in ids])
    writer.add_token_merges(merges)
    eos = config["eos_token_id"]
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    writer.add_add_bos_token(False)
