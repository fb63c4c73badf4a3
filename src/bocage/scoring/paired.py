"""Tests of two classifiers on the same samples.

"No significant difference" does not mean "equal": with few samples nothing is significant. So a
model (or a codec of its vectors) is called equivalent only if both one-sided tests reject a loss
and a gain beyond a declared margin (TOST), after Holm's correction for having tried several.
McNemar's test is reported beside it. Scores other than accuracy: accumulator.compare_scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, erfc, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One classifier against a base on the same samples."""

    difference: float
    """Its accuracy minus that of the base."""

    low: float
    high: float
    """95 % bootstrap interval of the difference; dependent samples are drawn as blocks."""

    n_gained: int
    n_lost: int
    """Samples that only it, or only the base, got right."""

    p_mcnemar: float
    p_equivalence: float
    """TOST: the probability of data this close if the true difference were at the margin."""


def compare(
    base: NDArray[np.bool_],
    other: NDArray[np.bool_],
    *,
    margin: float,
    block: NDArray[np.int64] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Paired:
    """Compare which samples two classifiers got right; `margin` is the equivalence margin."""
    gained, lost = int((other & ~base).sum()), int((base & ~other).sum())
    low, high = bootstrap_interval(
        other.astype(np.float64) - base, block=block, n_bootstrap=n_bootstrap, seed=seed
    )
    return Paired(
        difference=(gained - lost) / len(base),
        low=low,
        high=high,
        n_gained=gained,
        n_lost=lost,
        p_mcnemar=mcnemar(gained, lost),
        p_equivalence=equivalence(gained, lost, len(base), margin),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p that gains and losses are equally likely (a binomial test of one half)."""
    n = gained + lost
    if n == 0:
        return 1.0
    if n > 1000:  # the chi-squared form with continuity correction agrees to three digits by then
        return erfc(max(abs(gained - lost) - 1, 0) / sqrt(2 * n))
    tail = sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n
    return float(min(1.0, 2 * tail))


def equivalence(gained: int, lost: int, n: int, margin: float) -> float:
    """TOST p for |accuracy difference| < margin, by Tango's score test for paired proportions.

    Tango (1998), Statistics in Medicine 17:891-908. Unlike a t-test it is defined, and not certain
    of equality, when no sample changed.
    """
    if not 0 < margin < 1:
        raise ConfigError(
            got=f"equivalence margin {margin}",
            expected="a share of accuracy between 0 and 1",
            fix="for example 0.005 for half a point",
        )
    no_loss = 0.5 * erfc(_tango(gained, lost, n, -margin) / sqrt(2))
    no_gain = 0.5 * erfc(-_tango(gained, lost, n, margin) / sqrt(2))
    return max(no_loss, no_gain)


def non_inferiority(gained: int, lost: int, n: int, margin: float) -> float:
    """One-sided p of a loss of at least `margin`; small means that the loss is smaller."""
    return 0.5 * erfc(_tango(gained, lost, n, -margin) / sqrt(2))


def _tango(b: int, c: int, n: int, delta: float) -> float:
    """Score statistic of p_b - p_c = delta; the nuisance p_c is at its constrained maximum."""
    linear = -b - c + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    p_c = (sqrt(max(linear * linear - 8 * n * constant, 0)) - linear) / (4 * n)
    variance = n * (2 * p_c + delta * (1 - delta))
    return (b - c - n * delta) / sqrt(max(variance, 1e-12))


def holm(p: NDArray[np.floating]) -> NDArray[np.float64]:
    """p-values corrected for their number, step-down (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected


def bootstrap_interval(
    values: NDArray[np.floating],
    *,
    block: NDArray[np.int64] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of the mean; whole blocks are drawn where given."""
    rng: Any = np.random.default_rng(seed)
    if block is None:
        block = np.arange(len(values))
    _, block = np.unique(block, return_inverse=True)
    sums, sizes = np.bincount(block, values), np.bincount(block)
    means = np.empty(n_bootstrap)
    for i in range(n_bootstrap):
        drawn = rng.integers(0, len(sums), len(sums))
        means[i] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
