"""One raster of a result, written tile by tile as a COG whose overviews are true summaries.

A coarse cell of a continuous layer is the mean of all full-resolution cells below it, one of a
class layer their most frequent class. GDAL builds each level from the one before, which is
neither as soon as some cells are nodata; so the levels are made here from the full resolution, and
GDAL only encodes the file. What was written is read back before the file gets its name.
"""

from __future__ import annotations

import shutil
import uuid
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from bocage.embeddings.atomic import PARTIAL_SUFFIX, flush_to_disk, naming_failures
from bocage.embeddings.cog import gdal_version
from bocage.embeddings.overviews import masked_means, overview_factors
from bocage.errors import StoreError
from bocage.geo import Grid
from bocage.learn.predict.legend import Legend
from bocage.types import FloatArray, ShapeYX

TILE_CELLS = 512
"""Side of the tiles in which layers are written: also the coarsest overview, 1 : 512."""

CACHE_BYTES = 16 * 2**20
"""GDAL's block cache while writing, which a map fills before it stops growing; 64 MiB are no
faster, and the default is a share of the machine's memory."""

_BLOCK_CELLS = 256
_ZSTD_LEVEL = 9

Tile = tuple[slice, slice]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a raster holds and how it is stored."""

    path: Path
    grid: Grid
    bands: tuple[str, ...]
    """Band descriptions."""

    dtype: Literal["uint8", "uint16", "int8", "float32"] = "float32"
    scale: float = 1.0
    """Value of one step of an integer type: value = stored * scale, as GDAL's band scale says."""

    nodata: float = float("nan")
    """Stored number of cells without data."""

    legend: Legend | None = None
    """Of a class layer, whose overviews are the most frequent class."""

    tags: Mapping[str, str] = field(default_factory=dict)
    """GDAL metadata."""

    def encode(self, x: FloatArray) -> NDArray[Any]:
        """Values, NaN for nodata, as stored numbers; values beyond the type are clipped."""
        if self.dtype == "float32":
            return np.ascontiguousarray(x, np.float32)
        limits = np.iinfo(self.dtype)
        low, high = int(limits.min), int(limits.max)
        low += self.nodata == low
        high -= self.nodata == high
        missing = np.isnan(x)
        q = np.rint(np.where(missing, 0, x) / np.float32(self.scale))
        return np.where(missing, self.nodata, np.clip(q, low, high)).astype(self.dtype)

    def summaries(self, x: FloatArray, factors: tuple[int, ...]) -> list[FloatArray]:
        """The values of a tile at each factor."""
        if self.legend is None:
            return masked_means(x, factors)
        return _modes(x, factors)


