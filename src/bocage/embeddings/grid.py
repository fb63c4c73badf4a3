"""What an embedding raster is: grid, years, dimensions, codec, shards, and where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from affine import Affine

from bocage.errors import ConfigError, InputError
from bocage.geo import Grid
from bocage.types import ShapeYX

LAYOUTS = ("utm_zones", "single")
"""One group per UTM zone as in the public archives, or one array in any CRS at the root."""

CODECS = ("signed_power", "float32")
"""How values are stored: int8 with nodata -128, or float32 with NaN."""

PUBLIC_SHARD_CELLS = 2048
"""Shard side of the public OlmoEarth archive at patch size 1."""

# 256-px inner chunks: 64 px was tried for the public archive in 2026-10 and taken back.
_INNER_CELLS = 256
_INNER_BANDS = 64

LEAST_INNER_CELLS = 64
"""Smaller inner chunks cost more requests than they save bytes."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingGrid:
    """Everything a store of embeddings says about itself, fixed before the first value."""

    crs: str
    """CRS of the map, "EPSG:32618"; a Zarr store needs WGS 84 UTM, a COG takes any."""

    transform: Affine
    """Cell to CRS units, north up; one cell is patch_size pixels wide."""

    shape_yx: ShapeYX
    """Cells: rows, columns."""

    dims: int
    """Length of an embedding."""

    years: tuple[int, ...] = (0,)
    """The time axis; year 0 stands for an unknown year."""

    codec: str = "signed_power"
    """One of CODECS."""

    layout: str = "utm_zones"
    """One of LAYOUTS; "single" keeps any CRS and suits a store that becomes a COG."""

    value_scale: float = 1.0
    """int8 codes hold values divided by this, because the rule of the public archive clips at 1;
    our reader multiplies again, others see vectors of the same direction. float32 ignores it."""

    shard_cells: int = PUBLIC_SHARD_CELLS
    """Side of a shard, which is the unit of writing, in cells."""

    model: str = ""
    """Our model name, a Hugging Face id, or a URL."""

    patch_size: int = 1
    """Input pixels per cell side."""

    gsd_m: float | None = None
    """Ground size of a cell in metres; by default from the transform."""

    sensors: tuple[str, ...] = ()
    """Sensors that went in, as in bocage.sensors; recorded as source data."""

    attrs: Mapping[str, Any] = field(default_factory=dict)
    """More provenance (dates, weights_id, input ids): JSON values, stored under "bocage"."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ConfigError(
                got=f"codec {self.codec!r}",
                expected=f"one of {', '.join(CODECS)}",
                fix="use signed_power for int8 or float32 for exact values",
            )
        if self.layout not in LAYOUTS:
            raise ConfigError(
                got=f"layout {self.layout!r}",
                expected=f"one of {', '.join(LAYOUTS)}",
                fix="use utm_zones",
            )
        if not (math.isfinite(self.value_scale) and self.value_scale > 0):
            raise ConfigError(
                got=f"value_scale {self.value_scale}",
                expected="a number above 0",
                fix="use the model's value_scale(), or 1",
            )
        if self.dims < 1 or self.patch_size < 1 or not self.years:
            raise InputError(
                got=f"dims {self.dims}, patch_size {self.patch_size}, years {self.years}",
                expected="positive numbers and at least one year",
                fix="check the model's output and the dates of the stack",
            )
        if len(set(self.years)) != len(self.years):
            raise InputError(
                got=f"years {self.years}",
                expected="each year once",
                fix="merge the dates of a year into one map",
            )
        if not is_shard_side(self.shard_cells):
            raise ConfigError(
                got=f"shard_cells {self.shard_cells}",
                expected=f"a number up to {_INNER_CELLS} or a multiple of {LEAST_INNER_CELLS}",
                fix="use a power of two such as 256, 512 or 2048",
            )
        try:
            json.dumps(dict(self.attrs))
        except TypeError as error:
            raise InputError(
                got=f"attrs that JSON cannot hold ({error})",
                expected="texts, numbers, lists and dictionaries of them",
                fix="convert numpy values with float(), int() or .tolist()",
            ) from error
        _ = self.grid  # refuses rotated, flipped and empty grids

    @property
    def grid(self) -> Grid:
        """CRS, transform and shape alone."""
        return Grid(crs=self.crs, transform=self.transform, shape_yx=self.shape_yx)

    @property
    def dtype(self) -> str:
        """Type on disk: int8 or float32."""
        return "int8" if self.codec == "signed_power" else "float32"

    @property
    def nodata(self) -> float:
        """Nodata on disk: -128 or NaN."""
        return -128 if self.codec == "signed_power" else math.nan

    @property
    def ground_resolution_m(self) -> float:
        """gsd_m, or the cell side of the transform."""
        return float(self.gsd_m if self.gsd_m is not None else self.transform.a)

    @property
    def inner_cells(self) -> int:
        """Side of an inner chunk, the unit of reading: a divisor of the shard side, at most 256."""
        return _largest_divisor(self.shard_cells, _INNER_CELLS)

    @property
    def inner_bands(self) -> int:
        """Bands of an inner chunk: a divisor of dims, at most 64, so dims=64 reads half of 128."""
        return _largest_divisor(self.dims, _INNER_BANDS)

    @property
    def shards_yx(self) -> ShapeYX:
        """Shard rows, shard columns."""
        rows, cols = self.shape_yx
        return -(-rows // self.shard_cells), -(-cols // self.shard_cells)

    def shard_shape(self, row: int, col: int) -> ShapeYX:
        """Cells of one shard that lie on the map; smaller in the last row and column."""
        n_rows, n_cols = self.shards_yx
        if not (0 <= row < n_rows and 0 <= col < n_cols):
            raise InputError(
                got=f"shard ({row}, {col})",
                expected=f"a shard within {n_rows} x {n_cols}",
                fix="count shards of shard_cells from the upper left corner",
            )
        side = self.shard_cells
        return (
            min(side, self.shape_yx[0] - row * side),
            min(side, self.shape_yx[1] - col * side),
        )

    def year_index(self, year: int) -> int:
        """Position of a year on the time axis."""
        if year not in self.years:
            raise InputError(
                got=f"year {year}",
                expected=f"one of {list(self.years)}",
                fix="create the store with all years that will be written",
            )
        return self.years.index(year)


def is_shard_side(cells: int) -> bool:
    """Whether inner chunks of a useful size divide a shard of so many cells a side."""
    if cells <= _INNER_CELLS:
        return cells > 0
    return _largest_divisor(cells, _INNER_CELLS) >= LEAST_INNER_CELLS


def _largest_divisor(n: int, limit: int) -> int:
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)
