"""How visible the borders between windows are in a mosaic of embeddings."""

from __future__ import annotations

import numpy as np

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
