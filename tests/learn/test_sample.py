import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.geo import Grid
from bocage.learn.cells import locate
from bocage.learn.labels import read_labels
from bocage.learn.mask import read_mask
from bocage.learn.raster import Raster, embeddings_grid
from bocage.learn.sample import sample

from .conftest import CELL_M, COLS, CRS, NORTH, ROWS, WEST, center, frame, points, truth, vectors


def write(path, shapes, **columns):
    geopandas.GeoDataFrame(columns, geometry=shapes, crs=CRS).to_file(path)
    return read_labels(path, column="class")


def test_points_take_the_cell_they_lie_in(embeddings, label_file):
    found = sample(read_labels(label_file, column="class"), embeddings)
    row, col = points(200)
    np.testing.assert_array_equal(found.x, vectors(2024)[:, row, col].T)
    assert (found.y == truth()[row, col]).all()
    np.testing.assert_allclose(found.xy, np.stack(center(row, col), axis=1))
    assert set(found.year) == {2024}
    assert found.attrs["model"] == "olmoearth-v1.2-nano"
    lon, lat = found.lonlat[0]
    assert 8 < lon < 9 and 43 < lat < 44


def test_the_year_column_picks_the_year_of_the_embedding(embeddings, tmp_path):
    years = np.tile([2023, 2024], 100)
    frame(200, year=years).to_file(tmp_path / "a.gpkg")
    found = sample(read_labels(tmp_path / "a.gpkg", column="class"), embeddings)
    row, col = points(200)
    both = np.stack([vectors(2023), vectors(2024)])
    np.testing.assert_array_equal(found.x, both[years - 2023, :, row, col])
    assert (found.year == years).all()


def test_a_year_must_be_known_when_the_map_has_several(embeddings, tmp_path):
    frame(20).to_file(tmp_path / "a.gpkg")
    labels = read_labels(tmp_path / "a.gpkg", column="class")
    with pytest.raises(InputError, match=r"without a year on a map of 2023, 2024.*--year 2024"):
        sample(labels, embeddings)
    assert set(sample(labels, embeddings, year=2023).year) == {2023}
    with pytest.raises(InputError, match="labels of 2019"):
        sample(labels, embeddings, year=2019)


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_polygons_take_cells_whose_center_they_hold(embeddings, tmp_path, n_blocks, monkeypatch):
    if n_blocks == 2:  # polygons across the borders of blocks
        monkeypatch.setattr("bocage.learn.raster.BLOCK_CELLS", 13)
        monkeypatch.setattr("bocage.learn.sample.BLOCK_CELLS", 13)
    shapes = [
        shapely.Point(center(20, 20)).buffer(333),
        shapely.Polygon([center(30.1, 40.2), center(50.3, 48.3), center(33.4, 70.1)]),
    ]
    labels = write(tmp_path / "a.gpkg", shapes, **{"class": ["a", "b"]})
    found = sample(labels, embeddings, year=2024)
    x, y = center(*np.mgrid[:ROWS, :COLS].astype(float))
    expected = np.stack([shapely.contains_xy(s, x, y) for s in shapes])
    assert len(found) == expected.sum()
    for i in range(2):
        ours = {tuple(p) for p in found.xy[found.y == i]}
        assert ours == set(zip(x[expected[i]], y[expected[i]], strict=True))
        assert set(found.group[found.y == i]) == {i}


def test_a_share_takes_cells_by_how_much_of_them_is_covered(embeddings, tmp_path):
    west, north = center(20, 20)[0] - CELL_M / 2, center(20, 20)[1] + CELL_M / 2
    # Covers columns 20 and 21 wholly, 22 by 30 %.
    shape = shapely.box(west, north - 3 * CELL_M, west + 2.3 * CELL_M, north)
    away = shapely.box(west + 800, north - 80, west + 880, north)
    labels = write(tmp_path / "a.gpkg", [shape, away], **{"class": ["a", "b"]})
    for share, columns in ((0.2, 3), (0.5, 2), (1.0, 2)):
        found = sample(labels, embeddings, year=2024, min_share=share)
        assert (found.y == 0).sum() == 3 * columns
    with pytest.raises(ConfigError, match="min_share"):
        sample(labels, embeddings, year=2024, min_share=0)


