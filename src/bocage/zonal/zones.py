"""Zones: polygons with an identifier each, in their own CRS, and the same on the cells of a map.

A file that leaves a question open (no CRS, an identifier twice, coordinates that no CRS has) is
refused. A zone without a shape, or far from the map, is kept: it gets a row that says so.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.learn.vector_file import import_geopandas, read_shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.geo import Grid
    from bocage.types import PathLike

ROW_NUMBER = "zone"
"""Name of the identifier of a file that has none: the number of the row, from 0."""

_SHOWN = 5
_PIECES = 5000
_PIECE_DEGREES, _PIECE_UNITS = 0.01, 1000.0
"""A straight side is no straight side in another CRS; pieces of 1 km bend by 2 cm."""


@dataclass(frozen=True, kw_only=True)
class Zones:
    """Polygons in the order of their file."""

    name: str
    """Of the file."""

    frame: Any
    """GeoDataFrame with every column of the file; shapes are polygons, repaired, or missing."""

    id_column: str
    n_repaired: int = 0

    @property
    def geometry(self) -> NDArray[Any]:
        """Shapely polygons [Z]; None where a zone has no area."""
        return np.asarray(self.frame.geometry.values, dtype=object)

    @property
    def ids(self) -> list[str]:
        """Identifiers as text, for messages."""
        return [str(v) for v in self.frame[self.id_column]]

    def __len__(self) -> int:
        return len(self.frame)

    def hectares(self) -> NDArray[np.float64]:
        """Area [Z] on the ellipsoid, whatever the CRS; 0 without a shape."""
        from pyproj import Transformer

        frame = self.frame.geometry
        middle = 0.0
        if not frame.crs.is_geographic:
            # The edge of the equal-area map has to lie on the other side of the earth.
            west, south, east, north = frame.total_bounds
            to_degrees = Transformer.from_crs(frame.crs, 4326, always_xy=True)
            middle = float(to_degrees.transform((west + east) / 2, (south + north) / 2)[0])
            middle = middle if np.isfinite(middle) else 0.0
        equal_area = f"+proj=cea +lon_0={middle:.6f} +datum=WGS84 +units=m +no_defs"
        square_meters = frame.segmentize(_piece(frame)).to_crs(equal_area).area
        return np.nan_to_num(np.asarray(square_meters, np.float64)) / 1e4

    def on_cells(self, grid: Grid) -> NDArray[Any]:
        """Shapes [Z] in cells from the upper left corner, x to the right and y downwards.

        Cut to a frame around the map first: what lies on the other side of the earth has no
        coordinates in its CRS. Zones that do not meet the map are None.
        """
        import shapely

        wkt = _wkt(grid)
        frame = self.frame.geometry
        if not frame.crs.equals(wkt):
            west, south, east, north = _frame_of(grid, frame.crs, self.name)
            frame = frame.clip_by_rect(west, south, east, north)
            # Cutting may leave sides that touch themselves.
            frame = frame.segmentize(_piece(frame)).to_crs(wkt)
        shapes = np.asarray(frame.values, dtype=object)
        into = ~grid.transform

        def to_cells(xy: NDArray[np.float64]) -> NDArray[np.float64]:
            col = into.a * xy[:, 0] + into.c
            return np.stack([col, into.e * xy[:, 1] + into.f], axis=1)

        shapes = np.asarray(shapely.transform(shapes, to_cells), dtype=object)
        # Rounding may let sides cross that only touched.
        broken = ~(shapely.is_missing(shapes) | shapely.is_valid(shapes))
        broken[broken] = np.isfinite(shapely.bounds(shapes[broken])).all(axis=1)
        shapes[broken] = [areas_of(g) for g in shapely.make_valid(shapes[broken])]
        keep = np.zeros(len(shapes), bool)
        there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
        bounds = shapely.bounds(shapes[there])
        if not np.isfinite(bounds).all():
            lost = there.copy()
            lost[there] = ~np.isfinite(bounds).all(axis=1)
            raise InputError(
                got=f"{self.name} with zones that have no coordinates in the CRS of the map "
                f"({_some(_at(self.ids, lost))})",
                expected="zones around the map",
                fix="cut them to the area of the map first",
            )
        rows, cols = grid.shape_yx
        keep[there] = (
            (bounds[:, 0] < cols) & (bounds[:, 2] > 0) & (bounds[:, 1] < rows) & (bounds[:, 3] > 0)
        )
        shapes[~keep] = None
        return shapes


def read_zones(
    source: PathLike | Any, *, id_column: str | None = None, layer: str | None = None
) -> Zones:
    """Read zones from a file, or take a GeoDataFrame.

    Args:
        source: GeoParquet, GeoPackage, GeoJSON, Shapefile or what else GDAL reads.
        id_column: Column that names the zones; by default `id` if there is one, else the number
            of the row.
        layer: Of a file with several.

    Invalid polygons are repaired with a warning that names them. InputError for points and lines,
    a missing CRS, doubled or missing identifiers, coordinates that are no degrees.
    """
    geopandas = import_geopandas("zones", "zonal")
    if isinstance(source, (geopandas.GeoDataFrame, geopandas.GeoSeries)):
        name, frame = "the zones", source.copy()
        if isinstance(source, geopandas.GeoSeries):
            frame = geopandas.GeoDataFrame(geometry=frame)
    elif not isinstance(source, (str, Path)):
        raise ConfigError(
            got=f"zones as {type(source).__name__}",
            expected="a file, or a GeoDataFrame with its CRS",
            fix="try geopandas.GeoDataFrame(geometry=shapes, crs=...)",
        )
    else:
        name, frame = (
            Path(source).name,
            read_shapes(str(source), layer, what="polygons", extra="zonal"),
        )
    _check_place(name, frame)
    frame = _plain_columns(name, frame).reset_index(drop=True)
    chosen = _identify(name, frame, id_column)
    if chosen is None:
        chosen = ROW_NUMBER if ROW_NUMBER not in frame.columns else f"{ROW_NUMBER}_row"
        frame.insert(0, chosen, np.arange(len(frame)))
    ids = [str(v) for v in frame[chosen]]
    shapes, repaired = _polygons(name, np.asarray(frame.geometry.values, dtype=object), ids)
    frame = frame.set_geometry(geopandas.GeoSeries(shapes, crs=frame.crs, index=frame.index))
    if repaired:
        warnings.warn(
            f"{name}: {len(repaired)} invalid polygons were repaired ({_some(repaired)}); check "
            "that they still cover what was meant",
            BocageWarning,
            stacklevel=3,
        )
    return Zones(name=name, frame=frame, id_column=chosen, n_repaired=len(repaired))


def _check_place(name: str, frame: Any) -> None:
    if not len(frame):
        raise InputError(
            got=f"{name} without a single zone", expected="polygons", fix="check the layer"
        )
    if frame.crs is None:
        raise InputError(
            got=f"{name} without a CRS",
            expected="a file that says which coordinates it uses",
            fix=f"state it, for example: ogr2ogr -a_srs EPSG:4326 fixed.gpkg {name}",
        )
    west, south, east, north = frame.total_bounds
    if not frame.crs.is_geographic or not np.isfinite(west):
        return
    if west < -180.001 or east > 180.001 or south < -90.001 or north > 90.001:
        raise InputError(
            got=f"{name}, which says {_crs_name(frame.crs)} and has coordinates from {west:.6g}, "
            f"{south:.6g} to {east:.6g}, {north:.6g}",
            expected="longitude -180 to 180 and latitude -90 to 90",
            fix="state the CRS that these numbers are in, for example: ogr2ogr -a_srs EPSG:32643 "
            f"fixed.gpkg {name}",
        )


def _identify(name: str, frame: Any, column: str | None) -> str | None:
    available = [str(c) for c in frame.columns if c != frame.geometry.name]
    if column is None:
        column = next((c for c in available if c.lower() == "id"), None)
        if column is None:
            return None
    if column not in available:
        raise InputError(
            got=f"{name} without the column {column!r}",
            expected=f"one of {', '.join(available) or '(no columns)'}",
            fix="check --id, or leave it out to number the rows",
        )
    values = frame[column]
    n_missing = int(values.isna().sum())
    if n_missing:
        raise InputError(
            got=f"{name} with {n_missing} of {len(frame)} values of {column!r} missing",
            expected="an identifier in every row",
            fix="fill them in, or name another column with --id",
        )
    # As text, in which files keep them: 1 and "1" are one identifier.
    texts = values.astype(str)
    twice = texts[texts.duplicated()].drop_duplicates()
    if len(twice):
        raise InputError(
            got=f"{name}, where {len(twice)} values of {column!r} occur more than once "
            f"({_some(list(twice))})",
            expected="one row per zone",
            fix="name another column with --id, or merge the parts (geopandas: dissolve)",
        )
    return column


def _polygons(name: str, shapes: NDArray[Any], ids: list[str]) -> tuple[NDArray[Any], list[str]]:
    """Polygons, repaired where they cross themselves, None where they have no area."""
    import shapely

    shapes = shapely.force_2d(shapes)
    there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    # A collection may hold lines beside its polygons, as tools that repair shapes leave them.
    is_area = shapely.get_dimensions(shapes) == 2
    is_mixed = is_area & ~np.isin(shapely.get_type_id(shapes), (3, 6))
    other = [i for i, t, a in zip(ids, there, is_area, strict=True) if t and not a]
    if other:
        kinds = sorted({g.geom_type for g in shapes[there & ~is_area]})
        raise InputError(
            got=f"{name} with {len(other)} of {len(ids)} shapes that are no polygons "
            f"({', '.join(kinds)}: {_some(other)})",
            expected="polygons or multipolygons",
            fix="buffer points and lines first, or leave these rows out",
        )
    far = there.copy()
    far[there] = ~np.isfinite(shapely.bounds(shapes[there])).all(axis=1)
    if far.any():
        raise InputError(
            got=f"{name} with coordinates that are not finite ({_some(_at(ids, far))})",
            expected="finite coordinates",
            fix="correct or delete these rows",
        )
    broken = there & (is_mixed | ~shapely.is_valid(shapes))
    shapes = shapes.copy()
    shapes[broken] = [areas_of(g) for g in shapely.make_valid(shapes[broken])]
    flat = there & ~(shapely.area(shapes) > 0)
    shapes[~there | flat] = None
    return shapes, _at(ids, broken & ~flat)


def areas_of(geometry: Any) -> Any:
    """The polygons of a shape that may have lines and points beside them; None without any."""
    import shapely

    if geometry.geom_type not in {"Polygon", "MultiPolygon"}:
        parts = shapely.get_parts(geometry)
        geometry = shapely.union_all(parts[shapely.get_dimensions(parts) == 2])
    return None if geometry.is_empty else geometry


def _plain_columns(name: str, frame: Any) -> Any:
    """One column of shapes, and none of the bounds that GeoParquet 1.1 keeps beside them."""
    if not frame.columns.is_unique:
        twice = [str(c) for c in frame.columns[frame.columns.duplicated()].unique()]
        raise InputError(
            got=f"{name} with several columns {_some(twice)}",
            expected="columns of different names",
            fix="rename or delete them",
        )
    if "bbox" in frame.columns and isinstance(next(iter(frame["bbox"]), None), dict):
        frame = frame.drop(columns="bbox")
    other = [c for c, kind in frame.dtypes.items() if str(kind) == "geometry"]
    other.remove(frame.geometry.name)
    if other:
        warnings.warn(
            f"{name} has other shapes in {_some([str(c) for c in other])}, which are left out: "
            f"statistics are of the shapes in {frame.geometry.name}",
            BocageWarning,
            stacklevel=4,
        )
    return frame.drop(columns=other)


def _piece(frame: Any) -> float:
    """Length of the pieces that sides are cut into before they go to another CRS."""
    west, south, east, north = frame.total_bounds
    extent = np.nan_to_num(max(east - west, north - south), nan=0.0)
    return float(max(_PIECE_DEGREES if frame.crs.is_geographic else _PIECE_UNITS, extent / _PIECES))


def _frame_of(grid: Grid, crs: Any, name: str) -> tuple[float, float, float, float]:
    """The map's bounds in the zones' CRS, with a wide margin."""
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        to_zones = Transformer.from_crs(_wkt(grid), crs, always_xy=True)
        found = np.asarray(to_zones.transform_bounds(*grid.bbox, densify_pts=101))
    except ProjError as error:
        raise InputError(
            got=f"{name} in {_crs_name(crs)}, from which no way leads to {grid.crs[:40]}",
            expected="a CRS with a place on the earth",
            fix="state the CRS that the coordinates are in (ogr2ogr -a_srs)",
        ) from error
    if not np.isfinite(found).all() or (found[0] > found[2]):
        # Around a pole or across 180 degrees: everything may meet the map.
        return -np.inf, -np.inf, np.inf, np.inf
    margin = 0.1 * max(found[2] - found[0], found[3] - found[1])
    return (
        float(found[0] - margin),
        float(found[1] - margin),
        float(found[2] + margin),
        float(found[3] + margin),
    )


def _wkt(grid: Grid) -> str:
    from rasterio.crs import CRS

    return str(CRS.from_user_input(grid.crs).to_wkt())


def _crs_name(crs: Any) -> str:
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.name)


def _at(ids: list[str], where: NDArray[np.bool_]) -> list[str]:
    return [ids[i] for i in np.flatnonzero(where)]


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