class LayerWriter:
    """Takes a layer's tiles in any order, and puts the finished COG in place on `finish`.

    A context manager: what is not finished when the block ends is removed.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        shape_yx = layer.grid.shape_yx
        self.factors = overview_factors(shape_yx, _BLOCK_CELLS, limit=TILE_CELLS)
        self._files: dict[int, Any] = {}
        self._checksums: dict[tuple[int, int, int], int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        import rasterio

        target = self.layer.path
        with ExitStack() as stack:
            stack.enter_context(naming_failures(target))
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_PAM_ENABLED=False))
            self._folder = target.with_name(
                f".{target.name}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}"
            )
            self._folder.mkdir(parents=True)
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            for factor in (1, *self.factors):
                path = self._folder / f"level_{factor}.tif"
                self._files[factor] = rasterio.open(path, "w", **self._profile(factor))
                stack.callback(self._files[factor].close)
            self._describe()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return self._stack.__exit__(kind, error, trace)

    def write(self, tile: Tile, x: FloatArray) -> None:
        """Write one tile of `tiles(shape_yx)`: values [bands, h, w], NaN for nodata."""
        from rasterio.windows import Window

        rows, cols = tile
        for factor, part in zip(
            (1, *self.factors), (x, *self.layer.summaries(x, self.factors)), strict=True
        ):
            stored = self.layer.encode(part)
            window = Window.from_slices(*_at_level(tile, factor))
            self._files[factor].write(stored, window=window)
            self._checksums[factor, rows.start, cols.start] = zlib.crc32(stored.tobytes())

    def finish(self) -> Path:
        """Make the COG, read it back, and put it in place; StoreError if it reads otherwise."""
        for file in self._files.values():
            file.close()
        vrt = self._join()
        result = self._folder / "result.tif"
        self._copy(vrt, result)
        self._read_back(result)
        flush_to_disk(result)
        result.replace(self.layer.path)
        return self.layer.path

    def _profile(self, factor: int) -> dict[str, Any]:
        layer, grid = self.layer, self.layer.grid.coarsen(factor)
        side = max(16, min(_BLOCK_CELLS, TILE_CELLS // factor))
        return {
            "driver": "GTiff",
            "dtype": layer.dtype,
            "nodata": layer.nodata,
            "count": len(layer.bands),
            "height": grid.shape_yx[0],
            "width": grid.shape_yx[1],
            "crs": grid.crs,
            "transform": grid.transform,
            "tiled": True,
            "blockxsize": side,
            "blockysize": side,
            "interleave": "band",
            "photometric": "PALETTE" if self._has_palette else "MINISBLACK",
            "compress": "zstd",
            "zstd_level": 1,
            "bigtiff": "IF_SAFER",
        }

    @property
    def _has_palette(self) -> bool:
        return self.layer.legend is not None and len(self.layer.bands) == 1

    def _describe(self) -> None:
        layer, full = self.layer, self._files[1]
        full.update_tags(**layer.tags)
        for i, name in enumerate(layer.bands, start=1):
            full.set_band_description(i, name)
        if layer.scale != 1:
            full.scales = [layer.scale] * len(layer.bands)
        if layer.legend is None:
            return
        full.update_tags(**{f"CLASS_{c.value}": c.name for c in layer.legend.classes})
        if self._has_palette:
            colors = {c.value: (*c.rgb, 255) for c in layer.legend.classes}
            for file in self._files.values():
                file.write_colormap(1, {int(layer.nodata): (0, 0, 0, 0), **colors})

    def _join(self) -> Path:
        """A VRT of the full resolution that calls the other levels its overviews."""
        import rasterio.shutil

        vrt = self._folder / "all.vrt"
        rasterio.shutil.copy(self._folder / "level_1.tif", vrt, driver="VRT")
        document = ET.parse(vrt)
        for band in document.getroot().findall("VRTRasterBand"):
            for factor in self.factors:
                overview = ET.SubElement(band, "Overview")
                name = ET.SubElement(overview, "SourceFilename", relativeToVRT="1")
                name.text = f"level_{factor}.tif"
                ET.SubElement(overview, "SourceBand").text = band.get("band")
        document.write(vrt)
        return vrt

    def _copy(self, source: Path, target: Path) -> None:
        import rasterio.shutil

        is_float = self.layer.dtype == "float32"
        shared = {"compress": "ZSTD", "bigtiff": "IF_SAFER", "num_threads": "ALL_CPUS"}
        n_bands = len(self.layer.bands)
        if n_bands == 1 or gdal_version() >= (3, 11):
            rasterio.shutil.copy(
                source,
                target,
                driver="COG",
                blocksize=_BLOCK_CELLS,
                level=_ZSTD_LEVEL,
                # Differences of class numbers mean nothing and compress worse.
                predictor="NO" if self.layer.legend else "YES",
                overviews="FORCE_USE_EXISTING" if self.factors else "NONE",
                **({"interleave": "TILE"} if n_bands > 1 else {}),
                **shared,
            )
            return
        # The COG driver of older GDAL interleaves by pixel only: one band of many is slow to read.
        rasterio.shutil.copy(
            source,
            target,
            driver="GTiff",
            tiled="YES",
            blockxsize=_BLOCK_CELLS,
            blockysize=_BLOCK_CELLS,
            zstd_level=_ZSTD_LEVEL,
            predictor=3 if is_float else 2,
            interleave="BAND",
            photometric="MINISBLACK",
            copy_src_overviews="YES",
            **shared,
        )

    def _read_back(self, path: Path) -> None:
        import rasterio
        from rasterio.windows import Window

        for level, factor in enumerate((1, *self.factors)):
            options = {"OVERVIEW_LEVEL": level - 1} if level else {}
            with rasterio.open(path, **options) as file:
                for rows, cols in tiles(self.layer.grid.shape_yx):
                    window = Window.from_slices(*_at_level((rows, cols), factor))
                    found = zlib.crc32(file.read(window=window).tobytes())
                    if self._checksums.get((factor, rows.start, cols.start)) != found:
                        raise StoreError(
                            got=f"other values in {self.layer.path} than were written",
                            expected="a file that reads back",
                            fix="check the disk and its free space, and run again",
                        )


def tiles(shape_yx: ShapeYX) -> Iterator[Tile]:
    """Rows and columns of the tiles that layers are written in, row by row."""
    for row in range(0, shape_yx[0], TILE_CELLS):
        for col in range(0, shape_yx[1], TILE_CELLS):
            yield (
                slice(row, min(row + TILE_CELLS, shape_yx[0])),
                slice(col, min(col + TILE_CELLS, shape_yx[1])),
            )


def _at_level(tile: Tile, factor: int) -> Tile:
    rows, cols = tile
    return (
        slice(rows.start // factor, -(-rows.stop // factor)),
        slice(cols.start // factor, -(-cols.stop // factor)),
    )


def _modes(x: FloatArray, factors: tuple[int, ...]) -> list[FloatArray]:
    """The most frequent value of each coarse cell, the smallest of several; NaN of nothing."""
    per_band = []
    for band in x:
        values = np.unique(band[~np.isnan(band)])
        if values.size == 0:
            values = np.zeros(1, np.float32)
        shares = np.where(np.isnan(band), np.nan, band == values[:, None, None])
        levels = masked_means(shares.astype(np.float32), factors)
        per_band.append(
            [np.where(np.isnan(s[0]), np.float32(np.nan), values[s.argmax(axis=0)]) for s in levels]
        )
    return [np.stack(bands).astype(np.float32) for bands in zip(*per_band, strict=True)]
