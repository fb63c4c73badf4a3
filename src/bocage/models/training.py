"""Linear maps of a training step with what stands around them, on kernels where there are any.

Each function gives the numbers of its plain form, forward and backward, to the rounding of fp32; on
a CPU with AMX norm, bias, GELU and residual sum are part of the products, and fp32 runs on the bf16
tile unit (``training_kernels/products.cpp``). Under autocast products are bf16, the residual stream
and all gradients of parameters fp32.

Axes: n tokens, D width, K O widths of a linear map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from bocage.models import training_kernels as kernels

_PIECE = 4096
"""Tokens that an MLP takes in one go."""


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    norm: nn.LayerNorm | None = None,
    plus: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """``plus + scale * (norm(x) W^T + bias)`` [n, O] of x [n, K]; what is None is left out.

    ``plus`` [n, O], ``scale`` [n, 1] (with ``plus`` only).
    """
    given = [t for t in (weight, bias, plus) if t is not None]
    if _usable(x, given, widths=weight.shape) and (norm is None or _norms(norm, x)):
        gain, shift = (None, None) if norm is None else (norm.weight, norm.bias)
        epsilon = None if norm is None else norm.eps
        out: Tensor = _Linear.apply(x, weight, bias, gain, shift, plus, scale, epsilon)  # type: ignore[no-untyped-call]
        return out
    product = functional.linear(x if norm is None else norm(x), weight, bias)
    return product if plus is None else _add(plus, product, scale)


def add_mlp(
    x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, scale: Tensor | None
) -> Tensor:
    """``x + scale * fc2(gelu(fc1(norm(x))))`` of x [n, D]; ``scale`` [n, 1] or None."""
    given = [fc1.weight, fc1.bias, fc2.weight, fc2.bias]
    if x.dtype == torch.float32 and _usable(x, given, widths=fc1.weight.shape) and _norms(norm, x):
        out: Tensor = _Mlp.apply(x, norm.weight, norm.bias, *given, scale, norm.eps)  # type: ignore[no-untyped-call]
        return out
    return _add(x, fc2(functional.gelu(fc1(norm(x)))), scale)


def product_dtype(x: Tensor) -> torch.dtype:
    """What products of x run in: the type of autocast where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def usable(x: Tensor, *widths: int) -> bool:
    """True where the kernels can multiply x along these widths."""
    return (
        x.device.type == "cpu"
        and x.dtype in kernels.N_PARTS
        and product_dtype(x) in kernels.N_PARTS
        and not any(width % 32 or not width for width in widths)
        and not torch.compiler.is_compiling()
        and kernels.why_unavailable() is None
    )


def _usable(x: Tensor, given: list[Tensor], *, widths: torch.Size) -> bool:
    return all(t.dtype == torch.float32 for t in given) and usable(x, *widths)


def _norms(norm: nn.LayerNorm, x: Tensor) -> bool:
    """True for a norm that is part of the kernels."""
    return x.dtype == torch.float32 and norm.weight is not None and norm.bias is not None


