"""What the loader hands to the training step: normalized crops and which tokens have data.

Axes: B batch, H W pixels, h w patch rows and columns, T timesteps, C bands, S band sets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Crops of B samples that share patch size and extent."""

    values: dict[str, Tensor]
    """Modality to float32 [B, H, W, T, C], normalized; maps have T=1; 0 where missing."""

    present: dict[str, Tensor]
    """Modality to bool [B, h, w, T, S]: the token has data. As in the official training, a token
    is missing if any band of its set is missing at the patch's top left pixel."""

    timestamps: Tensor
    """int64 [B, T, 3]: day 1..31, month 0..11, year."""

    patch_size: int
    """Pixels per patch side, the same for all samples."""

    ids: tuple[str, ...]
    """Which samples, for error reports."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            values={name: x.to(device, non_blocking=True) for name, x in self.values.items()},
            present={name: x.to(device, non_blocking=True) for name, x in self.present.items()},
            timestamps=self.timestamps.to(device, non_blocking=True),
        )
