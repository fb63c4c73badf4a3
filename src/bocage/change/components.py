"""The difference of two embeddings in k numbers: its principal components, and their basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.change.measure import Kept
from bocage.change.moments import Advance, difference_moments
from bocage.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.change.pair import Pair
    from bocage.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class Components(Kept):
    """Projection of the difference: (after - before - mean) @ basis.

    Linear but for the mean, so averages of components are components of averages. The mean of the
    map's own difference is taken away: what changed everywhere (season, atmosphere) is 0.
    Components @ basis + mean is the difference again, nearly.
    """

    mean: NDArray[np.float64]
    """[D]."""

    basis: NDArray[np.float64]
    """[k, D], orthonormal rows, the largest variance first."""

    explained: NDArray[np.float64]
    """Share of the variance of the difference in each component."""

    name: str = "pca"
    is_linear: bool = True
    has_strength: bool = False

    @property
    def bands(self) -> tuple[str, ...]:
        """One per component."""
        return tuple(f"component {i + 1} of change" for i in range(len(self.basis)))

    def apply(self, before: FloatArray, after: FloatArray) -> FloatArray:
        """Components [k, h, w]."""
        d = (after - before).astype(np.float64) - self.mean[:, None, None]
        return np.tensordot(self.basis, d, axes=1).astype(np.float32)

    def facts(self) -> dict[str, Any]:
        """Shares of the variance."""
        return {
            "n_components": len(self.basis),
            "variance_explained": [round(float(v), 6) for v in self.explained],
        }


def fit_components(pair: Pair, k: int, advance: Advance = lambda _: None) -> Components:
    """The first k principal components of the difference, over every cell of the map."""
    dims = len(pair.features)
    if not 1 <= k <= dims:
        raise ConfigError(
            got=f"{k} components of {dims} dims",
            expected=f"1 to {dims}",
            fix=f"use --components {min(8, dims)}",
        )
    found = difference_moments(pair, advance)
    values, vectors = np.linalg.eigh(found.covariance)
    basis = vectors[:, ::-1][:, :k].T
    # The sign of a component is arbitrary: make its largest loading positive, so reruns agree.
    largest = np.abs(basis).argmax(axis=1)
    basis = basis * np.where(basis[np.arange(k), largest] < 0, -1, 1)[:, None]
    total = max(float(values.sum()), 1e-30)
    return Components(mean=found.mean, basis=basis, explained=values[::-1][:k] / total)
