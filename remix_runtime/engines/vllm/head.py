"""The output head of vLLM beside LoRAs that do not adapt it.

vLLM adds zeros then, in the rows that are sampled. For a prompt's log-probabilities it is given
other rows, and on the CPU the difference ended the engine as soon as another request was in the
batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA


class Head(LogitsProcessorWithLoRA):
    def create_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        super().create_lora_weights(*args, **kwargs)
        self._adapted: set[int] = set()
        """Slots whose LoRA adapts the head."""

    def reset_lora(self, index: int) -> None:
        super().reset_lora(index)
        self._adapted.discard(index)

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        super().set_lora(index, lora_a, lora_b)
        self._adapted.add(index)

    def _get_logits(self, hidden_states: Tensor, lm_head: Any, *args: Any, **kwargs: Any) -> Any:
        if self._adapted:
            return super()._get_logits(hidden_states, lm_head, *args, **kwargs)
        head = getattr(lm_head, "base_layer", lm_head)
        return self.base_layer._get_logits(hidden_states, head, *args, **kwargs)
