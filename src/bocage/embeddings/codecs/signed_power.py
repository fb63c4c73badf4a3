"""Signed-power int8: the rule of the public OlmoEarth and AlphaEarth archives.

    q = clip(rint(sign(x) * sqrt(|x|) * 127.5), -127, 127)
    x = sign(q) * (|q| / 127.5) ** 2

Code -128 is no data and is NaN among real vectors, in both directions. The square root spends codes
where coordinates of embeddings are dense, near zero; the largest value that survives is 0.99217,
not 1, and larger ones are clipped. Nothing is fitted, so codes of any two files are comparable.

Both directions run in blocks that stay in the L2 cache; one numpy pass at a time over the whole
array would be bound by memory instead (bench/codecs_signed_power.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NODATA = -128
"""The code of no data; NaN when decoded."""

SCALE = 127.5
"""Code of magnitude one, before rounding and clipping to 127."""

# 64 Ki floats: 256 KiB of scratch beside the source, well inside 1-2 MiB of L2. Encoding ran at
# 1.3, 1.9 and 2.3 GB/s of float32 with 4, 16 and 64 Ki (one Sapphire Rapids core, 2026-11).
_BLOCK = 65_536


def encode(x: NDArray[np.floating], *, out: NDArray[np.int8] | None = None) -> NDArray[np.int8]:
    """Quantize real vectors to int8 codes by the signed square root; NaN becomes -128.

    `x` has any shape, float32 (other floats are converted); infinities clip to ±127 like any large
    value. `out`, C-contiguous int8 of the same shape, is filled and returned when given.
    """
    source = np.ascontiguousarray(x, dtype=np.float32)
    q = _target(out, np.shape(x), np.dtype(np.int8))
    flat_x, flat_q = source.reshape(-1), q.reshape(-1)
    scratch = np.empty(min(_BLOCK, flat_x.size), np.float32)
    for start in range(0, flat_x.size, _BLOCK):
        block = flat_x[start : start + _BLOCK]
        y = scratch[: block.size]
        np.abs(block, out=y)
        np.sqrt(y, out=y)
        np.copysign(y, block, out=y)
        np.multiply(y, np.float32(SCALE), out=y)
        np.maximum(y, np.float32(-127), out=y)  # keeps NaN
        np.minimum(y, np.float32(127), out=y)
        np.fmax(y, np.float32(NODATA), out=y)  # replaces NaN, and nothing else is below -127
        np.rint(y, out=y)
        np.copyto(flat_q[start : start + _BLOCK], y, casting="unsafe")
    return q


def decode(q: NDArray[np.int8], *, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Undo signed-power int8 codes as float32; -128 becomes NaN, so average with nan-aware means.

    `q` has any shape and must be int8 (a uint8 file would silently mean other numbers). `out`,
    C-contiguous float32 of the same shape, is filled and returned when given.
    """
    q = np.asarray(q)
    if q.dtype != np.int8:
        raise InputError(
            got=f"signed-power codes of type {q.dtype}",
            expected="int8",
            fix="read the file as int8, or view uint8 bytes with q.view('int8')",
        )
    x = _target(out, q.shape, np.dtype(np.float32))
    flat_q = np.ascontiguousarray(q).reshape(-1).view(np.uint8)
    flat_x = x.reshape(-1)
    scratch = np.empty(min(_BLOCK, flat_q.size), np.intp)
    for start in range(0, flat_q.size, _BLOCK):
        block = flat_q[start : start + _BLOCK]
        index = scratch[: block.size]
        np.copyto(index, block)
        # mode="clip" skips the bounds check, which uint8 indices into 256 entries do not need.
        np.take(_VALUES, index, out=flat_x[start : start + _BLOCK], mode="clip")
    return x


def _value_table() -> NDArray[np.float32]:
    """Value of each code, indexed by the code's byte (-1 is 255, -128 is 128)."""
    q = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float64)
    values = (np.sign(q) * (np.abs(q) / SCALE) ** 2).astype(np.float32)
    values[NODATA % 256] = np.nan
    return values


_VALUES = _value_table()


def _target(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise InputError(
            got=f"out of shape {out.shape} and type {out.dtype}",
            expected=f"a C-contiguous array of shape {shape} and type {dtype}",
            fix="leave out away, or allocate it with np.empty",
        )
    return out
