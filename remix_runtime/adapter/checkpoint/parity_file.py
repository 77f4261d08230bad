"""`parity.safetensors`: a few prompts with the routes and logits that training saw for them.

For prompt i, with T tokens, L adapted layers in sorted order of their names, k activated experts:

    prompt.{i}.token_ids   I64 [T]
    prompt.{i}.routes      U8  [L, T, k]   the activated experts, ascending
    prompt.{i}.margins     F32 [L, T]      how clear the choice was, see `ParityPrompt`
    prompt.{i}.top_ids     I64 [j]         the tokens with the j largest logits at the last position
    prompt.{i}.top_logits  F32 [j]         their logits, descending

The header's text map holds `format_version`, `prompts`, `route_tolerance` and `logit_tolerance`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint.folder import Folder, open_folder
from remix_runtime.adapter.checkpoint.strict_json import show
from remix_runtime.adapter.checkpoint.tensor_file import Header, read_header, read_tensors
from remix_runtime.adapter.checkpoint.types import DEFAULT_LIMITS, CheckpointLimits
from remix_runtime.errors import CheckpointFormatError

PARITY_FILE = "parity.safetensors"
MAX_PROMPTS = 64
MAX_TOKENS = 16384
"""Of all prompts of a file: whoever loads it computes them, beside others' requests."""

