import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.windows import Window

from bocage import open_embeddings
from bocage.sensors import SENTINEL2_L2A

RANDOM = ("--weights", "random", "--model", "olmoearth-v1.2-nano", "--patch-size", "8")


def write_tif(path, x, *, crs="EPSG:32632", names=SENTINEL2_L2A.band_names, nodata=0, west=500000):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(x),
        height=x.shape[1],
        width=x.shape[2],
        dtype=x.dtype,
        crs=crs,
        transform=Affine(10, 0, west, 0, -10, 5000000),
        nodata=nodata,
    ) as sink:
        sink.write(x)
        for i, name in enumerate(names):
            sink.set_band_description(i + 1, name)
    return path


def reflectances(shape=(12, 64, 64), seed=0):
    return np.random.default_rng(seed).uniform(200, 4000, shape).astype(np.uint16)


@pytest.fixture
def scene(tmp_path):
    return write_tif(tmp_path / "S2_L2A_20240701.tif", reflectances())


def refused(ran, *words):
    """Exit code 1, one line that says error, no traceback, and the words that help."""
    assert ran.code == 1, ran.err
    lines = [line for line in ran.err.splitlines() if line.startswith("bocage: error:")]
    assert len(lines) == 1, ran.err
    assert "Traceback" not in ran.err
    for part in ("got ", "; expected "):
        assert part in lines[0]
    for word in words:
        assert word.lower() in lines[0].lower(), lines[0]


def test_a_scene_becomes_a_store_that_opens(bocage, scene, tmp_path):
    out = tmp_path / "x.zarr"
    ran = bocage("embed", scene, "--out", out, *RANDOM)
    assert ran.code == 0, ran.err
    assert "windows" in ran.out and "wrote" in ran.out and "open_embeddings" in ran.out
    assert "RANDOM WEIGHTS" in ran.err
    assert np.isfinite(open_embeddings(out).values).all()
    for command in ("info", "validate", "preview"):
        assert bocage(command, out).code == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert "nothing to do" in bocage("embed", scene, "--out", out, *RANDOM).out


def test_a_recorded_run_repeats_and_typed_options_win(bocage, scene, tmp_path):
    bocage("embed", scene, "--out", tmp_path / "x.zarr", *RANDOM, "--halo", "8")
    again = tmp_path / "again.zarr"
    ran = bocage("embed", "--config", tmp_path / "x.zarr.run.json", "--out", again)
    assert ran.code == 0, ran.err
    first, second = (
        json.loads((tmp_path / f"{name}.zarr.run.json").read_text())["resolved"]
        for name in ("x", "again")
    )
    assert first == second
    np.testing.assert_array_equal(
        open_embeddings(again).values, open_embeddings(tmp_path / "x.zarr").values
    )


def test_a_dry_run_plans_and_writes_nothing(bocage, scene, tmp_path):
    before = sorted(tmp_path.iterdir())
    ran = bocage("embed", scene, *RANDOM, "--dry-run")
    assert ran.code == 0 and "windows" in ran.out and "time" in ran.out
    assert sorted(tmp_path.iterdir()) == before


def test_pixels_beyond_whole_patches_are_padded_and_said(bocage, tmp_path):
    path = write_tif(tmp_path / "S2_20240701.tif", reflectances((12, 70, 61)))
    ran = bocage("embed", path, "--out", tmp_path / "x.zarr", *RANDOM)
    assert ran.code == 0, ran.err
    assert "padded with missing pixels to 64 x 72 px" in ran.out
    assert open_embeddings(tmp_path / "x.zarr").shape == (1, 128, 9, 8)


def test_level_1c_is_embedded_with_a_warning_that_names_the_consequence(bocage, demo_scene):
    area = "-75.65,37.65,-75.64,37.66"
    ran = bocage("embed", demo_scene, *RANDOM, "--date", "2017-07-01", "--bbox", area, "--dry-run")
    assert ran.code == 0, ran.err
    assert "warning" in ran.err and "L1C" in ran.err and "surface reflectance" in ran.err


