"""A georeferenced grid of pixels: CRS, transform, shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from bocage.errors import InputError
from bocage.types import BboxWSEN, ShapeYX


@dataclass(frozen=True, kw_only=True)
class Grid:
    """North-up pixels on a plane: what a raster's header says."""

    crs: str
    """EPSG code such as "EPSG:32618", or WKT where there is none."""

    transform: Affine
    """Pixel to CRS units; no rotation, x grows to the right and y falls downwards."""

    shape_yx: ShapeYX
    """Rows, columns."""

    def __post_init__(self) -> None:
        t = self.transform
        if t.b or t.d or t.a <= 0 or t.e >= 0:
            raise InputError(
                got=f"a rotated or flipped grid with transform {tuple(t)[:6]}",
                expected="a north-up grid (x grows to the right, y falls downwards)",
                fix="warp the image to a north-up grid first, for example with gdalwarp",
            )
        if min(self.shape_yx) < 1:
            raise InputError(
                got=f"an empty grid of {self.shape_yx[0]} x {self.shape_yx[1]} pixels",
                expected="at least one pixel",
                fix="check that the area of interest meets the image",
            )

    @property
    def resolution(self) -> float:
        """Side of a pixel in CRS units (the x side; pixels here are square)."""
        return float(self.transform.a)

    @property
    def bbox(self) -> BboxWSEN:
        """Outer edges west, south, east, north in CRS units."""
        rows, cols = self.shape_yx
        west, north = self.transform @ (0, 0)
        east, south = self.transform @ (cols, rows)
        return float(west), float(south), float(east), float(north)

    @property
    def x(self) -> NDArray[np.float64]:
        """Pixel centres along x."""
        return _centers(self.transform.c, self.transform.a, self.shape_yx[1])

    @property
    def y(self) -> NDArray[np.float64]:
        """Pixel centres along y, falling."""
        return _centers(self.transform.f, self.transform.e, self.shape_yx[0])

    def crop(self, rows: slice, cols: slice) -> Grid:
        """The part of this grid in the given pixel ranges (both ends given)."""
        return Grid(
            crs=self.crs,
            transform=self.transform @ Affine.translation(cols.start, rows.start),
            shape_yx=(rows.stop - rows.start, cols.stop - cols.start),
        )

    def coarsen(self, factor: int) -> Grid:
        """The grid of cells of factor x factor pixels; a partial last cell counts as a cell."""
        rows, cols = self.shape_yx
        return Grid(
            crs=self.crs,
            transform=self.transform @ Affine.scale(factor),
            shape_yx=(-(-rows // factor), -(-cols // factor)),
        )


def _centers(edge: float, step: float, n: int) -> NDArray[np.float64]:
    return np.asarray(edge + (np.arange(n) + 0.5) * step, dtype=np.float64)
