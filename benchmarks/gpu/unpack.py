"""Unpacks on a GPU machine what `pack.py` has packed. Standard library only, but for bases, which
are converted with what the other sets brought.

    python3 -m benchmarks.gpu.unpack FOLDER [--site SITE]

A set whose pieces are not all there is named and left for later, so pieces may come one by one.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".tar.xz"
BASES = "bases"
_CONVERT = """
import sys, tempfile
from pathlib import Path
from remix_runtime.demo_model import MODELS, convert, default_cache

for gguf in Path(sys.argv[1]).glob("*.gguf"):
    folder = default_cache() / gguf.stem
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            convert(MODELS[gguf.stem], gguf, Path(scratch) / "base")
            (Path(scratch) / "base").rename(folder)
    print(folder)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the pieces")
    parser.add_argument("--site", type=Path, default=Path("build/gpu-site"), help="where to")
    arguments = parser.parse_args()
    site: Path = arguments.site.resolve()
    site.mkdir(parents=True, exist_ok=True)
    sets = dict(complete_sets(arguments.folder))
    for name, pieces in sets.items():
        target = site / BASES if name == BASES else site
        with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in pieces))) as tar:
            tar.extractall(target, filter="data")
        print(f"{name}: unpacked into {target}", flush=True)
    if BASES in sets:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.getcwd()])}
        command = [sys.executable, "-W", "ignore", "-c", _CONVERT, str(site / BASES)]
        subprocess.run(command, env=environment, check=True)
    print(f"now: PYTHONPATH={site} {sys.executable} -m benchmarks.gpu.check")


def complete_sets(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """The sets in a folder with their pieces in order; says which are not complete."""
    found: dict[tuple[str, int], dict[int, Path]] = {}
    pattern = re.compile(rf"(\w+){re.escape(SUFFIX)}\.(\d+)of(\d+)")
    for path in folder.iterdir():
        if match := pattern.fullmatch(path.name):
            name, number, count = match[1], int(match[2]), int(match[3])
            found.setdefault((name, count), {})[number] = path
    if not found:
        sys.exit(f"error: {folder}: found no pieces, expected NAME{SUFFIX}.1of2 and the like")
    for (name, count), pieces in sorted(found.items()):
        if len(pieces) == count:
            yield name, [pieces[number] for number in range(1, count + 1)]
        else:
            print(f"{name}: {len(pieces)} of {count} pieces are here", flush=True)


if __name__ == "__main__":
    main()
