"""bocage finetune, as a user types it: from a scene and labels to a network and its map."""

import json

import numpy as np
import pytest
import rasterio
import torch

pytest.importorskip("geopandas", reason="labels need geopandas")

from bocage.learn.finetune import load_finetuned, open_training_set
from bocage.learn.finetune.log import read_metrics
from tests.learn.finetune.scenes import (
    BARE,
    cells,
    truth,
    write_bare,
    write_mask,
    write_points,
    write_scene,
)

NANO = ("--model", "olmoearth-v1.2-nano", "--weights", "random")
SHORT = ("--epochs", 6, "--batch-size", 8, "--lr", 4e-3, "--recipe", "plain", "--split", "random")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    torch.set_num_threads(1)
    return write_scene(tmp_path_factory.mktemp("scene") / "scene")


@pytest.fixture
def mask(tmp_path):
    return write_mask(tmp_path / "mask.tif")


def test_a_scene_and_a_mask_become_a_network_and_a_map(bocage, scene, mask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("finetune", scene, mask, *NANO, *SHORT, "--crop", 16, "--data", "crops")
    done = bocage(*words, "--out", "net")
    assert done.code == 0, done.err
    assert "RANDOM WEIGHTS" in done.err and "labelled crops have less than 50% of data" in done.err
    for part in (
        "crops: ",
        "classes  10",
        "network  olmoearth-v1.2-nano",
        "best     epoch",
        "test ",
    ):
        assert part in done.out
    names = {p.name for p in (tmp_path / "net").iterdir()}
    assert names >= {"config.json", "weights.safetensors", "head.json", "head.safetensors",
                     "metrics.jsonl", "curves.png", "run.json"}  # fmt: skip
    run = json.loads((tmp_path / "net/run.json").read_text())
    assert run["request"]["labels"] == [str(mask)] and run["resolved"]["epochs"] == 6
    assert run["result"]["val"] > 0.8  # mIoU; the near infrared says it
    assert f"{run['result']['val']:.4f}" in done.out
    # The crops serve again without the scene, and the finished run is only told again.
    curve = read_metrics(tmp_path / "net")
    again = bocage("finetune", "crops", *NANO, *SHORT, "--out", "net")
    assert again.code == 0 and "nothing to do" in again.out
    best = [line for line in done.out.splitlines() if line.startswith("best")]
    assert best == [line for line in again.out.splitlines() if line.startswith("best")]
    assert [r for r in read_metrics(tmp_path / "net") if "loss" in r] == [
        r for r in curve if "loss" in r
    ]
    done = bocage("predict", scene, "--with", "net", "--out", "map.tif", "--no-picture")
    assert done.code == 0, done.err
    with rasterio.open("map.tif") as file:
        found = file.read(1)
    assert found.shape == truth().shape
    known = found != 255
    assert (found[known] == np.where(truth() == 1, 20, 10)[known]).mean() > 0.9
    assert not known[100:124, 68:92].any()  # where the scene has no data


def test_points_train_a_network_for_whole_crops(bocage, scene, tmp_path):
    row, col = cells(40)
    names = np.array(["land", "water"])[truth()[row, col]].tolist()
    points = write_points(tmp_path / "p.geojson", row, col, {"class": names, "year": [2024] * 40})
    done = bocage(
        "finetune", scene, points, *NANO, "--label", "class", "--task", "classification",
        "--crop", 8, "--split", "random", "--epochs", 2, "--out", tmp_path / "net",
        "--class-weights", "1,2", "--drop-bands", 0.1, "--no-flips",
    )  # fmt: skip
    assert done.code == 0, done.err
    saved = load_finetuned(tmp_path / "net", compile=False)
    assert saved.task == "classification" and [c.name for c in saved.classes] == ["land", "water"]
    assert json.loads((tmp_path / "net/run.json").read_text())["resolved"]["flips"] is False


def test_a_dry_run_tells_and_writes_nothing(bocage, scene, mask, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = bocage("finetune", scene, mask, *NANO, *SHORT, "--crop", 16, "--out", "net", "--dry-run")
    assert done.code == 0, done.err
    for part in ("memory ", "time ", "steps    6 epochs", "classes  10"):
        assert part in done.out
    assert {p.name for p in tmp_path.iterdir()} == {"mask.tif"}


def test_a_scene_that_says_nothing_is_read_with_the_options_of_embed(bocage, scene, mask, tmp_path):
    bare = write_bare(tmp_path / "bare.tif", scene)
    words = (mask, *NANO, "--split", "random", "--crop", 16, "--dry-run")
    for folder, source in (("a", (scene,)), ("b", (bare, *BARE))):
        done = bocage("finetune", *source, *words, "--data", tmp_path / folder)
        assert done.code == 0, done.err
    named, told = (open_training_set(tmp_path / folder) for folder in ("a", "b"))
    assert len(named) == len(told) > 100
    for name, x in named.x.items():
        np.testing.assert_allclose(told.x[name], x, rtol=1e-6)
    np.testing.assert_array_equal(told.timestamps, named.timestamps)
    done = bocage("finetune", tmp_path / "a", *NANO, "--out", tmp_path / "net", "--no-cloud-mask")
    refused(done, "--cloud-mask with the training set", tmp_path)


def test_a_network_goes_on_with_its_head_or_with_a_new_one(bocage, scene, mask, tmp_path):
    crops = tmp_path / "crops"
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    short = ("--epochs", 1, "--batch-size", 32, "--split", "random", "--crop", 16)
    assert bocage("finetune", scene, mask, *NANO, *short, "--data", crops, "--out", first).code == 0
    other = np.where(truth() == 1, 3, 1).astype(np.uint8)
    other[:, :60] = 2
    done = bocage("finetune", scene, write_mask(tmp_path / "o.tif", other), "--model", first,
                  *short, "--out", second)  # fmt: skip
    assert done.code == 1
    assert "head for segmentation of 2 classes" in done.err and "--new-head" in done.err
    assert not second.exists()
    done = bocage("finetune", scene, tmp_path / "o.tif", "--model", first, "--new-head",
                  *short, "--out", third)  # fmt: skip
    assert done.code == 0, done.err
    assert len(load_finetuned(third, compile=False).classes) == 3
    assert len(open_training_set(crops).task.classes) == 2
    done = bocage("finetune", crops, *NANO, *short, "--out", third)  # a folder of another run
    assert done.code == 1 and "head of 3 classes" in done.err


MASKS = {
    "one class": (lambda y: np.where(y == 20, 10, y), "only one class (10)"),
    "nothing labelled": (lambda y: np.full_like(y, 255), "no label"),
}


@pytest.mark.parametrize("what", MASKS)
def test_masks_that_teach_nothing(bocage, scene, tmp_path, what):
    change, part = MASKS[what]
    y = np.where(truth() == 1, 20, 10).astype(np.uint8)
    path = write_mask(tmp_path / "m.tif", change(y))
    refused(bocage("finetune", scene, path, *NANO, "--out", tmp_path / "net"), part, tmp_path)


def test_points_that_teach_nothing(bocage, scene, tmp_path):
    row, col = cells(12)
    names = np.array(["land", "water"])[truth()[row, col]]
    words = ("finetune", scene, tmp_path / "p.geojson", *NANO, "--out", tmp_path / "net")
    cls = (*words, "--label", "class", "--task", "classification", "--crop", 16)
    num = (*words, "--label", "height")
    heights = [1.5, *[None] * 3, *np.linspace(1, 2, 8)]
    for properties, shift, command, part in (
        ({"class": ["land"] * 12}, 0, cls, "only the class 'land'"),
        ({"class": names.tolist()}, 9000, cls, "12 labels, all outside the map"),
        ({"height": heights}, 0, num, "3 of 12 values of 'height' missing"),
        ({"height": [2.5] * 12}, 0, num, "2.5"),
        ({"class": names.tolist()}, 0, (*cls, "--label", "klass"), "without the column klass"),
        ({"class": names.tolist()}, 0, (*cls, "--crop", 10), "multiples of the patch size"),
        ({"class": names.tolist()}, 0, (*cls, "--crop", 0), "--crop"),
        ({"class": names.tolist()}, 0, (*cls, "--split", "diagonal"), "--split"),
        ({"class": names.tolist()}, 0, (*cls, "--head", "unet"), "--head linear"),
        ({"class": names.tolist()}, 0, (*cls, "--class-weights", "much"), "--class-weights"),
        ({"class": names.tolist()}, 0, (*cls, "--class-weights", "1,2,3"), "3 class weights for 2"),
        ({"class": names.tolist()}, 0, (*cls, "--model", "no-such-model"), "no-such-model"),
    ):
        write_points(tmp_path / "p.geojson", row + shift, col, properties)
        refused(bocage(*command), part, tmp_path)
    three = {"class": names[:3].tolist()}
    write_points(tmp_path / "p.geojson", row[:3], col[:3], three)
    refused(bocage(*cls), "3 samples for 5 folds", tmp_path)


def test_sources_that_are_none(bocage, scene, mask, tmp_path):
    out = ("--out", tmp_path / "net")
    refused(bocage("finetune", scene, *NANO, *out), "which holds no training set", tmp_path)
    refused(bocage("finetune", tmp_path / "no", mask, *NANO, *out), "no", tmp_path)
    refused(bocage("finetune", scene, tmp_path / "no.gpkg", *NANO, *out), "no.gpkg", tmp_path)
    refused(bocage("finetune", scene, mask, *NANO), "no --out", tmp_path)
    (tmp_path / "crops").mkdir()
    (tmp_path / "crops/set.json").write_text("{}")
    refused(bocage("finetune", tmp_path / "crops", *NANO, *out), "a training set", tmp_path)
    words = ("finetune", scene, mask, *NANO, *out, "--data", tmp_path / "crops")
    refused(bocage(*words), "holds a training set already", tmp_path)


def refused(done, part, folder):
    """One sentence with the fix, no network left behind."""
    assert done.code == 1, done.out
    assert part in done.err and "Traceback" not in done.err, done.err
    assert not (folder / "net").exists()
