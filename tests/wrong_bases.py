"""Makes base folders that are not whole, or not themselves: each a small damage to a good one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

Damage = Callable[[Path], None]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def fields(file: str, **changes: Any) -> Damage:
    """Sets fields of a JSON file."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(found | changes))

    return damage


def config(**changes: Any) -> Damage:
    return fields("config.json", **changes)


def without(file: str, field: str) -> Damage:
    def damage(folder: Path) -> None:
        found = json.loads((folder / file).read_text())
        del found[field]
        (folder / file).write_text(json.dumps(found))

    return damage


def content(file: str, text: str | bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / file).write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def gone(file: str) -> Damage:
    return lambda folder: (folder / file).unlink()


def tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Damage:
    def damage(folder: Path) -> None:
        found = change(load_file(folder / WEIGHTS))
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def shortened(count: int) -> Damage:
    def damage(folder: Path) -> None:
        content(WEIGHTS, (folder / WEIGHTS).read_bytes()[:count])(folder)

    return damage


def all_of(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage


def sharded(folder: Path) -> None:
    """No damage: the same tensors in two files and an index."""
    with safe_open(folder / WEIGHTS, framework="pt") as opened:
        found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    (folder / WEIGHTS).unlink()
    weight_map = {name: SHARDS[at % 2] for at, name in enumerate(sorted(found))}
    for shard in SHARDS:
        part = {name: found[name] for name in found if weight_map[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def more_tokens(folder: Path) -> None:
    """40 added tokens, and no rows for them."""
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text())
    top = max(found["model"]["vocab"].values())
    last = dict(found["added_tokens"][-1])
    for number in range(40):
        found["added_tokens"].append(
            last
            | {"id": top + 1 + number, "content": f"<extra{number}>", "special": number % 2 == 0}
        )
    file.write_text(json.dumps(found))


def adapter(**changes: Any) -> Damage:
    """An `adapter_config.json` beside the model."""
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["lm_head"], "task_type": "CAUSAL_LM"}
    base = {"base_model_name_or_path": "other/base"}
    return content("adapter_config.json", json.dumps(lora | base | changes))


LLAMA = "model.layers.0.self_attn.q_proj.weight"
HEAD = "lm_head.weight"


def _one(name: str, change: Callable[[Tensor], Tensor]) -> Damage:
    return tensors(lambda found: found | {name: change(found[name]).contiguous()})


WRONG_MODELS: dict[str, tuple[Damage, str]] = {
    # tensors
    "missing head": (tensors(lambda t: {n: w for n, w in t.items() if n != HEAD}), HEAD),
    "missing embedding": (
        tensors(lambda t: {n: w for n, w in t.items() if "embed" not in n}),
        "model.embed_tokens.weight",
    ),
    "a layer too few": (config(num_hidden_layers=3), "model.layers.2.*8 more"),
    "a layer too many": (config(num_hidden_layers=1), "model.layers.1.*8 more.*no place"),
    "prefixed names": (tensors(lambda t: {f"x.{n}": w for n, w in t.items()}), "20 more"),
    "a value head": (
        tensors(lambda t: t | {"v_head.summary.weight": torch.zeros(1, 64)}),
        "v_head.summary.weight",
    ),
    "no tensors": (tensors(lambda _: {}), HEAD),
    "another shape": (_one(LLAMA, lambda w: w[:-1]), f"{LLAMA}.*95, 64.*96, 64"),
    "transposed": (_one(LLAMA, lambda w: w.T), f"{LLAMA}.*64, 96"),
    "integers": (_one(LLAMA, lambda w: w.to(torch.int8)), f"{LLAMA}.*I8.*F32"),
    "float8": (_one(LLAMA, lambda w: w.to(torch.float8_e4m3fn)), f"{LLAMA}.*F8_E4M3"),
    # files
    "truncated": (shortened(100_000), "model.safetensors"),
    "a header only": (shortened(1000), "model.safetensors"),
    "empty weights": (content(WEIGHTS, b""), "model.safetensors"),
    "text as weights": (content(WEIGHTS, "version https://git-lfs"), "model.safetensors"),
    "no weights": (gone(WEIGHTS), "model.safetensors"),
    "pickled weights": (
        all_of(gone(WEIGHTS), content("pytorch_model.bin", b"x")),
        "pytorch_model.bin.*safetensors",
    ),
    "a shard is absent": (all_of(sharded, gone(SHARDS[1])), SHARDS[1]),
    "a truncated shard": (all_of(sharded, content(SHARDS[1], b"12345678")), SHARDS[1]),
    "an index out of its folder": (
        all_of(sharded, fields(INDEX, weight_map={HEAD: "../" + SHARDS[0]})),
        "weight_map.*lm_head",
    ),
    "an empty index": (all_of(sharded, content(INDEX, "{}")), "weight_map"),
    "an index that is no JSON": (all_of(sharded, content(INDEX, "{")), "index.json"),
    "an index of a list": (all_of(sharded, fields(INDEX, weight_map=[1])), "weight_map"),
    # adapters
    "a LoRA beside": (adapter(), "adapter_config.json"),
    "a LoRA on the embedding beside": (adapter(target_modules=["embed_tokens"]), "adapter_config"),
    "a ReMix adapter beside": (adapter(peft_type="REMIX"), "adapter_config.json"),
    "a broken adapter beside": (content("adapter_config.json", "{"), "adapter_config.json"),
    "an adapter": (all_of(adapter(), gone("config.json")), "an adapter.*base is 'other/base'"),
    "a broken adapter": (
        all_of(content("adapter_config.json", "["), gone("config.json")),
        "an adapter",
    ),
    # config.json
    "no config": (gone("config.json"), "config.json"),
    "config is no JSON": (content("config.json", "{'a': 1}"), "config.json"),
    "config is binary": (content("config.json", b"\xff\xfe\x00"), "config.json"),
    "config is a list": (content("config.json", "[]"), "config.json.*object"),
    "config is nested too deeply": (content("config.json", "[" * 100_000), "config.json"),
    "config is empty": (content("config.json", "{}"), "model_type"),
    "no model type": (without("config.json", "model_type"), "model_type"),
    "unknown model type": (config(model_type="llama9"), "model_type.*llama9"),
    "model type is a list": (config(model_type=["llama"]), "model_type"),
    "remote code": (config(model_type="mine", auto_map={"AutoConfig": "m.C"}), "auto_map"),
    "an encoder-decoder": (config(model_type="t5"), "model_type.*encoder-decoder"),
    "an encoder-decoder by its field": (config(is_encoder_decoder=True), "encoder-decoder"),
    "an image model": (config(model_type="vit"), "model_type"),
    "a classifier": (config(architectures=["LlamaForSequenceClassification"]), "architectures"),
    "a masked model": (
        config(model_type="bert", architectures=["BertForMaskedLM"]),
        "architectures.*BertForMaskedLM",
    ),
    "architectures is a number": (config(architectures=7), "architectures"),
    "weights named by the config": (config(transformers_weights="a.safetensors"), "_weights"),
    "layers in words": (config(num_hidden_layers="two"), "num_hidden_layers"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers"),
    "layers without end": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "half a layer": (config(num_hidden_layers=1.5), "num_hidden_layers"),
    "width is null": (config(hidden_size=None), "hidden_size"),
    "width is a list": (config(hidden_size=[64]), "hidden_size"),
    "another width": (config(hidden_size=32), "config.json"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads"),
    "heads that do not divide": (config(num_attention_heads=5), "attention heads .5."),
    "more key heads": (config(num_key_value_heads=3), "k_proj"),
    "another inner width": (config(intermediate_size=100), "down_proj.*5 more.*96.*100"),
    "negative vocabulary": (config(vocab_size=-5), "vocab_size"),
    "vocabulary is null": (config(vocab_size=None), "vocab_size"),
    "another vocabulary": (config(vocab_size=300), "lm_head.*293.*300"),
    "a vocabulary without end": (config(vocab_size=10**10), "293.*10000000000"),
    "no context": (config(max_position_embeddings=0), "max_position_embeddings"),
    "context is null": (config(max_position_embeddings=None), "max_position_embeddings"),
    "unknown activation": (config(hidden_act="nope"), "nope"),
    "unknown rope": (
        config(rope_parameters={"rope_type": "nope", "rope_theta": 1.0}),
        "config.json",
    ),
    "rope is a number": (config(rope_parameters=3), "config.json"),
    "unknown dtype": (config(dtype="banana"), "banana"),
    **{
        f"quantized by {method}": (
            config(quantization_config={"quant_method": method, "bits": 4}),
            f"quantization_config.*{method}",
        )
        for method in ("bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "torchao", "new")
    },
    "quantized by nothing": (config(quantization_config=4), "quantization_config"),
    # generation_config.json and token ids
    "an end beyond the embedding": (config(eos_token_id=293), "eos_token_id.*293"),
    "a negative end": (config(eos_token_id=-1), "eos_token_id"),
    "an end in words": (config(eos_token_id="</s>"), "eos_token_id"),
    "padding beyond the embedding": (config(pad_token_id=9999), "pad_token_id"),
    "a beginning beyond the embedding": (config(bos_token_id=9999), "bos_token_id"),
    "generation is no JSON": (content("generation_config.json", "{"), "generation_config.json"),
    "generation is a list": (content("generation_config.json", "[]"), "generation_config.json"),
    "generation ends beyond the embedding": (
        fields("generation_config.json", eos_token_id=[258, 293]),
        "generation_config.json.*eos_token_id.*293",
    ),
    "generation ends in an object": (
        fields("generation_config.json", eos_token_id={"a": 1}),
        "generation_config.json.*eos_token_id",
    ),
    "generation ends in true": (
        fields("generation_config.json", eos_token_id=True),
        "generation_config.json.*eos_token_id",
    ),
}
"""Faults that loading the model finds: what is wrong, and a pattern that the error names."""


def template(text: str) -> Damage:
    return content("chat_template.jinja", text)


WRONG_TOKENIZERS: dict[str, tuple[Damage, str]] = {
    "more tokens than rows": (more_tokens, "333 tokens.*293"),
    "an empty tokenizer": (content("tokenizer.json", "{}"), "tokenizer.json"),
    "an empty tokenizer file": (content("tokenizer.json", ""), "tokenizer.json"),
    "a tokenizer of a list": (content("tokenizer.json", "[]"), "tokenizer.json"),
    "a tokenizer without vocabulary": (
        fields(
            "tokenizer.json",
            model={"type": "BPE", "vocab": {}, "merges": []},
            added_tokens=[],
        ),
        "tokenizer.json",
    ),
    "a tokenizer of an unknown kind": (fields("tokenizer.json", model={"type": "X"}), "tokenizer"),
    "an unknown pre-tokenizer": (
        fields("tokenizer.json", pre_tokenizer={"type": "X"}),
        "tokenizer.json",
    ),
    "no tokenizer": (
        all_of(gone("tokenizer.json"), gone("tokenizer_config.json")),
        "tokenizer",
    ),
    "a tokenizer's settings alone": (gone("tokenizer.json"), "tokenizer"),
    "settings of a list": (content("tokenizer_config.json", "[]"), "tokenizer_config.json"),
    "settings that are no JSON": (content("tokenizer_config.json", "{"), "tokenizer_config.json"),
    "special tokens of a list": (content("special_tokens_map.json", "[]"), "special_tokens_map"),
    "an end token that is a number": (fields("tokenizer_config.json", eos_token=5), "tokenizer"),
    "a tokenizer with code": (
        fields(
            "tokenizer_config.json",
            tokenizer_class="Nope",
            auto_map={"AutoTokenizer": ["mine.Tokenizer", None]},
        ),
        "tokenizer",
    ),
    "a new end token": (fields("tokenizer_config.json", eos_token="<new>"), "294 tokens.*<new>"),
    "template of bad syntax": (template("{% for %}"), "template"),
    "template with an unknown tag": (template("{% nope %}"), "template.*nope"),
    "template that divides by zero": (template("{{ 1 / 0 }}"), "template.*ZeroDivisionError"),
    "template that adds types": (template("{{ 1 + 'a' }}"), "template.*TypeError"),
    "template without end": (template("{% for i in range(10**9) %}{% endfor %}"), "template"),
    "template that calls itself": (
        template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        "template",
    ),
    "template that is a number": (
        all_of(gone("chat_template.jinja"), fields("tokenizer_config.json", chat_template=5)),
        "template",
    ),
}
"""Faults that loading the tokenizer finds."""
