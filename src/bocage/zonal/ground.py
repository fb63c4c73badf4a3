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
        from pyproj import CRS, Transformer

        self.grid = grid
        crs = CRS.from_user_input(grid.crs)
        self._to_plane = None
        if not crs.is_geographic:
            plane = CellAreas(grid).equal_area
            self._to_plane = Transformer.from_crs(crs, plane, always_xy=True)

    def of_tile(self, rows: slice, cols: slice) -> NDArray[np.float64]:
        """Area [h * w] of each cell of a tile, row by row, in hectares."""
        if self._to_plane is None:
            return np.repeat(_between_parallels(self.grid, rows), cols.stop - cols.start)
        row_nodes, row_weights = _hats(rows)
        col_nodes, col_weights = _hats(cols)
        at_nodes = self._hectares(row_nodes[:, None], col_nodes[None, :])
        return np.asarray((row_weights @ at_nodes @ col_weights.T).ravel())

    def _hectares(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.float64]:
        """Area of the cells at rows and columns, whose sides are straight in the plane."""
        assert self._to_plane is not None
        rows = np.stack(np.broadcast_arrays(row, row, row + 1, row + 1 + 0 * col))
        cols = np.stack(np.broadcast_arrays(col, col + 1, col + 1, col + 0 * row))
        x, y = self._to_plane.transform(*(self.grid.transform @ (cols, rows)))
        nx, ny = np.roll(x, -1, axis=0), np.roll(y, -1, axis=0)
        return np.asarray(np.abs((x * ny - nx * y).sum(axis=0)) / 2e4)


def _hats(part: slice) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nodes around a range of cells, and their weights [cells, nodes] at each cell."""
    first = part.start // _STEP_CELLS
    last = (part.stop - 1) // _STEP_CELLS + 1
    nodes = np.arange(first, last + 1, dtype=np.int64)
    apart = np.arange(part.start, part.stop)[:, None] / _STEP_CELLS - nodes
    return nodes * _STEP_CELLS, np.maximum(0, 1 - np.abs(apart))


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
