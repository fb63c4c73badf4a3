"""Layouts of public archives, and places on the earth where coordinates are awkward."""

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine

from bocage import open_embeddings, zonal_statistics
from bocage.zonal.opening import open_layers
from tests.change.conftest import write_store
from tests.embeddings.test_public_archives import alphaearth_cog, alphaearth_mosaic, codes, tessera
from tests.zonal.conftest import frame, write_raster
from tests.zonal.test_statistics import naive_at


def check(source, rows=(2, 9), cols=(1, 7)):
    """A zone of whole and half cells, against a loop over what open_embeddings gives."""
    emb = open_embeddings(source)
    t = emb.rio.transform()
    corners = [t @ (cols[0] + 0.5, rows[0]), t @ (cols[1], rows[1] - 0.25)]
    zone = shapely.box(*np.min(corners, axis=0), *np.max(corners, axis=0))
    zones = geopandas.GeoDataFrame({"id": [1]}, geometry=[zone], crs=emb.rio.crs)
    table = zonal_statistics(source, zones, stats="mean,std", tile_cells=5).table
    assert len(table) == len(emb.time)
    for i, year in enumerate(emb.values):
        x = np.where(np.isnan(year).any(axis=0), np.nan, year)
        share_of_all = (cols[1] - cols[0] - 0.5) * (rows[1] - rows[0] - 0.25)
        n, mean, std = naive_masked(x, zone, t)
        assert table["n_cells"][i] == pytest.approx(n, abs=1e-5)
        assert table["valid_share"][i] == pytest.approx(n / share_of_all, rel=2e-3)
        for name, expected in (("mean", mean), ("std", std)):
            found = table.loc[i, [f"{name}_{d:03d}" for d in range(len(x))]].to_numpy(np.float64)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    return table


def naive_masked(x, shape, t):
    """n, mean, std over the cells with data."""
    from tests.zonal.conftest import exact_shares

    share = exact_shares(shape, x.shape[1:], t)
    share[np.isnan(x[0])] = 0
    inside = share > 0
    weight, values = share[inside], x[:, inside].astype(np.float64)
    mean = values @ weight / weight.sum()
    return weight.sum(), mean, np.sqrt(((values - mean[:, None]) ** 2) @ weight / weight.sum())


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_alphaearth_files_with_rising_rows_and_nodata(tmp_path):
    q = codes((64, 40, 24))
    q[:, 3:5, 2:4] = -128
    path = alphaearth_cog(tmp_path / "aef_2023.tiff", q)
    assert open_layers(path).kind == "embeddings"
    table = check(path)
    assert table["n_cells"][0] < 37


def test_the_alphaearth_mosaic_in_degrees(tmp_path):
    quantization = {"method": "signed_square", "original_dtype": "float32", "nodata": -128}
    alphaearth_mosaic(tmp_path / "aef.zarr", quantization)
    table = check(tmp_path / "aef.zarr")
    assert table["year"].tolist() == [2017, 2018]


@pytest.mark.parametrize("names", [("time", "band", "y", "x")])
def test_tessera_with_missing_scales(tmp_path, names):
    tessera(tmp_path / "t.zarr", (0, 1, 2, 3), names)
    table = check(tmp_path / "t.zarr", rows=(0, 8))
    assert table["n_cells"][0] == pytest.approx(5.5 * 7.75 - 0.75, abs=0.26)


def test_a_southern_map_in_the_northern_zone(tmp_path):
    """The public archives keep southern maps in the northern CRS, with negative northings."""
    x = np.random.default_rng(0).normal(0, 1, (4, 30, 30)).astype(np.float32)
    store = write_store(
        tmp_path / "s.zarr", [x], (2024,), crs="EPSG:32736",
        transform=Affine(10, 0, 500_000, 0, -10, 9_900_000),
    )  # fmt: skip
    zone = shapely.box(500_020, 9_899_800, 500_110, 9_899_950)
    for crs in (32736, 4326, 32636):
        zones = geopandas.GeoDataFrame({"id": [1]}, geometry=[zone], crs=32736).to_crs(crs)
        table = zonal_statistics(store, zones, stats="mean").table
        np.testing.assert_allclose(table["mean_002"][0], x[2, 5:20, 2:11].mean(), atol=1e-4)


def test_both_sides_of_the_antimeridian(tmp_path):
    """A map of UTM zone 60 that reaches across 180 degrees, under a zone in two parts."""
    x = np.arange(10_000, dtype=np.float32).reshape(1, 100, 100)
    t = Affine(1000, 0, 590_000, 0, -1000, 7_250_000)
    path = write_raster(tmp_path / "v.tif", x, transform=t, crs="EPSG:32660")
    whole = shapely.box(600_000, 7_160_000, 685_000, 7_245_000)
    lon = geopandas.GeoSeries([whole.segmentize(500)], crs=32660).to_crs(4326)[0]
    assert lon.bounds[2] > 179 and lon.bounds[0] < -179
    # As files have it: cut at 180 degrees, each part on its side.
    turned = shapely.transform(lon, lambda p: np.stack([p[:, 0] % 360, p[:, 1]], axis=1))
    east = shapely.intersection(turned, shapely.box(0, -90, 180, 90))
    west = shapely.intersection(turned, shapely.box(180, -90, 360, 90))
    west = shapely.transform(west, lambda p: p - [360, 0])
    parts = shapely.multipolygons([east, west])
    one = zonal_statistics(path, frame([whole], 32660), stats="mean").table
    two = zonal_statistics(path, frame([parts], 4326), stats="mean").table
    assert two["n_cells"][0] == pytest.approx(one["n_cells"][0], rel=1e-4)
    assert two["mean"][0] == pytest.approx(one["mean"][0], rel=1e-4)
    assert two["zone_ha"][0] == pytest.approx(one["zone_ha"][0], rel=1e-4)


def test_an_array_that_was_cropped_and_is_left_as_it_was(tmp_path):
    x = np.random.default_rng(0).normal(0, 1, (3, 40, 40)).astype(np.float32)
    x[:, 12, 12] = np.nan
    t = Affine(10, 0, 700_000, 0, -10, 3_200_000)
    store = write_store(tmp_path / "s.zarr", [x, x + 1], (2021, 2020), transform=t)
    emb = open_embeddings(store).isel(y=slice(10, 30), x=slice(5, 40)).load()
    before = emb.values.copy()
    zone = shapely.box(700_070, 3_199_750, 700_180, 3_199_870)
    table = zonal_statistics(emb, frame([zone]), stats="mean", deltas=True).table
    np.testing.assert_array_equal(emb.values, before)
    assert table["year"].tolist() == [2020, 2021]
    assert table["delta_mean_001"][1] == pytest.approx(-1, abs=1e-6)
    x = np.where(np.isnan(x), 0, x)  # the cell lies beside the zone
    _, mean, *_ = naive_at(x, zone, t)
    np.testing.assert_allclose(table["mean_000"][1], mean[0], atol=0.02)
