"""Compile the kernels for CPUs with AMX, once per machine, and open them.

A shared library (one for inference, one for training) takes about ten seconds to build and stays in
the cache folder under the hash of its sources and flags: later processes open it, and an update of
this package makes a new one.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
SOURCES = ("attention.cpp", "patches.cpp", "products.cpp", "products_fp32.cpp", "rows.cpp")
HEADERS = ("tiles.h", "vectors.h", "blocks.h")
TRAINING_SOURCES = ("training_products.cpp", "training_rows.cpp", "training_attention.cpp")
TRAINING_HEADERS = (*HEADERS, "training.h")
SLIDING_SOURCES = ("sliding.cpp",)
FLAGS = ("-O3", "-std=c++17", "-march=sapphirerapids", "-fopenmp", "-shared", "-fPIC")

_I, _P, _F = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_ARGUMENTS = {
    "attention": [_P, _P, *[_I] * 5, *[_P] * 5, _I, _P, _P, _I],
    "reading": [*[_P] * 4, *[_I] * 5, *[_P] * 5, _I, _P, _P, _I],
    "rotate_parts": [_P, *[_I] * 6, *[_P] * 4, _I, _P, _P, _I],
    "patch_pixels": [_P, _P, *[_I] * 14, *[_P] * 7, _I, _I, _P, _P],
    "product": [*[_P] * 6, *[_I] * 3, _F, _I, _I],
    "product_int8": [*[_P] * 7, *[_I] * 5],
    "product_fp32": [*[_P] * 5, *[_I] * 4, _F, _I],
    "to_tiles": [_P, _P, _I, _I],
    "from_tiles": [_P, _P, _I, _I],
    "norm_pool": [_P, _P, *[_I] * 4, _P, _P, _P, _F],
    "quantize": [_P, _P, _P, *[_I] * 3, _F],
}
_TRAINING_ARGUMENTS = {
    "pack_weight": [_P, _P, _P, *[_I] * 4],
    "training_product": [_P, _I, _P, _I, *[_P] * 5, _I, _P, _F, *[_I] * 4],
    "weight_gradient": [_P, _I, _P, _P, _I, _P, _I, _P, _P, *[_I] * 4],
    "norm_gradient": [*[_P] * 5, _I, _I],
    "turn": [*[_P] * 3, *[_I] * 5],
    "turn_gradient": [*[_P] * 5, *[_I] * 5],
    "training_attention": [*[_P] * 7, *[_I] * 4],
    "training_attention_gradient": [*[_P] * 11, *[_I] * 4],
}

_SLIDING_ARGUMENTS = {
    "sliding_pack": [_P, _I, _P, _I, *[_P] * 5, *[_I] * 9, *[_P] * 6],
    "sliding_attend": [*[_P] * 7, *[_I] * 11],
}


def why_unavailable(*, training: bool = False) -> str | None:
    """The reason why the kernels (those of ``training``) cannot run here, or None if they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"{platform.system()} {platform.machine()} is not Linux on x86-64"
    missing = {"amx_tile", "amx_bf16", "avx512_bf16", "avx512bw"} - cpu_flags()
    if missing:
        return f"the processor lacks {', '.join(sorted(missing))}"
    try:
        training_library() if training else library()
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


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The kernels, with their argument types; RuntimeError or OSError where they cannot be had."""
    opened = _open(_build("kernels", SOURCES, HEADERS), _ARGUMENTS)
    opened.bocage_attention.restype = opened.bocage_reading.restype = ctypes.c_int
    return opened


@lru_cache(maxsize=1)
def training_library() -> ctypes.CDLL:
    """The kernels of a training step, as ``library``."""
    opened = _open(_build("training", TRAINING_SOURCES, TRAINING_HEADERS), _TRAINING_ARGUMENTS)
    for name in ("training_attention", "training_attention_gradient"):
        getattr(opened, f"bocage_{name}").restype = ctypes.c_int
    return opened


@lru_cache(maxsize=1)
def sliding_library() -> ctypes.CDLL:
    """The kernels of seam-free inference, which few need, as ``library``."""
    return _open(_build("sliding", SLIDING_SOURCES, HEADERS), _SLIDING_ARGUMENTS)


def _open(path: Path, arguments_of: dict[str, list[Any]]) -> ctypes.CDLL:
    opened = ctypes.CDLL(str(path))
    for name, arguments in arguments_of.items():
        function = getattr(opened, f"bocage_{name}")
        function.argtypes = arguments
        function.restype = None
    if opened.bocage_request_tiles() != 0:
        raise RuntimeError("the system does not grant the AMX tile registers")
    return opened


def _build(kind: str, names: Sequence[str], headers: Sequence[str]) -> Path:
    """Path of a shared library, compiled if this machine has none of these sources yet."""
    compiler = os.environ.get("CXX") or shutil.which("g++")
    key = hashlib.sha256(" ".join((*FLAGS, str(compiler))).encode())
    for name in (*headers, *names):
        key.update((FOLDER / name).read_bytes())
    path = cache_folder() / f"{kind}-{key.hexdigest()[:16]}.so"
    if path.exists():
        return path
    if compiler is None:
        raise RuntimeError("there is no C++ compiler (g++)")
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        sources = [str(FOLDER / name) for name in names]
        result = subprocess.run(
            [compiler, *FLAGS, *sources, "-o", str(built)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise RuntimeError(f"{compiler} cannot build the kernels: {result.stderr[:500]}")
        built.replace(path)  # atomic: two processes may build at once
    logger.info("compiled the kernels in %.1f s, kept as %s", time.perf_counter() - started, path)
    return path
