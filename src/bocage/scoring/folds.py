"""Splits for scoring: at random, and by blocks on the ground.

A random split of neighboring patches tests memory: a patch's twin is in the training set. Blocks
put whole squares of ground on one side, so both are reported side by side. Every sample is
predicted exactly once, by a model (and a codec) that was fitted without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Folds:
    """A partition of samples into test folds."""

    name: str
    """"random" or "spatial"."""

    fold: NDArray[np.int64]
    """Fold of each sample, 0 to n_folds - 1."""

    block: NDArray[np.int64]
    """Samples of one block are dependent: the unit of the bootstrap, and of inner folds."""

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1


def random_folds(labels: NDArray[Any], n_folds: int, seed: int) -> Folds:
    """Folds with equal shares of each class."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), np.int64)
    offset = 0
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        # Each class starts where the last one ended, so that folds have equal sizes.
        fold[rows] = (np.arange(len(rows)) + offset) % n_folds
        offset += len(rows)
    _check(fold, n_folds)
    return Folds(name="random", fold=fold, block=np.arange(len(labels)))


def spatial_folds(
    lonlat: NDArray[np.floating], n_folds: int, seed: int, *, block_km: float = 50.0
) -> Folds:
    """Folds of whole squares of about `block_km`, dealt so that folds have equal sizes."""
    lon, lat = np.asarray(lonlat, np.float64).T
    if not (np.isfinite(lon).all() and np.isfinite(lat).all() and np.abs(lat).max() <= 90):
        raise InputError(
            got="places that are not degrees of longitude and latitude",
            expected="lon, lat of every sample",
            fix="convert them to EPSG:4326",
        )
    row = np.floor(lat * 111.2 / block_km)
    middle = (row + 0.5) * block_km / 111.2
    col = np.floor(lon * 111.2 * np.maximum(np.cos(np.radians(middle)), 0.01) / block_km)
    _, block = np.unique(np.stack([row, col]), axis=1, return_inverse=True)
    block = block.reshape(-1)
    sizes = np.bincount(block)
    if len(sizes) < n_folds:
        raise InputError(
            got=f"{len(sizes)} blocks of {block_km:g} km for {n_folds} folds",
            expected=f"at least {n_folds} blocks",
            fix="use smaller blocks, fewer folds, or samples from a larger area",
        )
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]  # large blocks first fill evenly
    filled = np.zeros(n_folds)
    of_block = np.empty(len(sizes), np.int64)
    for b in order:
        of_block[b] = int(filled.argmin())
        filled[of_block[b]] += sizes[b]
    return Folds(name="spatial", fold=of_block[block], block=block)


def _check(fold: NDArray[np.int64], n_folds: int) -> None:
    if n_folds < 2 or np.bincount(fold, minlength=n_folds).min() == 0:
        raise InputError(
            got=f"{len(fold)} samples for {n_folds} folds",
            expected="at least 2 folds, and a sample in each",
            fix="use fewer folds or more samples",
        )
