"""What a measure of change is, and those that need no fitting: difference, magnitude, cosine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.types import FloatArray


class Measure(Protocol):
    """Turns two times of a cell into numbers; band 1 is the strength of change."""

    @property
    def name(self) -> str:
        """One of METHODS."""

    @property
    def bands(self) -> tuple[str, ...]:
        """What each band is."""

    @property
    def is_linear(self) -> bool:
        """Whether the measure of mean cells is the mean of their measures."""

    @property
    def has_strength(self) -> bool:
        """Whether band 1 can be cut at a threshold."""

    def apply(self, before: FloatArray, after: FloatArray) -> FloatArray:
        """[D, h, w] twice to [B, h, w]; NaN where there is no data."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was fitted, to be kept beside the map."""

    def facts(self) -> dict[str, Any]:
        """What a person should know of the fit."""


class Kept:
    """A dataclass whose numbers and arrays are all that was fitted, and make it again."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was fitted, to be kept beside the map; nothing where nothing was."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {k: np.asarray(v) for k, v in values.items() if type(v) in {np.ndarray, int}}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The same from its arrays."""
        return cls(**{k: v if v.ndim else int(v) for k, v in arrays.items()})


@dataclass(frozen=True, kw_only=True)
class Difference(Kept):
    """After minus before, dimension by dimension."""

    features: tuple[str, ...]
    name: str = "difference"
    is_linear: bool = True
    has_strength: bool = False

    @property
    def bands(self) -> tuple[str, ...]:
        """One per feature."""
        return tuple(f"change of {f}" for f in self.features)

    def apply(self, before: FloatArray, after: FloatArray) -> FloatArray:
        """The difference."""
        return after - before

    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Magnitude(Kept):
    """Length of the difference; of embeddings in their own units."""

    name: str = "magnitude"
    bands: tuple[str, ...] = ("magnitude of change",)
    is_linear: bool = False
    has_strength: bool = True

    def apply(self, before: FloatArray, after: FloatArray) -> FloatArray:
        """||after - before||."""
        d = after - before
        return np.asarray(np.sqrt(np.einsum("dhw,dhw->hw", d, d))[None], np.float32)

    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Cosine(Kept):
    """One minus the cosine between before and after: 0 the same direction, 2 the opposite.

    A vector of length zero has no direction: two of them are the same, one is at distance 1.
    """

    name: str = "cosine"
    bands: tuple[str, ...] = ("cosine distance",)
    is_linear: bool = False
    has_strength: bool = True

    def apply(self, before: FloatArray, after: FloatArray) -> FloatArray:
        """1 - cos(before, after)."""
        product = np.einsum("dhw,dhw->hw", before, after, dtype=np.float64)
        squares = [np.einsum("dhw,dhw->hw", v, v, dtype=np.float64) for v in (before, after)]
        length = np.sqrt(squares[0] * squares[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            distance = 1 - np.clip(product / length, -1, 1)
        both = (squares[0] == 0) & (squares[1] == 0)
        distance = np.where(length == 0, np.where(both, 0.0, 1.0), distance)
        return distance[None].astype(np.float32)

    def facts(self) -> dict[str, Any]:
        """Nothing."""
        return {}
