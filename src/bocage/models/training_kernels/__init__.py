"""The kernels of a training step on CPUs with AMX as functions of tensors.

``products.cpp``   linear maps with norm, GELU and sum, gradients of their weights
``attention.cpp``  attention and its gradient
``rows.cpp``       gradient of a norm, rotary encoding and its gradient

Vectors, tiles and packed products are those of inference (``engine/product_of_rows.h``).

Numbers are fp32, of which three of bf16 stand for each in a product, or bf16. Widths are multiples
of 32, tensors contiguous. Axes: M rows, K depth, O columns; of attention n tokens, G vectors of a
token (queries, keys, values), M heads, D width of all heads together.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bocage.errors import BocageWarning
from bocage.memory import keep_freed_memory
from bocage.models import native
from bocage.models.native import pointer

HEAD_WIDTHS = (16, 32, 64)
N_PARTS = {torch.float32: 3, torch.bfloat16: 1}
_ALIGNMENT = 32
_PLAIN, _ADD, _GELU, _GELU_BACK = range(4)


@lru_cache(maxsize=1)
def why_unavailable() -> str | None:
    """The reason why the kernels cannot run here, or None if they can."""
    reason = native.why_unavailable("training")
    if reason is not None and "amx_bf16" in native.cpu_flags():
        warnings.warn(
            f"{reason}: training takes the plain layers, about 1.3 times slower",
            BocageWarning,
            stacklevel=2,
        )
    return reason


def pack_weight(
    weight: Tensor, dtype: torch.dtype, *, gain: Tensor | None = None, turned: bool = False
) -> Tensor:
    """Weight [O, K] times ``gain`` [K] for products in ``dtype``; ``turned``: of x [M, O]."""
    n_out, n_in = weight.shape
    parts = N_PARTS[dtype]
    memory = torch.empty(weight.numel() * parts + _ALIGNMENT, dtype=torch.bfloat16)
    out = memory[-(memory.data_ptr() // 2) % _ALIGNMENT :][: weight.numel() * parts]
    _library().bocage_pack_weight(
        pointer(weight), pointer(gain), pointer(out), n_out, n_in, turned, parts
    )
    return out


def product(
    x: Tensor,
    weight: Tensor,
    n_out: int,
    *,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
    plus: Tensor | None = None,
    row_scale: Tensor | None = None,
    norm_epsilon: float | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``x W^T + bias`` [M, O] of x [M, K] with a packed weight, and the moments of the norm [M, 2].

    Before it LayerNorm without gain if ``norm_epsilon`` is given. With ``plus`` fp32 [M, O] the
    result is ``plus + row_scale * product``, without it that of ``row_scale * x``.
    """
    out = torch.empty(len(x), n_out, dtype=out_dtype) if out is None else out
    moments = None if norm_epsilon is None else torch.empty(len(x), 2)
    kind = _PLAIN if plus is None else _ADD
    _product(x, weight, out, dtype, kind, bias, plus, row_scale, None, moments, norm_epsilon)
    return out, moments


def product_gelu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    dtype: torch.dtype,
    norm_epsilon: float,
    before: Tensor,
    moments: Tensor,
) -> Tensor:
    """GELU of ``norm(x) W^T + bias``, lent until the next call of a function here.

    Fills what GELU is of, ``before`` [M, O], and the moments of the norm.
    """
    out = _lent(0, before.shape, dtype)
    _product(x, weight, out, dtype, _GELU, bias, None, None, before, moments, norm_epsilon)
    return out


