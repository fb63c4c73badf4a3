"""Curves of a run as a picture."""

from __future__ import annotations

from pathlib import Path

from bocage.learn.finetune.log import read_metrics


def draw_curves(folder: Path, metric: str, best_epoch: int) -> Path | None:
    """Write curves.png: loss of training and validation, and the score; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    rows = read_metrics(folder)
    steps = [row for row in rows if "loss" in row]
    epochs = [row for row in rows if "val_loss" in row]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([r["step"] for r in steps], [r["loss"] for r in steps], lw=0.8, label="training")
    left.plot([r["step"] for r in epochs], [r["val_loss"] for r in epochs], label="validation")
    left.set(xlabel="step", ylabel="loss", title="Loss")
    left.legend()
    scores = [r["val_loss"] if metric == "loss" else r["val"][metric] for r in epochs]
    right.plot([r["epoch"] + 1 for r in epochs], scores, marker=".")
    right.axvline(best_epoch + 1, ls=":", color="gray", label=f"best: epoch {best_epoch + 1}")
    right.set(xlabel="epoch", ylabel=metric, title="Validation")
    right.legend()
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path
