"""Shares of cells against polygons cut by shapely, and whatever the tiles."""

import numpy as np
import pytest
import shapely

from bocage.zonal.coverage import Coverage, Covered
from tests.zonal.conftest import TRANSFORM, blobs, exact_shares, square

SHAPE = (53, 61)


def in_cells(shapes):
    into = ~TRANSFORM
    return shapely.transform(np.array(shapes, object), lambda xy: np.stack(into @ tuple(xy.T), 1))


def shares_of(shapes, side):
    """Share of each cell [Z, h, w], put together from tiles."""
    coverage = Coverage(in_cells(shapes))
    found = np.zeros((len(shapes), *SHAPE))
    for top in range(0, SHAPE[0], side):
        for left in range(0, SHAPE[1], side):
            rows = slice(top, min(top + side, SHAPE[0]))
            cols = slice(left, min(left + side, SHAPE[1]))
            shape = (rows.stop - rows.start, cols.stop - cols.start)
            for part in coverage.of_tile((rows, cols)):
                dense = part.matrix(shape[0] * shape[1]).toarray().reshape(-1, *shape)
                found[part.zone, rows, cols] += dense
    return found


@pytest.mark.parametrize("side", [7, 20, 64])
def test_shares_are_areas_of_intersections(side):
    shapes = blobs(40, SHAPE)
    found = shares_of(shapes, side)
    expected = np.stack([exact_shares(s, SHAPE) for s in shapes])
    assert np.abs(found - expected).max() < 1e-6
    assert (expected > 0).any(axis=(1, 2)).sum() > 25


def test_closed_forms():
    triangle = shapely.Polygon([TRANSFORM @ p for p in [(10, 10), (11, 10), (10, 11)]])
    shapes = [square(3, 5, 0.5, 1), triangle, square(20, 20, 4, 4), square(30.25, 30.5, 0.1, 0.2)]
    found = shares_of(shapes, 16)
    assert found[0, 5, 3] == 0.5 == found[0].sum()
    assert found[1, 10, 10] == 0.5 == found[1].sum()
    assert (found[2, 20:24, 20:24] == 1).all() and found[2].sum() == 16
    assert found[3].sum() == pytest.approx(0.02, abs=1e-7)


def test_a_zone_around_whole_tiles_covers_them():
    hole = square(-9, -9, 99, 99).difference(square(30, 30, 2, 2))
    found = shares_of([hole], 8)
    expected = np.ones(SHAPE)
    expected[30:32, 30:32] = 0
    np.testing.assert_array_equal(found[0], expected)


def test_many_zones_come_in_batches(monkeypatch):
    shapes = [square(0, 0, 50, 50)] * 30
    monkeypatch.setattr("bocage.zonal.coverage.PAIRS_AT_ONCE", 3000)
    coverage = Coverage(in_cells(shapes))
    parts = list(coverage.of_tile((slice(0, 50), slice(0, 50))))
    assert len(parts) > 10
    assert np.concatenate([p.zone for p in parts]).tolist() == list(range(30))
    assert all(len(p.cell) == 2500 * len(p.zone) for p in parts)


def test_zones_touching_only_a_side_of_the_tile_have_no_cells():
    coverage = Coverage(in_cells([square(8, 0, 4, 4), square(20, 20, 2, 2)]))
    assert list(coverage.of_tile((slice(0, 8), slice(0, 8)))) == []


def test_pairs_left_out_take_zones_without_any_with_them():
    covered = Covered(
        zone=np.array([4, 7, 9]),
        start=np.array([0, 2, 3, 5]),
        cell=np.array([0, 1, 1, 2, 3], np.int32),
        share=np.array([0.1, 0.2, 0.3, 0.4, 0.5]),
    )
    kept = covered.where(np.array([False, True, False, True, True]))
    assert kept.zone.tolist() == [4, 9]
    assert kept.start.tolist() == [0, 1, 3]
    assert kept.share.tolist() == [0.2, 0.4, 0.5]
    assert covered.where(np.zeros(5, bool)).zone.tolist() == []


def test_holes_along_cells_that_touch_a_tile():
    """Uncut, such zones end the process in exactextract 0.3: holes outside, on the border."""
    shapes = []
    for left in range(4, 19):
        for top in range(4, 19):
            hole = square(left, top, 2, 2)
            shapes.append(square(-9, -9, 22.5, 60).difference(hole))
    found = shares_of(shapes, 8)
    expected = np.stack([exact_shares(s, SHAPE) for s in shapes[::7]])
    np.testing.assert_allclose(found[::7], expected, atol=1e-6)
