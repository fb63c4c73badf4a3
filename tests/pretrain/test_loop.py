"""A run gives one curve, however often it is stopped, and says what is wrong with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bocage.errors import ConfigError, ModelError
from bocage.pretrain.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint
from bocage.pretrain.loop import pretrain
from bocage.pretrain.metrics_log import read_metrics
from bocage.pretrain.recipe import Recipe
from bocage.pretrain.run_options import PretrainResult, RunOptions

from .training_samples import QUIET, SamplesInMemory, small_recipe

DATA = SamplesInMemory()


def train(recipe: Recipe, out: Path, **options) -> PretrainResult:
    return pretrain(recipe, DATA, out, options=RunOptions(**{**QUIET, **options}))


def curve(run: Path) -> list[tuple[float, ...]]:
    return [
        (row["step"], row["loss"], row["gradient_norm"], row["learning_rate"])
        for row in read_metrics(run)
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that was never stopped."""
    out = tmp_path_factory.mktemp("straight") / "run"
    result = train(small_recipe(), out)
    assert result.finished
    assert result.step == 6
    return out


def test_a_run_leaves_a_log_a_picture_a_record_and_a_checkpoint(straight: Path) -> None:
    rows = read_metrics(straight)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(row["loss"]) and row["gradient_norm"] > 0 for row in rows)
    assert {"step_s", "data_s", "patch_size", "learning_rate"} <= set(rows[0])
    assert any(key.startswith("loss/") for key in rows[0])
    assert (straight / "loss.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((straight / "run.json").read_text())
    assert record["recipe"]["optimizer"]["learning_rate"] == 2e-4
    assert record["data"]["n_samples"] == len(DATA)
    assert record["versions"]["torch"] == torch.__version__
    assert record["finished"]
    assert record["energy"]["kwh"] > 0
    assert latest_checkpoint(straight) == straight / "checkpoints" / "step_00000006"


def test_a_stopped_run_goes_on_bit_for_bit(straight: Path, tmp_path: Path) -> None:
    first = train(small_recipe(), tmp_path / "run", stop_after=2)
    assert (first.step, first.finished) == (2, False)
    second = train(small_recipe(), tmp_path / "run", stop_after=5, workers=1)
    assert second.step == 5
    before = load_checkpoint(latest_checkpoint(tmp_path / "run")).state["energy"]
    last = train(small_recipe(), tmp_path / "run")
    assert last.finished
    assert curve(tmp_path / "run") == curve(straight)
    ours = load_checkpoint(latest_checkpoint(tmp_path / "run"))
    theirs = load_checkpoint(latest_checkpoint(straight))
    for kind in ("model", "optimizer"):
        ours_kind, theirs_kind = getattr(ours, kind), getattr(theirs, kind)
        assert set(ours_kind) == set(theirs_kind)
        assert all(torch.equal(x, theirs_kind[name]) for name, x in ours_kind.items())
    assert ours.state["energy"]["kwh"] > before["kwh"] > 0  # of all starts together


def test_a_run_that_lost_its_last_steps_repeats_them(straight: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_recipe(), run, checkpoint_steps=2, keep=9)
    assert [p.name[-1] for p in list_checkpoints(run)] == ["2", "4", "6"]
    shutil.rmtree(latest_checkpoint(run))  # as if killed between steps 4 and 6
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "torn')
    train(small_recipe(), run)
    assert curve(run) == curve(straight)


def test_the_curve_does_not_depend_on_how_the_batch_is_read(straight: Path, tmp_path: Path) -> None:
    train(small_recipe(), tmp_path / "run", workers=2)
    assert curve(tmp_path / "run") == curve(straight)


def test_a_finished_run_has_nothing_left_to_do(straight: Path) -> None:
    told = json.loads((straight / "run.json").read_text())
    before = curve(straight)
    result = train(small_recipe(), straight)
    assert (result.finished, result.step) == (True, 6)
    assert curve(straight) == before
    # What it took stays in the record: 0 steps per second would not be true.
    assert json.loads((straight / "run.json").read_text()) == told


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"learning_rate": 1e-3}, r"optimizer\.learning_rate 0\.0002 \(now 0\.001\)"),
        ({"seed": 7}, r"seed 12536 \(now 7\)"),
        ({"steps": 60}, r"steps 6 \(now 60\)"),
        ({"architecture": {"drop_path": 0.0}}, r"drop_path 0\.1 \(now 0\.0\)"),
    ],
)
def test_another_recipe_is_refused_with_the_difference(
    straight: Path, changed: dict, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        train(small_recipe(**changed), straight)


def test_other_data_are_refused(straight: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.n_samples 24 \(now 16\)"):
        pretrain(small_recipe(), SamplesInMemory(16), straight, options=RunOptions(**QUIET))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not a run and not empty"):
        train(small_recipe(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_loss_that_is_not_finite_stops_and_names_the_samples(tmp_path: Path) -> None:
    data = SamplesInMemory()
    for sample in data.samples:
        sample.values["sentinel2_l2a"][:] = np.float32(3e38)
    run = tmp_path / "run"
    with pytest.raises(ModelError, match=r"at step 1.*not_finite_step_00000001\.json"):
        pretrain(small_recipe(), data, run, options=RunOptions(**QUIET))
    facts = json.loads((run / "not_finite_step_00000001.json").read_text())
    assert len(facts["ids"]) == 8
    assert set(facts["ids"]) <= {sample.id for sample in data.samples}
    assert latest_checkpoint(run) is None


def test_a_step_that_is_not_finite_changes_no_weight(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_recipe(), run, stop_after=3)
    before = load_checkpoint(latest_checkpoint(run))
    data = SamplesInMemory()
    for sample in data.samples:
        sample.values["sentinel2_l2a"][:] = np.float32(3e38)
    with pytest.raises(ModelError, match="at step 4"):
        pretrain(small_recipe(), data, run, options=RunOptions(**QUIET))
    assert load_checkpoint(latest_checkpoint(run)).step == before.step == 3
    train(small_recipe(), run)  # with the good data it goes on


def test_batches_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batches of 8 for 1 processes in micro-batches of 3"):
        train(small_recipe(micro_batch_size=3), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_data_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size=32 with 24 samples"):
        train(small_recipe(batch_size=32), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_saved_nothing_may_begin_anew(tmp_path: Path, straight: Path) -> None:
    run = tmp_path / "run"
    train(small_recipe(seed=7), run, stop_after=2)
    shutil.rmtree(run / "checkpoints")  # as if it had failed before its first checkpoint
    train(small_recipe(), run)
    assert curve(run) == curve(straight)
    assert json.loads((run / "run.json").read_text())["recipe"]["seed"] == 12536


def test_time_and_strategy_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep=0"):
        RunOptions(keep=0)
    with pytest.raises(ConfigError, match="workers=-1"):
        RunOptions(workers=-1)
    with pytest.raises(ConfigError, match="torchrun"):
        train(small_recipe(), tmp_path / "run", strategy="fsdp2")
    with pytest.raises(ConfigError, match="strategy 'horovod'"):
        train(small_recipe(), tmp_path / "run", strategy="horovod")


def test_a_time_limit_saves_and_stops(tmp_path: Path) -> None:
    result = train(small_recipe(), tmp_path / "run", max_minutes=1e-9)
    assert result.step == 1
    assert not result.finished
    assert latest_checkpoint(tmp_path / "run").name == "step_00000001"


def test_a_crop_of_one_token_each_is_no_obstacle(tmp_path: Path) -> None:
    one = replace(small_recipe().sampling, sides=(1,), max_steps=1)
    data = SamplesInMemory(8, modalities=("sentinel2_l2a",))
    result = pretrain(
        small_recipe(sampling=one, steps=2), data, tmp_path / "run", options=RunOptions(**QUIET)
    )
    assert result.finished


@pytest.mark.slow
def test_training_lowers_the_loss(tmp_path: Path) -> None:
    # Frozen targets of one scene are much alike: at the official start nothing moves so soon.
    whole = replace(small_recipe().sampling, patch_sizes=(8,), sides=(4,), token_budget=1000)
    recipe = small_recipe(
        steps=300,
        learning_rate=2e-3,
        sampling=whole,
        whiten=True,
        architecture={"drop_path": 0.0},
    )
    train(recipe, tmp_path / "run")
    losses = [row["loss"] for row in read_metrics(tmp_path / "run")]
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:20])
