"""Where to search: a rectangle, a polygon, or everywhere, in degrees of longitude and latitude."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import BboxWSEN, ValidArray

AreaLike = Any
"""None, (west, south, east, north), GeoJSON mapping, path of a GeoJSON, or a shapely polygon."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """Rectangles that prune, and a polygon that decides; a row is inside if its center is."""

    boxes: tuple[BboxWSEN, ...]
    """Bounds of the parts; two where the antimeridian is crossed; empty for the whole world."""

    polygon: Any = None
    """shapely polygon, or None where the boxes are the area."""

    @property
    def is_world(self) -> bool:
        """True if there is nothing to leave out."""
        return not self.boxes

    def touches(self, bounds: NDArray[np.floating]) -> ValidArray:
        """Which bounds [N, 4] w s e n could hold a row of the area."""
        if self.is_world:
            return np.ones(len(bounds), np.bool_)
        found: ValidArray = np.zeros(len(bounds), np.bool_)
        for west, south, east, north in self.boxes:
            found |= (
                (bounds[:, 0] <= east)
                & (bounds[:, 2] >= west)
                & (bounds[:, 1] <= north)
                & (bounds[:, 3] >= south)
            )
        if self.polygon is not None and found.any():
            import shapely

            shapely.prepare(self.polygon)
            rows = np.flatnonzero(found)
            found[rows] = shapely.intersects(self.polygon, shapely.box(*bounds[rows].T))
        return found

    def covers(self, bounds: NDArray[np.floating]) -> ValidArray:
        """Which bounds [N, 4] w s e n lie inside as a whole, and with them every row of theirs."""
        if self.is_world:
            return np.ones(len(bounds), np.bool_)
        found: ValidArray = np.zeros(len(bounds), np.bool_)
        for west, south, east, north in self.boxes:
            found |= (
                (bounds[:, 0] >= west)
                & (bounds[:, 2] <= east)
                & (bounds[:, 1] >= south)
                & (bounds[:, 3] <= north)
            )
        if self.polygon is not None and found.any():
            import shapely

            shapely.prepare(self.polygon)
            rows = np.flatnonzero(found)
            found[rows] = shapely.covers(self.polygon, shapely.box(*bounds[rows].T))
        return found

    def contains(self, lon: NDArray[np.floating], lat: NDArray[np.floating]) -> ValidArray:
        """Which points lie inside; points on the edge of a rectangle are inside."""
        if self.is_world:
            return np.ones(len(lon), np.bool_)
        inside: ValidArray = np.zeros(len(lon), np.bool_)
        for west, south, east, north in self.boxes:
            inside |= (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        if self.polygon is not None and inside.any():
            import shapely

            rows = np.flatnonzero(inside)
            inside[rows] = shapely.intersects_xy(self.polygon, lon[rows], lat[rows])
        return inside


def make_area(area: AreaLike) -> Area:
    """Understand an area; InputError for empty ones and for polygons that may go either way round.

    A rectangle with west > east crosses the antimeridian, as in GeoJSON. Polygons may use
    longitudes beyond ±180 to cross it, or come cut at 180.
    """
    if area is None:
        return Area(boxes=())
    if isinstance(area, Area):
        return area
    if isinstance(area, Sequence | np.ndarray) and not isinstance(area, str):
        return _rectangle(area)
    return _polygon(_shape(area))


def _rectangle(values: Any) -> Area:
    if len(values) != 4 or not np.isfinite(np.asarray(values, float)).all():
        raise InputError(
            got=f"area {values!r}",
            expected="west, south, east, north in degrees",
            fix="pass four numbers, or a polygon",
        )
    west, south, east, north = (float(v) for v in values)
    if max(abs(south), abs(north)) > 90 or max(abs(west), abs(east)) > 360:
        raise InputError(
            got=f"area {west}, {south}, {east}, {north}",
            expected="degrees of longitude and latitude, west south east north",
            fix="convert meters to degrees, and check the order",
        )
    if south >= north or west == east:
        raise _empty(f"{west}, {south}, {east}, {north}")
    if east - west >= 360:
        return Area(boxes=((-180.0, south, 180.0, north),))
    west, east = _wrap(west), _wrap(east) if east != 180 else 180.0
    if west > east:
        return Area(boxes=((west, south, 180.0, north), (-180.0, south, east, north)))
    return Area(boxes=((west, south, east, north),))


def _wrap(lon: float) -> float:
    return (lon + 180) % 360 - 180 if abs(lon) > 180 else lon


def _shape(area: AreaLike) -> Any:
    import shapely

    if isinstance(area, shapely.Geometry):
        return area
    if isinstance(area, str | Path):
        path = Path(area)
        try:
            area = json.loads(
                path.read_text() if not str(area).lstrip().startswith("{") else str(area)
            )
        except (OSError, ValueError) as error:
            raise InputError(
                got=f"area {str(area)[:80]!r} ({error})",
                expected="a GeoJSON file",
                fix="convert it with ogr2ogr -f GeoJSON -t_srs EPSG:4326",
            ) from error
    try:
        if area["type"] == "FeatureCollection":
            parts = [shapely.geometry.shape(f["geometry"]) for f in area["features"]]
            return shapely.union_all(parts)
        return shapely.geometry.shape(area["geometry"] if area["type"] == "Feature" else area)
    except (KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise InputError(
            got=f"an area that is not GeoJSON ({error})",
            expected="a Polygon, MultiPolygon, Feature or FeatureCollection in lon/lat",
            fix="check the file in geojson.io",
        ) from error


def _polygon(shape: Any) -> Area:
    import shapely

    if shape.is_empty or shape.area == 0:
        raise _empty(shape.geom_type)
    if np.abs(shape.bounds[::2]).max() > 540 or np.abs(shape.bounds[1::2]).max() > 90 + 1e-6:
        raise InputError(
            got=f"an area with bounds {', '.join(f'{v:.6g}' for v in shape.bounds)}",
            expected="degrees of longitude and latitude",
            fix="convert it with ogr2ogr -f GeoJSON -t_srs EPSG:4326",
        )
    rings = [r for part in shapely.get_parts(shape) for r in shapely.get_rings(part)]
    if any((np.abs(np.diff(shapely.get_coordinates(ring)[:, 0])) > 180).any() for ring in rings):
        raise InputError(
            got="a polygon with an edge longer than 180 degrees",
            expected="one that is clear about which way round the world it goes",
            fix="at the antimeridian go on beyond 180 (179 to 181), or cut the polygon there",
        )
    shape = shapely.make_valid(shape)
    parts = []
    # Copies of the world to the west and east are cut off and brought home.
    for turn in (-360, 0, 360):
        world = shapely.box(-180 + turn, -90, 180 + turn, 90)
        part = shapely.intersection(shape, world)
        if part.area > 0:
            parts.append(shapely.transform(part, lambda xy, t=turn: xy - [t, 0]))
    if not parts:
        raise InputError(
            got=f"a polygon with bounds {tuple(round(v, 3) for v in shape.bounds)}",
            expected="degrees of longitude and latitude",
            fix="convert it to EPSG:4326",
        )
    boxes = tuple(tuple(float(v) for v in part.bounds) for part in parts)
    return Area(boxes=boxes, polygon=shapely.union_all(parts))  # type: ignore[arg-type]


def _empty(what: str) -> InputError:
    return InputError(
        got=f"an empty area ({what})",
        expected="an area with some size, west < east (or crossing 180) and south < north",
        fix="check the order: west, south, east, north",
    )
