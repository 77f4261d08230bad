"""Writes what images are made of: docs/results/images.md, a section for each image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

from license_expression import get_spdx_licensing

from tests.images.buildah import ROOT, Layer
from tests.images.contents import Package

RESULTS = ROOT / "docs" / "results"
KEPT, DOCUMENT = RESULTS / "images.json", RESULTS / "images.md"
INTRODUCTION = Path(__file__).with_name("introduction.md")

REASONS = {
    "cpu": {
        "": "the base: Debian and Python",
        "gcc": "gcc, which compiles the kernels at start, for the processor it starts on; OpenMP; "
        "the user and /data",
        "/opt/remix": "Python's packages, of which torch is a half; bytecode, since the root is "
        "read-only",
    },
    "gpu": {
        "": "the base: Ubuntu, and what the driver asks for",
        "gcc": "Python and its headers, and gcc: Triton compiles what launches its "
        "kernels; the user and /data",
        "/opt/remix": "Python's packages: torch with CUDA's libraries, vLLM; bytecode",
    },
}
"""For each image why a layer is there, by a word of what made it; the base has none."""

PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python"),
    *("HPND", "ISC", "MIT", "MIT-0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib"),
}
WEAK_COPYLEFT = {"LGPL-3.0-only", "MPL-2.0"}
"""Of files and libraries that are shipped as they are, which these allow."""
ALLOWED = PERMISSIVE | WEAK_COPYLEFT
REVIEWED: dict[str, str] = {}
"""Packages whose metadata does not say it in SPDX's words, and what their licence files say."""


def not_allowed(packages: Iterable[Package]) -> list[str]:
    """Each package for which no licence of the list can be chosen, and what it says."""
    return [
        f"{package.name} {package.version}: {package.licence!r}"
        for package in packages
        if not is_allowed(REVIEWED.get(package.name, package.licence))
    ]


def is_allowed(licence: str) -> bool:
    """Whether an SPDX expression holds with the list's licences. `A WITH exception` is as A."""
    if not licence:
        return False
    licensing = get_spdx_licensing()
    try:
        expression = licensing.parse(licence, validate=True, strict=False)
    except Exception:  # its own words, or nothing that is known
        return False
    values = {
        symbol: licensing.TRUE if str(symbol).split(" ")[0] in ALLOWED else licensing.FALSE
        for symbol in expression.symbols
    }
    return bool(expression.subs(values, simplify=True) == licensing.TRUE)


def licences(python: Sequence[Package], debian: Sequence[Package]) -> str:
    """A table of every package."""
    rows = ["| Package | Version | Licence |", "|---|---|---|"]
    for package in (*python, *debian):
        licence = REVIEWED.get(package.name, package.licence) or "see its copyright file"
        rows.append(f"| {package.name} ({package.kind}) | {package.version} | {licence} |")
    return "\n".join(rows) + "\n"


def reasons(image: str, layers: Sequence[Layer]) -> list[str]:
    """Why each layer is there. Fails for one that nobody has thought of."""
    known = REASONS[image]
    words = [word for word in known if word]
    found = [[word for word in words if word in layer.made_by] for layer in layers[1:]]
    assert all(found), [
        layer.made_by for layer, has in zip(layers[1:], found, strict=True) if not has
    ]
    return [known[""], *(known[has[0]] for has in found)]


def write(
    image: str, layers: Sequence[Layer], python: Sequence[Package], debian: Sequence[Package]
) -> None:
    """Keeps what a run found of one image, and writes the document of all."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    counts = Counter(REVIEWED.get(p.name, p.licence) for p in python)
    kept[image] = {
        "date": date.today().isoformat(),
        "layers": [
            [reason, layer.num_bytes, layer.compressed_bytes]
            for reason, layer in zip(reasons(image, layers), layers, strict=True)
        ],
        "python": len(python),
        "debian": len(debian),
        "licences": dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
    }
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    parts = [INTRODUCTION.read_text(), *(_section(name, kept[name]) for name in sorted(kept))]
    DOCUMENT.write_text("\n".join(parts))


def _section(image: str, found: dict[str, object]) -> str:
    """Of one image, as Markdown."""
    layers = found["layers"]
    assert isinstance(layers, list)
    rows = [f"| {why} | {size / 1e6:.0f} | {packed / 1e6:.0f} |" for why, size, packed in layers]
    total, packed = (sum(layer[at] for layer in layers) for at in (1, 2))
    named = found["licences"]
    assert isinstance(named, dict)
    return "\n".join(
        [
            f"## remix-serve:{image} ({found['date']})",
            "",
            "| Layer, and why it is there | MB | MB compressed |",
            "|---|---|---|",
            *rows,
            f"| all | {total / 1e6:.0f} | {packed / 1e6:.0f} |",
            "",
            f"{found['python']} packages of Python, {found['debian']} of Debian. Licences of "
            f"Python's: {', '.join(f'{name} {count}' for name, count in named.items())}.",
            "",
        ]
    )
