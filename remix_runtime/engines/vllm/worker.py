"""Methods that are mixed into vLLM's worker class, for calls of ours. No import of vLLM: the
methods see the worker as `self`."""

from __future__ import annotations

from typing import Any

from remix_runtime.engines.vllm.tokens import StepTokens


class WorkerExtension:
    """Results go through vLLM's serialisation: plain Python values only."""

    model_runner: Any

    def remix_record_routes(self, lora_id: int) -> None:
        """Keeps the routes of the tokens of one adapter from now on."""
        for step in _steps(self):
            step.record(lora_id)

    def remix_take_routes(self) -> dict[str, list[list[int]]]:
        """Module name to one list of experts per token, of this worker's layers; ends the
        recording."""
        routes: dict[str, list[list[int]]] = {}
        for step in _steps(self):
            routes |= step.take_routes()
        return routes

    def remix_expert_load(self) -> dict[int, dict[str, list[int]]]:
        """How often each expert was activated in the counted steps since the last call: by LoRA id
        and module name."""
        load: dict[int, dict[str, list[int]]] = {}
        for step in _steps(self):
            for lora_id, modules in step.take_load().items():
                load.setdefault(lora_id, {}).update(modules)
        return load


def _steps(worker: WorkerExtension) -> list[StepTokens]:
    manager = worker.model_runner.lora_manager._adapter_manager
    return [wrapper.remix_step for wrapper in manager.punica_wrapper_mapping.values()]
