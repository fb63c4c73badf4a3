"""How visible the borders between windows are in a mosaic of embeddings."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bocage.errors import InputError
from bocage.types import FloatArray


def seam_figure(x: FloatArray, core_cells: int) -> float:
    """Mean step across window borders divided by the mean step elsewhere; 1 is seamless.

    A step is the Euclidean distance between the vectors of two neighbouring cells, over rows and
    columns. The scene's own edges that happen to fall on a border average out over many borders.

    Args:
        x: Vectors [D, h, w]; NaN is ignored.
        core_cells: Side of the kept part of a window, in cells.
    """
    border_steps, other_steps = [], []
    for axis in (1, 2):
        steps = np.sqrt((np.diff(x, axis=axis) ** 2).sum(axis=0))
        if axis == 2:
            steps = steps.T
        # Step k lies between cells k and k + 1; borders lie after each whole core.
        at_border = (np.arange(len(steps)) + 1) % core_cells == 0
        border_steps.append(steps[at_border].ravel())
        other_steps.append(steps[~at_border].ravel())
    return float(np.nanmean(np.concatenate(border_steps)) / np.nanmean(np.concatenate(other_steps)))


class WindowSensitivity(NamedTuple):
    """How much of a map depends on where its windows fell; 0 is nothing, 1 everything."""

    mean: float
    """Over all cells, in root mean square."""

    p99: float
    """Of the worst hundredth of the cells."""


def window_sensitivity(x: FloatArray, shifted: FloatArray) -> WindowSensitivity:
    """Difference of two maps of one place whose windows lie elsewhere, against their variation.

    The distance of the two vectors of a cell, divided by that of two cells of the maps drawn at
    random. It sees what `seam_figure` cannot: offsets between windows that a blend spreads over a
    halo leave no step, and still draw blocks into a map. Cells at the edges of a scene differ for
    another reason (what lies beyond is unknown to one and not to the other): leave them out.

    Args:
        x: Vectors [D, h, w]; cells with NaN in either map are ignored.
        shifted: The same cells, from windows moved by about half a core.

    Raises:
        InputError: Maps of unequal shape, without a common cell, or without any variation.
    """
    if x.shape != shifted.shape:
        raise InputError(
            got=f"maps of shapes {x.shape} and {shifted.shape}",
            expected="the same cells in both",
            fix="cut both to what they share",
        )
    both = np.stack([x, shifted]).reshape(2, len(x), -1).astype(np.float64)
    both = both[..., np.isfinite(both).all(axis=(0, 1))]
    n_cells = both.shape[-1]
    spread = both.var(axis=2).sum(axis=1).mean() if n_cells else 0.0
    if not spread > 0:
        raise InputError(
            got=f"maps with {n_cells} common cells and no variation",
            expected="cells that differ",
            fix="compare a larger area",
        )
    distance = ((both[0] - both[1]) ** 2).sum(axis=0) / (2 * spread)
    return WindowSensitivity(
        mean=float(np.sqrt(distance.mean())),
        p99=float(np.sqrt(np.quantile(distance, 0.99))),
    )
