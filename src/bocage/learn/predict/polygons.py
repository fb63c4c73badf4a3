"""A class map as polygons, made tile by tile and joined where tiles meet.

Memory holds one tile and the polygons that touch a border between tiles; those inside a tile are
done at once.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine

from bocage.embeddings.atomic import flush_to_disk, naming_failures, scratch_beside
from bocage.errors import ConfigError, InputError
from bocage.learn.predict.area import CellAreas
from bocage.learn.predict.layer import tiles
from bocage.learn.predict.legend import Legend

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".parquet": "GeoParquet"}
"""Endings that can be written."""


_SIDE_CELLS = 16


def check_polygon_path(path: Path) -> None:
    """Refuse endings that cannot be written, before any work is done."""
    if path.suffix.lower() not in DRIVERS:
        raise ConfigError(
            got=f"--polygons {path}",
            expected=f"a name that ends in {', '.join(DRIVERS)}",
            fix=f"use --polygons {path.with_suffix('.gpkg')}",
        )


def write_polygons(
    raster: Path, path: Path, legend: Legend, *, min_cells: int = 1, classes: tuple[int, ...] = ()
) -> int:
    """Write the areas of a class map as polygons; returns how many.

    Cells that share a side and a class are one polygon, with columns `value`, `class` and `km2`.
    GeoJSON is in degrees, other formats in the CRS of the map. `min_cells` leaves out smaller
    ones; `classes` keeps these values only. InputError if nothing is left.
    """
    import geopandas as gpd

    check_polygon_path(path)
    shapes = _shapes(raster, legend, classes)
    crs, cell_units, areas = _grid_of(raster)
    records: list[dict[str, Any]] = []
    for value, geometries in shapes.items():
        name = legend.names[legend.values.index(value)]
        for geometry in geometries:
            if geometry.area < (min_cells - 0.5) * cell_units:
                continue
            records.append({"value": value, "class": name, "geometry": geometry})
    if not records:
        raise InputError(
            got=f"no polygon of at least {min_cells} cell(s) in {raster}",
            expected="one at least",
            fix="lower --min-cells, or choose classes that occur in the area table",
        )
    frame = gpd.GeoDataFrame(records, geometry="geometry", crs=crs)
    # A straight side is no straight side in another projection: points along it keep the area.
    dense = frame.geometry.segmentize(_SIDE_CELLS * cell_units**0.5)
    frame["km2"] = (dense.to_crs(areas.equal_area).area / 1e6).round(9)
    frame = frame[["value", "class", "km2", "geometry"]]
    with naming_failures(path), scratch_beside(path) as folder:
        made = folder / path.name
        if path.suffix.lower() == ".parquet":
            frame.to_parquet(made, compression="zstd", write_covering_bbox=True)
        else:
            driver = DRIVERS[path.suffix.lower()]
            # GeoJSON is in degrees, cut at the antimeridian: web maps read nothing else (RFC 7946).
            options = {"RFC7946": "YES"} if driver == "GeoJSON" else {}
            frame.to_file(made, driver=driver, engine="pyogrio", **options)
        flush_to_disk(made)
        made.replace(path)
    return len(frame)


def _grid_of(raster: Path) -> tuple[Any, float, CellAreas]:
    import rasterio

    from bocage.geo import Grid

    with rasterio.open(raster) as file:
        t, code = file.transform, file.crs.to_epsg()
        crs = f"EPSG:{code}" if code else file.crs.to_wkt()
        grid = Grid(crs=crs, transform=t, shape_yx=file.shape)
        return file.crs.to_wkt(), float(abs(t.a * t.e)), CellAreas(grid)


def _shapes(raster: Path, legend: Legend, classes: tuple[int, ...]) -> dict[int, list[Any]]:
    import rasterio
    import shapely
    from rasterio.features import shapes
    from rasterio.windows import Window

    done: dict[int, list[Any]] = defaultdict(list)
    open_ended: dict[int, list[Any]] = defaultdict(list)
    kept = classes or legend.values
    with rasterio.open(raster) as file:
        rows_total, cols_total = file.shape
        for rows, cols in tiles(file.shape):
            codes = file.read(1, window=Window.from_slices(rows, cols))
            mask = np.isin(codes, kept)
            # In whole cells, so that borders of tiles meet exactly whatever the CRS.
            shift = Affine.translation(cols.start, rows.start)
            for geometry, value in shapes(codes, mask=mask, connectivity=4, transform=shift):
                polygon = shapely.geometry.shape(geometry)
                left, top, right, bottom = polygon.bounds
                touches = (
                    (left == cols.start and left > 0)
                    or (right == cols.stop and right < cols_total)
                    or (top == rows.start and top > 0)
                    or (bottom == rows.stop and bottom < rows_total)
                )
                (open_ended if touches else done)[int(value)].append(polygon)
        t = file.transform
    for value, parts in open_ended.items():
        done[value] += _join(parts)
    matrix = [t.a, t.b, t.d, t.e, t.c, t.f]
    return {
        value: [shapely.affinity.affine_transform(p, matrix) for p in done[value]]
        for value in sorted(done)
    }


def _join(parts: list[Any]) -> list[Any]:
    """Polygons that share a side as one; points left in straight lines by tile borders removed."""
    import shapely

    joined = shapely.unary_union(parts)
    return [shapely.simplify(p, 0) for p in getattr(joined, "geoms", [joined])]
