"""The readout learns from location tokens and never changes them."""

from __future__ import annotations

import pytest
import torch

from bocage.pretrain.architecture import make_pretraining_model, model_config
from bocage.pretrain.distillation import DistillationHead, distillation_loss
from bocage.pretrain.objective import Objective, ObjectiveConfig

from .batches import random_batch


def test_the_loss_equals_a_loop_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    student, back, teacher = (
        torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (3, 5, 5)
    )
    compared = [0, 2, 5]

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b) / (a.norm() * b.norm()))

    expected = 1 - sum(cosine(back[i], teacher[i]) for i in range(6)) / 6
    squares = [
        (cosine(student[i], student[j]) - cosine(teacher[i], teacher[j])) ** 2
        for i in compared
        for j in compared
    ]
    expected += sum(squares) / len(squares)
    loss = distillation_loss(student, back, teacher, torch.tensor(compared))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_a_perfect_student_has_no_loss() -> None:
    teacher = torch.randn(10, 4)
    assert float(distillation_loss(3 * teacher, teacher, teacher, torch.arange(10))) < 1e-6


def test_a_prefix_sees_only_its_own_width() -> None:
    head = DistillationHead((8, 4), 16)
    student = torch.randn(3, 8)
    changed = student.clone()
    changed[:, 4:] += 1.0
    assert torch.equal(head(student)[4], head(changed)[4])
    assert not torch.equal(head(student)[8], head(changed)[8])


def test_distillation_moves_the_readout_and_nothing_before_it() -> None:
    options = {"n_views": 1, "contrastive_weight": 0.0, "max_location_queries": 1}
    config = model_config("nano", "v1.3")
    batch = random_batch(config)
    gradients = {}
    for weight in (1.0, 5.0):
        objective = ObjectiveConfig(**options, student_weight=weight)
        model = make_pretraining_model(config, 0, objective).train()
        losses = Objective(objective)(model, batch, torch.Generator().manual_seed(0))
        losses.total.backward()
        gradients[weight] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert {"distillation/128", "distillation/64"} <= set(losses.parts)
    for name, gradient in gradients[1.0].items():
        learns = "student" in name or "distillation" in name
        factor = 5.0 if learns else 1.0
        torch.testing.assert_close(gradients[5.0][name], factor * gradient, rtol=1e-4, atol=1e-7)
