"""One area of embeddings as a cloud-optimized GeoTIFF that GIS users can open.

GDAL encodes the file; we only decide what is in it. Values and overviews go tile by tile into
scratch rasters beside the target, a VRT joins them, GDAL copies that into the final layout, the
copy is read back and compared, and only then does it get its name.
"""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from bocage.embeddings.atomic import flush_to_disk, naming_failures, scratch_beside
from bocage.embeddings.codecs import signed_power
from bocage.embeddings.cog_layout import FORMULA_TAG, PROVENANCE_TAG, QUANTIZATION_TAG, YEAR_TAG
from bocage.embeddings.conventions import SIGNED_POWER_FORMULA, matryoshka_dims
from bocage.embeddings.lazy_raster import LazyRaster, plain_values
from bocage.embeddings.overviews import masked_means, overview_factors
from bocage.embeddings.store import ZSTD_LEVEL
from bocage.errors import ConfigError, InputError, StoreError
from bocage.geo import Grid
from bocage.geo.lattice import SOUTHERN_FALSE_NORTHING_M

if TYPE_CHECKING:
    import xarray as xr

    from bocage.types import FloatArray, PathLike

CACHE_BYTES = 128 * 2**20
"""GDAL's block cache while writing; its default is a share of the machine's memory."""

_TILE_BYTES = 160 * 2**20
_MAX_TILE_CELLS = 512

Tile = tuple[slice, slice]


def export_cog(
    source: PathLike | xr.DataArray,
    path: PathLike,
    *,
    codec: str | None = None,
    year: int | None = None,
    zone: int | str | None = None,
    dims: int | None = None,
    block_cells: int = 256,
    overwrite: bool = False,
) -> Path:
    """Write one year of a store, or a DataArray of open_embeddings, as a COG; returns its path.

    `codec` is signed_power (int8, nodata -128) or float32 (nodata NaN), by default that of the
    source. Bands are called E000, E001, ...; overviews are masked means of real values. The scene's
    own CRS is kept: a southern map stays southern. Memory is bounded by a tile and GDAL's cache.
    StoreError if the file exists, if the disk is full, or if what was written does not read back.
    """
    target = Path(path)
    raster = _select(source, year=year, zone=zone, dims=dims)
    raster = replace(raster, grid=own_grid(raster))
    codec = codec or ("float32" if raster.attrs.get("codec") == "float32" else "signed_power")
    if codec not in {"signed_power", "float32"}:
        raise ConfigError(
            got=f"codec {codec!r} for a GeoTIFF",
            expected="signed_power or float32",
            fix="use signed_power for int8, float32 for exact values",
        )
    if block_cells not in {128, 256, 512}:
        raise ConfigError(
            got=f"block_cells {block_cells}", expected="128, 256 or 512", fix="leave it at 256"
        )
    if target.exists() and not overwrite:
        raise StoreError(
            got=f"{target}, which exists already",
            expected="a new path",
            fix="choose another path, or pass overwrite=True",
        )
    import rasterio

    with (
        naming_failures(target),
        scratch_beside(target) as folder,
        naming_failures(target),  # once more inside, while a full disk is still full
        rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_PAM_ENABLED=False),
    ):
        result = _build(raster, folder, codec=codec, block_cells=block_cells)
        flush_to_disk(result)
        result.replace(target)
    return target


def band_name(index: int) -> str:
    """E000, E001, ..."""
    return f"E{index:03d}"


def _select(
    source: PathLike | xr.DataArray, *, year: int | None, zone: int | str | None, dims: int | None
) -> LazyRaster:
    """One year of the source."""
    if isinstance(source, (str, Path)):
        from bocage.embeddings.open import open_raster

        raster = open_raster(source, dims=dims, zone=zone)
    else:
        raster = _from_dataarray(source, dims)
    return select_year(raster, year)


def select_year(raster: LazyRaster, year: int | None) -> LazyRaster:
    """The raster of one year; InputError if there are several and none is named."""
    if year is None and len(raster.years) > 1:
        raise InputError(
            got=f"{len(raster.years)} years {list(raster.years)}",
            expected="one year per GeoTIFF",
            fix=f"pass year={raster.years[-1]} (--year)",
        )
    if year is not None and year not in raster.years:
        raise InputError(
            got=f"year {year}", expected=f"one of {list(raster.years)}", fix="pass one of these"
        )
    index = 0 if year is None else raster.years.index(year)
    inner = raster.read
    return replace(
        raster,
        read=lambda _, band, rows, cols: inner(slice(index, index + 1), band, rows, cols),
        shape=(1, *raster.shape[1:]),
        years=(raster.years[index],),
    )


