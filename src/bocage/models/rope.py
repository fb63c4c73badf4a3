"""Rotary position encoding: pairs of channels turn by an angle that is linear in the position.

All variants are one formula, ``angle = position · frequencies``, and differ only in where the
frequencies come from: fixed along one axis each (axial), or learned in every direction (mixed).

Axes: B batch, N tokens, M heads, K channel pairs of a head, X coordinates (time, row, column).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bocage.errors import ModelError
from bocage.models.config import PositionConfig

DAYS_PER_YEAR = 365.25
_PIECE = 2048
"""Tokens that are turned in one go on a CPU."""

_DAYS_BEFORE_MONTH = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


def rope_angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Angles [B, M, N, K] from positions [B, N, X] and frequencies [X, M or 1, K], in fp32."""
    with torch.autocast(positions.device.type, enabled=False):
        # Sum of products rather than a matmul: TF32 would cost three digits of the angle.
        terms = positions.float()[:, None, :, :, None] * frequencies.float().movedim(0, 1)[:, None]
        return terms.sum(dim=3)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn adjacent channel pairs of x [B, M, N, 2K] by angles [B, M, N, K]."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def turn(x: Tensor, positions: Tensor, frequencies: Tensor, n_turned: int) -> tuple[Tensor, ...]:
    """Rotate the first ``n_turned`` of G parts of x [n, G, M, 2K], at positions [n, X].

    ``frequencies`` [X, M or 1, K]. The same numbers as ``rotate``, one pass per part forward and
    backward. Returns G parts [n, M, 2K]; those that are not turned are views.
    """
    heads = frequencies.expand(-1, x.shape[2], -1)
    parts: tuple[Tensor, ...] = _Turn.apply(x, positions, heads, n_turned)  # type: ignore[no-untyped-call]
    return parts


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, positions: Tensor, frequencies: Tensor, n_turned: int
    ) -> tuple[Tensor, ...]:
        own = frequencies.flatten(1)
        parts = x.unbind(1)
        turned = [torch.empty_like(part, dtype=torch.float32) for part in parts[:n_turned]]
        shape = (len(x), *frequencies.shape[1:])
        factors = torch.empty(shape, dtype=torch.complex64, device=x.device)  # [n, M, K]
        for piece in _pieces(x):
            # Sums of products, as in rope_angles.
            angles = positions[piece, :1] * own[0]
            for axis in range(1, len(own)):
                angles.addcmul_(positions[piece, axis : axis + 1], own[axis])
            torch.complex(angles.cos(), angles.sin(), out=factors[piece].flatten(1))
            for part, out in zip(parts, turned, strict=False):
                torch.mul(_complex(part[piece]), factors[piece], out=_complex(out[piece]))
        turned = [part.to(x.dtype) for part in turned]
        ctx.save_for_backward(positions, factors, *turned)
        ctx.shape_dtype = x.shape, x.dtype
        return (*turned, *parts[n_turned:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        positions, factors, *turned = ctx.saved_tensors
        shape, dtype = ctx.shape_dtype
        out = torch.empty(shape, dtype=dtype, device=factors.device)
        learned = ctx.needs_input_grad[2]
        by_frequency = factors.real.new_zeros(positions.shape[1], 2 * factors.shape[1:].numel())
        for i in range(len(turned), len(gradients)):
            out[:, i] = gradients[i]
        # In pieces whose intermediate values stay in the cache of a core.
        for piece in _pieces(factors):
            back = factors[piece].conj_physical()
            by_angle = None
            for i, own in enumerate(turned):
                g = _complex(gradients[i][piece])
                if dtype == torch.float32:
                    torch.mul(g, back, out=_complex(out[piece, i]))
                else:
                    out[piece, i] = _real(g * back, dtype)
                if learned:
                    # A turned pair moves at right angles to itself: the imaginary part counts.
                    t = _complex(own[piece]).conj_physical()
                    by_angle = t.mul_(g) if by_angle is None else by_angle.addcmul_(t, g)
            if by_angle is not None:
                by_frequency += positions[piece].T @ torch.view_as_real(by_angle).flatten(1)
        imaginary = by_frequency.view(-1, *factors.shape[1:], 2)[..., 1]
        return out, None, imaginary if learned else None, None


def _pieces(x: Tensor) -> list[slice]:
    """Slices of tokens; one on a GPU."""
    size = _PIECE if x.device.type == "cpu" else max(len(x), 1)
    return [slice(start, start + size) for start in range(0, len(x), size)]


def _complex(x: Tensor) -> Tensor:
    """Adjacent pairs [..., 2K] as complex numbers [..., K]."""
    return torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))


