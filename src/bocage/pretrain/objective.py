"""One training step's loss: mask, encode, predict, compare.

The objective decides what is random (masks, dropped bands, skipped branches) before the network
runs, from one generator; the network itself draws nothing. Views of the same samples are rows of
one batch, so the network runs once and targets are computed once.

Axes: V views, B samples, R = V B rows, N decoded tokens of one modality, D width, C bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bocage.errors import BocageError, ConfigError
from bocage.models.config import ModelConfig
from bocage.models.predictor import PretrainingModel
from bocage.models.selection import Picked, Selection, select
from bocage.pretrain.batch import Batch
from bocage.pretrain.losses import info_nce, mean_of_counted, patch_discrimination
from bocage.pretrain.masking import MaskingConfig, Role, mask
from bocage.pretrain.noise import sample_noise
from bocage.sensors import MAPS, SENSORS


class LossError(BocageError):
    """The loss is not a number; ``ids`` are the samples of the batch, ``parts`` its terms."""

    def __init__(self, ids: tuple[str, ...], parts: Mapping[str, float]) -> None:
        """Name the terms that are not finite and the first samples."""
        self.ids, self.parts = ids, dict(parts)
        bad = ", ".join(f"{k} {v}" for k, v in parts.items() if not math.isfinite(v))
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        super().__init__(
            got=f"a loss that is not finite ({bad or 'total'}) on samples {shown}",
            expected="finite numbers",
            fix="look for values far out of range in these samples, or lower the learning rate",
        )

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.ids, self.parts)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is predicted, how it is compared, and what is random in a step."""

    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """How tokens are split."""

    n_views: int = 2
    """Masked views of each sample: 2 (v1 to v1.2), or 1."""

    temperature: float = 0.1
    """Of the patch discrimination."""

    same_target: float | None = 0.999
    """Maps only: decoded tokens whose targets are more alike than this are no negatives of each
    other; None keeps all (v1)."""

    contrastive_weight: float = 0.05
    """Of the InfoNCE loss between pooled views: 0.1 (v1), 0.05 (v1.1, v1.2), 0 (v1.3)."""

    contrastive_temperature: float = 0.1
    """Of the InfoNCE loss."""

    band_dropout: float = 0.2
    """Largest share of bands hidden from the encoder, drawn anew for each step, view and band set;
    0 switches it off (v1)."""

    band_dropout_modalities: tuple[str, ...] = ("sentinel2_l2a", "landsat")
    """Whose bands are hidden."""

    def __post_init__(self) -> None:
        if self.n_views not in (1, 2):
            raise _error("n_views", self.n_views, "1 or 2")
        if self.contrastive_weight and self.n_views != 2:
            raise _error(
                "contrastive_weight", self.contrastive_weight, "0 with one view: two are compared"
            )
        if not 0 <= self.band_dropout < 1:
            raise _error("band_dropout", self.band_dropout, "a share from 0 to below 1")
        for name in ("temperature", "contrastive_temperature"):
            if not getattr(self, name) > 0:
                raise _error(name, getattr(self, name), "a number above 0")
        for name in self.band_dropout_modalities:
            if name not in SENSORS:
                raise _error("band_dropout_modalities", name, f"some of {', '.join(SENSORS)}")


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss of one step."""

    total: Tensor
    """Scalar to differentiate."""

    parts: dict[str, Tensor]
    """Detached terms by name, unweighted: ``discrimination/<modality>``, ``contrastive``."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Everything random in a step, drawn before the network runs."""

    encode: Selection
    decode: Selection
    target: Selection
    pairs: dict[str, tuple[Tensor, Tensor, Tensor]]
    """Per decoded modality: number of the prediction [R, N], number of its target [R, N], tokens
    used [R]."""

    order: Tensor
    """Which sample of which view each row is [R]: view x B + sample. Rows of equal length are
    neighbors, so that attention needs no padding."""

    band_keep: dict[str, Tensor] | None
    """[R, C]; None without band dropout."""

    branch_scale: Tensor | None
    """[depth, 2, R]; None without stochastic depth."""


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
        present = {m: batch.present[m].cpu() for m in config.modalities if m in batch.present}
        n_samples, n_views = len(batch.ids), self.config.n_views
        views = [
            mask(present, self.config.masking, generator, ids=batch.ids) for _ in range(n_views)
        ]
        roles = {m: torch.cat([view[m] for view in views]) for m in present}
        order = _row_order(roles)
        roles = {m: r[order] for m, r in roles.items()}
        sample = order % n_samples
        decode = select({m: r == Role.DECODE for m, r in roles.items()}, sample)
        wanted = {}
        for m, r in roles.items():
            any_row = torch.zeros_like(present[m])
            any_row.index_put_((sample,), r == Role.DECODE, accumulate=True)
            wanted[m] = any_row
        target = select(wanted, torch.arange(n_samples))
        keep: list[dict[str, Tensor]] = []
        scale = None
        if training:
            keep = [self._band_keep(config, batch, generator) for _ in range(n_views)]
            scale = _branch_scale(config, batch, generator, n_views)
        return StepPlan(
            encode=select(
                {m: r == Role.ENCODE for m, r in roles.items() if m in config.inputs}, sample
            ),
            decode=decode,
            target=target,
            pairs=_pairs(decode, target),
            order=order,
            band_keep={m: torch.cat([k[m] for k in keep])[order] for m in keep[0]}
            if keep
            else None,
            branch_scale=None if scale is None else scale[:, :, order],
        )

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
        )
        back = plan.order.argsort().to(device)
        total = output.predictions.float().sum() * 0.0
        parts: dict[str, Tensor] = {}
        for modality, (slots, numbers, counts) in plan.pairs.items():
            rows, counted = patch_discrimination(
                output.predictions[slots.to(device)],
                output.targets[numbers.to(device)],
                counts,
                temperature=config.temperature,
                same_target=config.same_target if modality in MAPS else None,
            )
            by_view = mean_of_counted(
                *(x[back].unflatten(0, (-1, n_samples)) for x in (rows, counted))
            )
            parts[f"discrimination/{modality}"] = by_view.mean()
            total = total + by_view.mean()
        if output.pooled is not None:
            queries, keys = output.pooled[back].chunk(2)
            contrastive = info_nce(queries, keys, temperature=config.contrastive_temperature)
            parts["contrastive"] = contrastive
            total = total + config.contrastive_weight * contrastive
        return Losses(total=total, parts={name: part.detach() for name, part in parts.items()})

    def _band_keep(
        self, config: ModelConfig, batch: Batch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Factor 0 or 1 of each band [B, C]; every band set keeps at least one."""
        keep: dict[str, Tensor] = {}
        if not self.config.band_dropout:
            return keep
        for m in self.config.band_dropout_modalities:
            if m not in batch.values or m not in config.inputs:
                continue
            sets = config.band_sets[m]
            n_bands = batch.values[m].shape[-1]
            noise = sample_noise(batch.ids, n_bands + len(sets), generator)
            rates = torch.rand(len(sets), generator=generator) * self.config.band_dropout
            kept = torch.ones(len(batch.ids), n_bands)
            for i, bands in enumerate(sets):
                if len(bands) == 1:
                    continue
                here = noise[:, list(bands)] >= rates[i]
                lone = (noise[:, n_bands + i] * len(bands)).long()
                here[torch.arange(len(here)), lone] |= ~here.any(1)
                kept[:, list(bands)] = here.float()
            keep[m] = kept
        return keep


def check_finite(losses: Losses, batch: Batch) -> None:
    """Raise LossError with the batch's ids if the loss is NaN or infinite (waits for a GPU)."""
    if not bool(torch.isfinite(losses.total.detach())):
        raise LossError(batch.ids, {name: float(part) for name, part in losses.parts.items()})


def _branch_scale(
    config: ModelConfig, batch: Batch, generator: torch.Generator, n_views: int
) -> Tensor | None:
    """Stochastic depth [depth, 2, R]: 0 skips a branch, the others grow to keep the mean."""
    if not config.drop_path:
        return None
    noise = torch.cat(
        [sample_noise(batch.ids, 2 * config.depth, generator) for _ in range(n_views)]
    )
    kept = (noise >= config.drop_path).float() / (1 - config.drop_path)
    return kept.T.reshape(config.depth, 2, -1)


def _row_order(roles: Mapping[str, Tensor]) -> Tensor:
    """Rows sorted by the tokens they encode, then by those they decode."""
    every = torch.cat([r.flatten(1) for r in roles.values()], dim=1)
    order = (every == Role.DECODE).sum(1).argsort(stable=True)
    return order[(every == Role.ENCODE).sum(1)[order].argsort(stable=True)]


def _pairs(decode: Selection, target: Selection) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Where the prediction and the target of each decoded token are, per modality."""
    n_rows = len(decode.counts)
    number = torch.empty_like(decode.row)  # of the target of each decoded token
    n_before, start = 0, 0
    in_order = decode.source.argsort()
    for own, wanted in zip(decode.picked, target.picked, strict=True):
        # Both are sorted by sample, place and timestep within their rows.
        found = torch.searchsorted(_address(wanted, target.grid_hw), _address(own, target.grid_hw))
        number[in_order[start : start + len(own.row)]] = found + n_before
        n_before, start = n_before + len(wanted.row), start + len(own.row)
    pairs = {}
    for modality in dict.fromkeys(m for m, _ in decode.band_sets):
        sets = [i for i, (m, _) in enumerate(decode.band_sets) if m == modality]
        tokens = ((decode.set_number >= sets[0]) & (decode.set_number <= sets[-1])).nonzero()[:, 0]
        if not len(tokens):
            continue
        row = decode.row[tokens]
        counts = row.bincount(minlength=n_rows)
        within = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        both = torch.zeros(2, n_rows, int(counts.max()), dtype=torch.long)
        both[0, row, within], both[1, row, within] = tokens, number[tokens]
        pairs[modality] = (both[0], both[1], counts)
    return pairs


def _address(picked: Picked, grid_hw: tuple[int, int]) -> Tensor:
    """One number per token that grows with sample, place and timestep (fewer than 65536)."""
    cell = (picked.sample * grid_hw[0] + picked.cell_row) * grid_hw[1] + picked.cell_col
    return cell * 2**16 + picked.time


def _error(name: str, got: object, expected: str) -> ConfigError:
    return ConfigError(
        got=f"{name} {got!r}", expected=expected, fix=f"correct {name} of the objective"
    )
