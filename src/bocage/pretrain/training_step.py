"""One update: micro-batches in turn, gradients added, clipped, applied.

Everything random in a micro-batch (masks, dropped bands, dropped paths) is drawn from the seed, the
step and the number of the micro-batch in the whole batch, over all processes. So neither the number
of processes nor a restart changes the curve, and nothing random has to be saved. The contrastive
loss compares the samples of one micro-batch, as in the official training: their number, not the
number of processes, is part of the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from bocage.models.predictor import PretrainingModel
from bocage.pretrain.batch import Batch
from bocage.pretrain.distributed import (
    Group,
    gather_objects,
    gradients_stay_local,
    touch_whole_parameters,
    whole,
)
from bocage.pretrain.objective import Objective

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


class MicroBatchLoss(nn.Module):
    """Network and losses as one module, so that its forward can be shared among processes."""

    def __init__(
        self, model: PretrainingModel, objective: Objective, *, precision: str, sharded: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.dtype = PRECISIONS[precision]
        self.sharded = sharded

    def forward(self, batch: Batch, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts for one micro-batch, whose random draws come from ``seed``."""
        torch.manual_seed(seed)  # dropped bands and paths, on every device
        generator = torch.Generator().manual_seed(seed)  # masks
        device = batch.timestamps.device.type
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype != torch.float32):
            losses = self.objective(self.model, batch, generator)
        total = losses.total
        if self.sharded:
            total = total + touch_whole_parameters(self.model)
        return total, {name: x.detach() for name, x in losses.parts.items()}


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one update was like; the same in every process."""

    loss: float
    """Mean over all micro-batches."""

    parts: dict[str, float]
    """Means of the parts of the loss."""

    gradient_norm: float
    """Before clipping."""

    applied: bool
    """False if loss or gradients were not finite: then no weight was changed."""


def take_step(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    step: int,
    seed: int,
    micro_batch_size: int,
    clip_norm: float,
    group: Group,
) -> StepResult:
    """Update the weights once with this process's part of the batch."""
    pieces = list(split(batch, micro_batch_size))
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    loss = 0.0
    for i, piece in enumerate(pieces):
        with gradients_stay_local(module, last=i == len(pieces) - 1):
            number = group.rank * len(pieces) + i
            total, parts = module(piece, seed_of(seed, step, number))
            (total / len(pieces)).backward()
        loss += float(total.detach()) / len(pieces)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(pieces)
    loss, sums = _mean_over_processes(loss, sums, group)
    trained = [p for p in module.parameters() if p.grad is not None]
    norm = float(whole(nn.utils.clip_grad_norm_(trained, clip_norm)))
    applied = math.isfinite(loss) and math.isfinite(norm)
    if applied:
        optimizer.step()
    return StepResult(loss=loss, parts=sums, gradient_norm=norm, applied=applied)


def split(batch: Batch, size: int) -> Iterator[Batch]:
    """Consecutive samples, ``size`` at a time."""
    for start in range(0, len(batch.ids), size):
        rows = slice(start, start + size)
        yield replace(
            batch,
            values={m: x[rows] for m, x in batch.values.items()},
            present={m: x[rows] for m, x in batch.present.items()},
            timestamps=batch.timestamps[rows],
            ids=batch.ids[rows],
        )


def seed_of(seed: int, step: int, micro_batch: int) -> int:
    """An independent seed for each micro-batch of each step."""
    return int(np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)[0])


def _mean_over_processes(
    loss: float, parts: dict[str, float], group: Group
) -> tuple[float, dict[str, float]]:
    """Means over processes; a part that some processes lack counts as 0 there."""
    if group.world_size == 1:
        return loss, parts
    found = gather_objects((loss, parts), group)
    names = dict.fromkeys(name for _, row in found for name in row)
    n = group.world_size
    return (
        sum(value for value, _ in found) / n,
        {name: sum(row.get(name, 0.0) for _, row in found) / n for name in names},
    )
