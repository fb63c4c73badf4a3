"""open_stack: from any source of imagery to a Stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bocage.errors import ConfigError, InputError, SourceError
from bocage.imagery.checks import check_opened
from bocage.imagery.dates import last_day, parse_date
from bocage.imagery.opened import Opened, OpenOptions
from bocage.memory import share_one_arena
from bocage.sensors import sensor as sensor_table

if TYPE_CHECKING:
    import xarray as xr

    from bocage.types import BboxWSEN


def open_stack(
    source: Any = None,
    *,
    sensor: str | None = None,
    bands: Any = None,
    date: Any = None,
    dates: tuple[Any, Any] | None = None,
    crs: str | None = None,
    resolution_m: float = 10.0,
    bbox: BboxWSEN | None = None,
    bbox_crs: str = "EPSG:4326",
    scale: Any = None,
    offset: Any = None,
    cloud_mask: bool = True,
    level: str | None = None,
    catalog: str | None = None,
    collections: Sequence[str] | None = None,
    max_cloud_percent: float | None = None,
) -> xr.Dataset:
    """Open satellite imagery as a Stack: one 10 m grid, product units, NaN where there is no data.

    Nothing is read but headers and five small windows per date, to check the units; values come
    when they are used (``read_window``, dask). Coarser bands are repeated by nearest neighbour.

    Args:
        source: A folder, file, or list of them (GeoTIFF, JPEG 2000, VRT, NetCDF, Zarr, STAC JSON);
            an xarray Dataset or DataArray; pystac Items. Leave it out with ``catalog``.
        sensor: Read this sensor only; needed where band names do not tell (whose B4?).
        bands: Band names in file order ("" skips one), or a dict from the source's names.
        date: The date of the imagery, or one per file or time step. Otherwise dates come from file
            and folder names (a month or year means its first day) or metadata.
        dates: First and last day to keep; a year or month ends with its last day.
        crs: Warp to this CRS ("utm": zone of the centre). Needed when the inputs have several.
        resolution_m: Pixel size; the models were trained on 10.
        bbox: West, south, east, north to keep, in ``bbox_crs`` (degrees by default).
        bbox_crs: CRS of ``bbox``.
        scale: Factor to product units; a dict per sensor. "db" (10 log10) and "db20" (20 log10),
            with the offset beside them, are for Sentinel-1 and leave other sensors as they are.
        offset: Added after the scale: -1000 removes the offset of Sentinel-2 baseline 04.00, 0
            keeps the numbers whatever the metadata say; a dict per sensor.
        cloud_mask: Turn clouds of SCL, QA_PIXEL or BQA layers into NaN.
        level: "L1C" accepts Sentinel-2 Level-1C without a warning.
        catalog: Address of a STAC API or static catalog to search in ``bbox`` and ``dates``.
        collections: STAC collections to search.
        max_cloud_percent: Leave out STAC items with more ``eo:cloud_cover``.

    Raises:
        InputError: Bands unnamed or doubled, no CRS or two, wrong units, nothing but nodata, ...
        SourceError: A file or catalog is missing or unreadable.
        ConfigError: An option makes no sense, or an extra is not installed.
    """
    share_one_arena()
    if sensor is not None:
        sensor_table(sensor)
    if dates is not None and (isinstance(dates, str) or len(dates) != 2):
        raise ConfigError(
            got=f"dates={dates!r}",
            expected="a first and a last day",
            fix='pass for example dates=("2024-01-01", "2024-12-31"), or date= for the stamp',
        )
    if dates is not None:
        dates = dates[0], last_day(dates[1])
    options = OpenOptions(
        sensor=sensor,
        bands=bands,
        date=date,
        crs=crs,
        resolution_m=resolution_m,
        bbox=bbox,
        bbox_crs=bbox_crs,
        scale=scale,
        offset=offset,
        cloud_mask=cloud_mask,
        level=level,
    )
    if catalog is not None:
        if source is not None:
            raise ConfigError(
                got="both a source and catalog=", expected="one of them", fix="leave one out"
            )
        source = _search(
            catalog, options, dates, collections=collections, max_cloud_percent=max_cloud_percent
        )
    opened = _open(source, options, dates)
    if dates is not None:
        opened = _between(opened, dates)
    if bbox is not None:
        opened = _crop(opened, options)
    check_opened(opened, options)
    from bocage.imagery.stack import make_stack

    return make_stack(
        opened.readers,
        grid=opened.grid,
        dates=opened.dates,
        sources=opened.sources,
        dates_known=opened.dates_known,
        attrs={"bocage_options": _reading(options)},
    )


def _reading(options: OpenOptions) -> str:
    """The options that change values, as text: two stacks of the same files may differ by them."""
    names = ("bands", "scale", "offset", "cloud_mask", "resolution_m")
    return "; ".join(f"{name}={getattr(options, name)!r}" for name in names)


def _search(
    catalog: str,
    options: OpenOptions,
    dates: tuple[Any, Any] | None,
    *,
    collections: Sequence[str] | None,
    max_cloud_percent: float | None,
) -> list[Any]:
    from bocage.imagery.stac import search

    bbox = options.bbox
    if bbox is None or options.bbox_crs.upper() != "EPSG:4326":
        raise ConfigError(
            got=f"a catalog search with bbox={bbox} in {options.bbox_crs}",
            expected="a bounding box in degrees",
            fix="pass bbox=(west, south, east, north) (--bbox)",
        )
    if dates is not None:
        dates = (str(parse_date(dates[0])), str(parse_date(dates[1])))
    return search(
        catalog,
        collections=collections,
        bbox=bbox,
        dates=dates,
        max_cloud_percent=max_cloud_percent,
    )


def _open(source: Any, options: OpenOptions, dates: tuple[Any, Any] | None) -> Opened:
    """Hand a source to the file of its kind."""
    from bocage.imagery.stac import is_stac, item_files

    if isinstance(source, str | Path):
        source = item_files(source) or source
    if is_stac(source):
        from bocage.imagery.stac import open_items, read_items

        in_degrees = options.bbox_crs.upper() == "EPSG:4326"
        items = read_items(source, bbox=options.bbox if in_degrees else None, dates=dates)
        return open_items(items, options)
    if isinstance(source, str | Path):
        return _open_paths([str(source)], options)
    if _is_xarray(source):
        from bocage.imagery.xarray_source import open_xarray

        return open_xarray([("the Dataset", source)], options)
    if isinstance(source, Sequence) and source:
        if all(isinstance(part, str | Path) for part in source):
            return _open_paths([str(part) for part in source], options)
        if all(_is_xarray(part) for part in source):
            from bocage.imagery.xarray_source import open_xarray

            return open_xarray([(f"Dataset {i}", part) for i, part in enumerate(source)], options)
    raise SourceError(
        got="no source" if source is None else f"a source of type {type(source).__name__}",
        expected="a path, a list of paths, an xarray Dataset, STAC items, or catalog=",
        fix="pass the folder or files of the imagery",
    )


def _open_paths(paths: list[str], options: OpenOptions) -> Opened:
    from bocage.imagery.folder import list_rasters, open_rasters
    from bocage.imagery.netcdf import is_netcdf, is_zarr, open_netcdf, open_zarr

    cubes: list[tuple[str, Any]] = []
    files: list[str] = []
    roots: list[str] = []
    for path in paths:
        if is_zarr(path):
            cubes.append((path, open_zarr(path)))
        elif is_netcdf(path):
            cubes.append((path, open_netcdf(path)))
        elif Path(path).is_dir():
            netcdf = sorted(str(p) for p in Path(path).iterdir() if is_netcdf(str(p)))
            cubes += [(p, open_netcdf(p)) for p in netcdf]
            files += [] if netcdf else list_rasters(path)
            roots.append(path)
        else:
            files.append(path)
            roots.append(str(Path(path).parent))
    if cubes and files:
        raise InputError(
            got=f"raster files ({files[0]}) and cubes ({cubes[0][0]}) together",
            expected="one kind of source",
            fix="open them apart",
        )
    if cubes:
        from bocage.imagery.xarray_source import open_xarray

        return open_xarray(cubes, options)
    several = isinstance(options.date, list | tuple)
    return open_rasters(
        files,
        replace(options, date=None) if several else options,
        roots=roots,
        dates=options.date if several else None,
    )


def _is_xarray(source: Any) -> bool:
    return type(source).__module__.startswith("xarray.")


def _between(opened: Opened, dates: tuple[Any, Any]) -> Opened:
    from bocage.imagery.reader import SubsetReader

    first, last = (parse_date(value) for value in dates)
    keep = tuple(i for i, day in enumerate(opened.dates) if first <= day <= last)
    if not keep:
        span = f"{min(opened.dates)} to {max(opened.dates)}" if opened.dates_known else "unknown"
        raise InputError(
            got=f"no imagery between {first} and {last} (its dates: {span})",
            expected="at least one date in the range",
            fix="widen dates= (--dates)",
        )
    rows, cols = (slice(0, n) for n in opened.grid.shape_yx)
    return replace(
        opened,
        dates=[opened.dates[i] for i in keep],
        readers={name: SubsetReader(r, keep, rows, cols) for name, r in opened.readers.items()},
    )


def _crop(opened: Opened, options: OpenOptions) -> Opened:
    from bocage.imagery.reader import SubsetReader
    from bocage.imagery.reference import crop_ranges

    if options.bbox is None:
        return opened
    rows, cols = crop_ranges(opened.grid, options.bbox, options.bbox_crs)
    times = tuple(range(len(opened.dates)))
    return replace(
        opened,
        grid=opened.grid.crop(rows, cols),
        readers={name: SubsetReader(r, times, rows, cols) for name, r in opened.readers.items()},
    )
