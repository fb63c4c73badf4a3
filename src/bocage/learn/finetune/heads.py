"""From features to answers: what is trained on top of a backbone.

Axes: B batch, H W pixels, h w cells of features, D width of features, K answers per cell,
q cells of labels a side in one cell of features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bocage.errors import ConfigError

HEADS = ("linear", "unet")


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a backbone says of a batch."""

    grid: Tensor
    """[B, h, w, D]; zeros where a cell saw nothing."""

    seen: Tensor
    """[B, h, w]: True where a cell saw data."""

    image: Tensor | None = None
    """[B, H, W, C]: mean over time of the normalized values, for decoders that look at pixels."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """A head, as head.json keeps it."""

    kind: str = "linear"
    """linear: one layer per cell; unet: a decoder that also looks at the pixels."""

    width: int
    """Features that come in."""

    n_outputs: int
    dense: bool
    """An answer per cell of labels, not one per crop."""

    cells_per_feature: int = 1
    """q: cells of labels a side in one cell of features."""

    pixels_per_cell: int = 1
    """Side of a cell of labels in pixels of the crop."""

    n_bands: int = 0
    """Bands of all sensors together, which the decoder looks at."""

    decoder_width: int = 32
    """Channels of the decoder at its finest level."""

    def __post_init__(self) -> None:
        if self.kind not in HEADS:
            raise ConfigError(
                got=f"head {self.kind!r}",
                expected=f"one of {', '.join(HEADS)}",
                fix="correct --head",
            )
        if self.kind == "unet" and not self.dense:
            raise ConfigError(
                got="the unet head for one label per crop",
                expected="a label per pixel",
                fix="use --head linear",
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> HeadConfig:
        """The opposite of ``to_json``."""
        return cls(**raw)


class Head(nn.Module):
    """What all heads have."""

    def cells(self, features: Features) -> Tensor:
        """Answers [B, h, w, K] for a map."""
        raise NotImplementedError


def make_head(config: HeadConfig) -> Head:
    """The head of a configuration, freshly initialized."""
    if config.kind == "unet":
        return UnetHead(config)
    return CellLinear(config) if config.dense else CropLinear(config)


class CropLinear(Head):
    """One answer per crop: the mean of the cells that saw data, through one layer."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.linear = _linear(config.width, config.n_outputs)

    def forward(self, features: Features) -> Tensor:
        """[B, K]."""
        seen = features.seen[..., None].to(features.grid.dtype)
        mean = (features.grid * seen).sum(dim=(1, 2)) / seen.sum(dim=(1, 2)).clamp(min=1)
        answer: Tensor = self.linear(mean)
        return answer

    def cells(self, features: Features) -> Tensor:
        """[B, h, w, K]: the same layer on each cell, whose mean is the answer of the crop."""
        answers: Tensor = self.linear(features.grid)
        return answers


class CellLinear(Head):
    """An answer per cell of labels: Linear(D -> K q q), then each feature opens to q x q cells."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.q = config.cells_per_feature
        self.linear = _linear(config.width, config.n_outputs * self.q**2)

    def forward(self, features: Features) -> Tensor:
        """[B, h q, w q, K]."""
        x = self.linear(features.grid)
        if self.q == 1:
            return torch.Tensor(x)
        n, rows, cols, _ = x.shape
        x = x.reshape(n, rows, cols, -1, self.q, self.q).permute(0, 1, 4, 2, 5, 3)
        opened: Tensor = x.reshape(n, rows * self.q, cols * self.q, -1)
        return opened

    def cells(self, features: Features) -> Tensor:
        """The same."""
        return self.forward(features)


class UnetHead(Head):
    """A decoder from the grid of features up to the pixels, with the image beside it at each level.

    Levels double until they have the label's resolution; the last step goes to any ratio. Group
    norms, not batch norms: small batches and several processes give the same result.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        ratio, width = config.cells_per_feature, config.decoder_width
        sizes = [ratio]  # features per level, counted in cells of labels: p, p/2, ..., 1
        while sizes[-1] > 1:
            sizes.append(max(1, sizes[-1] // 2))
        self.sizes = sizes
        widths = [min(width * 2 ** (len(sizes) - 1 - i), 256) for i in range(len(sizes))]
        self.entry = nn.Sequential(nn.Linear(config.width, widths[0]), nn.GELU())
        self.looks = nn.ModuleList(_Convolutions(config.n_bands, max(w // 2, 8)) for w in widths)
        self.levels = nn.ModuleList(
            _Convolutions((widths[i - 1] if i else widths[0]) + max(w // 2, 8), w)
            for i, w in enumerate(widths)
        )
        self.answer = nn.Conv2d(widths[-1], config.n_outputs, 1)

    def forward(self, features: Features) -> Tensor:
        """[B, h q, w q, K]."""
        if features.image is None:
            raise RuntimeError("the unet head needs Features.image")
        image = features.image.movedim(-1, 1)  # [B, C, H, W]
        x = self.entry(features.grid).movedim(-1, 1)
        rows, cols = features.grid.shape[1:3]
        for size, look, level in zip(self.sizes, self.looks, self.levels, strict=True):
            shape = (rows * self.sizes[0] // size, cols * self.sizes[0] // size)
            seen = functional.adaptive_avg_pool2d(image, shape)
            if x.shape[-2:] != shape:
                x = functional.interpolate(x, size=shape, mode="bilinear", align_corners=False)
            x = level(torch.cat((x, look(seen)), dim=1))
        answers: Tensor = self.answer(x).movedim(1, -1)
        return answers

    def cells(self, features: Features) -> Tensor:
        """The same."""
        return self.forward(features)


class _Convolutions(nn.Sequential):
    """Two 3 x 3 convolutions with group norm and GELU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        groups = next(n for n in (8, 4, 2, 1) if n_out % n == 0)
        super().__init__(
            nn.Conv2d(n_in, n_out, 3, padding=1),
            nn.GroupNorm(groups, n_out),
            nn.GELU(),
            nn.Conv2d(n_out, n_out, 3, padding=1),
            nn.GroupNorm(groups, n_out),
            nn.GELU(),
        )


def _linear(n_in: int, n_out: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    nn.init.trunc_normal_(layer.weight, std=0.02)  # answers start near "do not know"
    nn.init.zeros_(layer.bias)
    return layer