def _from_dataarray(array: xr.DataArray, dims: int | None) -> LazyRaster:
    wanted = ("time", "band", "y", "x")
    if "time" not in array.dims and "time" in array.coords:
        array = array.expand_dims("time")
    if set(array.dims) != set(wanted) or "spatial_ref" not in array.coords:
        raise InputError(
            got=f"a DataArray with dimensions {array.dims} and coordinates {list(array.coords)}",
            expected="(time, band, y, x) with spatial_ref, as open_embeddings gives",
            fix="keep the coordinates, or build it with open_embeddings",
        )
    array = array.transpose(*wanted)
    if dims is not None:
        array = array.isel(band=slice(dims))
    y, x = array["y"].values, array["x"].values
    if len(y) < 2 or len(x) < 2:
        numbers = [float(v) for v in array["spatial_ref"].attrs["GeoTransform"].split()]
        dx, dy = numbers[1], numbers[5]
    else:
        dx, dy = float(x[1] - x[0]), float(y[1] - y[0])
    grid = Grid(
        crs=_crs_code(array["spatial_ref"].attrs["crs_wkt"]),
        transform=Affine(dx, 0, float(x[0]) - dx / 2, 0, dy, float(y[0]) - dy / 2),
        shape_yx=(len(y), len(x)),
    )

    def read(time: slice, band: slice, rows: slice, cols: slice) -> FloatArray:
        return np.asarray(array[time, band, rows, cols].values, np.float32)

    return LazyRaster(
        read=read,
        shape=(array.sizes["time"], array.sizes["band"], len(y), len(x)),
        grid=grid,
        years=tuple(int(t) for t in array["time"].values),
        attrs=dict(array.attrs),
    )


def _crs_code(wkt: str) -> str:
    from rasterio.crs import CRS

    code = CRS.from_wkt(wkt).to_epsg()
    return f"EPSG:{code}" if code else wkt


def own_grid(raster: LazyRaster) -> Grid:
    """The grid in the scene's own CRS: the archive keeps southern maps in the northern one."""
    grid, own = raster.grid, str(raster.attrs.get("source_crs", ""))
    if not own.upper().startswith("EPSG:327") or grid.crs != f"EPSG:326{own[-2:]}":
        return grid
    t = grid.transform
    shifted = Affine(t.a, t.b, t.c, t.d, t.e, t.f + SOUTHERN_FALSE_NORTHING_M)
    return Grid(crs=own, transform=shifted, shape_yx=grid.shape_yx)


def _build(raster: LazyRaster, folder: Path, *, codec: str, block_cells: int) -> Path:
    """Scratch rasters, VRT, final file, read-back; all inside the scratch folder."""
    tile_cells = _tile_cells(raster.shape[1], block_cells)
    factors = overview_factors(raster.shape[2:], block_cells, limit=tile_cells)
    levels = {f: folder / f"level_{f}.tif" for f in (1, *factors)}
    checksums = _write_levels(raster, levels, codec=codec, tile_cells=tile_cells)
    vrt = _join(levels, folder / "all.vrt")
    result = folder / "result.tif"
    _copy_to_cog(vrt, result, codec=codec, block_cells=block_cells, overviews=bool(factors))
    _read_back(result, raster.shape[2:], factors, checksums, tile_cells)
    return result


def _tile_cells(dims: int, block_cells: int) -> int:
    """Side of a tile: whole blocks, about _TILE_BYTES of float32, a power of two."""
    side = _MAX_TILE_CELLS
    while side > block_cells and side * side * dims * 4 > _TILE_BYTES:
        side //= 2
    return side


def _tiles(shape_yx: tuple[int, int], side: int) -> Iterator[Tile]:
    for row in range(0, shape_yx[0], side):
        for col in range(0, shape_yx[1], side):
            yield (
                slice(row, min(row + side, shape_yx[0])),
                slice(col, min(col + side, shape_yx[1])),
            )


def _write_levels(
    raster: LazyRaster, levels: dict[int, Path], *, codec: str, tile_cells: int
) -> dict[tuple[int, int, int], int]:
    """Fill the full resolution and all overviews in one pass; returns a checksum per tile."""
    import rasterio

    factors = [f for f in levels if f > 1]
    scale = np.float32(raster.attrs.get("value_scale", 1.0))
    checksums: dict[tuple[int, int, int], int] = {}
    with ExitStack() as stack:
        files = {
            f: stack.enter_context(
                rasterio.open(p, "w", **_scratch_profile(raster, f, codec, tile_cells))
            )
            for f, p in levels.items()
        }
        _describe(files[1], raster, codec)
        for rows, cols in _tiles(raster.shape[2:], tile_cells):
            x = raster[0, :, rows, cols]
            for factor, mean in zip([1, *factors], [x, *masked_means(x, factors)], strict=True):
                values = signed_power.encode(mean / scale) if codec == "signed_power" else mean
                window = _level_window(rows, cols, factor)
                files[factor].write(values, window=window)
                checksums[factor, rows.start, cols.start] = zlib.crc32(values.tobytes())
    return checksums


