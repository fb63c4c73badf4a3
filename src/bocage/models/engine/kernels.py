"""Kernels for CPUs with AMX as functions of tensors; products are in ``linear.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bocage.models.native import library, pointer

HEAD_WIDTHS = (16, 64)
"""Head widths of attention: nano has 16, all other sizes 64."""


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """Rotary encoding of tokens whose angle is a part of their time plus a part of their place."""

    times: Tensor | None
    """Cosine and sine, fp32 [B or 1, T, M, 2, K]: M heads, K channel pairs; None: no such part."""

    places: Tensor
    """The same [cells, M, 2, K]."""


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


def attention(qkv: Tensor, heads: int, rotation: Rotation | None, order: TokenOrder) -> Tensor:
    """Attention of qkv [B, N, 3 D]: rows [B N, D] in fp32, tiles in bf16.

    Channel pairs of a head are (k, k + K).
    """
    n_batch, n_tokens, width = qkv.shape
    out = _attended(qkv, n_batch * n_tokens, width // 3, padded=order.lengths is not None)
    library("engine").bocage_attention(
        pointer(qkv),
        pointer(out),
        qkv.dtype == torch.float32,
        out.dim() == 4,
        n_batch,
        n_tokens,
        heads,
        width // 3 // heads,
        *_positions(rotation, order),
    )
    return out


def reading(
    queries: Tensor,
    longest: Tensor,
    kv: Tensor,
    rotation: Rotation | None,
    order: TokenOrder,
    *,
    n_queries: int,
) -> Tensor:
    """Attention of ``n_queries`` that all samples share over kv [B, N, 2 D], as ``attention``.

    ``queries`` [M, n_queries padded to 16, 2 K] are turned and times log2(e) / sqrt(2 K), the
    longest of each head is ``longest`` fp32 [M]; no length of ``order`` is 0.
    """
    n_batch, n_tokens, width = kv.shape
    heads, _, head_width = queries.shape
    out = _attended(kv, n_batch * n_queries, width // 2, padded=False)
    library("engine").bocage_reading(
        *map(pointer, (queries, longest, kv, out)),
        kv.dtype == torch.float32,
        out.dim() == 4,
        n_batch,
        n_queries,
        n_tokens,
        heads,
        head_width,
        *_positions(rotation, order),
    )
    return out


def patch_pixels(
    x: Tensor,
    out: Tensor,
    *,
    first: int,
    taps: tuple[ResizeTaps, ResizeTaps],
    bands: Tensor,
    scaling: tuple[Tensor, Tensor],
    hidden: tuple[Tensor, Tensor] | None,
) -> None:
    """Fill rows of ``out`` with tokens ``first`` on of fp32 x [B, H, W, T, C], of any strides.

    ``bands`` int32 [16] are the channels of the band set, then -1. ``scaling`` fp32 [16] each is
    what they are multiplied by and what is then added. ``hidden`` is the packed weight and bias of
    the pixel network (see ``pack_hidden``).
    """
    times, channels = x.shape[3:]
    if x.stride(4) >= 2**27:  # offsets of bands are 32 bits wide
        x = x.contiguous()
    by_row, by_col = taps
    library("engine").bocage_patch_pixels(
        x.data_ptr(),
        pointer(out),
        out.dtype == torch.float32,
        first,
        len(out),
        *x.stride(),
        times,
        channels,
        len(by_row.first) // 8,
        len(by_col.first) // 8,
        by_row.weight.shape[1],
        by_col.weight.shape[1],
        *map(pointer, (by_row.first, by_row.weight, by_col.first, by_col.weight, bands, *scaling)),
        int((bands >= 0).sum()),
        0 if hidden is None else out.shape[1] // 64,
        *map(pointer, hidden or (None, None)),
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


def tiles_shape(n_rows: int, width: int) -> tuple[int, int, int, int]:
    """Shape of ``n_rows`` rows as tiles: blocks of 32 rows x 32 columns."""
    return -(-n_rows // 32), width // 32, 32, 32


def to_tiles(x: Tensor) -> Tensor:
    """bf16 x [..., D] in the order of tiles, its last rows filled with zeros."""
    width = x.shape[-1]
    n_rows = x.numel() // width
    out = torch.empty(tiles_shape(n_rows, width), dtype=torch.bfloat16)
    library("engine").bocage_to_tiles(pointer(x), pointer(out), n_rows, width)
    return out


def from_tiles(tiles: Tensor, shape: Sequence[int]) -> Tensor:
    """The reverse of ``to_tiles``, for x of ``shape``."""
    out = torch.empty(shape, dtype=torch.bfloat16)
    n_rows = out.numel() // shape[-1]
    library("engine").bocage_from_tiles(pointer(tiles), pointer(out), n_rows, shape[-1])
    return out


def quantize(tiles: Tensor, *, norm_epsilon: float | None = None) -> tuple[Tensor, Tensor]:
    """Rows of bf16 tiles as int8 tiles [rows / 32, D / 64, 32, 64], and {0, scale} of each row.

    LayerNorm without gain comes before if ``norm_epsilon`` is given.
    """
    n_tall, n_deep, _, _ = tiles.shape
    codes = torch.empty(n_tall, n_deep // 2, 32, 64, dtype=torch.int8)
    scales = torch.empty(n_tall * 32, 2)
    library("engine").bocage_quantize(
        *map(pointer, (tiles, codes, scales)),
        len(scales),
        n_deep * 32,
        norm_epsilon is not None,
        norm_epsilon or 0.0,
    )
    return codes, scales


def norm_pool(x: Tensor, weight: Tensor, gain: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Weighted mean over L of the LayerNorm of x [..., L, D], as fp32 [..., D].

    ``weight`` is [L], or [..., L] for weights that each cell has of its own.
    """
    *cells, length, width = x.shape
    out = torch.empty(*cells, width)
    library("engine").bocage_norm_pool(
        pointer(x),
        pointer(out),
        x.dtype == torch.float32,
        out.numel() // width,
        length,
        width,
        pointer(weight),
        length if weight.dim() > 1 else 0,
        *map(pointer, (gain, bias)),
        epsilon,
    )
    return out


def _attended(source: Tensor, n_rows: int, width: int, *, padded: bool) -> Tensor:
    """Memory for a result; padding, which is not written, must be numbers too."""
    in_tiles = source.dtype == torch.bfloat16
    shape = tiles_shape(n_rows, width) if in_tiles else (n_rows, width)
    return (torch.zeros if padded else torch.empty)(shape, dtype=source.dtype)


def _positions(rotation: Rotation | None, order: TokenOrder) -> tuple[int | None, ...]:
    times, places = (None, None) if rotation is None else (rotation.times, rotation.places)
    return (
        pointer(order.lengths),
        pointer(times),
        pointer(places),
        times[0].numel() if times is not None and len(times) > 1 else 0,
        pointer(order.time),
        pointer(order.place),
        order.time.shape[1] if len(order.time) > 1 else 0,
    )
