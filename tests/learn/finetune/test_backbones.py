import numpy as np
import pytest
import rasterio
import torch

from bocage.errors import ConfigError
from bocage.learn.finetune import FinetuneConfig, finetune, load_finetuned, make_training_set
from tests.cli.conftest import bocage  # noqa: F401 - a fixture
from tests.learn.finetune.scenes import (
    CRS,
    HOLE,
    NORTH,
    WEST,
    cells,
    truth,
    write_points,
    write_scene,
)

pytest.importorskip("timm", reason="the extra backbones: make test-backbones")
pytest.importorskip("segmentation_models_pytorch", reason="the extra backbones")


def any_bands(task, n=16, n_times=2, size_px=40):
    """Five bands of a sensor nobody knows; sides that are no multiple of 32."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (n, size_px // 8, size_px // 8)).repeat(8, 1).repeat(8, 2)
    x = rng.normal(0, 1, (n, n_times, size_px, size_px, 5)).astype(np.float32)
    if task == "classification":
        y = rng.integers(0, 2, n)
        x[..., 2] += 4 * y[:, None, None, None]
    else:
        x[..., 2] += 4 * y[:, None]
    x[:, :, :3, :3] = np.nan
    stamps = np.tile([[1, 5, 2022], [1, 8, 2022]][:n_times], (n, 1, 1))
    split = np.arange(n) % 4 % 3
    return make_training_set({"naip": x}, y, task=task, timestamps=stamps, split=split)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("smp:Unet/resnet18", "segmentation"),
        ("smp:DeepLabV3/resnet18", "segmentation"),
        ("smp:Segformer/mit_b0", "segmentation"),
        ("timm:resnet18", "classification"),
        ("timm:efficientnet_b0", "classification"),
    ],
)
def test_trains_saves_and_maps_with_any_bands(tmp_path, name, task):
    torch.set_num_threads(1)
    data = any_bands(task)
    config = FinetuneConfig(
        epochs=3, batch_size=4, lr=2e-3, recipe="plain", normalization="dataset"
    )
    result = finetune(data, name, out=tmp_path / "run", config=config)
    assert np.isfinite(result.val)
    again = finetune(data, name, out=tmp_path / "run", config=config)
    assert again.val == result.val
    saved = load_finetuned(tmp_path / "run")
    x = data.x["naip"][:2].transpose(0, 1, 4, 2, 3)
    p = saved.window_encoder()({"naip": x}, data.timestamps[:2])
    assert p.shape == ((2, 40, 40, 2) if task == "segmentation" else (2, 5, 5, 2))
    seen = np.isfinite(p).all(axis=-1)
    assert p[seen].sum(axis=-1) == pytest.approx(1, abs=1e-5)
    if task == "segmentation":
        assert not seen[:, :3, :3].any() and seen[:, 3:, 3:].all()


def test_a_frozen_start_leaves_the_encoder_alone(tmp_path):
    from bocage.learn.finetune.start import start

    data = any_bands("segmentation")
    config = FinetuneConfig(epochs=1, batch_size=4, normalization="dataset")
    before = start("smp:Unet/resnet18", data, config).module.state_dict()
    finetune(data, "smp:Unet/resnet18", out=tmp_path / "run", config=config)
    after = load_finetuned(tmp_path / "run").network.state_dict()
    changed = {n.split(".")[1] for n, x in before.items() if not torch.equal(after[n], x)}
    assert "encoder" not in changed and {"decoder", "segmentation_head"} <= changed


def test_unet_with_stacked_dates_sees_each_channel_once():
    from bocage.learn.finetune.backbones import ImageNetwork
    from bocage.learn.finetune.inputs import Inputs

    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, x):
            seen["x"] = x
            return x

    x = torch.arange(2 * 32 * 32 * 3 * 5, dtype=torch.float32).reshape(2, 32, 32, 3, 5)
    network = ImageNetwork(Spy(), dense=True, encoder_prefix="encoder.")
    out = network(Inputs(values={"naip": x}, timestamps=torch.zeros(2, 3, 3, dtype=torch.int64)))
    for t in range(3):
        for c in range(5):
            assert torch.equal(seen["x"][:, t * 5 + c], x[..., t, c])
    assert torch.equal(out, x.flatten(3))


def test_mistakes_are_one_sentence(tmp_path):
    data = any_bands("segmentation")
    config = FinetuneConfig(epochs=1, normalization="dataset", recipe="plain")
    for name, words in (
        ("smp:Nonsense/resnet18", "Nonsense"),
        ("smp:Unet/nonsense", "nonsense"),
        ("timm:resnet18", "per pixel"),
    ):
        with pytest.raises(Exception, match=words) as caught:
            finetune(data, name, out=tmp_path / "run", config=config)
        assert type(caught.value).__name__ in {"ModelError", "ConfigError"}
    with pytest.raises(ConfigError, match="layer-decay"):
        finetune(
            data,
            "smp:Unet/resnet18",
            out=tmp_path / "run",
            config=FinetuneConfig(epochs=1, normalization="dataset", recipe="layer-decay"),
        )
    with pytest.raises(ConfigError, match="pretraining statistics for naip"):
        finetune(data, "smp:Unet/resnet18", out=tmp_path / "run", config=FinetuneConfig(epochs=1))


def test_points_become_a_water_map_with_deeplab(bocage, tmp_path, monkeypatch):  # noqa: F811
    """The commands of docs/finetune.md on a small scene: twelve bands, one pixel per label."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    scene = write_scene(tmp_path / "scene")
    row, col = cells(120)
    names = np.array(["land", "water"])[truth()[row, col]].tolist()
    write_points(tmp_path / "water.geojson", row, col, {"class": names})
    done = bocage(
        "finetune", scene, "water.geojson", "--label", "class", "--crop", 32, "--split", "random",
        "--model", "smp:DeepLabV3/resnet18", "--normalization", "dataset", "--recipe", "plain",
        "--epochs", 1, "--batch-size", 8, "--lr", 1e-3, "--out", "net",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = bocage("predict", scene, "--with", "net", "--out", "water.tif", "--no-picture")
    assert done.code == 0, done.err
    with rasterio.open("water.tif") as file:
        found, seen = file.read(1), file.read_masks(1) > 0
    assert found.shape == truth().shape
    assert not seen[HOLE].any() and seen.mean() > 0.95
    # So few steps teach it nothing: that it learns from points is shown on a real scene.
    assert set(np.unique(found[seen])) <= {1, 2}


def test_lines_become_a_map_of_roads_with_a_unet(bocage, tmp_path, monkeypatch):  # noqa: F811
    """Synthetic roads, brighter than their surroundings; lines are burnt into a mask."""
    geopandas = pytest.importorskip("geopandas")
    from rasterio.features import rasterize
    from shapely.geometry import LineString

    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    scene = write_scene(tmp_path / "scene")
    rng = np.random.default_rng(2)
    ends = rng.uniform(0, [2320, 2000], (14, 2, 2))
    lines = [LineString([(WEST + x, NORTH - y) for x, y in pair]) for pair in ends]
    geopandas.GeoSeries(lines, crs=CRS).to_crs("EPSG:4326").to_file("roads.geojson")
    # From here on as in docs/finetune.md.
    path = next(scene.glob("*.tif"))
    with rasterio.open(path) as file:
        profile, crs = file.profile, file.crs
    shapes = geopandas.read_file("roads.geojson").to_crs(crs).geometry
    mask = rasterize(
        shapes, (profile["height"], profile["width"]), transform=profile["transform"],
        all_touched=True, dtype="uint8",
    )  # fmt: skip
    with rasterio.open("mask.tif", "w", **{**profile, "count": 1, "nodata": 255}) as file:
        file.write(mask.astype(profile["dtype"]), 1)
    with rasterio.open(path, "r+") as file:
        x = file.read()
        x[:3, (mask == 1) & (x[0] > 0)] += 3000
        file.write(x)
    done = bocage(
        "finetune", scene, "mask.tif", "--crop", 32, "--split", "random", "--model",
        "smp:Unet/resnet18", "--normalization", "dataset", "--recipe", "plain", "--epochs", 6,
        "--batch-size", 4, "--lr", 1e-3, "--class-weights", "balanced", "--out", "net",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = bocage("predict", scene, "--with", "net", "--out", "roads.tif", "--no-picture")
    assert done.code == 0, done.err
    with rasterio.open("roads.tif") as file:
        found, seen = file.read(1), file.read_masks(1) > 0
    road = (mask == 1) & seen
    assert (found[road] == 1).mean() > 0.8  # recall
    assert (found[seen & (mask == 0)] == 0).mean() > 0.9
