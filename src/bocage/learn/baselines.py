"""What embeddings have to beat: the bands, their indices, the most frequent class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.geo import Grid
from bocage.learn.raster import Raster

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.learn.crossval import Target
    from bocage.scoring.folds import Folds
    from bocage.types import FloatArray

INDICES = {
    "NDWI": ("green", "nir"),
    "MNDWI": ("green", "swir"),
    "NDVI": ("nir", "red"),
    "NDBI": ("swir", "nir"),
}
"""Normalized differences (a - b) / (a + b): McFeeters 1996, Xu 2006, Rouse 1974, Zha 2003."""

_COLORS = {
    "sentinel2_l2a": {"green": "B03", "red": "B04", "nir": "B08", "swir": "B11"},
    "landsat": {"green": "B3", "red": "B4", "nir": "B5", "swir": "B6"},
}


def spectral_indices(x: FloatArray, features: tuple[str, ...]) -> dict[str, FloatArray]:
    """Indices of bands x [n, D], features named "sensor:band"; those whose bands are there."""
    found: dict[str, FloatArray] = {}
    column = {name: i for i, name in enumerate(features)}
    for sensor, colors in _COLORS.items():
        for name, (first, second) in INDICES.items():
            wanted = [f"{sensor}:{colors[c]}" for c in (first, second)]
            if name in found or not all(w in column for w in wanted):
                continue
            a, b = (x[:, column[w]].astype(np.float64) for w in wanted)
            total = a + b
            # Dark water after atmospheric correction can add up to zero or less.
            safe = np.where(np.abs(total) < 1e-6, 1e-6, total)
            found[name] = np.clip((a - b) / safe, -1, 1).astype(np.float32)
    return found


def otsu(values: NDArray[np.floating], n_bins: int = 256) -> float:
    """The threshold that splits values into two groups of least spread (Otsu 1979)."""
    counts, edges = np.histogram(values[np.isfinite(values)], n_bins)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    mean_below = np.cumsum(counts * centers) / np.maximum(below, 1)
    total = (counts * centers).sum()
    mean_above = (total - np.cumsum(counts * centers)) / np.maximum(above, 1)
    between = below * above * (mean_below - mean_above) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    # Between two separate groups every threshold is as good: take the middle.
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)


def predict_by_threshold(
    index: FloatArray, threshold: float, target: Target, folds: Folds
) -> NDArray[np.float64]:
    """Two classes by an index above or below a threshold; the training folds say which is which."""
    high = index > threshold
    scores = np.full((len(index), 2), np.nan)
    for train, test in folds.splits():
        right = (high[train] == target.y[train].astype(bool)).mean()
        yes = high[test] if right >= 0.5 else ~high[test]
        scores[test] = np.stack([~yes, yes], axis=1)
    return scores


def predict_most_frequent(target: Target, folds: Folds) -> NDArray[np.float64]:
    """The share of each class among the training samples, or their mean, for every test sample."""
    scores = np.full((len(target.y), max(target.n_classes, 1)), np.nan)
    for train, test in folds.splits():
        y = target.y[train]
        if target.task == "classification":
            scores[test] = np.bincount(y, minlength=target.n_classes) / len(y)
        else:
            scores[test] = y.mean(axis=0)
    return scores


@dataclass(frozen=True, kw_only=True)
class _Cells:
    """How cells of a coarse grid lie on the pixels of a fine one."""

    factor: int
    row: int
    col: int


def on_cells(raster: Raster, grid: Grid) -> Raster:
    """The raster on another grid: the mean of a cell's pixels where the grids fit.

    Otherwise the pixel at the cell's center. The same CRS is needed.
    """
    fitting = _fit(raster.grid, grid)

    def read_mean(year: int, rows: slice, cols: slice) -> FloatArray:
        assert fitting is not None
        f = fitting.factor
        part = _padded(
            raster,
            year,
            slice(rows.start * f + fitting.row, rows.stop * f + fitting.row),
            slice(cols.start * f + fitting.col, cols.stop * f + fitting.col),
        )
        d, h, w = part.shape
        cells = part.reshape(d, h // f, f, w // f, f)
        valid = np.isfinite(cells)
        n = valid.sum(axis=(2, 4))
        total = np.where(valid, cells, 0).sum(axis=(2, 4), dtype=np.float64)
        return np.where(n > 0, total / np.maximum(n, 1), np.nan).astype(np.float32)

    def read_nearest(year: int, rows: slice, cols: slice) -> FloatArray:
        part = grid.crop(rows, cols)
        t = raster.grid.transform
        row = np.floor((part.y - t.f) / t.e).astype(int)
        col = np.floor((part.x - t.c) / t.a).astype(int)
        read = _padded(raster, year, slice(row[0], row[-1] + 1), slice(col[0], col[-1] + 1))
        return read[:, row - row[0]][:, :, col - col[0]]

    return replace(raster, grid=grid, read=read_nearest if fitting is None else read_mean)


def _fit(fine: Grid, coarse: Grid) -> _Cells | None:
    if fine.crs != coarse.crs:
        return None
    factor = coarse.transform.a / fine.transform.a
    col, row = ~fine.transform @ (coarse.transform.c, coarse.transform.f)
    whole = [round(v) for v in (factor, row, col)]
    if whole[0] < 1 or any(
        abs(a - b) > 1e-3 for a, b in zip((factor, row, col), whole, strict=True)
    ):
        return None
    return _Cells(factor=whole[0], row=whole[1], col=whole[2])


def _padded(raster: Raster, year: int, rows: slice, cols: slice) -> FloatArray:
    """A rectangle that may reach over the edge, NaN there."""
    height, width = raster.grid.shape_yx
    top, bottom = max(rows.start, 0), min(rows.stop, height)
    left, right = max(cols.start, 0), min(cols.stop, width)
    shape = (len(raster.features), rows.stop - rows.start, cols.stop - cols.start)
    found = np.full(shape, np.nan, np.float32)
    if top < bottom and left < right:
        found[:, top - rows.start : bottom - rows.start, left - cols.start : right - cols.start] = (
            raster.read(year, slice(top, bottom), slice(left, right))
        )
    return found


def usable_columns(x: FloatArray) -> NDArray[Any]:
    """Features that most rows have: a band that a source lacks is NaN everywhere."""
    return np.flatnonzero(np.isfinite(x).mean(axis=0) > 0.5)
