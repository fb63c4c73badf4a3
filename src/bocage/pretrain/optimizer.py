"""AdamW with warm-up and a cosine, as all releases were trained.

Every parameter is in one group: norms, biases and embeddings decay like the others, as in the
official runs. State is saved by parameter name, so a file says what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bocage.errors import ConfigError, ModelError
from bocage.pretrain.distributed import like, whole


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow their gradients."""

    learning_rate: float = 2e-4
    """Peak, reached at the end of the warm-up."""

    weight_decay: float = 0.02
    """On every parameter, without exemption."""

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    warmup_steps: int = 8000
    """Steps in which the rate rises from 0."""

    final_fraction: float = 0.1
    """Rate at the last step, as a share of the peak."""

    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    got=f"{name}={getattr(self, name)}",
                    expected="a positive number",
                    fix=f"correct {name}",
                )
        if self.weight_decay < 0 or self.warmup_steps < 0 or not 0 <= self.final_fraction <= 1:
            raise ConfigError(
                got=f"weight_decay={self.weight_decay}, warmup_steps={self.warmup_steps}, "
                f"final_fraction={self.final_fraction}",
                expected="no negative number, and a final fraction of at most 1",
                fix="correct the option",
            )


def learning_rate(config: OptimizerConfig, step: int, n_steps: int) -> float:
    """Rate of update ``step`` (1 is the first, ``n_steps`` the last)."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    lowest = config.learning_rate * config.final_fraction
    if step >= n_steps:
        return lowest
    share = (step - config.warmup_steps) / (n_steps - config.warmup_steps)
    return lowest + (config.learning_rate - lowest) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over everything that is trained, in its fused form."""
    return torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use this rate in the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """State as flat tensors: ``exp_avg/encoder.norm.weight`` and so on.

    All processes must call; a parameter that never had a gradient has no state.
    """
    return {
        f"{kind}/{name}": whole(value)
        for name, parameter in module.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put saved state back; ModelError if it belongs to other parameters."""
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        parameter = parameters.get(name)
        if parameter is None or (kind != "step" and value.shape != parameter.shape):
            raise ModelError(
                got=f"optimizer state {key} of shape {list(value.shape)}",
                expected="state of this network's parameters",
                fix="resume with the configuration that wrote the checkpoint",
            )
        # A step count is one number, whole in every process.
        target = value.clone() if kind == "step" else like(value, parameter.detach()).clone()
        optimizer.state[parameter][kind] = target