def _real(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Complex numbers [..., K] as adjacent pairs [..., 2K]."""
    return torch.view_as_real(x).flatten(-2).to(dtype)


def axial_frequencies(config: PositionConfig, head_width: int) -> Tensor:
    """Fixed frequencies [X, 1, K]: consecutive parts of a head each follow one coordinate."""
    bases = [config.base, config.base]
    widths = [head_width // 2, head_width // 2]
    if config.n_coordinates == 3:
        time_width = 2 * round(head_width * config.temporal_dim_fraction / 2)
        widths = [time_width, *[(head_width - time_width) // 2] * 2]
        bases = [config.temporal_base or config.base, *bases]
    if sum(widths) != head_width or any(width < 2 or width % 2 for width in widths):
        raise ModelError(
            got=f"heads of width {head_width} with position encoding {config.encoding!r}",
            expected="an even, positive number of channels for each coordinate",
            fix="change num_heads, embedding_size or temporal_rope_dim_frac",
        )
    frequencies = torch.zeros(len(widths), 1, head_width // 2, device="cpu")
    start = 0
    for axis, (width, base) in enumerate(zip(widths, bases, strict=True)):
        exponents = torch.arange(width // 2, device="cpu") * 2 / width
        frequencies[axis, 0, start : start + width // 2] = base**-exponents
        start += width // 2
    return frequencies


def initial_mixed_frequencies(config: PositionConfig, heads: int, head_width: int) -> Tensor:
    """Start of learned frequencies [X, M, K]: per head two random orthogonal directions.

    Magnitudes fall as ``base ** (-4 k / head_width)`` along both (RoPE-Mixed, Heo et al. 2024,
    arXiv:2403.13298).
    """
    quarter = head_width // 4
    # On the CPU even where shapes alone are made: arithmetic on meta loads torch's compiler.
    magnitudes = config.mixed_base ** (-4 * torch.arange(quarter, device="cpu") / head_width)
    random = torch.randn(heads, config.n_coordinates, 2, device="cpu")
    directions: Tensor = torch.linalg.qr(random)[0]
    frequencies = directions[..., None] * magnitudes  # [M, X, 2, K / 2]
    return frequencies.flatten(2).transpose(0, 1).contiguous()


def days_since_first(timestamps: Tensor) -> Tensor:
    """Days [B, T] from the first timestep, of (day, month 0-11, year) stamps [B, T, 3].

    The calendar is the models' own: years of 365.25 days, no leap day. Rotations depend on
    differences alone, so each sample starts near 0, where fp32 angles are most exact.
    """
    day, month, year = timestamps.unbind(-1)
    before_month = torch.tensor(_DAYS_BEFORE_MONTH, device=timestamps.device)[month]
    # Quarter days of a few decades are exact in fp32.
    days = (year - year[:, :1]).float() * DAYS_PER_YEAR + before_month + day
    return days - days[:, :1]


def grid_positions(n_rows: int, n_cols: int, step: float, device: torch.device) -> Tensor:
    """Row and column [h, w, 2] of patch cells that lie ``step`` units apart."""
    rows = torch.arange(n_rows, device=device, dtype=torch.float32) * step
    cols = torch.arange(n_cols, device=device, dtype=torch.float32) * step
    return torch.stack(torch.meshgrid(rows, cols, indexing="ij"), dim=-1)
