"""``pretrain``: from samples and a recipe to checkpoints, a log and a model.

    batch ─▶ micro-batches ─▶ update ─▶ metrics.jsonl ─▶ now and then: scores, checkpoint

A run is a folder: ``run.json``, ``metrics.jsonl``, ``loss.png``, ``checkpoints/``. The same call
again goes on from the newest checkpoint and gives the curve of a run that was never stopped.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch

from bocage.embeddings.atomic import write_file
from bocage.errors import ConfigError, ModelError
from bocage.learn.finetune.log import read_metrics
from bocage.pretrain.architecture import make_pretraining_model
from bocage.pretrain.batch import Batch
from bocage.pretrain.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from bocage.pretrain.distributed import (
    Group,
    gather_objects,
    join_group,
    load_whole_state,
    share,
    sum_over_processes,
    wait_for_all,
    whole,
)
from bocage.pretrain.energy import Energy, EnergyMeter
from bocage.pretrain.evaluation import evaluate
from bocage.pretrain.interruption import asked_to_stop
from bocage.pretrain.loader import Loader
from bocage.pretrain.metrics_log import MetricsLog, draw_curves
from bocage.pretrain.objective import Objective
from bocage.pretrain.optimizer import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from bocage.pretrain.recipe import Recipe
from bocage.pretrain.recipe_record import (
    add_to_record,
    begin_record,
    data_identity,
    read_record,
)
from bocage.pretrain.run_options import PretrainResult, RunOptions
from bocage.pretrain.sample import Samples
from bocage.pretrain.sources import open_samples
from bocage.pretrain.training_step import MicroBatchLoss, StepResult, take_step
from bocage.pretrain.whitening import whiten
from bocage.progress import progress
from bocage.types import PathLike

logger = logging.getLogger(__name__)

SPIKE = 10.0
"""A gradient norm this many times the median of the last steps is logged as a spike."""

_WATCHED_STEPS = 200

_LOSSES_SHOWN = 50
"""The last steps that the loss of a result is the mean of."""

_WHITENING_STEPS = 16
"""Batches that starting weights are whitened with."""


def pretrain(
    recipe: Recipe, data: PathLike | Samples, out: PathLike, *, options: RunOptions | None = None
) -> PretrainResult:
    """Train a model as the recipe says, or go on with the run in ``out``.

    ``data`` is what ``open_samples`` takes: a store or folder of samples, or samples in memory.
    Under ``torchrun`` all processes call this. Raises ConfigError if ``out`` holds a run of another
    recipe or other data, and ModelError if loss or gradients stop being finite (the batch is named
    in a file of the run).
    """
    options = options or RunOptions()
    data = open_samples(data)
    with join_group(options.device, options.strategy) as group:
        check_batch(recipe, group)
        run = Path(out)
        loader = _loader(recipe, data, options, group)  # refuses before anything is written
        if group.writes:
            begin_record(run, recipe, data_identity(data))
        wait_for_all(group)
        training = _Training(recipe, loader, run, options, group)
        try:
            return training.go()
        finally:
            training.close()


def check_batch(recipe: Recipe, group: Group) -> None:
    """The batch must split evenly into processes and micro-batches, or ConfigError."""
    share_of_one = recipe.batch_size / group.world_size
    if share_of_one % recipe.micro_batch_size:
        raise ConfigError(
            got=f"batches of {recipe.batch_size} for {group.world_size} processes in micro-batches "
            f"of {recipe.micro_batch_size}",
            expected="a whole number of micro-batches in each process",
            fix="choose --micro-batch-size so that it divides --batch-size / processes",
        )


def _first_batches(data: Samples, recipe: Recipe) -> list[Batch]:
    """The same batches in every process, so that all start from the same weights."""
    loader = Loader(
        data,
        recipe.sampling,
        batch_size=min(64, recipe.batch_size),
        seed=recipe.data_seed,
        augment=recipe.flips,
        max_bad_share=recipe.max_bad_share,
    )
    return [loader.batch(step) for step in range(_WHITENING_STEPS)]


def _loader(recipe: Recipe, data: Samples, options: RunOptions, group: Group) -> Loader:
    return Loader(
        data,
        recipe.sampling,
        batch_size=recipe.batch_size,
        seed=recipe.data_seed,
        rank=group.rank,
        world_size=group.world_size,
        n_workers=options.workers,
        augment=recipe.flips,
        max_bad_share=recipe.max_bad_share,
    )


class _Training:
    """One process of a run."""

    def __init__(
        self, recipe: Recipe, loader: Loader, run: Path, options: RunOptions, group: Group
    ) -> None:
        self.recipe, self.options, self.run, self.group = recipe, options, run, group
        self.model = make_pretraining_model(recipe.model, recipe.seed, recipe.objective)
        if recipe.whiten and latest_checkpoint(run) is None:
            whiten(self.model, _first_batches(loader.source, recipe))
        self.model.to(group.device)
        loss = MicroBatchLoss(
            self.model,
            Objective(recipe.objective),
            precision=recipe.precision,
            sharded=group.strategy == "fsdp2",
        ).train()
        self.module = share(loss, group)
        self.optimizer = make_optimizer(self.model, recipe.optimizer)
        self.loader = loader
        self.step = 0
        self.before = {"hours": 0.0, "device_hours": 0.0, "kwh": 0.0}
        self.scores: dict[str, float] = {}
        self._resume()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.meter = EnergyMeter(group.device, power_w=options.power_w, first=local_rank == 0)
        self.log = MetricsLog(run, first_step=self.step + 1) if group.writes else None
        self.norms: deque[float] = deque(maxlen=_WATCHED_STEPS)
        self.losses: deque[float] = deque(maxlen=_LOSSES_SHOWN)
        self.waited_s = self.stepped_s = 0.0
        self.n_steps = 0

    def go(self) -> PretrainResult:
        """Train until the end, or until something asks to stop."""
        started = saved_at = time.monotonic()
        if self.step == 0:
            self._evaluate()
        last = self.recipe.steps
        if self.options.stop_after is not None:
            last = min(last, self.options.stop_after)
        minutes = self.options.max_minutes
        batches = self.loader.batches(self.step)
        shown = self.group.writes and self.options.progress
        saved = self.step
        title = f"pretrain {self.recipe.release} {self.recipe.size}"
        with (
            asked_to_stop() as stop,
            progress(title, last - self.step, unit="steps", enabled=shown) as advance,
        ):
            while self.step < last:
                self._one_step(batches)
                advance(1)
                now = time.monotonic()
                late = minutes is not None and now - started > 60 * minutes
                due = now - saved_at > 60 * self.options.checkpoint_minutes
                # Clocks and signals differ between processes: all do what one of them wants.
                wishes = [float(stop.is_set() or late), float(due)]
                wants_stop, wants_save = sum_over_processes(wishes, self.group)
                evaluated = self.step % self.options.evaluate_steps == 0
                if evaluated:
                    self._evaluate()
                every = self.options.checkpoint_steps
                if wants_save or wants_stop or (every and self.step % every == 0):
                    self._save()
                    saved, saved_at = self.step, time.monotonic()
                if wants_stop:
                    break
        finished = self.step >= self.recipe.steps
        if finished and self.n_steps and self.step % self.options.evaluate_steps:
            self._evaluate()
        if saved != self.step:
            self._save()
        return self._result(finished)

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()

    def _one_step(self, batches: Iterator[Batch]) -> None:
        started = time.perf_counter()
        batch = next(batches).to(self.group.device)
        waited = time.perf_counter() - started
        step = self.step + 1
        rate = learning_rate(self.recipe.optimizer, step, self.recipe.steps)
        set_learning_rate(self.optimizer, rate)
        result = take_step(
            self.module,
            self.optimizer,
            batch,
            step=step,
            seed=self.recipe.seed,
            micro_batch_size=self.recipe.micro_batch_size,
            clip_norm=self.recipe.optimizer.clip_norm,
            group=self.group,
        )
        if not result.applied:
            raise self._not_finite(step, result, batch)
        self.step = step
        spent = time.perf_counter() - started
        self.waited_s += waited
        self.stepped_s += spent
        self.n_steps += 1
        self.losses.append(result.loss)
        self._watch(result.gradient_norm)
        if self.log is not None:
            self.log.write(
                {
                    "step": step,
                    "loss": result.loss,
                    **{f"loss/{name}": value for name, value in result.parts.items()},
                    "gradient_norm": result.gradient_norm,
                    "learning_rate": rate,
                    "patch_size": batch.patch_size,
                    "step_s": round(spent, 5),
                    "data_s": round(waited, 5),
                }
            )

    def _watch(self, norm: float) -> None:
        """Say so when a gradient is far from the usual ones: it often comes before a divergence."""
        if len(self.norms) >= 50:
            usual = statistics.median(self.norms)
            if norm > SPIKE * usual:
                logger.warning(
                    "step %d: gradient norm %.3g, %.0f times the median of the last %d steps",
                    self.step,
                    norm,
                    norm / usual,
                    len(self.norms),
                )
        self.norms.append(norm)

    def _evaluate(self) -> None:
        if not self.options.evaluation_sets:
            return
        tensors = {n: whole(x) for n, x in self.model.state_dict().items()}
        if self.group.writes:
            self.scores = evaluate(
                self.recipe.model,
                tensors,
                self.options.evaluation_sets,
                patch_size=self.options.evaluation_patch_size,
                device=self.group.device,
            )
            assert self.log is not None
            self.log.write({"step": self.step, "evaluation": self.scores})
        wait_for_all(self.group)

    def _save(self) -> None:
        model = {n: whole(x) for n, x in self.model.state_dict().items()}
        optimizer = optimizer_tensors(self.optimizer, self.model)
        energy = self._energy()
        if self.group.writes:
            save_checkpoint(
                self.run,
                Checkpoint(
                    step=self.step,
                    model=model,
                    optimizer=optimizer,
                    state={
                        "samples": self.step * self.recipe.batch_size,
                        "energy": energy.to_json(),
                        "scores": self.scores,
                    },
                ),
                keep=self.options.keep,
            )
        wait_for_all(self.group)

    def _resume(self) -> None:
        path = latest_checkpoint(self.run)
        if path is None:
            return
        checkpoint = load_checkpoint(path)
        load_whole_state(self.model, checkpoint.model)
        load_optimizer_tensors(self.optimizer, self.model, checkpoint.optimizer)
        self.step = checkpoint.step
        energy = checkpoint.state.get("energy", {})
        self.before = {key: float(energy.get(key, 0.0)) for key in self.before}
        self.scores = dict(checkpoint.state.get("scores", {}))
        logger.info("going on from %s", path)

    def _energy(self) -> Energy:
        """Energy of the whole run so far; all processes must call."""
        hours, kwh = self.meter.read()
        device_hours, kwh = sum_over_processes([hours, kwh], self.group)
        kwh += self.before["kwh"]
        return Energy(
            device=_device_name(self.group),
            hours=hours + self.before["hours"],
            device_hours=device_hours + self.before["device_hours"],
            kwh=kwh,
            kg_co2e=kwh * self.options.grid_g_per_kwh / 1000,
            source=self.meter.source,
            grid_g_per_kwh=self.options.grid_g_per_kwh,
        )

    def _not_finite(self, step: int, result: StepResult, batch: Batch) -> ModelError:
        """The error of a step that was not applied; the samples are written to a file."""
        ids = [name for part in gather_objects(list(batch.ids), self.group) for name in part]
        path = self.run / f"not_finite_step_{step:08d}.json"
        if self.group.writes:
            facts = {
                "step": step,
                "loss": str(result.loss),
                "parts": {name: str(x) for name, x in result.parts.items()},
                "gradient_norm": str(result.gradient_norm),
                "patch_size": batch.patch_size,
                "ids": ids,
            }
            write_file(path, (json.dumps(facts, indent=1) + "\n").encode())
        return ModelError(
            got=f"loss {result.loss:g} and gradient norm {result.gradient_norm:g} at step {step}",
            expected="finite numbers; the weights of the step before are untouched",
            fix=f"look at the {len(ids)} samples listed in {path}, or begin a new run with a lower "
            "--learning-rate or --precision fp32",
        )

    def _result(self, finished: bool) -> PretrainResult:
        energy = self._energy()
        steps_per_s = self.n_steps / self.stepped_s if self.stepped_s else 0.0
        loading_share = self.waited_s / self.stepped_s if self.stepped_s else 0.0
        losses = list(self.losses)
        if self.group.writes and not self.n_steps:  # the run had ended before
            known = [row["loss"] for row in read_metrics(self.run) if "loss" in row]
            losses = known[-_LOSSES_SHOWN:]
            told = read_record(self.run).content
            if "energy" in told:
                energy = Energy(**told["energy"])
                steps_per_s, loading_share = told["steps_per_s"], told["loading_share"]
        if self.group.writes:
            add_to_record(
                self.run,
                step=self.step,
                finished=finished,
                energy=energy.to_json(),
                steps_per_s=steps_per_s,
                loading_share=loading_share,
                scores=self.scores,
            )
            if read_metrics(self.run):
                draw_curves(self.run)
        wait_for_all(self.group)
        return PretrainResult(
            run=self.run,
            step=self.step,
            finished=finished,
            loss=statistics.fmean(losses) if losses else float("nan"),
            steps_per_s=steps_per_s,
            loading_share=loading_share,
            energy=energy,
            scores=self.scores,
            n_bad_samples=len(self.loader.bad),
            writes=self.group.writes,
        )


def _device_name(group: Group) -> str:
    if group.device.type == "cuda":
        return f"{group.world_size} x {torch.cuda.get_device_name(group.device)}"
    return f"{group.world_size} x CPU process of {torch.get_num_threads()} threads"
