import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from bocage.errors import BocageWarning, InputError
from bocage.sensors import LANDSAT, SENTINEL1, SENTINEL2_L2A
from bocage.units import check_units, lacks_offset, offset_evidence, sample_pixels

DATA = Path(os.environ.get("BOCAGE_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA} (BOCAGE_DATA)")

EUROSAT = [
    "B01",
    "B02",
    "B03",
    "B04",
    "B05",
    "B06",
    "B07",
    "B08",
    "B09",
    "B10",
    "B11",
    "B12",
    "B8A",
]
SATCLIP = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
# Told apart by eye on the histograms: dark bands end at 1000, or at deserts' values plus 1000.
WITH_OFFSET = [
    "445",
    "8845",
    "252161",
    "57755",
    "70541",
    "74721",
    "75123",
    "759128",
    "766272",
    "770287",
]


def tile(path, order):
    import rasterio

    with rasterio.open(path) as source:
        x = source.read().astype(np.float32)
    x = np.stack([x[order.index(b)] for b in SENTINEL2_L2A.band_names], axis=-1)
    x[(x == 0).all(axis=-1)] = np.nan
    return x


def forest(n=4096, seed=0):
    """Vegetation with some shade, reflectance x 10000."""
    rng = np.random.default_rng(seed)
    typical = np.array([350, 600, 400, 3000, 900, 2300, 2800, 3000, 1700, 900, 300, 3100])
    return (typical * rng.uniform(0.6, 1.3, (n, 1)) * rng.uniform(0.9, 1.1, (n, 12))).astype("f4")


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", BocageWarning)
        yield


def test_digital_numbers_pass_with_missing_pixels_and_bands():
    x = forest().reshape(64, 64, 12)
    x[:5] = np.nan
    x[..., 11] = np.nan
    check_units("sentinel2_l2a", x)


@pytest.mark.parametrize("values", [np.nan, 0.0])
def test_nothing_but_missing_or_padding_passes(values):
    for table in (SENTINEL2_L2A, SENTINEL1, LANDSAT):
        check_units(table.name, np.full((8, 8, len(table.bands)), values, np.float32))


@pytest.mark.parametrize(
    ("wrong", "looks", "fix"),
    [
        (lambda x: x / 10000, "reflectance 0..1", "scale=10000"),
        (lambda x: np.clip(x / 16, 0, 255).astype(np.uint8), "8-bit", "original"),
        (lambda x: x + 1000, "+1000 offset", "offset=-1000"),
        (lambda x: x - 1000, "removed twice", "offset=0"),
        (lambda x: x * 50, "brighter than any surface", "scale="),
        (lambda x: np.where(x < 500, -9999, x), "nodata code -9999", "NaN"),
        (lambda x: np.where(x < 500, np.inf, x), "infinite", "NaN"),
    ],
)
def test_wrong_sentinel2_units_are_named_with_the_fix(wrong, looks, fix):
    with pytest.raises(InputError) as error:
        check_units("sentinel2_l2a", wrong(forest()), where="scene.tif")
    assert looks in str(error.value)
    assert fix in error.value.fix
    assert "scene.tif" in error.value.got


def test_wrong_band_count_is_named():
    with pytest.raises(InputError, match="12 bands on the last axis"):
        check_units("sentinel2_l2a", np.ones((12, 8, 8)))


def test_dark_water_is_not_called_8_bit():
    rng = np.random.default_rng(0)
    water = np.full(12, 30) + np.array([150, 120, 60, 0, 20, 0, 0, 0, 0, 0, 180, 0])
    with pytest.warns(BocageWarning, match="dark water"):
        check_units("sentinel2_l2a", (water * rng.uniform(0.8, 1.2, (4096, 12))).round())


def decibels(n=4096, seed=0):
    return np.random.default_rng(seed).normal([-11, -17], 3, (n, 2)).astype("f4")


def test_decibels_pass():
    check_units("sentinel1", decibels())


@pytest.mark.parametrize(
    ("wrong", "looks", "fix"),
    [
        (lambda x: 10 ** (x / 10), "linear power", 'scale="db"'),
        (lambda x: 10 ** (x / 20), "power or amplitude", 'scale="db20"'),
        (lambda x: 10 ** ((x + 83) / 20), "amplitude digital numbers", "db20"),
        (lambda x: x * 100, "outside any radar backscatter", "0.01"),
    ],
)
def test_wrong_radar_units_are_named_with_the_fix(wrong, looks, fix):
    with pytest.raises(InputError, match=looks) as error:
        check_units("sentinel1", wrong(decibels()))
    assert fix in error.value.fix


def landsat(n=4096, seed=0):
    typical = np.array([9500, 10800, 10100, 9500, 9000, 16500, 12500, 10000, 5100, 24000, 21000])
    return (typical * np.random.default_rng(seed).uniform(0.9, 1.1, (n, 11))).astype("f4")


def test_level_1_numbers_pass():
    check_units("landsat", landsat())


@pytest.mark.parametrize(
    ("wrong", "looks", "fix"),
    [
        (lambda x: (x - 5000) / 50000, "reflectance 0..1", "scale=50000"),
        (lambda x: (x - 5000) / 5, "reflectance x 10000", "scale=5"),
        (lambda x: x / 256, "8-bit", "Level-1"),
        (lambda x: x * 8, "outside 16-bit", "scale"),
    ],
)
def test_wrong_landsat_units_are_named_with_the_fix(wrong, looks, fix):
    with pytest.raises(InputError, match=looks) as error:
        check_units("landsat", wrong(landsat()))
    assert fix in error.value.fix


def test_undoing_landsat_reflectance_as_the_fix_says_gives_level_1_numbers():
    reflectance = (landsat() - 5000) / 50000
    np.testing.assert_allclose(reflectance * 50000 + 5000, landsat(), rtol=1e-4)


def test_level_2_landsat_warns():
    x = landsat() + 3000
    x[:, [0, 8, 10]] = np.nan  # Level-2 has neither B8 nor B9 nor B11
    with pytest.warns(BocageWarning, match="Level-2"):
        check_units("landsat", x)


def test_the_same_array_always_gives_the_same_sample_whatever_its_strides():
    x = np.random.default_rng(0).normal(size=(12, 300, 300)).astype("f4")
    moved = np.moveaxis(x, 0, -1)
    np.testing.assert_array_equal(sample_pixels(moved), sample_pixels(moved.copy()))
    assert len(sample_pixels(moved)) <= 16_384


def test_a_settled_offset_turns_evidence_into_a_warning():
    with pytest.warns(BocageWarning, match="offset"):
        check_units("sentinel2_l2a", forest() + 1000, offset_settled=True)


@needs_data
def test_no_offset_free_real_tile_is_called_offset():
    """0 of 243: EuroSAT (L1C), India composites, and the 13 offset-free SatCLIP patches."""
    tiles = [(p, EUROSAT) for p in DATA.glob("eurosat_ms_200/*/*.tif")]
    tiles += [(p, list(SENTINEL2_L2A.band_names)) for p in DATA.glob("s2_india*/*/*/*.tif")]
    tiles += [
        (p, SATCLIP)
        for p in DATA.glob("s2_100k_sample/**/*.tif")
        if p.stem.split("_")[1] not in WITH_OFFSET
    ]
    assert len(tiles) == 243
    verdicts = [offset_evidence(sample_pixels(tile(p, order))) for p, order in tiles]
    assert verdicts.count("strong") == 0
    assert verdicts.count("weak") <= 1


@needs_data
def test_offset_is_found_on_real_tiles_with_anything_dark_in_them():
    verdicts = {}
    for path in DATA.glob("s2_100k_sample/**/*.tif"):
        number = path.stem.split("_")[1]
        if number in WITH_OFFSET:
            x = tile(path, SATCLIP)
            verdicts[number] = offset_evidence(sample_pixels(x))
            assert not lacks_offset(x)
    assert len(verdicts) == 10
    # The other four are bright desert or snow, which look the same without the offset.
    assert sum(v == "strong" for v in verdicts.values()) >= 6
    assert sum(v == "none" for v in verdicts.values()) <= 1


@needs_data
def test_offset_added_to_india_is_always_found():
    for path in DATA.glob("s2_india*/*/*/*.tif"):
        x = tile(path, list(SENTINEL2_L2A.band_names)) + 1000
        assert offset_evidence(sample_pixels(x)) == "strong", path
