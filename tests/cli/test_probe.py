"""bocage probe and bocage evaluate, as a user types them."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("geopandas")

from bocage.learn.probe import load_probe
from tests.learn.conftest import frame, label_file, store  # noqa: F401 - fixtures


def run(*arguments):
    words = [sys.executable, "-m", "bocage", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)


def test_probe_writes_a_probe_and_prints_its_scores(store, label_file, tmp_path):  # noqa: F811
    out = tmp_path / "probe"
    done = run(
        "probe", store, label_file, "--label", "class", "--out", out, "--block-m", 1000,
        "--n-folds", 4, "--method", "logistic,knn5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for part in ("land", "location only", "5 nearest by cosine", "on random folds", "wrote"):
        assert part in done.stdout
    probe = load_probe(out)
    assert probe.predict(np.zeros((2, 8), np.float32)).shape == (2,)
    assert json.loads((out / "report.json").read_text())["task"] == "classification"


def test_mistakes_are_one_sentence_and_exit_code_1(store, label_file, tmp_path):  # noqa: F811
    for words, part in (
        (("--label", "klass"), "without the column klass"),
        (("--label", "class", "--block-m", "50000"), "in one block of 50,000 m"),
        (("--label", "class", "--n-folds", "500"), "200 samples for 500 folds"),
        (("--label", "class", "--folds", "cubic"), "folds 'cubic'"),
        (("--label", "class", "--method", "svm"), "method 'svm'"),
    ):
        done = run("probe", store, label_file, "--out", tmp_path / "p", *words)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert part in done.stderr
        assert len(done.stderr.strip().splitlines()[-1:]) == 1
    assert not (tmp_path / "p").exists()


def test_a_suite_that_does_not_exist_is_named(tmp_path):
    done = run("evaluate", tmp_path / "no.toml", "--out", tmp_path / "o")
    assert done.returncode == 1 and "no.toml" in done.stderr
