"""Recipes hold the published numbers, and what a run records is what it needs to go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bocage.errors import ConfigError, ModelError
from bocage.models.releases import release_config
from bocage.pretrain.optimizer import learning_rate
from bocage.pretrain.recipe import RELEASES, make_recipe
from bocage.pretrain.recipe_record import begin_record, data_identity, read_record

from .training_samples import SamplesInMemory

# release, size, peak rate, weight decay, micro-batch: specification of the official runs, 8.1.
PUBLISHED = [
    ("v1", "nano", 1e-3, 0.002, 32),
    ("v1", "tiny", 2e-4, 0.02, 32),
    ("v1", "base", 1e-4, 0.02, 32),
    ("v1", "large", 1e-4, 0.002, 32),
    ("v1.1", "nano", 2e-4, 0.02, 64),
    ("v1.1", "tiny", 2e-4, 0.002, 64),
    ("v1.1", "base", 1e-4, 0.02, 64),
    ("v1.2", "nano", 2e-4, 0.02, 64),
    ("v1.2", "tiny", 2e-4, 0.002, 64),
    ("v1.2", "small", 2e-4, 0.02, 64),
    ("v1.2", "base", 1e-4, 0.02, 64),
    ("v1.3", "base", 1e-4, 0.02, 64),
]


@pytest.mark.parametrize(("release", "size", "rate", "decay", "micro"), PUBLISHED)
def test_the_published_numbers(
    release: str, size: str, rate: float, decay: float, micro: int
) -> None:
    recipe = make_recipe(release, size)
    assert recipe.model == release_config(release, size)
    assert recipe.optimizer.learning_rate == rate
    assert recipe.optimizer.weight_decay == decay
    assert recipe.optimizer.betas == (0.9, 0.999)
    assert recipe.optimizer.clip_norm == 1.0
    assert recipe.micro_batch_size == micro
    assert (recipe.batch_size, recipe.steps) == (512, 300 * (1_138_828 // 512))
    assert (recipe.seed, recipe.data_seed) == (12536, 3622)
    assert learning_rate(recipe.optimizer, 8000, recipe.steps) == pytest.approx(rate)
    assert learning_rate(recipe.optimizer, 667_200, recipe.steps) == pytest.approx(rate / 10)


def test_what_differs_between_releases() -> None:
    recipes = {release: make_recipe(release, "base") for release in RELEASES}
    objective = {release: recipe.objective for release, recipe in recipes.items()}
    assert {r: o.contrastive_weight for r, o in objective.items()} == {
        "v1": 0.1,
        "v1.1": 0.05,
        "v1.2": 0.05,
        "v1.3": 0.0,
    }
    assert [o.n_views for o in objective.values()] == [2, 2, 2, 1]
    assert [o.band_dropout for o in objective.values()] == [0.0, 0.2, 0.2, 0.2]
    assert [o.same_target for o in objective.values()] == [None, 0.999, 0.999, 0.999]
    assert objective["v1"].masking.strategy == "modality_cross_random"
    assert objective["v1.2"].masking.strategy == "random_time_with_decode"
    assert [r.sampling.token_budget for r in recipes.values()] == [2250, 2250, 2250, 3072]
    assert [r.flips for r in recipes.values()] == [True, False, False, False]


def test_short_runs_warm_up_over_a_tenth() -> None:
    assert make_recipe(steps=500).optimizer.warmup_steps == 50
    assert make_recipe(steps=500_000).optimizer.warmup_steps == 8000
    assert make_recipe(steps=500, warmup_steps=3).optimizer.warmup_steps == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"release": "v9"}, "release 'v9'"),
        ({"size": "huge"}, "of size 'huge'"),
        ({"steps": 0}, "steps=0.*--steps"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"learning_rate": -1}, "learning_rate=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"data_seed": -1}, "data_seed=-1.*--data-seed"),
    ],
)
def test_impossible_options_are_named(options: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_recipe(**options)


@pytest.mark.parametrize("release", RELEASES)
def test_a_record_gives_the_network_back(release: str, tmp_path: Path) -> None:
    recipe = make_recipe(release, "nano")
    assert json.loads(json.dumps(recipe.to_json())) == recipe.to_json()
    data = data_identity(SamplesInMemory(4))
    begin_record(tmp_path / "run", recipe, data)
    begin_record(tmp_path / "run", recipe, data)  # the same again is no conflict
    record = read_record(tmp_path / "run")
    assert record.model == recipe.model
    assert record.seed == recipe.seed


def test_data_are_told_apart_by_their_samples() -> None:
    one, other = SamplesInMemory(4), SamplesInMemory(4)
    assert data_identity(one) == data_identity(other)
    other.samples[2].id = "another"
    assert data_identity(one) != data_identity(other)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"run\.json"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ModelError, match=r"run\.json"):
        read_record(tmp_path)
