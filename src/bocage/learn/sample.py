"""Labels laid on Embeddings or a Stack: one row per cell that has both.

First the cells are found (rows, columns, values: small), then the features are read block by block
into one array of the final size. So memory stays near the size of the samples, however large the
map is.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.learn.cells import Cells, locate
from bocage.learn.classes import LabelClass
from bocage.learn.labels import Task
from bocage.learn.raster import BLOCK_CELLS, Raster, raster_of

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from bocage.learn.labels import Labels
    from bocage.learn.mask import Mask
    from bocage.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Features and targets of the same cells."""

    x: FloatArray
    """[n, D], finite."""

    y: NDArray[Any]
    """Index into `classes` int64 [n]; bool [n, C] for multilabel; float32 [n] numbers."""

    xy: NDArray[np.float64]
    """Cell centers [n, 2] in `crs`."""

    crs: str
    task: Task
    classes: tuple[LabelClass, ...] = ()
    group: NDArray[np.int64]
    """Which shape a cell comes from [n]; cells of one shape are not independent."""

    year: NDArray[np.int32]
    """Year of the embedding [n]; 0 is unknown."""

    target: str = "label"
    features: tuple[str, ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)
    """Of the embeddings: model, patch_size, weights_id, codec."""

    n_dropped: dict[str, int] = field(default_factory=dict)
    """Why labels gave no sample, and how many: outside, nodata, repeated, conflicting."""

    def __len__(self) -> int:
        return len(self.x)

    @property
    def lonlat(self) -> NDArray[np.float64]:
        """Cell centers in degrees [n, 2]."""
        from rasterio.warp import transform

        lon, lat = transform(self.crs, "EPSG:4326", self.xy[:, 0], self.xy[:, 1])
        return np.stack([lon, lat], axis=1)

    def describe(self) -> str:
        """How many samples of what, and what was left out."""
        if self.task == "regression":
            what = f"{self.target} {self.y.min():.6g} to {self.y.max():.6g}"
        else:
            counts = (
                np.bincount(self.y, minlength=len(self.classes))
                if self.task == "classification"
                else self.y.sum(axis=0)
            )
            what = ", ".join(f"{c.name} {n}" for c, n in zip(self.classes, counts, strict=True))
        left_out = ", ".join(f"{n} {why}" for why, n in self.n_dropped.items() if n)
        return (
            f"samples  {len(self)} cells x {self.x.shape[1]} features ({what})"
            f"{'; left out: ' + left_out if left_out else ''}"
        )


def sample(
    labels: Labels | Mask,
    source: xr.DataArray | xr.Dataset | Raster,
    *,
    year: int | None = None,
    min_share: float | None = None,
    max_samples: int | None = None,
    seed: int = 0,
) -> Samples:
    """Take the features of every labelled cell.

    A point takes the cell it lies in, a polygon every cell whose center it holds, a line every cell
    it touches, a raster mask the most frequent value (or the mean number) of each cell. A cell
    labelled twice with the same value counts once; with several values it is left out.

    Args:
        labels: From `read_labels` or `read_mask`.
        source: Embeddings, or a Stack, whose features are the medians of its dates per band.
        year: The year of the embeddings, if the labels do not say it.
        min_share: Polygons: take the cells that one label covers by at least this share, instead
            of those whose center it holds.
        max_samples: Keep at most this many cells, drawn at random with all classes represented.
        seed: Of the draw.

    Raises:
        InputError: No label on the map, or only on cells without data.
    """
    raster = raster_of(source)
    cells, dropped = locate(labels, raster, year=year, min_share=min_share)
    if max_samples is not None:
        cells = _draw(cells, labels.task, max_samples, seed)
    x, kept = read_features(raster, cells)
    dropped["on cells without data"] = int((~kept).sum())
    if not kept.any():
        raise InputError(
            got=f"{len(kept)} labelled cells, all of them without data",
            expected="labels where the map has data",
            fix="check clouds, nodata and the year of the map, or move the labels",
        )
    cells = cells.take(kept)
    _warn(dropped)
    t = raster.grid.transform
    xy = np.stack([t.c + (cells.col + 0.5) * t.a, t.f + (cells.row + 0.5) * t.e], axis=1)
    return Samples(
        x=x,
        y=cells.value,
        xy=xy,
        crs=raster.grid.crs,
        task=labels.task,
        classes=labels.classes,
        group=cells.group,
        year=np.array(raster.years, np.int32)[cells.year_index],
        target=labels.target,
        features=raster.features,
        attrs=raster.attrs,
        n_dropped=dropped,
    )


def read_features(
    raster: Raster, cells: Cells, *, complete: bool = True
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Features of the cells that have data [n_kept, D], and which those are [n].

    With `complete` off, all cells are given, with NaN where there is no data.
    """
    width = -(-raster.grid.shape_yx[1] // BLOCK_CELLS)
    block = (cells.row // BLOCK_CELLS) * width + cells.col // BLOCK_CELLS
    key = cells.year_index * (width * (raster.grid.shape_yx[0] // BLOCK_CELLS + 1)) + block
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    x = np.empty((len(order), len(raster.features)), np.float32)
    kept = np.zeros(len(order), bool)
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        rows = order[start:stop]
        top, left = cells.row[rows].min(), cells.col[rows].min()
        part = raster.read(
            int(cells.year_index[rows[0]]),
            slice(int(top), int(cells.row[rows].max()) + 1),
            slice(int(left), int(cells.col[rows].max()) + 1),
        )
        x[rows] = part[:, cells.row[rows] - top, cells.col[rows] - left].T
        kept[rows] = np.isfinite(x[rows]).all(axis=1)
    if kept.all() or not complete:
        return x, kept
    return x[kept], kept


def _draw(cells: Cells, task: Task, n: int, seed: int) -> Cells:
    if n < 2:
        raise ConfigError(
            got=f"max_samples={n}", expected="at least 2", fix="leave it out to take all"
        )
    if len(cells.row) <= n:
        return cells
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(cells.row))
    if task == "classification":
        # One of each class first, so that a rare class is not lost; then as they come.
        _, first = np.unique(cells.value[order], return_index=True)
        rest = np.setdiff1d(np.arange(len(order)), first, assume_unique=True)
        order = order[np.concatenate([first, rest])]
    keep = np.zeros(len(order), bool)
    keep[order[:n]] = True
    return cells.take(keep)


def _warn(dropped: dict[str, int]) -> None:
    told = [f"{n} {why}" for why, n in dropped.items() if n and why != "repeated"]
    if told:
        warnings.warn(
            f"labels left out: {', '.join(told)}; the scores do not know them",
            BocageWarning,
            stacklevel=3,
        )
