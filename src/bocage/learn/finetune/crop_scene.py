"""A scene and labels on it, cut into labelled crops."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bocage.errors import BocageWarning, ConfigError, InputError
from bocage.learn.cells import Cells, locate
from bocage.learn.finetune.labelled_arrays import make_training_set
from bocage.learn.finetune.task import IGNORE
from bocage.learn.finetune.training_set import TrainingSet
from bocage.learn.labels import Labels
from bocage.learn.mask import Mask
from bocage.learn.raster import raster_of

if TYPE_CHECKING:
    import xarray as xr

    from bocage.geo import Grid


def crop_scene(
    stack: xr.Dataset,
    labels: Labels | Mask,
    *,
    task: str | None = None,
    crop_px: int = 32,
    split: str = "spatial",
    min_valid: float = 0.5,
    seed: int = 0,
) -> TrainingSet:
    """Labelled crops of a Stack.

    ``task`` "segmentation" (default for classes): squares of ``crop_px`` side by side wherever
    there is a labelled pixel; pixels without a label are ignored. "regression": the same with
    numbers. "classification": one square around the middle of each labelled shape. Crops of which
    less than ``min_valid`` has data are left out with a warning that says how many.

    Raises InputError if labels lie outside the scene, or if no crop is left.
    """
    if isinstance(labels, Labels) and labels.task == "multilabel":
        raise ConfigError(
            got="several labels per shape",
            expected="one class or one number",
            fix="make the training set with make_training_set(task='multilabel')",
        )
    task = task or ("segmentation" if labels.task == "classification" else "regression")
    if (task == "regression") != (labels.task == "regression"):
        raise ConfigError(
            got=f"--task {task} with labels for {labels.task}",
            expected="classes for classification and segmentation, numbers for regression",
            fix="leave out --task, or name another column with --label",
        )
    if crop_px < 1:
        raise ConfigError(got=f"crop {crop_px}", expected="pixels, from 1", fix="correct --crop")
    raster = raster_of(stack)
    cells, dropped = locate(labels, raster, year=None, min_share=None)
    lost = [f"{n} {why}" for why, n in dropped.items() if n and why != "repeated"]
    if lost:
        warnings.warn(
            f"left out of the labels: {', '.join(lost)}; {len(cells.row)} labelled pixels remain",
            BocageWarning,
            stacklevel=2,
        )
    corners = (
        _around_shapes(cells, raster.grid.shape_yx, crop_px)
        if task == "classification"
        else _side_by_side(cells, raster.grid.shape_yx, crop_px)
    )
    return _read(stack, labels, list(corners), task, crop_px, split, min_valid, seed)


_Corner = tuple[int, int, NDArray[Any]]
"""First row and column of a crop, and its label or labels."""


def _side_by_side(cells: Cells, shape_yx: tuple[int, int], size: int) -> Iterator[_Corner]:
    """Squares of a checkerboard that hold a label."""
    numbers = cells.value.dtype.kind == "f"
    square = (cells.row // size) * (shape_yx[1] // size + 1) + cells.col // size
    order = np.argsort(square, kind="stable")
    starts = np.flatnonzero(np.diff(square[order], prepend=-1))
    for part in np.split(order, starts[1:]):
        row = int(cells.row[part[0]]) // size * size
        col = int(cells.col[part[0]]) // size * size
        y = np.full((size, size), np.nan, np.float32) if numbers else np.full((size, size), IGNORE)
        y[cells.row[part] - row, cells.col[part] - col] = cells.value[part]
        yield row, col, y


def _around_shapes(cells: Cells, shape_yx: tuple[int, int], size: int) -> Iterator[_Corner]:
    """One square per shape, moved into the scene where it would leave it."""
    for group in np.unique(cells.group):
        part = np.flatnonzero(cells.group == group)
        middle = [int(np.median(v[part])) - size // 2 for v in (cells.row, cells.col)]
        row, col = (max(0, min(m, n - size)) for m, n in zip(middle, shape_yx, strict=True))
        yield row, col, np.asarray(cells.value[part[0]])


def _read(  # noqa: PLR0917 - one call
    stack: xr.Dataset,
    labels: Labels | Mask,
    corners: list[_Corner],
    task: str,
    size: int,
    split: str,
    min_valid: float,
    seed: int,
) -> TrainingSet:
    from bocage.imagery import read_window, stack_grid, timestamps

    found: dict[str, list[NDArray[np.float32]]] = {}
    kept: list[_Corner] = []
    stamps: NDArray[np.int64] | None = None
    for row, col, y in corners:
        window = read_window(stack, slice(row, row + size), slice(col, col + size))
        seen = np.zeros((size, size), bool)
        for x in window.values.values():
            seen |= np.isfinite(x).any(axis=(0, 1))
        if seen.mean() < min_valid:
            continue
        for name, x in window.values.items():
            found.setdefault(name, []).append(np.moveaxis(x, 1, 3))  # [T, H, W, C]
        kept.append((row, col, y))
        stamps = timestamps(window.dates)
    n_lost = len(corners) - len(kept)
    if not kept or stamps is None:
        raise InputError(
            got=f"{len(corners)} labelled crops, all with less than {min_valid:.0%} of data",
            expected="labels where the scene has data",
            fix="check the scene's dates and cloud mask",
        )
    if n_lost:
        warnings.warn(
            f"{n_lost} of {len(corners)} labelled crops have less than {min_valid:.0%} of data and "
            "are left out",
            BocageWarning,
            stacklevel=4,
        )
    y = np.stack([part for _, _, part in kept])
    classes = () if task == "regression" else labels.classes
    if classes:  # from indices to the values of the classes, which make_training_set takes
        values = np.array([*(c.value for c in classes), IGNORE])
        y = values[y.astype(np.int64)]
    return make_training_set(
        {name: np.stack(parts) for name, parts in found.items()},
        y,
        task=task,
        timestamps=np.repeat(stamps[None], len(kept), axis=0),
        classes=list(classes) or None,
        split=split,
        lonlat=_lonlat(stack_grid(stack), kept, size),
        seed=seed,
        source=", ".join(map(str, stack.attrs.get("bocage_sources", ()))) or "scene",
    )


def _lonlat(grid: Grid, kept: list[_Corner], size: int) -> NDArray[np.float64]:
    """Longitude and latitude of the middle of each crop."""
    from rasterio.warp import transform

    middles = [grid.transform @ (col + size / 2, row + size / 2) for row, col, _ in kept]
    xs, ys = zip(*middles, strict=True)
    lon, lat = transform(grid.crs, "EPSG:4326", list(xs), list(ys))
    return np.column_stack([lon, lat])
