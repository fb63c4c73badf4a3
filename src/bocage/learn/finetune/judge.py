"""Scores of a network on a split, the same for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bocage.errors import ConfigError
from bocage.learn.finetune.batches import Batch
from bocage.learn.finetune.losses import Loss
from bocage.learn.finetune.network import Network
from bocage.learn.finetune.processes import Processes
from bocage.learn.finetune.task import IGNORE, Task

if TYPE_CHECKING:
    from bocage.scoring.accumulator import Scores

METRICS = {
    "classification": "accuracy",
    "multilabel": "f1_micro",
    "segmentation": "miou",
    "regression": "r2",
}
"""The score that chooses the best epoch."""

LOWER_IS_BETTER = {"loss", "mae", "rmse"}


def judge(
    network: Network,
    batches: Iterable[Batch],
    loss: Loss,
    processes: Processes,
    *,
    forward: Callable[[Batch], Tensor],
) -> tuple[float, Scores]:
    """Mean loss and scores over all batches of all processes."""
    metric = make_metric(loss.task, center=loss.target_mean)
    total = weight = 0.0
    module: Any = network
    was_training = module.training
    module.eval()
    with torch.no_grad():
        for batch in batches:
            answers = forward(batch).float()
            labels = batch.labels.to(answers.device)
            total += float(loss.total(answers, labels))
            weight += loss.weight(labels)
            _update(metric, loss, answers, batch)
    module.train(was_training)
    processes.sum_state(metric.state())
    total, weight = processes.sum(total), processes.sum(weight)
    return total / max(weight, 1e-12), metric.compute(n_bootstrap=200)


def make_metric(task: Task, *, center: float = 0.0) -> Any:
    """The sums from which the scores of a task follow."""
    names = [c.name for c in task.classes]
    if task.kind == "regression":
        from bocage.scoring.regression import Regression

        return Regression(center=center)
    if task.kind == "multilabel":
        from bocage.scoring.multilabel import Multilabel

        return Multilabel(names)
    from bocage.scoring.confusion import Confusion

    return Confusion(names, ignore=IGNORE)


def _update(metric: Any, loss: Loss, answers: Tensor, batch: Batch) -> None:
    labels = batch.labels.numpy()
    if loss.task.kind == "regression":
        values = answers[..., 0] * loss.target_std + loss.target_mean
        metric.update(values.cpu().numpy(), labels, block=batch.rows, ignore_nan=True)
    elif loss.task.kind == "multilabel":
        known = (labels >= 0).all(axis=1)
        p = answers.sigmoid().cpu().numpy()
        metric.update(p[known], labels[known], block=batch.rows[known])
    else:
        guess = answers.argmax(dim=-1).cpu().numpy()
        metric.update(guess, labels.astype(np.int64), block=batch.rows)


def choose_metric(task: Task, metric: str) -> str:
    """The score to choose the best epoch by; ConfigError for one the task does not have."""
    if metric == "auto":
        return METRICS[task.kind]
    known = {
        "regression": ("r2", "mae", "rmse"),
        "multilabel": ("f1_micro", "f1_macro", "map_micro", "map_macro"),
    }.get(task.kind, ("accuracy", "balanced_accuracy", "f1_macro", "miou", "kappa"))
    if metric not in {*known, "loss"}:
        raise ConfigError(
            got=f"metric {metric!r} for {task.kind}",
            expected=f"one of {', '.join(known)}, loss",
            fix="leave out --metric",
        )
    return metric
