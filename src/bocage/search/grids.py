"""Grids of embeddings as the source of an index: stores and COGs of any CRS, zone and year."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bocage.embeddings.codecs.tables import code_column
from bocage.errors import BocageWarning, InputError
from bocage.search.layout import cell_polygons
from bocage.search.sources import BATCH_ROWS, Batch, year_days

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.embeddings.lazy_raster import LazyRaster
    from bocage.geo import Grid
    from bocage.types import PathLike

SOURCE = "source"
"""Column that names the grid of a row, in an index of several."""


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """One grid of several."""

    raster: LazyRaster
    name: str
    """Address, with the UTM zone where a store has several."""

    def parts(self) -> Iterator[tuple[int, slice, slice]]:
        """Squares of at most 256 cells: 64 Ki vectors, 256 MB at 1,024 dimensions."""
        years, dims, n_rows, n_cols = self.raster.shape
        side = min(256, *self.raster.chunk_yx) if dims <= 512 else 128
        for year in range(years):
            for row in range(0, n_rows, side):
                for col in range(0, n_cols, side):
                    yield (
                        year,
                        slice(row, min(row + side, n_rows)),
                        slice(col, min(col + side, n_cols)),
                    )


class GridSource:
    """Grids of embeddings: each cell with data is a row, its outline the geometry.

    Grids may lie in several UTM zones, overlap, and be of several years; with more than one the
    column ``source`` names the grid of each row. Their model, weights and patch size must agree.
    """

    def __init__(self, uris: Sequence[PathLike]) -> None:
        self._grids = [grid for uri in uris for grid in _open_grids(str(uri))]
        _check_alike(self._grids)
        self.n_rows = sum(
            years * rows * cols for years, _, rows, cols in (g.raster.shape for g in self._grids)
        )
        self.model = str(self._grids[0].raster.attrs.get("model", ""))

    def batches(self) -> Iterator[Batch]:
        """Every row once, in order."""
        for grid in self._grids:
            for part in grid.parts():
                yield from self._read(grid, *part)

    def sample(self, n_rows: int, seed: int) -> Iterator[Batch]:
        """Squares of the grids drawn at random."""
        parts = [(grid, part) for grid in self._grids for part in grid.parts()]
        found = 0
        for i in np.random.default_rng(seed).permutation(len(parts)):
            grid, part = parts[i]
            for batch in self._read(grid, *part):
                yield batch
                found += int(np.isfinite(batch.x[:, 0]).sum())
            if found >= n_rows:
                return

    def _read(self, grid: _Grid, year: int, rows: slice, cols: slice) -> Iterator[Batch]:
        import pyarrow as pa

        values = grid.raster[year, :, rows, cols]
        x = values.reshape(values.shape[0], -1).T
        valid = ~np.isnan(x[:, 0])
        if not valid.any():
            return
        corners = _corners(grid.raster.grid, rows, cols)[valid]
        bbox = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        calendar = grid.raster.years[year]
        days = year_days(calendar) if calendar else 0
        cell_rows, cell_cols = np.mgrid[rows, cols].reshape(2, -1)[:, valid].astype(np.int32)
        n = int(valid.sum())
        for start in range(0, n, BATCH_ROWS):
            part = slice(start, min(start + BATCH_ROWS, n))
            columns = {"grid_row": cell_rows[part], "grid_col": cell_cols[part]}
            if len(self._grids) > 1:
                columns[SOURCE] = pa.repeat(grid.name, part.stop - part.start)
            yield Batch(
                x=np.ascontiguousarray(x[valid][part]),
                bbox=bbox[part],
                geometry=code_column(cell_polygons(corners[part])).cast(pa.binary()),
                date=np.full(part.stop - part.start, days, np.int32),
                columns=pa.table(columns),
                where=f"{grid.name}, from row {rows.start}, column {cols.start}",
            )


def _corners(grid: Grid, rows: slice, cols: slice) -> NDArray[np.float64]:
    """Corners [N, 4, 2] in lon, lat, counterclockwise from the lower left."""
    from pyproj import Transformer

    t = grid.transform
    row, col = np.mgrid[rows.start : rows.stop + 1, cols.start : cols.stop + 1]
    x, y = t.a * col + t.b * row + t.c, t.d * col + t.e * row + t.f
    to_lonlat = Transformer.from_crs(grid.crs, "OGC:CRS84", always_xy=True)
    lon, lat = to_lonlat.transform(x, y)
    at = np.stack([lon, lat], axis=-1)
    square = np.stack([at[1:, :-1], at[1:, 1:], at[:-1, 1:], at[:-1, :-1]], axis=2)
    return _cut_at_antimeridian(square.reshape(-1, 4, 2))


def _cut_at_antimeridian(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cells across 180 degrees end there, on the side of their center: none goes round the world.

    Such a cell keeps the larger part of its outline; GeoJSON and bounds could not say the whole.
    """
    lon = corners[..., 0]
    across = np.ptp(lon, axis=1) > 180
    if across.any():
        turned = lon[across] % 360
        is_east = turned.mean(axis=1, keepdims=True) <= 180
        kept = np.where(is_east, np.minimum(turned, 180), np.maximum(turned, 180) - 360)
        corners = corners.copy()
        corners[across, :, 0] = kept
    return corners


def _open_grids(uri: str) -> list[_Grid]:
    """The grid of an address; of a store of several UTM zones one for each."""
    from bocage.embeddings.open import open_raster
    from bocage.embeddings.zarr_layout import ARRAY, is_zarr, open_root, zone_names

    if is_zarr(uri) and ("://" in uri or Path(uri).exists()):
        root = open_root(uri)
        zones = [] if ARRAY in root else zone_names(root)
        if len(zones) > 1:
            return [
                _Grid(raster=open_raster(uri, zone=zone), name=f"{uri} ({zone})") for zone in zones
            ]
    return [_Grid(raster=open_raster(uri), name=uri)]


def _check_alike(grids: Sequence[_Grid]) -> None:
    """Refuse vectors that have nothing in common, and a grid given twice; warn of two codecs."""
    first, names = grids[0], [grid.name for grid in grids]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            got=f"{twice} twice", expected="each grid once", fix="leave one of the two out"
        )
    for other in grids[1:]:
        for key, words in (
            ("model", "model"),
            ("weights_id", "weights"),
            ("patch_size", "patch size"),
        ):
            a, b = (grid.raster.attrs.get(key) for grid in (first, other))
            if a not in (None, "") and b not in (None, "") and str(a) != str(b):
                raise InputError(
                    got=f"{words} {a} in {first.name} and {b} in {other.name}",
                    expected=f"one {words} in an index",
                    fix="index them apart; other vectors have nothing in common",
                )
        a, b = (grid.raster.shape[1] for grid in (first, other))
        if a != b:
            raise InputError(
                got=f"{a} dims in {first.name} and {b} in {other.name}",
                expected="vectors of one length in an index",
                fix="index them apart",
            )
    codecs = sorted({str(grid.raster.attrs.get("codec")) for grid in grids})
    if len(codecs) > 1:
        warnings.warn(
            f"grids stored as {' and as '.join(codecs)} in one index: vectors rounded in two ways "
            "are a little less alike than the ground is",
            BocageWarning,
            stacklevel=4,
        )
