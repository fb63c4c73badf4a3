"""Rotary position encoding: pairs of channels turn by an angle that is linear in the position.

All variants are one formula, ``angle = position · frequencies``, and differ only in where the
frequencies come from: fixed along one axis each (axial), or learned in every direction (mixed).

Axes: B batch, N tokens, M heads, K channel pairs of a head, X coordinates (time, row, column).
"""

from __future__ import annotations

import torch
from torch import Tensor

from bocage.errors import ModelError
from bocage.models.config import PositionConfig

DAYS_PER_YEAR = 365.25
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
    frequencies = torch.zeros(len(widths), 1, head_width // 2)
    start = 0
    for axis, (width, base) in enumerate(zip(widths, bases, strict=True)):
        exponents = torch.arange(width // 2) * 2 / width
        frequencies[axis, 0, start : start + width // 2] = base**-exponents
        start += width // 2
    return frequencies


def initial_mixed_frequencies(config: PositionConfig, heads: int, head_width: int) -> Tensor:
    """Start of learned frequencies [X, M, K]: per head two random orthogonal directions.

    Magnitudes fall as ``base ** (-4 k / head_width)`` along both (RoPE-Mixed, Heo et al. 2024,
    arXiv:2403.13298).
    """
    quarter = head_width // 4
    magnitudes = config.mixed_base ** (-4 * torch.arange(quarter) / head_width)
    directions: Tensor = torch.linalg.qr(torch.randn(heads, config.n_coordinates, 2))[0]
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
