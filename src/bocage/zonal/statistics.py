"""Zones and a map to a table: one row per zone and year."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.memory import share_one_arena
from bocage.progress import progress
from bocage.zonal.config import ZonalConfig
from bocage.zonal.files import check_folder, check_out, write_table
from bocage.zonal.layers import Kind, Layers
from bocage.zonal.opening import open_layers
from bocage.zonal.quantiles import PASSES
from bocage.zonal.result import ZonalResult
from bocage.zonal.sums import Walk, YearSums, add_up, plan_walk
from bocage.zonal.table import make_table
from bocage.zonal.zones import Zones, read_zones

if TYPE_CHECKING:
    import xarray as xr

    from bocage.types import PathLike

CACHE_BYTES = 64 * 2**20
"""GDAL's block cache, which by default takes a twentieth of the machine's memory."""


def zonal_statistics(
    source: PathLike | xr.DataArray | Sequence[PathLike],
    zones: PathLike | Any,
    *,
    out: PathLike | None = None,
    id_column: str | None = None,
    layer: str | None = None,
    kind: Kind | None = None,
    classes: PathLike | Mapping[int, str] | None = None,
    dims: int | None = None,
    years: Sequence[int] | None = None,
    config: ZonalConfig | None = None,
    report: Callable[[str], None] | None = None,
    dry_run: bool = False,
    show_progress: bool = False,
    **options: Any,
) -> ZonalResult:
    """Statistics of a map for each polygon: per district, field or census block.

    A cell counts by the share of it that lies in the polygon. A zone outside the map, on nodata or
    without a shape has its row, with n_cells 0 and NaN. Memory is that of a tile and of the table.

    Args:
        source: Embeddings (anything `open_embeddings` reads, or its result), a map of classes or of
            numbers, or several such maps of one grid, one per year.
        zones: Polygons in any CRS: GeoParquet, GeoPackage, GeoJSON, Shapefile, or a GeoDataFrame.
        out: NAME.parquet, .gpkg, .geojson or .csv; None to get the table only.
        id_column: Column that names the zones; by default `id`, else the number of the row.
        layer: Of a file of zones with several.
        kind: "embeddings", "classes" or "values", where the raster does not say.
        classes: Names of class values, where the raster does not say.
        dims: The first so many values of embeddings.
        years: Keep these years.
        config: All other options together, or singly as keywords; see `ZonalConfig`.
        report: Called with the printed plan before the work starts.
        dry_run: Stop after the plan; the result has an empty table.
        show_progress: Draw a progress display on standard error.
        **options: Fields of `ZonalConfig`.

    Means of vectors of length one are shorter than one, the more so the more a zone's cells differ:
    normalize them where a cosine is meant.

    Raises:
        InputError: Zones or rasters that leave a question open; see `read_zones`, `open_layers`.
        ConfigError: Options that do not fit the raster.
    """
    if config is not None and options:
        raise ConfigError(
            got=f"config= and also {', '.join(options)}",
            expected="one of the two",
            fix="put the options into ZonalConfig",
        )
    import rasterio

    config = config or ZonalConfig(**options)
    share_one_arena()
    start = time.perf_counter()
    target = None if out is None else Path(out)
    if target is not None:
        check_out(target, [*_paths(source), *_paths(zones)])
    layers = open_layers(source, kind=kind, classes=classes, dims=dims, years=years)
    config.check_kind(layers.kind, len(layers.years), layers.name)
    known = read_zones(zones, id_column=id_column, layer=layer)
    walk = plan_walk(layers, known.on_cells(layers.grid), config)
    if report is not None:
        report(describe(walk, known, config))
    if dry_run:
        return ZonalResult(table=known.frame.iloc[:0], id_column=known.id_column)
    if all(shape is None for shape in known.geometry):
        raise InputError(
            got=f"{known.name}, whose {len(known)} zones all have no area",
            expected="polygons",
            fix="check the column of shapes",
        )
    if not walk.tiles:
        raise _nothing_shared(layers, known)
    if target is not None:
        check_folder(target)
    with (
        rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES),
        progress("summing", walk.n_reads, unit="tiles", enabled=show_progress) as advance,
    ):
        sums, on_map = add_up(walk, config, advance)
    _warn_of_empty_bands(layers, sums)
    table = make_table(known, layers, sums, on_map, config)
    if target is not None:
        write_table(_with_origin(table, layers, config), target)
    return ZonalResult(
        table=table,
        id_column=known.id_column,
        path=target,
        files=() if target is None else (target,),
        n_repaired=known.n_repaired,
        wall_s=time.perf_counter() - start,
    )


def describe(walk: Walk, zones: Zones, config: ZonalConfig) -> str:
    """What will be computed, as a person reads it."""
    layers = walk.layers
    rows, cols = layers.grid.shape_yx
    years = ", ".join(str(y) if y else "unknown year" for y in layers.years)
    lines = [
        f"map      {layers.name}: {layers.kind}, {cols} x {rows} cells of "
        f"{layers.grid.resolution:g}, {len(layers.features)} band(s), {years}",
        f"zones    {zones.name}: {len(zones)} named by {zones.id_column}, "
        f"{sum(s is not None for s in walk.coverage.shapes)} near the map",
        f"columns  {_columns_in_words(layers, config)}",
    ]
    passes = 1 + PASSES * walk.n_rounds
    again = f", {passes} times each for quantiles" if passes > 1 else ""
    lines.append(f"read     {len(walk.tiles)} tile(s) of {len(layers.years)} year(s){again}")
    return "\n".join(lines)


def _columns_in_words(layers: Layers, config: ZonalConfig) -> str:
    if layers.kind == "classes":
        named = ", ".join(layers.classes.values()) or "as found"
        return f"hectares and share of the classes {named}"
    if layers.kind == "presence":
        return f"hectares and share of {', '.join(layers.features)}"
    words = ", ".join("median" if n == "p50" else n for n in config.names(layers.kind))
    if config.is_auto(layers.kind):
        words += f" as far as a zone's cells can fill them ({len(layers.features)} dims)"
    if config.above is not None:
        words += f"; hectares and share of at least {config.above:g}"
    return words + ("; differences to the year before" if config.deltas else "")


def _with_origin(table: Any, layers: Layers, config: ZonalConfig) -> Any:
    """The table with a note of where it comes from, which GeoParquet keeps."""
    from bocage._version import __version__

    table = table.copy(deep=False)
    origin = {
        "software": f"bocage {__version__}",
        "source": layers.name,
        "kind": layers.kind,
        "grid": {"crs": layers.grid.crs, "shape": list(layers.grid.shape_yx)},
        "options": asdict(config),
        **{k: layers.attrs[k] for k in ("model", "weights_id") if layers.attrs.get(k)},
    }
    table.attrs = {"bocage": json.dumps(origin, default=str)}
    return table


def _warn_of_empty_bands(layers: Layers, sums: Sequence[YearSums]) -> None:
    """A band without any data takes every cell out, which looks like a map without data."""
    for year in sums:
        empty = [i for i, there in enumerate(year.has_data, start=1) if not there]
        if not empty or len(empty) == len(layers.features):
            continue
        full = " ".join(f"-b {i}" for i in range(1, len(layers.features) + 1) if i not in empty)
        warnings.warn(
            f"{layers.name} has no data under the zones in {len(empty)} of "
            f"{len(layers.features)} bands ({layers.features[empty[0] - 1]}"
            f"{', ...' if len(empty) > 1 else ''}), so no cell has data in all of them and the "
            f"table is empty: keep the others with gdal_translate {full}",
            BocageWarning,
            stacklevel=3,
        )


def _paths(source: Any) -> list[str]:
    if isinstance(source, (str, Path)):
        return [str(source)]
    if isinstance(source, Sequence):
        return [str(s) for s in source]
    return []


def _nothing_shared(layers: Layers, zones: Zones) -> InputError:
    from rasterio.warp import transform_bounds

    box = transform_bounds(layers.grid.crs, "EPSG:4326", *layers.grid.bbox)
    theirs = zones.frame.geometry.to_crs(4326).total_bounds
    return InputError(
        got=f"{zones.name} at {_box(theirs)} and {layers.name} at {_box(box)}, in degrees",
        expected="zones that meet the map",
        fix="check that both show the same place, and the CRS that the zones say they are in",
    )


def _box(wsen: Sequence[float]) -> str:
    w, s, e, n = wsen
    return f"{w:.6g}, {s:.6g} to {e:.6g}, {n:.6g}"