def test_lines_take_the_cells_they_touch(embeddings, tmp_path):
    line = shapely.LineString([center(20, 10.2), center(20, 15.4)])
    other = shapely.Point(center(40, 40))
    labels = write(tmp_path / "a.geojson", [line, other], **{"class": ["a", "b"]})
    found = sample(labels, embeddings, year=2024)
    assert (found.y == 0).sum() == 6


def test_a_cell_counts_once_and_contradictions_are_left_out(embeddings, tmp_path):
    same, other = shapely.Point(center(20, 20)), shapely.Point(center(20.3, 20.2))
    clash = [shapely.Point(center(30, 30)), shapely.Point(center(30.1, 30.1))]
    rest = [shapely.Point(center(40, c)) for c in (1, 2)]
    labels = write(tmp_path / "a.gpkg", [same, other, *clash, *rest], **{"class": list("aaabab")})
    with pytest.warns(BocageWarning, match="1 on cells with contradicting labels"):
        found = sample(labels, embeddings, year=2024)
    assert len(found) == 3 and found.n_dropped["repeated"] == 2
    # Overlapping polygons contradict each other only where they overlap.
    a, b = (shapely.box(*center(20.5, c - 0.5), *center(9.5, c + 9.5)) for c in (20, 25))
    labels = write(tmp_path / "b.gpkg", [a, b], **{"class": ["a", "b"]})
    with pytest.warns(BocageWarning, match="55 on cells with contradicting labels"):
        found = sample(labels, embeddings, year=2024)
    assert len(found) == 11 * 15 - 55
    with pytest.warns(BocageWarning, match="55 on cells with contradicting labels"):
        assert len(sample(labels, embeddings, year=2024, min_share=0.5)) == 11 * 15 - 55


def test_numbers_of_one_cell_are_averaged(embeddings, tmp_path):
    shapes = [
        shapely.Point(center(20, 20)),
        shapely.Point(center(20.2, 20)),
        shapely.Point(center(30, 3)),
    ]
    table = geopandas.GeoDataFrame({"h": [1.5, 2.0, 7.25]}, geometry=shapes, crs=CRS)
    table.to_file(tmp_path / "a.gpkg")
    found = sample(read_labels(tmp_path / "a.gpkg"), embeddings, year=2024)
    assert sorted(found.y) == [1.75, 7.25]


def test_labels_off_the_map_and_on_nodata_are_dropped_with_their_counts(embeddings, tmp_path):
    row, col = np.array([0, 1, 10, 11, 12, -5, 200]), np.array([5, 6, 7, 8, 9, 3, 3])
    shapes = [shapely.Point(p) for p in np.stack(center(row, col), axis=1)]
    labels = write(tmp_path / "a.gpkg", shapes, **{"class": list("ababaab")})
    with pytest.warns(BocageWarning, match="2 outside the map, 2 on cells without data"):
        found = sample(labels, embeddings, year=2024)
    assert len(found) == 3 and "2 outside the map" in found.describe()


def test_labels_that_all_miss_are_refused(embeddings, tmp_path):
    far = [shapely.Point(center(500 + i, 500)) for i in range(4)]
    labels = write(tmp_path / "a.gpkg", far, **{"class": list("abab")})
    with pytest.raises(InputError, match=r"4 labels, all outside the map .labels 4698\d\d"):
        sample(labels, embeddings, year=2024)
    empty = [shapely.Point(center(1, i)) for i in range(4)]
    labels = write(tmp_path / "b.gpkg", empty, **{"class": list("abab")})
    with pytest.raises(InputError, match="4 labelled cells, all of them without data"):
        sample(labels, embeddings, year=2024)
    tiny = [shapely.Point(center(20.4, 20 + i + 0.4)).buffer(2) for i in range(4)]
    labels = write(tmp_path / "c.gpkg", tiny, **{"class": list("abab")})
    with pytest.raises(
        InputError, match=r"4 shapes that hold no center of a cell of 40.*min_share"
    ):
        sample(labels, embeddings, year=2024)


