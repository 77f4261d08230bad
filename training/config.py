"""One training run as a YAML file: every setting, its default and its limits.

The defaults are the paper's where it gives them. A wrong setting is a `ConfigError` of one line
that names the field, what was found and what was expected.
"""

from __future__ import annotations

import difflib
import json
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from remix_runtime.adapter.checkpoint.defaults import canonical_defaults, parse_defaults
from remix_runtime.adapter.checkpoint.types import AdapterConfig, Scaling, routing_weight
from remix_runtime.contracts import AdapterDefaults
from remix_runtime.errors import CheckpointFormatError, ConfigError
from remix_runtime.yaml_file import read_mapping
from training.losses import Credit
from training.sources import placed
from training.targets import as_targets
from training.trackers import TrackerName

_SHORT = reprlib.Repr()
"""Of what was found: YAML's links make values that would fill the memory in full."""
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number")
    return value


def _usable(value: Path | str) -> Path | str:
    text = str(value)
    if "\0" in text or not text.isprintable():
        raise ValueError("text without control characters")
    return value


def _as_defaults(value: Any) -> AdapterDefaults:
    if isinstance(value, AdapterDefaults):
        return value
    if not isinstance(value, dict):
        raise ValueError("fields of the API")
    try:
        return parse_defaults(json.dumps(value).encode())
    except (CheckpointFormatError, TypeError, ValueError) as error:
        raise ValueError(f"fields of the API: {error}") from None


# YAML has no paths or tuples and reads 3e-2 as a string: these convert, the rest is strict.
Rate = Annotated[
    float, Field(strict=False, ge=0, allow_inf_nan=False), BeforeValidator(_no_boolean)
]
File = Annotated[Path, Field(strict=False), AfterValidator(_usable)]
Name = Annotated[str, Field(min_length=1), AfterValidator(_usable)]
Column = Literal["prompt", "completion", "messages", "conversations", "system", "text", "tools"]
Quantization = Literal["none", "bnb-4bit", "bnb-8bit", "torchao-8bit"]
BaseType = Literal["auto", "bfloat16", "float32"]
Targets = Annotated[
    tuple[Name, ...], Field(strict=False, min_length=1), BeforeValidator(as_targets)
]
Count = Annotated[int, Field(ge=1)]
Defaults = Annotated[
    AdapterDefaults,
    BeforeValidator(_as_defaults),
    PlainSerializer(lambda defaults: json.loads(canonical_defaults(defaults) or b"{}")),
]


