"""Paged attention against explicit softmax in float64, and its bitwise promises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from remix_runtime.kernels import native
from remix_runtime.kernels.attention import PAGE_TOKENS, AttentionBatch, PagedKV, page_bytes

needs_native = pytest.mark.skipif(native.lib() is None, reason="no C compiler")
both_paths = pytest.mark.parametrize(
    "use_native", [pytest.param(True, marks=needs_native), False], ids=["native", "torch"]
)

Step = list[tuple[int, int]]
"""(sequence, number of its next tokens) in the order of the step's rows."""


@dataclass(frozen=True)
class Case:
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    softcap: float | None = None

    @property
    def scale(self) -> float:
        return 2 * self.head_dim**-0.5  # twice the usual one, so that weights differ strongly

    def memory(self, num_pages: int, *, use_native: bool) -> PagedKV:
        """Pages as freed pages may look: full of what is not a number."""
        shape = self.kv_heads, self.head_dim
        kv = PagedKV(1, num_pages, *shape, torch.float32, "cpu", use_native=use_native)
        assert kv.is_native == use_native
        kv.layers[0].keys.fill_(torch.nan)
        kv.layers[0].values.fill_(torch.nan)
        return kv

    def sequence(self, length: int) -> tuple[Tensor, Tensor, Tensor]:
        heads = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = (torch.randn(length, h, self.head_dim) for h in heads)
        return q, k, v

    def expected(self, q_LHd: Tensor, k_LGd: Tensor, v_LGd: Tensor) -> Tensor:
        share = self.heads // self.kv_heads
        q, k, v = q_LHd.double(), k_LGd.double(), v_LGd.double()
        k, v = (x.repeat_interleave(share, 1) for x in (k, v))
        score_HLL = torch.einsum("ihd,jhd->hij", q, k) * self.scale
        if self.softcap is not None:
            score_HLL = self.softcap * torch.tanh(score_HLL / self.softcap)
        i, j = torch.arange(len(q))[:, None], torch.arange(len(q))
        seen_LL = (j <= i) & (j > i - (self.window or len(q)))
        weight_HLL = score_HLL.masked_fill(~seen_LL, -torch.inf).softmax(-1)
        return torch.einsum("hij,jhd->ihd", weight_HLL, v)

    def play(
        self,
        kv: PagedKV,
        sequences: list[tuple[Tensor, Tensor, Tensor]],
        steps: list[Step],
        page_table_SP: Tensor,
    ) -> list[Tensor]:
        """Runs the steps and returns the outputs [L, H, d] of each sequence."""
        done = [0] * len(sequences)
        outputs: list[list[Tensor]] = [[] for _ in sequences]
        for step in steps:
            parts = [[x[done[s] : done[s] + n] for x in sequences[s]] for s, n in step]
            # Views of [heads, T, d], as transformers passes them, with a foreign row in front.
            q, k, v = (torch.cat([x[0][:1], *x]) for x in zip(*parts, strict=True))
            q, k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
            counts = [n for _, n in step]
            first = [1 + sum(counts[:i]) for i in range(len(counts))]
            ids = [s for s, _ in step]
            pages = page_table_SP[ids].tolist()
            batch = AttentionBatch(first, counts, [done[s] for s in ids], pages)
            o = kv.attend(
                0, q, k, v, batch, scale=self.scale, window=self.window, softcap=self.softcap
            )
            assert o.shape == q.shape
            assert o.is_contiguous()
            for (s, n), row in zip(step, first, strict=True):
                outputs[s].append(o[row : row + n])
                done[s] += n
        return [torch.cat(output) for output in outputs]


