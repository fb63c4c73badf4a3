"""How much of its input a network really uses for one place of its output.

The theoretical receptive field of an attention network is everything. What counts is where the
influence lies: by gradients (Luo et al. 2016, arXiv:1701.04128) or by exchanging blocks of the
input and watching the output. Both are set beside their **null**, a uniform map over the same
tile: the 90 % diameter of any wide field is capped by the tile, so a diameter near the null's says
something about the tile, not about the network.

Axes: B images, C channels (bands, or timesteps x bands), H W pixels, D outputs, h w output cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bocage.errors import ConfigError, InputError, ModelError
from bocage.models.model import Model
from bocage.scoring.accumulator import Interval

SHARES = (0.5, 0.9, 0.99)
_MAX_RINGS = 4096

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class ReceptiveField:
    """Where the influence on one output cell comes from."""

    influence: NDArray[np.float64]
    """Mean over images [H, W], adding up to 1 (per block where blocks were exchanged)."""

    center_yx: tuple[float, float]
    """Middle of the output cell, in pixels from the upper left corner."""

    radius_px: NDArray[np.float64]
    """Radii of growing circles around the center [R]."""

    mass: NDArray[np.float64]
    """Share of the influence inside each circle [R]."""

    null_mass: NDArray[np.float64]
    """The same if the influence were uniform over the tile [R]."""

    diameter_px: dict[float, Interval]
    """Diameter that holds 50, 90, 99 % of the influence; bootstrap interval over images."""

    null_px: dict[float, float]
    """The same diameters of the null."""

    ratio: dict[float, Interval]
    """diameter / null: 1 is spread over the whole tile, near 0 is local."""

    n_images: int

    @property
    def capped(self) -> bool:
        """True if the 90 % diameter cannot be told from that of a uniform map (ratio over 0.9)."""
        return self.ratio[0.9].value > 0.9

    def markdown(self) -> str:
        """A table of the diameters beside their null."""
        lines = ["| influence | diameter, px | uniform null, px | ratio |", "|---:|---|---:|---|"]
        lines += [
            f"| {share:.0%} | {self.diameter_px[share]:.0f} | {self.null_px[share]:.0f} "
            f"| {self.ratio[share]:.2f} |"
            for share in SHARES
        ]
        if self.capped:
            lines += ["", "The tile caps the 90 % diameter: use larger tiles."]
        return "\n".join(lines)


def measure_by_gradient(
    network: Network,
    images: Tensor,
    *,
    channel: int | None = None,
    cell_yx: tuple[int, int] | None = None,
    n_projections: int = 8,
    seed: int = 0,
) -> ReceptiveField:
    """Measure the mean |d output / d input| of one output cell over images.

    Args:
        network: Differentiable, [B, C, H, W] -> [B, D, h, w]; see encoder_function.
        images: [B, C, H, W], as the network takes them; 20 or more give useful intervals.
        channel: Which output (a class); by default all, through `n_projections` random signs, as
            the plain sum of outputs lets opposite gradients cancel.
        cell_yx: Output cell; the middle one by default.
        n_projections: Signs drawn per image.
        seed: Of the signs and the bootstrap.
    """
    _check_images(images)
    generator = torch.Generator().manual_seed(seed)
    maps, center = [], (0.0, 0.0)
    for image in images:
        x = image[None].detach().clone().requires_grad_(True)
        with torch.enable_grad():
            output = _output(network, x)
            values, center = _cell(output, x, channel, cell_yx)  # [1, D]
            d = values.shape[1]
            n = 1 if channel is not None else n_projections
            total = torch.zeros(x.shape[-2:], dtype=torch.float64, device=x.device)
            for i in range(n):
                sign = torch.ones(d)
                if channel is None and d > 1:
                    sign = torch.randint(0, 2, (d,), generator=generator) * 2.0 - 1
                target = (values * sign.to(values)).sum()
                if not target.requires_grad:
                    raise ModelError(
                        got="a network whose output has no gradient",
                        expected="a differentiable function",
                        fix="run it without torch.no_grad, or use measure_by_exchange",
                    )
                (gradient,) = torch.autograd.grad(target, x, retain_graph=i + 1 < n)
                total += gradient[0].abs().double().sum(dim=0)
        maps.append(total.cpu().numpy())
    return _summarize(np.stack(maps), center, 1, seed)


@torch.no_grad()
def measure_by_exchange(
    network: Network,
    images: Tensor,
    *,
    block_px: int = 8,
    channel: int | None = None,
    cell_yx: tuple[int, int] | None = None,
    replacement: Literal["other", "mean"] = "other",
    batch_size: int = 16,
    seed: int = 0,
) -> ReceptiveField:
    """Measure how far the output of one cell moves when a block of the input is exchanged.

    Needs no gradient, and sees what saturated gradients do not.

    Args:
        network: [B, C, H, W] -> [B, D, h, w].
        images: [B, C, H, W]; H and W multiples of `block_px`.
        block_px: Side of the blocks.
        channel: Which output; by default the Euclidean distance between all of them.
        cell_yx: Output cell; the middle one by default.
        replacement: What a block is exchanged with: the same block of the next image ("other"),
            or the image's mean.
        batch_size: Exchanged images per forward.
        seed: Of the bootstrap.
    """
    _check_images(images)
    n, _, height, width = images.shape
    if height % block_px or width % block_px:
        raise ConfigError(
            got=f"blocks of {block_px} px in images of {height} x {width}",
            expected="a side that divides both",
            fix="crop the images or choose another block_px",
        )
    if replacement not in ("other", "mean") or (replacement == "other" and n < 2):
        raise ConfigError(
            got=f"replacement {replacement!r} with {n} images",
            expected="'other' with two images or more, or 'mean'",
            fix="pass more images, or replacement='mean'",
        )
    corners = [(r, c) for r in range(0, height, block_px) for c in range(0, width, block_px)]
    maps, center = [], (0.0, 0.0)
    for i, image in enumerate(images):
        source = images[(i + 1) % n]
        if replacement == "mean":
            source = image.mean(dim=(1, 2), keepdim=True).expand_as(image)
        moved = np.zeros(len(corners))
        for start in range(0, len(corners), batch_size):
            chosen = corners[start : start + batch_size]
            # The untouched image runs in the same batch: another batch size rounds otherwise, and
            # the noise of many distant blocks would look like influence.
            batch = image.repeat(len(chosen) + 1, 1, 1, 1)
            for k, (r, c) in enumerate(chosen):
                part = (slice(None), slice(r, r + block_px), slice(c, c + block_px))
                batch[k + 1][part] = source[part]
            values, center = _cell(_output(network, batch), batch, channel, cell_yx)
            distance = (values[1:] - values[:1]).double().norm(dim=1)
            moved[start : start + len(chosen)] = distance.cpu().numpy()
        maps.append(moved.reshape(height // block_px, width // block_px))
    return _summarize(np.stack(maps), center, block_px, seed)


def encoder_function(model: Model, sensor: str, timestamps: Any, *, patch_size: int = 4) -> Network:
    """A model's pooled embedding map as a differentiable function of normalized images.

    Takes [B, T * C, H, W] of one sensor, timestep by timestep, and gives [B, D, h, w];
    `timestamps` [T, 3] day 1-31, month 0-11, year.
    """
    stamps = torch.as_tensor(np.asarray(timestamps), dtype=torch.int64)
    if stamps.ndim != 2 or stamps.shape[1] != 3:
        raise InputError(
            got=f"timestamps {tuple(stamps.shape)}",
            expected="[T, 3] day, month 0-11, year",
            fix="one row per timestep",
        )
    encoder = model.encoder

    def encode(images: Tensor) -> Tensor:
        x = images.unflatten(1, (len(stamps), -1)).permute(0, 3, 4, 1, 2)  # [B, H, W, T, C]
        output = encoder({sensor: x}, stamps.to(x.device).expand(len(x), -1, -1), patch_size)
        pooled: Tensor = output.tokens[sensor].mean(dim=(3, 4))  # [B, h, w, D]
        return pooled.permute(0, 3, 1, 2)

    return encode


def null_diameters(
    shape_yx: tuple[int, int], center_yx: tuple[float, float] | None = None
) -> dict[float, float]:
    """Diameters around a point (default: the middle) that hold 50, 90, 99 % of a tile's area."""
    center = center_yx or (shape_yx[0] / 2, shape_yx[1] / 2)
    radius, ring = _rings(shape_yx, center, 1)
    mass = np.cumsum(np.bincount(ring, minlength=len(radius))) / len(ring)
    return {share: float(_diameters(mass[None], radius, share)[0]) for share in SHARES}