class TestBadInput:
    def embed(self, bocage, tmp_path, *arguments):
        self.before = set(tmp_path.iterdir())
        ran = bocage("embed", "--out", tmp_path / "out.zarr", *RANDOM, *arguments)
        left = {p.name for p in set(tmp_path.iterdir()) - self.before}
        assert not left, f"left behind: {left}"
        return ran

    def test_missing_file(self, bocage, tmp_path):
        refused(self.embed(bocage, tmp_path, tmp_path / "no.tif"), "no.tif")

    def test_unreadable_file(self, bocage, tmp_path):
        path = tmp_path / "S2_B02_20240701.tif"
        path.write_text("this is no raster")
        refused(self.embed(bocage, tmp_path, path), "S2_B02_20240701.tif")

    def test_truncated_jp2(self, bocage, tmp_path):
        folder = tmp_path / "scene"
        folder.mkdir()
        x = reflectances((1, 512, 512))
        for band in ("B02", "B03", "B04", "B08"):
            path = folder / f"T32TMT_20240701T100000_{band}_10m.jp2"
            profile = {"driver": "JP2OpenJPEG", "count": 1, "height": 512, "width": 512}
            with rasterio.open(
                path, "w", **profile, dtype="uint16", crs="EPSG:32632", QUALITY=100,
                REVERSIBLE="YES", transform=Affine(10, 0, 500000, 0, -10, 5000000),
            ) as sink:  # fmt: skip
                sink.write(x)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
        refused(self.embed(bocage, tmp_path, folder), "B08")

    def test_no_crs(self, bocage, tmp_path):
        path = write_tif(tmp_path / "S2_20240701.tif", reflectances(), crs=None)
        refused(self.embed(bocage, tmp_path, path), "crs")

    def test_two_crs(self, bocage, tmp_path):
        a = write_tif(tmp_path / "S2_20240701_a.tif", reflectances())
        b = write_tif(tmp_path / "S2_20240701_b.tif", reflectances(), crs="EPSG:32633")
        refused(self.embed(bocage, tmp_path, a, b), "EPSG:32632", "EPSG:32633", "crs")

    def test_bands_without_names(self, bocage, tmp_path):
        path = write_tif(tmp_path / "S2_20240701.tif", reflectances(), names=())
        refused(self.embed(bocage, tmp_path, path), "band")

    def test_a_band_twice(self, bocage, tmp_path):
        names = ("B02", *SENTINEL2_L2A.band_names[1:-1], "B02")
        path = write_tif(tmp_path / "S2_20240701.tif", reflectances(), names=names)
        refused(self.embed(bocage, tmp_path, path), "B02")

    def test_reflectance(self, bocage, tmp_path):
        x = (reflectances() / 10000).astype(np.float32)
        path = write_tif(tmp_path / "S2_20240701.tif", x)
        refused(self.embed(bocage, tmp_path, path), "reflectance", "scale")

    def test_sentinel1_in_linear_power(self, bocage, tmp_path):
        x = np.random.default_rng(0).gamma(2, 0.05, (2, 64, 64)).astype(np.float32)
        path = write_tif(tmp_path / "S1_20240701.tif", x, names=("vv", "vh"))
        refused(self.embed(bocage, tmp_path, path), "db")

    def test_offset_left_in(self, bocage, tmp_path, demo_scene):
        # A real scene with water, as it would be from processing baseline 04.00 on.
        x = np.empty((12, 256, 256), np.uint16)
        for i, name in enumerate(SENTINEL2_L2A.band_names):
            with rasterio.open(demo_scene / f"s2_{name}.jp2") as source:
                size = 2560 / source.res[0]
                x[i] = source.read(1, window=Window(0, 0, size, size), out_shape=(256, 256))
        path = write_tif(tmp_path / "S2_20240701.tif", x + 1000)
        refused(self.embed(bocage, tmp_path, path), "offset", "-1000")

    def test_all_nodata(self, bocage, tmp_path):
        path = write_tif(tmp_path / "S2_20240701.tif", np.zeros((12, 64, 64), np.uint16))
        refused(self.embed(bocage, tmp_path, path), "nodata")

    @pytest.mark.parametrize("size", [0, 9])
    def test_patch_size(self, bocage, scene, tmp_path, size):
        refused(self.embed(bocage, tmp_path, scene, "--patch-size", size), "1 to 8")

    def test_unknown_model(self, bocage, scene, tmp_path):
        refused(self.embed(bocage, tmp_path, scene, "--model", "olmoearth-v9-nano"), "v9")

    def test_damaged_weights(self, bocage, scene, tmp_path):
        weights = tmp_path / "weights.pth"
        weights.write_bytes(b"\x00" * 1000)
        refused(self.embed(bocage, tmp_path, scene, "--weights", weights), "weights.pth")

    def test_no_output_named(self, bocage, scene):
        refused(bocage("embed", scene, *RANDOM), "--out")

    def test_half_an_area(self, bocage, scene, tmp_path):
        refused(self.embed(bocage, tmp_path, scene, "--bbox", "1,2,3"), "west,south,east,north")


def test_an_output_of_another_configuration_is_refused_and_kept(bocage, scene, tmp_path):
    out = tmp_path / "x.zarr"
    bocage("embed", scene, "--out", out, *RANDOM)
    before = open_embeddings(out).values
    refused(bocage("embed", scene, "--out", out, *RANDOM, "--codec", "float32"), "codec")
    np.testing.assert_array_equal(open_embeddings(out).values, before)


@pytest.mark.parametrize("command", ["info", "validate", "preview"])
def test_a_missing_store_is_one_sentence(bocage, tmp_path, command):
    refused(bocage(command, tmp_path / "no.zarr"), "no.zarr")


def test_models_are_listed_by_pattern(bocage):
    listed = bocage("models", "*v1.2*").out.split()
    assert listed == [f"olmoearth-v1.2-{size}" for size in ("nano", "tiny", "small", "base")]
