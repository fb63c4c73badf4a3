"""One training step's loss: mask, encode, predict, compare.

The objective decides what is random (masks, dropped bands, skipped branches) before the network
runs, from one generator; the network itself draws nothing. Views of the same samples are rows of
one batch, so the network runs once and targets are computed once.

Axes: V views, B samples, R = V B rows, N decoded tokens of one modality, D width, C bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from bocage.errors import BocageError, ConfigError
from bocage.models.config import ModelConfig
from bocage.models.predictor import PretrainingModel, PretrainingOutput
from bocage.pretrain.batch import Batch
from bocage.pretrain.distillation import distillation_loss
from bocage.pretrain.losses import info_nce, mean_of_counted, patch_discrimination
from bocage.pretrain.objective_config import ObjectiveConfig
from bocage.pretrain.step_plan import StepPlan, plan_step
from bocage.pretrain.supervision import MAP_TASKS, supervision_loss

__all__ = ["LossError", "Losses", "Objective", "ObjectiveConfig", "StepPlan", "check_finite"]


class LossError(BocageError):
    """The loss is not a number; ``ids`` are the samples of the batch, ``parts`` its terms."""

    def __init__(
        self, ids: tuple[str, ...], parts: Mapping[str, float], culprits: Mapping[str, str]
    ) -> None:
        """Name the samples whose values are not finite (with the modality), or else all."""
        self.ids, self.parts, self.culprits = ids, dict(parts), dict(culprits)
        bad = ", ".join(f"{k} {v}" for k, v in parts.items() if not math.isfinite(v))
        if culprits:
            named = [f"{name} ({modality})" for name, modality in culprits.items()]
            where, fix = "values that are not finite in", "leave these samples out or mend them"
        else:
            named = list(ids)
            where, fix = "finite values in", "lower the learning rate, or look for outliers"
        shown = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
        super().__init__(
            got=f"a loss that is not finite ({bad or 'total'}) from {where} samples {shown}",
            expected="a finite loss",
            fix=fix,
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.ids, self.parts, self.culprits)


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss of one step."""

    total: Tensor
    """Scalar to differentiate."""

    parts: dict[str, Tensor]
    """Detached terms by name, unweighted: ``discrimination/<modality>``, ``contrastive``."""


class Objective:
    """Loss of a batch under a configuration; holds no state."""

    def __init__(self, config: ObjectiveConfig) -> None:
        """Keep the configuration."""
        self.config = config

    def __call__(self, model: PretrainingModel, batch: Batch, generator: torch.Generator) -> Losses:
        """The loss of one batch; ``model`` may be wrapped for distributed training.

        The generator decides everything random, sample by sample through the batch's ids. Raises
        InputError if no sample has anything to encode.
        """
        network = getattr(model, "module", model)
        plan = self.plan(network.config, batch, generator, training=model.training)
        return self.loss(model, batch, plan)

    def plan(
        self,
        config: ModelConfig,
        batch: Batch,
        generator: torch.Generator,
        *,
        training: bool = True,
    ) -> StepPlan:
        """Masks, dropped bands and skipped branches of one step, on the CPU.

        Without ``training`` nothing is dropped or skipped.
        """
        return plan_step(self.config, config, batch, generator, training=training)

    def loss(self, model: PretrainingModel, batch: Batch, plan: StepPlan) -> Losses:
        """The loss of a batch under a plan."""
        config, n_samples = self.config, len(batch.ids)
        device = next(iter(batch.values.values())).device
        keep, scale = plan.band_keep, plan.branch_scale
        output = model(
            batch.values,
            batch.timestamps,
            batch.patch_size,
            encode=plan.encode.to(device),
            decode=plan.decode.to(device),
            target=plan.target.to(device),
            band_keep=None if keep is None else {m: k.to(device) for m, k in keep.items()},
            branch_scale=None if scale is None else scale.to(device),
            pooled=config.contrastive_weight > 0,
            location_query_patch_size=plan.location_query_patch_size,
            map_rows={m: rows.to(device) for m, rows in plan.map_rows.items()},
        )
        back = plan.order.argsort().to(device)
        total = output.predictions.float().sum() * 0.0
        parts: dict[str, Tensor] = {}
        if plan.pairs:
            rows, counted = patch_discrimination(
                output.predictions,
                output.targets,
                [pair.to(device) for pair in plan.pairs.values()],
                temperature=config.temperature,
            )
            by_view = mean_of_counted(
                *(x[:, back].unflatten(1, (-1, n_samples)) for x in (rows, counted))
            )
            terms = by_view.mean(dim=1)
            total = total + terms.sum()
            parts |= {f"discrimination/{m}": x for m, x in zip(plan.pairs, terms, strict=True)}
        if output.pooled is not None:
            queries, keys = output.pooled[back].chunk(2)
            contrastive = info_nce(queries, keys, temperature=config.contrastive_temperature)
            parts["contrastive"] = contrastive
            total = total + config.contrastive_weight * contrastive
        if config.supervision_weight or config.student_weight:
            extra, weights = self._extra(output, batch, plan)
            parts |= extra
            total = total + sum(weights[name] * part for name, part in extra.items())
        return Losses(total=total, parts={name: part.detach() for name, part in parts.items()})

    def _extra(
        self, output: PretrainingOutput, batch: Batch, plan: StepPlan
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Map supervision and distillation of location tokens, and their weights."""
        locations = output.encoded.locations
        if locations is None or (
            self.config.supervision_weight and plan.map_rows and not output.maps
        ):
            raise ConfigError(
                got="map supervision or distillation for a network without these heads",
                expected="a v1.3 network made for this objective",
                fix="pass the objective to make_pretraining_model, or set both weights to 0",
            )
        parts, weights = {}, {}
        for m, predictions in output.maps.items():
            samples = (plan.order[plan.map_rows[m]] % len(batch.ids)).to(predictions.device)
            here = batch.present[m].to(predictions.device)[samples][:, :, :, 0].all(-1)
            here = here.repeat_interleave(batch.patch_size, 1)
            here = here.repeat_interleave(batch.patch_size, 2)
            values = batch.values[m][samples][:, :, :, 0]
            parts[f"supervision/{m}"] = supervision_loss(m, predictions, values, here)
            weights[f"supervision/{m}"] = self.config.supervision_weight * MAP_TASKS[m].weight
        compared = plan.compared.to(locations.tokens.device)
        for d, back in output.back_projections.items():
            student = cast("Tensor", locations.student).flatten(0, 2)[:, :d]
            teacher = locations.tokens.flatten(0, 2)
            parts[f"distillation/{d}"] = distillation_loss(student, back, teacher, compared)
            weights[f"distillation/{d}"] = self.config.student_weight
        return parts, weights


def check_finite(losses: Losses, batch: Batch) -> None:
    """Raise LossError with the batch's ids if the loss is NaN or infinite (waits for a GPU)."""
    if bool(torch.isfinite(losses.total.detach())):
        return
    culprits = {
        batch.ids[b]: m
        for m, x in batch.values.items()
        for b in (~torch.isfinite(x.flatten(1)).all(1)).nonzero()[:, 0].tolist()
    }
    raise LossError(batch.ids, {name: float(part) for name, part in losses.parts.items()}, culprits)