def random_pages(num_sequences: int, longest: int) -> tuple[Tensor, int]:
    """A page table of pages in random order, and the number of pages that must exist."""
    pages = -(-longest // PAGE_TOKENS)
    spare = 3
    order = torch.randperm(num_sequences * pages + spare).int()
    return order[: num_sequences * pages].view(num_sequences, pages), len(order)


CASES = [
    Case(1, 1, 8),
    Case(9, 3, 64),
    Case(8, 1, 80),
    Case(4, 4, 20),
    Case(4, 2, 256),
    Case(6, 2, 96, window=5),
    Case(2, 1, 16, window=16),
    Case(4, 2, 64, window=70, softcap=3.0),
    Case(14, 2, 128, softcap=30.0),
    Case(60, 1, 8, window=33),
]


@both_paths
@pytest.mark.parametrize("case", CASES, ids=str)
def test_prefill_chunks_and_decodes_in_one_batch_match_the_reference(
    case: Case, use_native: bool
) -> None:
    torch.manual_seed(0)
    sequences = [case.sequence(n) for n in (150, 17, 64)]
    table, num_pages = random_pages(3, 150)
    steps: list[Step] = [
        [(0, 70), (1, 16)],
        [(1, 1), (0, 1), (2, 63)],
        [(0, 30), (2, 1)],
        [(0, 49)],
    ]
    kv = case.memory(num_pages, use_native=use_native)
    for got, sequence in zip(case.play(kv, sequences, steps, table), sequences, strict=True):
        torch.testing.assert_close(got.double(), case.expected(*sequence), rtol=1e-5, atol=1e-5)


@both_paths
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 128, 129, 257])
def test_lengths_around_page_and_block_borders(length: int, use_native: bool) -> None:
    torch.manual_seed(length)
    for case in (Case(3, 1, 32), Case(2, 2, 24, window=17)):
        sequence = case.sequence(length)
        table, num_pages = random_pages(1, length)
        kv = case.memory(num_pages, use_native=use_native)
        [got] = case.play(kv, [sequence], [[(0, length)]], table)
        torch.testing.assert_close(got.double(), case.expected(*sequence), rtol=1e-5, atol=1e-5)


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[int], list[Step]]:
    """Lengths of some sequences, and steps that serve them in random chunks."""
    lengths = draw(st.lists(st.integers(1, 140), min_size=1, max_size=4))
    left = dict(enumerate(lengths))
    steps: list[Step] = []
    while left:
        chosen = draw(st.lists(st.sampled_from(sorted(left)), min_size=1, unique=True))
        step = []
        for s in chosen:
            n = min(left[s], draw(st.sampled_from([1, 1, 2, 5, 16, 33, 140])))
            step.append((s, n))
            left[s] -= n
            if left[s] == 0:
                del left[s]
        steps.append(step)
    return lengths, steps


@needs_native
@settings(max_examples=60)
@given(schedules(), st.sampled_from(CASES), st.integers(0, 2**31))
def test_bits_do_not_depend_on_chunks_batch_or_pages(
    schedule: tuple[list[int], list[Step]], case: Case, seed: int
) -> None:
    lengths, steps = schedule
    torch.manual_seed(seed)
    sequences = [case.sequence(n) for n in lengths]
    table, num_pages = random_pages(len(lengths), max(lengths))
    together = case.play(case.memory(num_pages, use_native=True), sequences, steps, table)
    for got, sequence in zip(together, sequences, strict=True):
        length = len(sequence[0])
        alone, num_pages = random_pages(1, length)
        kv = case.memory(num_pages, use_native=True)
        [expected] = case.play(kv, [sequence], [[(0, length)]], alone)
        assert torch.equal(got, expected)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("case", [Case(9, 3, 64), Case(4, 1, 128, window=100, softcap=20.0)])
def test_bits_do_not_depend_on_the_number_of_threads(case: Case) -> None:
    torch.manual_seed(1)
    sequences = [case.sequence(300), case.sequence(200)]
    table, num_pages = random_pages(2, 300)
    steps: list[Step] = [[(0, 299), (1, 150)], [(0, 1), (1, 50)]]
    results = []
    for count in (1, 2, 3):
        with threads(count):
            kv = case.memory(num_pages, use_native=True)
            results.append(case.play(kv, sequences, steps, table))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@both_paths
