"""Compile kernels in C++ for CPUs with AMX, once per machine, and open them.

A shared library takes about ten seconds to build and stays in the cache folder under the hash of
its sources and flags: later processes open it, and an update of this package makes a new one.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from functools import lru_cache
from pathlib import Path

from torch import Tensor

logger = logging.getLogger(__name__)

MODELS = Path(__file__).parent
SOURCES = {
    "engine": ("attention", "patches", "pool", "product_of_rows", "product_of_tiles"),
    "sliding": ("sliding",),
    "training": ("attention", "products", "rows"),
}
"""Libraries: inference, its seam-free kind, which few need, and training."""

FOLDERS = {"engine": "engine", "sliding": "engine", "training": "training_kernels"}
FLAGS = ("-O3", "-std=c++17", "-march=sapphirerapids", "-fopenmp", "-shared", "-fPIC")
TILE_PERMISSION = 158, 0x1023, 18
"""Linux hands out the tile registers on request: arch_prctl, ARCH_REQ_XCOMP_PERM, tile data."""


def why_unavailable(name: str = "engine") -> str | None:
    """The reason why the kernels of a library cannot run here, or None if they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"{platform.system()} {platform.machine()} is not Linux on x86-64"
    missing = {"amx_tile", "amx_bf16", "avx512_bf16", "avx512bw"} - cpu_flags()
    if missing:
        return f"the processor lacks {', '.join(sorted(missing))}"
    try:
        library(name)
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor as Linux names them; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def cache_folder() -> Path:
    """Folder of compiled code: BOCAGE_CACHE, else the user's cache folder."""
    if "BOCAGE_CACHE" in os.environ:
        return Path(os.environ["BOCAGE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bocage"


@lru_cache(maxsize=3)
def library(name: str) -> ctypes.CDLL:
    """The kernels ``bocage_...`` of a library; RuntimeError or OSError where they cannot be had."""
    if ctypes.CDLL(None).syscall(*map(ctypes.c_long, TILE_PERMISSION)) != 0:
        raise RuntimeError("the system does not grant the AMX tile registers")
    sources = [MODELS / FOLDERS[name] / f"{source}.cpp" for source in SOURCES[name]]
    opened = ctypes.CDLL(str(_build(name, sources)))
    for source in sources:
        declared = re.findall(r'extern "C" void (\w+)\((.*?)\)', source.read_text(), re.DOTALL)
        for function, arguments in declared:
            getattr(opened, function).restype = None
            getattr(opened, function).argtypes = [_type(each) for each in arguments.split(",")]
    return opened


def pointer(x: Tensor | None) -> int | None:
    """Where the numbers of a contiguous tensor begin."""
    if x is None:
        return None
    if not x.is_contiguous():
        raise ValueError(f"kernel argument of strides {x.stride()} is not contiguous")
    return x.data_ptr()


def _type(argument: str) -> type:
    """The type of an argument by its declaration in C++."""
    if "*" in argument:
        return ctypes.c_void_p
    return {"int64_t": ctypes.c_int64, "float": ctypes.c_float}[argument.split(maxsplit=1)[0]]


def _build(name: str, sources: list[Path]) -> Path:
    """Path of a shared library, compiled if this machine has none of these sources yet."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    key = hashlib.sha256(" ".join((*FLAGS, str(compiler))).encode())
    headers = sorted(
        path for folder in set(FOLDERS.values()) for path in MODELS.glob(f"{folder}/*.h")
    )
    for path in (*headers, *sources):
        key.update(path.read_bytes())
    path = cache_folder() / f"{name}-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    if compiler is None:
        raise RuntimeError("there is no C++ compiler (g++)")
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        result = subprocess.run(
            [compiler, *FLAGS, *map(str, sources), "-o", str(built)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"{compiler} cannot build the kernels: {result.stderr[:500]}")
        built.replace(path)  # atomic: two processes may build at once
    logger.info("compiled the kernels in %.1f s, kept as %s", time.perf_counter() - started, path)
    return path
