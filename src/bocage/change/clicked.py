"""Change as somebody means it: a logistic model of the difference, from a few clicked labels.

The score is taken on folds of ground that the model has not seen, beside a nearest neighbor that
knows only where the labels are: on clicked labels that neighbor is often as good, and then nobody
knows whether the model saw the change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import InputError
from bocage.learn.examine import ProbeConfig, examine
from bocage.learn.labels import Labels, read_labels
from bocage.learn.sample import sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.change.pair import Pair
    from bocage.learn.probe import Probe
    from bocage.learn.report import ProbeReport
    from bocage.types import FloatArray, PathLike

_YES = {"change", "changed", "yes", "true", "1"}
_NO = {"no change", "no_change", "nochange", "no-change", "unchanged", "no", "false", "0"}


@dataclass(frozen=True, kw_only=True)
class LogisticChange:
    """Probability of change from a probe on the difference."""

    probe: Probe
    column: int
    """Which of the probe's classes is the change."""

    report: ProbeReport
    name: str = "logistic"
    bands: tuple[str, ...] = ("probability of change",)
    is_linear: bool = False
    has_strength: bool = True

    def apply(self, before: FloatArray, after: FloatArray) -> FloatArray:
        """Probability [1, h, w]."""
        d = after - before
        dims, h, w = d.shape
        p = self.probe.predict_proba(np.ascontiguousarray(d.reshape(dims, -1).T))
        return np.asarray(p[:, self.column].reshape(1, h, w), np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Those of the probe."""
        return self.probe.estimator.arrays()

    def facts(self) -> dict[str, Any]:
        """Scores on folds that the model had not seen, and what location alone can do."""
        rows = {r.name: {k: v.value for k, v in r.scores.values.items()} for r in self.report.rows}
        return {
            "scores": rows,
            "location": self.report.leakage,
            "about": list(self.report.about),
            "setting": dict(self.probe.setting),
        }


def fit_clicked(
    pair: Pair,
    labels: PathLike | Labels,
    *,
    column: str | None = None,
    config: ProbeConfig | None = None,
) -> LogisticChange:
    """Fit on labelled places of a pair: change and no change.

    Args:
        pair: From `open_pair`.
        labels: Points or polygons with two classes, called change and no change (or 1 and 0).
        column: Their column, where the file has several.
        config: Folds, seed, other methods to compare; balanced by default.

    InputError for one class only, other classes, or labels outside what both times cover.
    """
    known = (
        labels
        if isinstance(labels, Labels)
        else read_labels(labels, column=column, option="--label-column")
    )
    if known.task != "classification" or len(known.classes) != 2:
        raise InputError(
            got=f"labels of {len(known.classes)} classes in column {known.target}"
            + (f": {', '.join(c.name for c in known.classes[:6])}" if known.classes else ""),
            expected="two classes, change and no change",
            fix="rename or drop the others, or map several kinds of change with `bocage probe`",
        )
    samples = sample(known, pair.difference())
    config = config or ProbeConfig(balanced=True)
    probe, report = examine(samples, config=config, about=known.describe())
    names = [c.name for c in probe.classes]
    return LogisticChange(probe=probe, column=_change_column(names), report=report)


def _change_column(names: list[str]) -> int:
    words = [name.strip().lower() for name in names]
    yes = [i for i, word in enumerate(words) if word in _YES]
    no = [i for i, word in enumerate(words) if word in _NO]
    if len(yes) == 1:
        return yes[0]
    if len(no) == 1 and len(words) == 2:
        return 1 - no[0]
    raise InputError(
        got=f"the classes {' and '.join(names)}",
        expected="classes of which one means change",
        fix="call them change and no change, or 1 and 0",
    )
