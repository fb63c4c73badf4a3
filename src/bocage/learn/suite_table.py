"""The results of a suite as a table, as JSON, and as a picture of score against cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bocage.learn.suite_run import TUNED

if TYPE_CHECKING:
    from bocage.learn.suite_run import SuiteResult, TaskResult
    from bocage.types import PathLike

LOWER_IS_BETTER = {"mae", "rmse", "ece", "brier", "log_loss"}


def markdown(result: SuiteResult) -> str:
    """One row per model and baseline, one column per task; ranks are among the models."""
    lines = [f"# {result.name}", ""]
    tasks = result.tasks
    heads = [f"{t.task.label} ({t.task.metric})" for t in tasks]
    lines += [f"| | {' | '.join(heads)} | mean rank | multiply-adds |"]
    lines += ["|---" * (len(heads) + 3) + "|"]
    ranks = mean_ranks(result)
    rows = contenders(result)
    for task in tasks:
        rows += [name for name in task.scores if name not in rows]
    for name in rows:
        cells = [_cell(task, name) for task in tasks]
        rank = f"{ranks[name]:.2f}" if name in ranks else ""
        macs = [task.macs[name] for task in tasks if name in task.macs]
        cost = " / ".join(_short(m) for m in macs)
        lines.append(f"| {name} | {' | '.join(cells)} | {rank} | {cost} |")
    lines += ["", "Values with 95 % bootstrap intervals. What was scored:", ""]
    lines += [f"- {t.task.label}: {t.about}." for t in tasks]
    lines += [f"- left out {name}: {why}." for name, why in result.refused.items()]
    if any("(random)" in name for name in result.models):
        lines += ["", "Models with random weights are baselines, not claims."]
    return "\n".join(lines) + "\n"


def mean_ranks(result: SuiteResult) -> dict[str, float]:
    """Mean rank of each model over the tasks, 1 is best; equal scores share their ranks."""
    from scipy.stats import rankdata

    names, table = contenders(result), []
    for task in result.tasks:
        sign = 1 if task.task.metric in LOWER_IS_BETTER else -1
        scores = [sign * task.scores[m][task.task.metric].value for m in names]
        table.append(rankdata(scores))
    return dict(zip(names, np.mean(table, axis=0).tolist(), strict=True))


def contenders(result: SuiteResult) -> list[str]:
    """Models, with frozen features and fine-tuned where every task has that."""
    tuned = [name + TUNED for name in result.models]
    names = [name for pair in zip(result.models, tuned, strict=True) for name in pair]
    return [name for name in names if all(name in task.scores for task in result.tasks)]


def as_dict(result: SuiteResult) -> dict[str, Any]:
    """Plain numbers and texts."""
    return {
        "name": result.name,
        "models": list(result.models),
        "mean_rank": mean_ranks(result),
        "tasks": [
            {
                "name": t.task.label,
                "metric": t.task.metric,
                "about": t.about,
                "scores": {name: s.as_dict() for name, s in t.scores.items()},
                "choices": {name: list(c) for name, c in t.choices.items()},
                "multiply_adds": t.macs,
            }
            for t in result.tasks
        ],
        "refused": result.refused,
    }


def write(result: SuiteResult, folder: PathLike) -> tuple[Path, ...]:
    """Write table.md, suite.json and, where costs are known, pareto.png."""
    from bocage.embeddings.atomic import write_file

    folder = Path(folder)
    write_file(folder / "table.md", markdown(result).encode())
    text = json.dumps(as_dict(result), indent=1, allow_nan=False)
    write_file(folder / "suite.json", text.encode())
    written = [folder / "table.md", folder / "suite.json"]
    if all(task.macs for task in result.tasks):
        write_file(folder / "pareto.png", pareto(result))
        written.append(folder / "pareto.png")
    return tuple(written)


def pareto(result: SuiteResult) -> bytes:
    """Score against multiply-adds of one image, a panel per task, baselines as lines; PNG."""
    import io

    from bocage.learn.report import import_figure

    n = len(result.tasks)
    figure = import_figure()(figsize=(1.2 + 3.8 * n, 4.6), layout="constrained")
    names = contenders(result)
    lines: dict[str, Any] = {}
    for i, task in enumerate(result.tasks):
        axes = figure.add_subplot(1, n, i + 1)
        for k, name in enumerate(names):
            score = task.scores[name][task.task.metric]
            # A tuned model costs as much as a frozen one: a little to the right, not on top.
            x = task.macs[name] * (1.12 if name.endswith(TUNED) else 1)
            errors = np.nan_to_num([[score.value - score.low], [score.high - score.value]])
            lines[name] = axes.errorbar(
                x,
                score.value,
                yerr=np.maximum(errors, 0),
                fmt="s" if name.endswith(TUNED) else "o",
                color=f"C{k % 10}",
                capsize=3,
            )
        for k, name in enumerate(_baselines(result, task)):
            value = task.scores[name][task.task.metric].value
            style = ("--", ":", "-.", (0, (1, 4)))[k % 4]
            lines[name] = axes.axhline(value, color="gray", ls=style, lw=1)
        costs = [task.macs[name] for name in names]
        _cost_axis(axes, min(costs), max(costs))
        axes.set_xlabel("multiply-adds per image")
        axes.set_ylabel(task.task.metric)
        axes.set_title(task.task.label, fontsize=10)
    figure.legend(
        lines.values(), lines, loc="outside lower center", ncols=min(3, n + 1), fontsize=8
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _cost_axis(axes: Any, low: int, high: int) -> None:
    """A logarithmic axis whose few labels are numbers with a unit, however narrow it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(low / 3, high * 3)
    decades = np.log10(9 * high / low)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _at: _short(round(x))))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _baselines(result: SuiteResult, task: TaskResult) -> list[str]:
    return [name for name in task.scores if name not in contenders(result)]


def _cell(task: TaskResult, name: str) -> str:
    return f"{task.scores[name][task.task.metric]:.3f}" if name in task.scores else ""


def _short(n: int) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)
