"""Iteratively reweighted multivariate alteration detection: change that no linear map explains.

A. A. Nielsen, "The regularized iteratively reweighted MAD method for change detection in multi- and
hyperspectral data", IEEE Transactions on Image Processing 16(2), 2007. Canonical correlation finds
pairs of combinations of the bands of both dates that correlate best; their differences (the MAD
variates) do not change under any linear change of either image (gain, offset, haze, calibration).
Where nothing changed, the squared and standardized differences sum to a chi-square number; the
probability of that weighs each pixel in the next round, until the correlations stand still.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.change.measure import Kept
from bocage.change.moments import Advance, sample_pair, weighted_moments
from bocage.errors import BocageWarning, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.change.pair import Pair
    from bocage.types import FloatArray

FIT_CELLS = 500_000
"""Cells that the fit looks at; drawn evenly over larger maps."""

MAX_ROUNDS = 50
TOLERANCE = 1e-3
"""Largest move of a canonical correlation at which the rounds end, as in Nielsen's paper."""

_LEAST_CELLS_PER_BAND = 10


@dataclass(frozen=True, kw_only=True)
class Mad(Kept):
    """MAD variates: (after - mean) @ b - (before - mean) @ a, standardized, and their chi-square.

    Band 1 is the chi-square number, band 2 the probability of change that belongs to it.
    """

    mean_before: NDArray[np.float64]
    mean_after: NDArray[np.float64]
    a: NDArray[np.float64]
    """[D, D], a column per variate, the least correlated first."""

    b: NDArray[np.float64]
    correlations: NDArray[np.float64]
    """Canonical correlations [D], rising: the first variate holds most of the change."""

    n_rounds: int
    n_cells: int
    name: str = "irmad"
    bands: tuple[str, ...] = ("chi-square of change", "probability of change")
    is_linear: bool = False
    has_strength: bool = True

    def variates(self, before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float64]:
        """Standardized MAD variates [n, D] of rows of bands [n, D]."""
        d = (after - self.mean_after) @ self.b - (before - self.mean_before) @ self.a
        return np.asarray(d / np.sqrt(np.maximum(2 * (1 - self.correlations), _TINY)))

    def chi_square(self, before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float64]:
        """Sum of squared variates [n]."""
        return np.asarray((self.variates(before, after) ** 2).sum(axis=1))

    def apply(self, before: FloatArray, after: FloatArray) -> FloatArray:
        """Chi-square and probability [2, h, w]."""
        from scipy.stats import chi2

        d, h, w = before.shape
        flat = [np.asarray(x.reshape(d, -1).T, np.float64) for x in (before, after)]
        z = self.chi_square(flat[0], flat[1])
        return np.stack([z, chi2.cdf(z, d)]).reshape(2, h, w).astype(np.float32)

    def facts(self) -> dict[str, Any]:
        """Correlations and rounds."""
        return {
            "canonical_correlations": [round(float(r), 6) for r in self.correlations],
            "n_rounds": self.n_rounds,
            "n_cells_fitted": self.n_cells,
        }


_TINY = 1e-12


def fit_mad(
    before: NDArray[Any],
    after: NDArray[Any],
    *,
    max_rounds: int = MAX_ROUNDS,
    tolerance: float = TOLERANCE,
) -> Mad:
    """Fit on rows of bands [n, D] of both times; one round is plain MAD.

    InputError for bands that are constant or repeat each other, and for too few rows.
    """
    from scipy.stats import chi2

    n, d = before.shape
    if n < _LEAST_CELLS_PER_BAND * d:
        raise InputError(
            got=f"{n} cells with data for {d} bands",
            expected=f"at least {_LEAST_CELLS_PER_BAND * d}",
            fix="use a larger area, or --method cva",
        )
    both = np.concatenate([before, after], axis=1).astype(np.float64)
    weight = np.ones(n)
    found: Mad | None = None
    for round_number in range(1, max_rounds + 1):
        m = weighted_moments(both, weight)
        a, b, correlations = _canonical(m.covariance, d)
        moved = np.inf if found is None else np.abs(correlations - found.correlations).max()
        found = Mad(
            mean_before=m.mean[:d],
            mean_after=m.mean[d:],
            a=a,
            b=b,
            correlations=correlations,
            n_rounds=round_number,
            n_cells=n,
        )
        if moved < tolerance:
            return found
        weight = chi2.sf(found.chi_square(both[:, :d], both[:, d:]), d)
        if weight.sum() < _LEAST_CELLS_PER_BAND * d:
            raise InputError(
                got=f"only {weight.sum():.0f} cells left that look unchanged",
                expected=f"at least {_LEAST_CELLS_PER_BAND * d}",
                fix="check that both images show the same place and the same bands, "
                "or use --method cva",
            )
    if found is None:
        raise ValueError("max_rounds must be at least 1")
    if max_rounds > 1:
        warnings.warn(
            f"IR-MAD has not come to rest after {max_rounds} rounds: little is unchanged between "
            "these images, so its probabilities are rough",
            BocageWarning,
            stacklevel=3,
        )
    return found


def fit_pair(pair: Pair, advance: Advance = lambda _: None) -> Mad:
    """Fit on a sample of a pair."""
    before, after = sample_pair(pair, FIT_CELLS, advance=advance)
    return fit_mad(before, after)


def _canonical(
    covariance: NDArray[np.float64], d: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Combinations a, b [D, D] of unit variance and positive correlation, and the correlations."""
    xx, xy, yy = covariance[:d, :d], covariance[:d, d:], covariance[d:, d:]
    white = [_inverse_root(m, which) for m, which in ((xx, "first"), (yy, "second"))]
    u, correlations, vt = np.linalg.svd(white[0].T @ xy @ white[1])
    # Rising: the least correlated pair, which holds most of the change, comes first.
    a, b = white[0] @ u[:, ::-1], white[1] @ vt.T[:, ::-1]
    # A sign for each pair so that reruns agree.
    largest = np.abs(a).argmax(axis=0)
    sign = np.where(a[largest, np.arange(d)] < 0, -1.0, 1.0)
    return a * sign, b * sign, np.clip(correlations[::-1], 0, 1)


def _inverse_root(covariance: NDArray[np.float64], which: str) -> NDArray[np.float64]:
    """Inverse square root of a covariance; scaled first, so that units do not matter."""
    spread = np.sqrt(np.diag(covariance))
    constant = np.flatnonzero(~(spread > 0))
    if constant.size == 0:
        values, vectors = np.linalg.eigh(covariance / np.outer(spread, spread))
        if values[0] > _TINY:
            root = vectors @ np.diag(values**-0.5) @ vectors.T
            return np.asarray(root / spread[:, None])
    what = (
        f"band {int(constant[0]) + 1} is the same everywhere"
        if constant.size
        else "a band is a combination of the others"
    )
    raise InputError(
        got=f"a {which} image in which {what}",
        expected="bands that each say something of their own",
        fix="leave that band out, or use --method cva",
    )
