"""True areas of the cells of a map, in hectares.

Cells of a UTM map differ from their nominal size by up to 0.1 %, those of Web Mercator at 60
degrees by a factor of four. Areas are measured in Lambert's equal-area projection around the map's
middle, at cells that stand in fixed places of the map and linearly between them, so that a cell's
area does not depend on the tile in which it is read. Cells between two parallels have a closed
form, which holds for maps of the whole earth too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bocage.learn.predict.area import CellAreas

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.geo import Grid

_STEP_CELLS = 64
_AXIS_M, _FLATTENING = 6_378_137.0, 1 / 298.257223563


class Ground:
    """Areas of the cells of a grid."""

    def __init__(self, grid: Grid) -> None:
        from rasterio.crs import CRS

        self.grid = grid
        self.is_geographic = bool(CRS.from_user_input(grid.crs).is_geographic)
        self._areas = None if self.is_geographic else CellAreas(grid)

    def of_tile(self, rows: slice, cols: slice) -> NDArray[np.float64]:
        """Area [h * w] of each cell of a tile, row by row, in hectares."""
        if self._areas is None:
            return np.repeat(_between_parallels(self.grid, rows), cols.stop - cols.start)
        row_nodes, row_share = _between(rows)
        col_nodes, col_share = _between(cols)
        at = np.stack([self._column(row_nodes, col) for col in col_nodes.tolist()], axis=1)
        i, j = row_share.astype(np.int64), col_share.astype(np.int64)
        down, right = (row_share - i)[:, None], col_share - j
        upper = at[i][:, j] * (1 - right) + at[i][:, j + 1] * right
        lower = at[i + 1][:, j] * (1 - right) + at[i + 1][:, j + 1] * right
        return np.asarray((upper * (1 - down) + lower * down).ravel())

    def _column(self, row_nodes: NDArray[np.int64], col: int) -> NDArray[np.float64]:
        """Areas of the cells at some rows of one column, in hectares."""
        assert self._areas is not None
        first, last = int(row_nodes[0]), int(row_nodes[-1])
        # A slice of no width has its middle at the column itself.
        every = self._areas.of_rows(slice(first, last + 1), slice(col, col))
        return np.asarray(every[row_nodes - first] * 100)


def _between(part: slice) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nodes around a range of cells, and where each cell lies between them."""
    first = part.start // _STEP_CELLS
    last = (part.stop - 1) // _STEP_CELLS + 1
    nodes = np.arange(first, last + 1, dtype=np.int64) * _STEP_CELLS
    return nodes, np.arange(part.start, part.stop) / _STEP_CELLS - first


def _between_parallels(grid: Grid, rows: slice) -> NDArray[np.float64]:
    """Area [h] of a cell of each row of a grid in degrees, on the ellipsoid (Snyder 1987, 3-12)."""
    t = grid.transform
    lat = np.clip(t.f + t.e * np.arange(rows.start, rows.stop + 1), -90, 90)
    sine = np.sin(np.radians(lat))
    e = np.sqrt(_FLATTENING * (2 - _FLATTENING))
    q = (1 - e**2) * (
        sine / (1 - (e * sine) ** 2) - np.log((1 - e * sine) / (1 + e * sine)) / (2 * e)
    )
    square_meters = _AXIS_M**2 / 2 * np.radians(t.a) * np.abs(np.diff(q))
    return np.asarray(square_meters / 1e4)
