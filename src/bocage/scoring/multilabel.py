"""Scores of samples with several labels each: mean average precision and F1.

Ranking needs all scores at once; histograms of scores need one pass and can be added up. With 512
bins the average precision is that of scores rounded to 1/512.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError
from bocage.scoring.accumulator import Accumulator, Interval, Scores, mean_defined, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from numpy.typing import ArrayLike, NDArray


class Multilabel(Accumulator):
    """Several labels per sample: map_macro, map_micro, f1_macro, f1_micro; per class ap, f1...

    A class without a positive sample has no average precision and is left out of the macro mean.
    """

    def __init__(
        self,
        classes: int | Sequence[str],
        *,
        threshold: float = 0.5,
        n_bins: int = 512,
        n_slots: int = 64,
    ) -> None:
        self.classes = (
            [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
        )
        self.threshold, self.n_bins = threshold, n_bins
        k = len(self.classes)
        histograms = {"positive": (k, n_bins), "negative": (k, n_bins)}
        super().__init__({**histograms, "tp": (k,), "fp": (k,), "fn": (k,)}, n_slots)

    def update(
        self, probability: ArrayLike, target: ArrayLike, *, block: ArrayLike | None = None
    ) -> Self:
        """Add probabilities [n, K] and truth [n, K] of 0 and 1; `block` [n] as in Confusion."""
        p, t = _checked(probability, target, len(self.classes))
        if p.size and not (p.min() >= 0 and p.max() <= 1):
            raise InputError(
                got=f"scores from {p.min():g} to {p.max():g}",
                expected="probabilities from 0 to 1",
                fix="apply a sigmoid to logits, or use score_ranking for scores of any scale",
            )
        n, k = p.shape
        slots = self._slots(n, block)
        bins = np.minimum((p * self.n_bins).astype(np.int64), self.n_bins - 1)
        cell = slots[:, None] * k + np.arange(k)
        code = cell * self.n_bins + bins
        for name, chosen in (("positive", t), ("negative", ~t)):
            counts = np.bincount(code[chosen], minlength=self._sums[name].size)
            self._sums[name] += counts.reshape(self._sums[name].shape)
        guess = p >= self.threshold
        for name, chosen in (("tp", guess & t), ("fp", guess & ~t), ("fn", ~guess & t)):
            counts = np.bincount(cell[chosen], minlength=self.n_slots * k)
            self._sums[name] += counts.reshape(self.n_slots, k)
        self._sums["n"] += np.bincount(slots, minlength=self.n_slots)
        return self

    def _row_names(self) -> tuple[str, list[str]]:
        return "class", self.classes

    def _row_counts(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"support": sums["positive"].sum(axis=-1)}

    def _scores(self, sums: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        tp, fp, fn = (np.asarray(sums[name], np.float64) for name in ("tp", "fp", "fn"))
        positive, negative = sums["positive"], sums["negative"]
        ap = _average_precision(positive, negative)
        f1 = ratio(2 * tp, 2 * tp + fp + fn)
        total = [x.sum(axis=-1) for x in (tp, fp, fn)]
        return {
            "map_macro": mean_defined(ap),
            "map_micro": _average_precision(positive.sum(axis=-2), negative.sum(axis=-2)),
            "f1_macro": mean_defined(f1),
            "f1_micro": ratio(2 * total[0], 2 * total[0] + total[1] + total[2]),
            "ap": ap,
            "precision": ratio(tp, tp + fp),
            "recall": ratio(tp, tp + fn),
            "f1": f1,
        }


def score_ranking(
    scores: ArrayLike,
    target: ArrayLike,
    *,
    classes: int | Sequence[str] | None = None,
    block: ArrayLike | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Scores:
    """Mean average precision of scores of any scale [n, K], exact, with bootstrap intervals.

    The values are scikit-learn's average_precision_score; the widths of the intervals come from
    the ranks of all scores in 1,024 bins.
    """
    from sklearn.metrics import average_precision_score

    k = np.asarray(target).shape[-1]
    x, t = _checked(scores, target, k)
    if not np.isfinite(x).all():
        raise InputError(
            got="scores with NaN or infinity",
            expected="finite scores",
            fix="find out why the model gives them",
        )
    order = np.unique(x, return_inverse=True)[1].reshape(x.shape)
    metric = Multilabel(classes if classes is not None else k, n_bins=1024, n_slots=256)
    rank = _mid_ranks(order)
    found = metric.update(rank, t, block=block).compute(n_bootstrap=n_bootstrap, seed=seed)
    exact = np.array(
        [average_precision_score(t[:, i], x[:, i]) if t[:, i].any() else np.nan for i in range(k)]
    )
    micro = float(average_precision_score(t.ravel(), x.ravel())) if t.any() else float("nan")
    values = {
        "map_macro": _moved(found["map_macro"], float(mean_defined(exact))),
        "map_micro": _moved(found["map_micro"], micro),
    }
    rows = [
        {"class": row["class"], "ap": _moved(row["ap"], float(v)), "support": row["support"]}
        for row, v in zip(found.rows, exact, strict=True)
    ]
    return Scores(values=values, rows=rows, n=found.n, n_blocks=found.n_blocks)


def _mid_ranks(order: NDArray[np.intp]) -> NDArray[np.float64]:
    """Share of all scores below each, ties at their middle."""
    counts = np.bincount(order.ravel())
    below = np.cumsum(counts) - counts / 2
    return np.asarray((below / order.size)[order], np.float64)


def _moved(interval: Interval, value: float) -> Interval:
    shift = value - interval.value
    return Interval(value=value, low=interval.low + shift, high=interval.high + shift)


def _average_precision(positive: NDArray[Any], negative: NDArray[Any]) -> NDArray[np.float64]:
    """Sum over thresholds of precision times gain in recall, from histograms [..., bins]."""
    tp = np.cumsum(positive[..., ::-1], axis=-1, dtype=np.float64)
    fp = np.cumsum(negative[..., ::-1], axis=-1, dtype=np.float64)
    precision = tp / np.maximum(tp + fp, 1e-12)
    return ratio((precision * positive[..., ::-1]).sum(axis=-1), tp[..., -1])


def _checked(
    scores: ArrayLike, target: ArrayLike, n_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    x, t = np.asarray(scores, np.float64), np.asarray(target)
    if x.ndim != 2 or x.shape != t.shape or x.shape[1] != n_classes:
        raise InputError(
            got=f"scores {x.shape} and targets {t.shape}",
            expected=f"[n, {n_classes}] both",
            fix="one column for each class",
        )
    if t.dtype != bool and not np.isin(t, (0, 1)).all():
        raise InputError(
            got="targets other than 0 and 1",
            expected="1 where a sample has the label",
            fix="use Confusion for class numbers",
        )
    return x, t.astype(bool)
