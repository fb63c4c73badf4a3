"""Fine-tuning: epochs of steps, the best one kept, and a state to go on from after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bocage._version import __version__
from bocage.embeddings.atomic import naming_failures, write_file
from bocage.errors import ConfigError, InputError
from bocage.learn.finetune import checkpoint
from bocage.learn.finetune.batches import Batch, Batches
from bocage.learn.finetune.config import FinetuneConfig
from bocage.learn.finetune.curves import draw_curves
from bocage.learn.finetune.judge import LOWER_IS_BETTER, choose_metric, judge
from bocage.learn.finetune.log import MetricsLog
from bocage.learn.finetune.losses import Loss, class_weights
from bocage.learn.finetune.processes import Processes, join
from bocage.learn.finetune.rates import Schedule, make_optimizer, set_rates
from bocage.learn.finetune.saved import restore, save_finetuned
from bocage.learn.finetune.start import Start, start
from bocage.learn.finetune.training_set import TrainingSet
from bocage.memory import keep_freed_memory
from bocage.models.model import Model
from bocage.progress import progress
from bocage.types import PathLike

RUN_FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What a run gave."""

    folder: Path
    metric: str
    best_epoch: int
    """From 0."""

    val: float
    """The score that chose the best epoch."""

    test: dict[str, Any] = field(default_factory=dict)
    """Scores of the best epoch on the test samples with 95 % intervals; empty without samples."""

    def __str__(self) -> str:
        lines = [f"best     epoch {self.best_epoch + 1}: validation {self.metric} {self.val:.4f}"]
        if self.test:
            lines.append(f"test     {_interval_text(self.test, self.metric)}")
        lines.append(f"wrote    {self.folder}: bocage predict SCENE --with {self.folder}")
        return "\n".join(lines)


def finetune(
    data: TrainingSet,
    model: Model | PathLike,
    *,
    out: PathLike,
    config: FinetuneConfig | None = None,
    weights: Any = "hub",
    device: str = "cpu",
    show_progress: bool = False,
    report: Callable[[str], None] | None = None,
    request: dict[str, Any] | None = None,
) -> FinetuneResult:
    """Train a network on labelled crops; the folder ``out`` is always the best epoch so far.

    Run again with the same arguments after a crash: it goes on from the last state and ends as if
    nothing had happened. Under ``torchrun`` all processes train one network. ``model`` and
    ``weights`` as in ``start``. Raises ConfigError if ``out`` holds a run of other settings,
    another model, or a head for other classes.
    """
    config = config or FinetuneConfig()
    keep_freed_memory()  # the activations of one step are those of the next
    with join(device) as processes, torch.random.fork_rng(devices=_cuda(processes)):
        begun = start(model, data, config, weights=weights)
        run = _Run(data, begun, config, out=Path(out), processes=processes, request=request)
        return run.go(show_progress=show_progress and processes.writes, report=report)


