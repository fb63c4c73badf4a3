"""Build and call ``kernels.cpp``: attention, patch embedding, norms and GELU for CPUs with AMX.

The shared library is compiled once per machine (about five seconds) and kept in the cache folder
under the hash of its source and flags.
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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-std=c++17", "-march=sapphirerapids", "-fopenmp", "-shared", "-fPIC")
HEAD_WIDTHS = (16, 64)
"""Head widths of the attention kernel: nano has 16, all other sizes 64."""


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Rotary encoding of tokens whose angle is a part of their time plus a part of their place."""

    time_cos: Tensor
    """fp32 [B or 1, T, M, K]: M heads, K channel pairs."""

    time_sin: Tensor
    place_cos: Tensor
    """fp32 [cells, M, K]."""

    place_sin: Tensor


@dataclass(frozen=True, kw_only=True)
class TokenOrder:
    """Which time and place each token of the sequence has."""

    time: Tensor
    """int32 [B or 1, N]."""

    place: Tensor
    """int32 [B or 1, N]."""

    lengths: Tensor | None = None
    """int64 [B]: tokens in use, the rest of a row is padding; None if all are."""


@dataclass(frozen=True, kw_only=True)
class ResizeTaps:
    """Rows of a resize matrix [n_out, n_in] as runs of equally many pixels."""

    first: Tensor
    """int32 [n_out]: first pixel."""

    weight: Tensor
    """fp32 [n_out, n taps]; no taps at all where the axis is not resized."""


def why_unavailable() -> str | None:
    """The reason why the kernels cannot run here, or None if they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"{platform.system()} {platform.machine()} is not Linux on x86-64"
    missing = {"amx_tile", "amx_bf16", "avx512_bf16", "avx512bw"} - cpu_flags()
    if missing:
        return f"the processor lacks {', '.join(sorted(missing))}"
    try:
        _library()
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


def attention(
    qkv: Tensor,
    heads: int,
    rotation: Rotation | None,
    order: TokenOrder,
    *,
    rescale: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention [B, N, D] of bf16 qkv [B, N, 3 D]; channel pairs of a head are (k, k + K).

    ``rescale`` is the scale of each row and the bias of each column of a qkv that comes from int8.
    """
    n_batch, n_tokens, _ = qkv.shape
    width = qkv.shape[-1] // 3
    make = torch.empty if order.lengths is None else torch.zeros  # padding is not written
    out = make(n_batch, n_tokens, width, dtype=torch.bfloat16)
    failed = _library().bocage_attention(
        _pointer(qkv),
        _pointer(out),
        n_batch,
        n_tokens,
        heads,
        width // heads,
        None if order.lengths is None else _pointer(order.lengths),
        *((None, None) if rescale is None else map(_pointer, rescale)),
        *_rotation_arguments(rotation, order),
    )
    if failed:
        raise RuntimeError(f"no attention kernel for heads of width {width // heads}")
    return out


def rotate_qk_(qkv: Tensor, heads: int, rotation: Rotation, order: TokenOrder) -> None:
    """Turn q and k of fp32 qkv [B, N, 3 D] in place; channel pairs of a head are (k, k + K)."""
    n_batch, n_tokens, width = qkv.shape
    _library().bocage_rotate_qk(
        _pointer(qkv),
        n_batch,
        n_tokens,
        heads,
        width // 3 // heads,
        *_rotation_arguments(rotation, order),
    )


def patch_pixels(
    x: Tensor,
    out: Tensor,
    *,
    first: int,
    taps: tuple[ResizeTaps, ResizeTaps],
    bands: Tensor,
    hidden: tuple[Tensor, Tensor] | None,
) -> None:
    """Fill rows of bf16 ``out`` with tokens ``first`` on of fp32 x [B, H, W, T, C].

    ``bands`` int32 [16] are the channels of the band set, its length first in ``out``'s width.
    ``hidden`` is the packed weight and bias of the pixel network (see ``pack_hidden``).
    """
    _, rows, cols, times, channels = x.shape
    by_row, by_col = taps
    grid = len(by_row.first) // 8, len(by_col.first) // 8
    weight, bias = hidden if hidden is not None else (None, None)
    n_hidden = 0 if hidden is None else out.shape[1] // 64
    _library().bocage_patch_pixels(
        _pointer(x),
        _pointer(out),
        out.dtype == torch.float32,
        first,
        len(out),
        rows,
        cols,
        times,
        channels,
        *grid,
        by_row.weight.shape[1],
        by_col.weight.shape[1],
        _pointer(by_row.first),
        _pointer(by_row.weight),
        _pointer(by_col.first),
        _pointer(by_col.weight),
        _pointer(bands),
        int((bands >= 0).sum()),
        n_hidden,
        None if weight is None else _pointer(weight),
        None if bias is None else _pointer(bias),
    )


