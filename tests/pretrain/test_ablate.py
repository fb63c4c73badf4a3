"""Every named choice trains, changes one thing, and stands in the table beside the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bocage.errors import ConfigError
from bocage.pretrain.ablate import ABLATIONS, ablate, ablated_recipe, ablation_table
from bocage.pretrain.evaluation import read_evaluation_set
from bocage.pretrain.run_options import RunOptions

from .test_evaluation import write
from .training_samples import QUIET, SMALL, SamplesInMemory


def differences(a: dict, b: dict, where: str = "") -> set[str]:
    found = set()
    for key in {**a, **b}:
        if isinstance(a.get(key), dict) and isinstance(b.get(key), dict):
            found |= differences(a[key], b[key], f"{where}{key}.")
        elif a.get(key) != b.get(key):
            found.add(f"{where}{key}")
    return found


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_choice_changes_what_it_says(name: str) -> None:
    release = ablated_recipe("full").to_json()
    changed = differences(release, ablated_recipe(name).to_json())
    rooms = {key.split(".")[0] for key in changed}
    if name in {"full", "no_flips"}:
        assert not changed
    else:
        assert changed
        assert rooms <= {"model", "changed", "objective", "sampling", "flips"}
    if name in {"v1_masking", "v1_loss", "no_band_dropout", "no_contrastive", "token_masking"}:
        assert rooms == {"objective"}
        assert len(changed) == 1


def test_all_choices_train_and_the_table_has_the_reports_numbers(tmp_path: Path) -> None:
    dataset = read_evaluation_set(write(tmp_path / "set.npz"))
    options = RunOptions(**QUIET, evaluation_sets=(dataset,))
    names = ("full", "absolute_encodings", "linear_projection", "naive_merge", "v1_band_sets")
    recipe = {"steps": 1, "batch_size": 4, "precision": "fp32", "sampling": SMALL}
    rows = ablate(names, SamplesInMemory(8), tmp_path / "out", options=options, **recipe)
    assert all(row.result.finished for row in rows)
    assert {len(right) for row in rows for right in row.right.values()} == {40}
    lines = ablation_table(rows, (dataset,)).splitlines()
    assert len(lines) == 2 + len(names)
    assert lines[0] == "| choice | steps | loss | set/knn | set/linear | report |"
    assert "m-eurosat kNN 91.8" in lines[2]
    assert "m-eurosat kNN 92.6" in lines[3]
    assert "m-eurosat kNN 84 |" in lines[5]
    assert lines[6].endswith("|  |")  # not in the report
    # differences to the first row, with an interval, in all others
    assert all("(+" in line or "(-" in line or "(0" in line for line in lines[3:])
    again = ablate(names[:1], SamplesInMemory(8), tmp_path / "out", options=options, **recipe)
    np.testing.assert_array_equal(again[0].right["set/knn"], rows[0].right["set/knn"])
    assert again[0].result.loss == rows[0].result.loss  # from the log: nothing was trained


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(ConfigError, match="ablation 'bigger'; expected one of full"):
        ablated_recipe("bigger")
