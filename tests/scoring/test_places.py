"""Distances on the ground against the haversine and plain geometry."""

from __future__ import annotations

import numpy as np
import pytest

from bocage.scoring.places import find_places

from .test_folds import great_circle_m


def test_distances_are_great_circles_over_poles_and_the_antimeridian() -> None:
    rng = np.random.default_rng(0)
    a = np.stack([rng.uniform(-180, 180, 500), rng.uniform(-90, 90, 500)], axis=1)
    b = np.stack([rng.uniform(-180, 180, 500), rng.uniform(-90, 90, 500)], axis=1)
    b[:100] = a[:100] + rng.normal(0, 1e-3, (100, 2))  # some 100 m away
    b[:, 1] = b[:, 1].clip(-90, 90)
    places = find_places(lonlat=np.concatenate([a, b]))
    rows = np.arange(500)
    found = places.distances_m(rows, rows + 500)
    np.testing.assert_allclose(found, great_circle_m(a, b), rtol=1e-6, atol=0.01)
    straight = np.linalg.norm(places.points_m[rows] - places.points_m[rows + 500], axis=1)
    assert places.straight_m(float(found[0])) == pytest.approx(straight[0], rel=1e-6)


def test_longitude_190_is_minus_170() -> None:
    places = find_places(lonlat=np.array([[190.0, 10.0], [-170.0, 10.0], [-170.0, 11.0]]))
    assert places.distances_m(np.array([0]), np.array([1]))[0] < 1e-3
    assert places.blocks(50_000)[0] == places.blocks(50_000)[1]
    nearest, distance = places.nearest(np.array([0]), np.array([1, 2]))
    assert (nearest[0], round(distance[0])) == (1, 0)


def test_blocks_in_metres_are_squares_of_the_grid() -> None:
    xy = np.array([[0.0, 0], [99, 99], [100, 0], [-1, 0], [0, 250]])
    block = find_places(xy_m=xy).blocks(100)
    assert block[0] == block[1]
    assert len(set(block.tolist())) == 4
