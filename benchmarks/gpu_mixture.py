"""What the ReMix addition costs on a GPU, next to the linears of a model's whole step.

`python -m benchmarks.gpu_mixture --out FOLDER [--quick] [--budget 100]` checks every form against
float64, then times CUDA graphs of all layers, each with weights of its own as in the real model:
the base linears alone, and with the addition to gate/up and down, by the forms that may be best,
after the base product and beside it, and with other sizes of programs. Writes `gpu_mixture.json`
and `gpu_mixture.md`, prints the best of each case. Needs PyTorch and Triton only.

Shape suffixes: T tokens, D input width, O output width; n experts, k activated, r rank.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_mixture_report import Case, Config, Result, Shape, Summary, short, write
from remix_runtime.kernels import triton_forms
from remix_runtime.kernels.device_plan import DevicePlan
from remix_runtime.kernels.triton_forms import Form, Tuning, choose_form
from remix_runtime.kernels.triton_plan import plan_from_slots
from remix_runtime.kernels.triton_table import TritonMixtureTable

LLAMA = Shape("Llama-3-8B", layers=32, hidden=4096, ffn=14336, qkv=6144)
SMOL = Shape("SmolLM2-135M", layers=30, hidden=576, ffn=1536, qkv=960)
CONFIGS = (Config(8, 4, 8), Config(4, 2, 8))
PLAIN = Config(1, 1, 32)
"""A plain LoRA of rank k·r by the same kernels: what the routing itself costs."""
PLAIN_CASES = ((1, 1), (32, 1), (32, 32), (512, 1))
SLOTS = 32
DECODE = [(1, 1), (8, 1), (8, 8), (32, 1), (32, 8), (32, 32), (128, 1), (128, 8), (128, 32)]
"""(tokens, adapters)"""
PREFILL = [(512, 1), (512, 4), (4096, 1), (4096, 4)]
PREFILL_LAYERS = 8
REPLAYS = 12
VARIANTS: dict[str, dict[str, int | bool]] = {
    "one launch after the other": {"overlaps_launches": False},
    "256 x 16": {"row_rows": 16},
    "512 x 16": {"row_outputs": 512, "row_rows": 16},
    "1024 x 16": {"row_outputs": 1024, "row_rows": 16},
    "512 x 32, 8 warps": {"row_outputs": 512, "row_warps": 8},
    "chosen span 1024": {"chosen_span": 1024},
    "tile rows 32": {"tile_rows": 32},
    "tile rows 32, shrink span 512": {"tile_rows": 32, "shrink_span": 512},
    "shrink span 512": {"shrink_span": 512},
    "all rows": {"is_sparse": False},
    "span 1024": {"span": 1024},
}
"""Other values of `Tuning`."""
ROWS = ("256 x 16", "512 x 16", "1024 x 16", "512 x 32, 8 warps")
TILES = ("one launch after the other", "tile rows 32", "tile rows 32, shrink span 512")
SWEEP: list[tuple[tuple[int, int], Form, tuple[str, ...]]] = [
    ((1, 1), Form.ROWS_ALL, ("one launch after the other", "512 x 16", "shrink span 512")),
    ((1, 1), Form.TILES, (*TILES, "span 1024")),
    ((32, 32), Form.ROWS_CHOSEN, (TILES[0], *ROWS, "chosen span 1024", "span 1024")),
    ((32, 32), Form.TILES, (*TILES, "all rows")),
    ((32, 1), Form.TILES, TILES),
    ((8, 8), Form.TILES, (*TILES[1:], "all rows")),
]
"""(tokens, adapters), form, variants."""
DTYPE = torch.bfloat16
DEVICE = "cuda"


def normal(*shape: int, dtype: torch.dtype = DTYPE, scale: float = 1.0) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE).normal_(std=scale)


def make_table(D: int, widths: list[int], config: Config, slots: int = SLOTS) -> TritonMixtureTable:
    """Full of random adapters, B too."""
    n, k, r = config.n, config.k, config.r
    table = TritonMixtureTable(
        slots, D, widths, device=DEVICE, dtype=DTYPE, max_rows=n * r, max_experts=n
    )
    for tensor in (table.a_SGMD, table.router_SGND, table.b_SMO):
        tensor.normal_(std=D**-0.5)
    table.weight_SG.fill_(2 / (k * r) ** 0.5)
    table.meta_SG3[:] = torch.tensor([n, k, r], dtype=torch.int32, device=DEVICE)
    return table


class Model:
    """The linears of a model and the tables of its feed-forward ones."""

    def __init__(self, shape: Shape) -> None:
        h, f = shape.hidden, shape.ffn
        self.shape = shape
        sizes = [(h, shape.qkv), (h, h), (h, 2 * f), (f, h)]
        self.layers = [[normal(o, d, scale=d**-0.5) for d, o in sizes] for _ in range(shape.layers)]
        self.tables: list[tuple[TritonMixtureTable, TritonMixtureTable]] = []

    def set_config(self, config: Config) -> None:
        h, f = self.shape.hidden, self.shape.ffn
        self.tables.clear()
        self.tables += [
            (make_table(h, [f, f], config), make_table(f, [h], config)) for _ in self.layers
        ]

    def step(
        self, layers: int, x_TD: Tensor, h_TF: Tensor, plan: DevicePlan | None, beside: bool = False
    ) -> None:
        """Inputs are the same for every layer: nothing depends on their values."""
        for i, (qkv, out, gate_up, down) in enumerate(self.layers[:layers]):
            F.linear(x_TD, qkv)
            F.linear(x_TD, out)
            if plan is None:
                F.linear(x_TD, gate_up)
                F.linear(h_TF, down)
                continue
            for table, weight, input in zip(
                self.tables[i], (gate_up, down), (x_TD, h_TF), strict=True
            ):
                if beside:
                    pending = table.begin(input, plan)
                    table.finish(F.linear(input, weight), pending)
                else:
                    table.add(F.linear(input, weight), input, plan)


def graph_seconds(step: Callable[[], object], replays: int) -> float:
    """Median time of a captured step."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()
    for _ in range(3):
        graph.replay()
    times: list[float] = []
    for _ in range(replays):
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def slots_of(tokens: int, adapters: int) -> Tensor:
    """Prompts lie together; the tokens of a decode step do in vLLM too, but need not."""
    if tokens >= 512:
        return torch.arange(tokens, device=DEVICE) * adapters // tokens
    return torch.arange(tokens, device=DEVICE) % adapters


