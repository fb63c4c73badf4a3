"""Flips and rotations: the eight symmetries of the square, one for all layers of a sample.

The official v1.1 and v1.2 runs had them in their configuration but never called them
(specification 8.5); here they are applied if and only if they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_SYMMETRIES = 8
"""Four rotations, each with and without a flip."""


def apply_symmetry(x: NDArray[Any], element: int) -> NDArray[Any]:
    """A view of [H, W, ...] turned by ``element % 4`` quarters, then flipped if 4 or more."""
    turned = np.rot90(x, element % 4, axes=(0, 1))
    return turned[:, ::-1] if element >= N_SYMMETRIES // 2 else turned


def draw_symmetry(rng: np.random.Generator) -> int:
    """One of the eight, uniformly; 0 leaves the sample as it is."""
    return int(rng.integers(N_SYMMETRIES))
