"""Labels on a scene become crops whose pixels and labels are those of the files."""

import numpy as np
import pytest
import rasterio

pytest.importorskip("geopandas", reason="labels need geopandas")

from bocage import open_stack
from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.learn.finetune.crop_scene import crop_scene
from bocage.learn.source import read_any_labels
from tests.learn.finetune.scenes import (
    CRS,
    HOLE,
    NORTH,
    SHAPE_YX,
    TRANSFORM,
    WEST,
    cells,
    truth,
    write_mask,
    write_points,
    write_scene,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene") / "scene")


@pytest.fixture(scope="module")
def stack(folder):
    return open_stack(str(folder))


def places(data):
    """First row and column of each crop, from its middle in degrees."""
    from pyproj import Transformer

    x, y = Transformer.from_crs("EPSG:4326", CRS, always_xy=True).transform(*data.lonlat.T)
    side = data.crop_px[0]
    return np.round((NORTH - y) / 10 - side / 2), np.round((x - WEST) / 10 - side / 2)


def pixels(folder):
    with rasterio.open(folder / "S2_20240701.tif") as file:
        return file.read().astype(np.float32)


def test_a_mask_becomes_a_checkerboard_with_its_labels(folder, stack, tmp_path):
    mask = read_any_labels([write_mask(tmp_path / "mask.tif")])
    with pytest.warns(BocageWarning, match=r"of 49 labelled crops have less than 50% of data"):
        data = crop_scene(stack, mask, crop_px=32, split="random")
    assert data.task.kind == "segmentation"
    assert [(c.value, c.name) for c in data.task.classes] == [(10, "10"), (20, "20")]
    image = np.pad(pixels(folder), ((0, 0), (0, 32), (0, 32)))
    expected = np.pad(truth(), ((0, 32), (0, 32)), constant_values=-1)
    expected[:, 200:] = -1
    seen = set()
    for i, (row, col) in enumerate(zip(*places(data), strict=True)):
        at = (slice(int(row), int(row) + 32), slice(int(col), int(col) + 32))
        assert row % 32 == 0 and col % 32 == 0
        seen.add((row, col))
        assert np.array_equal(data.labels[i], expected[at])
        wanted = np.moveaxis(image[:, at[0], at[1]], 0, -1)
        assert np.array_equal(np.nan_to_num(data.x["sentinel2_l2a"][i, 0]), wanted)
    # All squares but those at the lower edge, of which a quarter is scene, and the hole.
    rows, cols = range(0, 192, 32), range(0, 200, 32)
    assert seen == {(r, c) for r in rows for c in cols} - {(HOLE[0].start, HOLE[1].start)}
    assert data.timestamps.tolist() == [[[1, 6, 2024]]] * len(data)


def test_each_point_gets_a_square_around_it(folder, stack, tmp_path):
    row, col = cells(40)
    names = np.array(["land", "water"])[truth()[row, col]].tolist()
    row, col = [0, *row], [231, *col]  # the first in a corner
    names = ["land", *names]
    path = write_points(tmp_path / "p.geojson", row, col, {"class": names})
    labels = read_any_labels([path], column="class")
    data = crop_scene(stack, labels, task="classification", crop_px=16, split="random")
    assert len(data) == 41 and data.x["sentinel2_l2a"].shape == (41, 1, 16, 16, 12)
    first = dict(zip(zip(*places(data), strict=True), range(41), strict=True))
    image = pixels(folder)
    for r, c, name in zip(row, col, names, strict=True):
        corner = (min(max(r - 8, 0), SHAPE_YX[0] - 16), min(max(c - 8, 0), SHAPE_YX[1] - 16))
        i = first[corner]
        assert data.task.classes[data.labels[i]].name == name
        near = image[:, corner[0] : corner[0] + 16, corner[1] : corner[1] + 16]
        found = np.nan_to_num(data.x["sentinel2_l2a"][i, 0])
        assert np.array_equal(found, np.moveaxis(near, 0, -1))


def test_numbers_lie_on_their_pixels_and_nowhere_else(stack, tmp_path):
    row, col = cells(40)
    path = write_points(tmp_path / "p.geojson", row, col, {"height": (row * 0.5 + 0.25).tolist()})
    labels = read_any_labels([path], column="height")
    data = crop_scene(stack, labels, crop_px=32, split="random", min_valid=0.1)
    assert data.task.kind == "regression"
    tops, lefts = places(data)
    found = {}
    for i in range(len(data)):
        for r, c in np.argwhere(np.isfinite(data.labels[i])):
            found[int(r + tops[i]), int(c + lefts[i])] = data.labels[i][r, c]
    assert found == {(r, c): r * 0.5 + 0.25 for r, c in zip(row, col, strict=True)}


def test_a_spatial_split_keeps_neighbors_together(stack, tmp_path):
    mask = read_any_labels([write_mask(tmp_path / "mask.tif")])
    together = {}
    for split in ("spatial", "random"):
        with pytest.warns(BocageWarning):  # the hole; blocks as large as so small a scene allows
            data = crop_scene(stack, mask, crop_px=16, split=split)
        assert np.bincount(data.split) == pytest.approx(
            np.array([0.6, 0.2, 0.2]) * len(data), abs=9
        )
        part = dict(zip(zip(*places(data), strict=True), data.split, strict=True))
        pairs = [(s, part[r, c + 16]) for (r, c), s in part.items() if (r, c + 16) in part]
        together[split] = np.mean([a == b for a, b in pairs])
    assert together["spatial"] > 0.7
    assert together["random"] < 0.6


def test_labels_partly_outside_are_counted(stack, tmp_path):
    row, col = cells(30)
    row, col = [*row, 5000, -40], [*col, 10, 10]
    names = [*np.array(["land", "water"])[truth()[row[:30], col[:30]]].tolist(), "land", "water"]
    path = write_points(tmp_path / "p.geojson", row, col, {"class": names})
    labels = read_any_labels([path], column="class")
    with pytest.warns(BocageWarning, match=r"labels: 2 outside the map; 30 labelled pixels"):
        data = crop_scene(stack, labels, task="classification", crop_px=16, split="random")
    assert len(data) == 30


def test_what_cannot_be_is_refused_in_one_sentence(stack, tmp_path):
    row, col = cells(20)
    names = np.array(["land", "water"])[truth()[row, col]].tolist()
    far = write_points(tmp_path / "far.geojson", row + 9000, col, {"class": names})
    with pytest.raises(InputError, match="20 labels, all outside the map"):
        crop_scene(stack, read_any_labels([far], column="class"))
    good = write_points(tmp_path / "p.geojson", row, col, {"class": names})
    labels = read_any_labels([good], column="class")
    with pytest.raises(ConfigError, match="--task regression with labels for classification"):
        crop_scene(stack, labels, task="regression")
    with pytest.raises(ConfigError, match="crop"):
        crop_scene(stack, labels, crop_px=0)
    in_hole = [HOLE[0].start + 15] * 3, [HOLE[1].start + 14, HOLE[1].start + 15, HOLE[1].start + 16]
    path = write_points(tmp_path / "h.geojson", *in_hole, {"class": ["a", "b", "a"]})
    with pytest.raises(InputError, match="3 labelled crops, all with less than 50% of data"):
        crop_scene(stack, read_any_labels([path], column="class"), task="classification",
                   crop_px=8)  # fmt: skip
    flags = {"wet": [0, 1] * 10, "tall": [1, 1] * 10}
    path = write_points(tmp_path / "m.geojson", row, col, flags)
    with pytest.raises(ConfigError, match="several labels per shape"):
        crop_scene(stack, read_any_labels([path], column=["wet", "tall"]))


def test_the_grid_of_the_scene_is_the_transform_of_the_file(stack):
    from bocage.imagery import stack_grid

    assert stack_grid(stack).transform == TRANSFORM