_VERSION = "1"
_DTYPES = {
    "token_ids": "I64",
    "routes": "U8",
    "margins": "F32",
    "top_ids": "I64",
    "top_logits": "F32",
}
_DIMS = {"token_ids": 1, "routes": 3, "margins": 2, "top_ids": 1, "top_logits": 1}
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?(e-?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityPrompt:
    """One prompt and what the trained model did with it."""

    token_ids_T: Tensor
    routes_LTk: Tensor
    margins_LT: Tensor
    """(z_k − z_{k+1}) / max(1, max |z|) of the sorted router logits z, infinity where k = n. A
    change of every logit by less than half of this, relative to the largest, leaves the route as it
    is."""
    top_ids_j: Tensor
    top_logits_j: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The content of `parity.safetensors`."""

    prompts: tuple[ParityPrompt, ...]
    route_tolerance: float
    """A route may differ only where its margin is below this."""
    logit_tolerance: float
    """Largest |difference| of a logit, relative to max(1, |logit|)."""


def read_parity(
    folder: Path,
    *,
    vocab_size: int | None = None,
    max_tokens: int | None = None,
    limits: CheckpointLimits = DEFAULT_LIMITS,
) -> Parity | None:
    """Reads the parity file of an adapter folder; None where there is none.

    With `vocab_size`, every token id must be below it; with `max_tokens`, no prompt may be longer.
    Layers and experts are compared with the adapter's when the file is replayed. Raises
    `CheckpointFormatError`.
    """
    with open_folder(folder) as files:
        return parity_in(files, vocab_size=vocab_size, max_tokens=max_tokens, limits=limits)


def parity_in(
    files: Folder,
    *,
    vocab_size: int | None = None,
    max_tokens: int | None = None,
    limits: CheckpointLimits = DEFAULT_LIMITS,
) -> Parity | None:
    """`read_parity` of a folder that is open already."""
    if not files.has(PARITY_FILE):
        return None
    with files.open(PARITY_FILE, max_bytes=limits.parity_bytes) as (stream, size):
        header = read_header(
            stream,
            size,
            file=PARITY_FILE,
            max_bytes=limits.header_bytes,
            dtypes=frozenset(_DTYPES.values()),
        )
        count = _check_header(header)
        tensors = dict(read_tensors(stream, header, lambda _: None))
    prompts = tuple(
        ParityPrompt(
            token_ids_T=tensors[_name(i, "token_ids")],
            routes_LTk=tensors[_name(i, "routes")],
            margins_LT=tensors[_name(i, "margins")],
            top_ids_j=tensors[_name(i, "top_ids")],
            top_logits_j=tensors[_name(i, "top_logits")],
        )
        for i in range(count)
    )
    for i, prompt in enumerate(prompts):
        _check_values(i, prompt, vocab_size)
        found = len(prompt.token_ids_T)
        if max_tokens is not None and found > max_tokens:
            raise CheckpointFormatError(
                f"{PARITY_FILE}: {_name(i, 'token_ids')}: found {found} tokens, "
                f"expected at most {max_tokens}, the context of the model"
            )
    return Parity(
        prompts=prompts,
        route_tolerance=_tolerance(header.metadata, "route_tolerance"),
        logit_tolerance=_tolerance(header.metadata, "logit_tolerance"),
    )


def emit_parity(parity: Parity) -> bytes:
    """The file's content."""
    tensors: dict[str, Tensor] = {}
    for i, prompt in enumerate(parity.prompts):
        tensors[_name(i, "token_ids")] = prompt.token_ids_T.to(torch.int64)
        tensors[_name(i, "routes")] = prompt.routes_LTk.to(torch.uint8)
        tensors[_name(i, "margins")] = prompt.margins_LT.float()
        tensors[_name(i, "top_ids")] = prompt.top_ids_j.to(torch.int64)
        tensors[_name(i, "top_logits")] = prompt.top_logits_j.float()
    # The library refuses tensors that share memory, as views of one result do.
    copies = {k: t.clone(memory_format=torch.contiguous_format) for k, t in tensors.items()}
    metadata = {
        "format_version": _VERSION,
        "prompts": str(len(parity.prompts)),
        "route_tolerance": repr(parity.route_tolerance),
        "logit_tolerance": repr(parity.logit_tolerance),
    }
    data: bytes = safetensors.torch.save(copies, metadata=metadata)
    return data


def _name(index: int, part: str) -> str:
    return f"prompt.{index}.{part}"


def _check_header(header: Header) -> int:
    """Returns the number of prompts of a header that has exactly their tensors, in shapes that
    agree."""
    metadata = header.metadata
    if metadata.get("format_version") != _VERSION:
        raise CheckpointFormatError(
            f"{PARITY_FILE}: format_version: found {show(metadata.get('format_version'))}, "
            f"expected '{_VERSION}'"
        )
    for name in ("route_tolerance", "logit_tolerance"):
        _tolerance(metadata, name)
    text = metadata.get("prompts", "")
    if not re.fullmatch(r"[0-9]{1,3}", text, re.ASCII) or not 1 <= int(text) <= MAX_PROMPTS:
        raise CheckpointFormatError(
            f"{PARITY_FILE}: prompts: found {show(text)}, expected '1' to '{MAX_PROMPTS}'"
        )
    count = int(text)
    expected = {_name(i, part): (i, part) for i in range(count) for part in _DTYPES}
    for name in sorted(expected.keys() ^ header.tensors.keys()):
        what = "is missing" if name in expected else "is not expected"
        raise CheckpointFormatError(f"{PARITY_FILE}: tensor {show(name)} {what}")
    for name, (_, part) in expected.items():
        entry = header.tensors[name]
        if entry.dtype != _DTYPES[part] or len(entry.shape) != _DIMS[part] or 0 in entry.shape:
            raise CheckpointFormatError(
                f"{PARITY_FILE}: {name}: found {entry.dtype} {list(entry.shape)}, "
                f"expected {_DTYPES[part]} of {_DIMS[part]} dimensions, none of them empty"
            )
    tokens = sum(header.tensors[_name(i, "token_ids")].shape[0] for i in range(count))
    if tokens > MAX_TOKENS:
        raise CheckpointFormatError(
            f"{PARITY_FILE}: found {tokens} tokens in {count} prompts, expected at most "
            f"{MAX_TOKENS}: every load computes them"
        )
    first_L, _, first_k = header.tensors[_name(0, "routes")].shape
    for i in range(count):
        (tokens,) = header.tensors[_name(i, "token_ids")].shape
        (top,) = header.tensors[_name(i, "top_ids")].shape
        fitting = {
            "routes": (first_L, tokens, first_k),
            "margins": (first_L, tokens),
            "top_logits": (top,),
        }
        for part, shape in fitting.items():
            found = header.tensors[_name(i, part)].shape
            if found != shape:
                raise CheckpointFormatError(
                    f"{PARITY_FILE}: {_name(i, part)}: found shape {list(found)}, "
                    f"expected {list(shape)}"
                )
    return count


def _check_values(index: int, prompt: ParityPrompt, vocab_size: int | None) -> None:
    end = torch.iinfo(torch.int64).max if vocab_size is None else vocab_size
    token_ids, top_ids = prompt.token_ids_T, prompt.top_ids_j
    checks = {
        "token_ids": (f"token ids from 0 to {end - 1}", (token_ids >= 0) & (token_ids < end)),
        "routes": (
            "experts in ascending order",
            prompt.routes_LTk[..., 1:] > prompt.routes_LTk[..., :-1],
        ),
        "margins": ("values of at least 0", prompt.margins_LT >= 0),  # NaN is not
        "top_ids": (f"token ids from 0 to {end - 1}", (top_ids >= 0) & (top_ids < end)),
        "top_logits": ("finite values", torch.isfinite(prompt.top_logits_j)),
    }
    for part, (expected, good) in checks.items():
        if not good.all():
            position = (~good).nonzero()[0].tolist()
            raise CheckpointFormatError(
                f"{PARITY_FILE}: {_name(index, part)}: found another value at {position}, "
                f"expected {expected}"
            )


def _tolerance(metadata: Mapping[str, str], name: str) -> float:
    text = metadata.get(name, "")
    value = float(text) if len(text) <= 40 and _NUMBER.fullmatch(text) else math.nan
    if not 0 < value <= 1:
        raise CheckpointFormatError(
            f"{PARITY_FILE}: {name}: found {show(text)}, expected a number above 0 and at most 1"
        )
    return value