def pack_hidden(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Weight [n_hidden, n_bands] and bias of the pixel network as the kernel reads them."""
    n_hidden, n_bands = weight.shape
    n_blocks = -(-n_hidden // 16)
    padded = torch.zeros(n_blocks * 16, 16)
    padded[:n_hidden, :n_bands] = weight.detach().float()
    padded_bias = torch.zeros(n_blocks * 16)
    padded_bias[:n_hidden] = bias.detach().float()
    if dtype == torch.float32:
        return padded.T.contiguous(), padded_bias
    pairs = padded.view(n_blocks, 16, 8, 2).permute(0, 2, 1, 3)  # block, band pair, hidden, pair
    return pairs.contiguous().to(torch.bfloat16), padded_bias


def layer_norm(x: Tensor, epsilon: float) -> Tensor:
    """LayerNorm without gain of bf16 x [..., D], statistics in fp32."""
    out = torch.empty_like(x)
    width = x.shape[-1]
    _library().bocage_layer_norm(
        _pointer(x), _pointer(out), x.dtype == torch.float32, x.numel() // width, width, epsilon
    )
    return out


def gelu_(x: Tensor) -> Tensor:
    """GELU in place of bf16 x."""
    _library().bocage_gelu(_pointer(x), x.dtype == torch.float32, x.numel())
    return x


def norm_pool(x: Tensor, weight: Tensor, gain: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Weighted mean over L of the LayerNorm of bf16 x [..., L, D], as fp32 [..., D]."""
    *cells, length, width = x.shape
    out = torch.empty(*cells, width)
    _library().bocage_norm_pool(
        _pointer(x),
        _pointer(out),
        x.dtype == torch.float32,
        out.numel() // width,
        length,
        width,
        _pointer(weight),
        _pointer(gain),
        _pointer(bias),
        epsilon,
    )
    return out


def quantize(
    x: Tensor,
    *,
    add: Tensor | None = None,
    rescale: tuple[Tensor, Tensor] | None = None,
    gelu: bool = False,
    norm_epsilon: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows of bf16 x [..., D] as int8 codes and the scale of each row.

    Before that, in this order: ``rescale`` (scale of each row, bias of each column) makes real
    numbers of ``x`` if ``gelu``, or of ``add``, which is then added to ``x`` in place; LayerNorm
    without gain if ``norm_epsilon`` is given.
    """
    codes = torch.empty(x.shape, dtype=torch.int8)
    scale = torch.empty(x.shape[:-1])
    _quantize(x, add, rescale, (codes, scale), gelu=gelu, norm_epsilon=norm_epsilon)
    return codes, scale


def add_(x: Tensor, add: Tensor, rescale: tuple[Tensor, Tensor]) -> Tensor:
    """Add an int8 product in place to bf16 x [..., D]; see ``quantize``."""
    _quantize(x, add, rescale, None)
    return x


def cache_folder() -> Path:
    """Folder of compiled code: BOCAGE_CACHE, else the user's cache folder."""
    if "BOCAGE_CACHE" in os.environ:
        return Path(os.environ["BOCAGE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bocage"


def _pointer(x: Tensor) -> ctypes.c_void_p:
    if not x.is_contiguous():
        raise ValueError(f"kernel argument of strides {x.stride()} is not contiguous")
    return ctypes.c_void_p(x.data_ptr())


def _quantize(
    x: Tensor,
    add: Tensor | None,
    rescale: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor, Tensor] | None,
    *,
    gelu: bool = False,
    norm_epsilon: float | None = None,
) -> None:
    in_scale, bias = rescale if rescale is not None else (None, None)
    codes, scale = out if out is not None else (None, None)
    width = x.shape[-1]
    _library().bocage_quantize(
        _pointer(x),
        *(None if part is None else _pointer(part) for part in (add, in_scale, bias)),
        gelu,
        norm_epsilon is not None,
        norm_epsilon or 0.0,
        None if codes is None else _pointer(codes),
        None if scale is None else _pointer(scale),
        x.numel() // width,
        width,
    )


def _rotation_arguments(rotation: Rotation | None, order: TokenOrder) -> tuple[object, ...]:
    time_tables: tuple[object, ...] = (None, None, None, None, 0)
    if rotation is not None:
        time_tables = (
            _pointer(rotation.time_cos),
            _pointer(rotation.time_sin),
            _pointer(rotation.place_cos),
            _pointer(rotation.place_sin),
            rotation.time_cos[0].numel() if len(rotation.time_cos) > 1 else 0,
        )
    n_tokens = order.time.shape[1]
    return (
        *time_tables,
        _pointer(order.time),
        _pointer(order.place),
        n_tokens if len(order.time) > 1 else 0,
    )


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor as Linux names them; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    key = hashlib.sha256(" ".join((*FLAGS, str(compiler))).encode() + SOURCE.read_bytes())
    path = cache_folder() / f"kernels-{key.hexdigest()[:16]}.so"
    if not path.exists():
        if compiler is None:
            raise RuntimeError("there is no C++ compiler (g++)")
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            result = subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", str(built)],
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode:
                raise RuntimeError(f"{compiler} cannot build {SOURCE.name}: {result.stderr[:500]}")
            built.replace(path)  # atomic: two processes may build at once
        logger.info("compiled %s in %.1f s", SOURCE.name, time.perf_counter() - started)
    library = ctypes.CDLL(str(path))
    i, p, f = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    library.bocage_attention.argtypes = [p, p, i, i, i, i, p, p, p, p, p, p, p, i, p, p, i]
    library.bocage_quantize.argtypes = [p, p, p, p, i, i, f, p, p, i, i]
    library.bocage_rotate_qk.argtypes = [p, i, i, i, i, p, p, p, p, i, p, p, i]
    library.bocage_patch_pixels.argtypes = [p, p, *[i] * 11, p, p, p, p, p, i, i, p, p]
    library.bocage_layer_norm.argtypes = [p, p, i, i, i, f]
    library.bocage_gelu.argtypes = [p, i, i]
    library.bocage_norm_pool.argtypes = [p, p, i, i, i, i, p, p, p, f]
    for function in ("quantize", "rotate_qk", "layer_norm", "gelu", "norm_pool", "patch_pixels"):
        getattr(library, f"bocage_{function}").restype = None
    if library.bocage_request_tiles() != 0:
        raise RuntimeError("the system does not grant the AMX tile registers")
    return library