def measure(
    model: Model,
    config: Config,
    case: Case,
    form: Form,
    base: float,
    beside: bool = False,
    variant: str = "",
) -> Result:
    layers = case.layers
    x_TD, h_TF = normal(case.tokens, model.shape.hidden), normal(case.tokens, model.shape.ffn)
    slot_T = slots_of(case.tokens, case.adapters)
    buffers = DevicePlan.empty(case.tokens, SLOTS, DEVICE, SLOTS)
    for table in [table for pair in model.tables for table in pair]:
        table.form = form
    triton_forms.TUNING = dataclasses.replace(Tuning(), **VARIANTS.get(variant, {}))  # type: ignore[arg-type]

    def step() -> None:
        plan = plan_from_slots(slot_T, SLOTS, max_adapters=case.bound, out=buffers)
        model.step(layers, x_TD, h_TF, plan, beside)

    taken = graph_seconds(step, REPLAYS)
    triton_forms.TUNING = Tuning()
    return Result(
        model.shape,
        config,
        case,
        form.name,
        beside,
        variant,
        form is chosen_form(model.shape, case),
        base,
        taken,
    )


def chosen_form(shape: Shape, case: Case) -> Form:
    """That of the gate/up linear."""
    return choose_form(case.tokens, case.bound, shape.hidden * 2 * shape.ffn)


def forms_of(shape: Shape, case: Case) -> list[Form]:
    """Those that may be best, the chosen one first."""
    if case.tokens >= 128:
        likely = [Form.TILES, Form.PROMPT] if case.tokens <= 512 else [Form.PROMPT]
    elif case.tokens >= 32:
        likely = [Form.ROWS_CHOSEN, Form.TILES]
    else:
        likely = [Form.ROWS_ALL, Form.TILES] + [Form.ROWS_CHOSEN] * (case.adapters > 1)
    chosen = chosen_form(shape, case)
    return [chosen, *(form for form in likely if form is not chosen)]


def cases(shape: Shape, *, quick: bool) -> Iterator[Case]:
    decode = DECODE if shape is LLAMA else DECODE[:1] + DECODE[3:6]
    for tokens, adapters in decode:
        yield Case(tokens, adapters, bound=adapters, layers=shape.layers)
    if shape is LLAMA:  # the host knows no more than the number of slots
        yield Case(32, 1, bound=SLOTS, layers=shape.layers)
    if not quick:
        for tokens, adapters in PREFILL if shape is LLAMA else PREFILL[:1]:
            yield Case(tokens, adapters, bound=adapters, layers=PREFILL_LAYERS)


