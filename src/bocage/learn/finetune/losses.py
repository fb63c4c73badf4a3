"""Losses as sums, with what they are divided by: parts of a step add up to the whole exactly.

Axes: B batch, h w cells of labels, K answers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bocage.errors import InputError
from bocage.learn.finetune.task import IGNORE, Task


class Loss:
    """The loss of a task: cross entropy, multi-label soft margin, or squared z-scored error."""

    def __init__(
        self,
        task: Task,
        *,
        weights: Tensor | None = None,
        target_mean: float = 0.0,
        target_std: float = 1.0,
    ) -> None:
        self.task = task
        self.weights = weights
        self.target_mean, self.target_std = target_mean, target_std

    def weight(self, labels: Tensor) -> float:
        """What the sum over these labels is divided by."""
        if self.task.kind == "regression":
            return float(torch.isfinite(labels).sum())
        if self.task.kind == "multilabel":
            return float((labels >= 0).all(dim=-1).sum())
        known = labels[labels != IGNORE].long()
        if self.weights is None:
            return float(known.numel())
        return float(self.weights.to(labels.device)[known].sum())

    def total(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Sum of the loss over the labels; answers [..., K] in any precision."""
        answers = answers.float()
        weights = None if self.weights is None else self.weights.to(answers.device)
        if self.task.kind == "regression":
            known = torch.isfinite(labels)
            target = (torch.where(known, labels, 0) - self.target_mean) / self.target_std
            return (torch.where(known, answers[..., 0] - target, 0) ** 2).sum()
        if self.task.kind == "multilabel":
            known = (labels >= 0).all(dim=-1)
            each = functional.multilabel_soft_margin_loss(
                answers, labels.clamp(min=0).to(answers.dtype), weight=weights, reduction="none"
            )
            return torch.where(known, each, 0).sum()
        return functional.cross_entropy(
            answers.flatten(0, -2),
            labels.flatten().long(),
            weight=weights,
            ignore_index=IGNORE,
            reduction="sum",
        )


def class_weights(
    chosen: str | tuple[float, ...], counts: NDArray[np.int64], n_classes: int
) -> Tensor | None:
    """Weights of the classes; balanced is n / (classes x count), as in scikit-learn."""
    if chosen == "none":
        return None
    if chosen == "balanced":
        present = counts > 0
        weights = np.zeros(len(counts))
        weights[present] = counts.sum() / (present.sum() * counts[present])
        return torch.tensor(weights, dtype=torch.float32)
    if len(chosen) != n_classes:
        raise InputError(
            got=f"{len(chosen)} class weights for {n_classes} classes",
            expected="one weight per class",
            fix="use --class-weights balanced",
        )
    return torch.tensor([float(w) for w in chosen])
