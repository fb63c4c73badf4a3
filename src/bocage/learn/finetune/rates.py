"""Which parameter learns how fast, and when."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from bocage.learn.finetune.config import FinetuneConfig
from bocage.learn.finetune.network import Network

PLATEAU = {"factor": 0.2, "patience": 2, "cooldown": 10}
"""Of the official fine-tuning."""


def make_optimizer(network: Network, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW with one group per rate; each group keeps its full rate as ``full_lr``.

    Layer-wise decay: block i of L learns at ``lr * decay ** (L - i)``, what stands before the
    blocks at ``lr * decay ** L``, the last norm and the head at ``lr``.
    """
    lr = config.resolved_lr
    decay = config.layer_decay if config.recipe == "layer-decay" else 1.0
    groups: dict[int, list[nn.Parameter]] = {}
    for layers, parameter in network.backbone_parameters():
        groups.setdefault(layers, []).append(parameter)
    rates = [(found, lr * decay**layers) for layers, found in sorted(groups.items())]
    rates.append((list(network.head_parameters()), lr))
    made: list[dict[str, Any]] = [{"params": p, "lr": r, "full_lr": r} for p, r in rates]
    return torch.optim.AdamW(made, lr=lr, weight_decay=config.weight_decay, fused=True)


def frozen_epochs(config: FinetuneConfig) -> int:
    """Epochs in which only the head learns; of several epochs at least one is left for all."""
    if config.recipe != "frozen-start":
        return 0
    return min(math.ceil(config.frozen_share * config.epochs), max(config.epochs - 1, 1))


class Schedule:
    """The rates of a step, as a share of their full value."""

    def __init__(self, config: FinetuneConfig, steps_per_epoch: int, *, higher_is_better: bool):
        self.config = config
        self.kind = config.resolved_schedule
        self.steps_per_epoch = steps_per_epoch
        self.total = config.epochs * steps_per_epoch
        self.warmup = int(config.warmup_share * self.total)
        self.frozen = frozen_epochs(config)
        # torch's scheduler works on an optimizer; this one holds nothing but the share itself.
        self._share = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        mode: Any = "max" if higher_is_better else "min"
        self._plateau = ReduceLROnPlateau(self._share, mode=mode, **PLATEAU)  # type: ignore[arg-type]

    def share(self, step: int) -> float:
        """What full rates are multiplied by in step 0, 1, ..."""
        share = 1.0
        if step // self.steps_per_epoch >= self.frozen and self.config.recipe == "frozen-start":
            share = self.config.unfrozen_rate
        if self.kind == "plateau":
            return share * float(self._share.param_groups[0]["lr"])
        if self.kind == "constant":
            return share
        if step < self.warmup:
            return share * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.total - self.warmup, 1)
        low = self.config.min_rate
        return share * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)

    def end_epoch(self, score: float) -> None:
        """Tell the plateau rule how the epoch went."""
        self._plateau.step(score)

    def state(self) -> dict[str, Any]:
        """What must be kept to go on, as JSON can hold it."""
        plateau = self._plateau
        names = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        return {
            **{name: getattr(plateau, name) for name in names},
            "lr": self._share.param_groups[0]["lr"],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        for name, value in state.items():
            if name != "lr":
                setattr(self._plateau, name, value)
        self._share.param_groups[0]["lr"] = state["lr"]


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Give each group its share of its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_lr"] * share
