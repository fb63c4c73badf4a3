"""Where samples lie: metres on a plane, or degrees on the globe, behind one set of distances.

Longitudes and latitudes become points in space, so the antimeridian and the poles need no rule of
their own; the straight line between two points is turned into the great circle's length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# 111.2 km a degree. The Earth is no sphere: great circles are good to 0.3 %, blocks need no more.
DEGREE_M = 111_200.0
EARTH_RADIUS_M = DEGREE_M * 180 / np.pi


@dataclass(frozen=True, kw_only=True)
class Places:
    """Places of samples; made by find_places."""

    points_m: NDArray[np.float64]
    """x, y in metres [n, 2]; or points on the sphere [n, 3]."""

    lonlat: NDArray[np.float64] | None = None
    """Degrees [n, 2], if that is how they were given."""

    def __len__(self) -> int:
        return len(self.points_m)

    def arc_m(self, straight_m: NDArray[np.floating]) -> NDArray[np.float64]:
        """Ground distance from the straight line between two points."""
        straight = np.asarray(straight_m, np.float64)
        if self.lonlat is None:
            return straight
        return 2 * EARTH_RADIUS_M * np.arcsin(np.minimum(straight / (2 * EARTH_RADIUS_M), 1))

    def straight_m(self, arc_m: float) -> float:
        """Straight line between two points `arc_m` apart on the ground."""
        if self.lonlat is None:
            return arc_m
        half = min(arc_m / (2 * EARTH_RADIUS_M), np.pi / 2)
        return float(2 * EARTH_RADIUS_M * np.sin(half))

    def distances_m(self, a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.float64]:
        """Ground distance between rows `a` and rows `b`, pair by pair."""
        return self.arc_m(np.linalg.norm(self.points_m[a] - self.points_m[b], axis=1))

    def nearest(
        self, queries: NDArray[np.intp], among: NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """For each row of `queries` the nearest row of `among`, and how far it is in metres."""
        distance, found = self.tree(among).query(self.points_m[queries])
        return among[found], self.arc_m(distance)

    def tree(self, rows: NDArray[np.intp]) -> Any:
        """A search tree (scipy's cKDTree) over some rows."""
        from scipy.spatial import cKDTree

        return cKDTree(self.points_m[rows])

    def extent_m(self) -> float:
        """Diagonal of the box around all places."""
        span = self.points_m.max(axis=0) - self.points_m.min(axis=0)
        return float(np.linalg.norm(span))

    def blocks(self, side_m: float) -> NDArray[np.int64]:
        """Number of the square of ground that each sample lies in, from 0 without gaps.

        On the globe, rows are bands of latitude and columns as wide as the row's middle makes them.
        """
        if self.lonlat is None:
            cell = np.floor(self.points_m / side_m)
        else:
            lon, lat = self.lonlat.T
            row = np.floor(lat * DEGREE_M / side_m)
            middle_deg = np.clip((row + 0.5) * side_m / DEGREE_M, -90, 90)
            width = np.maximum(np.cos(np.radians(middle_deg)), 0.01)
            cell = np.stack([row, np.floor(lon * DEGREE_M * width / side_m)], axis=1)
        cell = cell.astype(np.int64)
        cell -= cell.min(axis=0)
        key = cell[:, 0] * (cell[:, 1].max() + 1) + cell[:, 1]
        return np.unique(key, return_inverse=True)[1].reshape(-1).astype(np.int64)


def find_places(
    *, lonlat: NDArray[np.floating] | None = None, xy_m: NDArray[np.floating] | None = None
) -> Places | None:
    """Places from longitudes and latitudes, or from projected metres; None if neither is given."""
    if lonlat is not None and xy_m is not None:
        raise InputError(
            got="both lonlat and xy_m", expected="one kind of coordinates", fix="pass one of them"
        )
    if xy_m is not None:
        return Places(points_m=_pairs(xy_m, "x, y in metres"))
    if lonlat is None:
        return None
    degrees = _pairs(lonlat, "longitude, latitude in degrees")
    if np.abs(degrees[:, 1]).max() > 90 or np.abs(degrees[:, 0]).max() > 360:
        raise InputError(
            got="places that are not degrees of longitude and latitude "
            f"(first one {degrees[0, 0]:g}, {degrees[0, 1]:g})",
            expected="lon, lat of every sample",
            fix="convert them to EPSG:4326, or pass projected metres as xy_m",
        )
    # One meridian, one number: 190 is -170.
    degrees = np.stack([(degrees[:, 0] + 180) % 360 - 180, degrees[:, 1]], axis=1)
    lon, lat = np.radians(degrees).T
    unit = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    return Places(points_m=EARTH_RADIUS_M * unit, lonlat=degrees)


def _pairs(values: NDArray[np.floating], what: str) -> NDArray[np.float64]:
    pairs = np.asarray(values, np.float64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) == 0 or not np.isfinite(pairs).all():
        raise InputError(
            got=f"coordinates of shape {pairs.shape}"
            + ("" if np.isfinite(pairs).all() else " with NaN or infinity"),
            expected=f"one row of {what} per sample",
            fix="drop samples without a place",
        )
    return pairs