def run(shape: Shape, summary: Summary, *, quick: bool, deadline: float) -> None:
    model = Model(shape)
    bases: dict[tuple[int, int], float] = {}

    def add(case: Case, form: Form, beside: bool = False, variant: str = "") -> None:
        if time.monotonic() > deadline:
            summary.left_out.append(f"{shape.name} {config} {case} {form.name} {variant}")
            return
        key = (case.tokens, case.layers)
        if key not in bases:
            x_TD, h_TF = normal(case.tokens, shape.hidden), normal(case.tokens, shape.ffn)
            bases[key] = graph_seconds(lambda: model.step(case.layers, x_TD, h_TF, None), REPLAYS)
        summary.results.append(measure(model, config, case, form, bases[key], beside, variant))

    for config in (*CONFIGS, PLAIN):
        model.set_config(config)
        for case in cases(shape, quick=quick):
            if config is PLAIN and (case.tokens, case.adapters) not in PLAIN_CASES:
                continue
            for form in forms_of(shape, case)[: 1 if config is PLAIN else None]:
                add(case, form)
                add(case, form, beside=True)
        if shape is LLAMA and config is not PLAIN:
            for (tokens, adapters), form, variants in SWEEP:
                for variant in variants:
                    case = Case(tokens, adapters, bound=adapters, layers=shape.layers)
                    add(case, form, variant=variant)


def check(summary: Summary) -> None:
    """Relative error of each form against float64, and routes that differ, at real widths."""
    config, tokens, slots = CONFIGS[0], 67, 4
    n, k, r = config.n, config.k, config.r
    for D, widths in ((LLAMA.hidden, [LLAMA.ffn] * 2), (LLAMA.ffn, [LLAMA.hidden])):
        table = make_table(D, widths, config, slots)
        x_TD, slot_T = normal(tokens, D), torch.arange(tokens, device=DEVICE) % (slots + 1) - 1
        plan = plan_from_slots(slot_T, slots)
        want_TO = torch.zeros(tokens, sum(widths), dtype=torch.float64, device=DEVICE)
        routes_TGk = torch.full((tokens, len(widths), k), -1, device=DEVICE)
        for t, slot in enumerate(slot_T.tolist()):
            column = 0
            for g, width in enumerate(widths if slot >= 0 else []):
                x_D = x_TD[t].double()
                z_n = table.router_SGND[slot, g, :n].double() @ x_D
                route = z_n.topk(k).indices.sort().values
                h_nr = (table.a_SGMD[slot, g].double() @ x_D).view(n, r)[route].flatten()
                columns = slice(column, column + width)
                b_nrO = table.b_SMO[slot, :, columns].view(n, r, width)[route].flatten(0, 1)
                want_TO[t, columns] = table.weight_SG[slot, g] * (h_nr @ b_nrO.double())
                routes_TGk[t, g] = route
                column += width
        for form, beside in itertools.product(Form, (False, True)):
            table.form = form
            y_TO = torch.zeros(tokens, sum(widths), dtype=DTYPE, device=DEVICE)
            found_TGk = torch.empty(tokens, len(widths), k, dtype=torch.int32, device=DEVICE)
            if beside:
                table.finish(y_TO, table.begin(x_TD, plan, found_TGk))
            else:
                table.add(y_TO, x_TD, plan, found_TGk)
            error = float((y_TO.double() - want_TO).norm() / want_TO.norm())
            differ = int((found_TGk != routes_TGk).any(-1).sum())
            name = form.name + " beside" * beside
            line = f"D {D}, {name}: relative error {error:.1e}, {differ} routes differ"
            summary.checks.append(line)
            print(line, flush=True)
            assert error < 5e-3, line


def copy_bandwidth() -> float:
    """Bytes per second of a device-to-device copy, read and written."""
    source, target = (torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    return 2 * source.numel() / graph_seconds(lambda: target.copy_(source), 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="correctness and decoding only")
    parser.add_argument("--budget", type=float, default=100, help="seconds; what is left is named")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here")
    start = time.monotonic()
    torch.manual_seed(0)
    with torch.inference_mode():
        summary = Summary(quick=arguments.quick)
        check(summary)
        summary.bandwidth = copy_bandwidth()
        for shape in (LLAMA,) if arguments.quick else (LLAMA, SMOL):
            run(shape, summary, quick=arguments.quick, deadline=start + arguments.budget)
            torch.cuda.empty_cache()
        summary.seconds = time.monotonic() - start
        write(summary, arguments.out)
        print(short(summary))


if __name__ == "__main__":
    main()