def _level_window(rows: slice, cols: slice, factor: int) -> Any:
    from rasterio.windows import Window

    return Window.from_slices(
        slice(rows.start // factor, -(-rows.stop // factor)),
        slice(cols.start // factor, -(-cols.stop // factor)),
    )


def _scratch_profile(
    raster: LazyRaster, factor: int, codec: str, tile_cells: int
) -> dict[str, Any]:
    grid = raster.grid.coarsen(factor)
    # Blocks as large as what one tile writes, so that no block is written twice.
    block = max(16, min(256, tile_cells // factor))
    return {
        "driver": "GTiff",
        "dtype": "int8" if codec == "signed_power" else "float32",
        "nodata": signed_power.NODATA if codec == "signed_power" else float("nan"),
        "count": raster.shape[1],
        "height": grid.shape_yx[0],
        "width": grid.shape_yx[1],
        "crs": grid.crs,
        "transform": grid.transform,
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "interleave": "band",
        "photometric": "MINISBLACK",
        "compress": "zstd",
        "zstd_level": 1,
        "bigtiff": "IF_SAFER",
    }


def _describe(file: Any, raster: LazyRaster, codec: str) -> None:
    """Band names and GDAL metadata that say what the numbers are."""
    model = str(raster.attrs.get("model", ""))
    provenance = plain_values(raster.attrs)
    provenance["codec"] = codec
    if codec != "signed_power":
        provenance.pop("value_scale", None)
    for key in ("long_name", "units", "unit_norm", "shard_cells", "source_crs"):
        provenance.pop(key, None)
    if prefixes := matryoshka_dims(model, raster.shape[1]):
        provenance["matryoshka_dims"] = prefixes
    tags = {PROVENANCE_TAG: json.dumps(provenance, sort_keys=True)}
    if raster.years[0]:
        tags[YEAR_TAG] = str(raster.years[0])
    if codec == "signed_power":
        tags |= {QUANTIZATION_TAG: "signed_power", FORMULA_TAG: SIGNED_POWER_FORMULA}
    file.update_tags(**tags)
    for i in range(raster.shape[1]):
        file.set_band_description(i + 1, band_name(i))


def _join(levels: dict[int, Path], vrt: Path) -> Path:
    """A VRT of the full resolution that calls the other levels its overviews."""
    import rasterio.shutil

    rasterio.shutil.copy(levels[1], vrt, driver="VRT")
    document = ET.parse(vrt)
    for band in document.getroot().findall("VRTRasterBand"):
        for factor, path in levels.items():
            if factor > 1:
                overview = ET.SubElement(band, "Overview")
                ET.SubElement(overview, "SourceFilename", relativeToVRT="1").text = path.name
                ET.SubElement(overview, "SourceBand").text = band.get("band")
    document.write(vrt)
    return vrt


def _copy_to_cog(
    source: Path, target: Path, *, codec: str, block_cells: int, overviews: bool
) -> None:
    import rasterio
    import rasterio.shutil

    shared = {"compress": "ZSTD", "bigtiff": "IF_SAFER", "num_threads": "ALL_CPUS"}
    # Level 3 as in the Zarr store: GDAL's default 9 takes 2.8 times as long for 0.3 % of the size.
    if gdal_version() >= (3, 11):
        rasterio.shutil.copy(
            source,
            target,
            driver="COG",
            blocksize=block_cells,
            level=ZSTD_LEVEL,
            predictor="YES",
            interleave="TILE",
            overviews="FORCE_USE_EXISTING" if overviews else "NONE",
            **shared,
        )
        return
    # The COG driver of older GDAL writes pixel interleave only, 4x slower to read one pixel of all
    # bands and 70x slower to read one band; the GeoTIFF driver writes the same layout by band.
    rasterio.shutil.copy(
        source,
        target,
        driver="GTiff",
        tiled="YES",
        blockxsize=block_cells,
        blockysize=block_cells,
        zstd_level=ZSTD_LEVEL,
        predictor=2 if codec == "signed_power" else 3,
        interleave="BAND",
        photometric="MINISBLACK",
        copy_src_overviews="YES",
        **shared,
    )


def _read_back(
    path: Path,
    shape_yx: tuple[int, int],
    factors: tuple[int, ...],
    checksums: dict[tuple[int, int, int], int],
    tile_cells: int,
) -> None:
    """StoreError unless every tile of every level reads as written: GDAL may hide failed writes."""
    import rasterio

    for level, factor in enumerate((1, *factors)):
        options = {"OVERVIEW_LEVEL": level - 1} if level else {}
        with rasterio.open(path, **options) as file:
            for rows, cols in _tiles(shape_yx, tile_cells):
                values: NDArray[Any] = file.read(window=_level_window(rows, cols, factor))
                if zlib.crc32(values.tobytes()) != checksums[factor, rows.start, cols.start]:
                    raise StoreError(
                        got=f"other values in {os.fspath(path)} than were written",
                        expected="a file that reads back",
                        fix="check the disk and its free space, and run again",
                    )


def gdal_version() -> tuple[int, int]:
    """Major and minor version of the GDAL inside rasterio."""
    import rasterio

    major, minor = rasterio.__gdal_version__.split(".")[:2]
    return int(major), int(minor)