class _Run:
    """One run of one process."""

    def __init__(
        self,
        data: TrainingSet,
        begun: Start,
        config: FinetuneConfig,
        *,
        out: Path,
        processes: Processes,
        request: dict[str, Any] | None,
    ) -> None:
        self.data, self.begun, self.config = data, begun, config
        self.out, self.processes, self.request = out, processes, request
        self.metric = choose_metric(data.task, config.metric)
        self.network, self.module = begun.network, begun.module.to(processes.device)
        weights = class_weights(
            config.class_weights,
            data.counts("train") if data.task.classes else np.zeros(0, np.int64),
            len(data.task.classes),
        )
        self.loss = Loss(
            data.task,
            weights=weights,
            target_mean=begun.description.target_mean,
            target_std=begun.description.target_std,
        )
        self.batches = Batches(
            data,
            config,
            begun.prepare,
            rank=processes.rank,
            world_size=processes.world_size,
        )
        if processes.world_size > len(self.batches.train):
            raise InputError(
                got=f"{len(self.batches.train)} training samples for {processes.world_size} "
                "processes",
                expected="a sample for each process",
                fix="start fewer processes",
            )
        self.optimizer = make_optimizer(self.network, config)
        self.schedule = Schedule(
            config,
            self.batches.steps_per_epoch,
            higher_is_better=self.metric not in LOWER_IS_BETTER,
        )
        self.step = 0
        self.best: tuple[int, float] | None = None

    def go(self, *, show_progress: bool, report: Callable[[str], None] | None) -> FinetuneResult:
        self._resume()
        log = MetricsLog(self.out, steps_done=self.step, enabled=self.processes.writes)
        if report is not None and self.processes.writes:
            report(describe(self.data, self.begun, self.config, self.batches))
            if self.step >= self.schedule.total:
                report(f"nothing to do: all {self.step} steps were done before")
            elif self.step:
                report(f"resume   from step {self.step} of {self.schedule.total}")
        left = self.schedule.total - self.step
        with progress("finetune", left, unit="steps", enabled=show_progress) as advance:
            per_epoch = self.batches.steps_per_epoch
            for epoch in range(self.step // per_epoch, self.config.epochs):
                self._epoch(epoch, log, advance)
        return self._finish(log)

    def _epoch(self, epoch: int, log: MetricsLog, advance: Callable[[float], None]) -> None:
        per_epoch = self.batches.steps_per_epoch
        self.network.freeze(epoch < self.schedule.frozen)
        self.module.train()
        for parts in self.batches.steps(epoch, self.step % per_epoch):
            share = self.schedule.share(self.step)
            set_rates(self.optimizer, share)
            loss = self._train_step(parts)
            self.step += 1
            log.write(
                {
                    "step": self.step,
                    "epoch": epoch,
                    "loss": loss,
                    "lr": self.optimizer.param_groups[-1]["lr"],
                }
            )
            advance(1)
            every = self.config.checkpoint_steps
            if every and self.step % every == 0 and self.step % per_epoch:
                self._keep()
        started = time.perf_counter()
        val_loss, scores = self._judge("val")
        val = {name: v.value for name, v in scores.values.items()}
        score = val_loss if self.metric == "loss" else val[self.metric]
        if not np.isfinite(score):  # no such score with these samples, for example one sample
            score = np.inf if self.metric in LOWER_IS_BETTER else -np.inf
        if not np.isfinite(val_loss):
            raise InputError(
                got=f"a loss of {val_loss} after epoch {epoch + 1}",
                expected="a finite loss",
                fix="lower --lr, or use --precision fp32",
            )
        self.schedule.end_epoch(score)
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        if self.best is None or sign * score > sign * self.best[1]:
            self.best = (epoch, score)
            if self.processes.writes:
                save_finetuned(self.out, self.begun.module, self.begun.description)
        log.write(
            {
                "step": self.step,
                "epoch": epoch,
                "val_loss": val_loss,
                "val": val,
                "best_epoch": self.best[0],
                "seconds": time.perf_counter() - started,
            }
        )
        self._keep()

    def _train_step(self, parts: list[Batch]) -> float:
        """One optimizer step; the mean loss over all processes and parts."""
        # Random layers draw from the number of the step: a run that goes on draws the same.
        sequence = np.random.SeedSequence([self.config.seed, self.step, self.processes.rank])
        torch.manual_seed(int(sequence.generate_state(1)[0]))
        weight = self.processes.sum(sum(self.loss.weight(part.labels) for part in parts))
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in parts:
            labels = part.labels.to(self.processes.device, non_blocking=True)
            loss = self.loss.total(self._forward(part), labels) / max(weight, 1e-12)
            loss.backward()
            total += float(loss.detach())
        self.processes.sum_gradients(self.module)
        self.optimizer.step()
        return self.processes.sum(total)

    def _forward(self, batch: Batch) -> Tensor:
        with self._autocast():
            return self.network(batch.inputs.to(self.processes.device))

    def _autocast(self) -> AbstractContextManager[Any]:
        kind = self.processes.device.type
        precision = self.config.precision
        if precision == "bf16" or (precision == "auto" and kind == "cuda"):
            return torch.autocast(kind, dtype=torch.bfloat16)
        return nullcontext()

    def _judge(self, split: str) -> tuple[float, Any]:
        return judge(
            self.network,
            self.batches.evaluation(split),
            self.loss,
            self.processes,
            forward=self._forward,
        )

    def _identity(self) -> dict[str, Any]:
        config = asdict(self.config)
        config["class_weights"] = str(config["class_weights"])
        return {
            "task": self.data.task.kind,
            "classes": [c.name for c in self.data.task.classes],
            "model": self.begun.description.name,
            "weights": self.begun.weights_id,
            "data": self.data.fingerprint(),
            "crops per step": self.batches.step_size,
            **{k: v for k, v in config.items() if k not in {"checkpoint_steps"}},
        }

    def _resume(self) -> None:
        """Take up the run of the folder, if there is one."""
        identity = self._identity()
        found = checkpoint.read_progress(self.out)
        if found is None:
            if self.processes.writes:
                if self.out.exists() and any(self.out.iterdir()) and not self._own_folder():
                    raise ConfigError(
                        got=f"{self.out}, which holds other files",
                        expected="a new folder, or one of bocage finetune",
                        fix="choose another --out",
                    )
                with naming_failures(self.out):
                    self.out.mkdir(parents=True, exist_ok=True)
            self.processes.wait()
            return
        theirs = found["identity"]
        if len(theirs.get("classes", [])) != len(identity["classes"]):
            raise ConfigError(
                got=f"{self.out} with a head of {len(theirs['classes'])} classes "
                f"({', '.join(theirs['classes'][:8])})",
                expected=f"{len(identity['classes'])} ({', '.join(identity['classes'][:8])}), as "
                "the data have",
                fix="choose another --out for these classes",
            )
        checkpoint.check_identity(self.out, identity, theirs)
        checkpoint.read_state(self.out, self.module, self.optimizer)
        self.step, self.best = found["step"], None
        if found["best"] is not None:
            self.best = (found["best"][0], found["best"][1])
        self.schedule.load_state(found["schedule"])
        self.processes.wait()

    def _own_folder(self) -> bool:
        names = {path.name.lstrip(".").removesuffix(".partial") for path in self.out.iterdir()}
        return names <= {
            *("config.json", "weights.safetensors", "head.json", "head.safetensors"),
            *("metrics.jsonl", "state.safetensors"),
        }

    def _keep(self) -> None:
        if self.processes.writes:
            content = {
                "step": self.step,
                "best": None if self.best is None else list(self.best),
                "schedule": self.schedule.state(),
                "identity": self._identity(),
            }
            checkpoint.write_state(self.out, self.module, self.optimizer, content)

    def _finish(self, log: MetricsLog) -> FinetuneResult:
        """Judge the best epoch on the test samples and write the record."""
        self.processes.wait()
        if self.best is None:
            raise RuntimeError("no epoch was finished")
        test: dict[str, Any] = {}
        if len(self.data.labelled("test")):
            restore(self.out, self.module)
            test_loss, scores = self._judge("test")
            test = {"loss": test_loss, **scores.as_dict()}
        result = FinetuneResult(
            folder=self.out,
            metric=self.metric,
            best_epoch=self.best[0],
            val=self.best[1],
            test=test,
        )
        if self.processes.writes:
            log.write({"step": self.step, "test": test, "best_epoch": self.best[0]})
            draw_curves(self.out, self.metric, self.best[0])
            self._record(result)
        self.processes.wait()
        return result

    def _record(self, result: FinetuneResult) -> None:
        content = {
            "bocage": __version__,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": self.request,
            "resolved": self._identity(),
            "processes": self.processes.world_size,
            "result": {
                "metric": result.metric,
                "best_epoch": result.best_epoch,
                "val": result.val,
                "test": result.test,
            },
            "torch": torch.__version__,
        }
        text = json.dumps(content, indent=1, default=str) + "\n"
        write_file(self.out / RUN_FILE, text.encode())


def describe(data: TrainingSet, begun: Start, config: FinetuneConfig, batches: Batches) -> str:
    """The plan of a run as a person reads it."""
    head = sum(p.numel() for p in begun.network.head_parameters())
    backbone = sum(p.numel() for _, p in begun.network.backbone_parameters())
    recipe = {
        "frozen-start": "backbone rests at first, then all at a tenth of the rate",
        "layer-decay": f"each layer {config.layer_decay:g} of the next one's rate",
        "plain": "everything at one rate",
    }[config.recipe]
    per_epoch = batches.steps_per_epoch
    return "\n".join(
        [
            data.describe(),
            f"network  {begun.description.name}: {backbone:,} parameters, head {head:,}",
            f"recipe   {config.recipe} ({recipe}), lr {config.resolved_lr:g}, "
            f"{config.resolved_schedule}",
            f"steps    {config.epochs} epochs x {per_epoch} steps of {batches.step_size} crops = "
            f"{config.epochs * per_epoch:,}",
        ]
    )


def _interval_text(test: dict[str, Any], metric: str) -> str:
    if metric == "loss":
        return f"loss {test['loss']:.4f}"
    found = test["scores"][metric]
    if found["value"] is None:
        return f"{metric} is not defined for {test['n']} samples"
    text = f"{metric} {found['value']:.4f}"
    if found["low"] is not None:
        text += f" (95 % interval {found['low']:.4f} to {found['high']:.4f})"
    return text


def _cuda(processes: Processes) -> list[torch.device]:
    return [processes.device] if processes.device.type == "cuda" else []
