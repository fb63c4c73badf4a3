"""One whole step, loss and gradients, is that of the official modules and a plain loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.utils import unpack_encoder_output

from bocage.pretrain.architecture import make_pretraining_model, model_config
from bocage.pretrain.batch import Batch
from bocage.pretrain.masking import MaskingConfig, Role, mask
from bocage.pretrain.objective import Objective, ObjectiveConfig
from bocage.sensors import MAPS

from ..models.official import official_model, official_sample
from .batches import random_batch
from .test_losses import naive_row

CONFIGS = {
    "v1": ObjectiveConfig(
        masking=MaskingConfig(strategy="modality_cross_random"),
        same_target=None,
        contrastive_weight=0.1,
        band_dropout=0.0,
    ),
    "v1.1": ObjectiveConfig(),
    "v1.2": ObjectiveConfig(),
    "v1.3": ObjectiveConfig(n_views=1, contrastive_weight=0.0),
}


class Scripted(torch.nn.Module):
    """Stochastic depth with given factors: first the attention branch, then the other."""

    def __init__(self, scales: torch.Tensor) -> None:
        super().__init__()
        self.scales, self.calls = scales, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.scales[(self.calls - 1) % 2][:, None, None]


def roles_of(batch: Batch, objective: ObjectiveConfig, seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        mask(batch.present, objective.masking, generator, ids=batch.ids)
        for _ in range(objective.n_views)
    ]


def to_pixels(roles: torch.Tensor, patch_size: int) -> torch.Tensor:
    return roles.long().repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)


def naive_step(
    official: torch.nn.Module, batch: Batch, objective: ObjectiveConfig, plan, seed: int
) -> torch.Tensor:
    """The step as it is told: one view after the other, one sample after the other."""
    official.encoder.train()
    n, back = len(batch.ids), plan.order.argsort()
    sample = official_sample(batch.values, batch.timestamps)
    targets = official.target_encoder(
        sample, patch_size=batch.patch_size, token_exit_cfg=dict.fromkeys(batch.values, 0)
    )["tokens_and_masks"]
    total, pooled = 0.0, []
    for view, roles in enumerate(roles_of(batch, objective, seed)):
        rows = slice(view * n, (view + 1) * n)
        for i, block in enumerate(official.encoder.blocks):
            block.drop_path = Scripted(plan.branch_scale[i][:, back[rows]])
        seen = dict(batch.values)
        for m, keep in (plan.band_keep or {}).items():
            seen[m] = seen[m] * keep[back[rows]][:, None, None, None]
        masked = official_sample(seen, batch.timestamps)._replace(
            **{f"{m}_mask": to_pixels(r, batch.patch_size) for m, r in roles.items()}
        )
        query = plan.location_query_patch_size
        options = {} if query is None else {"location_query_patch_size": query}
        encoded = official.encoder(masked, patch_size=batch.patch_size, **options)
        latent, projected, context = unpack_encoder_output(encoded)
        context.pop("student_location_tokens", None)
        decoded = official.decoder(
            latent, timestamps=batch.timestamps, patch_size=batch.patch_size, **context
        )
        pooled.append(projected)
        for m, r in roles.items():
            losses = []
            for b in range(n):
                here = r[b] == Role.DECODE
                losses.append(
                    naive_row(
                        getattr(decoded, m)[b][here],
                        getattr(targets, m)[b][here],
                        tau=0.1,
                        same_target=objective.same_target if m in MAPS else None,
                    )
                )
            losses = [x for x in losses if x is not None]
            if losses:
                total = total + torch.stack(losses).mean() / objective.n_views
    if objective.contrastive_weight:
        a, b = (torch.nn.functional.normalize(x, dim=-1) for x in pooled)
        total = total + objective.contrastive_weight * torch.nn.functional.cross_entropy(
            a @ b.T / 0.1, torch.arange(n)
        )
    return total


@pytest.mark.parametrize("version", CONFIGS)
@pytest.mark.parametrize("patch_size", [3, 8])
def test_a_step_equals_official_modules_and_a_plain_loop(version: str, patch_size: int) -> None:
    config = dataclasses.replace(model_config("nano", version), drop_path=0.3)
    official = official_model(version, "nano")
    ours = make_pretraining_model(config, 0)
    weights = official.state_dict()
    ours.load_state_dict({name: weights[name] for name in ours.state_dict()})
    ours.train()
    batch = random_batch(config, patch_size=patch_size)
    objective, seed = Objective(CONFIGS[version]), 5
    plan = objective.plan(config, batch, torch.Generator().manual_seed(seed))
    assert (not plan.band_keep) == (version == "v1")

    losses = objective.loss(ours, batch, plan)
    losses.total.backward()
    expected = naive_step(official, batch, objective.config, plan, seed)
    expected.backward()

    torch.testing.assert_close(losses.total, expected, rtol=0, atol=1e-5)
    theirs = dict(official.named_parameters())
    compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.grad is None:
            continue
        gradient = theirs[name].grad
        scale = max(1.0, float(gradient.abs().max()))
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * scale, name
        compared += 1
    reached = {n for n, p in theirs.items() if p.grad is not None and bool(p.grad.abs().max() > 0)}
    assert reached <= {n for n, p in ours.named_parameters() if p.grad is not None}
    assert compared > 100
    assert all(p.grad is None for p in ours.target_encoder.parameters())
