"""The linear probe of the models' own evaluation: batch norm and one linear layer by AdamW.

50 epochs in batches of 32, weight decay 0.01, the rate warmed up over a tenth of the epochs and
then falling as a cosine to 1e-5 (the public evaluation code). It stops before the optimum and its
answer depends on the rate, which is chosen on inner folds: use it to compare with published
figures, and logistic regression otherwise. The features stand still, so batch norm needs no
gradient of its statistics, and all of it is a page of numpy.

Axes: n rows, D features, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.learn.logistic import sigmoid, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

RATES = (1e-3, 1e-4, 5e-4, 5e-3, 1e-2, 5e-2, 1e-1, 5e-1)
"""The rates of the public evaluation; the first one serves where there is nothing to choose on."""

EPOCHS = 50
BATCH = 32
LEAST_RATE = 1e-5
WEIGHT_DECAY = 0.01
_EPSILON, _MOMENTUM = 1e-5, 0.1  # of batch norm
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8  # of AdamW


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Logits = (x - mean) / scale @ weight + bias."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: NDArray[np.float64]
    """[D, K]."""

    bias: NDArray[np.float64]


def fit_adamw(
    x: FloatArray,
    y: NDArray[Any],
    *,
    rate: float,
    rows: NDArray[np.intp],
    weight: NDArray[np.floating] | None = None,
    seed: int = 0,
) -> LinearProbe:
    """Train on some rows.

    Args:
        x: Features [n, D].
        y: Targets [n, K]: one-hot for classes that exclude each other, bool flags for labels that
            hold together.
        rate: The largest learning rate.
        rows: Rows to use, two at least.
        weight: Weight of each row [n].
        seed: Of the start and of the order.
    """
    rng = np.random.default_rng(seed)
    d, k = x.shape[1], y.shape[1]
    bound = d**-0.5
    step = _AdamW(
        gain=np.ones(d),
        shift=np.zeros(d),
        weight=rng.uniform(-bound, bound, (d, k)),
        bias=rng.uniform(-bound, bound, k),
    )
    answer: Callable[..., NDArray[Any]] = sigmoid if y.dtype == bool else softmax
    share = 1 / k if y.dtype == bool else 1.0  # labels: the mean over their losses
    mean, variance = np.zeros(d), np.ones(d)
    n_batches = -(-len(rows) // BATCH)
    for epoch in range(EPOCHS):
        order = rng.permutation(rows)
        for i in range(n_batches):
            batch = order[i * BATCH : (i + 1) * BATCH]
            if len(batch) < 2:
                continue  # a single row has no spread
            part = x[batch].astype(np.float64)
            own_mean, own_variance = part.mean(axis=0), part.var(axis=0)
            mean += _MOMENTUM * (own_mean - mean)
            unbiased = own_variance * len(batch) / (len(batch) - 1)
            variance += _MOMENTUM * (unbiased - variance)
            normal = (part - own_mean) / np.sqrt(own_variance + _EPSILON)
            hidden = normal * step.gain + step.shift
            residual = answer(hidden @ step.weight + step.bias) - y[batch]
            residual *= share / len(batch)
            if weight is not None:
                residual *= weight[batch, None]
            back = residual @ step.weight.T
            step.update(
                rate_at(epoch + i / n_batches, rate),
                gain=(back * normal).sum(axis=0),
                shift=back.sum(axis=0),
                weight=hidden.T @ residual,
                bias=residual.sum(axis=0),
            )
    return LinearProbe(
        mean=mean,
        scale=np.sqrt(variance + _EPSILON),
        weight=step.gain[:, None] * step.weight,
        bias=step.shift @ step.weight + step.bias,
    )


def rate_at(epoch: float, rate: float) -> float:
    """The learning rate at a moment of training, in epochs."""
    warm = int(0.1 * EPOCHS)
    if epoch < warm:
        return rate * epoch / warm
    fall = 0.5 * (1 + np.cos(np.pi * (epoch - warm) / (EPOCHS - warm)))
    return float(LEAST_RATE + (rate - LEAST_RATE) * fall)


class _AdamW:
    """Parameters by name, and the means that AdamW keeps of their gradients."""

    def __init__(self, **parameters: NDArray[np.float64]) -> None:
        self.gain, self.shift = parameters["gain"], parameters["shift"]
        self.weight, self.bias = parameters["weight"], parameters["bias"]
        self._means = {n: (np.zeros_like(p), np.zeros_like(p)) for n, p in parameters.items()}
        self._n = 0

    def update(self, rate: float, **gradients: NDArray[np.float64]) -> None:
        """One step."""
        self._n += 1
        for name, gradient in gradients.items():
            p, (first, second) = getattr(self, name), self._means[name]
            p *= 1 - rate * WEIGHT_DECAY
            first += (1 - _BETA1) * (gradient - first)
            second += (1 - _BETA2) * (gradient**2 - second)
            spread = np.sqrt(second / (1 - _BETA2**self._n)) + _TINY
            p -= rate / (1 - _BETA1**self._n) * first / spread
