"""The C kernels of this folder: compiled once per machine, loaded with ctypes.

All `*.c` here become one shared library, compiled at first use (some seconds) for the CPU
at hand and kept in the user's cache folder under a name that hashes everything it depends on. Its
last bytes are a checksum of the others: what a crash or a disk has spoilt is compiled again, since
code that is mapped from it would end the process.
Without a C compiler `lib()` is None and callers take their PyTorch path. `REMIX_NATIVE=0`
switches the library off.

The library is linked with OpenMP. PyTorch bundles `libgomp.so.1`; as `torch` is imported first,
the loader gives ours the same copy, so both share one pool of threads. Every kernel takes its
number of threads as an argument: pass `torch.get_num_threads()`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401 - loads its libgomp before ours is looked up

from remix_runtime.adapter.checkpoint import sync_folder
from remix_runtime.locks import locked
from remix_runtime.private import private_folder

_log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
# No -ffast-math: NaN and infinity must reach the output, and sums keep their order.
FLAGS = [
    *("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wall", "-Wextra"),
]
_SEAL = b"remix-sha256"
_SEAL_BYTES = len(_SEAL) + hashlib.sha256().digest_size


@functools.cache
def lib() -> ctypes.CDLL | None:
    """The loaded library, or None where it is switched off or cannot be built."""
    if os.environ.get("REMIX_NATIVE", "1") == "0":
        return None
    try:
        return load(build(cache_folder()))
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning(
            "no native CPU kernels, PyTorch ones are used and are several times slower "
            "(install a C compiler with OpenMP, for instance gcc): %s",
            str(getattr(error, "stderr", None) or error).strip(),
        )
        return None


def cache_folder() -> Path:
    """A folder of this user's own. Code is loaded from it, so nobody else may write there, nor into
    the folder above, where another one could take its name."""
    import platformdirs

    folder = platformdirs.user_cache_path("remix-serve") / "kernels"
    try:
        if private_folder(folder.parent) and _is_ours(folder.parent.stat()):
            folder.mkdir(mode=0o700, exist_ok=True)
            if _is_ours(folder.stat()):
                return folder
    except OSError:
        pass
    _log.warning("%s: others may write there; the kernels are compiled at each start", folder)
    return Path(tempfile.mkdtemp(prefix="remix-kernels-"))


def load(path: Path) -> ctypes.CDLL:
    """Loads a library that only this user can have written, and that is whole. Whoever may write
    in a folder above it may put another one at `path` at any moment: what was looked at is what is
    loaded. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or not _is_ours(found):
        os.close(fd)
        raise PermissionError(errno.EPERM, "others may have written this library", str(path))
    if not _is_sealed(fd):
        os.close(fd)
        raise OSError(errno.EIO, "this library is damaged", str(path))
    # It stays open: the loader takes a name that it knows for the library that it knows.
    return ctypes.CDLL(f"/proc/self/fd/{fd}")


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o022


def build(folder: Path) -> Path:
    """Path of the library in `folder`, compiled first where it is not there yet, or damaged.

    Raises `OSError` without a compiler and `subprocess.CalledProcessError` when it fails.
    """
    compiler = _compiler()
    path = folder / f"remix-{_fingerprint(compiler)}.so"
    if _is_whole(path):
        return path
    with locked(folder / "build.lock"):
        if not _is_whole(path):
            if path.exists():
                _log.warning("%s is damaged and is compiled again", path)
            _log.info("compiling the native CPU kernels into %s", folder)
            for left in folder.glob("remix-*.tmp"):  # by a build that was killed
                left.unlink()
            unfinished = path.with_suffix(f".{os.getpid()}.tmp")
            sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
            command = [compiler, *FLAGS, "-o", str(unfinished), *sources, "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)  # noqa: S603
            unfinished.chmod(0o700)  # whatever the umask is
            _seal(unfinished)
            unfinished.rename(path)
            sync_folder(folder)
    return path


def _seal(path: Path) -> None:
    """Puts the checksum behind the library, where no loader looks, and all of it on the disk."""
    with path.open("r+b") as stream:
        seal = _SEAL + hashlib.sha256(stream.read()).digest()
        stream.write(seal)
        stream.flush()
        os.fsync(stream.fileno())


def _is_sealed(fd: int) -> bool:
    with os.fdopen(fd, "rb", closefd=False) as stream:
        data = stream.read()
    library = data[:-_SEAL_BYTES]
    return data[-_SEAL_BYTES:] == _SEAL + hashlib.sha256(library).digest()


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return _is_sealed(stream.fileno())
    except OSError:
        return False


def _compiler() -> str:
    # gcc before clang: clang brings its own OpenMP and with it a second pool of threads.
    for name in (os.environ.get("CC", ""), "gcc", "cc", "clang"):
        if found := shutil.which(name):
            return found
    raise FileNotFoundError("no C compiler found; looked for $CC, gcc, cc and clang")


def _fingerprint(compiler: str) -> str:
    """A hash of all that decides what the library does: sources, flags, compiler, CPU."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + source.read_bytes())
    version = [compiler, "--version"]
    digest.update(subprocess.run(version, check=True, capture_output=True, timeout=60).stdout)  # noqa: S603
    digest.update(_cpu().encode())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    """What `-march=native` looks at: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    kept = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return platform.machine() + "".join(sorted(kept))
