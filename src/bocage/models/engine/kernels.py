"""The kernels for CPUs with AMX as functions of tensors.

attention.cpp   rotary encoding and attention
patches.cpp     resize and pixel network of patches
products.cpp    linear maps of bf16 and int8 with norm, bias, GELU and sum; for fp32
                products_fp32.cpp
rows.cpp        last norm with its mean
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bocage.models.engine.library import library

HEAD_WIDTHS = (16, 64)
"""Head widths of the attention kernel: nano has 16, all other sizes 64."""

N_PARTS = {torch.float32: 3, torch.bfloat16: 1}
"""Numbers of bf16 that stand for one value in a product."""


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


def attention(
    qkv: Tensor,
    heads: int,
    rotation: Rotation | None,
    order: TokenOrder,
    *,
    in_tiles: bool = False,
) -> Tensor:
    """Attention [B, N, D] of bf16 qkv [B, N, 3 D]; channel pairs of a head are (k, k + K).

    The result of ``in_tiles`` is in the order of ``to_tiles``.
    """
    n_batch, n_tokens, _ = qkv.shape
    width = qkv.shape[-1] // 3
    make = torch.empty if order.lengths is None else torch.zeros  # padding is not written
    shape = tiles_shape(n_batch * n_tokens, width) if in_tiles else (n_batch, n_tokens, width)
    out = make(shape, dtype=torch.bfloat16)
    failed = library().bocage_attention(
        _pointer(qkv),
        _pointer(out),
        in_tiles,
        n_batch,
        n_tokens,
        heads,
        width // heads,
        None if order.lengths is None else _pointer(order.lengths),
        *_rotation_arguments(rotation, order),
    )
    if failed:
        raise RuntimeError(f"no attention kernel for heads of width {width // heads}")
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
    """Attention [B, n_queries, D] of queries that all samples share over bf16 kv [B, N, 2 D].

    ``queries`` bf16 [M, n_queries padded to 16, 2 K] are turned and times log2(e) / sqrt(2 K), the
    longest of each head is ``longest`` fp32 [M]; no length of ``order`` is 0.
    """
    n_batch, n_tokens, width = kv.shape
    heads, _, head_width = queries.shape
    out = torch.empty(n_batch, n_queries, width // 2, dtype=torch.bfloat16)
    failed = library().bocage_reading(
        _pointer(queries),
        _pointer(longest),
        _pointer(kv),
        _pointer(out),
        n_batch,
        n_queries,
        n_tokens,
        heads,
        head_width,
        None if order.lengths is None else _pointer(order.lengths),
        *_rotation_arguments(rotation, order),
    )
    if failed:
        raise RuntimeError(f"no attention kernel for heads of width {head_width}")
    return out


def rotate_(x: Tensor, heads: int, rotation: Rotation, order: TokenOrder, *, n_parts: int) -> None:
    """Turn all but the last of the parts of fp32 x [B, N, n_parts D] in place: (q,) k, v.

    Channel pairs of a head are (k, k + K).
    """
    n_batch, n_tokens, width = x.shape
    library().bocage_rotate_parts(
        _pointer(x),
        n_batch,
        n_tokens,
        heads,
        width // n_parts // heads,
        n_parts,
        n_parts - 1,
        *_rotation_arguments(rotation, order),
    )


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
    """Fill rows of bf16 ``out`` with tokens ``first`` on of fp32 x [B, H, W, T, C], of any strides.

    ``bands`` int32 [16] are the channels of the band set, its length first in ``out``'s width.
    ``scaling`` fp32 [16] each is what they are multiplied by and what is then added.
    ``hidden`` is the packed weight and bias of the pixel network (see ``pack_hidden``).
    """
    times, channels = x.shape[3:]
    if x.stride(4) >= 2**27:  # offsets of bands are 32 bits wide
        x = x.contiguous()
    by_row, by_col = taps
    grid = len(by_row.first) // 8, len(by_col.first) // 8
    weight, bias = hidden if hidden is not None else (None, None)
    n_hidden = 0 if hidden is None else out.shape[1] // 64
    library().bocage_patch_pixels(
        ctypes.c_void_p(x.data_ptr()),
        _pointer(out),
        out.dtype == torch.float32,
        first,
        len(out),
        *x.stride(),
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
        *map(_pointer, scaling),
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


def pack_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Weight [n_out, n_in] as ``product`` reads it: tiles of bf16, three for one of fp32."""
    n_out, n_in = weight.shape
    rest, parts = weight.detach().float(), []
    for _ in range(N_PARTS[dtype]):
        parts.append(rest.to(torch.bfloat16))
        rest = rest - parts[-1].float()
    tiles = torch.stack(parts).view(len(parts), n_out // 32, 2, 16, n_in // 32, 16, 2)
    return tiles.permute(1, 4, 0, 2, 5, 3, 6).contiguous()


def tiles_shape(n_rows: int, width: int) -> tuple[int, int, int, int]:
    """Shape of ``n_rows`` rows as tiles: blocks of 32 rows x 32 columns."""
    return -(-n_rows // 32), width // 32, 32, 32


def to_tiles(x: Tensor) -> Tensor:
    """bf16 x [..., D] in the order that ``tile_product`` reads, its last rows filled with zeros."""
    width = x.shape[-1]
    n_rows = x.numel() // width
    out = torch.empty(tiles_shape(n_rows, width), dtype=torch.bfloat16)
    library().bocage_to_tiles(_pointer(x), _pointer(out), n_rows, width)
    return out


def from_tiles(tiles: Tensor, shape: Sequence[int]) -> Tensor:
    """The reverse of ``to_tiles``, for x of ``shape``."""
    out = torch.empty(shape, dtype=torch.bfloat16)
    library().bocage_from_tiles(_pointer(tiles), _pointer(out), out.numel() // shape[-1], shape[-1])
    return out


def tile_product(
    tiles: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    n_rows: int,
    norm: tuple[Tensor, float] | None = None,
    gelu: bool = False,
    plus: Tensor | None = None,
    in_tiles: bool,
) -> Tensor:
    """``product`` of bf16 rows in tiles, written to ``out``: tiles, or rows [n_rows, n_out].

    ``norm`` is the sum of each row of the weight, in fp32, and epsilon. ``plus`` is laid out as
    ``out`` and may be the same.
    """
    if n_rows == 0:
        return out
    sums, epsilon = norm if norm is not None else (None, 0.0)
    library().bocage_product(
        _pointer(tiles),
        _pointer(weight),
        None if sums is None else _pointer(sums),
        _pointer(bias),
        None if plus is None else _pointer(plus),
        _pointer(out),
        n_rows,
        tiles.shape[1] * 32,
        len(bias),
        epsilon,
        gelu,
        in_tiles,
    )
    return out


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    norm: tuple[Tensor, float] | None = None,
    gelu: bool = False,
    plus: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Linear map of x [..., n_in] in fp32 or bf16 to [..., n_out] with a packed weight, fp32 bias.

    Before it LayerNorm without gain if ``norm`` is given, the sums of the weight over n_in and
    epsilon; after it GELU, then ``plus`` is added, which may be ``out``. Widths are multiples of
    32.
    """
    n_in, n_out = x.shape[-1], len(bias)
    if out is None:
        out = torch.empty(*x.shape[:-1], n_out, dtype=x.dtype)
    if not x.numel():
        return out
    n_rows = x.numel() // n_in
    if x.dtype == torch.bfloat16:
        return tile_product(
            to_tiles(x),
            weight,
            bias,
            out,
            n_rows=n_rows,
            norm=norm,
            gelu=gelu,
            plus=plus,
            in_tiles=False,
        )
    library().bocage_product_fp32(
        _pointer(x),
        _pointer(weight),
        _pointer(bias),
        None if plus is None else _pointer(plus),
        _pointer(out),
        n_rows,
        n_in,
        n_out,
        norm is not None,
        0.0 if norm is None else norm[1],
        gelu,
    )
    return out


def norm_pool(x: Tensor, weight: Tensor, gain: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Weighted mean over L of the LayerNorm of bf16 x [..., L, D], as fp32 [..., D]."""
    *cells, length, width = x.shape
    out = torch.empty(*cells, width)
    library().bocage_norm_pool(
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


def quantize(tiles: Tensor, *, norm_epsilon: float | None = None) -> tuple[Tensor, Tensor]:
    """Rows of bf16 tiles as int8 tiles [rows / 32, D / 64, 32, 64], and {0, scale} of each row.

    LayerNorm without gain comes before if ``norm_epsilon`` is given.
    """
    n_tall, n_deep, _, _ = tiles.shape
    codes = torch.empty(n_tall, n_deep // 2, 32, 64, dtype=torch.int8)
    scales = torch.empty(n_tall * 32, 2)
    library().bocage_quantize(
        _pointer(tiles),
        _pointer(codes),
        _pointer(scales),
        len(scales),
        n_deep * 32,
        norm_epsilon is not None,
        norm_epsilon or 0.0,
    )
    return codes, scales


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [n_out, n_in] as int8 tiles for ``int8_product``, and the scale of each output."""
    n_out, n_in = weight.shape
    weight = weight.detach().float()
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-20)
    codes = (weight / scale[:, None]).round().to(torch.int8)
    tiles = codes.view(n_out // 32, 2, 16, n_in // 64, 16, 4)
    return tiles.permute(0, 3, 1, 4, 2, 5).contiguous(), scale


def int8_product(
    rows: tuple[Tensor, Tensor],
    weight: tuple[Tensor, Tensor],
    bias: Tensor,
    out: Tensor,
    *,
    n_rows: int,
    gelu: bool = False,
    plus: Tensor | None = None,
    in_tiles: bool,
) -> Tensor:
    """``tile_product`` of int8 ``rows`` (see ``quantize``) and ``weight`` (see ``pack_int8``)."""
    if n_rows == 0:
        return out
    codes, scales = rows
    library().bocage_product_int8(
        _pointer(codes),
        _pointer(scales),
        *map(_pointer, weight),
        _pointer(bias),
        None if plus is None else _pointer(plus),
        _pointer(out),
        n_rows,
        codes.shape[1] * 64,
        len(bias),
        gelu,
        in_tiles,
    )
    return out


def _pointer(x: Tensor) -> ctypes.c_void_p:
    if not x.is_contiguous():
        raise ValueError(f"kernel argument of strides {x.stride()} is not contiguous")
    return ctypes.c_void_p(x.data_ptr())


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
