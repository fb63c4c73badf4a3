"""Pixels to tokens: resize so that a patch has 8 x 8 pixels, then project it.

The resize is the antialiased bicubic filter the models were trained with. It is linear and
separable, so it is two small matrices here: any patch size, any dtype, any device.

Axes: B batch, H W pixels, h w patch rows and columns, T timesteps, C bands, S band sets, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from bocage.models import training_kernels as kernels
from bocage.models.config import ModelConfig
from bocage.models.selection import Picked, Selection
from bocage.models.training import usable

_PIECE = 256
"""Patches whose hidden values, 2 to 4 MB, stay in the cache of a core."""


class PatchEmbeddings(nn.Module):
    """One embedder per modality and band set."""

    def __init__(self, config: ModelConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.band_sets = {m: config.band_sets[m] for m in modalities}
        self.per_modality_embeddings = nn.ModuleDict(
            {
                m: nn.ModuleDict(
                    {
                        f"{m}__{i}": PatchEmbedding(
                            len(bands), config.width, config.base_patch_size, config.pixel_hidden
                        )
                        for i, bands in enumerate(sets)
                    }
                )
                for m, sets in self.band_sets.items()
            }
        )

    def forward(self, modality: str, values: Tensor, patch_size: int) -> Tensor:
        """Tokens [B, h, w, T, S, D] of normalized values [B, H, W, T, C]."""
        n_batch, _, _, n_times, _ = values.shape
        images = values.permute(0, 3, 4, 1, 2).flatten(0, 1)  # [B T, C, H, W]
        embedders = self.per_modality_embeddings[modality].children()
        tokens = torch.stack(
            [
                embed(images[:, list(bands)], patch_size)
                for embed, bands in zip(embedders, self.band_sets[modality], strict=True)
            ],
            dim=-2,
        )  # [B T, h, w, S, D]
        return tokens.reshape(n_batch, n_times, *tokens.shape[1:]).permute(0, 2, 3, 1, 4, 5)

    def embed(
        self,
        patches: Mapping[str, Tensor],
        selection: Selection,
        band_keep: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Tokens [n, D] of a selection, from ``resized_patches`` of each modality.

        ``band_keep`` [R, C] multiplies the bands of each row (band dropout).
        """
        parts = []
        for picked in selection.picked:
            bands = list(self.band_sets[picked.modality][picked.band_set])
            x = patches[picked.modality]
            x = x if len(bands) == x.shape[-1] else x[..., bands]
            x = _chosen(x, picked)
            if band_keep is not None and picked.modality in band_keep:
                x = x * band_keep[picked.modality][:, bands][picked.row][:, None, None]
            name = f"{picked.modality}.{picked.modality}__{picked.band_set}"
            embedder = self.per_modality_embeddings.get_submodule(name)
            parts.append(cast("PatchEmbedding", embedder).project(x))
        return torch.cat(parts)


def _chosen(x: Tensor, picked: Picked) -> Tensor:
    """The picked patches [n, 8, 8, C] of [B, h, w, T, 8, 8, C]."""
    _, rows, cols, times = x.shape[:4]
    if x.device.type == "cpu" and len(picked.time) == x.shape[:4].numel():
        place = (picked.sample * rows + picked.cell_row) * cols + picked.cell_col
        if torch.equal(place * times + picked.time, torch.arange(len(place))):
            return x.flatten(0, 3)  # all in order: a third of the time of a lookup
    return x[picked.sample, picked.cell_row, picked.cell_col, picked.time]


