"""The report of a probe: a page to read, numbers for a program, pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.errors import ConfigError
from bocage.learn.classes import LabelClass, classes_to_json
from bocage.scoring.accumulator import markdown_row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bocage.learn.labels import Task
    from bocage.learn.probe import Probe
    from bocage.scoring.accumulator import Scores
    from bocage.types import PathLike

FEW_BLOCKS = 10
"""Below this many units a bootstrap interval is too narrow."""

_SHOWN = {
    "classification": ("accuracy", "balanced_accuracy", "f1_macro", "miou", "kappa"),
    "multilabel": ("f1_macro", "f1_micro", "map_macro", "map_micro"),
    "regression": ("r2", "mae", "rmse", "bias"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model or baseline."""

    name: str
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """Everything that was found out about a probe; the first row is the probe."""

    task: Task
    target: str
    classes: tuple[LabelClass, ...]
    about: tuple[str, ...]
    """Labels, samples and folds, a line each."""

    rows: tuple[Row, ...]
    headline: str
    """Name of the score that stands first."""

    leakage: str
    """What location alone can do."""

    choices: tuple[str, ...]
    """The setting of each fold."""

    y: NDArray[Any]
    predicted: NDArray[Any]
    """Truth and prediction of each sample."""

    probe: Probe

    @property
    def scores(self) -> Scores:
        """Of the probe."""
        return self.rows[0].scores

    def markdown(self) -> str:
        """The report as a page."""
        setting = ", ".join(f"{k}={v:g}" for k, v in self.probe.setting.items()) or "none"
        lines = [f"# Probe for {self.target}", "", "```", *self.about, "```", ""]
        lines += [self.table(), ""]
        if self.leakage:
            lines += [f"By location: {self.leakage}.", ""]
        if self.scores.n_blocks < FEW_BLOCKS:
            lines += [
                f"The test samples lie in {self.scores.n_blocks} blocks only: read the intervals "
                "as too narrow.",
                "",
            ]
        if self.probe.embedding.weights_id.startswith("random"):
            lines += [
                "The weights of the model are random: these scores are a baseline, not a claim.",
                "",
            ]
        lines += [f"Setting: {setting} (of the folds: {'; '.join(self.choices)}).", ""]
        if self.scores.rows:
            lines += ["## By class", "", self.scores.markdown_rows(), ""]
        if self.scores.confusion is not None:
            lines += ["## Confusion (rows: truth)", "", self._confusion(self.scores.confusion), ""]
        return "\n".join(lines)

    def table(self) -> str:
        """The probe and its baselines, a row each, with 95 % intervals."""
        names = _SHOWN[self.task]
        lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for row in self.rows:
            cells = [f"{row.scores[name]:.3f}" for name in names]
            lines.append(f"| {row.name} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _confusion(self, matrix: NDArray[np.int64]) -> str:
        names = [c.name for c in self.classes]
        lines = [markdown_row(["", *names]), "|---" * (len(names) + 1) + "|"]
        for name, counts in zip(names, matrix, strict=True):
            lines.append(markdown_row([name, *(f"{int(n):,}" for n in counts)]))
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and texts."""
        return {
            "task": self.task,
            "target": self.target,
            "classes": classes_to_json(self.classes),
            "about": list(self.about),
            "headline": self.headline,
            "rows": [{"name": r.name, **r.scores.as_dict()} for r in self.rows],
            "leakage": self.leakage,
            "choices": list(self.choices),
            "setting": dict(self.probe.setting),
        }

    def write(self, folder: PathLike) -> tuple[Path, ...]:
        """Write report.md, report.json and a picture; gives their paths."""
        from bocage.embeddings.atomic import write_file

        folder = Path(folder)
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False)
        write_file(folder / "report.md", self.markdown().encode())
        write_file(folder / "report.json", text.encode())
        name = "confusion.png" if self.scores.confusion is not None else "scatter.png"
        written = [folder / "report.md", folder / "report.json"]
        if self.task != "multilabel":
            write_file(folder / name, self.picture())
            written.append(folder / name)
        return tuple(written)

    def picture(self) -> bytes:
        """The confusion matrix, or predicted against true numbers, as PNG."""
        import io

        figure = import_figure()(figsize=(5, 4.5))
        axes = figure.add_subplot()
        if self.scores.confusion is not None:
            _draw_confusion(axes, self.scores.confusion, [c.name for c in self.classes])
        else:
            tested = np.isfinite(self.predicted)
            axes.plot(self.y[tested], self.predicted[tested], ".", ms=3, alpha=0.5)
            ends = [float(self.y.min()), float(self.y.max())]
            axes.plot(ends, ends, color="black", lw=1)
            axes.set_xlabel(f"{self.target}, true")
            axes.set_ylabel("predicted by a probe that had not seen it")
        axes.set_title(f"{self.headline} {self.scores[self.headline]:.3f}")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100, bbox_inches="tight")
        return file.getvalue()


def import_figure() -> Any:
    """Matplotlib's Figure, which needs no display, or how to install it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            got="a picture without the package matplotlib",
            expected="the extra learn",
            fix='pip install "bocage[learn]"',
        ) from error
    return Figure


def _draw_confusion(axes: Any, matrix: NDArray[np.int64], names: list[str]) -> None:
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(names) > 20:
        return
    for i, j in np.ndindex(matrix.shape):
        color = "white" if share[i, j] > 0.5 else "black"
        axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", color=color, fontsize=8)
