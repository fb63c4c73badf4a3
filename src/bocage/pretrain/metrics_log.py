"""metrics.jsonl: one line per step, and the curves that are drawn from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from bocage.embeddings.atomic import write_file
from bocage.learn.finetune.log import METRICS_FILE, read_metrics

PICTURE = "loss.png"
_SMOOTHING = 0.98
"""Weight of the past in the smooth curve: about the last 50 steps."""


class MetricsLog:
    """Lines of numbers that survive a kill: each is written out at once."""

    def __init__(self, run: Path, *, first_step: int) -> None:
        """Open the log of a run that goes on at ``first_step``; later lines are dropped."""
        self.path = run / METRICS_FILE
        if self.path.exists():
            kept = [row for row in read_metrics(run) if row["step"] < first_step > 1]
            write_file(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file: TextIO = self.path.open("a", buffering=1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        self._file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def draw_curves(run: Path) -> Path | None:
    """Draw loss, gradient norm and in-loop scores to ``loss.png``; None if nothing is logged."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = read_metrics(run)
    steps = [row for row in rows if "loss" in row]
    if not steps:
        return None
    scores = [row for row in rows if "evaluation" in row]
    panels = 3 if scores else 2
    figure, axes = pyplot.subplots(1, panels, figsize=(5 * panels, 3.6), constrained_layout=True)
    x = [row["step"] for row in steps]
    for axis, key in zip(axes, ("loss", "gradient_norm"), strict=False):
        y = [row[key] for row in steps]
        axis.plot(x, y, color="0.8", linewidth=0.6)
        axis.plot(x, _smooth(y), color="tab:blue", linewidth=1.2)
        axis.set(xlabel="step", title=key.replace("_", " "))
    if any(row["gradient_norm"] > 0 for row in steps):
        axes[1].set_yscale("log")
    if scores:
        names = sorted({name for row in scores for name in row["evaluation"]})
        for name in names:
            points = [(r["step"], r["evaluation"][name]) for r in scores if name in r["evaluation"]]
            axes[2].plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes[2].set(xlabel="step", title="in-loop scores")
        axes[2].legend(fontsize=7)
    path = run / PICTURE
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average, corrected for its start."""
    total = weight = 0.0
    smooth = []
    for value in values:
        if math.isfinite(value):
            total = _SMOOTHING * total + (1 - _SMOOTHING) * value
            weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        smooth.append(total / weight if weight else math.nan)
    return smooth
