"""The small readout of v1.3 learns to stand for the location tokens, which it never shapes.

Each prefix of the readout must lead back to the location tokens through a small network (cosine),
and keep their similarities to each other (Gram matrices).

Axes: n location tokens, D their width, d width of a prefix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

GRAM_TOKENS = 2048
"""Most tokens that are compared with each other."""

_HIDDEN = 256


class DistillationHead(nn.Module):
    """Back-projections from prefixes of the readout.

    In a checkpoint under ``location_token_distillation_head.``, never exported.
    """

    def __init__(self, prefixes: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.prefixes = prefixes
        self.back_projections = nn.ModuleDict(
            {
                str(d): nn.Sequential(
                    nn.Linear(d, _HIDDEN),
                    nn.LayerNorm(_HIDDEN),
                    nn.ReLU(),
                    nn.Linear(_HIDDEN, width),
                )
                for d in prefixes
            }
        )

    def forward(self, student: Tensor) -> dict[int, Tensor]:
        """Location tokens [n, D] as each prefix d of the readout [n, widest] remembers them."""
        return {d: self.back_projections[str(d)](student[:, :d]) for d in self.prefixes}


def distillation_loss(student: Tensor, back: Tensor, teacher: Tensor, compared: Tensor) -> Tensor:
    """Loss of one prefix: ``student`` [n, d], its back-projection and the teacher [n, D].

    One minus the mean cosine between back-projection and teacher, plus the mean squared difference
    of the two matrices of cosines among the tokens numbered ``compared``. The teacher gets no
    gradient.
    """
    with torch.autocast(student.device.type, enabled=False):
        teacher = functional.normalize(teacher.detach().float(), dim=-1)
        cosine = (functional.normalize(back.float(), dim=-1) * teacher).sum(-1)
        own = functional.normalize(student[compared].float(), dim=-1)
        theirs = teacher[compared]
        gram = (own @ own.T - theirs @ theirs.T).square().mean()
        return 1 - cosine.mean() + gram