def product_gelu_back(
    gradient: Tensor,
    weight: Tensor,
    before: Tensor,
    *,
    dtype: torch.dtype,
    row_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``(row_scale * gradient) W`` times the slope of GELU at ``before``, and GELU there.

    Both are lent, as by ``product_gelu``.
    """
    out, after = (_lent(i, before.shape, dtype) for i in range(2))
    _product(gradient, weight, out, dtype, _GELU_BACK, None, before, row_scale, after, None, None)
    return out, after


def weight_gradient(
    gradient: Tensor,
    x: Tensor,
    *,
    dtype: torch.dtype,
    row_scale: Tensor | None = None,
    moments: Tensor | None = None,
    add_to: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``(row_scale * gradient)^T norm(x)`` fp32 [O, K] and the sums [O] of the left side.

    ``gradient`` [M, O], x [M, K]; the norm is that of ``moments``, without them there is none.
    ``add_to`` is added to and returned.
    """
    (n_rows, n_out), n_in = gradient.shape, x.shape[1]
    by_weight, by_bias = add_to or (torch.empty(n_out, n_in), torch.empty(n_out))
    _library().bocage_weight_gradient(
        pointer(gradient),
        gradient.dtype == torch.float32,
        pointer(row_scale),
        pointer(x),
        x.dtype == torch.float32,
        pointer(moments),
        N_PARTS[dtype],
        pointer(by_weight),
        pointer(by_bias),
        n_rows,
        n_out,
        n_in,
        add_to is not None,
    )
    return by_weight, by_bias


def norm_gradient(
    by_norm: Tensor,
    x: Tensor,
    moments: Tensor,
    *,
    plus: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``plus`` and the gradient of x [M, D] from that of its LayerNorm without gain, all fp32."""
    out = torch.empty_like(x) if out is None else out
    _library().bocage_norm_gradient(
        *(pointer(part) for part in (by_norm, x, moments, plus, out)), *x.shape
    )
    return out


def turn(x: Tensor, factors: Tensor, n_turned: int) -> Tensor:
    """The first of the G vectors of x [n, G, D], times complex [n, D / 2]: [n, turned, D]."""
    n_tokens, n_vectors, width = x.shape
    out = torch.empty(n_tokens, n_turned, width, dtype=x.dtype)
    _library().bocage_turn(
        *(pointer(part) for part in (x, factors, out)),
        n_tokens,
        n_vectors,
        n_turned,
        width,
        x.dtype == torch.float32,
    )
    return out


def turn_gradient(
    gradient: Tensor, turned: Tensor, factors: Tensor, *, by_angle: Tensor | None
) -> Tensor:
    """Gradient [n, G, D] before ``turn`` of ``gradient`` fp32 [n, G, D] after it.

    Fills ``by_angle`` [n, D / 2]. In fp32 ``gradient`` itself is changed and returned.
    """
    n_tokens, n_vectors, width = gradient.shape
    out = (
        gradient
        if turned.dtype == torch.float32
        else torch.empty_like(gradient, dtype=turned.dtype)
    )
    _library().bocage_turn_gradient(
        *(pointer(part) for part in (gradient, turned, factors, out, by_angle)),
        n_tokens,
        n_vectors,
        turned.shape[1],
        width,
        turned.dtype == torch.float32,
    )
    return out


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Attention [n, D] of q [n, D] over k and v [m, D], views of whole tokens, and its normalizer.

    ``rows`` int64 [R, 4]: first token and number of those that ask, and of those that are read. The
    normalizer [n, M] is the base-2 logarithm of the sum of exponentials.
    """
    out = torch.empty(q.shape, dtype=q.dtype)
    if bool((rows[:, 3] == 0).any()):
        out.zero_()  # who reads nothing gets nothing
    normalizer = torch.empty(len(q), heads)
    _attention("", (q, k, v), (pointer(out), pointer(normalizer)), (q, k, v), rows, heads)
    return out, normalizer


def attention_gradient(  # noqa: PLR0917 - what attention had and gave
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    normalizer: Tensor,
    rows: Tensor,
    by: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fill ``by``, fp32 views like q, k and v, with their gradients from that of ``out``."""
    if bool((rows[:, 1::2] == 0).any()):
        for part in by:
            part.zero_()
    others = [pointer(part) for part in (out, gradient, normalizer)]
    others += [part.data_ptr() for part in by]
    heads = normalizer.shape[1]
    _attention("_gradient", (q, k, v), others, (q, k, v, *by), rows, heads)


def _attention(  # noqa: PLR0917 - one call, of two functions
    kind: str,
    views: Sequence[Tensor],
    others: Sequence[int | None],
    strided: Sequence[Tensor],
    rows: Tensor,
    heads: int,
) -> None:
    n_tokens_width = views[0].shape
    if any(part.stride(1) != 1 for part in strided):
        raise ValueError("vectors of attention are not contiguous")
    strides = torch.tensor([part.stride(0) for part in strided])
    head_width = n_tokens_width[1] // heads
    if head_width not in HEAD_WIDTHS:
        raise ValueError(f"no attention kernel for heads of width {head_width}")
    getattr(_library(), f"bocage_training_attention{kind}")(
        *(part.data_ptr() for part in views),
        *others,
        pointer(strides),
        pointer(rows),
        len(rows),
        heads,
        head_width,
        views[0].dtype == torch.float32,
    )


def _product(  # noqa: PLR0917 - one call, of three functions
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    dtype: torch.dtype,
    kind: int,
    bias: Tensor | None,
    plus: Tensor | None,
    row_scale: Tensor | None,
    other: Tensor | None,
    moments: Tensor | None,
    norm_epsilon: float | None,
) -> None:
    _library().bocage_training_product(
        pointer(x),
        x.dtype == torch.float32,
        pointer(weight),
        N_PARTS[dtype],
        pointer(bias),
        pointer(plus),
        pointer(row_scale),
        pointer(out),
        pointer(other),
        out.dtype == torch.float32,
        pointer(moments),
        norm_epsilon or 0.0,
        *x.shape,
        out.shape[1],
        kind,
    )


class _Memory(threading.local):
    """What is lent to a thread: between tensors that are kept, others would never be in a cache."""

    def __init__(self) -> None:
        self.parts: dict[tuple[int, torch.dtype], Tensor] = {}


_memory = _Memory()


def _lent(number: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    part = _memory.parts.get((number, dtype))
    if part is None or part.numel() < shape.numel():
        part = _memory.parts[number, dtype] = torch.empty(shape.numel(), dtype=dtype)
    return part[: shape.numel()].view(shape)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    keep_freed_memory()
    return native.library("training")
