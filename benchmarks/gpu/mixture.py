"""What the ReMix addition costs on a GPU, next to the linears of a model's whole step.

`python -m benchmarks.gpu.mixture --out STEM [--quick] [--budget 100]` checks every form against
float64, then times CUDA graphs of all layers, each with weights of its own as in the real model:
the base linears alone, and with the addition to gate/up and down, by the forms that may be best,
after the base product and beside it. The two graphs are replayed in turns. Writes STEM.json and
STEM.md. Needs PyTorch, Triton and safetensors only.

Shape suffixes: T tokens, D input width, O output width; n experts, k activated, r rank.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.mixture_report import Case, Model, Result, Summary, write
from benchmarks.rounds import percentile, run_rounds
from benchmarks.shape import AdapterShape
from remix_runtime.kernels.device_plan import DevicePlan
from remix_runtime.kernels.triton_forms import Form, choose_form
from remix_runtime.kernels.triton_plan import plan_from_slots
from remix_runtime.kernels.triton_table import TritonMixtureTable

LLAMA = Model("Llama-3-8B", layers=32, hidden=4096, ffn=14336, qkv=6144)
SMOL = Model("SmolLM2-135M", layers=30, hidden=576, ffn=1536, qkv=960)
SHAPES = (AdapterShape(8, 4, 8), AdapterShape(4, 2, 8))
PLAIN = AdapterShape(1, 1, 32)
"""A plain LoRA of rank k·r by the same kernels: what the routing itself costs."""
PLAIN_CASES = ((1, 1), (32, 1), (32, 32), (512, 1))
SLOTS = 32
DECODE = [(1, 1), (8, 1), (8, 8), (32, 1), (32, 8), (32, 32), (128, 1), (128, 8), (128, 32)]
"""(tokens, adapters)"""
PREFILL = [(512, 1), (512, 4), (4096, 1), (4096, 4)]
PREFILL_LAYERS = 8
REPLAYS = 12
DTYPE = torch.bfloat16
DEVICE = "cuda"

Replay = Callable[[int], float]
"""A captured step: a side of a round."""


def normal(*shape: int, dtype: torch.dtype = DTYPE, scale: float = 1.0) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE).normal_(std=scale)


def make_table(
    D: int, widths: list[int], shape: AdapterShape, slots: int = SLOTS
) -> TritonMixtureTable:
    """Full of random adapters, B too."""
    n, k, r = shape.n, shape.k, shape.r
    table = TritonMixtureTable(
        slots, D, widths, device=DEVICE, dtype=DTYPE, max_rows=n * r, max_experts=n
    )
    for tensor in (table.a_SGMD, table.router_SGND, table.b_SMO):
        tensor.normal_(std=D**-0.5)
    table.weight_SG.fill_(2 / (k * r) ** 0.5)
    table.meta_SG3[:] = torch.tensor([n, k, r], dtype=torch.int32, device=DEVICE)
    return table


class Layers:
    """The linears of a model and the tables of its feed-forward ones."""

    def __init__(self, model: Model) -> None:
        h, f = model.hidden, model.ffn
        self.model = model
        sizes = [(h, model.qkv), (h, h), (h, 2 * f), (f, h)]
        self.linears = [
            [normal(o, d, scale=d**-0.5) for d, o in sizes] for _ in range(model.layers)
        ]
        self.tables: list[tuple[TritonMixtureTable, TritonMixtureTable]] = []

    def set_shape(self, shape: AdapterShape) -> None:
        h, f = self.model.hidden, self.model.ffn
        self.tables.clear()  # before there are others: they are large
        for _ in self.linears:
            self.tables.append((make_table(h, [f, f], shape), make_table(f, [h], shape)))

    def step(self, case: Case, form: Form | None, beside: bool = False) -> Replay:
        """Without a form the base alone. Inputs are the same for every layer: nothing depends on
        their values."""
        inputs = normal(case.tokens, self.model.hidden), normal(case.tokens, self.model.ffn)
        slot_T = slots_of(case.tokens, case.adapters)
        buffers = DevicePlan.empty(case.tokens, SLOTS, DEVICE, SLOTS)
        for table in itertools.chain.from_iterable(self.tables):
            table.form = form

        def step() -> None:
            if form is not None:
                plan = plan_from_slots(slot_T, SLOTS, max_adapters=case.bound, out=buffers)
            for i, (qkv, out, *feed_forward) in enumerate(self.linears[: case.layers]):
                F.linear(inputs[0], qkv)
                F.linear(inputs[0], out)
                for weight, table, x_TD in zip(feed_forward, self.tables[i], inputs, strict=True):
                    if form is None:
                        F.linear(x_TD, weight)
                    elif beside:
                        pending = table.begin(x_TD, plan)
                        table.finish(F.linear(x_TD, weight), pending)
                    else:
                        table.add(F.linear(x_TD, weight), x_TD, plan)

        return captured(step)


def captured(step: Callable[[], object]) -> Replay:
    """Gives the seconds of one replay of a CUDA graph of the step."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()

    def replay(number: int, keeps_alive: object = step) -> float:
        # The graph reads the tensors that the step refers to.
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return replay


