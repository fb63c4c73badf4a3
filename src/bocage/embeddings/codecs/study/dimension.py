"""How many numbers the vectors need: PCA spectrum, intrinsic dimension, balance of bits.

Each estimator is reported under its own name and fails loudly; none stands in for another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.embeddings.codecs.codec import check_vectors, training_sample, valid_rows
from bocage.embeddings.codecs.reducers import second_moment
from bocage.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import CodeArray, FloatArray

SPECTRUM_AT = (4, 8, 16, 32, 64, 128, 256)


def describe_vectors(x: FloatArray, *, seed: int = 0, max_rows: int = 5000) -> dict[str, Any]:
    """Spectrum, effective rank and three intrinsic dimensions of vectors, by name."""
    x = check_vectors(x)
    x = x[valid_rows(x)]
    variance = spectrum(x)
    share = np.cumsum(variance) / max(variance.sum(), 1e-30)
    sample = training_sample(x, max_rows, seed)
    ratio = mu_ratios(sample, 20)
    return {
        "n_vectors": len(x),
        "dims": x.shape[1],
        "pca_variance": {d: float(share[d - 1]) for d in SPECTRUM_AT if d <= len(share)},
        "effective_rank": effective_rank(variance),
        "participation_ratio": participation_ratio(variance),
        "mle_k20": mle(ratio),
        "two_nn": two_nn(ratio[:, 0], ratio[:, 1]),
        "mean_length_share": float(
            np.linalg.norm(x.mean(axis=0)) / np.linalg.norm(x, axis=1).mean()
        ),
    }


def spectrum(x: FloatArray) -> NDArray[np.float64]:
    """Variances along the principal axes, largest first."""
    moment = second_moment(x, x.mean(axis=0, dtype=np.float64).astype(np.float32))
    values: NDArray[np.float64] = np.linalg.eigvalsh(moment)[::-1]
    return np.maximum(values, 0)


def effective_rank(variance: NDArray[np.float64]) -> float:
    """Exponential of the entropy of the spectrum's singular values (Roy and Vetterli 2007)."""
    s = np.sqrt(variance)
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def participation_ratio(variance: NDArray[np.float64]) -> float:
    """(sum of variances)^2 / sum of squared variances: how many axes share the variance."""
    return float(variance.sum() ** 2 / np.square(variance).sum())


def mu_ratios(x: FloatArray, k: int) -> NDArray[np.float64]:
    """Distances to the k nearest other rows [N, k]; duplicates (distance zero) are left out."""
    unique = np.unique(x, axis=0)
    if len(unique) < k + 2:
        raise InputError(
            got=f"{len(unique)} different vectors",
            expected=f"at least {k + 2} to estimate an intrinsic dimension",
            fix="pass a larger sample",
        )
    squares = np.einsum("nd,nd->n", unique, unique, dtype=np.float64)
    nearest = np.empty((len(unique), k))
    for start in range(0, len(unique), 512):
        block = unique[start : start + 512]
        d = squares[start : start + 512, None] + squares - 2.0 * (block @ unique.T)
        d[np.arange(len(block)), start + np.arange(len(block))] = np.inf
        nearest[start : start + 512] = np.sort(np.partition(d, k, axis=1)[:, :k], axis=1)
    distance: NDArray[np.float64] = np.sqrt(np.maximum(nearest, 1e-12))
    return distance


def mle(distance: NDArray[np.float64]) -> float:
    """Maximum likelihood of Levina and Bickel (2004), inverses averaged (MacKay, Ghahramani)."""
    k = distance.shape[1]
    inverse = np.log(distance[:, -1:] / distance[:, :-1]).sum(axis=1) / (k - 1)
    return float(1 / inverse.mean())


def two_nn(first: NDArray[np.float64], second: NDArray[np.float64], discard: float = 0.1) -> float:
    """TwoNN of Facco et al. (2017): from the ratio of the two nearest distances, tail left out."""
    mu = np.sort(second / first)
    n = len(mu)
    keep = slice(0, int(n * (1 - discard)))
    share = np.arange(1, n + 1) / n
    a, b = np.log(mu[keep]), -np.log(1 - share[keep])
    return float((a @ b) / (a @ a))


def bit_imbalance(codes: CodeArray, n_bits: int) -> float:
    """Mean over bits of |share of ones - 1/2|: 0 is perfect use, 1/2 is a constant bit."""
    share = np.unpackbits(codes, axis=1, count=n_bits).mean(axis=0)
    return float(np.abs(share - 0.5).mean())
