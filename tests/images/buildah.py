"""Builds images with buildah, in a folder of their own, on bases that debootstrap makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.images.indexes import Indexes

ROOT = Path(__file__).parents[2]
MIRROR = "http://deb.debian.org/debian"
PYTHON_PREFIX = "/usr/local/bin"
CLEAN = """\
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""
"""What base images of Debian and Ubuntu tell apt, so that layers have no downloads in them."""


@dataclass(frozen=True)
class Base:
    """What stands in for a base image that cannot be pulled: Debian's packages under its tag."""

    tag: str
    suite: str
    packages: tuple[str, ...]
    python: str | None = None
    """A Python of Debian that gets the place and the names of the real base's own."""
    copied_python: str | None = None
    """A Python of this machine that is copied there, where Debian has none of that version."""


@dataclass(frozen=True)
class Layer:
    """A layer of an image, as tar files have it."""

    made_by: str
    num_bytes: int
    compressed_bytes: int


class Buildah:
    """Images in one folder. Needs root, buildah and debootstrap."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, *arguments: str | Path) -> str:
        """Raises `CalledProcessError` with what buildah said."""
        command = ["buildah", "--root", self._folder / "store", "--runroot", self._folder / "run"]
        environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True
        )
        if done.returncode:
            raise AssertionError(
                f"buildah {arguments[0]}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
            )
        return done.stdout.strip()

    def has(self, tag: str) -> bool:
        return bool(self.run("images", "--quiet", "--filter", f"reference={tag}"))

    def make_base(self, base: Base) -> None:
        """Makes the stand-in, if it is not there yet."""
        if self.has(base.tag):
            return
        root = self._folder / "base"
        shutil.rmtree(root, ignore_errors=True)
        packages = ",".join(("ca-certificates", *base.packages))
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", base.suite, root]
        subprocess.run([*command, MIRROR], check=True, capture_output=True)
        for folder in (root / "var/cache/apt/archives", root / "var/lib/apt/lists"):
            shutil.rmtree(folder)
            folder.mkdir()
        (root / "etc/apt/apt.conf.d/docker-clean").write_text(CLEAN)
        if base.python is not None:
            for name in ("python", "python3"):
                (root / PYTHON_PREFIX.lstrip("/") / name).symlink_to(f"/usr/bin/{base.python}")
        if base.copied_python is not None:
            copy_python(base.copied_python, root / "usr/local")
            subprocess.run(["chroot", root, "ldconfig"], check=True)
        for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()  # the real base's Python is not Debian's
        container = self.run("from", "--pull-never", "scratch")
        self.run("add", "--quiet", container, root, "/")
        self.run("commit", "--quiet", "--format", "docker", "--rm", container, base.tag)
        shutil.rmtree(root)

    def build(self, dockerfile: str, tag: str, indexes: Indexes, *arguments: str) -> None:
        """Builds from the project's folder. A layer for each instruction, as Docker makes them."""
        self.run(
            *("build", "--format", "docker", "--pull-never", "--layers", "--tag", tag),
            *("--file", f"docker/{dockerfile}", *indexes.options(self._folder), *arguments, "."),
        )

    def inspect(self, tag: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("inspect", "--type", "image", tag))
        return found

    def layers(self, tag: str) -> list[Layer]:
        """Those that have content, the base's first."""
        found = self.inspect(tag)
        history = [item for item in found["OCIv1"]["history"] if not item.get("empty_layer")]
        sizes = [layer["size"] for layer in json.loads(found["Manifest"])["layers"]]
        packed = self._compressed(tag)
        return [
            Layer(item["created_by"], *size)
            for item, *size in zip(history, sizes, packed, strict=True)
        ]

    def _compressed(self, tag: str) -> list[int]:
        """The bytes of each layer, as a registry has them."""
        folder = self._folder / "pushed"
        shutil.rmtree(folder, ignore_errors=True)
        self.run("push", "--quiet", "--format", "oci", tag, f"oci:{folder}:pushed")

        def blob(digest: str) -> dict[str, Any]:
            text = (folder / "blobs" / digest.replace(":", "/")).read_text()
            found: dict[str, Any] = json.loads(text)
            return found

        (entry,) = json.loads((folder / "index.json").read_text())["manifests"]
        sizes = [layer["size"] for layer in blob(entry["digest"])["layers"]]
        shutil.rmtree(folder)
        return sizes

    @contextmanager
    def mounted(self, tag: str) -> Iterator[Path]:
        """A folder with the image's files, in which nothing that is written lasts."""
        container = self.run("from", "--pull-never", tag)
        try:
            yield Path(self.run("mount", container))
        finally:
            self.run("umount", container)
            self.run("rm", container)

    def clear(self) -> None:
        """Removes every image and container, and the folder."""
        self.run("rm", "--all")
        self.run("rmi", "--all", "--force")
        shutil.rmtree(self._folder)


def copy_python(name: str, to: Path) -> None:
    """A Python that was built for a folder of its own, without what was installed there later."""
    prefix = _prefix_of(name)
    for folder in ("lib", "include"):
        (to / folder).mkdir(exist_ok=True)
        shutil.copytree(
            prefix / folder / name,
            to / folder / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("site-packages", "test", "__pycache__"),
        )
    shutil.copy2((prefix / "bin" / name).resolve(), to / "bin" / name)
    for library in (prefix / "lib").glob("libpython3*.so*"):
        shutil.copy2(library, to / "lib", follow_symlinks=False)
    (to / "bin" / "python3").symlink_to(name)


def _prefix_of(name: str) -> Path:
    """The folder that a Python of this machine was built into, of PATH or of pyenv."""
    tried = [shutil.which(name), *sorted(Path.home().glob(f".pyenv/versions/*/bin/{name}"))]
    for program in filter(None, tried):
        command = [program, "-c", "import sys; print(sys.base_prefix)"]
        done = subprocess.run(command, capture_output=True, text=True)
        prefix = Path(done.stdout.strip())
        if done.returncode == 0 and prefix != Path("/usr"):
            return prefix
    raise AssertionError(f"needs a {name} that was built into a folder of its own")