def test_some_shapes_smaller_than_a_cell_are_told(embeddings, tmp_path):
    shapes = [
        shapely.Point(center(20.4, 20.4)).buffer(2),
        *(shapely.Point(center(30, c)).buffer(50) for c in (10, 20)),
    ]
    labels = write(tmp_path / "a.gpkg", shapes, **{"class": list("aab")})
    with pytest.warns(BocageWarning, match="1 shapes hold no center"):
        sample(labels, embeddings, year=2024)


def test_a_draw_keeps_every_class_and_is_repeatable(embeddings, tmp_path):
    table = frame(200)
    table["class"] = np.where(np.arange(200) == 137, "rare", "common")
    table.to_file(tmp_path / "a.gpkg")
    labels = read_labels(tmp_path / "a.gpkg", column="class")
    one = sample(labels, embeddings, year=2024, max_samples=5, seed=3)
    two = sample(labels, embeddings, year=2024, max_samples=5, seed=3)
    assert len(one) == 5 and set(one.y) == {0, 1}
    np.testing.assert_array_equal(one.x, two.x)
    with pytest.raises(ConfigError, match="max_samples"):
        sample(labels, embeddings, year=2024, max_samples=1)


def write_mask(path, values, *, cell=CELL_M, crs=CRS, nodata=0, west=WEST, north=NORTH):
    with rasterio.open(
        path, "w", driver="GTiff", height=values.shape[0], width=values.shape[1], count=1,
        dtype=values.dtype, crs=crs, transform=Affine(cell, 0, west, 0, -cell, north),
        nodata=nodata,
    ) as file:  # fmt: skip
        file.write(values, 1)


def test_a_mask_of_finer_pixels_gives_each_cell_its_most_frequent_class(embeddings, tmp_path):
    rng = np.random.default_rng(0)
    fine = rng.choice([0, 3, 8], (ROWS * 4, COLS * 4), p=[0.05, 0.5, 0.45]).astype(np.uint8)
    fine[40:44, 40:44] = 0
    write_mask(tmp_path / "m.tif", fine, cell=10)
    mask = read_mask(tmp_path / "m.tif", classes={3: "meadow", 8: "lake"})
    assert mask.counts == ((fine == 3).sum(), (fine == 8).sum())
    assert "meadow" in mask.describe()
    with pytest.warns(BocageWarning, match="240 on cells without data"):
        found = sample(mask, embeddings, year=2024)
    t = embeddings_grid(embeddings).transform
    blocks = fine.reshape(ROWS, 4, COLS, 4).swapaxes(1, 2).reshape(ROWS, COLS, 16)
    n3, n8 = (blocks == 3).sum(-1), (blocks == 8).sum(-1)
    clear = n3 != n8
    expected = {(r, c): int(n8[r, c] > n3[r, c]) for r, c in np.argwhere(clear) if r >= 3}
    cells = np.stack([(found.xy[:, 1] - t.f) / t.e, (found.xy[:, 0] - t.c) / t.a], 1).astype(int)
    ours = {(r, c): y for (r, c), y in zip(cells, found.y, strict=True)}
    assert (10, 10) not in ours and (10, 10) not in expected
    assert all(ours[k] == v for k, v in expected.items())
    assert [c.value for c in found.classes] == [3, 8]


