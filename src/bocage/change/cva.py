"""Change vector analysis of bands: how far a pixel moved in band space, and in which direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.change.measure import Kept
from bocage.change.moments import (
    Advance,
    Moments,
    merge,
    nothing_shared,
    pieces,
    vectors,
    weighted_moments,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.change.pair import Pair
    from bocage.types import FloatArray


@dataclass(frozen=True, kw_only=True)
class ChangeVectors(Kept):
    """Magnitude and direction of the difference of standardized bands.

    Each band of each date is brought to mean 0 and spread 1 first, so that haze, season and bright
    bands do not decide. The direction is the angle to the vector whose bands all rise alike
    (Bovolo, Marchesi & Bruzzone 2012, compressed change vector analysis): 0 everything brighter,
    180 degrees everything darker.
    """

    mean_before: NDArray[np.float64]
    mean_after: NDArray[np.float64]
    spread_before: NDArray[np.float64]
    spread_after: NDArray[np.float64]
    """Of each band [D]."""

    n_cells: int
    name: str = "cva"
    bands: tuple[str, ...] = ("magnitude of change", "angle of change, degrees")
    is_linear: bool = False
    has_strength: bool = True

    def apply(self, before: FloatArray, after: FloatArray) -> FloatArray:
        """Magnitude and angle [2, h, w]; the angle of no change is 90 degrees."""
        d = _standardize(after, self.mean_after, self.spread_after)
        d -= _standardize(before, self.mean_before, self.spread_before)
        length = np.sqrt(np.einsum("dhw,dhw->hw", d, d))
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = d.sum(axis=0) / (np.sqrt(len(d)) * length)
        cosine = np.where(length == 0, 0.0, np.clip(cosine, -1, 1))
        return np.stack([length, np.degrees(np.arccos(cosine))]).astype(np.float32)

    def facts(self) -> dict[str, Any]:
        """How many cells the bands were standardized with."""
        return {"n_cells": self.n_cells}


def fit_change_vectors(pair: Pair, advance: Advance = lambda _: None) -> ChangeVectors:
    """Mean and spread of every band at both times, over every cell with data."""
    sums: list[Moments | None] = [None, None]
    for rows, cols in pieces(pair):
        for i, x in enumerate(vectors(pair, rows, cols)):
            if len(x):
                sums[i] = merge(sums[i], weighted_moments(x))
        advance(1)
    before, after = sums
    if before is None or after is None:
        raise nothing_shared(pair.names)
    return ChangeVectors(
        mean_before=before.mean,
        mean_after=after.mean,
        spread_before=_spread(before),
        spread_after=_spread(after),
        n_cells=before.n,
    )


def _spread(m: Moments) -> NDArray[np.float64]:
    spread = np.sqrt(np.diag(m.covariance))
    return np.where(spread > 0, spread, 1.0)


def _standardize(
    x: FloatArray, mean: NDArray[np.float64], spread: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.asarray((x - mean[:, None, None]) / spread[:, None, None], np.float64)
