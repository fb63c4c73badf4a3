"""How far apart two samples must be before they are strangers: the range of autocorrelation.

The empirical variogram of labels or features, fitted by the usual three models. Blocks of folds
and buffers between them take their size from it, so that a test sample has no near twin in the
training set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bocage.scoring.places import Places

    Shape = Callable[[NDArray[np.float64]], NDArray[np.float64]]
    Contrast = Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[np.float64]]

N_PAIRS = 400_000  # the curve is then good to a percent; 64 features take half a second
N_SCALE = 100_000  # rows from which the variance of features is taken
N_LAGS = 20
N_PERMUTATIONS = 39  # of the test that there is any autocorrelation at all: level 2.5 %
MIN_PAIRS = 30  # of a lag; the rule of Journel and Huijbregts (1978)

# Correlation left at distance h = one practical range: 5 %, or none for the spherical model.
MODELS: dict[str, Shape] = {
    "exponential": lambda h: 1 - np.exp(-3 * h),
    "gaussian": lambda h: 1 - np.exp(-3 * h * h),
    "spherical": lambda h: np.where(h < 1, 1.5 * h - 0.5 * h**3, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Autocorrelation:
    """The variogram of some values, and the distance at which it levels off."""

    range_m: float
    """Distance beyond which samples are (nearly) independent; 0 if they always are."""

    bounded: bool
    """False if correlation goes on as far as the samples reach: range_m is then a lower bound."""

    model: str
    """Which model fits best: exponential, gaussian, spherical, or none."""

    nugget: float
    """Share of the variance that even the nearest samples do not have in common."""

    lag_m: NDArray[np.float64]
    """Mean distance of the pairs of each lag."""

    semivariance: NDArray[np.float64]
    """Half the mean squared difference, over the variance: 1 for unrelated samples."""

    n_pairs: NDArray[np.int64]
    """Pairs of each lag."""

    def markdown(self) -> str:
        """The curve as a table."""
        lines = ["| distance, m | correlation | pairs |", "|---:|---:|---:|"]
        rows = zip(self.lag_m, self.semivariance, self.n_pairs, strict=True)
        lines += [f"| {lag:,.0f} | {1 - g:.2f} | {n:,} |" for lag, g, n in rows]
        return "\n".join([self.describe(), "", *lines])

    def describe(self) -> str:
        """One sentence."""
        if self.model == "none":
            return "no spatial autocorrelation was found between the nearest samples"
        reach = f"{self.range_m:,.0f} m"
        if not self.bounded:
            return f"correlation goes on beyond {reach}, as far as the samples let one see"
        return f"autocorrelation range {reach} ({self.model} model, nugget {self.nugget:.0%})"


def measure_autocorrelation(
    values: NDArray[Any], places: Places, *, seed: int = 0
) -> Autocorrelation:
    """Measure how far correlation reaches.

    Args:
        values: Classes [n] (integers, strings or bools; each class is an indicator), numbers [n],
            or features [n, D]; features are scaled to variance 1 and averaged.
        places: The place of each.
        seed: Of the pairs that are drawn from many samples; up to 900 samples all pairs are used.
    """
    values = np.asarray(values)
    if len(values) != len(places):
        raise InputError(
            got=f"{len(values)} values and {len(places)} places",
            expected="one place for each value",
            fix="pass both in the same order",
        )
    rng = np.random.default_rng(seed)
    contrast = _contrast(values, rng)
    a, b = _pairs(places, np.random.default_rng(seed))
    distance = places.distances_m(a, b)
    longest = places.extent_m() / 2  # longer pairs all cross the middle: few independent ones
    near = (distance <= longest) & (distance > 0)
    a, b, distance = a[near], b[near], distance[near]
    if len(distance) < 3 * MIN_PAIRS:
        return _none()
    lag, gamma, n = _curve(contrast(a, b), distance, longest)
    if len(lag) < 3:
        return _none(lag, gamma, n)
    found = _fit(lag, gamma, n)
    near = distance <= max(found.range_m, float(lag[0]))
    if not _is_real(contrast, a[near], b[near], rng):
        return _none(lag, gamma, n)
    return found


def _is_real(
    contrast: Contrast, a: NDArray[np.intp], b: NDArray[np.intp], rng: np.random.Generator
) -> bool:
    """Whether near pairs are more alike than the same pairs of places with shuffled values."""
    if len(a) > 10_000:
        chosen = rng.choice(len(a), 10_000, replace=False)
        a, b = a[chosen], b[chosen]
    rows, pair = np.unique(np.stack([a, b]), return_inverse=True)
    first, second = pair.reshape(2, -1)
    observed = float(contrast(a, b).sum())
    for _ in range(N_PERMUTATIONS):
        turn = rng.permutation(rows)
        if float(contrast(turn[first], turn[second]).sum()) <= observed:
            return False
    return True


def _contrast(values: NDArray[Any], rng: np.random.Generator) -> Contrast:
    """Half the squared difference of pairs of rows, 1 on average for unrelated ones.

    Nothing of the size of the values is made: a million pixels of 128 features stay where they are.
    """
    if values.dtype.kind != "f" and values.ndim == 1:
        _, code, n = np.unique(values, return_inverse=True, return_counts=True)
        code = code.reshape(-1)
        share = n / len(values)
        spread = max(float((share * (1 - share)).sum()), 1e-12)
        # The sum over classes of their indicators' variograms, over that of their variances: a
        # rare class adds little noise.
        return lambda a, b: (code[a] != code[b]) / spread
    x = values.reshape(len(values), -1)
    sample = x if len(x) <= N_SCALE else x[rng.choice(len(x), N_SCALE, replace=False)]
    scale = sample.std(axis=0, dtype=np.float64)
    varying = scale > 0
    weight = np.where(varying, 1 / np.where(varying, scale, 1), 0) / np.sqrt(max(varying.sum(), 1))

    def half(a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.float64]:
        found = np.empty(len(a))
        for start in range(0, len(a), 1 << 14):
            rows = slice(start, start + (1 << 14))
            step = (x[a[rows]].astype(np.float64) - x[b[rows]]) * weight
            found[rows] = 0.5 * (step * step).sum(axis=1)
        if not np.isfinite(found).all():
            raise InputError(
                got="values with NaN or infinity",
                expected="finite values",
                fix="drop samples without data",
            )
        return found

    return half


def _pairs(places: Places, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All pairs of few samples; of many, pairs whose distances are spread over all scales."""
    n = len(places)
    if n * (n - 1) // 2 <= N_PAIRS:
        return np.triu_indices(n, 1)
    everyone = np.arange(n)
    tree = places.tree(everyone)
    spacing = np.median(tree.query(places.points_m[rng.choice(n, 1000)], k=2)[0][:, 1])
    longest = places.extent_m() / 2
    a = rng.integers(0, n, N_PAIRS)
    # A step of log-uniform length in a random direction, and whoever lives nearest to its end:
    # pairs drawn at random would hardly ever be close.
    step = np.exp(rng.uniform(np.log(max(spacing, longest * 1e-6)), np.log(longest), N_PAIRS))
    direction = rng.normal(size=(N_PAIRS, places.points_m.shape[1]))
    if places.lonlat is not None:  # along the ground, not into it
        up = places.points_m[a] / np.linalg.norm(places.points_m[a], axis=1, keepdims=True)
        direction -= (direction * up).sum(axis=1, keepdims=True) * up
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
    b = tree.query(places.points_m[a] + step[:, None] * direction)[1]
    return a, b


