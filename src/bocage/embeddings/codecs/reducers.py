"""Fewer dimensions before quantizing: PCA, truncated SVD, random projection, selection, prefix.

A reducer learns on training vectors, then `reduce` maps [N, D] to [N, d] and `lift` maps back as
well as the d numbers allow. Prefix is for models trained so that their first dimensions suffice
(Matryoshka): it needs no parameters, and every corpus stays comparable, so prefer it where the
model has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bocage.embeddings.codecs.codec import training_sample
from bocage.embeddings.codecs.rotation import haar_rotation
from bocage.errors import InputError

if TYPE_CHECKING:
    from bocage.types import FloatArray


class Reducer:
    """A linear map to d numbers: reduce = (x - center) @ basis, lift = y @ basis.T + center."""

    learned: ClassVar[tuple[str, ...]] = ("center", "basis")

    def __init__(self, d: int, *, seed: int = 0) -> None:
        self.d = d
        self.seed = seed
        self.center: FloatArray = np.zeros(0, np.float32)
        self.basis: FloatArray = np.zeros((0, 0), np.float32)

    def fit(self, x: FloatArray) -> None:
        """Learn the map from training vectors."""
        if self.d > x.shape[1]:
            raise InputError(
                got=f"{x.shape[1]} dimensions to reduce to {self.d}",
                expected=f"at least {self.d}",
                fix=f"ask for at most {x.shape[1]} dimensions",
            )
        self.center = np.zeros(x.shape[1], np.float32)
        self._fit(x)

    def _fit(self, x: FloatArray) -> None:
        raise NotImplementedError

    def reduce(self, x: FloatArray) -> FloatArray:
        """[N, D] to [N, d]."""
        y: FloatArray = x @ self.basis
        if self.center.any():
            y -= self.center @ self.basis
        return y

    def lift(self, y: FloatArray) -> FloatArray:
        """[N, d] back to [N, D]."""
        x: FloatArray = y @ self.basis.T
        x += self.center
        return x

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Learned arrays by name."""
        return {name: getattr(self, name) for name in self.learned}

    def restore(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Take the arrays back."""
        for name in self.learned:
            setattr(self, name, arrays[name])


class Pca(Reducer):
    """The d directions with the most variance around the mean."""

    centered: ClassVar[bool] = True

    def _fit(self, x: FloatArray) -> None:
        sample = training_sample(x, 200_000, self.seed)
        if self.centered:
            self.center = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        moment = second_moment(sample, self.center)
        _, axes = np.linalg.eigh(moment)
        self.basis = fix_signs(axes[:, ::-1][:, : self.d]).astype(np.float32)


class TruncatedSvd(Pca):
    """PCA without taking the mean off, so that the zero vector stays where it is."""

    centered: ClassVar[bool] = False


class RandomProjection(Reducer):
    """d orthonormal random directions; knows nothing of the data and keeps distances on average."""

    def _fit(self, x: FloatArray) -> None:
        dims = x.shape[1]
        self.basis = np.ascontiguousarray(haar_rotation(dims, self.seed)[:, : self.d])


class FeatureSelection(Reducer):
    """The d dimensions with the most variance, unchanged; the others come back as their mean."""

    learned: ClassVar[tuple[str, ...]] = ("center", "chosen")

    def __init__(self, d: int, *, seed: int = 0) -> None:
        super().__init__(d, seed=seed)
        self.chosen = np.zeros(0, np.int64)

    def _fit(self, x: FloatArray) -> None:
        order = np.argsort(-x.var(axis=0, dtype=np.float64), kind="stable")
        self.chosen = np.sort(order[: self.d])
        self.center = x.mean(axis=0, dtype=np.float64).astype(np.float32)

    def reduce(self, x: FloatArray) -> FloatArray:
        """The chosen columns."""
        y: FloatArray = np.ascontiguousarray(x[:, self.chosen])
        return y

    def lift(self, y: FloatArray) -> FloatArray:
        """The chosen columns in their places, the mean elsewhere."""
        x: FloatArray = np.tile(self.center, (len(y), 1))
        x[:, self.chosen] = y
        return x


class Prefix(Reducer):
    """The first d dimensions of a Matryoshka model; the rest come back as zero."""

    learned: ClassVar[tuple[str, ...]] = ("center",)

    def _fit(self, x: FloatArray) -> None: ...

    def reduce(self, x: FloatArray) -> FloatArray:
        """The first d columns."""
        y: FloatArray = np.ascontiguousarray(x[:, : self.d])
        return y

    def lift(self, y: FloatArray) -> FloatArray:
        """The prefix, padded with zeros."""
        x: FloatArray = np.zeros((len(y), len(self.center)), np.float32)
        x[:, : self.d] = y
        return x

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Nothing is learned; only the number of dimensions must come back."""
        return {"n_dims": np.array([len(self.center)], np.int64)}

    def restore(self, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Take the number of dimensions back."""
        self.center = np.zeros(int(arrays["n_dims"][0]), np.float32)


REDUCERS: dict[str, type[Reducer]] = {
    "pca": Pca,
    "svd": TruncatedSvd,
    "rp": RandomProjection,
    "select": FeatureSelection,
    "prefix": Prefix,
}
"""Reducers by their name in codec names: pca64, svd64, rp64, select64, prefix64."""


def second_moment(x: FloatArray, center: FloatArray) -> np.ndarray[Any, Any]:
    """(x - center)^T (x - center) / N in float64, in blocks so that no second copy of x exists."""
    moment = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), 8192):
        block = x[start : start + 8192] - center
        moment += block.T @ block
    return moment / max(len(x), 1)


def fix_signs(axes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Turn each axis so that its largest entry is positive: the same basis on every machine."""
    peak = np.abs(axes).argmax(axis=0)
    turned: np.ndarray[Any, Any] = axes * np.sign(axes[peak, np.arange(axes.shape[1])])
    return turned
