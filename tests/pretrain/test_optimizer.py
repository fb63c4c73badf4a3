"""The schedule is warm-up and cosine; saved state is that of torch."""

import math

import pytest
import torch

from bocage.errors import ConfigError, ModelError
from bocage.pretrain.optimizer import (
    OptimizerConfig,
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine_to_a_tenth() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=100)
    assert learning_rate(config, 1, 1100) == pytest.approx(0.02)
    assert learning_rate(config, 50, 1100) == pytest.approx(1.0)
    assert learning_rate(config, 100, 1100) == pytest.approx(2.0)
    assert learning_rate(config, 600, 1100) == pytest.approx((2.0 + 0.2) / 2)
    assert learning_rate(config, 1100, 1100) == pytest.approx(0.2)
    # torch's own cosine gives the same values after the warm-up
    parameter = torch.nn.Parameter(torch.zeros(1))
    peer = torch.optim.SGD([parameter], lr=2.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(peer, T_max=1000, eta_min=0.2)
    for step in range(100, 1100):
        assert learning_rate(config, step, 1100) == pytest.approx(schedule.get_last_lr()[0])
        peer.step()
        schedule.step()


def test_no_warm_up_starts_at_the_peak() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0)
    assert learning_rate(config, 1, 10) == pytest.approx(
        0.1 + 0.9 * (1 + math.cos(math.pi / 10)) / 2
    )


def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        module(x).square().sum().backward()
        set_learning_rate(optimizer, 0.01 / (step + 1))
        optimizer.step()


def make() -> torch.nn.Module:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    module.unused = torch.nn.Parameter(torch.ones(3))
    module.frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    return module


def test_state_by_name_continues_as_if_never_saved() -> None:
    config = OptimizerConfig(weight_decay=0.1)
    straight = make()
    optimizer = make_optimizer(straight, config)
    train(straight, optimizer, range(5))
    saved = {n: x.clone() for n, x in optimizer_tensors(optimizer, straight).items()}
    weights = {n: x.clone() for n, x in straight.state_dict().items()}
    train(straight, optimizer, range(5, 9))

    again = make()
    again.load_state_dict(weights)
    optimizer = make_optimizer(again, config)
    load_optimizer_tensors(optimizer, again, saved)
    train(again, optimizer, range(5, 9))
    for name, x in straight.state_dict().items():
        assert torch.equal(x, again.state_dict()[name])
    assert {key.split("/")[1] for key in saved} == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_every_trained_parameter_decays() -> None:
    optimizer = make_optimizer(make(), OptimizerConfig(weight_decay=0.3))
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert len(optimizer.param_groups[0]["params"]) == 5  # all but the frozen one


def test_state_of_another_network_is_refused() -> None:
    module = make()
    optimizer = make_optimizer(module, OptimizerConfig())
    with pytest.raises(ModelError, match="exp_avg/other"):
        load_optimizer_tensors(optimizer, module, {"exp_avg/other": torch.zeros(3)})
    with pytest.raises(ModelError, match=r"0\.weight of shape"):
        load_optimizer_tensors(optimizer, module, {"exp_avg/0.weight": torch.zeros(3)})


def test_impossible_options_are_named() -> None:
    with pytest.raises(ConfigError, match="learning_rate=0"):
        OptimizerConfig(learning_rate=0)
    with pytest.raises(ConfigError, match="final_fraction=2"):
        OptimizerConfig(final_fraction=2)