def _summarize(
    maps: NDArray[np.float64], center: tuple[float, float], block_px: int, seed: int
) -> ReceptiveField:
    total = maps.sum()
    if not np.isfinite(total) or total <= 0:
        raise ModelError(
            got="an output that does not depend on its input, or NaN",
            expected="finite influence",
            fix="check the cell, the channel, and that images hold no NaN",
        )
    n, shape = len(maps), (maps.shape[1], maps.shape[2])
    radius, ring = _rings(shape, center, block_px)
    flat = maps.reshape(n, -1)
    # Influence per ring and image: a bootstrap over images needs nothing else.
    profile = np.stack([np.bincount(ring, row, len(radius)) for row in flat])
    mass = _cumulative(profile.mean(axis=0)[None])[0]
    null = np.cumsum(np.bincount(ring, minlength=len(radius))) / len(ring)
    drawn = None
    if n > 1:
        rng = np.random.default_rng(seed)
        weights = rng.multinomial(n, np.full(n, 1 / n), 1000).astype(np.float64)
        drawn = _cumulative(weights @ profile)
    null_px = {share: float(_diameters(null[None], radius, share)[0]) for share in SHARES}
    diameter, ratio = {}, {}
    for share in SHARES:
        value = float(_diameters(mass[None], radius, share)[0])
        low = high = float("nan")
        if drawn is not None:
            low, high = np.quantile(_diameters(drawn, radius, share), [0.025, 0.975]).tolist()
        diameter[share] = Interval(value=value, low=low, high=high)
        scale = max(null_px[share], 1e-12)
        ratio[share] = Interval(value=value / scale, low=low / scale, high=high / scale)
    return ReceptiveField(
        influence=maps.mean(axis=0) / maps.mean(axis=0).sum(),
        center_yx=center,
        radius_px=radius,
        mass=mass,
        null_mass=null,
        diameter_px=diameter,
        null_px=null_px,
        ratio=ratio,
        n_images=n,
    )