def _curve(
    half: NDArray[np.float64], distance: NDArray[np.float64], longest: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    shortest = max(float(np.quantile(distance, 0.002)), longest * 1e-6)
    edges = np.geomspace(shortest, longest, N_LAGS + 1)[1:-1]
    bins = np.searchsorted(edges, distance)
    n = np.bincount(bins, minlength=N_LAGS)
    enough = n >= MIN_PAIRS
    lag = np.bincount(bins, distance, N_LAGS)[enough] / n[enough]
    gamma = np.bincount(bins, half, N_LAGS)[enough] / n[enough]
    return lag, gamma, n[enough].astype(np.int64)


def _fit(
    lag: NDArray[np.float64], gamma: NDArray[np.float64], n: NDArray[np.int64]
) -> Autocorrelation:
    """Weighted least squares over the three models and a grid of ranges.

    For a given range the model is linear in nugget and sill, so a grid of ranges finds the optimum
    that a descent may miss.
    """
    # Lags with many pairs are exact but no closer to the model: past some 300 pairs weigh alike.
    weight = np.sqrt(n / (n + 300.0))
    best = (np.inf, "none", 0.0, 0.0, 0.0)
    for name, shape in MODELS.items():
        for reach in np.geomspace(lag[0], 4 * lag[-1], 200):
            nugget, sill = _nonnegative(shape(lag / reach), gamma, weight)
            left = (weight * (gamma - nugget - sill * shape(lag / reach))) ** 2
            if left.sum() < best[0]:
                best = (float(left.sum()), name, float(reach), nugget, sill)
    _, name, reach, nugget, sill = best
    total = nugget + sill
    # Under 3 % of the variance cannot be told from the noise of the lags.
    if total <= 0 or sill < 0.03 * total:
        return _none(lag, gamma, n)
    bounded = reach <= lag[-1]
    return Autocorrelation(
        range_m=min(reach, float(lag[-1])),
        bounded=bounded,
        model=name,
        nugget=nugget / total,
        lag_m=lag,
        semivariance=gamma,
        n_pairs=n,
    )


def _nonnegative(
    shape: NDArray[np.float64], gamma: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[float, float]:
    """Nugget and partial sill of the best fit, neither below zero."""
    w = weight**2
    w = w / w.sum()
    mean_s, mean_g = float(w @ shape), float(w @ gamma)
    spread = float(w @ (shape - mean_s) ** 2)
    sill = float(w @ ((shape - mean_s) * (gamma - mean_g))) / spread if spread > 1e-12 else 0.0
    nugget = mean_g - sill * mean_s
    if sill < 0:
        return mean_g, 0.0
    if nugget < 0:
        return 0.0, float(w @ (shape * gamma)) / max(float(w @ shape**2), 1e-12)
    return nugget, sill


def _none(
    lag: NDArray[np.float64] | None = None,
    gamma: NDArray[np.float64] | None = None,
    n: NDArray[np.int64] | None = None,
) -> Autocorrelation:
    return Autocorrelation(
        range_m=0.0,
        bounded=True,
        model="none",
        nugget=1.0,
        lag_m=np.empty(0) if lag is None else lag,
        semivariance=np.empty(0) if gamma is None else gamma,
        n_pairs=np.empty(0, np.int64) if n is None else n,
    )