def _add(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """The residual stream after a branch, in one pass."""
    return x + branch if scale is None else torch.addcmul(x, branch, scale)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gain: Tensor | None,
        shift: Tensor | None,
        plus: Tensor | None,
        scale: Tensor | None,
        epsilon: float | None,
    ) -> Tensor:
        ctx.dtype = dtype = product_dtype(x)
        x, weight = x.contiguous(), weight.contiguous()
        scale = None if scale is None else scale.float().contiguous()
        with torch.autocast("cpu", enabled=False):
            packed = kernels.pack_weight(weight, dtype, gain=gain)
            out, moments = kernels.product(
                x,
                packed,
                len(weight),
                dtype=dtype,
                out_dtype=dtype if plus is None else torch.float32,
                bias=bias if shift is None else bias + weight @ shift,
                plus=None if plus is None else plus.contiguous(),
                row_scale=scale,
                norm_epsilon=epsilon,
            )
        ctx.save_for_backward(x, weight, gain, shift, scale, moments)
        ctx.has_plus = plus is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gain, shift, scale, moments = ctx.saved_tensors
        g = gradient.contiguous()
        by_x = by_gain = by_shift = None
        with torch.autocast("cpu", enabled=False):
            by_weight, by_bias = kernels.weight_gradient(
                g, x, dtype=ctx.dtype, row_scale=scale, moments=moments
            )
            if moments is not None:
                by_weight, by_gain, by_shift = _behind_norm(by_weight, by_bias, weight, gain, shift)
            if ctx.needs_input_grad[0]:
                packed = kernels.pack_weight(weight, ctx.dtype, gain=gain, turned=True)
                by_x, _ = kernels.product(
                    g,
                    packed,
                    weight.shape[1],
                    dtype=ctx.dtype,
                    out_dtype=x.dtype,
                    row_scale=scale,
                )
                if moments is not None:
                    by_x = kernels.norm_gradient(by_x, x, moments)
        return by_x, by_weight, by_bias, by_gain, by_shift, g if ctx.has_plus else None, None, None


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        shift: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        scale: Tensor | None,
        epsilon: float,
    ) -> Tensor:
        ctx.dtype = dtype = product_dtype(x)
        x, weight1, weight2 = x.contiguous(), weight1.contiguous(), weight2.contiguous()
        scale = None if scale is None else scale.float().contiguous()
        with torch.autocast("cpu", enabled=False):
            packed1 = kernels.pack_weight(weight1, dtype, gain=gain)
            packed2 = kernels.pack_weight(weight2, dtype)
            first_bias = bias1 + weight1 @ shift
            before = torch.empty(len(x), len(weight1), dtype=dtype)
            moments, out = torch.empty(len(x), 2), torch.empty_like(x)
            for piece in _pieces(x):
                hidden = kernels.product_gelu(
                    x[piece],
                    packed1,
                    first_bias,
                    dtype=dtype,
                    norm_epsilon=epsilon,
                    before=before[piece],
                    moments=moments[piece],
                )
                kernels.product(
                    hidden,
                    packed2,
                    len(weight2),
                    dtype=dtype,
                    out_dtype=torch.float32,
                    bias=bias2,
                    plus=x[piece],
                    row_scale=None if scale is None else scale[piece],
                    out=out[piece],
                )
        ctx.save_for_backward(x, gain, shift, weight1, weight2, scale, moments, before)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, weight1, weight2, scale, moments, before = ctx.saved_tensors
        g, dtype = gradient.contiguous(), ctx.dtype
        with torch.autocast("cpu", enabled=False):
            turned1 = kernels.pack_weight(weight1, dtype, gain=gain, turned=True)
            turned2 = kernels.pack_weight(weight2, dtype, turned=True)
            by_x, first, second = torch.empty_like(x), None, None
            for piece in _pieces(x):
                own_g, own_x, own_moments = g[piece], x[piece], moments[piece]
                own_scale = None if scale is None else scale[piece]
                by_before, hidden = kernels.product_gelu_back(
                    own_g, turned2, before[piece], dtype=dtype, row_scale=own_scale
                )
                second = kernels.weight_gradient(
                    own_g, hidden, dtype=dtype, row_scale=own_scale, add_to=second
                )
                first = kernels.weight_gradient(
                    by_before, own_x, dtype=dtype, moments=own_moments, add_to=first
                )
                by_norm, _ = kernels.product(
                    by_before, turned1, x.shape[1], dtype=dtype, out_dtype=torch.float32
                )
                kernels.norm_gradient(by_norm, own_x, own_moments, plus=own_g, out=by_x[piece])
            assert first is not None  # there is a piece, if of no tokens
            assert second is not None
            (by_weight1, by_bias1), (by_weight2, by_bias2) = first, second
            by_weight1, by_gain, by_shift = _behind_norm(by_weight1, by_bias1, weight1, gain, shift)
        return by_x, by_gain, by_shift, by_weight1, by_bias1, by_weight2, by_bias2, None, None


def _pieces(x: Tensor) -> list[slice]:
    """Slices of tokens: an MLP never holds the hidden values of more, but for their slopes."""
    return [slice(start, start + _PIECE) for start in range(0, max(len(x), 1), _PIECE)]


def _behind_norm(
    by_normed: Tensor, by_bias: Tensor, weight: Tensor, gain: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight, gain and shift.

    ``by_normed`` [O, K] is that of the weight if the norm had neither gain nor shift.
    """
    by_gain = (weight * by_normed).sum(0)
    by_shift = by_bias @ weight
    return by_normed.mul_(gain).addr_(by_bias, shift), by_gain, by_shift