def medians(*replays: Replay) -> list[float]:
    """Seconds of each, replayed in turns."""
    sides = dict(enumerate(replays))
    found = run_rounds({"": sides}, rounds=REPLAYS, warm_up=3)[""]
    return [percentile(list(found[i].values()), 0.5) for i in sides]


def slots_of(tokens: int, adapters: int) -> Tensor:
    """Prompts lie together; the tokens of a decode step do in vLLM too, but need not."""
    if tokens >= 512:
        return torch.arange(tokens, device=DEVICE) * adapters // tokens
    return torch.arange(tokens, device=DEVICE) % adapters


def forms_of(model: Model, case: Case) -> list[Form]:
    """Those that may be best, the chosen one (of the gate/up linear) first."""
    if case.tokens >= 128:
        likely = [Form.TILES, Form.PROMPT] if case.tokens <= 512 else [Form.PROMPT]
    elif case.tokens >= 32:
        likely = [Form.ROWS_CHOSEN, Form.TILES]
    else:
        unlikely = {Form.PROMPT} if case.adapters > 1 else {Form.PROMPT, Form.ROWS_CHOSEN}
        likely = [form for form in Form if form not in unlikely]
    chosen = choose_form(case.tokens, case.bound, model.hidden * 2 * model.ffn)
    return [chosen, *(form for form in likely if form is not chosen)]


def cases(model: Model, *, quick: bool) -> Iterator[Case]:
    decode = DECODE if model is LLAMA else DECODE[:1] + DECODE[3:6]
    for tokens, adapters in decode:
        yield Case(tokens, adapters, bound=adapters, layers=model.layers)
    if model is LLAMA:  # the host knows no more than the number of slots
        yield Case(32, 1, bound=SLOTS, layers=model.layers)
    if not quick:
        for tokens, adapters in PREFILL if model is LLAMA else PREFILL[:1]:
            yield Case(tokens, adapters, bound=adapters, layers=PREFILL_LAYERS)


def run(model: Model, summary: Summary, *, quick: bool, deadline: float) -> None:
    layers, bases = Layers(model), dict[tuple[int, int], Replay]()
    for shape in (*SHAPES, PLAIN):
        layers.set_shape(shape)
        for case in cases(model, quick=quick):
            is_plain = shape is PLAIN
            if is_plain and (case.tokens, case.adapters) not in PLAIN_CASES:
                continue
            forms = forms_of(model, case)
            for form, beside in itertools.product(forms[:1] if is_plain else forms, (False, True)):
                name = form.name + " beside" * beside
                if time.monotonic() > deadline:
                    summary.left_out.append(f"{model.name} {shape} {case} {name}")
                    continue
                key = case.tokens, case.layers
                if key not in bases:
                    bases[key] = layers.step(case, None)
                seconds = medians(bases[key], layers.step(case, form, beside))
                is_chosen = form is forms[0]
                summary.results.append(Result(model, shape, case, name, is_chosen, *seconds))


def check(summary: Summary) -> None:
    """Relative error of each form against float64, and routes that differ, at real widths."""
    shape, tokens, slots = SHAPES[0], 67, 4
    n, k, r = shape.n, shape.k, shape.r
    for D, widths in ((LLAMA.hidden, [LLAMA.ffn] * 2), (LLAMA.ffn, [LLAMA.hidden])):
        table = make_table(D, widths, shape, slots)
        x_TD, slot_T = normal(tokens, D), torch.arange(tokens, device=DEVICE) % (slots + 1) - 1
        plan = plan_from_slots(slot_T, slots)
        want_TO = torch.zeros(tokens, sum(widths), dtype=torch.float64, device=DEVICE)
        routes_TGk = torch.full((tokens, len(widths), k), -1, device=DEVICE)
        for t, slot in enumerate(slot_T.tolist()):
            x_D = x_TD[t].double()
            columns_GO = torch.arange(sum(widths), device=DEVICE).view(len(widths), -1)
            for g, columns in enumerate(columns_GO if slot >= 0 else []):
                z_n = table.router_SGND[slot, g, :n].double() @ x_D
                routes_TGk[t, g] = route = z_n.topk(k).indices.sort().values
                h_nr = (table.a_SGMD[slot, g].double() @ x_D).view(n, r)[route].flatten()
                b_nrO = table.b_SMO[slot, :, columns].view(n, r, -1)[route].flatten(0, 1)
                want_TO[t, columns] = table.weight_SG[slot, g] * (h_nr @ b_nrO.double())
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
    return 2 * source.numel() / medians(captured(lambda: target.copy_(source)))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="result path without ending")
    parser.add_argument("--quick", action="store_true", help="correctness and decoding only")
    parser.add_argument("--budget", type=float, default=100, help="seconds; what is left is named")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: no CUDA device here")
    deadline = time.monotonic() + arguments.budget
    torch.manual_seed(0)
    with torch.inference_mode():
        summary = Summary(copy_bandwidth())
        check(summary)
        for model in (LLAMA,) if arguments.quick else (LLAMA, SMOL):
            run(model, summary, quick=arguments.quick, deadline=deadline)
            torch.cuda.empty_cache()
    write(summary, arguments.out)


if __name__ == "__main__":
    main()
