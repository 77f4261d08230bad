"""The training loop: one step, learning rates, saving and resuming.

A step is a pure function of the state before it, the settings and the data, so a run that was
killed and resumed ends with the same bits (on the CPU, at a fixed number of threads).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remix_runtime.errors import ConfigError, TrainingError
from training.best import Best
from training.config import TrainConfig
from training.data import BatchOrder, collate, sequences_of
from training.encoding import Example
from training.held_out import held_out_losses
from training.objective import RoutingStats, attach_method, pass_loss
from training.packing import require_packable
from training.ranks import ALONE, Ranks
from training.recompute import recompute_blocks
from training.router_rates import InputSizes
from training.seeds import generator
from training.sharding import is_sharded
from training.state import drop_states, load_state, save_state
from training.trunk import Trunk

# Settings that a resumed run may change: where things lie (what they hold may not change, see
# `identity.py`), what is written at the end, how long and how fast. The bits of the end are those
# of an uninterrupted run only when the last two kinds stay as they were.
NOT_THE_RUN = {
    "base",
    "data",
    "eval_data",
    "split",  # what it is of has a digest, as the rest of the data
    "eval_split",
    "subset",
    "output",
    "base_name",
    "dtype",
    "device",
    "threads",
    "gradient_checkpointing",
    "shard_base",
    "base_dtype",  # stands there as the type that it came to
    "report_to",
    "checkpoint_every",
    "eval_every",
    "keep",
    "patience",
    "steps",
    "epochs",  # as the steps that they come to
    "expert_learning_rate",
    "router_logits_per_step",
    "router_learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Report of one step. Values are means over its passes."""

    step: int
    """Number of steps done, this one included."""
    loss: float
    loss_spread: float
    """Standard deviation of the loss over the M selections of an example; 0 for baselines."""
    routing: RoutingStats
    expert_norm: float
    router_norm: float
    """Gradient norms before clipping."""
    learning_rate_factor: float
    tokens: int
    """Input tokens, the M copies counted."""
    seconds: float
    held_out_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a step starts from."""

    step: int
    weights: dict[str, Tensor]
    moments: dict[Tensor, dict[str, Tensor]]
    best: Best


class Trainer:
    """One run in memory. `run` goes from the current step to the last."""

    def __init__(
        self,
        config: TrainConfig,
        model: PreTrainedModel,
        rows: Sequence[Example | Sequence[Example]],
        held_out: Sequence[Example] = (),
        *,
        contents: Mapping[str, str] | None = None,
        trunk_folder: Path | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """A row may be several sequences, which are in a batch together. `contents` says what the
        base and the files hold: a state is resumed on the same only. `trunk_folder` is where
        `cache_trunk` keeps what it keeps. Raises `ConfigError` for a setting that the base is not
        made for."""
        self.config = config
        self.model = model
        self.rows = rows
        self.held_out = held_out
        self.ranks = ranks
        self.layers = attach_method(model, config)
        self.trunk = self._find_trunk(trunk_folder)
        """What lies below the adapter, if the run computes it apart."""
        if config.packing:
            require_packable(model)
        if config.gradient_checkpointing:
            recompute_blocks(model)
        self.step = 0
        self._order = BatchOrder(
            len(rows),
            lambda i: max(len(example.tokens) for example in sequences_of(rows[i])),
            batch_size=config.batch_size,
            seed=config.seed,
        )
        settings = config.model_dump(mode="json", exclude=NOT_THE_RUN)
        settings["base_dtype"] = str(model.dtype).removeprefix("torch.")
        settings["processes"] = ranks.count
        self._identity = {**(contents or {}), **{k: str(value) for k, value in settings.items()}}
        self.parameters = {
            f"{name}.{kind}": parameter
            for name, layer in self.layers.items()
            for kind, parameter in layer.named_parameters(recurse=False)
            if parameter.requires_grad
        }
        routers = {name for name in self.parameters if name.endswith(".router_nD")}
        self._experts = [p for name, p in self.parameters.items() if name not in routers]
        self._routers = [p for name, p in self.parameters.items() if name in routers]
        is_scaled = self._routers and config.router_learning_rate is None
        self._sizes = InputSizes(self.layers if is_scaled else {})
        self.best = Best(keeps_weights=config.keep == "best")
        # Softmax routers learn by back-propagation like the experts, but at their own rates too.
        self.optimizer = torch.optim.AdamW(
            [{"params": self._experts}, *({"params": [router]} for router in self._routers)],
            lr=config.expert_learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._good = self._snapshot()

    def run(
        self, *, state_folder: Path | None = None, on_step: Callable[[StepReport], None]
    ) -> None:
        """Trains to the last step and saves on the way, each step after it was reported: a run
        that is killed between the two takes the step again, and none goes without a report.

        Raises `TrainingError` at the first loss, gradient or weight that is not finite. Weights
        and the newest saved state are then those of the last step from which loss and gradients
        were finite: a state saved after it may already be what made them infinite.
        """
        config = self.config
        while not self.has_ended:
            try:
                report = self.train_step()
            except TrainingError:
                if state_folder and self.step:
                    drop_states(state_folder, after=self.step)
                    self.save(state_folder)
                raise
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                raise TrainingError(
                    f"step {self.step + 1}: found too little memory for batch_size = "
                    f"{config.batch_size} and selections = {config.selections}, expected enough; "
                    "lower one of them (gradient_accumulation makes up for it) or max_length, or "
                    "set gradient_checkpointing: true"
                ) from None
            on_step(report)
            due = self.has_ended or self.step % config.checkpoint_every == 0
            if state_folder and due:
                self.save(state_folder)

    @property
    def has_ended(self) -> bool:
        """Whether all steps are done, or the held-out loss has not fallen for too long."""
        config = self.config
        limit = math.inf if config.patience is None else config.patience * config.eval_every
        return self.step >= config.steps or self.step - self.best.step >= limit

    def train_step(self) -> StepReport:
        """One update of the weights."""
        config, started = self.config, time.perf_counter()
        total, spread, tokens = 0.0, 0.0, 0
        stats: list[RoutingStats] = []
        passes = config.gradient_accumulation
        for index in map(self.ranks.share, range(self.step * passes, (self.step + 1) * passes)):
            examples = [e for i in self._order[index] for e in sequences_of(self.rows[i])]
            batch = collate(examples, device=self.model.device)
            draws = generator(config.seed, "selections", index, device=self.model.device)
            loss, metrics, routing = pass_loss(
                self.model, self.layers, batch, config, draws, self.trunk, self._sizes
            )
            (loss / passes).backward()  # type: ignore[no-untyped-call]
            total += metrics["loss"] / passes
            spread += metrics.get("loss_spread", 0.0) / passes
            tokens += int(batch.mask_BT.sum()) * config.copies
            stats.append(routing)
        routing = RoutingStats(
            entropy=sum(s.entropy for s in stats) / passes,
            support=sum(s.support for s in stats) / passes,
            load_Ln=torch.stack([s.load_Ln for s in stats]).mean(0),
        )
        self.ranks.average([p.grad for p in self.parameters.values() if p.grad is not None])
        total, spread, tokens, routing = self._over_ranks(total, spread, tokens, routing)
        self._require_finite("loss", total)  # of all, so that all processes stop
        limit = config.max_grad_norm or math.inf
        norms = [
            nn.utils.clip_grad_norm_(group, limit).item() if group else 0.0
            for group in (self._experts, self._routers)
        ]
        self._require_finite("gradient of the experts", norms[0])
        self._require_finite("gradient of the routers", norms[1])
        del self._good  # before there is another: both would be a third more than all the rest
        self._good = self._snapshot()
        factor = learning_rate_factor(self.step, config)
        for group, rate in zip(self.optimizer.param_groups, self._rates(), strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        largest = torch.stack([p.detach().abs().max() for p in self.parameters.values()]).max()
        self._require_finite("largest weight", largest.item())
        self.step += 1
        seconds = time.perf_counter() - started
        due = self.step % config.eval_every == 0 or self.step == config.steps
        held_out_loss = self._held_out_loss() if due and self.held_out else None
        if held_out_loss is not None:
            self.best.see(self.step, held_out_loss, self.parameters)
        return StepReport(
            step=self.step,
            loss=total,
            loss_spread=spread,
            routing=routing,
            expert_norm=norms[0],
            router_norm=norms[1],
            learning_rate_factor=factor,
            tokens=tokens,
            seconds=seconds,
            held_out_loss=held_out_loss,
        )

    def save(self, folder: Path) -> Path:
        return save_state(
            folder,
            step=self.step,
            parameters=self.parameters,
            optimizer=self.optimizer,
            more={**self._sizes.state(), **self.best.state()},
            run=self._identity,
        )

    def resume(self, folder: Path) -> int:
        """Loads the newest state in `folder`. Returns its step, 0 where there is none. Raises
        `TrainingError` when it belongs to other settings or data."""
        saved = load_state(
            folder,
            parameters=self.parameters,
            optimizer=self.optimizer,
            run=self._identity,
        )
        self.step = saved.step
        self._sizes.take(saved.more)
        if saved.run.get("eval_data") == self._identity.get("eval_data"):
            self.best.take(saved.more)  # losses on other rows say nothing of these
        self._good = self._snapshot()
        return self.step

    def _rates(self) -> list[float]:
        """AdamW's rate of each group of parameters: the experts, then every router."""
        config = self.config
        if not self._routers:
            return [config.expert_learning_rate]
        if config.router_learning_rate is None:
            size_L = self._sizes.settle(self.ranks)
            routers = (config.router_logits_per_step / size_L).tolist()
        else:
            routers = [config.router_learning_rate] * len(self._routers)
        return [config.expert_learning_rate, *routers]

    def _over_ranks(
        self, loss: float, spread: float, tokens: int, routing: RoutingStats
    ) -> tuple[float, float, int, RoutingStats]:
        """What a step reports, of all processes: means, and the sum of the tokens."""
        if self.ranks.count == 1:
            return loss, spread, tokens, routing
        shape = routing.load_Ln.shape
        parts = [loss, spread, float(tokens), routing.entropy, routing.support]
        scalars = torch.tensor(parts, dtype=torch.float64)
        means = torch.cat([scalars, routing.load_Ln.flatten()]).to(self.model.device)
        self.ranks.average([means])
        loss, spread, tokens_each, entropy, support = means[:5].tolist()
        load_Ln = means[5:].view(shape).float().cpu()
        tokens = round(tokens_each * self.ranks.count)
        return loss, spread, tokens, RoutingStats(entropy, support, load_Ln)

    def _held_out_loss(self) -> float:
        """The mean over all held-out rows, of which each process takes its part."""
        own = self.held_out[self.ranks.rank :: self.ranks.count]
        # As many for each, since a sharded base runs in all at once: one may count for nothing.
        each = math.ceil(len(self.held_out) / self.ranks.count)
        rows = [*own, *[self.held_out[0]] * (each - len(own))]
        total = sum(held_out_losses(self.model, rows, trunk=self.trunk)[: len(own)])
        sums = torch.tensor([total], dtype=torch.float64, device=self.model.device)
        self.ranks.average([sums])
        return sums.item() * self.ranks.count / len(self.held_out)

    def _find_trunk(self, folder: Path | None) -> Trunk | None:
        kept = folder if self.config.cache_trunk else None
        if self.config.method != "remix" and kept is None:
            return None  # every example is seen once in any case
        together = self.ranks if is_sharded(self.model) else ALONE
        trunk = Trunk.of(self.model, kept, together)
        if trunk is None and kept is not None:
            raise ConfigError(
                "cache_trunk: found true where no block is below the adapter, expected "
                "target_modules in upper blocks only, as layers.20.mlp.up_proj"
            )
        return trunk

    def _require_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        failed = self.step + 1
        self._restore(self._good)
        advice = (
            f"the state of step {self.step}, the last good one, is kept: lower the learning rates, "
            f"or set steps to {self.step} for its adapter, and --resume"
            if self.step
            else "no step before it was good: lower the learning rates"
        )
        raise TrainingError(
            f"step {failed}: the {what} is {value}, expected a finite number; {advice}"
        )

    def _snapshot(self) -> Snapshot:
        """A copy of the weights and moments as they are now."""
        moments = {
            parameter: {key: value.clone() for key, value in state.items()}
            for parameter, state in self.optimizer.state.items()
        }
        weights = {name: p.detach().clone() for name, p in self.parameters.items()}
        return Snapshot(self.step, weights, moments, copy.copy(self.best))

    def _restore(self, good: Snapshot) -> None:
        self.step, self.best = good.step, good.best
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
        self.optimizer.state.update(good.moments)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(good.weights[name])


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up over the first steps, then the schedule's way down to 0 at the end."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    match config.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return 1 - progress
        case "constant":
            return 1.0


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
