"""Imagery to a map: through embeddings with a probe, through windows with a fine-tuned network."""

from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine

from bocage import embed, open_stack
from bocage.errors import ConfigError, InputError, StoreError
from bocage.learn.predict import PredictConfig, predict
from bocage.learn.predict.prediction import embed_options
from bocage.learn.predict.predictor import load_predictor
from bocage.sensors import SENTINEL2_L2A

from ...mapping.conftest import PatchMean
from .conftest import CLASSES, Softmax

BANDS = SENTINEL2_L2A.band_names


class Tuned(PatchMean):
    """A network that answers with probabilities, finer than its patches."""

    name = "tuned"
    weights_id = "tuned:1"
    task = "segmentation"
    classes = CLASSES
    patch_size = 4
    cell_px = 2

    def dims(self, output="auto"):
        return len(CLASSES)

    def window_encoder(self, *, patch_size, output="auto", location_query_patch_size=None):
        assert location_query_patch_size == self.cell_px
        cells = PatchMean().window_encoder(patch_size=self.cell_px)
        probe = Softmax(12)

        def encode(values, timestamps):
            x = cells(values, timestamps)
            p = probe.predict_proba(20 * np.nan_to_num(x).reshape(-1, 12))
            return np.where(np.isnan(x[..., :1]), np.nan, p.reshape(*x.shape[:3], -1))

        return encode


