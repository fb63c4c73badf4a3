"""Hidden tokens leave the sequence; rows of unequal length are padded and the padding is masked.

When every sample hides the same number of tokens (none included) there is no padding and no mask.

Axes: B batch, N tokens of the full sequence, L tokens kept (the longest sample).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Which tokens of each sample are kept, and where."""

    index: Tensor
    """Position in the full sequence [B, L], kept tokens first and in order."""

    n_tokens: int
    """Length N of the full sequence."""

    valid: Tensor | None
    """False where a row of ``index`` is padding [B, L]; None if there is none."""

    def pack(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, L, D]."""
        return x.gather(1, self.index[..., None].expand(-1, -1, x.shape[-1]))

    def unpack(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, N, D], zeros for tokens that were not kept."""
        if self.valid is not None:
            x = x * self.valid[..., None].to(x.dtype)
        full = x.new_zeros(len(x), self.n_tokens, x.shape[-1])
        return full.scatter(1, self.index[..., None].expand(-1, -1, x.shape[-1]), x)

    @property
    def key_valid(self) -> Tensor | None:
        """Mask for attention; a sample that keeps nothing reads its padding, for no use."""
        if self.valid is None:
            return None
        return self.valid | ~self.valid.any(dim=1, keepdim=True)


def plan_packing(keep: Tensor) -> Packing:
    """The packing that keeps the tokens where ``keep`` [B, N] is True."""
    counts = keep.sum(dim=1)
    length = max(int(counts.max()), 1)
    index = keep.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
    valid = torch.arange(length, device=keep.device) < counts[:, None]
    return Packing(index=index, n_tokens=keep.shape[1], valid=None if bool(valid.all()) else valid)
