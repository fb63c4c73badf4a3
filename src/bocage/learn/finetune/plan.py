"""What a run would do and cost, found out by one step that is thrown away."""

from __future__ import annotations

import copy
import resource
import sys
import time
from typing import Any

import numpy as np
import torch

from bocage.learn.finetune.batches import Batches
from bocage.learn.finetune.config import FinetuneConfig
from bocage.learn.finetune.judge import choose_metric
from bocage.learn.finetune.loop import describe
from bocage.learn.finetune.losses import Loss, class_weights
from bocage.learn.finetune.rates import make_optimizer
from bocage.learn.finetune.start import start
from bocage.learn.finetune.training_set import TrainingSet
from bocage.models.model import Model
from bocage.progress import format_bytes, format_duration
from bocage.types import PathLike


def plan_finetune(
    data: TrainingSet,
    model: Model | PathLike,
    *,
    config: FinetuneConfig | None = None,
    weights: Any = "hub",
    device: str = "cpu",
) -> str:
    """Parameters, steps, memory and time of a run as text; nothing is written."""
    config = config or FinetuneConfig()
    choose_metric(data.task, config.metric)
    counts = data.counts("train") if data.task.classes else np.zeros(0, np.int64)
    weights_of_classes = class_weights(config.class_weights, counts, len(data.task.classes))
    begun = start(model, data, config, weights=weights)
    batches = Batches(data, config, begun.prepare)
    text = describe(data, begun, config, batches)
    place = torch.device(device)
    network = copy.deepcopy(begun.module).to(place)
    optimizer = make_optimizer(network, config)  # type: ignore[arg-type]  # the same network
    loss = Loss(
        data.task,
        weights=weights_of_classes,
        target_mean=begun.description.target_mean,
        target_std=begun.description.target_std,
    )
    seconds: list[float] = []
    with torch.random.fork_rng(devices=[]):
        for k in range(2):
            began = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            for part in batches.step(0, min(k, batches.steps_per_epoch - 1)):
                answers = network(part.inputs.to(place))
                loss.total(answers, part.labels.to(place)).backward()
            optimizer.step()
            if place.type == "cuda":
                torch.cuda.synchronize(place)
            seconds.append(time.perf_counter() - began)
    n_val = len(data.rows("val")) / config.batch_size
    per_epoch = seconds[-1] * (batches.steps_per_epoch + n_val / config.accumulate / 3)
    if place.type == "cuda":
        memory = torch.cuda.max_memory_allocated(place)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = peak if sys.platform == "darwin" else peak * 1024
    return "\n".join(
        [
            text,
            f"memory   {format_bytes(memory)} with a step of {batches.step_size} crops",
            f"time     about {format_duration(per_epoch * config.epochs)} on this machine "
            f"({format_duration(seconds[-1])} per step when everything learns)",
        ]
    )