class PatchEmbedding(nn.Module):
    """Projection of one band set: a convolution (v1) or a small pixel network (from v1.1)."""

    def __init__(
        self, n_bands: int, width: int, base_patch_size: int, pixel_hidden: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        self.base = base_patch_size
        self.proj: nn.Conv2d | nn.Linear
        if pixel_hidden is None:
            self.proj = nn.Conv2d(n_bands, width, base_patch_size, stride=base_patch_size)
            return
        layers: list[nn.Module] = []
        for hidden in pixel_hidden:
            layers += [nn.Linear(n_bands, hidden), nn.ReLU()]
            n_bands = hidden
        self.pixel_proj = nn.Sequential(*layers)
        self.proj = nn.Linear(base_patch_size**2 * n_bands, width)

    def forward(self, images: Tensor, patch_size: int) -> Tensor:
        """Tokens [B T, h, w, D] of images [B T, C, H, W]."""
        x = resize(images, self.base, patch_size)
        if isinstance(self.proj, nn.Conv2d):
            projected: Tensor = self.proj(x)
            return projected.permute(0, 2, 3, 1)
        x = self.pixel_proj(x.permute(0, 2, 3, 1))  # [B T, 8h, 8w, hidden]
        n, rows, cols, _ = x.shape
        x = x.reshape(n, rows // self.base, self.base, cols // self.base, self.base, -1)
        tokens: Tensor = self.proj(x.transpose(2, 3).flatten(3))  # row, column, channel fastest
        return tokens

    def flat_projection(self) -> tuple[Tensor, Tensor]:
        """Weight [D, 64 channels] by row, column and channel, and bias [D], of ``proj``."""
        weight, bias = self.proj.weight, self.proj.bias
        assert bias is not None
        if isinstance(self.proj, nn.Conv2d):  # [D, C, 8, 8]
            weight = weight.permute(0, 2, 3, 1).flatten(1)
        return weight, bias

    def pixel_layers(self) -> list[nn.Linear]:
        """The maps of a pixel before the projection, each with a ReLU behind it; none in v1."""
        if isinstance(self.proj, nn.Conv2d):
            return []
        return [layer for layer in self.pixel_proj if isinstance(layer, nn.Linear)]

    def project(self, patches: Tensor) -> Tensor:
        """Tokens [n, D] of patches [n, 8, 8, C]."""
        if isinstance(self.proj, nn.Conv2d):
            return functional.linear(patches.flatten(1), *self.flat_projection())
        x = patches.flatten(1, 2)  # [n, 64, C]
        if len(self.pixel_proj) == 2:
            layer = cast("nn.Linear", self.pixel_proj[0])
            parameters = (layer.weight, layer.bias, self.proj.weight, self.proj.bias)
            projected: Tensor = _PixelNetwork.apply(x, *parameters)  # type: ignore[no-untyped-call]
            return projected
        tokens: Tensor = self.proj(self.pixel_proj(x).flatten(1))
        return tokens


class _PixelNetwork(torch.autograd.Function):
    """``linear(relu(linear(x)))`` of patches x [n, P, C], in pieces that fit the cache.

    The pixels' hidden values (67 MB for 4096 patches of the tiny model) are computed again for the
    gradient, not kept: they cost a fiftieth of the projection that reads them. Under autocast the
    products run in its type, sums over pieces in fp32.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes them by position
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, offset: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, projection)
        kind = x.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(kind, enabled=False):
            w = _with_bias(weight, bias).to(ctx.dtype)
            offset = offset.to(ctx.dtype)
            multiply = _Products(projection, ctx.dtype)
            hidden = (_hidden(_with_one(piece, ctx.dtype), w) for piece in x.split(_piece(x)))
            tokens = [multiply.by_depth(h.view(-1, projection.shape[1]), offset) for h in hidden]
        return torch.cat(tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, projection = ctx.saved_tensors
        n_bands = x.shape[2]
        with torch.autocast(x.device.type, enabled=False):
            w, multiply = _with_bias(weight, bias).to(ctx.dtype), _Products(projection, ctx.dtype)
            by_w, by_p = torch.zeros_like(w, dtype=weight.dtype), torch.zeros_like(projection)
            by_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
            size = _piece(x)
            for start in range(0, len(x), size):
                piece = slice(start, start + size)
                pixels, g = (
                    _with_one(x[piece], ctx.dtype),
                    gradient[piece].to(ctx.dtype).contiguous(),
                )
                h = _hidden(pixels, w)
                multiply.add_gradient(by_p, g, h.view(len(g), -1))
                g = torch.ops.aten.threshold_backward(multiply.by_width(g).view_as(h), h, 0)
                by_w += g.T @ pixels
                if by_x is not None:
                    by_x[piece] = (g @ w[:, :n_bands]).view_as(by_x[piece])
            by_offset = gradient.float().sum(0)
        return by_x, by_w[:, :n_bands], by_w[:, n_bands], by_p, by_offset


class _Products:
    """Products with a projection [D, K], on kernels where they are faster: in fp32."""

    def __init__(self, projection: Tensor, dtype: torch.dtype) -> None:
        self.projection = projection.detach()
        self.plain = self.projection.to(dtype)
        self.on_kernels = dtype == torch.float32 and usable(self.projection, *projection.shape)
        self._packed: dict[bool, Tensor] = {}

    def by_depth(self, x: Tensor, offset: Tensor) -> Tensor:
        """``x P^T + offset`` [n, D] of x [n, K]."""
        if not self.on_kernels:
            return functional.linear(x, self.plain, offset)
        return self._product(x, len(self.plain), offset)

    def by_width(self, x: Tensor) -> Tensor:
        """``x P`` [n, K] of x [n, D]."""
        return self._product(x, self.plain.shape[1]) if self.on_kernels else x @ self.plain

    def add_gradient(self, by_projection: Tensor, g: Tensor, x: Tensor) -> None:
        """Add ``g^T x`` to ``by_projection`` [D, K]."""
        if self.on_kernels:
            sums = by_projection, g.new_zeros(len(by_projection))
            kernels.weight_gradient(g, x, dtype=g.dtype, add_to=sums)
        else:
            by_projection += g.T @ x

    def _product(self, x: Tensor, n_out: int, bias: Tensor | None = None) -> Tensor:
        dtype, turned = self.plain.dtype, bias is None
        if turned not in self._packed:
            weight = self.projection.contiguous()
            self._packed[turned] = kernels.pack_weight(weight, dtype, turned=turned)
        packed = self._packed[turned]
        return kernels.product(x, packed, n_out, dtype=dtype, out_dtype=dtype, bias=bias)[0]


def _with_one(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels [n P, C + 1] of patches x [n, P, C], with a channel of ones that carries the bias."""
    out = x.new_ones(x.shape[0] * x.shape[1], x.shape[2] + 1, dtype=dtype)
    out[:, :-1] = x.flatten(0, 1)
    return out


def _with_bias(weight: Tensor, bias: Tensor) -> Tensor:
    """The bias as one more column."""
    return torch.cat((weight, bias[:, None]), dim=1)


def _hidden(pixels: Tensor, weight: Tensor) -> Tensor:
    """Hidden values [n P, hidden] of ``_with_one``.

    A bias of its own would be one of 12 channels at a time, and cost as much as the product.
    """
    return functional.linear(pixels, weight).relu_()


def _piece(x: Tensor) -> int:
    """Patches in one go: all on a GPU."""
    return _PIECE if x.device.type == "cpu" else max(len(x), 1)


def resized_patches(values: Tensor, base: int, patch_size: int) -> Tensor:
    """Patches [B, h, w, T, 8, 8, C] (a view) of normalized values [B, H, W, T, C]."""
    n_batch, height, width, n_times, n_bands = values.shape
    rows, cols = height // patch_size, width // patch_size
    if patch_size != base:
        by_row, by_col = (
            resize_matrix(n, n // patch_size * base).to(values.device, values.dtype)
            for n in (height, width)
        )
        # In full precision also where the network runs in bf16, as interpolation would.
        with torch.autocast(values.device.type, enabled=False):
            values = (by_row @ values.flatten(2)).unflatten(2, (width, -1))
            values = by_col @ values
    split = values.reshape(n_batch, rows, base, cols, base, n_times, n_bands)
    return split.permute(0, 1, 3, 5, 2, 4, 6)


def resize(images: Tensor, base: int, patch_size: int) -> Tensor:
    """Resize [..., H, W] so that patches of ``patch_size`` pixels become ``base`` pixels wide."""
    if patch_size == base:
        return images
    by_row, by_col = (
        resize_matrix(n, n // patch_size * base).to(images.device, images.dtype)
        for n in images.shape[-2:]
    )
    return by_row @ images @ by_col.T


@lru_cache(maxsize=64)
def resize_matrix(n_in: int, n_out: int) -> Tensor:
    """Matrix [n_out, n_in] of the antialiased bicubic resize along one axis (Keys, a = -0.5).

    The same taps as ``torch.nn.functional.interpolate(mode="bicubic", antialias=True)``: weights
    renormalize at the border instead of repeating pixels. Patches only ever grow (1 to 8 pixels
    become 8), so ``n_out >= n_in`` and the filter is never stretched.
    """
    scale = n_in / n_out
    centers = (np.arange(n_out) + 0.5) * scale
    pixels = np.arange(n_in)
    first = np.maximum((centers - 2 + 0.5).astype(int), 0)
    stop = np.minimum((centers + 2 + 0.5).astype(int), n_in)
    used = (pixels >= first[:, None]) & (pixels < stop[:, None])
    weights = np.where(used, _keys(pixels + 0.5 - centers[:, None]), 0.0)
    return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True)).float()


def _keys(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic convolution kernel of Keys (1981) with a = -0.5."""
    d = np.abs(distance)
    inner = (1.5 * d - 2.5) * d * d + 1
    outer = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return np.where(d < 1, inner, np.where(d < 2, outer, 0.0))
