"""transformers `generate` on the left-padded batch; with PEFT LoRA adapters mixed in on request."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.speed.systems.protocol import Run, Workload
from remix_runtime.base.model import load_model


class GenerateSystem:
    """`lora_rank` 0 is the plain model; else `num_adapters` PEFT LoRAs of that rank are added."""

    def __init__(
        self,
        model: str,
        threads: int,
        lora_rank: int = 0,
        num_adapters: int = 0,
        target_modules: tuple[str, ...] = (),
    ) -> None:
        torch.set_num_threads(threads)
        self._model = load_model(model)
        pad = self._model.generation_config.pad_token_id
        self._pad_id = 0 if pad is None else pad
        self.about: dict[str, Any] = {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "settings": f"sdpa, float32, left-padded batch, {self._model.config.model_type}",
        }
        if not lora_rank:
            return
        import peft

        config = peft.LoraConfig(
            r=lora_rank, target_modules=list(target_modules), init_lora_weights=False
        )
        self._model = peft.get_peft_model(self._model, config, adapter_name="adapter-0").eval()
        for i in range(1, num_adapters):
            self._model.add_adapter(f"adapter-{i}", config)
        self.about["version"] += f", peft {peft.__version__}"
        self.about["settings"] += f"; {num_adapters} LoRAs of rank {lora_rank} by adapter_names"

    def run(self, workload: Workload) -> Run:
        width = max(len(p) for p in workload.prompts)
        ids_BT = torch.full((len(workload.prompts), width), self._pad_id)
        mask_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(workload.prompts):
            ids_BT[row, width - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, width - len(prompt) :] = 1
        clock = _StepClock()
        names = ["__base__" if i is None else f"adapter-{i}" for i in workload.adapters]
        named = {"adapter_names": names} if set(workload.adapters) != {None} else {}
        start = time.perf_counter()
        with torch.inference_mode():
            out_BT = self._model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                do_sample=False,
                min_new_tokens=workload.new_tokens,
                max_new_tokens=workload.new_tokens,
                pad_token_id=self._pad_id,
                stopping_criteria=StoppingCriteriaList([clock]),
                **named,
            )
        arrivals = [t - start for t in clock.times]
        return Run(arrivals=[arrivals] * len(workload.prompts), tokens=out_BT[:, width:].tolist())


class _StepClock(StoppingCriteria):  # type: ignore[misc]
    """Never stops; `generate` calls it once after each new token of the batch."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)
