"""What a network sees: normalized values, dates, and which tokens have data.

Axes: B batch, H W pixels, h w patch rows and columns, T timesteps, C bands, S band sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bocage.models.config import ModelConfig
from bocage.models.missing import prepare
from bocage.sensors import SENSORS


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A batch of crops."""

    values: dict[str, Tensor]
    """Per sensor [B, H, W, T, C], normalized; 0 where a band is missing."""

    timestamps: Tensor
    """[B, T, 3] day 1-31, month 0-11, year."""

    visible: dict[str, Tensor] | None = None
    """Per sensor [B, h, w, T, S]: tokens with data; None if all have."""

    def to(self, device: torch.device) -> Inputs:
        """On another device."""
        visible = self.visible
        return Inputs(
            values={name: x.to(device, non_blocking=True) for name, x in self.values.items()},
            timestamps=self.timestamps.to(device, non_blocking=True),
            visible=None
            if visible is None
            else {name: x.to(device, non_blocking=True) for name, x in visible.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """``(x - low) / width`` per band; by default the statistics of pretraining."""

    low: Mapping[str, tuple[float, ...]]
    width: Mapping[str, tuple[float, ...]]
    source: str
    """pretraining, or dataset: mean and spread of the training samples."""

    def apply(self, sensor: str, x: Tensor) -> Tensor:
        """Normalized values [..., C]; NaN stays NaN."""
        return (x - x.new_tensor(self.low[sensor])) / x.new_tensor(self.width[sensor])

    def to_json(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {
            "source": self.source,
            "low": {name: list(v) for name, v in self.low.items()},
            "width": {name: list(v) for name, v in self.width.items()},
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Normalization:
        """The opposite of ``to_json``."""
        return cls(
            source=raw["source"],
            low={name: tuple(v) for name, v in raw["low"].items()},
            width={name: tuple(v) for name, v in raw["width"].items()},
        )


def prepare_inputs(
    arrays: Mapping[str, Tensor],
    timestamps: Tensor,
    config: ModelConfig,
    *,
    patch_size: int,
    normalization: Normalization,
    with_visible: bool = False,
) -> Inputs:
    """Inputs of an OlmoEarth encoder from product units [B, H, W, T, C] with NaN for missing.

    ``with_visible`` states the tokens with data even if nothing is missing.
    """
    values: dict[str, Tensor] = {}
    visible: dict[str, Tensor] = {}
    own = normalization.source != "pretraining"
    for name, x in arrays.items():
        values[name], seen = prepare(
            name,
            normalization.apply(name, x.float()) if own else x.float(),
            band_sets=config.band_sets[name],
            patch_size=patch_size,
            copy_missing_bands=config.copies_missing_bands,
            normalize=not own,
        )
        if seen is not None:
            visible[name] = seen
    for name, x in values.items():
        if (visible or with_visible) and name not in visible:
            n, rows, cols, times, _ = x.shape
            sets = len(config.band_sets[name])
            shape = (n, rows // patch_size, cols // patch_size, times, sets)
            visible[name] = torch.ones(shape, dtype=torch.bool, device=x.device)
    return Inputs(values=values, timestamps=timestamps, visible=visible or None)


def pretraining_normalization(sensors: tuple[str, ...]) -> Normalization:
    """Mean - 2 std to mean + 2 std becomes 0 to 1, as in pretraining; never clipped."""
    bands = {name: SENSORS[name].bands for name in sensors}
    return from_moments(
        {name: tuple(b.mean for b in found) for name, found in bands.items()},
        {name: tuple(b.std for b in found) for name, found in bands.items()},
        source="pretraining",
    )


def from_moments(
    mean: Mapping[str, tuple[float, ...]], std: Mapping[str, tuple[float, ...]], *, source: str
) -> Normalization:
    """The same rule for given means and standard deviations; a constant band becomes 0.5."""
    spread = {name: tuple(s if s > 0 else 1.0 for s in v) for name, v in std.items()}
    return Normalization(
        low={
            name: tuple(m - 2 * s for m, s in zip(mean[name], spread[name], strict=True))
            for name in mean
        },
        width={name: tuple(4 * s for s in v) for name, v in spread.items()},
        source=source,
    )