def write_scene(path, shape_yx=(203, 147), crs="EPSG:32632", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(300, 4000, (12, shape_yx[0] // 8 + 2, shape_yx[1] // 8 + 2))
    x = x.repeat(8, axis=1).repeat(8, axis=2)[:, : shape_yx[0], : shape_yx[1]].astype(np.uint16)
    x[:, 20:40, 30:60] = 0
    with rasterio.open(
        path, "w", driver="GTiff", count=12, height=shape_yx[0], width=shape_yx[1],
        dtype="uint16", crs=crs, transform=Affine(10, 0, 500_000, 0, -10, 5_000_000), nodata=0,
    ) as file:  # fmt: skip
        file.write(x)
        for i, band in enumerate(BANDS, start=1):
            file.set_band_description(i, band)
    return path


@pytest.fixture
def stack(tmp_path):
    return open_stack(write_scene(tmp_path / "S2_20240701.tif"))


def read(path):
    with rasterio.open(path) as file:
        return file.read()


class Scaled(Softmax):
    def predict_proba(self, x):
        return super().predict_proba(20 * x)


def test_a_scene_gives_the_map_of_its_embeddings_cell_for_cell(tmp_path, stack):
    probe = Scaled(12, model="patch-mean", patch_size=4, codec="float32")
    result = predict(stack, probe, out=tmp_path / "scene.tif", model=PatchMean())
    embed(stack, PatchMean(), out=tmp_path / "emb.zarr", patch_size=4, codec="float32")
    predict(tmp_path / "emb.zarr", probe, out=tmp_path / "stored.tif")
    for name in (".tif", ".probability.tif"):
        np.testing.assert_array_equal(
            read(tmp_path / f"scene{name}"), read(tmp_path / f"stored{name}")
        )
    assert set(result.seconds) == {"embedding", "scoring", "writing"}
    assert not list(tmp_path.glob("scene.embeddings*")) and not list(tmp_path.glob("*.scores*"))
    assert (read(tmp_path / "scene.tif")[0, 6:9, 8:14] == 255).all()  # rows 20-40, columns 30-60


@pytest.mark.parametrize("kind", ["probe", "network"])
def test_a_finished_map_is_not_embedded_again(tmp_path, stack, kind, monkeypatch):
    probe = (Scaled(12, patch_size=4), PatchMean()) if kind == "probe" else (Tuned(), None)

    def make(known, **options):
        return predict(stack, known, out=tmp_path / "m.tif", model=probe[1], **options)

    make(probe[0])
    before = (tmp_path / "m.tif").stat().st_mtime_ns
    monkeypatch.setattr("bocage.mapping.embed", None)  # whoever embeds fails
    assert "nothing to do" in str(make(probe[0]))
    with pytest.raises(StoreError, match="made otherwise"):
        make(probe[0], threshold=0.7)
    assert (tmp_path / "m.tif").stat().st_mtime_ns == before
    write_scene(tmp_path / "S2_20240701.tif", seed=1)
    with pytest.raises(StoreError, match="inputs unchanged since"):
        make(probe[0])


def test_embeddings_are_kept_when_asked(tmp_path, stack):
    probe = Scaled(12, patch_size=4)
    predict(stack, probe, out=tmp_path / "m.tif", model=PatchMean(), keep_embeddings=True)
    assert (tmp_path / "m.embeddings.zarr" / "zarr.json").exists()


def test_a_fine_tuned_network_is_mapped_at_its_own_cell_size(tmp_path, stack):
    predict(stack, Tuned(), out=tmp_path / "map.tif", embed={"window_px": 32, "halo_px": 8})
    with rasterio.open(tmp_path / "map.tif") as file:
        found = file.read(1)
        assert file.transform.a == 20
    x = stack["sentinel2_l2a"].values[0]
    h, w = (-(-n // 4) * 4 for n in x.shape[1:])
    x = np.pad(x, ((0, 0), (0, h - x.shape[1]), (0, w - x.shape[2])), constant_values=np.nan)
    cells = x.reshape(12, h // 2, 2, w // 2, 2).mean(axis=(2, 4)) / 10000
    p = Softmax(12).predict_proba(20 * np.nan_to_num(cells.reshape(12, -1).T))
    values = np.array([c["value"] for c in CLASSES])[p.argmax(axis=1)].reshape(h // 2, w // 2)
    want = np.where(np.isnan(cells[0]), 255, values)
    np.testing.assert_array_equal(found, want)
    assert read(tmp_path / "map.probability.tif").shape[0] == 3


@pytest.mark.parametrize(("crop_px", "want"), [(48, 48), (50, 52), (16, 32)])
def test_windows_are_as_large_as_the_crops_of_training(crop_px, want):
    network = Tuned()
    network.description = SimpleNamespace(crop_px=crop_px)
    known = load_predictor(network)
    assert embed_options(known, PredictConfig())["window_px"] == want
    chosen = PredictConfig(embed={"window_px": 80})
    assert embed_options(known, chosen)["window_px"] == 80


def test_a_scene_outside_utm_is_mapped_in_its_own_crs(tmp_path):
    stack = open_stack(write_scene(tmp_path / "S2_20240701.tif", crs="EPSG:3035"))
    probe = Scaled(12, patch_size=4, codec="float32")
    predict(stack, probe, out=tmp_path / "map.tif", model=PatchMean())
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs.to_epsg() == 3035
    assert sorted(p.suffix for p in tmp_path.glob("map.embeddings*")) == []


def test_the_wrong_model_or_none_is_refused(tmp_path, stack):
    probe = Softmax(12, model="olmoearth-v1.2-nano")
    with pytest.raises(ConfigError, match=r"without a model.*olmoearth-v1.2-nano"):
        predict(stack, probe, out=tmp_path / "m.tif")
    with pytest.raises(InputError, match=r"model patch-mean; expected olmoearth-v1.2-nano"):
        predict(stack, probe, out=tmp_path / "m.tif", model=PatchMean())
    with pytest.raises(InputError, match="makes its own features"):
        embed(stack, PatchMean(), out=tmp_path / "emb.zarr", patch_size=4)
        predict(tmp_path / "emb.zarr", Tuned(), out=tmp_path / "m.tif")


def test_a_network_that_was_fine_tuned_here_is_mapped_from_its_folder(tmp_path):
    from bocage.learn.finetune import FinetuneConfig, finetune
    from bocage.models import load_model
    from tests.learn.finetune.crops import crops

    model = load_model("olmoearth-v1.2-nano", weights=None, compile=False)
    folder = tmp_path / "finetuned"
    finetune(crops(n=8, n_times=1), model, out=folder, config=FinetuneConfig(epochs=1))
    stack = open_stack(write_scene(tmp_path / "S2_20240701.tif", shape_yx=(96, 72)))
    result = predict(stack, folder, out=tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as file:
        codes = file.read(1)
        assert set(np.unique(codes)) <= {0, 1, 255}
        assert file.transform.a in {10, 20, 40}
    p = read(tmp_path / "map.probability.tif")
    valid = p[0] != 255
    assert np.abs(p[:, valid].astype(int).sum(axis=0) - 250).max() <= 1
    assert result.valid_fraction > 0.5