class TrainConfig(BaseModel):
    """All settings of a run. Paths in a file are relative to that file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    base: Name
    """Folder or hub id of the frozen base model."""
    base_name: Annotated[str, Field(min_length=1)] | None = None
    """What the adapter calls its base in adapter_config.json. Default: `base`."""
    data: File
    """JSONL, or what `datasets` reads: Parquet, CSV, JSON, Arrow, folders of them, a name on the
    hub. Rows have `prompt` and `completion`, chat `messages`, or `text` alone; TRL's and ShareGPT's
    shapes of them too (`training/shapes.py`)."""
    eval_data: File | None = None
    """Held-out rows of the same form; their loss is logged while training."""
    split: Name | None = None
    """Which part of `data`, as `datasets` says it: `train`, `train[:90%]`. None: `train`."""
    eval_split: Name | None = None
    """Which part of `eval_data`, or of `data` where there is no `eval_data`."""
    subset: Name | None = None
    """Which of the data sets that a name on the hub stands for: `main`."""
    columns: dict[Column, Name] = {}
    """Names of a row's fields in the files, where they are others: `prompt: question`."""
    output: File
    """Folder of the run: state, logs, plots, and the trained adapter in `adapter/`."""

    method: Literal["remix", "lora", "softmax"] = "remix"
    """`lora`: one LoRA of rank top_k · r with the same ω. `softmax`: top-k experts weighted by
    a softmax router that learns by back-propagation; trains and logs but cannot be served."""
    credit: Credit = "causal"
    """`causal` charges a selection with the loss-to-go, `sequence` (the paper) with the whole."""
    router: Literal["rloo", "random"] = "rloo"
    """`rloo`, or `random` for the ablation: routers keep their random initial weights, and the
    experts are trained as usual."""
    selections: Annotated[int, Field(ge=2, le=4096)] = 4
    """M: selections drawn for each example in a step."""

    num_experts: Count = 8
    """n: experts of each adapted layer."""
    top_k: Count = 4
    """k: experts that a token activates."""
    r: Count = 8
    """LoRA rank of an expert."""
    scaling: Scaling = "rslora"
    """ω = 2/√(k·r) (`rslora`) or 2/(k·r) (`lora`)."""
    target_modules: Targets = ("gate_proj", "up_proj", "down_proj")
    """Suffixes of module names, as in PEFT: `gate_proj` or `layers.20.mlp.gate_proj`. Or text:
    `all-linear`, which leaves the output head out, or a pattern for whole names."""

    steps: Count = 300
    """Number of updates of the weights."""
    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Times that the data are gone through, in the place of `steps`."""
    batch_size: Count = 4
    """Examples in one pass, which runs batch_size · selections sequences."""
    gradient_accumulation: Count = 1
    """Passes per step."""
    expert_learning_rate: Rate = 3e-3
    """AdamW's rate for A and B."""
    router_logits_per_step: Rate = 1.0
    """How far a step may move a router's logits. Each router has the AdamW rate that this comes to
    at the size of its layer's inputs, which the first step measures."""
    router_learning_rate: Rate | None = None
    """One AdamW rate for all routers, in the place of `router_logits_per_step`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How both rates fall after the warm-up, to 0 at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    """Steps over which both rates rise."""
    weight_decay: Rate = 0.0
    """AdamW's decoupled decay."""
    max_grad_norm: Rate = 1.0
    """Largest gradient norm, of experts and of routers apart; 0 clips nothing."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """The most tokens of a row, prompt and completion together, within the base's context. None:
    512, or the whole context where that is less."""
    too_long: Literal["refuse", "truncate"] = "refuse"
    """A longer row stops the run, or loses its end (the number of such rows is printed)."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Seed of initial weights, data order and selections."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is CUDA where there is one."""
    base_dtype: BaseType = "auto"
    """Type of the frozen base and of the products with it and with the experts, whose sums are
    float32 in any case, as are adapters, routers and optimizer. `auto` is float32 on the CPU. On
    CUDA it is bfloat16, but for a base that is stored in float32."""
    base_quantization: Quantization = "none"
    """Quantize the frozen base's linears when it is loaded, by bitsandbytes (NF4 with double
    quantization, LLM.int8) or torchao (8-bit weights); embedding and head stay as they are. The
    adapter is trained for that base, and served on the plain one."""
    shard_base: bool = False
    """Divide the frozen base over the processes of a run, which gather a block when they run it:
    for a base that is larger than a device. The same bits."""
    packing: bool = False
    """Put the rows of a pass side by side in rows of at most `max_length` tokens, each with
    attention to itself alone, and compute no padding."""
    gradient_checkpointing: bool = False
    """Compute the activations of a block again for its gradients, rather than keep them: a third
    more time, much less memory, the same bits."""
    cache_trunk: bool = False
    """Keep on disk what the blocks below the first adapted one compute for each row, in `trunk/` of
    the output folder until the run ends: tokens · width · 2 or 4 bytes. Later epochs begin
    there."""
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """CPU threads; runs are bit-identical at a fixed number. None: torch's own choice."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the tensors that are written; they are trained in float32. bfloat16 halves the file
    and what the serving kernels read for each token. The parity file is recorded after the
    rounding."""
    defaults: Defaults = AdapterDefaults()
    """What a request for the adapter has where it says nothing else, as `temperature` or `stop`;
    written beside it as `defaults.json`. With a `chat_template` rows are trained in that one."""
    report_to: Annotated[tuple[TrackerName, ...], Field(strict=False)] = ()
    """Trackers that get the metrics too, each with its own settings from the environment."""
    checkpoint_every: Count = 100
    """Steps between saved training states."""
    eval_every: Count = 50
    """Steps between held-out losses, when there are held-out rows."""
    keep: Literal["last", "best"] = "last"
    """Whose weights the adapter gets: those of the last step, or of the lowest held-out loss."""
    patience: Count | None = None
    """End the run when so many held-out losses in a row are not the lowest yet."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k: found {self.top_k}, expected at most num_experts = {self.num_experts}"
            )
        if self.method != "remix":
            ignored = {"credit", "router", "selections"} & self.model_fields_set
            if ignored:
                raise ValueError(
                    f"{min(ignored)}: found with method {self.method}, "
                    "expected only with method remix"
                )
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("epochs: found beside steps, expected one of them")
        both = {"router_logits_per_step", "router_learning_rate"} & self.model_fields_set
        if len(both) == 2 and self.router_learning_rate is not None:
            raise ValueError(
                "router_learning_rate: found beside router_logits_per_step, expected one of them"
            )
        if self.eval_data is None and self.eval_split is None:
            for name, found in (("keep", self.keep == "best"), ("patience", self.patience)):
                if found:
                    raise ValueError(
                        f"{name}: found without held-out rows, expected eval_data or eval_split"
                    )
        if self.shard_base and self.base_quantization != "none":
            raise ValueError(
                f"base_quantization: found {self.base_quantization} beside shard_base, expected "
                "one of them"
            )
        if self.expert_learning_rate == 0:
            raise ValueError("expert_learning_rate: found 0, expected a positive number")
        return self

    @property
    def copies(self) -> int:
        """How often the model sees a row in a pass."""
        return self.selections if self.method == "remix" else 1

    @property
    def packed_width(self) -> int | None:
        """The most tokens of a packed row; None where rows are not packed."""
        return self.max_length if self.packing else None

    @property
    def adapter(self) -> AdapterConfig:
        """The adapter's configuration, as `attach` builds it and the checkpoint states it. A plain
        LoRA is one expert that is always on."""
        lora = self.method == "lora"
        return AdapterConfig(
            base_model_name_or_path=self.base_name or self.base,
            num_experts=1 if lora else self.num_experts,
            top_k=1 if lora else self.top_k,
            r=self.top_k * self.r if lora else self.r,
            routing_weight=routing_weight(self.scaling, top_k=self.top_k, r=self.r),
            target_modules=self.target_modules,
        )


