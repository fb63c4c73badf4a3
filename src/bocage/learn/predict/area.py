"""How much ground a class covers: true areas of cells, and the table of a map.

Cells of a UTM map differ from their nominal size by up to 0.1 %, those of Web Mercator at 60
degrees by a factor of four, and degrees are no lengths at all. So areas are measured in Lambert's
equal-area projection around the map's middle, row by row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bocage.embeddings.atomic import write_file
from bocage.geo import Grid
from bocage.learn.predict.legend import Legend


class CellAreas:
    """Areas of the cells of a grid, in km2."""

    def __init__(self, grid: Grid) -> None:
        from rasterio.warp import transform

        self.grid = grid
        west, south, east, north = grid.bbox
        lon, lat = transform(grid.crs, "EPSG:4326", [(west + east) / 2], [(south + north) / 2])
        self.equal_area = (
            f"+proj=laea +lat_0={lat[0]:.6f} +lon_0={lon[0]:.6f} +datum=WGS84 +units=m +no_defs"
        )

    def of_rows(self, rows: slice, cols: slice) -> NDArray[np.float64]:
        """Area [rows] of the cell of each row in the middle column of a tile, in km2."""
        from rasterio.warp import transform

        middle = (cols.start + cols.stop) // 2
        edges = np.arange(rows.start, rows.stop + 1)
        corners = [self.grid.transform @ (middle + side, 0) for side in (0, 1)]
        y = self.grid.transform.f + self.grid.transform.e * edges
        sides = []
        for x, _ in corners:
            projected = transform(
                self.grid.crs, self.equal_area, np.full(len(y), x).tolist(), y.tolist()
            )
            sides.append(np.asarray(projected, np.float64))  # [2, rows + 1]
        left, right = sides
        # The shoelace formula over upper left, upper right, lower right, lower left.
        ring = [left[:, :-1], right[:, :-1], right[:, 1:], left[:, 1:]]
        doubled = sum(
            a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)
        )
        return np.asarray(np.abs(doubled) / 2e6, np.float64)


@dataclass(kw_only=True)
class AreaTable:
    """Cells and ground of each class, summed tile by tile."""

    legend: Legend
    areas: CellAreas
    n_cells: dict[int, int] = field(default_factory=dict)
    km2: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in self.legend.values:
            self.n_cells.setdefault(value, 0)
            self.km2.setdefault(value, 0.0)

    def add(self, rows: slice, cols: slice, codes: NDArray[Any]) -> None:
        """Count a tile of class values [h, w]; other values (nodata) do not count."""
        area = self.areas.of_rows(rows, cols)
        for value in self.legend.values:
            per_row = (codes == value).sum(axis=1)
            self.n_cells[value] += int(per_row.sum())
            self.km2[value] += float(per_row @ area)

    def rows(self, intervals: Mapping[int, Sequence[float]] | None = None) -> list[dict[str, Any]]:
        """One row per class: value, class, cells, km2, share of the map.

        `intervals` adds estimate, low and high in km2 of each class by position, as km2_adjusted,
        km2_low, km2_high.
        """
        total_km2 = sum(self.km2.values())
        found = []
        for k, c in enumerate(self.legend.classes):
            row: dict[str, Any] = {
                "value": c.value,
                "class": c.name,
                "cells": self.n_cells[c.value],
                "km2": round(self.km2[c.value], 6),
                "share": round(self.km2[c.value] / total_km2, 6) if total_km2 else 0.0,
            }
            if intervals is not None:
                for name, km2 in zip(_INTERVAL_COLUMNS, intervals[k], strict=True):
                    row[name] = round(km2, 6)
            found.append(row)
        return found


_INTERVAL_COLUMNS = ("km2_adjusted", "km2_low", "km2_high")


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as CSV in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())
    return path
