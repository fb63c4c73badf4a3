"""What a model gives for a batch of crops: tokens, and the grids that are made of them.

Axes: B batch, h w patch rows and columns, r_h r_w output rows and columns, T timesteps, S band
sets, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bocage.errors import ConfigError

OUTPUTS = ("auto", "pooled", "student", "locations")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Tokens of a batch, and the grids that are made of them."""

    tokens: dict[str, Tensor]
    """Per sensor [B, h, w, T, S, D]; zeros where hidden."""

    visible: dict[str, Tensor]
    """Per sensor [B, h, w, T, S]: True where a token had data."""

    locations: Tensor | None = None
    """Location tokens of v1.3 [B, r_h, r_w, D]."""

    student: Tensor | None = None
    """Small embedding of v1.3 [B, r_h, r_w, 128]; the first 64 are an embedding too."""

    def pooled(self) -> Tensor:
        """Mean over timesteps and band sets per sensor, then over sensors, [B, h, w, D].

        Only visible tokens count; NaN where a cell saw nothing.
        """
        means, weights = [], []
        for name, x in self.tokens.items():
            keep = self.visible[name][..., None]
            count = keep.sum(dim=(3, 4))  # [B, h, w, 1]
            means.append(x.float().mul(keep).sum(dim=(3, 4)) / count.clamp(min=1))
            weights.append(count > 0)
        weight = torch.stack(weights).float()
        return (torch.stack(means) * weight).sum(dim=0) / weight.sum(dim=0)

    def grid(self, output: str = "auto") -> Tensor:
        """The embedding map [B, r_h, r_w, D]: "pooled", "student", "locations", or "auto".

        "auto" is the student where the model has one, otherwise pooled. NaN where a patch saw
        nothing, also for location tokens, which would only repeat their surroundings there.
        """
        if output == "auto":
            output = "pooled" if self.student is None else "student"
        if output == "pooled":
            return self.pooled()
        x = {"student": self.student, "locations": self.locations}.get(output)
        if x is None:
            raise unknown_output(output)
        seen = torch.stack([v.any(dim=(3, 4)) for v in self.visible.values()]).any(dim=0)
        per_patch = x.shape[1] // seen.shape[1]
        seen = seen.repeat_interleave(per_patch, 1).repeat_interleave(per_patch, 2)
        return torch.where(seen[..., None], x, torch.nan)


def unknown_output(output: str, known: list[str] | None = None) -> ConfigError:
    """The error of an output that the model does not have."""
    choices = known or [name for name in OUTPUTS if name != output]
    return ConfigError(
        got=f"output={output!r}",
        expected=f"one of {', '.join(choices)}",
        fix='pass output="auto", or a v1.3 model for student and locations',
    )
