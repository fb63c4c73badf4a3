"""Predictions of the tested samples, turned into scores with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.learn.report import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.learn.crossval import Target
    from bocage.learn.sample import Samples
    from bocage.scoring.accumulator import Scores
    from bocage.scoring.folds import Folds


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Turns predictions into rows of the report."""

    samples: Samples
    target: Target
    folds: Folds

    def row(self, name: str, scores: NDArray[np.float64]) -> Row:
        """Score the tested samples; intervals by block, or by shape for random folds."""
        return Row(name=name, scores=self.score(scores))

    def score(self, scores: NDArray[np.float64]) -> Scores:
        """The metrics of the task."""
        from bocage.scoring.confusion import Confusion
        from bocage.scoring.multilabel import Multilabel
        from bocage.scoring.regression import Regression

        tested = np.flatnonzero((self.folds.fold >= 0) & np.isfinite(scores).all(axis=1))
        block = self.samples.group if self.folds.name == "random" else self.folds.block
        block = np.unique(block[tested], return_inverse=True)[1].reshape(-1)
        y = self.target.y[tested]
        names = [c.name for c in self.samples.classes]
        if self.target.task == "regression":
            metric = Regression(center=float(y.mean()))
            return metric.update(scores[tested, 0], y, block=block).compute()
        if self.target.task == "multilabel":
            share = np.clip(scores[tested], 0, 1)
            return Multilabel(names).update(share, y, block=block).compute()
        guess = scores[tested].argmax(axis=1)
        return Confusion(names).update(guess, y, block=block).compute()

    def by_location(self) -> NDArray[np.float64]:
        """The nearest labelled neighbor's value as scores."""
        from bocage.scoring.location import predict_by_location

        return self.as_scores(predict_by_location(self.folds, self.samples.y))

    def as_scores(self, y: NDArray[Any]) -> NDArray[np.float64]:
        """Values as scores [n, C]."""
        if self.target.task == "classification":
            return np.asarray(np.eye(self.target.n_classes)[y])
        return np.asarray(y, np.float64).reshape(len(y), -1)