def test_a_mask_in_another_crs_lands_where_gdal_puts_it(embeddings, tmp_path):
    values = np.repeat(np.repeat(truth().astype(np.uint8) + 1, 4, 0), 4, 1)
    write_mask(tmp_path / "utm.tif", values, cell=10)
    with rasterio.open(tmp_path / "utm.tif") as file:
        transform, width, height = rasterio.warp.calculate_default_transform(
            file.crs, "EPSG:4326", file.width, file.height, *file.bounds
        )
        out = np.zeros((height, width), np.uint8)
        rasterio.warp.reproject(
            rasterio.band(file, 1), out, dst_transform=transform, dst_crs="EPSG:4326"
        )
    with rasterio.open(
        tmp_path / "deg.tif", "w", driver="GTiff", height=height, width=width, count=1,
        dtype="uint8", crs="EPSG:4326", transform=transform, nodata=0,
    ) as file:  # fmt: skip
        file.write(out, 1)
    with pytest.warns(BocageWarning, match="cells without data"):
        found = sample(read_mask(tmp_path / "deg.tif"), embeddings, year=2024)
    col = ((found.xy[:, 0] - WEST) // CELL_M).astype(int)
    row = ((NORTH - found.xy[:, 1]) // CELL_M).astype(int)
    assert (found.y == truth()[row, col]).all()


def test_a_mask_of_numbers_is_averaged(embeddings, tmp_path):
    fine = np.arange(ROWS * 4 * COLS * 4, dtype=np.float32).reshape(ROWS * 4, COLS * 4)
    write_mask(tmp_path / "m.tif", fine, cell=10, nodata=None)
    mask = read_mask(tmp_path / "m.tif")
    assert mask.task == "regression"
    with pytest.warns(BocageWarning, match="cells without data"):
        found = sample(mask, embeddings, year=2024)
    expected = fine.reshape(ROWS, 4, COLS, 4).mean(axis=(1, 3))[3:]
    np.testing.assert_allclose(found.y, expected.ravel(), rtol=1e-6)


def test_bad_masks_are_refused(tmp_path, embeddings):
    ones = np.ones((10, 10), np.uint8)
    write_mask(tmp_path / "a.tif", ones)
    with pytest.raises(InputError, match=r"only one class .1."):
        read_mask(tmp_path / "a.tif")
    ones[0] = 2
    write_mask(tmp_path / "b.tif", ones, crs=None)
    with pytest.raises(InputError, match=r"b\.tif without a CRS.*gdal_edit"):
        read_mask(tmp_path / "b.tif")
    write_mask(tmp_path / "c.tif", ones, west=WEST + 100_000)
    with pytest.raises(InputError, match="no label on the map"):
        sample(read_mask(tmp_path / "c.tif"), embeddings, year=2024)
    write_mask(tmp_path / "d.tif", np.full((4, 4), 0.5, np.float32))
    with pytest.raises(InputError, match=r"value 0.5"):
        read_mask(tmp_path / "d.tif", task="classification")


def test_reading_a_cell_needs_only_its_block():
    read = []

    def reader(year, rows, cols):
        read.append((rows.stop - rows.start) * (cols.stop - cols.start))
        return np.zeros((2, rows.stop - rows.start, cols.stop - cols.start), np.float32)

    grid = Grid(crs=CRS, transform=Affine(10, 0, 0, 0, -10, 0), shape_yx=(20_000, 20_000))
    raster = Raster(read=reader, grid=grid, features=("a", "b"), years=(2024,))
    spots = [shapely.Point(10 * c + 5, -10 * r - 5) for r, c in [(3, 4), (9000, 19_999), (5, 6)]]
    table = geopandas.GeoDataFrame({"class": list("aab")}, geometry=spots, crs=CRS)
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        table.to_file(Path(folder) / "a.gpkg")
        labels = read_labels(Path(folder) / "a.gpkg")
    found = sample(labels, raster)
    assert len(found) == 3 and sum(read) == 9 + 1
    cells, _ = locate(labels, raster, year=None, min_share=None)
    assert sorted(zip(cells.row, cells.col, strict=True)) == [(3, 4), (5, 6), (9000, 19_999)]
