"""One whole step, loss and gradients, is that of the official modules and a plain loop."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.utils import unpack_encoder_output

from bocage.errors import ConfigError, InputError
from bocage.pretrain.architecture import make_pretraining_model, model_config
from bocage.pretrain.batch import Batch
from bocage.pretrain.masking import MaskingConfig, Role, mask
from bocage.pretrain.objective import LossError, Objective, ObjectiveConfig, check_finite
from bocage.pretrain.supervision import MAP_TASKS
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
SLOW = [("v1", 8), ("v1.1", 3), ("v1.2", 8), ("v1.3", 3)]


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


@pytest.mark.parametrize(
    ("version", "patch_size"),
    [
        *(("v1", 3), ("v1.1", 8), ("v1.2", 3), ("v1.3", 8)),
        *(pytest.param(v, p, marks=pytest.mark.slow) for v, p in SLOW),
    ],
)
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


@pytest.mark.parametrize("version", ["v1.2", "v1.3"])
def test_supervision_and_distillation_add_to_the_loss(version: str) -> None:
    config = model_config("nano", version)
    objective = ObjectiveConfig(
        n_views=1, contrastive_weight=0.0, supervision_weight=2.0, student_weight=3.0
    )
    model = make_pretraining_model(config, 0, objective)
    batch = random_batch(config)
    if version == "v1.2":
        with pytest.raises(ConfigError, match=r"v1\.3 network"):
            Objective(objective)(model, batch, torch.Generator().manual_seed(0))
        return
    losses = Objective(objective)(model, batch, torch.Generator().manual_seed(0))
    expected = 0.0
    for name, part in losses.parts.items():
        kind, what = name.split("/")
        weights = {"discrimination": 1.0, "distillation": 3.0}
        expected += float(part) * weights.get(kind, 2.0 * getattr(MAP_TASKS.get(what), "weight", 0))
    assert {name.split("/")[0] for name in losses.parts} == {
        "discrimination",
        "supervision",
        "distillation",
    }
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("version", ["v1", "v1.2", "v1.3"])
def test_one_sensor_and_one_date_is_enough(version: str) -> None:
    config = model_config("nano", version)
    model = make_pretraining_model(config, 0, CONFIGS[version])
    batch = random_batch(config, modalities=("sentinel2_l2a",), n_times=1, missing=0.0)
    losses = Objective(CONFIGS[version])(model, batch, torch.Generator().manual_seed(0))
    losses.total.backward()
    assert float(losses.parts["discrimination/sentinel2_l2a"]) > 0
    assert set(losses.parts) <= {"discrimination/sentinel2_l2a", "contrastive"}


def test_a_sample_without_sensors_changes_nothing_and_a_batch_of_them_is_refused() -> None:
    config = model_config("nano", "v1.2")
    model = make_pretraining_model(config, 0)
    batch = random_batch(config, missing=0.0)
    objective = Objective(ObjectiveConfig(n_views=1, contrastive_weight=0.0, band_dropout=0.0))

    def without(batch: Batch, rows: list[int]) -> Batch:
        present = {m: p.clone() for m, p in batch.present.items()}
        for m in config.inputs:
            present[m][rows] = False
        return dataclasses.replace(batch, present=present)

    model.eval()
    with_empty = objective(model, without(batch, [1]), torch.Generator().manual_seed(0))
    alone = objective(model, part_of(batch, [0, 2]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(with_empty.total, alone.total, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="sample_0, sample_1, sample_2"):
        objective(model, without(batch, [0, 1, 2]), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("change", ["band sets", "patch size", "type", "extent"])
def test_a_batch_for_another_network_is_refused(change: str) -> None:
    config = model_config("nano", "v1.2")
    made_for = model_config("nano", "v1") if change == "band sets" else config
    batch = random_batch(made_for)
    s2 = batch.values["sentinel2_l2a"]
    if change == "patch size":
        batch = dataclasses.replace(batch, patch_size=5)
    elif change == "type":
        batch.values["sentinel2_l2a"] = s2.double()
    elif change == "extent":
        batch.values["sentinel2_l2a"] = s2[:, :8]
    with pytest.raises(InputError, match="sentinel2_l2a"):
        Objective(ObjectiveConfig()).plan(config, batch, torch.Generator())


def part_of(batch: Batch, rows: list[int]) -> Batch:
    return dataclasses.replace(
        batch,
        values={m: x[rows] for m, x in batch.values.items()},
        present={m: x[rows] for m, x in batch.present.items()},
        timestamps=batch.timestamps[rows],
        ids=tuple(batch.ids[i] for i in rows),
    )


def test_the_generator_decides_everything_and_the_global_one_nothing() -> None:
    config = model_config("nano", "v1.2")
    model = make_pretraining_model(config, 0).train()
    batch = random_batch(config)
    objective = Objective(ObjectiveConfig())

    def loss(seed: int) -> float:
        with torch.no_grad():
            return float(objective(model, batch, torch.Generator().manual_seed(seed)).total)

    first = loss(1)
    torch.rand(7)
    assert loss(1) == first
    assert loss(2) != first


def test_plans_of_parts_of_a_batch_are_parts_of_its_plan() -> None:
    config = model_config("nano", "v1.2")
    batch = random_batch(config, n_samples=4)
    objective = Objective(ObjectiveConfig())
    whole = objective.plan(config, batch, torch.Generator().manual_seed(0))
    half = objective.plan(config, part_of(batch, [2, 3]), torch.Generator().manual_seed(0))
    back, back_half = whole.order.argsort(), half.order.argsort()
    mine = [2, 3, 6, 7]  # both views of samples 2 and 3
    assert torch.equal(
        whole.branch_scale[:, :, back][:, :, mine], half.branch_scale[..., back_half]
    )
    for m, keep in whole.band_keep.items():
        assert torch.equal(keep[back][mine], half.band_keep[m][back_half])
    for name in ("encode", "decode"):
        counts, counts_half = (
            torch.tensor(getattr(p, name).counts)[b] for p, b in ((whole, back), (half, back_half))
        )
        assert torch.equal(counts[mine], counts_half)


def test_band_dropout_keeps_a_band_of_each_set_and_has_the_share_asked_for() -> None:
    config = model_config("nano", "v1.2", band_sets="v1")
    batch = random_batch(config, n_samples=200, cells=1, patch_size=1, n_times=1)
    generator = torch.Generator().manual_seed(0)
    kept = {m: [] for m in ("sentinel2_l2a", "landsat")}
    for _ in range(20):
        plan = Objective(ObjectiveConfig(band_dropout=0.6)).plan(config, batch, generator)
        assert set(plan.band_keep) == set(kept)
        for m, keep in plan.band_keep.items():
            assert set(keep.unique().tolist()) <= {0.0, 1.0}
            for bands in config.band_sets[m]:
                assert bool((keep[:, list(bands)].sum(1) >= 1).all())
            kept[m].append(keep)
    # Rates are uniform in 0 to 0.6, so 0.3 of the ten bands of Landsat's second set are hidden.
    hidden = 1 - torch.stack(kept["landsat"])[..., 1:].mean()
    assert abs(float(hidden) - 0.3) < 5 * 0.6 / (12 * 40) ** 0.5
    assert bool((torch.stack(kept["landsat"])[..., 0] == 1).all())  # a set of one band


def test_a_loss_that_is_no_number_names_its_samples() -> None:
    config = model_config("nano", "v1.2")
    model = make_pretraining_model(config, 0)
    batch = random_batch(config, missing=0.0)
    objective = Objective(ObjectiveConfig())
    check_finite(objective(model, batch, torch.Generator().manual_seed(0)), batch)
    with torch.no_grad():
        model.decoder.mask_token.fill_(float("inf"))
    losses = objective(model, batch, torch.Generator().manual_seed(0))
    with pytest.raises(LossError, match=r"sample_0, sample_1, sample_2; .* learning rate") as error:
        check_finite(losses, batch)
    assert error.value.ids == batch.ids
    assert "discrimination/landsat nan" in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    batch.values["sentinel2_l2a"][1, 0, 0] = float("nan")
    with pytest.raises(LossError, match=r"in samples sample_1 \(sentinel2_l2a\); "):
        check_finite(objective(model, batch, torch.Generator().manual_seed(0)), batch)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"n_views": 3}, "n_views"),
        ({"n_views": 1}, "contrastive_weight"),
        ({"band_dropout": 1.0}, "band_dropout"),
        ({"temperature": 0.0}, "temperature"),
        ({"band_dropout_modalities": ("worldcover",)}, "band_dropout_modalities"),
        ({"student_weight": -1.0}, "student_weight"),
        ({"max_location_queries": 0}, "max_location_queries"),
        ({"same_target": 2.0}, "same_target"),
    ],
)
def test_an_impossible_objective_is_refused(options: dict, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ObjectiveConfig(**options)