def load_config(path: Path) -> TrainConfig:
    """Reads and validates a YAML file. Raises `ConfigError`."""
    found = read_mapping(path, expected="settings")
    config = parse_config(found, where=f"{path}: ")
    here = path.parent
    moved = {"data": placed(here, config.data), "output": here / config.output}
    if config.eval_data is not None:
        moved["eval_data"] = placed(here, config.eval_data)
    base = here / config.base
    # Resolved: a run is the same one from whatever folder it is started.
    resolved = str(base.resolve()) if base.is_dir() else config.base
    return config.model_copy(update={**moved, "base": resolved})


def parse_config(settings: dict[str, Any], *, where: str = "") -> TrainConfig:
    """Validates a mapping of settings. Raises `ConfigError` that begins with `where`."""
    known = TrainConfig.model_fields
    for key in settings:
        if key not in known:
            shown = _SHORT.repr(key)
            near = difflib.get_close_matches(shown, known, n=1, cutoff=0)
            raise ConfigError(f"{where}unknown setting {shown}; the nearest is {near[0]!r}")
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:
            raise ConfigError(where + first["msg"].removeprefix("Value error, ")) from None
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise ConfigError(f"{where}{field}: found nothing, expected a value") from None
        found = _SHORT.repr(first["input"])
        expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise ConfigError(f"{where}{field}: found {found}, expected {expected}") from None
