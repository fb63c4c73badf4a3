"""Linear maps in fp32, bf16 or int8, with what stands around them in the same pass.

Tokens come as rows or, in bf16 and int8, in the order of tiles (``kernels.to_tiles``): blocks of 32
rows x 32 columns, which one product writes and the next one reads as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bocage.models.engine import kernels
from bocage.models.native import library, pointer


class Linear:
    """A linear map whose weight is laid out once, with the norm before it folded in.

    After it GELU and a sum, where they are asked for. In int8 there is a scale for each row and for
    each output. Widths are multiples of 32, in int8 of 64.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, precision: str, *, norm: nn.LayerNorm | None = None
    ) -> None:
        """Weight [n_out, n_in], bias [n_out]; ``precision`` is fp32, bf16 or int8."""
        if norm is not None:
            weight, bias = fold_norm(norm, weight, bias)
        self.epsilon = None if norm is None else norm.eps
        self.precision = precision
        self.n_out, self.n_in = weight.shape
        self.bias = bias.detach().float().contiguous()
        weight = weight.detach().float()
        self.columns: Tensor | None = None  # what the kernel wants to know of each output
        if precision == "int8":
            self.weight, self.columns = pack_int8(weight)
        elif precision == "bf16":
            self.weight = pack_bf16(weight)
            if norm is not None:
                self.columns = weight.bfloat16().float().sum(dim=1)
        else:
            self.weight = pack_fp32(weight)

    def __call__(
        self,
        x: Tensor,
        n_rows: int,
        *,
        gelu: bool = False,
        plus: Tensor | None = None,
        to_rows: bool = False,
    ) -> Tensor:
        """Map tokens as they lie in the engine: rows [n_rows, n_in] in fp32, else tiles.

        The result lies so too, or is rows. It is added to ``plus``, in place, if that is given.
        """
        if self.precision == "fp32":
            return self.rows(x, gelu=gelu, plus=plus, out=plus)
        out = plus
        if out is None:
            tiles = kernels.tiles_shape(n_rows, self.n_out)
            shape = (n_rows, self.n_out) if to_rows else tiles
            out = torch.empty(shape, dtype=torch.bfloat16)
        return self._product(x, out, n_rows, gelu, plus, in_tiles=not to_rows)

    def rows(
        self,
        x: Tensor,
        *,
        gelu: bool = False,
        plus: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Map rows [..., n_in] to rows [..., n_out]; ``out`` may be ``plus``."""
        if out is None:
            out = torch.empty(*x.shape[:-1], self.n_out, dtype=x.dtype)
        n_rows = x.numel() // self.n_in
        if self.precision != "fp32":
            return self._product(kernels.to_tiles(x), out, n_rows, gelu, plus, in_tiles=False)
        library("engine").bocage_product_fp32(
            *map(pointer, (x, self.weight, self.bias, plus, out)),
            n_rows,
            self.n_in,
            self.n_out,
            self.epsilon is not None,
            self.epsilon or 0.0,
            gelu,
        )
        return out

    def _product(
        self,
        tiles: Tensor,
        out: Tensor,
        n_rows: int,
        gelu: bool,
        plus: Tensor | None,
        *,
        in_tiles: bool,
    ) -> Tensor:
        if n_rows == 0:
            return out
        scales: Tensor | None = None
        if self.precision == "int8":
            tiles, scales = kernels.quantize(tiles, norm_epsilon=self.epsilon)
        library("engine").bocage_product(
            *map(pointer, (tiles, scales, self.weight, self.columns, self.bias, plus, out)),
            n_rows,
            self.n_in,
            self.n_out,
            self.epsilon or 0.0,
            gelu,
            in_tiles,
        )
        return out


def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear map that follows a norm, with the norm's own folded in."""
    return weight * norm.weight, bias + weight @ norm.bias


def pack_bf16(weight: Tensor) -> Tensor:
    """Weight [n_out, n_in] as tiles whose rows hold neighbors in depth side by side."""
    n_out, n_in = weight.shape
    tiles = weight.bfloat16().view(n_out // 32, 2, 16, n_in // 32, 16, 2)
    return tiles.permute(0, 3, 1, 4, 2, 5).contiguous()


def pack_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [n_out, n_in] as tiles of codes, four of the depth side by side, and output scales."""
    n_out, n_in = weight.shape
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-20)
    codes = (weight / scale[:, None]).round().to(torch.int8)
    tiles = codes.view(n_out // 32, 2, 16, n_in // 64, 16, 4)
    return tiles.permute(0, 3, 1, 4, 2, 5).contiguous(), scale


def pack_fp32(weight: Tensor) -> Tensor:
    """Weight [n_out, n_in] as tiles, three bf16 numbers for a value (``product_of_rows.h``)."""
    n_out, n_in = weight.shape
    parts = []
    for _ in range(3):
        parts.append(weight.bfloat16())
        weight = weight - parts[-1].float()
    tiles = torch.stack(parts).view(3, n_out // 32, 2, 16, n_in // 32, 2, 16)
    return tiles.permute(1, 4, 0, 2, 6, 3, 5).contiguous()
