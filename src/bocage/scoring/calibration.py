"""Whether a probability of 0.8 is right eight times in ten."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError
from bocage.scoring.accumulator import N_SLOTS, Accumulator, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from numpy.typing import ArrayLike, NDArray


class Calibration(Accumulator):
    """Reliability of the most probable class: ece, brier, log_loss, overconfidence.

    ece: mean |confidence - accuracy| over equal bins of confidence, weighted by their samples.
    brier: sum over classes of (probability - truth)^2, 0 to 2. Rows are the bins of a reliability
    diagram. overconfidence: mean confidence minus accuracy.
    """

    def __init__(self, n_classes: int, *, n_bins: int = 15, n_slots: int = N_SLOTS) -> None:
        self.n_classes, self.n_bins = n_classes, n_bins
        shapes = {"count": (n_bins,), "right": (n_bins,), "sum_confidence": (n_bins,)}
        super().__init__({**shapes, "sum_brier": (), "sum_log": ()}, n_slots)

    def update(
        self, probability: ArrayLike, target: ArrayLike, *, block: ArrayLike | None = None
    ) -> Self:
        """Add probabilities [n, K], or [n] of class 1 of two, and true classes [n]."""
        p, t = np.asarray(probability, np.float64), np.asarray(target)
        if p.ndim == 1 and self.n_classes == 2:
            p = np.stack([1 - p, p], axis=1)
        if p.ndim != 2 or p.shape != (len(t), self.n_classes) or t.dtype.kind not in "biu":
            raise InputError(
                got=f"probabilities {p.shape} for targets {t.shape} of {t.dtype}",
                expected=f"[n, {self.n_classes}] and class numbers [n]",
                fix="move the class axis last and flatten maps to pixels",
            )
        t = t.astype(np.int64)
        if len(t) == 0:
            return self
        total = p.sum(axis=1)
        # NaN fails every comparison, hence the form of the test.
        if not (p.min() >= -1e-6 and p.max() <= 1 + 1e-6 and np.abs(total - 1).max() < 1e-3):
            raise InputError(
                got=f"probabilities from {p.min():g} to {p.max():g} whose sums reach "
                f"{total[np.abs(total - 1).argmax()]:g}",
                expected="numbers from 0 to 1 that add up to 1",
                fix="apply softmax to logits",
            )
        if t.min() < 0 or t.max() >= self.n_classes:
            raise InputError(
                got=f"target class {t.min() if t.min() < 0 else t.max()}",
                expected=f"0 to {self.n_classes - 1}",
                fix="drop samples without a label",
            )
        slots = self._slots(len(t), block)
        confidence = p.max(axis=1)
        right = p.argmax(axis=1) == t
        bins = np.clip(np.ceil(confidence * self.n_bins).astype(np.int64) - 1, 0, self.n_bins - 1)
        of_truth = p[np.arange(len(t)), t]
        brier = (p**2).sum(axis=1) - 2 * of_truth + 1
        code = slots * self.n_bins + bins
        size, shape = self.n_slots * self.n_bins, (self.n_slots, self.n_bins)
        self._sums["count"] += np.bincount(code, minlength=size).reshape(shape)
        self._sums["right"] += np.bincount(code[right], minlength=size).reshape(shape)
        self._sums["sum_confidence"] += np.bincount(code, confidence, size).reshape(shape)
        self._sums["sum_brier"] += np.bincount(slots, brier, self.n_slots)
        log = -np.log(np.maximum(of_truth, np.finfo(np.float64).eps))
        self._sums["sum_log"] += np.bincount(slots, log, self.n_slots)
        self._sums["n"] += np.bincount(slots, minlength=self.n_slots)
        return self

    def _row_names(self) -> tuple[str, list[str]]:
        pairs = itertools.pairwise(np.linspace(0, 1, self.n_bins + 1))
        return "confidence", [f"{a:.2f} to {b:.2f}" for a, b in pairs]

    def _row_counts(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"samples": sums["count"]}

    def _scores(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        n, count = sums["n"], sums["count"]
        gap = np.abs(sums["sum_confidence"] - sums["right"])
        return {
            "ece": ratio(gap.sum(axis=-1), n),
            "brier": ratio(sums["sum_brier"], n),
            "log_loss": ratio(sums["sum_log"], n),
            "overconfidence": ratio((sums["sum_confidence"] - sums["right"]).sum(axis=-1), n),
            "mean_confidence": ratio(sums["sum_confidence"], count),
            "accuracy": ratio(sums["right"], count),
        }