def _rings(
    shape_yx: tuple[int, int], center_yx: tuple[float, float], block_px: int
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Radii [R], and the ring of each pixel (or block) by the distance of its middle."""
    y = (np.arange(shape_yx[0]) + 0.5) * block_px - center_yx[0]
    x = (np.arange(shape_yx[1]) + 0.5) * block_px - center_yx[1]
    distance = np.hypot(y[:, None], x).ravel().round(6)
    radius, ring = np.unique(distance, return_inverse=True)
    if len(radius) > _MAX_RINGS:  # rings a fraction of a pixel wide; the outer edge counts
        width = distance.max() / (_MAX_RINGS - 1)
        ring = np.ceil(distance / width).astype(np.intp)
        radius = np.arange(_MAX_RINGS + 1) * width
    return radius, ring.reshape(-1)


def _cumulative(profile: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.cumsum(profile, axis=-1)
    return np.asarray(inside / inside[..., -1:], np.float64)


def _diameters(
    mass: NDArray[np.float64], radius: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    """Diameter of the smallest circle that holds a share; through the middles of its pixels."""
    return np.asarray(2 * radius[(mass >= share - 1e-12).argmax(axis=-1)], np.float64)


def _cell(
    output: Tensor, images: Tensor, channel: int | None, cell_yx: tuple[int, int] | None
) -> tuple[Tensor, tuple[float, float]]:
    """Outputs of one cell [B, D], and its middle in input pixels."""
    _, d, rows, cols = output.shape
    row, col = cell_yx or (rows // 2, cols // 2)
    if not (0 <= row < rows and 0 <= col < cols) or (channel is not None and not 0 <= channel < d):
        raise ConfigError(
            got=f"cell ({row}, {col}), channel {channel}",
            expected=f"within {rows} x {cols} cells of {d} channels",
            fix="choose another, or leave them out",
        )
    values = output[:, :, row, col]
    height, width = images.shape[-2:]
    center = ((row + 0.5) * height / rows, (col + 0.5) * width / cols)
    return values if channel is None else values[:, channel : channel + 1], center


def _output(network: Network, x: Tensor) -> Tensor:
    output = network(x)
    if not isinstance(output, Tensor) or output.ndim != 4 or len(output) != len(x):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(
            got=f"an output {got} for images {tuple(x.shape)}",
            expected="[B, D, h, w]",
            fix="wrap the network in a function that moves the axes",
        )
    return output


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or len(images) == 0 or not torch.is_floating_point(images):
        raise InputError(
            got=f"images {tuple(images.shape)} of {images.dtype}",
            expected="float [B, C, H, W]",
            fix="normalize them and stack them",
        )
    if not bool(torch.isfinite(images).all()):
        raise InputError(
            got="images with NaN or infinity",
            expected="finite values",
            fix="choose images without nodata: its borders would be measured",
        )
