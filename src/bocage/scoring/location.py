"""Could the score come from the place alone? A nearest neighbor that sees nothing but coordinates.

In published folds of clicked labels, such a neighbor scored 0.997 where the embeddings scored
0.988: the folds tested interpolation, not features. So every score is reported beside it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bocage.errors import BocageWarning, InputError
from bocage.scoring.paired import bootstrap_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.scoring.folds import Folds


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """A model beside the nearest labelled neighbor on the ground, under the same folds."""

    verdict: Literal["model", "tie", "location", "unknown"]
    """Who is better. A tie: the interval of the difference holds zero."""

    metric: str
    """accuracy, R2, or F1 (mean over samples, for several labels each)."""

    model: float
    location: float
    """The two scores; NaN where places are unknown."""

    low: float
    high: float
    """95 % bootstrap interval of model minus location; whole blocks are drawn."""

    @property
    def text(self) -> str:
        """One sentence for the report."""
        if self.verdict == "unknown":
            return "no places were given, so nobody knows how much of the score is mere nearness"
        facts = (
            f"{self.metric} {self.model:.3f}, by location only {self.location:.3f} "
            f"(difference {self.low:+.3f} to {self.high:+.3f})"
        )
        if self.verdict == "model":
            return facts
        verb = "beats" if self.verdict == "location" else "cannot be told from"
        return (
            f"{facts}: a nearest neighbor that knows only coordinates {verb} the model, "
            "so this score does not show that the features carry the answer; use spatial folds, "
            "larger blocks or more places"
        )


def predict_by_location(folds: Folds, labels: NDArray[Any]) -> NDArray[Any]:
    """The label of the nearest training sample on the ground, for every tested sample.

    Rows that no fold tests keep their own label.
    """
    labels = np.asarray(labels)
    if folds.places is None:
        raise InputError(
            got="folds without places",
            expected="lonlat or xy_m",
            fix="pass them to make_folds, whatever the kind of folds",
        )
    predicted = labels.copy()
    for train, test in folds.splits():
        nearest, _ = folds.places.nearest(test, train)
        predicted[test] = labels[nearest]
    return predicted


def check_leakage(
    folds: Folds, labels: NDArray[Any], predicted: NDArray[Any], *, seed: int = 0
) -> Leakage:
    """Put a model's predictions beside those of location alone; warn where it is no better.

    Args:
        folds: The folds that the predictions were made with.
        labels: Classes or numbers [n], or 0/1 of several labels [n, K].
        predicted: The model's, of the same shape; rows with fold -1 are not used.
        seed: Of the bootstrap.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape or len(labels) != len(folds.fold):
        raise InputError(
            got=f"labels {labels.shape}, predictions {predicted.shape}, {len(folds.fold)} samples",
            expected="one prediction for each label",
            fix="pass predictions of all samples in their order (any value where fold is -1)",
        )
    tested = folds.fold >= 0
    if predicted.dtype.kind == "f" and not np.isfinite(predicted[tested]).all():
        raise InputError(
            got="predictions with NaN or infinity",
            expected="one for every tested sample",
            fix="drop samples without data before splitting",
        )
    if folds.places is None:
        nan = float("nan")
        metric, gain, base = _gains(labels[tested], predicted[tested])
        return Leakage(
            verdict="unknown",
            metric=metric,
            model=base + float(gain.mean()),
            location=nan,
            low=nan,
            high=nan,
        )
    by_place = predict_by_location(folds, labels)[tested]
    metric, of_model, base = _gains(labels[tested], predicted[tested])
    _, of_place, _ = _gains(labels[tested], by_place)
    low, high = bootstrap_interval(of_model - of_place, block=folds.block[tested], seed=seed)
    difference = float((of_model - of_place).mean())
    verdict: Literal["model", "tie", "location"] = "model"
    if difference <= 0:
        verdict = "tie" if high >= 0 else "location"
    elif low <= 0:
        verdict = "tie"
    found = Leakage(
        verdict=verdict,
        metric=metric,
        model=base + float(of_model.mean()),
        location=base + float(of_place.mean()),
        low=low,
        high=high,
    )
    if verdict != "model":
        warnings.warn(found.text, BocageWarning, stacklevel=2)
    return found


def _gains(labels: NDArray[Any], predicted: NDArray[Any]) -> tuple[str, NDArray[np.float64], float]:
    """Name of the score, and what each sample adds to it: score = base + mean(gain)."""
    if labels.ndim == 2:
        yes, guess = labels.astype(bool), predicted.astype(bool)
        size = yes.sum(axis=1) + guess.sum(axis=1)
        both = (yes & guess).sum(axis=1)
        return "F1", np.where(size == 0, 1.0, 2 * both / np.maximum(size, 1)), 0.0
    if labels.dtype.kind == "f":
        error = (labels.astype(np.float64) - predicted) ** 2
        return "R2", -error / max(float(labels.var(dtype=np.float64)), 1e-30), 1.0
    return "accuracy", (labels == predicted).astype(np.float64), 0.0
