"""bocage probe and bocage evaluate, as a user types them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("geopandas")

from bocage.cli.evaluate import evaluate
from bocage.cli.probe import probe
from bocage.errors import BocageError
from bocage.learn.probe import load_probe
from tests.learn.conftest import label_file, store  # noqa: F401 - fixtures
from tests.learn.finetune.scenes import BARE, cells, truth, write_bare, write_points, write_scene


def run(*arguments):
    app = typer.Typer(pretty_exceptions_enable=False)
    for command in (probe, evaluate):
        app.command()(command)
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_probe_writes_a_probe_and_prints_its_scores(store, label_file, tmp_path):  # noqa: F811
    out = tmp_path / "probe"
    text = run(
        "probe", store, label_file, "--label", "class", "--out", out, "--block-m", 1000,
        "--n-folds", 4, "--method", "logistic,knn5",
    )  # fmt: skip
    for part in ("land", "location only", "5 nearest by cosine", "on random folds", "wrote"):
        assert part in text
    found = load_probe(out)
    assert found.predict(np.zeros((2, 8), np.float32)).shape == (2,)
    assert json.loads((out / "report.json").read_text())["task"] == "classification"


def test_mistakes_are_one_sentence_and_leave_nothing(store, label_file, tmp_path):  # noqa: F811
    for words, part in (
        (("--label", "klass"), "without the column klass"),
        (("--label", "class", "--block-m", "900000"), "in one block of 900,000 m"),
        (("--label", "class", "--n-folds", "500"), "200 samples for 500 folds"),
        (("--label", "class", "--folds", "cubic"), "folds 'cubic'"),
        (("--label", "class", "--method", "svm"), "method 'svm'"),
    ):
        with pytest.raises(BocageError, match=part):
            run("probe", store, label_file, "--out", tmp_path / "p", *words)
    assert not (tmp_path / "p").exists()
    (tmp_path / "taken.txt").touch()
    with pytest.raises(BocageError, match=r"taken\.txt, which is a file"):
        run("probe", store, label_file, "--label", "class", "--out", tmp_path / "taken.txt")
    with pytest.raises(BocageError, match=r"no\.toml"):
        run("evaluate", tmp_path / "no.toml", "--out", tmp_path / "o")


def test_a_mistake_ends_with_exit_code_1_and_no_traceback(label_file, tmp_path):  # noqa: F811
    words = ["probe", tmp_path / "no.zarr", label_file, "--out", tmp_path / "p"]
    done = subprocess.run(
        [sys.executable, "-m", "bocage", *map(str, words), "--label", "class"],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "no.zarr, which does not exist" in done.stderr


def test_imagery_takes_the_options_of_embed(bocage, tmp_path):
    row, col = cells(80)
    names = np.array(["land", "water"])[truth()[row, col]].tolist()
    points = write_points(tmp_path / "p.geojson", row, col, {"class": names})
    scene = write_scene(tmp_path / "scene")
    bare = write_bare(tmp_path / "bare.tif", scene)
    words = (points, "--label", "class", "--folds", "random", "--out")
    model = ("--model", "bocage-nano", "--patch-size", 8)
    scores, known = {}, {}
    for name, source in (
        ("named", (scene, *model)),
        ("told", (bare, *BARE, *model)),
        ("beside", (tmp_path / "named/embeddings.zarr", "--beside", bare, *BARE)),
        ("as it was", (tmp_path / "named/embeddings.zarr", "--bands", scene)),
    ):
        done = bocage("probe", source[0], *words, tmp_path / name, *source[1:])
        assert done.code == 0, done.err
        scores[name] = (tmp_path / name / "report.md").read_text()
        known[name] = np.load(tmp_path / name / "arrays.npz")
    assert "12 bands themselves" in scores["named"] and "NDWI" in scores["named"]
    assert len(set(scores.values())) == 1
    for found in known.values():
        for part, x in known["named"].items():
            np.testing.assert_array_equal(found[part], x)


def test_options_of_imagery_without_imagery_are_refused(bocage, store, label_file, tmp_path):  # noqa: F811
    words = ("probe", store, label_file, "--label", "class", "--out", tmp_path / "p")
    for more, part in (
        (("--bands", "B02,B03", "--max-cloud", 20), "--bands and --max-cloud with the embeddings"),
        (("--model", "bocage-nano", "--beside", "scene"), "scene beside imagery"),
        (("--beside", tmp_path / "no"), "no"),
    ):
        done = bocage(*words, *more)
        assert done.code == 1 and part in done.err and "Traceback" not in done.err, done.err
    done = bocage("probe", store, "--out", tmp_path / "p")
    assert done.code == 1 and "without labels" in done.err
    assert not (tmp_path / "p").exists()