def test_large_scores_give_a_hard_maximum_without_overflow(use_native: bool) -> None:
    torch.manual_seed(2)
    case = Case(2, 1, 16)
    q, k, v = case.sequence(100)
    sequence = (q * 300, k * 300, v)
    table, num_pages = random_pages(1, 100)
    kv = case.memory(num_pages, use_native=use_native)
    [got] = case.play(kv, [sequence], [[(0, 100)]], table)
    assert case.expected(*sequence).isfinite().all()
    torch.testing.assert_close(got.double(), case.expected(*sequence), rtol=1e-2, atol=1e-2)


@both_paths
def test_a_broken_sequence_stays_alone(use_native: bool) -> None:
    torch.manual_seed(3)
    case = Case(4, 2, 32)
    good, bad = case.sequence(40), tuple(torch.full_like(x, torch.nan) for x in case.sequence(40))
    table, num_pages = random_pages(2, 40)
    kv = case.memory(num_pages, use_native=use_native)
    got, broken = case.play(kv, [good, bad], [[(1, 39), (0, 39)], [(0, 1), (1, 1)]], table)
    torch.testing.assert_close(got.double(), case.expected(*good), rtol=1e-5, atol=1e-5)
    assert broken.isnan().all()


def test_bfloat16_takes_the_torch_path_and_is_close() -> None:
    torch.manual_seed(4)
    case = Case(4, 2, 32, window=20)
    sequence = tuple(x.bfloat16() for x in case.sequence(50))
    table, num_pages = random_pages(1, 50)
    kv = PagedKV(1, num_pages, 2, 32, torch.bfloat16, "cpu")
    assert not kv.is_native
    [got] = case.play(kv, [sequence], [[(0, 49)], [(0, 1)]], table)
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got.double(), case.expected(*sequence), rtol=2e-2, atol=2e-2)


@both_paths
def test_layers_have_their_own_shapes_and_memory(use_native: bool) -> None:
    torch.manual_seed(5)
    cases = [Case(4, 2, 32), Case(4, 1, 16), Case(4, 2, 32)]
    shapes = [c.kv_heads for c in cases], [c.head_dim for c in cases]
    kv = PagedKV(3, 4, *shapes, torch.float32, "cpu", use_native=use_native)
    sequences = [case.sequence(50) for case in cases]
    table = [[2, 0, 3, 1]]
    for start, n in ((0, 30), (30, 20)):
        batch = AttentionBatch([0], [n], [start], table)
        for layer, (case, sequence) in enumerate(zip(cases, sequences, strict=True)):
            q, k, v = (x[start : start + n] for x in sequence)
            got = kv.attend(layer, q, k, v, batch, scale=case.scale)
            expected = case.expected(*sequence)[start : start + n]
            torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@needs_native
def test_any_strides_are_accepted() -> None:
    torch.manual_seed(6)
    case = Case(2, 2, 12)
    sequence = case.sequence(20)
    table = [[1, 0]]
    batch = AttentionBatch([0], [20], [0], table)
    odd = [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in sequence]
    assert odd[0].stride(-1) != 1
    kv = case.memory(2, use_native=True)
    expected = kv.attend(0, *sequence, batch, scale=case.scale)
    assert torch.equal(kv.attend(0, *odd, batch, scale=case.scale), expected)


@both_paths
@pytest.mark.parametrize("head_dim", [64, 80])
def test_page_bytes_covers_the_allocation(head_dim: int, use_native: bool) -> None:
    kv = PagedKV(2, 10, [3, 1], head_dim, torch.float32, "cpu", use_native=use_native)
    allocated = sum(layer.keys.nbytes + layer.values.nbytes for layer in kv.layers)
    assert allocated == 10 * page_bytes([3, 1], [head_dim, head_dim], torch.float32)
