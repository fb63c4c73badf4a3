"""What a probe can be: arrays and a rule of prediction, without scikit-learn and without pickle.

An estimator turns features [n, D] into scores [n, C]: probabilities of classes, independent
probabilities of labels, or one column of numbers. Each says its arrays and options, from which it
is made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from bocage.errors import StoreError
from bocage.learn.logistic import sigmoid, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray

Link = Literal["softmax", "sigmoid", "identity"]
"""From the last numbers to scores: classes that exclude each other, labels that do not, numbers."""

CHUNK_ROWS = 2000
"""Rows that a forest predicts at once, whose scratch is many times the input."""

SPARE = 8
"""Neighbors beyond k that are ranked again in float64: float32 may swap nearly equal ones."""

_RANKED_VALUES = 2**22
"""Of their vectors at once."""


class Estimator(Protocol):
    """A fitted rule."""

    kind: ClassVar[str]

    def scores(self, x: FloatArray) -> NDArray[np.float64]:
        """Scores [n, C] of features [n, D]."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `arrays.npz` keeps."""

    def options(self) -> dict[str, Any]:
        """What `probe.json` keeps."""


def _link(z: NDArray[np.float64], link: Link) -> NDArray[np.float64]:
    if link == "identity":
        return z
    if link == "sigmoid":
        return sigmoid(z)
    if z.shape[1] == 1:  # one column for two classes
        p = sigmoid(z)
        return np.concatenate([1 - p, p], axis=1)
    return softmax(z)


class _Stored:
    """Arrays and options are the dataclass's own fields."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `arrays.npz` keeps."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {k: v for k, v in values.items() if isinstance(v, np.ndarray)}

    def options(self) -> dict[str, Any]:
        """What `probe.json` keeps."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}


@dataclass(frozen=True, kw_only=True)
class Linear(_Stored):
    """Logistic regression and ridge: (x - mean) / scale @ weight + bias."""

    kind: ClassVar[str] = "linear"

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: NDArray[np.float64]
    """[D, K]; one column for two classes."""

    bias: NDArray[np.float64]
    link: Link

    def scores(self, x: FloatArray) -> NDArray[np.float64]:
        """Scores [n, C] of features [n, D]."""
        a = self.weight / self.scale[:, None]
        return _link(x @ a + (self.bias - self.mean @ a), self.link)


@dataclass(frozen=True, kw_only=True)
class Neighbors(_Stored):
    """The k most similar training vectors vote by cosine.

    With a temperature, votes weigh exp(similarity / temperature), as the official evaluation has
    it (k 20, temperature 0.07); without, all alike.
    """

    kind: ClassVar[str] = "neighbors"

    x: FloatArray
    """Training vectors [N, D]."""

    y: NDArray[np.float32]
    """Votes [N, C]: one-hot, flags, or a number."""

    k: int
    temperature: float | None

    def scores(self, x: FloatArray) -> NDArray[np.float64]:
        """Scores [n, C] of features [n, D]; equal similarities count in the order of training."""
        rows, cosine = self._nearest(x)
        weight = np.ones(rows.shape)
        if self.temperature is not None:
            # Relative to the nearest, which changes no share and cannot overflow.
            weight = np.exp((cosine - cosine[:, :1]) / self.temperature)
        weight /= weight.sum(axis=1, keepdims=True)
        found = np.zeros((len(x), self.y.shape[1]))
        for i in range(rows.shape[1]):  # no array of [n, k, C]
            found += weight[:, i, None] * self.y[rows[:, i]]
        return found

    def _nearest(self, x: FloatArray) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Rows and cosines [n, k]: found in float32 with some to spare, ranked in float64."""
        from bocage.scoring.scores import nearest_cosine

        candidates, _ = nearest_cosine(self.x, x, self.k + SPARE)
        rows = np.empty((len(x), self.k), np.intp)
        cosine = np.empty((len(x), self.k))
        step = max(1, _RANKED_VALUES // candidates.shape[1] // x.shape[1])
        for start in range(0, len(x), step):
            at = slice(start, start + step)
            near = np.sort(candidates[at], axis=1)  # equal ones stay in the order of training
            asked, known = unit(x[at], np.float64), unit(self.x[near], np.float64)
            exact = np.einsum("nkd,nd->nk", known, asked)
            best = np.argsort(-exact, axis=1, kind="stable")[:, : self.k]
            rows[at] = np.take_along_axis(near, best, axis=1)
            cosine[at] = np.take_along_axis(exact, best, axis=1)
        return rows, cosine


@dataclass(frozen=True, kw_only=True)
class Network(_Stored):
    """A perceptron with one hidden layer (ReLU), on standardized features."""

    kind: ClassVar[str] = "network"

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    hidden_weight: NDArray[np.float64]
    hidden_bias: NDArray[np.float64]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    link: Link

    def scores(self, x: FloatArray) -> NDArray[np.float64]:
        """Scores [n, C] of features [n, D]."""
        standardized = (x - self.mean) / self.scale
        hidden = np.maximum(standardized @ self.hidden_weight + self.hidden_bias, 0)
        return _link(hidden @ self.weight + self.bias, self.link)


@dataclass(frozen=True, kw_only=True)
class Forest(_Stored):
    """Decision trees that are averaged."""

    kind: ClassVar[str] = "forest"

    feature: NDArray[np.int32]
    """Feature that a node asks about; -1 in leaves. All trees one after the other [nodes]."""

    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    """Where to go on if x <= threshold, or not: positions in these arrays."""

    value: NDArray[np.float64]
    """Scores of a node [nodes, C]."""

    roots: NDArray[np.int32]
    """Where each tree starts."""

    def scores(self, x: FloatArray) -> NDArray[np.float64]:
        """Scores [n, C] of features [n, D]."""
        found = np.zeros((len(x), self.value.shape[1]))
        for start in range(0, len(x), CHUNK_ROWS):
            part = x[start : start + CHUNK_ROWS]
            every = np.arange(len(part))
            for root in self.roots:
                node = np.full(len(part), root)
                while True:
                    feature = self.feature[node]
                    inside = feature >= 0
                    if not inside.any():
                        break
                    low = part[every, np.maximum(feature, 0)] <= self.threshold[node]
                    onward = np.where(low, self.left[node], self.right[node])
                    node = np.where(inside, onward, node)
                found[start : start + CHUNK_ROWS] += self.value[node]
        return found / len(self.roots)


_KINDS: dict[str, type[Any]] = {c.kind: c for c in (Linear, Neighbors, Network, Forest)}


def make_estimator(
    kind: str, arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]
) -> Estimator:
    """An estimator from what was stored; StoreError if it is not understood."""
    if kind not in _KINDS:
        raise StoreError(
            got=f"a probe of the kind {kind!r}",
            expected=f"one of {', '.join(_KINDS)}",
            fix="update bocage, or fit the probe again",
        )
    wanted = {f.name for f in fields(_KINDS[kind])}
    if wanted != {*arrays, *options}:
        raise StoreError(
            got=f"a {kind} probe with {', '.join(sorted({*arrays, *options}))}",
            expected=", ".join(sorted(wanted)),
            fix="fit the probe again",
        )
    estimator: Estimator = _KINDS[kind](**arrays, **options)
    return estimator


def unit(x: FloatArray, dtype: type[np.floating] = np.float32) -> NDArray[Any]:
    """Vectors [..., D] of length one; a vector of zeros stays."""
    x = np.asarray(x, dtype)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), dtype(1e-30)))
